"""Evaluation mode: networks of flax.nnx run without dropout, by the statistics they have learnt."""

from typing import Any

import numpyro
from numpyro.primitives import Messenger

__all__ = ["Evaluating", "in_mode_of_run"]


class Evaluating(Messenger):
    """Programs within run the networks that they `register` as after ``net.eval()``.

    The networks are left in the mode that they have. All other networks of the packages are the
    same in training.
    """


def in_mode_of_run(net: Any) -> Any:
    """A network of flax.nnx; its copy in evaluation mode, where the run is `Evaluating`."""
    stack = numpyro.primitives._PYRO_STACK
    if not hasattr(net, "eval") or not any(isinstance(each, Evaluating) for each in stack):
        return net
    from flax import nnx  # slow to import

    copied = nnx.clone(net)
    copied.eval()
    return copied
