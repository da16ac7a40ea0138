"""Say that a gradient is not there, where it would silently be zero."""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from numpyro_dvae.ops.arguments import checked

__all__ = ["refuse_gradient"]


@checked
def refuse_gradient(
    value: Float[Array, "*shape"], source: Float[Array, "..."], message: str
) -> Float[Array, "*shape"]:
    """`value`; whoever asks for the gradient that reaches `source` through it gets an error.

    Args:
        value: What is returned as it is; its own gradient is refused as well.
        source: What has no gradient through `value`.
        message: Of the `ValueError`.
    """
    return _refused(message, value, source)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _refused(message: str, value: Array, source: Array) -> Array:
    return value


def _forward(message: str, value: Array, source: Array) -> tuple[Array, None]:
    return value, None


def _backward(message: str, _: None, gradient: Any) -> Any:
    raise ValueError(message)


_refused.defvjp(_forward, _backward)
