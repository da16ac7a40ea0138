"""Which argument of a program holds what a site observes.

An argument is the data of a site if the site observes what is put in its place: values that happen
to be equal say nothing. Here is which arguments are tried, and by which names they are known. NumPy
alone, so this file is the same in both packages.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyro_dvae.diagnostics.arrays import NamedArray
from pyro_dvae.diagnostics.trees import TreePath, arrays_in

__all__ = [
    "DataNames",
    "Place",
    "check_data_range",
    "check_evaluation",
    "check_places",
    "find_places",
    "named_leaves",
    "names_for",
    "refuse_places",
    "refuse_twin",
    "twins",
]

Leaves = Mapping[str, tuple[TreePath, np.ndarray]]  # arrays by name, from `named_leaves`
DataNames = str | Sequence[str] | Mapping[str, str | Sequence[str]] | None  # as a user gives them


class Place(NamedTuple):
    """Where the observations of a site are in the arguments."""

    path: TreePath
    name: str  # as the user knows the argument
    axis: int | None = None  # of the argument's rows, if the site observes a subsample of them
    plate: str = ""  # which draws it


def named_leaves(program: Callable, args: tuple) -> Leaves:
    """The arrays among the arguments, by the names that the program has for them."""
    known = getattr(program, "forward", None) or program  # of a module
    try:
        parameters = [
            (p.name, p.kind is p.VAR_POSITIONAL)
            for p in inspect.signature(known).parameters.values()
        ]
    except (TypeError, ValueError):
        parameters = []
    found = {}
    for i, argument in enumerate(args):
        name = f"argument_{i}"
        if i < len(parameters) and not any(is_rest for _, is_rest in parameters[: i + 1]):
            name = parameters[i][0]
        for path, leaf in arrays_in(argument):
            array = np.asarray(leaf.detach().cpu() if hasattr(leaf, "detach") else leaf)
            found[name + "".join(f"[{key!r}]" for key in path)] = (i, *path), array
    return found


def names_for(site: str, data: DataNames, sites: Sequence[str]) -> Sequence[str] | None:
    """Names that the user gave for the data of a site; None if there are none.

    Raises:
        ValueError: If they are given for a site that observes nothing.
    """
    if isinstance(data, Mapping):
        if unknown := sorted(set(data) - set(sites)):
            raise ValueError(f"`data` names sites {unknown}, but the model observes {list(sites)}.")
        data = data.get(site)
    names = [data] if isinstance(data, str) else data
    if not (names is None or (isinstance(names, Collection) and _all_are(str, names))):
        raise ValueError(
            f"`data` must be the name of an argument, a sequence of names, or a dict of these by "
            f"site; got {data!r}."
        )
    return None if names is None else list(names)


def _all_are(kind: type, values: Collection[Any]) -> bool:
    return all(isinstance(value, kind) for value in values)


def find_places(
    site: str,
    observed: NamedArray,
    leaves: Leaves,
    subsamples: Mapping[str, NamedArray],
    wanted: Sequence[str] | None,
) -> list[Place]:
    """Arguments that may be what a site observes, by their shapes.

    Args:
        site: Its name.
        observed: What it observes.
        leaves: The arrays among the arguments.
        subsamples: Rows of the full plate that a plate drew.
        wanted: Names that the user gave; None to try all.

    Raises:
        ValueError: If a name is of no array.
    """
    tried = list(leaves) if wanted is None else _spelled_out(site, wanted, leaves)
    places = {each: _place(each, observed, *leaves[each], subsamples) for each in tried}
    found = [place for place in places.values() if place is not None]
    for name in wanted or ():
        if found and places.get(name, found) is None:
            raise ValueError(
                f"`data` names {name!r}, of shape {np.shape(leaves[name][1])}, among the arguments "
                f"that hold the data of site '{site}', of shape {np.shape(observed.values)}: leave "
                "it out."
            )
    return found


def check_places(
    site: str,
    places: Sequence[Place],
    observing: Sequence[Place],
    leaves: Leaves,
    wanted: Sequence[str] | None,
    sites: Sequence[str] = (),
    faults: Sequence[str] = (),
) -> list[Place]:
    """Where simulated data of a site go: the argument that it observes, or those of these names.

    Args:
        site: Its name.
        places: Arguments that may hold its data.
        observing: Those of them that it observes.
        leaves: The arrays among the arguments.
        wanted: Names that the user gave; None if all were tried.
        sites: All that observe something.
        faults: Errors that simulated data made in the places that were tried.

    Raises:
        ValueError: If a site observes none of the arguments, or it is not clear which.
    """
    among = sorted(leaves) if wanted is None else list(wanted)
    if not observing and faults:
        raise ValueError(
            f"site '{site}' observes none of the arguments that take data simulated from the model "
            f"(tried: {among}). Simulated data, and not those given, make this error: {faults[0]} "
            "Write model and guide for all data that the model can make, and let the model observe "
            "an argument as it is."
        )
    if not observing:
        raise ValueError(
            f"site '{site}' observes none of the arguments as it is (tried: {among}), so that "
            "simulated data cannot take its place. Give the model the observations as an argument, "
            "and let it compute with that alone."
        )
    if wanted is not None:
        return list(places)
    if len(observing) > 1:
        names = [place.name for place in observing]
        raise ValueError(
            f"site '{site}' observes what is put in the place of any of {names}. Say which holds "
            f"the data: {_said_of(site, names[0], sites)}."
        )
    return list(observing)


def check_evaluation(num_particles: int, data_range: float | None) -> None:
    """Raise unless there is a draw, and the range is positive if it is given."""
    if num_particles < 1:
        raise ValueError(f"`num_particles` must be at least 1; got {num_particles}.")
    check_data_range(data_range)


def check_data_range(data_range: float | None) -> None:
    """Raise unless a range is positive, if it is given."""
    if data_range is not None and not data_range > 0:
        raise ValueError(f"`data_range` must be positive; got {data_range}.")


def twins(place: Place, leaves: Leaves) -> list[Place]:
    """Arguments that hold the very numbers of another, as its copy does, or zeros as shapes."""
    values = np.ravel(leaves[place.name][1])
    return [
        place._replace(path=path, name=name)
        for name, (path, leaf) in leaves.items()
        if name != place.name and np.array_equal(np.ravel(leaf), values, equal_nan=_has_nan(leaf))
    ]


def refuse_twin(site: str, place: Place, twin: Place, sites: Sequence[str]) -> None:
    """Raise, as it is not clear whether an argument that the guide reads is the data again."""
    both, one = (place.name, twin.name), place.name
    raise ValueError(
        f"site '{site}' observes the argument {place.name!r}; the guide reads {twin.name!r}, which "
        f"holds the same numbers. Say whether it is the data again, {_said_of(site, both, sites)}, "
        f"or not, {_said_of(site, one, sites)}."
    )


def refuse_places(site: str, places: Mapping[str, Sequence[Place]]) -> None:
    """Raise, as a site does not observe the simulated data that were put in its places."""
    own = {place.path for place in places[site]}
    for other, several in places.items():
        for place in several:
            if other != site and place.path in own:
                raise ValueError(
                    f"sites '{site}' and '{other}' observe the same argument {place.name!r}, which "
                    "cannot hold what the model simulates of both. Give the model an argument for "
                    "each of them, with the same data."
                )
    check_places(site, [], [], {place.name: ((), np.empty(0)) for place in places[site]}, None)


def _said_of(site: str, names: str | tuple[str, ...], sites: Sequence[str]) -> str:
    """How the data of a site are named, beside those of other sites."""
    return f"data={names!r}" if len(sites) < 2 else f"data={{{site!r}: {names!r}}}"


def _has_nan(leaf: np.ndarray) -> bool:
    return leaf.dtype.kind == "f" and bool(np.isnan(leaf).any())


def _spelled_out(site: str, wanted: Sequence[str], leaves: Mapping[str, Any]) -> list[str]:
    """Names of arrays, where the name of an argument stands for all in it."""
    found: list[str] = []
    for name in wanted:
        below = [leaf for leaf in leaves if leaf == name or leaf.startswith(f"{name}[")]
        if not below:
            raise ValueError(
                f"`data` must name arguments that hold arrays, {sorted(leaves)}; got {name!r} for "
                f"site '{site}'."
            )
        found += below
    return found


def _place(
    name: str,
    observed: NamedArray,
    path: TreePath,
    leaf: np.ndarray,
    subsamples: Mapping[str, NamedArray],
) -> Place | None:
    shape = np.shape(observed.values)
    if leaf.size == observed.values.size:
        return Place(path, name)
    for axis, plate in enumerate(observed.dims):
        if plate in subsamples and leaf.ndim == len(shape):
            if leaf.shape[:axis] == shape[:axis] and leaf.shape[axis + 1 :] == shape[axis + 1 :]:
                if leaf.shape[axis] > np.max(subsamples[plate].values):
                    return Place(path, name, axis, plate)
    return None
