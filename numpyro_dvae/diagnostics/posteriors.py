"""The posterior of discrete latents, place by place, as draws of the guide tell it.

Each cell of a latent's plates and event dims is a place, with one of V values. The probabilities of
its values are the guide's own where it lists them, in the mean over draws of what they are given;
of a product of independent latents that is exact. Otherwise, and wherever draws are weighted, they
are shares of the draws. Weighted by p / q, the shares are of the true posterior, as K grows.

NumPy alone, so but for the package's name this file is the same in both packages.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from numpyro_dvae.diagnostics.arrays import NamedArray, check_entries, shares_of
from numpyro_dvae.diagnostics.averaging import (
    Weighted,
    joint_log_weights_of,
    mean_probs,
    weighted_draws,
    weights_in_dims,
)
from numpyro_dvae.diagnostics.draws import Draws
from numpyro_dvae.diagnostics.verdicts import ImportanceDiagnostics

__all__ = [
    "DiscretePosterior",
    "SitePosterior",
    "are_summed",
    "check_posterior",
    "choose_sites",
    "is_affordable",
    "most_draws",
    "of_summed",
    "posterior_of",
]

_MOST_COLUMNS = 8  # values that a line of the table shows
_MOST_NUMBERS = 2**26  # of conditional probabilities that are kept; with more, draws are counted


class SitePosterior(NamedTuple):
    """The posterior of one site, of the places that `dims` name."""

    dims: tuple[str, ...]
    probs: np.ndarray  # (*dims, V), of the values 0, ..., V - 1; a one-hot vector is its code
    draws: np.ndarray | None  # (K, *dims), as the guide made them, all of one weight; None of a
    # site that is summed out
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
        return f"SitePosterior(({dims}): {self.counted.size} places of {self.num_values} values)"


@dataclass(frozen=True)
class DiscretePosterior:
    """The posterior of the discrete latents of each datum; `print` it for a table.

    ``posterior["z"].probs`` is an array, of dims ``posterior["z"].dims`` and the values.
    """

    sites: dict[str, SitePosterior]
    most_likely: dict[str, np.ndarray] | None  # site -> (*dims): of each datum, of the states that
    # were drawn the one of largest log joint, others summed out; None beside continuous latents, or
    # if relaxed
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
    is_list = isinstance(sites, Sequence) and not isinstance(sites, str) and len(sites) > 0
    if sites is not None and not is_list:
        raise ValueError(
            f"`sites` must be a sequence of names, at least one; got {sites!r}. Write ['z'] for "
            "one site, and leave it out for all."
        )
    latent, discrete = draws["latent"], _discrete(draws)
    for name in sites or ():
        if name not in latent and name not in discrete:
            raise ValueError(
                f"`sites`: '{name}' is not a latent site of the model, which has "
                f"{sorted({*latent, *discrete})}. Name one of these."
            )
        if name not in discrete:
            raise ValueError(
                f"`sites`: '{name}' has no discrete `support`, so that its values have no "
                "probabilities to be listed: its draws are in `to_arviz`. Name some of the "
                f"discrete sites, {sorted(discrete)}."
            )
    if not discrete:
        raise ValueError(
            f"the model has no latent site of discrete `support`: it has {sorted(latent)}. Use "
            "`to_arviz`, or draw the site before its transform."
        )
    return discrete if sites is None else tuple(sites)


def is_affordable(few: Draws, num_draws: int) -> bool:
    """Whether the conditional probabilities of all draws can be kept."""
    return _is_few(few["conditional"].values(), num_draws)


def are_summed(few: Draws, names: Sequence[str], num_draws: int) -> bool:
    """Whether some of these sites are summed out.

    Raises:
        ValueError: If the probabilities of their values, given each draw, are too many.
    """
    found = {name: few["summed"][name] for name in names if name in few["summed"]}
    if not _is_few(few["summed"].values() if found else (), num_draws):
        raise ValueError(
            f"`num_draws`: a table of the probabilities of the enumerated sites {sorted(found)}, "
            f"given each of {num_draws} draws, would have more than {_MOST_NUMBERS} numbers. Pass "
            "fewer draws or data, or leave these sites out of `sites`."
        )
    return bool(found)


def most_draws(few: Draws) -> int:
    """Of how many draws the probabilities of all sites that are summed out can be kept."""
    return _MOST_NUMBERS // max(1, sum(table.values[0].size for table in few["summed"].values()))


def _is_few(tables: Iterable[NamedArray], num_draws: int) -> bool:
    return num_draws * sum(table.values[0].size for table in tables) <= _MOST_NUMBERS


def _discrete(draws: Draws) -> tuple[str, ...]:
    drawn = [n for n, s in draws["latent"].items() if s.discrete or n in draws["conditional"]]
    return (*drawn, *draws["summed"])


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
    log_weights, tables = joint_log_weights_of(draws), draws["conditional"]
    weighted = weighted_draws(draws, log_weights, report) if corrected else None
    drawn = [n for n in names if n not in few["summed"]]
    check_entries({name: draws["latent"][name] for name in drawn})
    codes = {n: _codes(n, draws["latent"][n], listed.get(n)) for n in drawn}
    found = {n: of_summed(n, draws, weighted) for n in names if n in few["summed"]}
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
                share = weights_in_dims(weighted.weights, weighted.plates, dims)
            probs = shares_of(some, size, share)
        found[name] = SitePosterior(dims, probs, values, _counted(draws, name, values))
    complete = not relaxed and set(draws["latent"]) <= set(_discrete(few))
    joint = _joint(draws, codes) if complete and not draws.shared_sites else None
    found = {name: found[name] for name in names}
    return DiscretePosterior(found, joint, log_weights, draws.plates, corrected, report)


def of_summed(name: str, draws: Draws, weighted: Weighted | None) -> SitePosterior:
    """The posterior of a site that is summed out, in the mean over draws."""
    site, probs = draws["summed"][name], mean_probs(name, draws, weighted)
    return SitePosterior(site.dims[:-1], probs, None, _counted(draws, name, site.values[..., 0]))


def _check_size(name: str, num_latents: int, num_codes: int) -> None:
    if num_latents * num_codes > _MOST_NUMBERS:
        raise ValueError(
            f"`sites`: '{name}' has {num_codes} values for each of {num_latents} latents of all "
            f"data: a table of their probabilities would have more than {_MOST_NUMBERS} numbers. "
            "Pass fewer data, leave the site out of `sites`, or read its draws from `to_arviz`."
        )


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


def _joint(
    draws: Draws, codes: Mapping[str, tuple[tuple[str, ...], np.ndarray]]
) -> dict[str, np.ndarray]:
    """Of each datum, the drawn state of largest log joint."""
    best = draws.log_joint.argmax(0)[None]  # (1, *plates)
    found = {}
    for name, (dims, values) in codes.items():
        place = np.broadcast_to(weights_in_dims(best, draws.plates, dims), (1, *values.shape[1:]))
        found[name] = np.asarray(np.take_along_axis(values, place, 0)[0])
    return found
