"""Latents that a mask takes out: of no matter to the rest of their datum, or drawn all the same.

Where nothing outside of the mask depends on the masked latents of a datum (padding), sets keep one
state for all that differ in these alone. Where something does (an animal before it is marked), they
are latents like others: a mask silences a density, never a draw, so the log joint of a state holds
the log-density of its masked latents, as `TraceEnum_ELBO` counts those that it sums over. The guide
then has a factor that takes this density out of its log q, as no model's log joint has it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Num

from numpyro_dvae.infer.truncated.scoring import ModelCall, Scorer
from numpyro_dvae.programs.masks import changed

__all__ = ["masked_matter", "with_drawn"]

_NUM_STATES = 8  # that are tried: the last codes of all latents, and others at random
_ROUNDING = 1e-5  # in single precision; what differs by chance only costs states


def with_drawn(call: ModelCall) -> ModelCall:
    """The call, knowing of which data the masked latents are drawn like others."""
    kept = call.batch.unmasked
    if kept is None:
        return call
    drawn = masked_matter(call, kept)
    return call._replace(batch=call.batch._replace(unmasked=kept | drawn[:, None], drawn=drawn))


def masked_matter(call: ModelCall, kept: Bool[Array, "B H"]) -> Bool[Array, "B"]:
    """Whether a datum's log joint changes with codes that a mask takes out, in states tried."""
    states = _states(call, kept)
    scores = Scorer(call).of_codes(jnp.concatenate([states, jnp.where(kept, states, 0)]))
    some, others = jnp.split(scores, 2)
    return changed(some, others, _ROUNDING).any(0)


def _states(call: ModelCall, kept: Bool[Array, "B H"]) -> Num[Array, "S B H"]:
    """The same at each call."""
    sizes = jnp.array(call.space.cardinalities)
    shape = _NUM_STATES - 1, 1, len(sizes)
    codes = jax.random.randint(jax.random.key(0), shape, 0, 2**30) % sizes
    codes = jnp.concatenate([jnp.broadcast_to(sizes - 1, (1, *shape[1:])), codes])
    return jnp.broadcast_to(codes, (_NUM_STATES, *kept.shape))
