"""The posterior of discrete latents, place by place, as draws of the guide tell it.

Each cell of a latent's plates and event dims is a place, with one of V values. The probabilities of
its values are the guide's own where it lists them, in the mean over draws of what they are given;
of a product of independent latents that is exact. Otherwise, and wherever draws are weighted, they
are shares of the draws. Weighted by p / q, the shares are of the true posterior, as K grows.

NumPy alone, so but for the package's name this file is the same in both packages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from numpyro_dvae.diagnostics.arrays import NamedArray, shares_of
from numpyro_dvae.diagnostics.draws import Draws
from numpyro_dvae.diagnostics.verdicts import ImportanceDiagnostics

__all__ = [
    "DiscretePosterior",
    "SitePosterior",
    "check_posterior",
    "choose_sites",
    "is_affordable",
    "posterior_of",
]

_MOST_COLUMNS = 8  # values that a line of the table shows
_MOST_NUMBERS = 2**26  # of conditional probabilities that are kept; with more, draws are counted


class SitePosterior(NamedTuple):
    """The posterior of one site, of the places that `dims` name."""

    dims: tuple[str, ...]
    probs: np.ndarray  # (*dims, V), of the values 0, ..., V - 1; a one-hot vector is its code
    draws: np.ndarray  # (K, *dims), as the guide made them, all of one weight
    counted: np.ndarray  # (*dims), where no mask silences it; elsewhere, as where a site with
    # `obs_mask` is observed, values are drawn that no density counts

    @property
    def num_values(self) -> int:
        """V."""
        return self.probs.shape[-1]

    @property
    def most_likely(self) -> np.ndarray:
        """The most likely value of each place by itself, ``(*dims)``."""
        return np.asarray(self.probs.argmax(-1))

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of each place by itself, in nats, ``(*dims)``."""
        logs = np.log(self.probs, out=np.zeros_like(self.probs), where=self.probs > 0)
        return np.asarray(0.0 - (self.probs * logs).sum(-1))  # never -0

    @property
    def mean(self) -> np.ndarray:
        """Mean of the numbers 0, ..., V - 1, ``(*dims)``."""
        return np.asarray(self.probs @ np.arange(self.num_values))

    def __repr__(self) -> str:
        """Its shapes, not its arrays."""
        dims = ", ".join(self.dims)
        return f"SitePosterior(({dims}): {self.draws[0].size} places of {self.num_values} values)"


@dataclass(frozen=True)
class DiscretePosterior:
    """The posterior of the discrete latents of each datum; `print` it for a table.

    ``posterior["z"].probs`` is an array, of dims ``posterior["z"].dims`` and the values.
    """

    sites: dict[str, SitePosterior]
    most_likely: dict[str, np.ndarray] | None  # site -> (*dims): of each datum, of the states that
    # were drawn the one of largest log joint; None beside continuous latents, or if relaxed
    log_weights: np.ndarray  # log p - log q of the draws, (K, *plates), nats
    plates: tuple[str, ...]
    corrected: bool  # whether the probabilities are those of weighted draws: of these, or, where
    # the data share latents, of those that the report is of
    report: ImportanceDiagnostics  # what the weights say of the guide

    def __getitem__(self, name: str) -> SitePosterior:
        return self.sites[name]

    def __repr__(self) -> str:
        """A line for each site, and the verdict on the guide."""
        width = max(6, *(len(name) + 2 for name in self.sites))
        kind = "weighted draws" if self.corrected else "the guide"
        head = f"{'site':<{width}}{'places':>8}{'values':>8}{'entropy':>9}  mean probabilities"
        lines = [
            f"Posterior of the discrete latents by {kind}; entropy in nats, in the mean.",
            head,
        ]
        lines += [_line(name, site, width) for name, site in self.sites.items()]
        lines += [
            _silenced(name, site) for name, site in self.sites.items() if not site.counted.all()
        ]
        return "\n".join([*lines, str(self.report)])


def _line(name: str, site: SitePosterior, width: int) -> str:
    probs = site.probs.reshape(-1, site.num_values)
    counted = site.counted.ravel() if site.counted.any() else np.ones(len(probs), bool)
    known = counted & ~np.isnan(probs).any(-1)  # weights of an impossible datum are none
    means = probs[known].mean(0) if known.any() else probs.mean(0)
    entropy = site.entropy.ravel()[known].mean() if known.any() else np.nan
    shown = " ".join(f"{value:.3f}" for value in means[:_MOST_COLUMNS])
    more = " ..." if site.num_values > _MOST_COLUMNS else ""
    return f"{name:<{width}}{counted.sum():>8}{site.num_values:>8}{entropy:>9.3f}  {shown}{more}"


def _silenced(name: str, site: SitePosterior) -> str:
    """What is said of places under a mask."""
    silenced = (~site.counted).sum()
    return (
        f"{name}: {silenced} of {site.counted.size} places are under a mask"
        f"{', and left out above' if site.counted.any() else ''}: their values are drawn, but no "
        "density counts them (they are padding, or data are in their place)."
    )


def check_posterior(num_draws: int) -> None:
    """Raise unless there are draws enough for a verdict."""
    if num_draws < 25:
        raise ValueError(
            f"`num_draws` must be at least 25, for a verdict on the guide; got {num_draws}."
        )


def choose_sites(draws: Draws, sites: Sequence[str] | None) -> tuple[str, ...]:
    """The discrete sites that are asked for; all if none is.

    Raises:
        ValueError: If they are not a sequence, one is missing or continuous, or there is none.
    """
    if isinstance(sites, str) or (sites is not None and not len(sites)):
        raise ValueError(
            f"`sites` must be a sequence of names, at least one; got {sites!r}. Write ['z'] for "
            "one site, and leave it out for all."
        )
    latent, discrete = draws["latent"], _discrete(draws)
    for name in sites or ():
        if name not in latent:
            raise ValueError(
                f"`sites`: '{name}' is not a latent site of the model, which has {sorted(latent)}. "
                "Name one of these. (A latent that is enumerated is summed out, and has no draws: "
                "sample it in the guide of the pair that is diagnosed.)"
            )
        if name not in discrete:
            raise ValueError(
                f"`sites`: '{name}' is continuous, so that its values have no probabilities: its "
                f"draws are in `to_arviz`. Name some of the discrete sites, {sorted(discrete)}."
            )
    if not discrete:
        raise ValueError(
            f"the model has no discrete latent site: it has {sorted(latent)}. Use `to_arviz`."
        )
    return discrete if sites is None else tuple(sites)


def is_affordable(few: Draws, num_draws: int) -> bool:
    """Whether the conditional probabilities of all draws can be kept."""
    sizes = [site.values[0].size for site in few["conditional"].values()]
    return num_draws * sum(sizes) <= _MOST_NUMBERS


def _discrete(draws: Draws) -> tuple[str, ...]:
    return tuple(n for n, s in draws["latent"].items() if s.discrete or n in draws["conditional"])


def _relaxed(draws: Draws, listed: Mapping[str, NamedArray]) -> list[str]:
    """Sites whose draws are neither codes nor one-hot vectors, but points between."""
    found = []
    for name, site in draws["latent"].items():
        if name in listed and not site.discrete and not np.isin(site.values, (0, 1)).all():
            found.append(name)
    return found


def posterior_of(
    draws: Draws,
    few: Draws,
    names: Sequence[str],
    report: ImportanceDiagnostics,
    *,
    corrected: bool,
) -> DiscretePosterior:
    """Put together what `discrete_posterior` tells.

    Args:
        draws: Of all latents; with conditional probabilities, if they are to be used.
        few: A draw with conditional probabilities.
        names: The sites.
        report: What the weights say.
        corrected: Whether to weigh the draws.

    Raises:
        ValueError: If relaxed draws are to be weighted, or a value is below 0.
    """
    listed, relaxed = few["conditional"], _relaxed(draws, few["conditional"])
    if corrected and relaxed:
        raise ValueError(
            f"`corrected`: draws of site '{relaxed[0]}' are relaxed, and have no weights. Pass "
            "the model and guide that were relaxed, as a pair, or corrected=False."
        )
    log_weights, tables = _log_weights(draws), draws["conditional"]
    weighted = _weighted(draws, log_weights, report) if corrected else None
    codes = {n: _codes(n, draws["latent"][n], listed.get(n)) for n in names}
    found = {}
    for name, (dims, values) in codes.items():
        if weighted is None and name in tables and not np.isnan(tables[name].values).any():
            probs = tables[name].values.mean(0, dtype=np.float64)
        else:
            size = listed[name].values.shape[-1] if name in listed else 0
            size = size or draws["latent"][name].num_codes or int(np.nanmax(values)) + 1
            _check_size(name, values[0].size, size)
            some, share = values, None
            if weighted is not None:
                site = replace(draws["latent"][name], values=weighted.latents[name])
                some = _codes(name, site, listed.get(name))[1]
                share = _in_dims(weighted.weights, weighted.plates, dims)
            probs = shares_of(some, size, share)
        found[name] = SitePosterior(dims, probs, values, _counted(draws, name, values))
    complete = not relaxed and set(draws["latent"]) == set(_discrete(few))
    joint = _joint(draws, codes) if complete and not draws.shared_sites else None
    return DiscretePosterior(found, joint, log_weights, draws.plates, corrected, report)


def _check_size(name: str, num_latents: int, num_codes: int) -> None:
    if num_latents * num_codes > _MOST_NUMBERS:
        raise ValueError(
            f"`sites`: '{name}' has {num_codes} values for each of {num_latents} latents of all "
            f"data: a table of their probabilities would have more than {_MOST_NUMBERS} numbers. "
            "Pass fewer data, leave the site out of `sites`, or read its draws from `to_arviz`."
        )


def _log_weights(draws: Draws) -> np.ndarray:
    """Of each datum; where the data share latents, of all together, the same for each datum."""
    log_weights = draws.importance_weights
    if not draws.shared_sites or np.ptp(draws.shared_importance_weights) == 0:
        return log_weights
    whole = draws.whole_importance_weights.reshape(-1, *[1] * (log_weights.ndim - 1))
    return np.broadcast_to(whole, log_weights.shape)


class _Weighted(NamedTuple):
    """Draws whose weights make them the posterior's."""

    latents: Mapping[str, np.ndarray]
    weights: np.ndarray  # (K, *plates), of sum 1 over the first axis
    plates: tuple[str, ...]


def _weighted(draws: Draws, log_weights: np.ndarray, report: ImportanceDiagnostics) -> _Weighted:
    """The draws; where the data share latents, those that the report is of.

    A draw of all latents at once weighs what all data together say of it: few would count.
    """
    if report.has_shared_latents and report.draws is not None:
        return _Weighted(report.draws.values, _normalised(report.draws.log_weights), ())
    latents = {name: site.values for name, site in draws["latent"].items()}
    return _Weighted(latents, _normalised(log_weights), draws.plates)


def _normalised(log_weights: np.ndarray) -> np.ndarray:
    """Weights of the draws of each datum, of sum 1."""
    weights = np.exp(log_weights - log_weights.max(0))
    return weights / weights.sum(0)


def _codes(
    name: str, site: NamedArray, listed: NamedArray | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """The draws as codes ``(K, *dims)``: of vectors, relaxed or not, the place of the largest."""
    if listed is not None and len(site.dims) == len(listed.dims):
        return site.dims[:-1], site.values.argmax(-1)
    if not site.discrete:
        return site.dims, (site.values > 0.5).astype(int)
    values = np.rint(site.values)
    if not np.isnan(values).any():  # as of a site that is not there in a draw
        values = values.astype(int)
    least = np.nanmin(values)
    if least < 0:
        raise ValueError(
            f"site '{name}' has the value {least:.0f}, but values are numbers from 0 on. Leave it "
            "out of `sites`; its draws are in `to_arviz`."
        )
    return site.dims, values


def _counted(draws: Draws, name: str, codes: np.ndarray) -> np.ndarray:
    """Where no mask silences a site, in any of the draws."""
    if name not in draws["counted"]:
        return np.ones(codes.shape[1:], bool)
    counted = (draws["counted"][name].values == 1).any(0)
    if counted.ndim > codes.ndim - 1:  # a vector is one code
        counted = counted.any(-1)
    return np.broadcast_to(counted, codes.shape[1:])


def _in_dims(weights: np.ndarray, plates: tuple[str, ...], dims: tuple[str, ...]) -> np.ndarray:
    """Weights ``(K, *plates)`` in the dims of a site, 1 where it has more."""
    order = [1 + plates.index(dim) for dim in dims if dim in plates]
    moved = weights.transpose(0, *order, *(i for i in range(1, weights.ndim) if i not in order))
    shape = [moved.shape[0]]
    sizes = iter(moved.shape[1:])
    shape += [next(sizes) if dim in plates else 1 for dim in dims]
    return moved.reshape(shape)


def _joint(
    draws: Draws, codes: Mapping[str, tuple[tuple[str, ...], np.ndarray]]
) -> dict[str, np.ndarray]:
    """Of each datum, the drawn state of largest log joint."""
    best = draws.log_joint.argmax(0)[None]  # (1, *plates)
    found = {}
    for name, (dims, values) in codes.items():
        place = np.broadcast_to(_in_dims(best, draws.plates, dims), (1, *values.shape[1:]))
        found[name] = np.asarray(np.take_along_axis(values, place, 0)[0])
    return found
