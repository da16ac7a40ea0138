"""Whether what a program computes from a relaxed draw keeps its gradient.

A program that compares a draw, rounds it or takes it as an index goes on with numbers that have no
gradient: its value is right, and nothing says that the draw learns nothing of what these lead to.
So it is run once more, at the draws that it has had, and the provenance of each number says which
of them it comes from, and by which operation the gradient of one was lost [1].

Some operations lose nothing that would be missed: a comparison that chooses between what has the
gradient (``where(h > 0, h, a * h)``, ``h * (h > 0)``), or looks for NaN and infinities; what is
detached by the program's own words. What it computes without gradients, as within an
`autograd.Function`, is its own affair, too.

References:
    [1] Wingate, Goodman, Stuhlmüller & Siskind. Nonstandard interpretations of probabilistic
        programs for efficient inference. NeurIPS, 2011.
"""

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from pyro_dvae.programs.sites import Site, sample_sites
from pyro_dvae.programs.structure.looking import only_looking, raise_slip
from pyro_dvae.programs.structure.tracking import Exits

__all__ = ["LostSlope", "lost_slope"]

_FLAT = set("bernoulli ceil fix floor floor_divide heaviside round sgn sign trunc".split())
_GATES = set("masked_fill mul multiply rmul imul setitem where".split())
_OF_FIRST = set("expand_as reshape_as to type_as view_as".split())  # the rest says how alone
_NO_CODES = set("isfinite isinf isnan isneginf isposinf isreal".split())


class LostSlope(NamedTuple):
    """Of which draw, by which operation, and on the way to which log-density."""

    name: str
    by: str
    to: str


def lost_slope(
    run: Callable[[], Any], draws: Mapping[str, Tensor], relaxed: Collection[str]
) -> LostSlope | None:
    """The first gradient of a relaxed draw that a program loses; None if there is none.

    Args:
        run: Runs the program.
        draws: What it has drawn, by site, or was given, its parameters among these.
        relaxed: The sites whose draws have a gradient.
    """

    def look() -> LostSlope | None:
        tracer, exits, marks = poutine.trace(), Exits(), _Marks(draws, relaxed)
        with torch.enable_grad(), pyro.validation_enabled(False), poutine.block():
            with tracer, marks, exits, _Followed(marks.names):
                run()
            sites = sample_sites(tracer.trace).values()
            found = {site.name: get_provenance(_term(site)) for site in sites}
        return _first(found, exits.names)

    try:
        return only_looking(look)
    except Exception as error:  # what a program says of tensors that are followed
        raise_slip(error)
        return None


def _term(site: Site) -> Any:
    return site.log_prob(), site.scale, site.mask


def _first(found: Mapping[str, frozenset], asked: Collection[Any]) -> LostSlope | None:
    for to, marks in found.items():
        for name, by in sorted(mark for mark in marks if isinstance(mark, tuple) and mark[1]):
            if (name, "") not in marks:
                return LostSlope(name, by, f"the log-density of site '{to}'")
    carried = {m for to, marks in found.items() for m in marks if isinstance(m, str) and m != to}
    names = {mark if isinstance(mark, str) else mark[0] for mark in asked}
    for name in sorted(names - carried):
        return LostSlope(name, "bool, int or float", "what Python does")
    return None


class _Marks(Messenger):
    """Gives sites their draws, and marks those that are relaxed by their names."""

    def __init__(self, draws: Mapping[str, Tensor], relaxed: Collection[str]) -> None:
        super().__init__()
        self.draws = {n: v.detach() if n in relaxed else v for n, v in draws.items()}
        self.relaxed, self.names = relaxed, dict[int, str]()

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.draws or msg["is_observed"]:
            return
        value = self.draws[name]
        if name in self.relaxed:
            value = track_provenance(value, frozenset({name}))
            self.names[id(self.draws[name])] = name
        msg["value"], msg["done"] = value, True

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.draws:
            msg["value"], msg["done"] = self.draws[msg["name"]], True


class _Followed(TorchFunctionMode):
    """Says by which operation the mark of a draw, its name, becomes that of a lost gradient.

    Args:
        names: Of the draws themselves, by their ids: what they are detached to is marked
            ``(name, "")``, since a program that does that sees to their gradient.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.filled: dict[int, tuple[Tensor, frozenset]] = {}  # in place, by their ids

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "").strip("_")
        if name == "broadcast_tensors":
            given = zip(func(*map(detach_provenance, args)), args, strict=True)
            return tuple(track_provenance(one, get_provenance(arg)) for one, arg in given)
        if name in _OF_FIRST and args:
            args = (args[0], *map(detach_provenance, args[1:]))
        args, kwargs = tree_map_only(Tensor, self._filled, (args, kwargs))
        found = func(*args, **kwargs)
        if not torch.is_grad_enabled() or not (marks := get_provenance((args, kwargs))):
            return found
        if func.__name__ in ("__setitem__", f"{name}_"):
            target = detach_provenance(args[0])
            self.filled[id(target)] = target, _marks_by(name, marks, True)
            return found
        if name == "detach" or func == Tensor.data.__get__:  # type: ignore[attr-defined]
            own = self.names.get(id(detach_provenance(args[0])))
            return track_provenance(detach_provenance(found), frozenset({(own, "")} if own else ()))
        if _says_nothing(name, args):
            return detach_provenance(found)
        return tree_map_only(Tensor, partial(_marked, name), found)

    def _filled(self, value: Tensor) -> Tensor:
        _, marks = self.filled.get(id(detach_provenance(value)), (None, frozenset()))
        return track_provenance(value, marks)


def _says_nothing(name: str, args: tuple) -> bool:
    """Whether a result holds none of the numbers that it is computed from."""
    if name.endswith("_like") or name.startswith("new_") or name in _NO_CODES:
        return True
    return any(isinstance(value, float) and math.isinf(value) for value in args) and name in "eqne"


def _marked(by: str, value: Tensor) -> Tensor:
    has_slope = value.is_floating_point() or value.is_complex()
    marks = _marks_by(by, get_provenance(value), has_slope)
    return track_provenance(detach_provenance(value), marks)


def _marks_by(by: str, marks: frozenset, has_slope: bool) -> frozenset:
    """Of the result of an operation, from those of what it is computed from."""
    names = frozenset(mark for mark in marks if isinstance(mark, str))
    if by in _FLAT or not has_slope:
        return (marks - names) | {(name, by) for name in names}
    if by in _GATES:
        return frozenset(m for m in marks if isinstance(m, str) or m[0] not in names or not m[1])
    return marks
