"""A program run at other parameters and draws than its own, to see what holds at all of them."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.distributions import biject_to, constraints
from numpyro.primitives import Messenger

__all__ = ["Elsewhere", "draws_elsewhere"]


class Elsewhere(Messenger):
    """Moves each parameter by normal noise, in unconstrained space; handlers around see no change.

    A value that is at the edge of its constraint, as a probability of 0, moves about the middle.

    Args:
        seed: Of the noise.
        spread: Its standard deviation, an array of one number; the noise of minus that is opposite,
            and that of 0 leaves all parameters as they are.

    Attributes:
        num_moved: How many parameters the program has asked for.
    """

    def __init__(self, seed: Array, spread: Array) -> None:
        super().__init__()
        self.seed, self.spread = seed, spread
        self.num_moved = 0

    def postprocess_message(self, msg: Any) -> None:
        """Move a parameter, which may be a tree of arrays."""
        if msg["type"] != "param" or msg["value"] is None:
            return
        constraint = msg["kwargs"].get("constraint", constraints.real)
        msg["value"] = jax.tree.map(lambda leaf: self._moved(leaf, constraint), msg["value"])

    def _moved(self, value: Any, constraint: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(self.seed), self.num_moved)
        self.num_moved += 1
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            return value
        try:
            transform = biject_to(constraint)
        except NotImplementedError:  # a constraint of the user's own
            return value
        free = transform.inv(jnp.asarray(value))
        free = jnp.where(jnp.isfinite(free), free, 0.0)
        moved = transform(free + self.spread * jax.random.normal(key, free.shape, free.dtype))
        return jnp.where(self.spread == 0, value, moved)


def draws_elsewhere(
    model: Callable, names: Collection[str], seed: Array, spread: Array
) -> Callable:
    """A model that goes on from other draws of some continuous latents than it has made.

    All are moved by as much, up or down, in unconstrained space; for seed 1 every other one the
    opposite way. Handlers around see the draws as they were.

    Args:
        model: The model.
        names: Of the latents.
        seed: Which of them go up.
        spread: By how much.
    """
    other = jnp.where(seed == 1, -spread, spread)
    return _Steps(model, {name: other if i % 2 else spread for i, name in enumerate(names)})


class _Steps(Messenger):
    """Moves draws."""

    def __init__(self, model: Callable, steps: Mapping[str, Array]) -> None:
        super().__init__(model)
        self.steps = steps

    def postprocess_message(self, msg: Any) -> None:
        """Move a draw; a trace around has it as it was."""
        if msg["type"] != "sample" or msg["name"] not in self.steps:
            return
        try:
            transform = biject_to(msg["fn"].support)
        except NotImplementedError:  # a support of the user's own
            return
        step, free = self.steps[msg["name"]], transform.inv(msg["value"])
        moved = transform(jnp.where(jnp.isfinite(free), free, 0.0) + step)
        msg["value"] = jnp.where(step == 0, msg["value"], moved)
