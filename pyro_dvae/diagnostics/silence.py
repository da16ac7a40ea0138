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

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_dvae.programs.densities import changed, entry_mask, is_masked
from pyro_dvae.programs.draw import moved
from pyro_dvae.programs.readers.impossible import read_impossible
from pyro_dvae.programs.record import Ledger, Particles, read_codes, silenced_of
from pyro_dvae.programs.sites import Layout, Run, Site

__all__ = [
    "OF_MASKS",
    "counted_entries",
    "has_mask",
    "in_full",
    "otherwise_drawn",
    "read_counted_impossible",
    "with_matters",
]

_ROUNDING = 1e-4  # of log-densities in single precision, as a part of themselves


def _read_unmasked(run: Run, layout: Layout, num_particles: int) -> Tensor | None:
    """Log p - log q of what masks silence of the latents of a datum; a reader of records."""
    if not _has_masks(run):
        return None
    log_p, log_q = (
        silenced_of([s for s in sites.values() if not s.is_observed], layout, num_particles)
        for sites in (run.model, run.guide)
    )
    return log_p - log_q


def _read_masked_apart(run: Run, layout: Layout, num_particles: int) -> Tensor:
    """Whether guide and model mask other latents of a datum; a reader of records."""
    ledger = Ledger(layout, num_particles, ())
    for name, site in run.guide.items():
        model, event_dim = run.model.get(name), site.fn.event_dim
        if site.is_observed or model is None or model.fn.event_dim != event_dim:
            continue
        if isinstance(site.base, dist.Delta):  # by an automatic guide, of another latent
            continue
        if layout.owns(site) and (is_masked(site) or is_masked(model)):
            apart = entry_mask(site, event_dim) != entry_mask(model, event_dim)
            cells = tuple(range(-event_dim, 0))
            ledger.add_bare("apart", site, (apart.any(cells) if cells else apart).float())
    return ledger.total("apart") > 0


def _read_counted_codes(run: Run, layout: Layout, num_particles: int) -> Tensor | None:
    """As `read_codes`, with 0 where a mask silences a code; None without masks; a reader."""
    if not _has_masks(run):
        return None
    return read_codes(_with_silent(run, lambda s: torch.zeros_like(s.value)), layout, num_particles)


def read_counted_impossible(run: Run, layout: Layout, num_particles: int) -> Tensor | None:
    """As `read_impossible`, of the latents that no mask silences; None without masks; a reader."""
    if not _has_masks(run):
        return None
    return read_impossible(_with_silent(run, _drawn), layout, num_particles)


OF_MASKS = {  # readers
    "unmasked": _read_unmasked,
    "masked_apart": _read_masked_apart,
    "counted_codes": _read_counted_codes,
}


def _with_silent(run: Run, other: Callable[[Site], Tensor]) -> Run:
    """A run in which latents of the guide have other values where a mask silences them."""
    guide = dict(run.guide)
    for name, site in run.guide.items():
        if not site.is_observed and has_mask(run, name):
            value = torch.where(counted_entries(run, name), site.value, other(site))
            guide[name] = replace(site, value=value)
    return run._replace(guide=guide)


def has_mask(run: Run, name: str) -> bool:
    """Whether a latent of the guide is under a mask in guide or model."""
    return any(map(is_masked, _both(run, name)))


def counted_entries(run: Run, name: str) -> Tensor:
    """Where no mask silences an entry of a latent of the guide."""
    return _counted(_both(run, name))


def _both(run: Run, name: str) -> list[Site]:
    return [run.guide[name], *(run.model[n] for n in [name] if n in run.model)]


def otherwise_drawn(runs: Sequence[Run], layout: Layout, num_draws: int) -> dict[str, Tensor]:
    """Values of all latents of the guide, ``(K, *batch, *event)``, those under masks moved on.

    Empty if no mask silences any.
    """
    found: dict[str, Tensor] = {}
    if not _has_masks(runs[0]):
        return found
    all_counted = True
    for name in [n for n, site in runs[0].guide.items() if not site.is_observed]:
        sites = [run.guide[name] for run in runs]
        values = torch.cat([in_full(site, layout.nesting, num_draws) for site in sites])
        both = [sites[0], *(r.model[name] for r in runs[:1] if name in r.model)]
        counted = _counted(both)
        all_counted = all_counted and bool(counted.all())
        found[name] = torch.where(counted, values, _moved_on(both, values, len(found)))
    return {} if all_counted else found


def _moved_on(sites: Sequence[Site], values: Tensor, seed: int) -> Tensor:
    """Other values of each draw, in front: in all cells, and in every second draw in some.

    Of a continuous latent a draw of the model, in all cells.
    """
    site = sites[0]
    draws = torch.arange(len(values), device=values.device)
    draws = draws.reshape(-1, *[1] * (values.dim() - 1 - len(site.base.event_shape)))
    other = moved(site, values, 1 + draws // 2)
    if other is None:
        with torch.random.fork_rng([values.device] if values.is_cuda else []):
            torch.manual_seed(seed)  # beside the draws
            return sites[-1].fn.sample().to(values.dtype).expand_as(values)
    shape = values.shape[: values.dim() - len(site.base.event_shape)]
    generator = torch.Generator().manual_seed(seed)  # beside that of the draws
    some = torch.rand(shape, generator=generator).to(values.device) < 0.5
    places = some | (draws % 2 == 0)
    return torch.where(places.reshape(*shape, *[1] * len(site.base.event_shape)), other, values)


def with_matters(record: Particles, other: Particles) -> Particles:
    """Add "matters", where the model's densities changed as masked latents did.

    The guide's may: given latents that are nothing, it has draws of the others all the same. Where
    it masks others than the model, the two densities are not of the same latents, which matters.
    """
    changes = changed(record.log_p, other.log_p, _ROUNDING)
    matters = changes | record.extras["masked_apart"]
    return record._replace(extras={**record.extras, "matters": matters})


def in_full(site: Site, nesting: int, num_draws: int) -> Tensor:
    """The value with its draws in front of all batch dims."""
    value = site.value.reshape((1,) * (nesting + 1 - site.num_batch_dims) + site.value.shape)
    return value.expand(num_draws, *value.shape[1:])


def _drawn(site: Site) -> Tensor:
    if hasattr(site.fn, "conditional_log_prob"):  # a network's, which leaves nothing out
        return site.value
    with torch.random.fork_rng([site.value.device] if site.value.is_cuda else []):
        return site.fn.sample().to(site.value.dtype)  # beside the draws


def _has_masks(run: Run) -> bool:
    sites = [site for part in (run.guide, run.model) for site in part.values()]
    return any(is_masked(site) for site in sites if not site.is_observed)


def _counted(sites: Sequence[Site]) -> Tensor:
    """Where no mask of guide or model silences an entry of a latent; all of what is computed."""
    event_dim = sites[0].fn.event_dim
    counted = torch.ones((1,) * event_dim, dtype=torch.bool)
    if isinstance(sites[0].base, dist.Delta):  # by an automatic guide, of another latent
        return counted
    for site in sites:
        if site.fn.event_dim == event_dim:
            counted = counted & entry_mask(site, event_dim)
    return counted
