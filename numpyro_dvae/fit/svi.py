"""What an `SVI` and its state hold: parameters, mutable state, the memory of a loss.

JAX's programs have no modules of their own, no device and no mode, so that there is less to find
than in pyro_dvae.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from numpyro_dvae.fit.data import Batch
from numpyro_dvae.fit.identity import described
from numpyro_dvae.fit.plain import dotted
from numpyro_dvae.infer.objective import LOSS_MEMORY
from numpyro_dvae.infer.svi import loss_info, with_memory
from numpyro_dvae.programs.handlers.steps import StepsChecked

__all__ = [
    "best_state",
    "check_loss",
    "described_svi",
    "first_state",
    "is_sound",
    "loss_scalars",
    "non_finite",
    "parameters",
    "scalar_fields",
    "take_step",
    "trained_parameters",
]


def check_loss(svi: SVI) -> None:
    """Raise if the loss of an `SVI` is a class."""
    if isinstance(svi.loss, type):
        name = svi.loss.__name__
        raise TypeError(
            f"`svi` has the class {name} for its `loss`, where it needs a loss: call it, as in "
            f"SVI(model, guide, optim, loss={name}())."
        )


def described_svi(svi: SVI) -> dict[str, Any]:
    """Describe model, guide, loss and optimiser by what decides the numbers of a run."""
    names = ("model", "guide", "loss", "optim", "static_kwargs")
    return {name: described(getattr(svi, name)) for name in names}


def first_state(
    rng_key: Array, svi: SVI, batch: Batch, init_state: SVIState | None = None
) -> SVIState:
    """Make the state before the first step, with the memory of the loss.

    Args:
        rng_key: Key of the parameters' first values.
        svi: Model, guide, optimiser and loss.
        batch: The first batch, which gives the shapes.
        init_state: In place of ``svi.init(...)``, a state that may come without a memory.
    """
    args, kwargs = batch
    with StepsChecked():
        state = with_memory(svi.init(rng_key, *args, **kwargs), svi.loss)
    if init_state is None:
        return state
    if loss_info(state) is None or loss_info(init_state) is not None:
        return init_state
    memory = {LOSS_MEMORY: state.mutable_state[LOSS_MEMORY]}
    return init_state._replace(mutable_state={**(init_state.mutable_state or {}), **memory})


def best_state(svi: SVI, svi_state: SVIState) -> SVIState:
    """Return the state, or that of the best of several runs (see `fit_restarts`)."""
    return getattr(svi, "best_state", lambda state: state)(svi_state)


def loss_scalars(svi: SVI, svi_state: SVIState) -> dict[str, float]:
    """Return the scalar fields of the loss's info."""
    fields = jax.device_get(scalar_fields(svi, svi_state))
    return {name: float(np.asarray(value).item()) for name, value in fields.items()}


def scalar_fields(svi: SVI, svi_state: SVIState) -> dict[str, Any]:
    """The same, still on the device; it may be traced."""
    info = loss_info(best_state(svi, svi_state))
    numbers = int | float | np.ndarray | np.generic | jax.Array
    fields: dict[str, Any] = getattr(info, "_asdict", dict)()
    return {n: v for n, v in fields.items() if isinstance(v, numbers) and np.size(v) == 1}


def parameters(svi: SVI, svi_state: SVIState) -> dict[str, Any]:
    """Return the unconstrained parameters, nested ones by dotted names."""
    return dotted(svi.optim.get_params(svi_state.optim_state))


def trained_parameters(svi: SVI, svi_state: SVIState) -> dict[str, Any]:
    """Return the parameters by name, constrained, and the mutable state of the programs."""
    return {**svi.get_params(svi_state), **_mutable(svi_state)}


def is_sound(svi: SVI, svi_state: SVIState) -> Array:
    """Whether parameters and mutable state are finite; it may be traced."""
    arrays = {**parameters(svi, svi_state), **dotted(_mutable(svi_state))}
    return jnp.array([True, *_are_finite(arrays).values()]).all()


def non_finite(svi: SVI, svi_state: SVIState) -> list[str]:
    """Names of parameters and mutable state that are not finite, with one wait for the device."""
    arrays = {**parameters(svi, svi_state), **dotted(_mutable(svi_state))}
    finite = jax.device_get(_are_finite(arrays))
    return [name for name in arrays if not finite[name]]


def take_step(
    svi: SVI, svi_state: SVIState, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[SVIState, Array]:
    """Do what `SVI.update` does; parameters keep their type, whatever that of the learning rate.

    Raises:
        ValueError: If the loss does not keep the mutable state.
    """
    new_state, loss = svi.update(svi_state, *args, **kwargs)
    before, after = (dotted(state.mutable_state or {}).keys() for state in (svi_state, new_state))
    if before != after:
        raise ValueError(
            f"`svi`: {type(svi.loss).__name__} does not keep the mutable state "
            f"{sorted(before ^ after)}, which NumPyro's own losses do at one particle "
            "alone: use a loss of numpyro_dvae, or `num_particles=1`."
        )
    optim_state = jax.tree.map(_as_before, svi_state.optim_state, new_state.optim_state)
    return new_state._replace(optim_state=optim_state), loss


def _as_before(old: Any, new: Any) -> Any:
    """In 64 bits, a schedule's number would make those of single precision double."""
    same = getattr(old, "dtype", None) == getattr(new, "dtype", None)
    return new if same else jnp.asarray(new, jnp.asarray(old).dtype)


def _mutable(svi_state: SVIState) -> dict[str, Any]:
    """The mutable state of the programs, without the memory of the loss."""
    return {k: v for k, v in (svi_state.mutable_state or {}).items() if k != LOSS_MEMORY}


@jax.jit
def _are_finite(arrays: dict[str, Array]) -> dict[str, Any]:
    return {
        name: jnp.isfinite(value).all() if jnp.issubdtype(value.dtype, jnp.floating) else True
        for name, value in arrays.items()
    }
