"""Groups of arrays for ArviZ: the one file that meets it.

ArviZ 0.23 holds groups in an `InferenceData`, ArviZ 1 in xarray's `DataTree`; what is installed
decides. But for the package's name this file is the same in both packages.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pyro_dvae.diagnostics.arguments import named_leaves
from pyro_dvae.diagnostics.arrays import NamedArray, split_data
from pyro_dvae.diagnostics.draws import Draws
from pyro_dvae.diagnostics.names import Labels, sizes_of_dims
from pyro_dvae.diagnostics.notes import KINDS
from pyro_dvae.diagnostics.posteriors import SitePosterior
from pyro_dvae.diagnostics.usage import OF_USAGE, frequencies_of, usage_of
from pyro_dvae.diagnostics.verdicts import ImportanceDiagnostics

__all__ = ["GROUPS", "as_chains", "make_groups", "readings_for", "rhat_of"]

GROUPS = (
    "posterior",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "log_likelihood",
    "sample_stats",
    "observed_data",
    "constant_data",
    "vi_stats",
)
_WITH_SHARED = ("elbo", "iwae", "elbo_error", "iwae_error")  # a datum's part of what is shared
_PER_DATUM = (
    *(*_WITH_SHARED, "ess", "khat", "largest_weight"),
    *("num_tail_weights", "num_states", "has_few_states", "restricted"),
)
_OF_SHARED = (
    *("elbo", "elbo_error", "gap", "noise", "verdict"),
    *("ess", "khat", "largest_weight", "num_draws"),
)
_OF_WHOLE = ("elbo", "elbo_error", "iwae", "iwae_error")
_SAME = 8 * float(np.finfo(np.float32).eps)  # relative: rounding in single precision
_MARGINAL = "marginal"  # evidence of a datum, among the log-likelihoods of the sites
_SEEN = {"log_likelihood", "observed_data", "posterior_predictive"}  # which masks concern
_READINGS = {  # group -> readings of the sites
    "posterior": ("latent", "deterministic"),
    "posterior_predictive": ("predictive",),
    "prior": ("prior",),
    "prior_predictive": ("prior_predictive",),
    "log_likelihood": ("log_likelihood",),
    "observed_data": ("observed",),
}


def readings_for(groups: Collection[str]) -> set[str]:
    """What must be read of the sites, to make these groups."""
    if unknown := set(groups) - set(GROUPS):
        raise ValueError(f"`groups` must be of {', '.join(GROUPS)}; got {sorted(unknown)}.")
    wanted = {reading for group in groups for reading in _READINGS.get(group, ())} | {"subsample"}
    wanted |= {"latent", "outside", *OF_USAGE} if "vi_stats" in groups else set()
    wanted |= {"seen"} if set(groups) & _SEEN else set()
    return wanted | (
        {"observed"} if {"constant_data", "posterior_predictive"} & {*groups} else set()
    )


def make_groups(
    draws: Draws,
    report: ImportanceDiagnostics,
    evidences: np.ndarray | None,
    result: Any,
    data: tuple,
    labels: Labels,
    summed: Mapping[str, SitePosterior],
) -> Any:
    """Arrange what was drawn in groups, in the container of the installed ArviZ."""
    groups = labels.groups
    arrays = {
        group: {name: array for reading in readings for name, array in draws[reading].items()}
        for group, readings in _READINGS.items()
    }
    if "constant_data" in groups:
        arrays["constant_data"] = _constant_data(draws, result, data)
    arrays["sample_stats"] = _sample_stats(draws)
    places: dict[str, np.ndarray] = {}
    if "log_likelihood" in groups:
        arrays["log_likelihood"], places = _log_likelihoods(draws, evidences, labels)
    datasets = {
        group: _dataset(group, sites, draws, labels)
        for group, sites in arrays.items()
        if sites and group in groups
    }
    if "log_likelihood" in datasets:
        datasets["log_likelihood"] = datasets["log_likelihood"].assign_coords(places)
    for group in datasets.keys() & {"observed_data", "posterior_predictive"}:
        datasets[group] = _marked(datasets[group], draws, labels)
    if "vi_stats" in groups:
        datasets["vi_stats"] = _vi_stats(draws, report, result, summed)
    labels.check(datasets)
    datasets = {group: labels.apply(datasets[group]) for group in GROUPS if group in datasets}
    return _assemble(datasets)


def _sample_stats(draws: Draws) -> dict[str, NamedArray]:
    lp = draws.record("log_likelihood") + draws.record("log_prior")
    values = {"lp": lp, "log_q": draws.record("log_q"), "log_weight": draws.log_weights}
    stats = {name: NamedArray(draws.plates, value) for name, value in values.items()}
    if draws.shared_sites:
        lp = draws.shared("shared_likelihood") + draws.shared("shared_prior")
        values = {"lp": lp, "log_q": draws.shared("shared_q"), "log_weight": draws.shared_weights}
        stats |= {f"{name}_shared": NamedArray((), value) for name, value in values.items()}
    if draws.shared_sites or (draws.scale != 1).any():
        stats["log_weight_whole"] = NamedArray((), draws.whole_weights)
    return stats


def _log_likelihoods(
    draws: Draws, evidences: np.ndarray | None, labels: Labels
) -> tuple[dict[str, NamedArray], dict[str, np.ndarray]]:
    """Of each site, and of each datum without its latents; of what no mask silences alone.

    And, by the dim of what is left of a site, the labels of this.
    """
    found, masks, seen = {}, {}, np.zeros(draws.shape[1:], bool)
    for name, site in draws["log_likelihood"].items():
        masks[name] = cells = _is_seen(draws, name, site)
        found[name] = site
        if set(draws.plates) <= set(site.dims):
            seen |= (
                split_data(NamedArray(site.dims, cells[None]), draws.plates)[0]
                .reshape(*seen.shape, -1)
                .any(-1)
            )
    if evidences is not None and seen.any():
        if _MARGINAL in found:
            raise ValueError(
                f"`log_likelihood` has the evidence of each datum as '{_MARGINAL}', the name of a "
                "site that the model observes: rename the site, or pass `groups` without it."
            )
        found[_MARGINAL], masks[_MARGINAL] = NamedArray(draws.plates, evidences), seen
    own = _coords(draws) | {dim: np.asarray(each) for dim, each in labels.coords.items()}
    places = {
        f"{name}_seen": _places(site, masks[name], own)
        for name, site in found.items()
        if not masks[name].all() and masks[name].any()
    }
    left = {name: _only_seen(name, site, masks[name]) for name, site in found.items()}
    return {name: site for name, site in left.items() if site.values.size}, places


def _places(site: NamedArray, seen: np.ndarray, own: Mapping[str, np.ndarray]) -> np.ndarray:
    """Labels of the cells that are left: those of the one dim; of several, places row by row."""
    known = own.get(site.dims[0], np.arange(0)) if len(site.dims) == 1 else np.arange(0)
    return known[seen] if len(known) == seen.size else np.flatnonzero(seen)


def _is_seen(draws: Draws, name: str, site: NamedArray) -> np.ndarray:
    """Whether a cell of a log-likelihood has an entry that no mask silences in any draw."""
    seen = draws["seen"][name]
    within = tuple(range(1 + len(site.dims), seen.values.ndim))
    return np.broadcast_to(seen.values.any((0, *within)), site.values.shape[1:])


def _only_seen(name: str, site: NamedArray, seen: np.ndarray) -> NamedArray:
    """In one row, where some cells are not; `arviz.loo` would count them as seen, at 0 nats."""
    if seen.all():
        return site
    return replace(site, dims=(f"{name}_seen",), values=site.values[:, seen])


def _constant_data(draws: Draws, result: Any, data: tuple) -> dict[str, NamedArray]:
    """Arrays of the arguments that no site observes, by the model's names for them.

    Where more of them than sites hold the very numbers that are observed, any may be the data: all
    are kept. What their dims are is for the user to say: a size tells no plate.
    """
    leaves = {name: leaf for name, (_, leaf) in named_leaves(_model_of(result), data).items()}
    observed = [site.values for site in draws["observed"].values()]
    constants = {}
    for name, leaf in leaves.items():
        num_alike = sum(_is_same(leaf, other) for other in leaves.values())
        if num_alike > sum(_is_same(leaf, values) for values in observed):
            dims = tuple(f"{name}_dim_{d}" for d in range(leaf.ndim))
            constants[name] = NamedArray(dims, leaf)
    return constants


def _model_of(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result.model


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers, or none, in the same order."""
    if one.size != other.size or {one.dtype.kind, other.dtype.kind} - set("biuf"):
        return False
    return np.array_equal(np.ravel(one), np.ravel(other), equal_nan=True)


def _vi_stats(
    draws: Draws, report: ImportanceDiagnostics, result: Any, summed: Mapping[str, SitePosterior]
) -> Any:
    """How the training went, and what the weights of the draws say of the guide."""
    import xarray

    plates = draws.plates if report.ess.ndim else ()  # () if the verdict is of the whole
    sites = report.shared.sites if report.shared and report.has_shared_latents else ()
    given = {"given": ", ".join(sites)} if sites else {}  # what a datum's numbers leave out
    stats = {name: getattr(report, name) for name in _PER_DATUM} | {"verdict": report.verdicts}
    stats |= {f"given_{name}": getattr(report.given, name) for name in ("elbo", "iwae") if sites}
    variables: dict[str, Any] = {
        n: (plates, each, {} if n in _WITH_SHARED else given) for n, each in stats.items()
    }
    variables |= {f"whole_{name}": ((), getattr(report.whole, name)) for name in _OF_WHOLE}
    if report.shared is not None:
        variables |= {f"shared_{name}": ((), getattr(report.shared, name)) for name in _OF_SHARED}
    coords = _coords(draws)
    for name, usage in usage_of(draws).items():
        if not usage.is_open:
            variables |= frequencies_of(draws, name, usage)
            coords |= {} if usage.codes is None else {f"{name}_code": usage.codes}
    for name, site in summed.items():
        variables |= _of_summed(name, site, draws.plates)
    losses, rows = np.asarray(getattr(result, "losses", ())), getattr(result, "history", ())
    if losses.size:
        variables["loss"], coords["step"] = (("step",), losses), np.arange(1, 1 + losses.size)
    for key in sorted({key for row in rows for key in row}):
        values = np.array([row.get(key, np.nan) for row in rows], np.float64)
        variables[f"log_{key}"] = (("log_row",), values)
    sizes_of_dims("vi_stats", variables)
    attributes = {name: getattr(report, name) for name in ("num_particles", "khat_threshold")}
    notes = {name: ", ".join(getattr(report, name)) for name in KINDS}
    attributes |= {name: names for name, names in notes.items() if names}
    return xarray.Dataset(variables, coords, attributes)


def _of_summed(name: str, site: SitePosterior, plates: tuple[str, ...]) -> dict[str, tuple]:
    """The same as of a site that is drawn; no place that a mask silences has a share."""
    dim, counted = f"{name}_code", site.counted[..., None] & ~np.isnan(site.probs)
    axes = tuple(i for i, each in enumerate(site.dims) if each in plates)
    within = [each for each in site.dims if each not in plates]
    total = np.where(counted, site.probs, 0.0).sum(axes)
    return {
        f"{name}_code_share": ((*within, dim), total / np.maximum(counted.sum(axes), 1)),
        f"{name}_probs": ((*site.dims, dim), site.probs),
        f"{name}_most_likely": (site.dims, site.most_likely),
    }


def _marked(dataset: Any, draws: Draws, labels: Labels) -> Any:
    """Mark the entries that no mask silences; those of the data that one does are NaN."""
    for name, site in draws["observed"].items():
        seen = draws["seen"][name].values.any(0)
        if seen.all():
            continue
        if f"{name}_seen" in dataset:
            raise ValueError(
                f"'{name}_seen' is to tell what a mask leaves of '{name}', and the name of a site: "
                "rename the site."
            )
        dims, values = labels.of_site(name, site), site.values
        seen = np.broadcast_to(seen, values.shape)
        dataset = dataset.assign({f"{name}_seen": (dims, seen)})
        if "draw" not in dataset.dims:
            dataset = dataset.assign({name: (dims, np.where(seen, values, np.nan))})
    return dataset


def _coords(draws: Draws) -> dict[str, np.ndarray]:
    """Rows of the full plate, where a plate took a subsample of them."""
    return {name: plate.values for name, plate in draws["subsample"].items()}


def _dataset(group: str, sites: Mapping[str, NamedArray], draws: Draws, labels: Labels) -> Any:
    import xarray

    undrawn = group.endswith("_data")
    variables = {
        name: (labels.of_site(name, site), site.values)
        if undrawn
        else (("chain", "draw", *labels.of_site(name, site)), site.values[None])
        for name, site in sites.items()
    }
    sizes = sizes_of_dims(group, variables)
    coords = {dim: np.arange(size) for dim, size in sizes.items()} | _coords(draws)
    coords = {dim: values for dim, values in coords.items() if dim in sizes}
    return xarray.Dataset(variables, coords)


def _assemble(datasets: Mapping[str, Any]) -> Any:
    arviz = _arviz()
    attributes = {"inference_library": __name__.partition(".")[0]}
    datasets = {group: each.assign_attrs(attributes) for group, each in datasets.items()}
    if getattr(arviz, "__version__", "1").startswith("0."):
        return arviz.InferenceData(**datasets)
    import xarray

    return xarray.DataTree.from_dict(datasets)


def _arviz() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces ArviZ 1 once a day
        import arviz
    return arviz


def as_chains(tables: Sequence[Any]) -> Any:
    """One table, whose chains are the runs; what has no draws is of the best run, or of each."""
    import xarray

    merged = tables[0].copy() if hasattr(tables[0], "copy") else tables[0]
    for group in ("posterior", "sample_stats"):
        parts = [table[group].assign_coords(chain=[i]) for i, table in enumerate(tables)]
        _put(merged, group, xarray.concat([_plain(part) for part in parts], "chain"))
    names = set.intersection(*(set(map(str, table["vi_stats"].data_vars)) for table in tables))
    lasting = sorted(name for name in names if not name.startswith("log_") and name != "loss")
    stats = [_plain(table["vi_stats"])[lasting] for table in tables]
    stats = [each.drop_vars("step", errors="ignore") for each in stats]
    chains = xarray.DataArray(np.arange(len(stats)), dims="chain", name="chain")
    _put(merged, "vi_stats", xarray.concat(stats, chains))
    return merged


def _plain(group: Any) -> Any:
    return group.to_dataset() if hasattr(group, "to_dataset") else group


def _put(table: Any, group: str, dataset: Any) -> None:
    if hasattr(table, "add_groups"):  # ArviZ 0.23
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            delattr(table, group)
            table.add_groups({group: dataset})
    else:
        table[group] = table[group].__class__(dataset)


def rhat_of(values: np.ndarray) -> float:
    """R-hat of a number: 1 where all draws are one, infinite where each chain has its own value."""
    if np.ptp(values) <= _SAME * np.abs(values).max():
        return 1.0
    if (np.ptp(values, axis=1) == 0).all():
        return np.inf
    with np.errstate(invalid="ignore", divide="ignore"):  # of chains that are folded to one value
        return float(_arviz().rhat(values))
