"""What a message of Pyro's tells beside its site, and a trace beside its sites.

A handler reads messages raw, by their keys, since it is handed them to change them; the files of
handlers are listed in tests/test_layers.py. All else takes what a run has left by its sites, which
`sites` reads, or by the rows and values that this file finds in it.
"""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from pyro import poutine
from pyro.poutine.util import site_is_subsample

__all__ = [
    "Rows",
    "is_among",
    "is_computed",
    "is_drawn",
    "is_observed",
    "is_of_store",
    "is_subsample",
    "param_values",
    "rows_of_plates",
    "with_values",
]


def is_among(message: Any, names: Container[str]) -> bool:
    """Whether a message is of one of these sites."""
    return message["name"] in names


def is_drawn(message: Any) -> bool:
    """Whether a message is of a latent that the program draws."""
    return not message["is_observed"] and not site_is_subsample(message)


def is_observed(message: Any) -> bool:
    """Whether a message is of data; Pyro has what a program computes among them."""
    return message["type"] == "sample" and message["is_observed"]


def is_computed(message: Any) -> bool:
    """Whether a message is of a deterministic site."""
    return bool((message["infer"] or {}).get("_deterministic"))


def is_subsample(message: Any) -> bool:
    """Whether a message is of the rows that a plate takes."""
    return message["type"] == "sample" and site_is_subsample(message)


class Rows(NamedTuple):
    """The rows that a plate of a run has taken of the data."""

    indices: Any
    full_size: int  # of all rows

    @classmethod
    def of(cls, message: Any) -> "Rows":
        """Read a message of Pyro's, of a plate."""
        return cls(message["value"], message["fn"].size)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many rows these are, of how many."""
        return len(self.indices), self.full_size

    @property
    def are_all(self) -> bool:
        """Whether the plate has taken all rows, however it may have ordered them."""
        return len(self.indices) == self.full_size


def rows_of_plates(trace: poutine.Trace) -> dict[str, Rows]:
    """What the plates that may subsample have taken in a run, by name."""
    messages: dict[str, Any] = dict(trace.nodes)
    return {name: Rows.of(m) for name, m in messages.items() if is_subsample(m)}


def param_values(trace: poutine.Trace) -> dict[str, Any]:
    """The parameters of a run, by name."""
    messages: dict[str, Any] = dict(trace.nodes)
    return {name: m["value"] for name, m in messages.items() if is_of_store(m)}


def is_of_store(message: Mapping[str, Any]) -> bool:
    """Whether it is of a parameter, and no handler has put a value in its place."""
    return message["type"] == "param" and hasattr(message["value"], "unconstrained")


def with_values(trace: poutine.Trace, values: Mapping[str, Any]) -> poutine.Trace:
    """A run with other values at some of its sites, to be replayed."""
    changed, messages = poutine.Trace(), dict(trace.nodes)
    for name, message in messages.items():
        value = {"value": values[name]} if name in values else {}
        changed.nodes[name] = {**message, **value}  # type: ignore[typeddict-item]
    return changed
