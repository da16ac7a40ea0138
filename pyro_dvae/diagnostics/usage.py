"""What draws say of the latents: which codes are in use, what each latent carries.

Of each latent of a site, over draws and data, or per datum. NumPy alone, so but for the package's
name this file is the same in both packages.
"""

from dataclasses import replace

import numpy as np

from pyro_dvae.diagnostics.arrays import (
    NamedArray,
    count_codes,
    split_data,
    variance_of_mean,
)
from pyro_dvae.diagnostics.draws import Draws

__all__ = [
    "code_counts_of",
    "is_restricted",
    "latent_rates_of",
    "num_states_of",
    "usage_of",
    "variances_of",
]


def num_states_of(draws: Draws) -> np.ndarray:
    """Distinct states of each datum's discrete latents; K where continuous ones never repeat."""
    if "state" not in draws["record"]:
        return np.full(draws.shape[1:], draws.num_draws)
    states = np.sort(draws.record("state"), axis=0)
    return np.asarray(1 + (states[1:] != states[:-1]).sum(0))


def is_restricted(draws: Draws) -> np.ndarray:
    """Whether the guide leaves out states of a datum that the model has."""
    restricted = np.zeros(draws.shape[1:], bool)
    for outside in draws["outside"].values():
        axes = [i for i, dim in enumerate(outside.dims, 1) if dim not in draws.plates]
        restricted |= outside.values.any((0, *axes))
    return restricted


def code_counts_of(draws: Draws) -> dict[str, np.ndarray]:
    """How often each code of each discrete site occurs, if there are finitely many."""
    return {name: counts for name, (counts, is_open) in usage_of(draws).items() if not is_open}


def usage_of(draws: Draws) -> dict[str, tuple[np.ndarray, bool]]:
    """How often each code of each discrete site occurs, ``(*latents, codes)``.

    And whether there is no largest one: then they end with the largest that was drawn.
    """
    found = {}
    for name, drawn in draws["code"].items():
        site = _in_use(draws, name, drawn)
        top = draws["top"][name].values.max() if name in draws["top"] else site.num_codes - 1
        is_open = bool(top < 0)
        size = int(np.nanmax(site.values) if is_open else top) + 1
        found[name] = count_codes(replace(site, num_codes=size), draws.plates), is_open
    return found


def _in_use(draws: Draws, name: str, site: NamedArray) -> NamedArray:
    """The codes of a site, NaN where a mask silences them: drawn, they stand for nothing."""
    if name not in draws["counted"]:
        return site
    counted = draws["counted"][name].values
    if counted.ndim > site.values.ndim:  # a vector is one code
        counted = counted.any(-1)
    counted = np.broadcast_to(counted, site.values.shape)
    return site if counted.all() else replace(site, values=np.where(counted, site.values, np.nan))


def latent_rates_of(draws: Draws) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Nats that each latent of each site carries, in the mean over data and draws; their errors.

    The error is of the draws, which rows of the data may share: 0 of what does not depend on them.
    And the share of the data in which no mask silences the latent.
    """
    return {
        name: (*_mean_and_error(site, draws.plates), _share_in_use(draws, name, site))
        for name, site in draws["rate"].items()
    }


def _share_in_use(draws: Draws, name: str, site: NamedArray) -> np.ndarray:
    counted = draws["counted"][name].values
    while counted.ndim > site.values.ndim:  # a vector is one latent
        counted = counted.any(-1)
    counted = replace(site, values=np.broadcast_to(counted, site.values.shape))
    return _mean_and_error(counted, draws.plates)[0]


def variances_of(draws: Draws) -> dict[str, np.ndarray]:
    """Variance over the data of each latent's mean, of sites that each datum has.

    Data of which a mask silences the latent do not count.
    """
    sites, found = {**draws["latent"], **draws["code"]}, {}
    for name, site in sites.items():
        if draws.plates and set(draws.plates) <= set(site.dims):
            top, some = draws["top"].get(name), _in_use(draws, name, site)
            num_codes = site.num_codes if top is None else int(top.values.max()) + 1
            found[name] = variance_of_mean(some, draws.plates, num_codes)
    return found


def _mean_and_error(array: NamedArray, plates: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    shared = tuple(plate for plate in plates if plate in array.dims)
    each = np.atleast_2d(split_data(array, shared).mean(1, dtype=np.float64).T).T
    if len(each) == 1:  # of one draw nothing is known
        return each[0], np.full(each.shape[1:], np.nan)
    return each.mean(0), each.std(0, ddof=1) / np.sqrt(len(each))
