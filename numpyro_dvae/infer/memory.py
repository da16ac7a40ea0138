"""What a loss keeps between steps, in NumPyro's mutable state.

NumPyro's losses are pure functions. One that remembers (a schedule's step, a steered beta, a moving
average) finds its memory among the parameters and returns a new one beside the mutable state of the
programs; `numpyro_dvae.infer.SVI` puts the first one there. Pyro's losses keep their own state, so
pyro_dvae has no such module.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["LOSS_MEMORY", "LossMemory", "forgotten", "renewed", "scheduled", "take_memory"]

LOSS_MEMORY = "_loss"  # the name of a loss's memory in the mutable state


class LossMemory(NamedTuple):
    """What a loss keeps."""

    state: Any  # `elbo.LossState`: what the next step needs
    info: Any  # scalars of the last step, for logs; NaN before the first


def take_memory(loss: Any, params: dict[str, Any]) -> LossMemory | None:
    """The memory of a `ParticleELBO`, which is then no longer among the parameters.

    Raises:
        ValueError: If there is none and the loss needs it.
    """
    memory = params.pop(LOSS_MEMORY, None)
    if memory is None and loss.remembers:
        raise forgotten(loss)
    return memory


def forgotten(loss: Any) -> ValueError:
    """What to say of a memory that is not there."""
    return ValueError(
        f"{type(loss).__name__} remembers between steps ({loss.memories}), but its state is "
        "not there. Use numpyro_dvae.infer.SVI, which has the arguments of numpyro.infer.SVI, "
        "or pass the state of svi.init(...) through numpyro_dvae.infer.svi.with_memory."
    )


def renewed(old: LossMemory, new: LossMemory) -> LossMemory:
    """The new memory without gradient, in the dtypes of the old: no step compiles anew."""
    return jax.tree.map(
        lambda new, old: jax.lax.stop_gradient(jnp.asarray(new, jnp.result_type(old))), new, old
    )


def scheduled(name: str, value: Any, step: int | Array) -> Any:
    """The value of an argument at a step, if it is a schedule.

    Raises:
        ValueError: If the schedule asks for the value of the step, which is traced.
    """
    if not callable(value):
        return value
    try:
        return value(step)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError(
            f"`{name}` must be a schedule of JAX operations (jnp.exp for math.exp, jnp.where for "
            "if), as `step` is traced under jit; got one that asks for its value."
        ) from error
