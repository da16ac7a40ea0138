"""Groups of arrays for ArviZ: the one file that meets it.

ArviZ 0.23 holds groups in an `InferenceData`, ArviZ 1 in xarray's `DataTree`; what is installed
decides. But for the package's name this file is the same in both packages.
"""

import inspect
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from pyro_dvae.diagnostics.draws import Store, Variable, count_codes
from pyro_dvae.diagnostics.reports import ImportanceDiagnostics

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
_PER_DATUM = (
    "elbo",
    "iwae",
    "ess",
    "khat",
    "largest_weight",
    "num_tail_weights",
    "num_states",
    "restricted",
)
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
    wanted |= {"latent", "outside"} if "vi_stats" in groups else set()
    return wanted | ({"observed"} if "constant_data" in groups else set())


def make_groups(
    store: Store, report: ImportanceDiagnostics, result: Any, data: tuple, groups: Collection[str]
) -> Any:
    """Arrange what was drawn in groups, in the container of the installed ArviZ."""
    found = {
        group: {name: variable for reading in readings for name, variable in store[reading].items()}
        for group, readings in _READINGS.items()
    }
    if "constant_data" in groups:
        found["constant_data"] = _constant_data(store, result, data)
    found["sample_stats"] = _sample_stats(store)
    datasets = {
        group: _dataset(variables, store, group.endswith("_data"))
        for group, variables in found.items()
        if variables and group in groups
    }
    if "vi_stats" in groups:
        datasets["vi_stats"] = _vi_stats(store, report, result)
    return _assemble({group: datasets[group] for group in GROUPS if group in datasets})


def _sample_stats(store: Store) -> dict[str, Variable]:
    record = store["record"]
    lp = record["log_likelihood"].values + record["log_prior"].values
    log_q = record["log_q"].values
    values = {"lp": lp, "log_q": log_q, "log_weight": store.log_weights}
    return {name: Variable(store.plates, value) for name, value in values.items()}


def _constant_data(store: Store, result: Any, data: tuple) -> dict[str, Variable]:
    """Arrays of the arguments that no site observes, by the model's names for them."""
    model = result[0] if isinstance(result, tuple) else result.model
    names = list(inspect.signature(model).parameters)
    observed = [variable.values.ravel() for variable in store["observed"].values()]
    found = {}
    for i, value in enumerate(data):
        if not hasattr(value, "shape"):
            continue
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if any(np.array_equal(array.ravel(), other) for other in observed):
            continue
        name = names[i] if i < len(names) else f"argument_{i}"
        dims = [f"{name}_dim_{d}" for d in range(array.ndim)]
        plates = [plate for plate, size in _sizes(store).items() if array.shape[:1] == (size,)]
        dims[:1] = plates[:1] or dims[:1]
        found[name] = Variable(tuple(dims), array)
    return found


def _sizes(store: Store) -> dict[str, int]:
    return dict(zip(store.plates, store["record"]["log_q"].values.shape[1:], strict=True))


def _vi_stats(store: Store, report: ImportanceDiagnostics, result: Any) -> Any:
    """How the training went, and what the weights of the draws say of the guide."""
    import xarray

    variables = {name: (store.plates, getattr(report, name)) for name in _PER_DATUM}
    variables["verdict"] = (store.plates, report.verdicts)
    for name, variable in store["latent"].items():
        if variable.num_codes:
            within = [dim for dim in variable.dims if dim not in store.plates]
            counts = count_codes(variable, store.plates)
            shares = counts / counts.sum(-1, keepdims=True)
            variables[f"{name}_code_share"] = ((*within, f"{name}_code"), shares)
    coords = _coords(store)
    losses, rows = np.asarray(getattr(result, "losses", ())), getattr(result, "history", ())
    if losses.size:
        variables["loss"], coords["step"] = (("step",), losses), np.arange(1, 1 + losses.size)
    for key in sorted({key for row in rows for key in row}):
        values = np.array([row.get(key, np.nan) for row in rows], np.float64)
        variables[f"log_{key}"] = (("log_row",), values)
    attributes = {"num_particles": report.num_particles, "khat_threshold": report.khat_threshold}
    return xarray.Dataset(variables, coords, attributes)


def _coords(store: Store) -> dict[str, np.ndarray]:
    """Rows of the full plate, where a plate took a subsample of them."""
    return {name: variable.values for name, variable in store["subsample"].items()}


def _dataset(variables: Mapping[str, Variable], store: Store, undrawn: bool) -> Any:
    import xarray

    arrays = {
        name: (dims, values) if undrawn else (("chain", "draw", *dims), values[None])
        for name, (dims, values, *_) in variables.items()
    }
    sizes = {
        dim: size
        for dims, values in arrays.values()
        for dim, size in zip(dims, values.shape, strict=True)
    }
    coords = {dim: np.arange(size) for dim, size in sizes.items()} | _coords(store)
    coords = {dim: values for dim, values in coords.items() if dim in sizes}
    return xarray.Dataset(arrays, coords)


def _assemble(datasets: Mapping[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces ArviZ 1 once a day
        import arviz
    attributes = {"inference_library": __name__.partition(".")[0]}
    datasets = {group: each.assign_attrs(attributes) for group, each in datasets.items()}
    if getattr(arviz, "__version__", "1").startswith("0."):
        return arviz.InferenceData(**datasets)
    import xarray

    return xarray.DataTree.from_dict(datasets)
