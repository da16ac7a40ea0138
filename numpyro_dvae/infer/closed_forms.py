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

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from numpyro_dvae.programs.densities import entry_mask
from numpyro_dvae.programs.record import Particles
from numpyro_dvae.programs.sites import Layout, Run, Site

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

    value: Shaped[Array, "K *plates_and_entries"]
    mask: Bool[Array, "K *plates_and_entries"]  # False where an entry is masked; all K are alike


class Factors(NamedTuple):
    """Two factors of the second moments that a parameter's closed form needs of a site."""

    left: Float[Array, "K *plates_and_rest A"]
    right: Float[Array, "K *plates_and_rest B"]
    mask: Bool[Array, "K *plates"]  # False where a datum is masked; all K are alike


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
    drawn: Bool[Array, "B"] | None = None,
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


def _statistic(site: Site, form: Any, layout: Layout, drawn: Bool[Array, "B"] | None) -> Statistic:
    """Of one particle."""
    value = jax.lax.stop_gradient(form.statistic(site.fn, site.value))
    entries = site.fn.event_dim - site.base.event_dim
    batch = value.ndim - site.fn.event_dim
    value = value.reshape(*[1] * (layout.nesting - batch), *value.shape)
    mask = entry_mask(site, entries)
    mask = mask.reshape(*mask.shape, *[1] * (site.fn.event_dim - entries))
    mask = jnp.broadcast_to(mask, value.shape)
    ahead = [layout.nesting + dim for dim in layout.dims]
    places = tuple(range(len(ahead)))
    value, mask = jnp.moveaxis(value, ahead, places), jnp.moveaxis(mask, ahead, places)
    if drawn is not None and not site.is_observed:
        plates = mask.shape[: len(ahead)]
        mask = mask | drawn.reshape(*plates, *[1] * (mask.ndim - len(ahead)))
    return Statistic(value, mask)


def _factors(
    site: Site,
    form: Any,
    latents: Mapping[str, Array],
    layout: Layout,
    drawn: Bool[Array, "B"] | None,
) -> Factors:
    """Of one particle."""
    left, right = jax.lax.stop_gradient(form.statistic(site.fn, site.value, latents))
    batch = jnp.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    padded = [1] * (layout.nesting - len(batch)) + list(batch)
    ahead = [layout.nesting + dim for dim in layout.dims]
    places = tuple(range(len(ahead)))
    left, right = (
        jnp.moveaxis(
            jnp.broadcast_to(each, (*batch, *each.shape[-2:])).reshape(*padded, *each.shape[-2:]),
            ahead,
            places,
        )
        for each in (left, right)
    )
    mask = jnp.moveaxis(jnp.broadcast_to(_mask_of_data(site), padded), ahead, places)
    plates = mask.shape[: len(ahead)]
    mask = mask.reshape(*plates, -1).all(-1)
    if drawn is not None and not site.is_observed:
        mask = mask | drawn.reshape(plates)
    return Factors(left, right, mask)


def _mask_of_data(site: Site) -> Bool[Array, "*batch"]:
    """Where no mask silences a site, which may not silence entries of a datum."""
    entries = site.fn.event_dim - site.base.event_dim
    mask = entry_mask(site, entries)
    if any(size != 1 for size in mask.shape[mask.ndim - entries :]):
        raise ValueError(
            f"site '{site.name}' has a closed form that sees latents, whose second moments are of "
            "whole data, and a mask that silences entries of a datum. Mask whole data, or learn "
            "the parameter by gradient."
        )
    return mask.reshape(mask.shape[: mask.ndim - entries])


def sums(
    statistic: Statistic | Factors, weights: Float[Array, "S *plates"], shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """Sum q's mean statistic over data, and the number of entries that no mask takes out.

    Args:
        statistic: Of all states.
        weights: q of each state.
        shape: Of the parameter, to which the sums are taken.
    """
    if isinstance(statistic, Factors):
        return _second_moments(statistic, weights, shape)
    mask, plates = statistic.mask[0], tuple(range(weights.ndim - 1))
    num_entries = statistic.value.ndim - weights.ndim
    padded = (1,) * (num_entries - len(shape)) + shape
    dims = tuple(dim - num_entries for dim, size in enumerate(padded) if size == 1)
    value = jnp.where(mask, statistic.value, 0.0).sum(dims, keepdims=True)
    weights = weights.reshape(*weights.shape, *(1,) * num_entries)
    total = (weights * value).sum(0).sum(plates)
    count = mask.astype(total.dtype).sum(plates)
    return _sum_to(total, shape), _sum_to(count, shape)


def _second_moments(
    factors: Factors, weights: Float[Array, "S *plates"], shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """The sum of ``left^T right`` over data, in the mean of q, and the number of data."""
    left, right, mask = factors
    if (left.shape[-1], right.shape[-1]) != shape:
        raise ValueError(
            f"the factors of a closed form that sees latents have {left.shape[-1]} and "
            f"{right.shape[-1]} columns, which make totals of that shape; its parameter has shape "
            f"{shape}. Let them agree."
        )
    ones = (1,) * (left.ndim - weights.ndim)
    kept = mask.reshape(*mask.shape, *ones)
    left = jnp.where(kept, left * weights.reshape(*weights.shape, *ones), 0.0)
    right = jnp.where(kept, right, 0.0)
    total = left.reshape(-1, shape[0]).T @ right.reshape(-1, shape[1])
    return total, jnp.broadcast_to(mask[0].astype(total.dtype).sum(), shape)


def _sum_to(value: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the dims that `shape`, which broadcasts to the value's, lacks or has as 1."""
    value = value.sum(range(value.ndim - len(shape)))
    return value.sum([dim for dim, size in enumerate(shape) if size == 1], keepdims=True)


class ClosedForms:
    """The sites of the programs that have closed forms, found as the programs are traced."""

    def __init__(self) -> None:
        self._forms: dict[str, Any] = {}

    def read(self, run: Run, layout: Layout, num_particles: int) -> dict[str, Statistic | Factors]:
        """The statistics of those sites; a reader of records."""
        self._forms = closed_forms_of(run.model)
        return read_statistics(self._forms, run, layout, num_particles)

    def values(
        self,
        particles: Particles,
        value_of: Callable[[Particles], Float[Array, "*plates"]],
        mutable: Mapping[str, Any],
    ) -> dict[str, Array]:
        """The parameters after the step, by their names in the mutable state.

        Args:
            particles: The record of the step.
            value_of: The gain of a record, for each datum.
            mutable: The mutable state that the programs left.
        """
        statistics = particles.extras.get("closed_forms")
        if not statistics:
            return {}
        fixed = jax.lax.stop_gradient(particles)

        def total_gain(log_likelihood: Array) -> Array:
            return value_of(fixed._replace(log_likelihood=log_likelihood)).sum()

        weights = jax.lax.stop_gradient(jax.grad(total_gain)(fixed.log_likelihood))
        due: dict[str, tuple[Any, Array | float, Array | float]] = {}
        for name, form in self._forms.items():
            total, count = sums(statistics[name], weights, jnp.shape(mutable[form.target]))
            _, *before = due.get(form.target, (form, 0.0, 0.0))
            due[form.target] = form, total + before[0], count + before[1]
        return {name: _moved(*each, mutable[name]) for name, each in due.items()}


def _moved(form: Any, total: Array | float, count: Array | float, old: Array) -> Array:
    step = form.solve(total, count, old) - old
    return old + RATE * jnp.where(jnp.isfinite(step), step, 0.0).astype(old.dtype)


class TruncatedMemory(NamedTuple):
    """What the closed forms have gathered since their last update."""

    totals: dict[str, Array]  # parameter -> sum over data of q's mean statistic, of its shape
    counts: dict[str, Array]  # parameter -> how many observed entries are in it
    rows: Int[Array, ""]  # data seen


def gather(
    statistics: Mapping[str, Statistic | Factors],
    targets: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    weights: Float[Array, "S *plates"],
    memory: TruncatedMemory,
) -> TruncatedMemory:
    """Add the statistics of these data to those since the last update.

    Args:
        statistics: Of each site with a closed form, of all members.
        targets: Of each such site, the name that its parameter's totals have in the memory; sites
            with one parameter share them.
        shapes: Of the parameters, by that name.
        weights: q of each member.
        memory: What has been gathered; it stays as it is where there are no statistics.
    """
    if not statistics:
        return memory
    totals, counts = dict(memory.totals), dict(memory.counts)
    for name, statistic in statistics.items():
        target = targets[name]
        total, count = sums(statistic, weights, shapes[target])
        totals[target], counts[target] = totals[target] + total, counts[target] + count
    return TruncatedMemory(totals, counts, memory.rows + weights[0].size)
