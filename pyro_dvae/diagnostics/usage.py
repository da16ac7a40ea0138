"""What draws say of the latents: which codes are in use, what each latent carries.

Of each latent of a site, over draws and data, or per datum. NumPy alone, so but for the package's
name this file is the same in both packages.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pyro_dvae.diagnostics.arrays import (
    NamedArray,
    check_entries,
    codes_that_occur,
    count_codes,
    shares_of,
    split_data,
    variance_of_mean,
)
from pyro_dvae.diagnostics.draws import Draws
from pyro_dvae.diagnostics.errors import mean_and_error
from pyro_dvae.diagnostics.reports import CodeUsage

__all__ = [
    "MOST_LISTED",
    "OF_USAGE",
    "States",
    "frequencies_of",
    "is_restricted",
    "latent_rates_of",
    "plates_of_data",
    "states_of",
    "usage_of",
    "variances_of",
]

OF_USAGE = ("code", "top", "least", "table", "counted")  # readings that it is read off
MOST_LISTED = 2**16  # states of a datum that are listed, unless more are asked for
_MOST_COUNTS = 2**24  # of all codes of all latents: of more, those that occur are counted
_MOST_PROBS = 2**26  # of all codes of all data


class States(NamedTuple):
    """What is known of the states of each datum's discrete latents."""

    num: np.ndarray  # that were drawn; K where continuous ones never repeat
    possible: Any = np.asarray(np.inf)  # that the guide can draw; inf where that is not known
    restricted: Any = np.asarray(False)  # whether the model has others than the guide
    is_sole: Any = np.asarray(False)  # whether neither has another than the one that was drawn
    of_model: Any = np.asarray(np.inf)  # that the model has; inf where that is not known


def states_of(draws: Draws) -> States:
    """Count states that were drawn, and those that guide and model have."""
    num, sizes = np.full(draws.shape[1:], draws.num_draws), np.full((2, *draws.shape[1:]), np.inf)
    if "state" in draws["record"]:
        states = np.sort(draws.of_latents("state"), axis=0)
        num = np.asarray(1 + (states[1:] != states[:-1]).sum(0))
    if "states_of_model" in draws["record"]:
        logs = [draws.of_latents(f"states_of_{name}").max(0) for name in ("guide", "model")]
        with np.errstate(over="ignore"):
            sizes = np.rint(np.exp(np.stack(logs).astype(np.float64)))
    listed = np.where(draws.is_mixed, np.inf, sizes[1])  # no datum has states of its own then
    return States(num, sizes[0], is_restricted(draws), (sizes == 1).all(0), listed)


def is_restricted(draws: Draws) -> np.ndarray:
    """Whether the guide leaves out states of a datum that the model has.

    Of latents under a mask it may, unless what counts depends on them.
    """
    restricted = np.zeros(draws.shape[1:], bool)
    for reading, counts in (("outside", True), ("outside_silent", draws.matters)):
        for outside in [site for n, site in draws[reading].items() if n not in draws.free]:
            axes = [i for i, dim in enumerate(outside.dims, 1) if dim not in draws.plates]
            restricted |= outside.values.any((0, *axes)) & counts
    return restricted


def usage_of(draws: Draws) -> dict[str, CodeUsage]:
    """How often each code of each discrete site occurs; of large tables, each that occurs."""
    found = {}
    check_entries(draws["code"])
    for name, drawn in draws["code"].items():
        site = _in_use(draws, name, drawn)
        top = draws["top"][name].values.max() if name in draws["top"] else site.num_codes - 1
        least = int(draws["least"][name].values.min()) if name in draws["least"] else 0
        is_open = bool(top < 0)
        size = int(np.nanmax(site.values) if is_open else top) + 1 - least
        sizes = zip(site.dims, site.values.shape[1:], strict=True)
        num_latents = math.prod(n for dim, n in sizes if dim not in draws.plates)
        is_large = num_latents * size > _MOST_COUNTS
        codes = codes_that_occur(site) if is_large else least + np.arange(size)
        counts = count_codes(site, draws.plates, codes)
        known = codes if is_large or least else None
        found[name] = CodeUsage(counts, is_open, size, known, _tables_of(draws, name))
    return found


def _tables_of(draws: Draws, name: str) -> np.ndarray | None:
    """Of which table each latent of a site is; None if all share one."""
    site = draws["table"].get(name)
    if site is None:
        return None
    of_data = tuple(i for i, dim in enumerate(site.dims) if dim in draws.plates)
    place = tuple(0 if i in of_data else slice(None) for i in range(len(site.dims)))
    return site.values[0][place]


def _in_use(draws: Draws, name: str, site: NamedArray) -> NamedArray:
    """The codes of a site, NaN where a mask silences them: drawn, they stand for nothing."""
    if name not in draws["counted"]:
        return site
    counted = draws["counted"][name].values
    if counted.ndim > site.values.ndim:  # a vector is one code
        counted = counted.any(-1)
    counted = np.broadcast_to(counted, site.values.shape)
    return site if counted.all() else replace(site, values=np.where(counted, site.values, np.nan))


def frequencies_of(draws: Draws, name: str, usage: CodeUsage) -> dict[str, tuple]:
    """How often each code occurs, in all and of each datum, and which one most often.

    Variables of a data set, with their dims. A very large table of each datum's is left out. Where
    a mask silences places, which draw all the same, there is one of the places that count.
    """
    site, dim, size = draws["code"][name], f"{name}_code", usage.counts.shape[-1]
    within = [each for each in site.dims if each not in draws.plates]
    totals = np.maximum(usage.counts.sum(-1, keepdims=True), 1)  # 0 of what is not in use
    variables: dict[str, tuple] = {f"{name}_code_share": ((*within, dim), usage.counts / totals)}
    if site.values[0].size * size > _MOST_PROBS:
        return variables
    codes = np.arange(size) if usage.codes is None else usage.codes
    places = np.where(np.isnan(site.values), np.nan, np.searchsorted(codes, site.values))
    probs = shares_of(places, size, None)
    variables[f"{name}_probs"] = ((*site.dims, dim), probs)
    variables[f"{name}_most_likely"] = (site.dims, codes[probs.argmax(-1)])
    counted = ~np.isnan(_in_use(draws, name, site).values).all(0)
    return variables | ({} if counted.all() else {f"{name}_counted": (site.dims, counted)})


def latent_rates_of(draws: Draws) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Nats that each latent of each site carries, in the mean over data and draws; their errors.

    The error is of the draws, which rows of the data may share: 0 of what does not depend on them.
    And the share of the data in which a latent counts: in which a draw has it, and no mask
    silences it. Where it does not count, its rate is 0.
    """
    sites, found = dict(draws["rate"]), {}
    check_entries(sites)
    groups = []
    for latents, alone in _computed_together(draws.densities):
        one, other = sites[latents[0]], draws["alone"][alone[0]]
        if len(latents) == len(alone) == 1 and one.values.shape == other.values.shape:
            sites[latents[0]] = replace(one, values=one.values + other.values)
        else:
            groups.append((latents, alone))
    joint = {name for latents, _ in groups for name in latents}
    for name, site in sites.items():
        counted = _counted(draws, name, site)
        rates = replace(site, values=np.where(counted, site.values, 0.0))
        share = _mean_and_error(replace(site, values=counted), draws.plates)[0]
        rate, error = _mean_and_error(rates, draws.plates)
        if name in draws.points:  # the KL of a point from a density
            rate, error = np.where(share > 0, np.inf, rate), np.zeros_like(error)
        if name not in joint:
            found[name] = rate, error, share
    for latents, alone in groups:
        found[", ".join(latents)] = (*_joint_rate(draws, latents, alone), np.ones(()))
    return found


def _computed_together(densities: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[list, list]]:
    """Latents that are computed of the same sites, and these."""
    left = {site: set(latents) for site, latents in densities.items()}
    while left:
        site, latents = left.popitem()
        sites = [site]
        while more := [other for other, some in left.items() if some & latents]:
            for other in more:
                latents |= left.pop(other)
            sites += more
        yield [n for n in dict.fromkeys(sum(densities.values(), ())) if n in latents], sites


def _joint_rate(
    draws: Draws, latents: Collection[str], alone: Collection[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Log q - log p of latents that are computed, and its error; of a datum, if all are."""
    sites = {name: draws["rate"][name] for name in latents}
    parts = [np.where(_counted(draws, n, site), site.values, 0.0) for n, site in sites.items()]
    parts += [draws["alone"][name].values for name in alone]
    total = sum(part.reshape(len(part), -1).sum(1, dtype=np.float64) for part in parts)
    owned = all(set(draws.plates) <= set(site.dims) for site in sites.values())
    num_data = math.prod(draws.shape[1:]) if owned else 1
    return mean_and_error(np.asarray(total) / num_data)


def _counted(draws: Draws, name: str, site: NamedArray) -> np.ndarray:
    """Where a latent is there, and no mask silences it."""
    counted = np.nan_to_num(draws["counted"][name].values) > 0  # NaN in draws that lack the site
    while counted.ndim > site.values.ndim:  # a vector is one latent
        counted = counted.any(-1)
    return np.broadcast_to(counted, site.values.shape)


def plates_of_data(draws: Draws, observed: Mapping[str, NamedArray]) -> tuple[str, ...]:
    """Plates that what is observed and the latents of the data have in common, beside shared ones.

    None where some draws lack a site, which then has no mean.
    """
    sites = [*draws["latent"].values(), *draws["code"].values()]
    dims = [set(site.dims) for site in observed.values() if site.dims]
    if not dims or any(np.isnan(site.values).any() for site in sites):
        return ()
    common = set.intersection(*dims)
    owned = [common & set(site.dims) for site in sites if common & set(site.dims)]
    return tuple(sorted(set.intersection(*owned))) if owned else ()


def variances_of(draws: Draws, plates: tuple[str, ...]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Variance over the data of each latent's mean, of sites that each datum has; and its error.

    Data of which a mask silences the latent do not count.

    Args:
        draws: With the latents.
        plates: Those that make a datum.
    """
    sites, found = {**draws["latent"], **draws["code"]}, {}
    check_entries(sites)
    for name, site in sites.items():
        if plates and set(plates) <= set(site.dims):
            top, some = draws["top"].get(name), _in_use(draws, name, site)
            num_codes = site.num_codes if top is None else int(top.values.max()) + 1
            found[name] = variance_of_mean(some, plates, num_codes)
    return found


def _mean_and_error(array: NamedArray, plates: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    shared = tuple(plate for plate in plates if plate in array.dims)
    each = np.atleast_2d(split_data(array, shared).mean(1, dtype=np.float64).T).T
    return mean_and_error(each)
