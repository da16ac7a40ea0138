"""Latents under a mask: where what is seen depends on them, they count as the model draws them.

A mask silences the density of a latent, never its draw. If nothing else depends on the latent, its
draws do not matter, and the weights are best without them. If something does, the weights of draws
estimate the evidence only with the ratio of the two densities that the mask silences. Which is
found by trying: latents under masks take other values, and the rest stays as it is. A draw moves
all of them, the next one about half, each to another of the other values, so that neither what is
rare nor what depends on two together stays unseen.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro import distributions as dist

from numpyro_dvae.programs.densities import changed, entry_mask, is_masked
from numpyro_dvae.programs.draw import moved
from numpyro_dvae.programs.readers.impossible import read_impossible
from numpyro_dvae.programs.record import Ledger, Particles, read_codes, silenced_of
from numpyro_dvae.programs.sites import Layout, Run, Site

__all__ = [
    "OF_MASKS",
    "counted_entries",
    "has_mask",
    "otherwise_drawn",
    "read_counted_impossible",
    "with_matters",
]

_ROUNDING = 1e-4  # of log-densities in single precision, as a part of themselves


def _read_unmasked(run: Run, layout: Layout, num_particles: int) -> Array | None:
    """Log p - log q of what masks silence of the latents of a datum; a reader of records."""
    if not _has_masks(run):
        return None
    log_p, log_q = (
        silenced_of([s for s in sites.values() if not s.is_observed], layout)
        for sites in (run.model, run.guide)
    )
    return log_p - log_q


def _read_masked_apart(run: Run, layout: Layout, num_particles: int) -> Array:
    """Whether guide and model mask other latents of a datum; a reader of records."""
    ledger = Ledger(layout, ())
    for name, site in run.guide.items():
        model, event_dim = run.model.get(name), site.fn.event_dim
        if site.is_observed or model is None or model.fn.event_dim != event_dim:
            continue
        if isinstance(site.base, dist.Delta):  # by an automatic guide, of another latent
            continue
        if layout.owns(site) and (is_masked(site) or is_masked(model)):
            apart = entry_mask(site, event_dim) != entry_mask(model, event_dim)
            apart = apart | jnp.zeros(jnp.shape(site.value), bool)  # of all steps of a `scan`
            cells = tuple(range(-event_dim, 0))
            ledger.add_bare("apart", site, apart.any(cells).astype(float))
    return ledger.total("apart") > 0


def _read_counted_codes(run: Run, layout: Layout, num_particles: int) -> Array | None:
    """As `read_codes`, with 0 where a mask silences a code; None without masks; a reader."""
    if not _has_masks(run):
        return None
    return read_codes(_with_silent(run, lambda s: jnp.zeros_like(s.value)), layout, num_particles)


def read_counted_impossible(run: Run, layout: Layout, num_particles: int) -> Array | None:
    """As `read_impossible`, of the latents that no mask silences; None without masks; a reader."""
    if not _has_masks(run):
        return None
    return read_impossible(_with_silent(run, _drawn), layout, num_particles)


OF_MASKS = {  # readers
    "unmasked": _read_unmasked,
    "masked_apart": _read_masked_apart,
    "counted_codes": _read_counted_codes,
}


def _with_silent(run: Run, other: Callable[[Site], Array]) -> Run:
    """A run in which latents of the guide have other values where a mask silences them."""
    guide = dict(run.guide)
    for name, site in run.guide.items():
        if not site.is_observed and has_mask(run, name):
            value = jnp.where(counted_entries(run, name), site.value, other(site))
            guide[name] = replace(site, value=value)
    return run._replace(guide=guide)


def has_mask(run: Run, name: str) -> bool:
    """Whether a latent of the guide is under a mask in guide or model."""
    return any(map(is_masked, _both(run, name)))


def counted_entries(run: Run, name: str) -> Array:
    """Where no mask silences an entry of a latent of the guide."""
    return _counted(_both(run, name))


def _both(run: Run, name: str) -> list[Site]:
    return [run.guide[name], *(run.model[n] for n in [name] if n in run.model)]


def otherwise_drawn(run: Run, draw: int | Array) -> dict[str, Array]:
    """Values of all latents of the guide in a draw, those under masks moved on.

    Empty if no mask silences any.

    Args:
        run: Of one draw.
        draw: Which of the draws it is.
    """
    if not _has_masks(run):
        return {}
    latent = {
        name: [site, *(run.model[n] for n in [name] if n in run.model)]
        for name, site in run.guide.items()
        if not site.is_observed
    }
    return {
        name: jnp.where(_counted(sites), sites[0].value, _moved_on(sites, draw, seed))
        for seed, (name, sites) in enumerate(latent.items())
    }


def _moved_on(sites: Sequence[Site], draw: int | Array, seed: int) -> Array:
    """Other values: in all cells, and in every second draw in some.

    Of a continuous latent a draw of the model, in all cells.
    """
    site, key = (
        sites[0],
        jax.random.fold_in(jax.random.key(seed), draw),
    )  # beside those of the draws
    other = moved(site, site.value, 1 + draw // 2)
    if other is None:
        return jnp.broadcast_to(sites[-1].fn.sample(key), jnp.shape(site.value))
    inner = len(site.base.event_shape)
    shape = site.value.shape[: site.value.ndim - inner]
    places = jax.random.bernoulli(key, 0.5, shape) | (draw % 2 == 0)
    return jnp.where(places.reshape(*shape, *[1] * inner), other, site.value)


def with_matters(record: Particles, other: Particles) -> Particles:
    """Add "matters", where the model's densities changed as masked latents did.

    The guide's may: given latents that are nothing, it has draws of the others all the same. Where
    it masks others than the model, the two densities are not of the same latents, which matters.
    """
    changes = changed(record.log_p, other.log_p, _ROUNDING)
    matters = changes | record.extras["masked_apart"]
    return record._replace(extras={**record.extras, "matters": matters})


def _drawn(site: Site) -> Array:
    if hasattr(site.fn, "conditional_log_prob"):  # a network's, which leaves nothing out
        return site.value
    return site.fn.sample(jax.random.key(0)).astype(site.value.dtype)


def _has_masks(run: Run) -> bool:
    sites = [site for part in (run.guide, run.model) for site in part.values()]
    return any(is_masked(site) for site in sites if not site.is_observed)


def _counted(sites: Sequence[Site]) -> Array:
    """Where no mask of guide or model silences an entry of a latent; all of what is computed."""
    event_dim, shape = sites[0].fn.event_dim, jnp.shape(sites[0].value)
    counted = jnp.ones(shape, bool)
    if isinstance(sites[0].base, dist.Delta):  # by an automatic guide, of another latent
        return counted
    for site in sites:
        if site.fn.event_dim == event_dim:
            counted = counted & entry_mask(site, event_dim)
    return counted
