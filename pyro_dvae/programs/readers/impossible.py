"""Values that a distribution never draws, whatever density it claims for them.

A probability of exactly 0 is clamped before its logarithm is taken (to `finfo.eps`: 16 nats in
single precision), and a logit of -1e30 stands for minus infinity; draws know better than densities
what such a distribution leaves out.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro import distributions as dist
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from pyro_dvae.distributions import CertainCategorical, UniformCategorical
from pyro_dvae.programs.densities import entry_mask
from pyro_dvae.programs.record import Ledger
from pyro_dvae.programs.sites import Layout, Run, Site, base_distribution

__all__ = [
    "NOTHING",
    "exact_log_prob",
    "excludes",
    "has_zeros",
    "leaves_out",
    "left_out_values",
    "read_impossible",
    "read_num_states",
    "read_zeros",
    "zeros_of",
]

_NEVER = -1e30  # nats, which stand for minus infinity: times a scale of 0 they are nothing
NOTHING = -1e20  # nats: less stands for minus infinity

_MOST_LISTED = 2**20  # codes of a table
_MOST_CELLS = 2**26  # of the tables of all places together
_HOPELESS = -1e4  # nats of one latent: no network learns it, and as good as minus infinity
_CLAMPED = (
    torch.distributions.Bernoulli,
    torch.distributions.Binomial,
    torch.distributions.Categorical,
    torch.distributions.Multinomial,
    torch.distributions.NegativeBinomial,
    torch.distributions.OneHotCategorical,
)  # families that clamp probabilities before they take logarithms


def leaves_out(guide: Any, model: Any) -> Bool[Tensor, "*batch"] | None:
    """Whether the guide's distribution never draws a code that the model's draws.

    By the tables of both, if they are of codes with the same wrapping; else None.
    """
    found, num_event = (
        _misses(*(base_distribution(fn) for fn in (guide, model))),
        _num_wrapped(guide),
    )
    if found is None:
        return None
    shape = torch.Size((*guide.batch_shape, *guide.event_shape[:num_event]))
    found = found.expand(torch.broadcast_shapes(found.shape, shape))
    return found.flatten(-num_event).any(-1) if num_event else found


def _misses(guide: Any, model: Any) -> Bool[Tensor, "*batch"] | None:
    if isinstance(guide, UniformCategorical):
        return guide.entropy() < 0
    if isinstance(guide, CertainCategorical) and isinstance(model, UniformCategorical):
        return model.entropy() > 0
    tables = [_zero_codes(fn) for fn in (guide, model)]
    if tables[0] is None or tables[1] is None or tables[0].shape[-1] != tables[1].shape[-1]:
        return None
    return (tables[0] & ~tables[1]).any(-1)


def _num_wrapped(fn: Any) -> int:
    """Event dims that are no part of the event of the distribution inside."""
    return fn.event_dim - base_distribution(fn).event_dim


def excludes(fn: Any, value: Tensor, *, least: float = _HOPELESS) -> Bool[Tensor, "*batch"]:
    """Whether a distribution never draws a value, over its batch dims.

    Args:
        fn: The distribution.
        value: The value.
        least: The log-density in nats up to which a value is as good as never drawn.
    """
    if isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
        return excludes(fn.base_dist, value, least=least)
    if isinstance(fn, dist.Independent):
        inner, num_dims = excludes(fn.base_dist, value, least=least), fn.reinterpreted_batch_ndims
        return inner.flatten(-num_dims).any(-1) if num_dims else inner
    if hasattr(fn, "conditional_log_prob"):  # a network's softmax leaves nothing out
        return torch.zeros(value.shape[: value.dim() - fn.event_dim], dtype=torch.bool)
    inside = fn.support.check(value)
    finer = inside.dim() - max(0, value.dim() - fn.event_dim)
    if finer > 0:  # entry by entry, as of trees; below 0 it is of all values, as of matchings
        inside = inside.flatten(-finer).all(-1)
    if not bool(detach_provenance(inside).all()):  # the answer is the same either way
        value = torch.where(_over_event(inside, fn.event_dim), value, fn.sample())
    unlikely = fn.log_prob(value) <= least  # minus infinity among them
    if isinstance(fn, torch.distributions.Binomial):
        return unlikely | _never_counted(fn, value) | ~inside
    table = (
        None if isinstance(fn, CertainCategorical | UniformCategorical) else _zero_codes(fn)
    )  # their densities know
    if table is not None:
        codes = value.argmax(-1) if fn.event_dim else value.long()
        shape = torch.broadcast_shapes(codes.shape, table.shape[:-1])
        codes = codes.expand(shape)[..., None]
        unlikely = unlikely | table.expand(*shape, -1).gather(-1, codes)[..., 0]
    return unlikely | ~inside


def left_out_values(guide: Any, model: Any, value: Tensor) -> tuple[Tensor, Bool[Tensor, "*batch"]]:
    """Values of the model's distribution, some cells of which the guide's never draws.

    By chance where several may be; a draw in front has many such cells, or few.

    Args:
        guide: The guide's distribution.
        model: The model's.
        value: What other cells keep, draws in front.

    Returns:
        The values, and where there is such a cell, over batch dims.
    """
    tables = [_listed_zero_codes(base_distribution(fn)) for fn in (guide, model)]
    if (
        tables[0] is None
        or tables[1] is None
        or tables[0].shape[-1] != tables[1].shape[-1]
        or math.prod(value.shape) * tables[0].shape[-1] > _MOST_CELLS
    ):
        missing = value.dim() - model.event_dim - len(model.batch_shape)
        other = model.sample(value.shape[:missing] if missing > 0 else ()).to(value.dtype)
        found = excludes(guide, other)
        return torch.where(_over_event(found, guide.event_dim), other, value), found
    num_inner = base_distribution(model).event_dim
    cells = value.shape[: value.dim() - num_inner]
    table = (tables[0] & ~tables[1]).expand(*cells, -1)
    most = torch.rand(cells[:1] + (1,) * (len(cells) - 1), device=table.device) ** 2
    moves = table.any(-1) & (torch.rand(cells, device=table.device) <= most)
    codes = (torch.rand(table.shape, device=table.device) * table).argmax(-1)
    if num_inner:
        other = torch.nn.functional.one_hot(codes, table.shape[-1]).to(value.dtype)
        return torch.where(moves[..., None], other, value), _of_batch(moves, guide)
    return torch.where(moves, codes.to(value.dtype), value), _of_batch(moves, guide)


def _of_batch(cells: Tensor, fn: Any) -> Tensor:
    num_event = _num_wrapped(fn)
    return cells.flatten(-num_event).any(-1) if num_event else cells


def read_impossible(run: Run, layout: Layout, num_particles: int) -> Bool[Tensor, "K *plates"]:
    """Whether the guide never draws the latents of a datum; a reader of records."""
    ledger = Ledger(layout, num_particles, ())
    for site in run.guide.values():
        if site.needs_credit and not site.is_observed and layout.owns(site):
            ledger.add_bare("impossible", site, excludes(site.fn, site.value).float())
    return ledger.total("impossible") > 0


def read_num_states(run: Run, layout: Layout, num_particles: int) -> dict[str, Tensor]:
    """Log of how many states of a datum guide and model have; inf where not known; a reader.

    And of the "counted" ones, of entries that no mask silences.
    """
    ledger = Ledger(layout, num_particles, ())
    for site in run.guide.values():
        if layout.owns(site) and not site.is_observed:
            other, logs = run.model.get(site.name, site), _log_num_values(site.fn)
            found = {"guide": (site, logs), "model": (site, torch.full_like(logs, torch.inf))}
            if not other.is_joint:
                found["model"] = other, _log_num_values(other.fn)
            for name, (each, logs) in found.items():
                counted = torch.where(_counted_cells(each, (site, other)), logs, 0.0)
                for kind, values in ((name, logs), (f"counted_{name}", counted)):
                    values = _sum_of_cells(values, each.fn)
                    ledger.add_bare(kind, each, values.to(site.value.device))
    return {
        f"{kind}states_of_{name}": ledger.total(f"{kind}{name}")
        for kind in ("", "counted_")
        for name in ("guide", "model")
    }


def _counted_cells(site: Site, both: Sequence[Site]) -> Bool[Tensor, "*batch_cells"]:
    """Where no mask silences a cell of a site, be it of the guide or of the model."""
    num_cells = _num_wrapped(site.fn)
    counted = entry_mask(site, num_cells)
    for each in both:
        if _num_wrapped(each.fn) == num_cells:
            counted = counted & entry_mask(each, num_cells)
    return counted


def _sum_of_cells(values: Tensor, fn: Any) -> Tensor:
    num_cells = _num_wrapped(fn)
    return values.flatten(-num_cells).sum(-1) if num_cells else values


def _log_num_values(fn: Any) -> Float[Tensor, "*batch_cells"]:
    """Log of how many values a distribution draws, cell by cell; inf where that is not known."""
    base, num_event = base_distribution(fn), _num_wrapped(fn)
    shape = torch.Size((*fn.batch_shape, *fn.event_shape[:num_event]))
    known = isinstance(base, CertainCategorical | UniformCategorical)
    table = None if known else _zero_codes(base)
    if isinstance(base, CertainCategorical):
        found = torch.zeros(())
    elif table is not None:
        found = torch.log((~table).sum(-1).float())
    else:
        found = _log_length(base)
    return found.expand(shape)


def _log_length(base: Any) -> Float[Tensor, "*batch"]:
    """Log of how many integers the support of a distribution has; inf where it is no range."""
    low, high = (getattr(base.support, f"{side}_bound", None) for side in ("lower", "upper"))
    if not base.has_enumerate_support or low is None or high is None:
        return torch.full((), torch.inf)
    return torch.log1p(torch.as_tensor(high).float() - low)


def has_zeros(fn: Any, value: Tensor) -> Bool[Tensor, "*batch"]:
    """Whether a value has a probability of 0, given so and clamped in its density.

    Over the batch dims, or what broadcasts to them. Under a mask, nothing counts.
    """
    if isinstance(fn, dist.MaskedDistribution):
        return has_zeros(fn.base_dist, value) & torch.as_tensor(fn._mask, device=value.device)
    if isinstance(fn, dist.ExpandedDistribution):
        return has_zeros(fn.base_dist, value)
    if isinstance(fn, dist.Independent):
        inner, num_dims = has_zeros(fn.base_dist, value), fn.reinterpreted_batch_ndims
        inner = inner.reshape((1,) * (num_dims - inner.dim()) + inner.shape)
        return inner.flatten(-num_dims).any(-1) if num_dims else inner
    table = getattr(fn, "_categorical", fn)  # of vectors of codes
    if not isinstance(fn, _CLAMPED) or "probs" not in vars(table):
        return torch.zeros((), dtype=torch.bool, device=value.device)
    zero = _is_clamped(table.probs, table.logits)
    if isinstance(fn, torch.distributions.Categorical):
        shape = torch.broadcast_shapes(value.shape, zero.shape[:-1])
        codes = value.long().clamp(0, zero.shape[-1] - 1).expand(shape)[..., None]
        return zero.expand(*shape, -1).gather(-1, codes)[..., 0]
    if table is not fn:
        return (zero & (value > 0)).any(-1)
    if isinstance(fn, torch.distributions.NegativeBinomial):
        return zero & (value > 0)
    most = getattr(fn, "total_count", 1)
    never_fails = _is_clamped(1 - fn.probs, -fn.logits)
    return (zero & (value > 0)) | (never_fails & (value < most))


def zeros_of(site: Site) -> Float[Tensor, "*batch"]:
    """What probabilities of 0 that its density clamps take off a site's log-density: all of it.

    Off the logarithm of a sum over marked sites, what it is without the clamps.
    """
    if "_unclamped" not in site.infer:
        return has_zeros(site.fn, site.value) * _NEVER
    exact = site.infer["_unclamped"]()[site.name].log_prob()
    return torch.nan_to_num(exact - site.log_prob(), nan=0.0, neginf=_NEVER)


def exact_log_prob(site: Site) -> Float[Tensor, "*batch"]:
    """Log-density of a site's value, in which probabilities of 0 that it clamps are 0."""
    found = site.log_prob() + zeros_of(site)
    return torch.where(found <= NOTHING, -torch.inf, found)


def read_zeros(run: Run, layout: Layout, num_particles: int) -> dict[str, Tensor]:
    """What probabilities of 0 take off log-densities that clamp them, by kind; a reader of records.

    Kinds are "log_likelihood" and "log_prior", and of what data share "shared_likelihood" and
    "shared_prior".
    """
    ledger = Ledger(layout, num_particles, [*run.guide.values(), *run.model.values()])
    for site in run.model.values():
        zeros = zeros_of(site)
        shape = torch.broadcast_shapes(zeros.shape, site.fn.batch_shape)
        ledger.add(site.kind, site, zeros.expand(shape))
    kinds = ("likelihood", "prior")
    found = {f"log_{kind}": ledger.total(kind) for kind in kinds}
    return found | {f"shared_{kind}": ledger.total_shared(kind) for kind in kinds}


def _listed_zero_codes(fn: Any) -> Bool[Tensor, "*batch V"] | None:
    """As `_zero_codes`; None if codes are too many for a table."""
    return None if getattr(fn, "num_codes", 0) > _MOST_LISTED else _zero_codes(fn)


def _zero_codes(fn: Any) -> Bool[Tensor, "*batch V"] | None:
    """Which of the codes 0 ... V - 1 are never drawn; None of another family."""
    if isinstance(fn, torch.distributions.Categorical | torch.distributions.OneHotCategorical):
        return (fn.logits < _HOPELESS) | _is_clamped(fn.probs, fn.logits)
    if isinstance(fn, torch.distributions.Bernoulli):
        return torch.stack(_failures(fn.probs, fn.logits), -1)
    if isinstance(fn, torch.distributions.Binomial):
        counts = torch.arange(int(fn.total_count.max()) + 1, device=fn.probs.device)
        counts = counts.reshape(-1, *[1] * len(fn.batch_shape))
        return _never_counted(fn, counts).movedim(0, -1)
    return None


def _never_counted(fn: Any, counts: Tensor) -> Bool[Tensor, "*batch"]:
    """Which counts a Binomial never draws."""
    never_fails, never_succeeds = _failures(fn.probs, fn.logits)
    zero = ((counts < fn.total_count) & never_fails) | ((counts > 0) & never_succeeds)
    return zero | (counts > fn.total_count)


def _failures(probs: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Where a coin never shows 0, and where it never shows 1."""
    return (
        (logits > -_HOPELESS) | _is_clamped(1 - probs, -logits),
        (logits < _HOPELESS) | _is_clamped(probs, logits),
    )


def _is_clamped(probs: Tensor, logits: Tensor) -> Tensor:
    """Where a probability is 0 that its logarithm does not show: it was given so."""
    least = math.log(torch.finfo(logits.dtype).eps) - 0.5  # of a clamp, and of no underflow
    return (probs == 0) & (logits > least)


def _over_event(mask: Tensor, event_dim: int) -> Tensor:
    return mask.reshape((*mask.shape, *[1] * event_dim))
