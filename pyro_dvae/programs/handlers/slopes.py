"""Whether what a program computes from a relaxed draw keeps its gradient.

A program that compares a draw, rounds it or takes it as an index goes on with numbers that have no
gradient: its value is right, and nothing says that the draw learns nothing of what these lead to.
So it is run once more, at the draws that it has had. The provenance of each number says which of
them it comes from, and by which operation the gradient of one was lost [1]; what autograd has noted
of a log-density says of which it has a gradient. One that comes from a draw and has no gradient of
it, by no path at all, is lost. What is detached, or computed without gradients, comes from no draw:
so the program says.

What Python asks for, by `item` or `if`, is followed no further: a draw that is asked for is
changed, and lost if another log-density changes with it that has no gradient of it, where what is
detached stays.

References:
    [1] Wingate, Goodman, Stuhlmüller & Siskind. Nonstandard interpretations of probabilistic
        programs for efficient inference. NeurIPS, 2011.
"""

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from pyro_dvae.programs.sites import Site, sample_sites
from pyro_dvae.programs.structure.looking import only_looking, raise_slip, same_but_rounding
from pyro_dvae.programs.structure.tracking import Exits

__all__ = ["LostSlope", "lost_slope"]

_FLAT = set("bernoulli binomial ceil fix floor floor_divide floordiv heaviside normal".split())
_FLAT |= set("poisson rfloordiv round sgn sign trunc".split())
_FLAT_OF_SECOND = {"copysign"}
_OF_FIRST = set("expand_as reshape_as to type_as view_as".split())  # the rest says how alone
_OVERWRITE = set("copy fill zero".split())
_EACH_OF_ITS_OWN = set("broadcast_tensors meshgrid".split())
_ASK = set("allclose argwhere equal masked_select nonzero unique unique_consecutive".split())
_NO_CODES = set("isfinite isinf isnan isneginf isposinf isreal".split())


class _Mark(NamedTuple):
    """That a number comes from a relaxed draw: with its gradient, or not, by an operation.

    The provenance of a number can hold other marks, of the loss that runs the program.
    """

    name: str
    by: str | None = None  # the operation that lost it; "" if the program has detached it


class LostSlope(NamedTuple):
    """A gradient that is lost: of which draw, by which operation, and to which log-density."""

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
        relaxed: The sites whose draws are relaxed; of those that have a gradient, it can be lost.
    """
    names = {name for name in relaxed if name in draws and draws[name].requires_grad}

    silent: list[Tensor] = []  # in the first run, which others have again

    def look(others: Mapping[str, Tensor] = MappingProxyType({})) -> _Seen:
        tracer, exits = poutine.trace(), Exits()
        with torch.enable_grad(), pyro.validation_enabled(False), poutine.block():
            given = _Given({**draws, **others}, names)
            followed = _Followed(list(silent) if others else None)
            with tracer, given, exits, followed:
                run()
            sites = sample_sites(tracer.trace)
            with followed:
                terms = {name: _Term.of(site, given.starts) for name, site in sites.items()}
        silent.extend(followed.silent)
        return _Seen(sites, terms, _names(exits.names | followed.asked))

    try:
        return _first(only_looking(look), lambda others: only_looking(partial(look, others)))
    except Exception as error:  # what a program says of tensors that are followed
        raise_slip(error)
        return None


class _Term(NamedTuple):
    """A log-density, the marks of the draws that it comes from, and those it has a gradient of."""

    value: Tensor
    marks: frozenset[_Mark]
    slopes: frozenset[str]

    @classmethod
    def of(cls, site: Site, starts: Mapping[Any, str]) -> "_Term":
        term = site.log_prob(), site.scale, site.mask
        return cls(detach_provenance(site.term()), _marks(term), _slopes(term, starts))


class _Seen(NamedTuple):
    """What a run shows: its sites, their log-densities, and the draws that Python has asked for."""

    sites: Mapping[str, Site]
    terms: Mapping[str, _Term]
    asked: frozenset[str]


def _slopes(values: tuple, starts: Mapping[Any, str]) -> frozenset[str]:
    """The draws that autograd's graph leads to, by no operation whose gradient is 0."""
    left = [value.grad_fn for value in values if isinstance(value, Tensor)]
    seen, found = set[Any](), set[str]()
    while left:
        node = left.pop()
        if node in starts:
            found.add(starts[node])
        elif node is not None and node not in seen and not _is_flat(node):
            seen.add(node)
            before = [one for one, _ in node.next_functions]
            left += before[:1] if _operation(node) in _FLAT_OF_SECOND else before
    return frozenset(found)


def _is_flat(node: Any) -> bool:
    if isinstance(node, BackwardCFunction):  # a derivative of the program's own
        return False
    rounds = getattr(node, "_saved_rounding_mode", None) is not None
    return rounds or "NotImplemented" in node.name() or _operation(node) in _FLAT


def _operation(node: Any) -> str:
    return node.name().partition("Backward")[0].lower()


def _marks(values: Any) -> frozenset[_Mark]:
    return frozenset(mark for mark in get_provenance(values) if isinstance(mark, _Mark))


def _names(marks: Collection[Any]) -> frozenset[str]:
    """Of draws, without those that the program has detached."""
    return frozenset(m.name for m in marks if isinstance(m, _Mark) and m.by != "")


def _first(seen: _Seen, again: Callable[[Mapping[str, Tensor]], _Seen]) -> LostSlope | None:
    for to, term in seen.terms.items():
        for name, by in sorted((mark.name, mark.by) for mark in term.marks if mark.by):
            if name not in term.slopes:
                return LostSlope(name, by, f"the log-density of site '{to}'")
    for name in sorted(seen.asked):
        site = seen.sites[name]
        without = {to: one for to, one in seen.terms.items() if name not in one.slopes}
        for other in _others(detach_provenance(site.value), bool(site.base.event_shape)):
            terms = again({name: other}).terms
            if any(not _same(one, terms.get(to)) for to, one in without.items() if to != name):
                return LostSlope(name, "bool, int or float", "what Python does")
    return None


def _others(value: Tensor, is_vector: bool) -> tuple[Tensor, ...]:
    """Values in which each entry is another, and in which all are the same."""
    if not is_vector:
        return 1 - value, torch.zeros_like(value), torch.ones_like(value)
    first = torch.zeros_like(value).index_fill(-1, torch.tensor(0, device=value.device), 1)
    return value.roll(1, -1), first, first.roll(-1, -1)


def _same(one: _Term, other: _Term | None) -> bool:
    is_like = other is not None and one.value.shape == other.value.shape
    return other is not None and is_like and same_but_rounding(one.value, other.value)


class _Given(Messenger):
    """Gives sites their draws, and marks those that are relaxed by their names.

    `starts` are the nodes of autograd's graph that what is computed from these leads back to.
    """

    def __init__(self, draws: Mapping[str, Tensor], relaxed: Collection[str]) -> None:
        super().__init__()
        self.draws = {n: v.clone() if n in relaxed else v for n, v in draws.items()}
        self.relaxed = relaxed
        self.starts = {self.draws[name].grad_fn: name for name in relaxed}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.draws or msg["is_observed"]:
            return
        value = self.draws[name]
        marks = frozenset({_Mark(name)} if name in self.relaxed else ())
        msg["value"], msg["done"] = track_provenance(value, marks), True

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.draws:
            msg["value"], msg["done"] = self.draws[msg["name"]], True


class _Followed(TorchFunctionMode):
    """Says by which operation the mark of a draw, its name, becomes that of a lost gradient.

    Args:
        before: Of a run at other draws, what the first has found without gradient, as was meant.
    """

    def __init__(self, before: list[Tensor] | None = None) -> None:
        super().__init__()
        self.silent: list[Tensor] = []
        self.before = before
        self.filled: dict[int, tuple[Tensor, frozenset]] = {}  # in place, by their memory
        self.asked: set[_Mark] = set()  # by how many there are, or whether all are

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, own = kwargs or {}, getattr(func, "__name__", "")
        name = "floor_divide" if kwargs.get("rounding_mode") else own.strip("_")
        if name in _EACH_OF_ITS_OWN:
            given = zip(func(*map(detach_provenance, args), **kwargs), args, strict=True)
            return tuple(track_provenance(one, get_provenance(arg)) for one, arg in given)
        if name in _OF_FIRST and args:
            args = (args[0], *map(detach_provenance, args[1:]))
        args, kwargs = tree_map_only(Tensor, self._filled, (args, kwargs))
        if name in _FLAT_OF_SECOND:
            args = (args[0], *tree_map_only(Tensor, partial(_marked, name, False), args[1:]))
        found = func(*args, **kwargs)
        if not (marks := _marks((args, kwargs))):
            return found
        if not torch.is_grad_enabled():
            return tree_map_only(Tensor, self._as_before, found)
        if name in _ASK or (own == "__getitem__" and _is_mask(args[1])):
            self.asked |= marks
        in_place = own == "__setitem__" or (own.endswith("_") and not own.endswith("__"))
        if in_place or isinstance(kwargs.get("out"), Tensor):
            self._fill(kwargs["out"] if "out" in kwargs else args[0], name, args)
            return found
        if name == "detach" or func == Tensor.data.__get__:  # type: ignore[attr-defined]
            meant = frozenset(_Mark(mark.name, "") for mark in marks)
            copied = self._as_before(found).clone()  # of memory that has marks, perhaps
            return track_provenance(copied, meant)
        if _says_nothing(name, args):
            return detach_provenance(found)
        return tree_map_only(Tensor, partial(_marked, name, True), found)

    def _as_before(self, value: Tensor) -> Tensor:
        """What has no gradient, as was meant: in another run, what it was in the first."""
        value = detach_provenance(value)
        if self.before is None:
            self.silent.append(value.clone())
            return value
        before = self.before.pop(0) if self.before else value
        return before if before.shape == value.shape and before.dtype == value.dtype else value

    def _fill(self, target: Tensor, by: str, args: tuple) -> None:
        """Mark all of the memory that an operation has written to."""
        target = detach_provenance(target)
        is_whole = target.nbytes == target.untyped_storage().nbytes()
        read = args[1:] if is_whole and by in _OVERWRITE else args
        self.filled[_memory(target)] = target, _marks_by(by, _marks(read), target.requires_grad)

    def _filled(self, value: Tensor) -> Tensor:
        bare = detach_provenance(value)
        _, marks = self.filled.get(_memory(bare), (None, None))
        return value if marks is None else track_provenance(bare, marks)


def _memory(value: Tensor) -> int:
    try:
        return value.untyped_storage().data_ptr() or id(value)
    except (NotImplementedError, RuntimeError):  # of a transform, as `torch.vmap`
        return id(value)


def _is_mask(index: Any) -> bool:
    each = index if isinstance(index, tuple) else (index,)
    return any(isinstance(one, Tensor) and one.dtype == torch.bool for one in each)


def _says_nothing(name: str, args: tuple) -> bool:
    """Whether a result holds none of the numbers that it is computed from."""
    if name.endswith("_like") or name.startswith("new_") or name in _NO_CODES:
        return True
    compares = name in ("eq", "ne")
    return compares and any(isinstance(each, float) and math.isinf(each) for each in args)


def _marked(by: str, has_slope: bool, value: Tensor) -> Tensor:
    marks = _marks_by(by, _marks(value), has_slope and value.requires_grad)
    return track_provenance(detach_provenance(value), marks)


def _marks_by(by: str, marks: frozenset[_Mark], has_slope: bool) -> frozenset[_Mark]:
    """Of the result of an operation, from those of what it is computed from."""
    if has_slope and by not in _FLAT:
        return marks
    return frozenset(_Mark(m.name, by) if m.by is None else m for m in marks)
