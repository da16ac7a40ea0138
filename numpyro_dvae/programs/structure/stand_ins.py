"""Run a program that is traced: what has no value yet has other numbers stand in for it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import Messenger

__all__ = ["FromZero", "with_stand_ins"]


class FromZero(Messenger):
    """Moves parameters away from 0: a coefficient that starts there shows no effect."""

    def postprocess_message(self, msg: Any) -> None:
        """Let small numbers stand in for the zeros of a parameter."""
        if msg["type"] == "param":
            msg["value"] = jax.tree.map(_moved, msg["value"])


def _moved(value: Any) -> Any:
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return value
    small = np.random.default_rng(0).uniform(0.05, 0.15, jnp.shape(value))
    return jnp.where(value == 0, small.astype(jnp.result_type(value)), value)


def with_stand_ins(program: Any) -> Callable[[Any], list[np.ndarray]]:
    """A function of arrays that are known, of whose traced constants others take the place.

    Args:
        program: What `jax.make_jaxpr` returns.
    """
    rng = np.random.default_rng(0)
    constants = [_stand_in(constant, rng) for constant in program.consts]
    compiled = jax.jit(lambda leaves: jax.core.eval_jaxpr(program.jaxpr, constants, *leaves))

    def run(given: Any) -> list[np.ndarray]:
        with jax.ensure_compile_time_eval():
            return [np.asarray(found) for found in compiled(jax.tree.leaves(given))]

    return run


def _stand_in(constant: Any, rng: np.random.Generator) -> Any:
    """Numbers that are scales, probabilities and places as well; rows and codes of 0."""
    if not isinstance(constant, jax.core.Tracer):
        return constant
    with jax.ensure_compile_time_eval():
        if jnp.issubdtype(constant.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), constant.shape)
        if jnp.issubdtype(constant.dtype, jnp.floating):
            return jnp.asarray(rng.uniform(0.3, 0.7, constant.shape), constant.dtype)
        return jnp.full(constant.shape, constant.dtype == bool, constant.dtype)
