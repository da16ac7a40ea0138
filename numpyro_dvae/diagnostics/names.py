"""What sites and dims are called in ArviZ, and which names clash there.

NumPy alone, so this file is the same in both packages.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from numpyro_dvae.diagnostics.arrays import NamedArray

__all__ = ["Labels", "labels_of", "sizes_of_dims"]


class Labels(NamedTuple):
    """Which groups there are to be, and what their dims and coordinates are called."""

    groups: Collection[str]
    coords: Mapping[str, Any]  # dim -> its labels
    dims: Mapping[str, Sequence[str]]  # site -> names of its event dims

    def of_site(self, name: str, site: NamedArray) -> tuple[str, ...]:
        """Dims of a site, those of an event, where it has them, by the names that are given."""
        names, event = self.dims.get(name), [d for d in site.dims if d.startswith(f"{name}_dim_")]
        if names is None or not event:  # a log-likelihood has none
            return site.dims
        if len(names) != len(event):
            raise ValueError(
                f"`dims` must name the {len(event)} event dims of '{name}', {event}; got "
                f"{list(names)}. Plates have names of their own."
            )
        return (*site.dims[: len(site.dims) - len(event)], *names)

    def check(self, datasets: Mapping[str, Any]) -> None:
        """Raise if a name is of nothing."""
        sites = {name for each in datasets.values() for name in each}
        dims = {name for each in datasets.values() for name in each.sizes}
        for argument, names, known in (("dims", self.dims, sites), ("coords", self.coords, dims)):
            if unknown := sorted(set(names) - known):
                raise ValueError(f"`{argument}` has {unknown}; there are {sorted(known)}.")
        for name, axes in self.dims.items():
            shown = [set(each[name].dims) for each in datasets.values() if name in each]
            if not any(set(axes) <= dims for dims in shown):
                raise ValueError(
                    f"`dims` names event dims of '{name}', which has none; got {list(axes)}. "
                    "Plates have names of their own: leave it out."
                )

    def apply(self, dataset: Any) -> Any:
        """Label a group, and give it names that a netCDF file takes for no folders."""
        for dim, labels in self.coords.items():
            if dim in dataset.sizes:
                if len(labels) != dataset.sizes[dim]:
                    raise ValueError(
                        f"`coords` has {len(labels)} labels for '{dim}', which has "
                        f"{dataset.sizes[dim]}."
                    )
                dataset = dataset.assign_coords({dim: np.asarray(labels)})
        names = list(dict.fromkeys(str(name) for name in (*dataset.variables, *dataset.dims)))
        renamed = {name: name.replace("/", ".") for name in names if "/" in name}
        for name, other in renamed.items():
            if [*names, *renamed.values()].count(other) > 1:
                raise ValueError(
                    f"'{name}' is '{other}' in ArviZ, as files take a \"/\" for a folder, and "
                    "something else is called so: rename one of the two."
                )
        return dataset.rename(renamed)


def labels_of(groups: Any, coords: Any, dims: Any) -> Labels:
    """What was asked for, as it may be.

    Raises:
        ValueError: If one of it is no collection of names, or no mapping to lists.
    """
    if not _are_names(groups):
        raise ValueError(f'`groups` must be names, as in `("posterior",)`; got {groups!r}.')
    coords, dims = ({} if each is None else each for each in (coords, dims))
    for argument, each in (("coords", coords), ("dims", dims)):
        if not isinstance(each, Mapping):
            raise ValueError(f"`{argument}` must be a dict of lists, by name; got {each!r}.")
    for dim, labels in coords.items():
        if np.ndim(labels) != 1:
            raise ValueError(f"`coords` must have a list of labels for '{dim}'; got {labels!r}.")
    for name, axes in dims.items():
        if not _are_names(axes):
            raise ValueError(
                f"`dims` must have a list of names for '{name}', as `[\"pixel\"]`; got {axes!r}."
            )
    return Labels(groups, coords, dims)


def _are_names(given: Any) -> bool:
    is_list = isinstance(given, Collection) and not isinstance(given, str)
    return is_list and all(isinstance(each, str) for each in given)


def sizes_of_dims(group: str, variables: Mapping[str, tuple]) -> dict[str, int]:
    """Sizes of the dims of a group.

    Raises:
        ValueError: If two dims have one name, or a dim that of a variable.
    """
    sizes: dict[str, int] = {}
    for name, (dims, values, *_) in variables.items():
        for dim, size in zip(dims, np.shape(values), strict=True):
            if dims.count(dim) > 1 or dim in variables or sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"`{group}`: a dim of '{name}' is called '{dim}', as is something else there: "
                    "a site, another dim, or one that ArviZ has ('chain', 'draw'). Rename the "
                    f"plate or what `dims` calls '{dim}', or the site, or pass `groups` without "
                    f"'{group}'."
                )
    return sizes
