"""Which way programs go: the operations that an abstract run is made of, summed up in one number.

What a program finds around it may choose how it goes: an argument that is no array, an attribute, a
global of any module. Whatever it is, another way is made of other operations.
"""

from collections.abc import Iterator
from enum import Enum
from typing import Any

import jax
from jaxtyping import Array

from numpyro_dvae.programs.draw import Draw, run_pair
from numpyro_dvae.programs.sites import Layout, Pair

__all__ = ["path_taken"]

_STATIC = (bool, int, str, type(None), Enum)


def path_taken(rng_key: Array, pair: Pair) -> int:
    """Sum up the operations of a run, in order, with shapes, types and whole numbers.

    Real numbers do not count, such as a temperature, nor do values of arrays.
    """

    def run() -> list[Any]:
        sites = run_pair(rng_key, pair, Draw(rng_key, Layout(), {}))
        messages = (*sites.guide_trace.values(), *sites.model_trace.values())
        leaves = jax.tree.leaves([[m.get(k) for k in ("fn", "value", "scale")] for m in messages])
        return [leaf for leaf in leaves if isinstance(leaf, jax.Array)]

    return hash(tuple(_operations(jax.make_jaxpr(run)().jaxpr)))


def _operations(jaxpr: Any) -> Iterator[Any]:
    names = {variable: place for place, variable in enumerate(jaxpr.constvars + jaxpr.invars)}
    for step in jaxpr.eqns:
        yield step.primitive.name
        for variable in step.invars:  # what was computed when, or a constant
            yield names.get(variable) if not hasattr(variable, "val") else _static(variable.val)
        for name, value in step.params.items():
            yield name
            yield from _parameter(value)
        for variable in step.outvars:
            names[variable] = len(names)
            yield variable.aval.shape, str(variable.aval.dtype)


def _parameter(value: Any) -> Iterator[Any]:
    inner = getattr(value, "jaxpr", value)
    if hasattr(inner, "eqns"):
        yield from _operations(inner)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _parameter(entry)
        yield len(value)
    else:
        yield _static(value)


def _static(value: Any) -> Any:
    if type(value) is int and value == -1:
        return "-1"  # whose hash is that of -2
    return value if isinstance(value, _STATIC) else type(value).__name__
