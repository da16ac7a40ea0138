"""NumPyro's `SVI`, for losses that remember.

NumPyro's losses are pure and `numpyro.infer.SVI` carries no state for them but the mutable state
of the programs. The `SVI` here puts the loss's memory beside it when training starts; every step
then hands it on. A loss with a fixed beta and a baseline without memory works with either, but only
here does it report its info:

    svi = SVI(model, guide, optim, loss=DAPS_ELBO(beta=optax.exponential_decay(0.5, 1000, 0.1)))
    state = svi.init(rng_key, images)
    state, loss = jax.jit(svi.update)(state, images)
    loss_info(state).ess

Pyro's losses keep their own state, so pyro_dvae has no such module.
"""

from typing import Any

import jax
import numpyro.infer
from jaxtyping import Array
from numpyro.infer.svi import SVIState

from numpyro_dvae.infer.elbo import ParticleELBO
from numpyro_dvae.infer.objective import LOSS_MEMORY
from numpyro_dvae.nets.codebooks import settle_tables
from numpyro_dvae.programs.handlers.steps import StepsChecked

__all__ = ["SVI", "loss_info", "loss_state", "with_memory"]


class SVI(numpyro.infer.SVI):
    """`numpyro.infer.SVI` whose state includes the memory of a loss of this package."""

    def init(
        self, rng_key: Array, *args: Any, init_params: dict[str, Any] | None = None, **kwargs: Any
    ) -> SVIState:
        """As in NumPyro; any other loss is left as it is."""
        with StepsChecked():
            state = super().init(rng_key, *args, init_params=init_params, **kwargs)
        return with_memory(state, self.loss)

    def update(
        self,
        svi_state: SVIState,
        *args: Any,
        forward_mode_differentiation: bool = False,
        **kwargs: Any,
    ) -> tuple[SVIState, Array]:
        """As in NumPyro; codes that have restarted are then in the parameters, not in the state."""
        mode = {"forward_mode_differentiation": forward_mode_differentiation}
        state, loss = super().update(svi_state, *args, **mode, **kwargs)
        return self._settled(state), loss

    def stable_update(
        self,
        svi_state: SVIState,
        *args: Any,
        forward_mode_differentiation: bool = False,
        **kwargs: Any,
    ) -> tuple[SVIState, Array]:
        """As in NumPyro; see `update`."""
        mode = {"forward_mode_differentiation": forward_mode_differentiation}
        state, loss = super().stable_update(svi_state, *args, **mode, **kwargs)
        return self._settled(state), loss

    def _settled(self, svi_state: SVIState) -> SVIState:
        """The state with `nets.codebooks.settle_tables` done, where the optimiser shows where."""
        params = self.optim.get_params(svi_state.optim_state)
        new, mutable = settle_tables(params, svi_state.mutable_state or {})
        moved = {id(params[name]): new[name] for name in new if new[name] is not params[name]}
        leaves = jax.tree.leaves(svi_state.optim_state)
        if not moved or not moved.keys() <= {id(leaf) for leaf in leaves}:
            return svi_state
        optim_state = jax.tree.map(lambda x: moved.get(id(x), x), svi_state.optim_state)
        return svi_state._replace(optim_state=optim_state, mutable_state=mutable)

    def evaluate(self, svi_state: SVIState, *args: Any, **kwargs: Any) -> Array:
        """As in NumPyro, with the mutable state, which a `TruncatedGuide` cannot do without."""
        params = {**self.get_params(svi_state), **(svi_state.mutable_state or {})}
        _, rng_key = jax.random.split(svi_state.rng_key)
        kwargs = {**kwargs, **self.static_kwargs}
        return self.loss.loss(rng_key, params, self.model, self.guide, *args, **kwargs)


def with_memory(svi_state: SVIState, loss: Any) -> SVIState:
    """Add the memory of a loss that has not run, if there is none: for NumPyro's own `SVI`.

    Raises:
        ValueError: If the loss is a class, which NumPyro would call with a key in its own place.
    """
    if isinstance(loss, type):
        raise ValueError(
            f"`loss` is the class {loss.__name__}, not a loss: write loss={loss.__name__}(), with "
            "its options in the brackets."
        )
    if not isinstance(loss, ParticleELBO) or LOSS_MEMORY in (svi_state.mutable_state or {}):
        return svi_state
    mutable = dict(svi_state.mutable_state or {})
    memory = {LOSS_MEMORY: loss.init_loss_memory(mutable)}
    return svi_state._replace(mutable_state=mutable | memory)


def loss_info(svi_state: SVIState) -> Any:
    """Scalars of the last step, as `DAPSInfo`; NaN before the first, None without a memory."""
    memory = (svi_state.mutable_state or {}).get(LOSS_MEMORY)
    return None if memory is None else memory.info


def loss_state(svi_state: SVIState) -> Any:
    """What the loss remembers, as `LossState`; None without a memory."""
    memory = (svi_state.mutable_state or {}).get(LOSS_MEMORY)
    return None if memory is None else memory.state
