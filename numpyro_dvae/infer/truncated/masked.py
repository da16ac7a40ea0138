"""Latents that a mask takes out: their codes must not matter to the rest of the model.

Sets keep one state for all that differ in masked latents alone. That is right of padding. Where a
site outside of the mask depends on them it is not, and their codes would have to be summed over.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Num

from numpyro_dvae.infer.truncated.scoring import ModelCall, Scorer

__all__ = ["check_masked"]

_NUM_STATES = 4  # that are tried
_TOLERANCE = 1e-4  # sums may be in another order


def check_masked(call: ModelCall) -> ModelCall:
    """Refuse masked latents that sites outside of the mask depend on.

    Under jit values are not known: a datum of such latents turns the loss into NaN.

    Returns:
        The call, where such data are as rows out of range.

    Raises:
        ValueError: If the log joint of a datum changes with the codes of its masked latents.
    """
    kept = call.batch.unmasked
    if kept is None:
        return call
    matter = masked_matter(call, kept)
    if isinstance(matter, jax.core.Tracer):
        in_range = call.batch.in_range & ~matter
        return call._replace(batch=call.batch._replace(in_range=in_range))
    if not matter.any():
        return call
    ends = np.cumsum([site.num_latents for site in call.space.sites])[:-1]
    parts = zip(call.space.sites, jnp.split(kept, ends, axis=-1), strict=True)
    raise ValueError(
        f"latents of sites {[site.name for site, part in parts if not part.all()]} are masked, but "
        "sites outside of the mask depend on them, so a truncated posterior cannot leave them out. "
        "Mask all that depends on them too, or drop the mask and give what is known as `obs`; or "
        "use a loss with an encoder, such as Reinforce_ELBO."
    )


def masked_matter(call: ModelCall, kept: Bool[Array, "B H"]) -> Bool[Array, "B"]:
    """Whether a datum's log joint changes with codes that a mask takes out, in states tried."""
    states = _states(call, kept)
    scores = Scorer(call).of_codes(jnp.concatenate([states, jnp.where(kept, states, 0)]))
    some, others = jnp.split(scores, 2)
    return ~jnp.isclose(some, others, _TOLERANCE, _TOLERANCE, equal_nan=True).all(0)


def _states(call: ModelCall, kept: Bool[Array, "B H"]) -> Num[Array, "S B H"]:
    """The same at each call."""
    sizes = jnp.array(call.space.cardinalities)
    codes = jax.random.randint(jax.random.key(0), (_NUM_STATES, 1, len(sizes)), 0, 2**30) % sizes
    return jnp.broadcast_to(codes, (_NUM_STATES, *kept.shape))
