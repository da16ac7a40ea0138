"""What a message of NumPyro's tells beside its site, and a trace beside its sites.

A handler reads messages raw, by their keys, since it is handed them to change them; the files of
handlers are listed in tests/test_layers.py. All else takes what a run has left by its sites, which
`sites` reads, or by the rows and values that this file finds in it.
"""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from numpyro.distributions import constraints
from numpyro.primitives import Messenger, mutable

__all__ = [
    "Rows",
    "first_made",
    "is_among",
    "is_computed",
    "is_drawn",
    "is_mutable",
    "is_observed",
    "is_of_run",
    "is_subsample",
    "known_state",
    "mutable_values",
    "param_constraints",
    "param_values",
    "rows_of_plates",
    "with_values",
]


def is_among(message: Any, names: Container[str]) -> bool:
    """Whether a message is of one of these sites; a loop of JAX has no name."""
    return message.get("name") in names


def is_drawn(message: Any) -> bool:
    """Whether a message is of a latent that the program draws."""
    return message["type"] == "sample" and not message["is_observed"]


def is_observed(message: Any) -> bool:
    """Whether a message is of data."""
    return message["type"] == "sample" and message["is_observed"]


def is_computed(message: Any) -> bool:
    """Whether a message is of a deterministic site."""
    return message["type"] == "deterministic"


def is_subsample(message: Any) -> bool:
    """Whether a message is of the rows that a plate takes."""
    return message["type"] == "plate"


def is_mutable(message: Any) -> bool:
    """Whether a message is of state that a program changes."""
    return message["type"] == "mutable"


def is_of_run(message: Any) -> bool:
    """Whether a message concerns one run only; parameters, state and rows are the program's."""
    return message["type"] not in ("param", "mutable", "plate")


class Rows(NamedTuple):
    """The rows that a plate of a run has taken of the data."""

    indices: Any
    full_size: int  # of all rows

    @classmethod
    def of(cls, message: Any) -> "Rows":
        """Read a message of NumPyro's, of a plate."""
        return cls(message["value"], message["args"][0])

    @property
    def sizes(self) -> tuple[int, int]:
        """How many rows these are, of how many."""
        return len(self.indices), self.full_size

    @property
    def are_all(self) -> bool:
        """Whether the plate has taken all rows, however it may have ordered them."""
        return len(self.indices) == self.full_size


def rows_of_plates(trace: Mapping[str, Any]) -> dict[str, Rows]:
    """What the plates of a run have taken, by name."""
    return {name: Rows.of(m) for name, m in trace.items() if is_subsample(m)}


def param_values(trace: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a run, by name."""
    return {name: m["value"] for name, m in trace.items() if m["type"] == "param"}


def param_constraints(trace: Mapping[str, Any]) -> dict[str, Any]:
    """The constraint of each parameter of a run, by name."""
    params = {name: m["kwargs"] for name, m in trace.items() if m["type"] == "param"}
    return {name: options.get("constraint", constraints.real) for name, options in params.items()}


def mutable_values(trace: Mapping[str, Any]) -> dict[str, Any]:
    """The mutable state that a run has left, by name."""
    return {name: m["value"] for name, m in trace.items() if m["type"] == "mutable"}


class _Known(Messenger):
    """Marks state whose first value its owner has."""

    def process_message(self, msg: Any) -> None:
        if is_mutable(msg):
            msg["infer"] = {"is_known": True}


def known_state(name: str, value: Any) -> Any:
    """Declare mutable state whose first value, if any, is its owner's, and not left to chance."""
    with _Known():
        return mutable(name, value)


def first_made(trace: Mapping[str, Any]) -> set[str]:
    """Names of the mutable state whose first value a run makes, as a network's."""
    states = {name: m for name, m in trace.items() if is_mutable(m)}
    return {name for name, m in states.items() if "is_known" not in m.get("infer", {})}


def with_values(trace: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A run with other values at some of its sites, to be replayed."""
    return {n: {**m, "value": values[n]} if n in values else m for n, m in trace.items()}
