"""Programs that ask for the value of what JAX traces: said in words, with what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

__all__ = ["explained"]

_ASKING = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do where a compiled program asks for a value, and JAX says that it is traced.

    Raises:
        ValueError: In place of JAX's error.
    """
    try:
        yield
    except _ASKING as error:
        raise ValueError(
            "model or guide asks for the value of an array, by `if`, bool(), int(), an index or "
            "NumPy; it has none yet, as programs are compiled. Compute with jax.numpy (jnp.where "
            "for if), or pass an argument that is a setting as a number of Python (True for "
            f"jnp.array(True)), which is constant. JAX says: {str(error).splitlines()[0]}"
        ) from error
