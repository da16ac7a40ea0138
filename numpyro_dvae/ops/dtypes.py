"""In which precision numbers are summed and compared: float32 at least."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

__all__ = ["precise", "precise_dtype"]


def precise_dtype(dtype: Any) -> Any:
    """The dtype of log-densities whose logits have this one: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def precise(array: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """The same numbers in float32, or in a finer dtype where they have one."""
    return array.astype(precise_dtype(array.dtype))
