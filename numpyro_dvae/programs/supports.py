"""The values that a discrete site can have, where all its data have the same."""

import jax
import numpy as np

from numpyro_dvae.programs.sites import Site

__all__ = ["listed_values", "no_end", "no_one_support"]


def listed_values(site: Site) -> np.ndarray:
    """All values of one latent of a site, ``(num_values, *event)`` of its base.

    Raises:
        ValueError: If it has other values for some data or draws.
    """
    base = site.base
    try:
        with jax.ensure_compile_time_eval():  # no code depends on a parameter
            found = np.asarray(base.enumerate_support(expand=False))
    except (
        NotImplementedError,
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
    ) as error:
        raise no_one_support(site) from error
    found = found.reshape(len(found), -1, *base.event_shape)
    if not (found == found[:, :1]).all():
        raise no_one_support(site)
    return found[:, 0]


def no_end(site: Site) -> ValueError:
    """What to say of a site whose values have no end."""
    return ValueError(
        f"site '{site.name}' ({site.family}) has no finite support to enumerate. Give it a "
        "distribution with has_enumerate_support, such as Binomial, or sample it: DAPS_ELBO, "
        "Reinforce_ELBO; a report is then importance_diagnostics, as posterior_gap lists the "
        "states of the model, whichever the guide has."
    )


def no_one_support(site: Site) -> ValueError:
    """What to say of a site that has other values for some data or draws."""
    if site.is_scanned:
        return ValueError(
            f"site '{site.name}' ({site.family}) is drawn in a `scan`, which has an array of the "
            "numbers that its values end at, one for each step, so its states cannot be listed. "
            "Write it as a Categorical of as many values at each step, in model and guide, with "
            "logits such as dist.Binomial(n, p[..., None]).log_prob(jnp.arange(n + 1)), or use a "
            "loss that samples: DAPS_ELBO, Reinforce_ELBO."
        )
    return ValueError(
        f"site '{site.name}' ({site.family}) may have other values for each datum or draw, so "
        "its states cannot be listed. Give it the largest number of them as a constant, as a "
        "Categorical with logits of -inf where a value cannot be, or use a loss that samples: "
        "DAPS_ELBO, Reinforce_ELBO."
    )
