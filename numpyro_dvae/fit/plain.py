"""Leaves of a JAX tree, as a checkpoint holds them and back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

__all__ = ["as_plain", "dotted", "like"]


def as_plain(value: Any) -> np.ndarray:
    """Copy a leaf to the host; of a typed key, its numbers."""
    if jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def like(template: Any, plain: Any) -> Array:
    """Turn a saved array into one of the type of another, a typed key for instance."""
    if jnp.issubdtype(jnp.result_type(template), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(plain), impl=jax.random.key_impl(template))
    found = jnp.asarray(plain, jnp.result_type(template))
    if getattr(template, "weak_type", False) and not found.ndim:
        weak = jnp.asarray(found.item())  # a counter: what it multiplies keeps its own type
        return weak if weak.dtype == found.dtype else found
    return found


def dotted(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by names such as `encoder$params.layer.bias`."""

    def part(entry: Any) -> str:
        names = (getattr(entry, attribute, None) for attribute in ("key", "name", "idx"))
        return str(next((name for name in names if name is not None), entry))

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(map(part, path)): value for path, value in leaves}
