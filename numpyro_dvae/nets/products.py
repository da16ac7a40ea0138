"""A matrix product whose gradient with respect to the matrix is one flat product.

JAX's own gradient sums over every leading axis of the input at once and transposes, for which XLA
has no fast kernel on a CPU: up to 3 times the time of the flat product. A `custom_vjp` is flat,
too, but once for each particle where particles are mapped, and then a sum. Hence a primitive, whose
gradient is taken after what maps it has become one more leading axis.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

__all__ = ["product"]


def product(x: Float[Array, "*batch I"], matrix: Float[Array, "I O"]) -> Float[Array, "*batch O"]:
    """``x @ matrix``, both of one dtype."""
    program = _program(tuple(x.shape), tuple(matrix.shape), jnp.result_type(x, matrix))
    return _product.bind(x, matrix, call_jaxpr=program)


@lru_cache(maxsize=1024)
def _program(x: tuple[int, ...], matrix: tuple[int, ...], dtype: Any) -> ClosedJaxpr:
    """What is computed, so that those who read programs may read on."""
    of = [jax.ShapeDtypeStruct(shape, dtype) for shape in (x, matrix)]
    return jax.make_jaxpr(jnp.matmul)(*of)


def _computed(x: Array, matrix: Array, *, call_jaxpr: ClosedJaxpr) -> Array:
    return x @ matrix


def _shape(x: Any, matrix: Any, *, call_jaxpr: ClosedJaxpr) -> Any:
    return call_jaxpr.out_avals[0]


def _mapped(args: Sequence[Array], axes: Sequence[Any], *, call_jaxpr: ClosedJaxpr) -> Any:
    """What is mapped is a leading axis; matrices that are mapped have a product each."""
    (x, matrix), (of_x, of_matrix) = args, axes
    if of_matrix is None:
        return product(jnp.moveaxis(x, of_x, 0), matrix), 0
    matrix = jnp.moveaxis(matrix, of_matrix, 0)
    x = x[None] if of_x is None else jnp.moveaxis(x, of_x, 0)
    found = x.reshape(x.shape[0], -1, x.shape[-1]) @ matrix
    return found.reshape(len(matrix), *x.shape[1:-1], matrix.shape[-1]), 0


def _slope_of_x(slope: Array, x: Any, matrix: Array, *, call_jaxpr: ClosedJaxpr) -> Array:
    return product(slope, matrix.T)


def _slope_of_matrix(slope: Array, x: Array, matrix: Any, *, call_jaxpr: ClosedJaxpr) -> Array:
    flat_x, flat_slope = (a.reshape(-1, a.shape[-1]) for a in (x, slope))
    return flat_x.T @ flat_slope


_product = Primitive("flat_product")
_product.def_impl(jax.jit(_computed, static_argnames="call_jaxpr"))
_product.def_abstract_eval(_shape)
ad.defbilinear(_product, _slope_of_x, _slope_of_matrix)
batching.primitive_batchers[_product] = _mapped
mlir.register_lowering(_product, mlir.lower_fun(_computed, multiple_results=False))
