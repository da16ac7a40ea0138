"""Whether a program takes latents of size 1 in plates: decided by what it computes, abstractly.

Where all data go through the same states, one value stands for all of them, which spares a decoder
the work of all but one. A program that reads the size of a latent (``jnp.arange(len(z))``), joins
latents and data or maps over both must see it in full. It is traced in both ways: but for the
shapes of arrays, both must be the same operations on the same numbers.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from numpyro_dvae.programs.draw import Draw, run_pair
from numpyro_dvae.programs.record import make_record
from numpyro_dvae.programs.sites import Pair

__all__ = ["takes_singletons"]

_OF_SHAPES = {"broadcast_in_dim", "reshape", "squeeze"}  # come and go with sizes of 1
_SOURCES = {"iota", "random_bits", "random_seed"}  # of no array: their shape is all they say


def takes_singletons(rng_key: Array, pair: Pair, values: Mapping[str, Array]) -> bool:
    """Whether values that all data share may have size 1 in the plates of these.

    Args:
        rng_key: Key of runs that compute nothing.
        pair: The programs, with their layout.
        values: Of all discrete latents, S states in front.
    """

    def trace(expand: bool) -> Counter:
        def run(given: Mapping[str, Array]) -> Any:
            found = run_pair(rng_key, pair, Draw(rng_key, pair.layout, given, expand=expand))
            return make_record(found, pair.layout, 1)._replace(extras={})

        one = {n: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for n, v in values.items()}
        return Counter(_steps(jax.make_jaxpr(run)(one)))

    wide = trace(expand=True)  # what it says here is no matter of sizes
    try:
        return trace(expand=False) == wide
    except Exception:  # whatever a program says of sizes that do not fit
        return False


def _steps(program: Any) -> Iterator[Any]:
    """What a program does, without the shapes of arrays that come in."""
    yield from (("constant", np.shape(constant)) for constant in getattr(program, "consts", ()))
    for step in getattr(program, "jaxpr", program).eqns:
        name = step.primitive.name
        if name not in _OF_SHAPES:
            yield name
            yield from (("number", repr(v.val)) for v in step.invars if hasattr(v, "val"))
        if name in _SOURCES:
            yield from ((name, tuple(variable.aval.shape)) for variable in step.outvars)
        inner = jax.tree.leaves(list(step.params.values()), is_leaf=_is_program)
        for part in filter(_is_program, inner):
            yield from _steps(part)


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns")
