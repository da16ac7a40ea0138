"""Parameters in closed form, under losses that see a batch at a time and under truncated ones.

The best variance of a Gaussian likelihood is the mean square error of its means, where a gradient
would lag behind it for hundreds of steps. A site says so by ``infer={"closed_form": ...}``, see
`models.ClosedForm`. After each step the parameter, as it is stored (a log-variance), moves towards
the optimum of the batch,

    raw <- raw + r (solve(Σ_nk w_kn s_kn, N, raw) - raw),    w_kn = d gain_n / d log p(x_n | z_kn),

so the weights of the draws are those by which the loss trains the model: 1 / K of K draws, the
probabilities of an enumeration, the importance weights of a bound. Sites with one parameter share
it: their totals and counts are added up. That is `ClosedForms`. `Truncated_ELBO` knows its
posterior over all data: each of its steps adds the statistics of its data, averaged over the
members of their sets (`gather`), and once all data have been seen, the parameters are set at their
optimum.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from pyro_dvae.ops.noise import current_share
from pyro_dvae.ops.processes import total as summed_over
from pyro_dvae.programs.densities import entry_mask
from pyro_dvae.programs.processes import part_of
from pyro_dvae.programs.record import Particles
from pyro_dvae.programs.sites import Layout, Run, Site

__all__ = [
    "RATE",
    "ClosedForms",
    "Factors",
    "Statistic",
    "TruncatedMemory",
    "closed_forms_of",
    "gather",
    "read_statistics",
    "sums",
]

RATE = 0.1  # r: what a moving average takes of a batch


class Statistic(NamedTuple):
    """What a parameter's closed form needs of a site."""

    value: Shaped[Tensor, "K *plates_and_entries"]
    mask: Bool[Tensor, "K *plates_and_entries"]  # False where an entry is masked; all K are alike


class Factors(NamedTuple):
    """Two factors of the second moments that a parameter's closed form needs of a site."""

    left: Float[Tensor, "K *plates_and_rest A"]
    right: Float[Tensor, "K *plates_and_rest B"]
    mask: Bool[Tensor, "K *plates"]  # False where a datum is masked; all K are alike


def closed_forms_of(sites: Mapping[str, Site]) -> dict[str, Any]:
    """The `models.ClosedForm` of each site that asks for one, by its name; the next by "name/1"."""
    forms: dict[str, Any] = {}
    for name, site in sites.items():
        found = site.infer.get("closed_form") or ()
        found = (found,) if hasattr(found, "solve") else found
        forms |= {f"{name}/{i}" if i else name: form for i, form in enumerate(found)}
    return forms


def read_statistics(
    forms: Mapping[str, Any],
    run: Run,
    layout: Layout,
    num_particles: int,
    drawn: Bool[Tensor, "B"] | None = None,
) -> dict[str, Statistic | Factors]:
    """The statistic of each site that has a closed form, without gradient.

    Args:
        forms: `models.ClosedForm`, as `closed_forms_of` names them.
        run: The run.
        layout: Which plates make a datum.
        num_particles: K.
        drawn: Data whose masked latents count, as the model draws them; None: of no datum.
    """
    latents = {name: site.value for name, site in run.model.items() if not site.is_observed}
    found: dict[str, Statistic | Factors] = {}
    for name, form in forms.items():
        site = run.model[name if name in run.model else name.rpartition("/")[0]]
        if form.sees_latents:
            found[name] = _factors(site, form, latents, layout, drawn)
        else:
            found[name] = _statistic(site, form, layout, drawn)
    return found


@torch.no_grad()
def _statistic(site: Site, form: Any, layout: Layout, drawn: Bool[Tensor, "B"] | None) -> Statistic:
    value = form.statistic(site.fn, site.value)
    entries = site.fn.event_dim - site.base.event_dim
    batch = value.dim() - site.fn.event_dim
    value = value.reshape(*[1] * (layout.nesting + 1 - batch), *value.shape)
    mask = entry_mask(site, entries)
    mask = mask.reshape(*mask.shape, *[1] * (site.fn.event_dim - entries))
    while mask.dim() >= value.dim():  # of a program that has made a particle axis itself
        mask = mask[0]
    mask = mask.to(value.device).expand(value.shape)
    ahead = [1 + layout.nesting + dim for dim in layout.dims]
    places = tuple(range(1, 1 + len(ahead)))
    value, mask = value.movedim(ahead, places), mask.movedim(ahead, places)
    if drawn is not None and not site.is_observed:
        plates = mask.shape[1 : 1 + len(ahead)]
        mask = mask | drawn.reshape(*plates, *[1] * (mask.dim() - 1 - len(ahead)))
    return Statistic(value, mask)


@torch.no_grad()
def _factors(
    site: Site,
    form: Any,
    latents: Mapping[str, Tensor],
    layout: Layout,
    drawn: Bool[Tensor, "B"] | None,
) -> Factors:
    left, right = form.statistic(site.fn, site.value, latents)
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    padded = [1] * (layout.nesting + 1 - len(batch)) + list(batch)
    ahead = [1 + layout.nesting + dim for dim in layout.dims]
    places = tuple(range(1, 1 + len(ahead)))
    left, right = (
        each.expand(*batch, *each.shape[-2:])
        .reshape(*padded, *each.shape[-2:])
        .movedim(ahead, places)
        for each in (left, right)
    )
    mask = _mask_of_data(site)
    while mask.dim() > layout.nesting:  # of a program that has made a particle axis itself
        mask = mask[0]
    mask = mask.to(left.device).expand(1, *padded[1:]).movedim(ahead, places)
    plates = mask.shape[: 1 + len(ahead)]
    mask = mask.flatten(1 + len(ahead)).all(-1) if mask.dim() > len(plates) else mask
    if drawn is not None and not site.is_observed:
        mask = mask | drawn.reshape(plates)
    return Factors(left, right, mask)


def _mask_of_data(site: Site) -> Bool[Tensor, "*batch"]:
    """Where no mask silences a site, which may not silence entries of a datum."""
    entries = site.fn.event_dim - site.base.event_dim
    mask = entry_mask(site, entries)
    if any(size != 1 for size in mask.shape[mask.dim() - entries :]):
        raise ValueError(
            f"site '{site.name}' has a closed form that sees latents, whose second moments are of "
            "whole data, and a mask that silences entries of a datum. Mask whole data, or learn "
            "the parameter by gradient."
        )
    return mask.reshape(mask.shape[: mask.dim() - entries])


def sums(
    statistic: Statistic | Factors, weights: Float[Tensor, "S *plates"], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Sum q's mean statistic over data, and the number of entries that no mask takes out.

    Args:
        statistic: Of all states.
        weights: q of each state.
        shape: Of the parameter, to which the sums are taken.
    """
    if isinstance(statistic, Factors):
        return _second_moments(statistic, weights, shape)
    value, num_plates = statistic.value, weights.dim() - 1
    columns = value.flatten(1, num_plates).flatten(2)
    mean = torch.einsum("sb,sbe->be", weights.flatten(1).to(value.dtype), columns)
    plates = tuple(range(num_plates))
    mask = statistic.mask[0]
    total = torch.where(mask, mean.reshape(value.shape[1:]), 0.0).sum(plates)
    return total.sum_to_size(shape), mask.to(total.dtype).sum(plates).sum_to_size(shape)


def _second_moments(
    factors: Factors, weights: Float[Tensor, "S *plates"], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The sum of ``left^T right`` over data, in the mean of q, and the number of data."""
    left, right, mask = factors
    if (left.shape[-1], right.shape[-1]) != shape:
        raise ValueError(
            f"the factors of a closed form that sees latents have {left.shape[-1]} and "
            f"{right.shape[-1]} columns, which make totals of that shape; its parameter has shape "
            f"{shape}. Let them agree."
        )
    ones = (1,) * (left.dim() - weights.dim())
    kept = mask.reshape(*mask.shape, *ones)
    left = torch.where(kept, left * weights.reshape(*weights.shape, *ones).to(left.dtype), 0.0)
    right = torch.where(kept, right, 0.0)
    total = left.flatten(0, -2).T @ right.flatten(0, -2)
    return total, mask[0].to(total.dtype).sum().expand(shape)


class ClosedForms:
    """The sites of the programs that have closed forms, and what is due when a step is over.

    Autograd holds on to the values that a step has used, so they change after it.
    """

    def __init__(self) -> None:
        self._forms: dict[str, Any] = {}
        self._due: list[tuple[Any, Tensor, Tensor]] = []

    def read(self, run: Run, layout: Layout, num_particles: int) -> dict[str, Statistic | Factors]:
        """The statistics of those sites, in a run that trains; a reader of records."""
        if not torch.is_grad_enabled():
            return {}
        self._forms = closed_forms_of(run.model)
        return read_statistics(self._forms, run, layout, num_particles)

    def watched(self, particles: Particles) -> Particles:
        """The record, with a log-likelihood that the weights of the draws can be asked of."""
        log_likelihood = particles.log_likelihood
        if not particles.extras.get("closed_forms") or log_likelihood.requires_grad:
            return particles
        return particles._replace(log_likelihood=log_likelihood.detach().requires_grad_())

    def gather(self, particles: Particles, value: Float[Tensor, "*plates"]) -> None:
        """Keep what the parameters follow from, until the step is over."""
        statistics = particles.extras.get("closed_forms")
        if not statistics or not value.requires_grad:
            return
        (weights,) = torch.autograd.grad(
            value.sum(), particles.log_likelihood, retain_graph=True, allow_unused=True
        )
        if weights is None:
            return
        weights = part_of(particles, weights)
        due: dict[int, tuple[Any, Tensor, Tensor]] = {}
        for name, form in self._forms.items():
            total, count = sums(statistics[name], weights, tuple(form.target.shape))
            _, *before = due.get(id(form.target), (form, 0.0, 0.0))
            due[id(form.target)] = form, total + before[0], count + before[1]
        self._due = list(due.values())

    def set(self) -> None:
        """Move the parameters."""
        due, self._due = self._due, []
        for form, total, count in due:
            with torch.no_grad():
                total, count = summed_over(total), summed_over(count)
                step = form.solve(total, count, form.target) - form.target
                form.target.add_(RATE * torch.where(step.isfinite(), step, 0.0))


class TruncatedMemory(NamedTuple):
    """What the closed forms have gathered since their last update."""

    totals: dict[str, Tensor]  # parameter -> sum over data of q's mean statistic, of its shape
    counts: dict[str, Tensor]  # parameter -> how many observed entries are in it
    rows: int  # data seen


def gather(
    statistics: Mapping[str, Statistic | Factors],
    targets: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    weights: Float[Tensor, "S *plates"],
    memory: TruncatedMemory,
) -> TruncatedMemory:
    """Add the statistics of these data to those since the last update.

    Args:
        statistics: Of each site with a closed form, of all members.
        targets: Of each such site, the name that its parameter's totals have in the memory; sites
            with one parameter share them.
        shapes: Of the parameters, by that name.
        weights: q of each member.
        memory: What has been gathered; nothing is kept of it where there are no statistics.
    """
    if not statistics:
        return TruncatedMemory({}, {}, 0)
    totals, counts = dict(memory.totals), dict(memory.counts)
    for name, statistic in statistics.items():
        target = targets[name]
        total, count = _of_all(sums(statistic, weights, shapes[target]))
        if target in totals:  # after a resume they may be on another device
            total = total + totals[target].to(total.device)
            count = count + counts[target].to(count.device)
        totals[target], counts[target] = total, count
    share = current_share()
    rows = weights[0].numel() * (1 if share is None else share.size)
    return TruncatedMemory(totals, counts, memory.rows + rows)


def _of_all(sums_of_own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Sums over the data of all processes that share a batch."""
    if current_share() is None:
        return sums_of_own
    total, count = sums_of_own
    return summed_over(total), summed_over(count)
