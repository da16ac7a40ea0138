"""Whether what a program computes from a relaxed draw keeps its gradient.

A program that compares a draw, rounds it or takes it as an index goes on with numbers that have no
gradient: its value is right, and nothing says that the draw learns nothing of what these lead to.
So it is traced once more, at the draws that it has had. Its operations say of each number which of
them it comes from, by which operation the gradient of one was lost, and of which it has a gradient.
What a log-density is computed from, and has no gradient of, by no path at all, is lost. What is
behind `stop_gradient` comes from no draw: so the program says. A function with a derivative of its
own, by `jax.custom_jvp` or `jax.custom_vjp`, is its own affair, too.

What Python asks for, by `if`, cannot be traced: such a program is run at its numbers, operation by
operation. Its draws stay, but Python is shown what another value of a draw leads to, and a draw is
lost if a log-density changes with that which has no gradient of it.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Trace, Tracer
from jax.extend.core import set_current_trace, take_current_trace
from jaxtyping import Array
from numpyro.handlers import trace
from numpyro.primitives import Messenger

from numpyro_dvae.programs.messages import is_among, is_computed
from numpyro_dvae.programs.sites import sample_sites

__all__ = ["LostSlope", "lost_slope"]

_FLAT = {"ceil", "floor", "heaviside", "round", "sign"}
_HEAVISIDE = inspect.unwrap(jnp.heaviside).__code__.co_filename
_OWN = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")

# Of a draw: what has its gradient, its name; what has lost it by some path, its name and operation.
_Marks = frozenset
_NONE: _Marks = frozenset()


class LostSlope(NamedTuple):
    """A gradient that is lost: of which draw, by which operation, and to which log-density."""

    name: str
    by: str
    to: str


def lost_slope(
    run: Callable[[], Any], draws: Mapping[str, Any], relaxed: Collection[str]
) -> LostSlope | None:
    """The first gradient of a relaxed draw that a program loses; None if there is none.

    Args:
        run: Runs the program.
        draws: What it has drawn, by site, or was given, its parameters and state among these.
        relaxed: The sites whose draws have a gradient.
    """
    names = sorted(name for name in relaxed if name in draws)
    values, given = [draws[name] for name in names], [frozenset({name}) for name in names]
    read = _Read(run, draws, names)
    try:
        try:
            marks = read.by_site(_through(jax.make_jaxpr(read)(values).jaxpr, given))
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
            return _lost_in_python(read, dict(zip(names, values, strict=True)))
    except Exception:  # what a program says of another run
        return None
    return _first(marks)


def _first(marks: Mapping[str, Sequence[_Marks]]) -> LostSlope | None:
    for to, each in marks.items():
        joined = _NONE.union(*each)
        for name, by in sorted(mark for mark in joined if isinstance(mark, tuple)):
            if name not in joined:
                return LostSlope(name, by, f"the log-density of site '{to}'")
    return None


class _Read:
    """What the log-densities of a program are computed from, at draws: arrays, site by site."""

    def __init__(self, run: Callable, draws: Mapping[str, Any], names: Sequence[str]) -> None:
        self.run, self.draws, self.names = run, draws, names
        self.counts: dict[str, int] = {}  # of arrays, in the last run
        self.vectors: set[str] = set()  # sites whose draws are over codes

    def __call__(self, values: Sequence[Array]) -> list[Array]:
        again = _Again({**self.draws, **dict(zip(self.names, values, strict=True))})
        with again, trace() as messages:
            self.run()
        found: list[Array] = []
        self.counts = {}
        for site in sample_sites(messages).values():
            leaves = site.log_prob(), site.scale
            arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
            self.counts[site.name] = len(arrays)
            found += arrays
            self.vectors |= {site.name} if site.base.event_shape else set()
        return found

    def by_site(self, found: Sequence[Any]) -> dict[str, list[Any]]:
        """What belongs to the arrays of each site."""
        left = iter(found)
        return {name: [next(left) for _ in range(count)] for name, count in self.counts.items()}


def _lost_in_python(read: _Read, draws: Mapping[str, Array]) -> LostSlope | None:
    before, marks = _at_numbers(read, draws, draws)
    if lost := _first(marks):
        return lost
    for name, value in draws.items():
        without = [to for to, each in marks.items() if name not in _NONE.union(*each)]
        for other in _others(value, name in read.vectors):
            after, _ = _at_numbers(read, draws, {**draws, name: other})
            if any(not _same(before[to], after.get(to)) for to in without):
                return LostSlope(name, "bool, int or float", "what Python does")
    return None


def _others(value: Array, is_vector: bool) -> tuple[Array, ...]:
    """Values in which each entry is another, and in which all are the same."""
    if not is_vector:
        return 1 - value, jnp.zeros_like(value), jnp.ones_like(value)
    first = jnp.zeros_like(value).at[..., 0].set(1)
    return jnp.roll(value, 1, -1), first, jnp.roll(first, -1, -1)


def _same(some: list[Array], others: list[Array] | None) -> bool:
    if others is None or len(some) != len(others):
        return False
    pairs = list(zip(some, others, strict=True))
    return all(x.shape == y.shape and jnp.allclose(x, y, equal_nan=True) for x, y in pairs)


class _Again(Messenger):
    """Gives statements the values that they have had, and keeps them from whatever is around."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.values = values

    def process_message(self, msg: Any) -> None:
        """Set the value, or a key."""
        msg["stop"] = True
        options = msg.get("kwargs", {})
        if "rng_key" in options and options["rng_key"] is None:
            options["rng_key"] = jax.random.key(0)
        is_known = msg.get("is_observed") or is_computed(msg)
        if is_among(msg, self.values) and not is_known:
            value = self.values[msg["name"]]
            msg["value"] = dict(value) if isinstance(value, dict) else value


# ------------------------------------------------------------------------------------- at numbers


def _at_numbers(
    read: _Read, draws: Mapping[str, Array], seen: Mapping[str, Array]
) -> tuple[dict[str, list[Array]], dict[str, list[_Marks]]]:
    """What is read at draws, where Python sees others in their place; and its marks."""
    with take_current_trace() as parent:
        trace = _AtNumbers(parent)
        numbers = [_Number(trace, v, seen[n], frozenset({n})) for n, v in draws.items()]
        with set_current_trace(trace):
            found = [trace.parts(each) for each in read(numbers)]
    return read.by_site([value for value, _, _ in found]), read.by_site([m for _, _, m in found])


class _Number(Tracer):
    """A number, with what Python sees in its place, and its marks."""

    __slots__ = ["marks", "seen", "value"]

    def __init__(self, trace: Trace, value: Array, seen: Array, marks: _Marks) -> None:
        super().__init__(trace, jax.typeof(value))
        self.value, self.seen, self.marks = value, seen, marks

    def to_concrete_value(self) -> Any:
        """What Python asks for, in most of its ways."""
        return self.seen.to_concrete_value() if isinstance(self.seen, Tracer) else self.seen

    def __float__(self) -> float:
        return float(self.seen)

    def __complex__(self) -> complex:
        return complex(self.seen)

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        return np.asarray(self.seen, *args, **options)

    def item(self, *args: Any) -> Any:
        """One number."""
        return self.seen.item(*args)

    def tolist(self) -> Any:
        """All of them."""
        return self.seen.tolist()


class _AtNumbers(Trace):
    """Computes each operation twice, and hands the marks on."""

    def __init__(self, parent: Any) -> None:
        super().__init__()
        self.parent = parent

    def parts(self, value: Any) -> tuple[Any, Any, _Marks]:
        is_own = isinstance(value, _Number)
        return (value.value, value.seen, value.marks) if is_own else (value, value, _NONE)

    def stage_value(self, value: Any) -> Any:
        """An array of what Python has."""
        return value if isinstance(value, _Number) else self.parent.stage_value(value)

    def process_primitive(self, primitive: Any, args: Sequence[Any], params: Any, /) -> Any:
        """Of numbers that come from a draw; others are none of ours."""
        return self._computed(primitive, args, params, partial(primitive.bind, **params))

    def process_custom_jvp_call(self, primitive: Any, fun: Any, *rest: Any, **_: Any) -> Any:
        """A function with a derivative of its own, by either way."""
        with set_current_trace(self.parent):
            traced = jax.make_jaxpr(fun.call_wrapped)(*(self.parts(each)[0] for each in rest[-1]))
        run = partial(jax.core.eval_jaxpr, traced.jaxpr, traced.consts)
        return self._computed(primitive, rest[-1], {}, run)

    process_custom_vjp_call = process_custom_jvp_call

    def _computed(
        self, primitive: Any, args: Sequence[Any], params: Any, run: Callable[..., Any]
    ) -> Any:
        values, seen, given = zip(*map(self.parts, args), strict=True) if args else ((), (), ())
        with set_current_trace(self.parent):
            found = run(*values)
            if not _NONE.union(*given):
                return found
            shown = run(*seen)
        several = primitive.multiple_results
        found, shown = (found, shown) if several else ([found], [shown])
        step = _step(primitive, params, args, found)
        marked = [
            _Number(self, value, other, marks) if marks else value
            for value, other, marks in zip(found, shown, _after(step, list(given)), strict=True)
        ]
        return marked if several else marked[0]


def _step(primitive: Any, params: Any, args: Sequence[Any], found: Sequence[Any]) -> Any:
    """An operation as a jaxpr has it."""
    given = [v if isinstance(v, Tracer) or np.ndim(v) else SimpleNamespace(val=v) for v in args]
    results = [SimpleNamespace(aval=jax.typeof(value)) for value in found]
    return SimpleNamespace(primitive=primitive, params=params, invars=given, outvars=results)


# ------------------------------------------------------------------------- through the operations


def _through(jaxpr: Any, given: Sequence[_Marks]) -> list[_Marks]:
    """The marks of the results of a jaxpr; its constants come from no draw."""
    known: dict[Any, _Marks] = dict(zip(jaxpr.invars, given, strict=True))

    def marks(variable: Any) -> _Marks:
        return _NONE if hasattr(variable, "val") else known.get(variable, _NONE)

    for step in jaxpr.eqns:
        found = _after(step, [marks(variable) for variable in step.invars])
        known.update(zip(step.outvars, found, strict=True))
    return [marks(variable) for variable in jaxpr.outvars]


def _after(step: Any, given: list[_Marks]) -> list[_Marks]:
    name, joined = _operation(step), _NONE.union(*given)
    if not joined or name == "stop_gradient" or _says_nothing(step):
        return [_NONE] * len(step.outvars)
    if name in _LOOPS:
        return _LOOPS[name](step, given)
    is_known = name in _OWN or name in _FLAT
    for inner in (step.params[key] for key in _INNER if key in step.params and not is_known):
        return _through(getattr(inner, "jaxpr", inner), given)
    return [_marks_by(name, joined, variable.aval.dtype) for variable in step.outvars]


def _operation(step: Any) -> str:
    """A primitive's name, but JAX's `heaviside`, whose slope at NaN is 1, has one of its own."""
    if step.params.get("name") == "heaviside":
        source = step.params["jaxpr"].jaxpr.debug_info.func_src_info or ""
        return "heaviside" if _HEAVISIDE in source else step.primitive.name
    return step.primitive.name


def _says_nothing(step: Any) -> bool:
    """Whether a comparison looks for NaN and infinities alone."""
    if step.primitive.name not in ("eq", "ne", "is_finite"):
        return False
    numbers = [v.val for v in step.invars if hasattr(v, "val")]
    return len({id(v) for v in step.invars}) == 1 or any(np.isinf(n).all() for n in numbers)


def _marks_by(by: str, marks: _Marks, dtype: Any) -> _Marks:
    """Of the result of an operation, from those of what it is computed from."""
    if by not in _FLAT and jnp.issubdtype(dtype, jnp.inexact):
        return marks
    return frozenset((mark, by) if isinstance(mark, str) else mark for mark in marks)


def _scan(step: Any, given: list[_Marks]) -> list[_Marks]:
    jaxpr, params = step.params["jaxpr"].jaxpr, step.params
    consts, carry = params["num_consts"], params["num_consts"] + params["num_carry"]
    return _until_settled(
        lambda held: _through(jaxpr, [*given[:consts], *held, *given[carry:]]), given[consts:carry]
    )


def _while(step: Any, given: list[_Marks]) -> list[_Marks]:
    of_test, of_body = step.params["cond_nconsts"], step.params["body_nconsts"]
    body, start = step.params["body_jaxpr"].jaxpr, of_test + of_body
    return _until_settled(
        lambda held: _through(body, [*given[of_test:start], *held]), given[start:]
    )


def _until_settled(turn: Callable[[list[_Marks]], list[_Marks]], carry: list) -> list[_Marks]:
    while True:
        found = turn(carry)
        joined = [one | other for one, other in zip(carry, found, strict=False)]
        if joined == carry:
            return carry + found[len(carry) :]
        carry = joined


def _cond(step: Any, given: list[_Marks]) -> list[_Marks]:
    branches = [_through(b.jaxpr, given[1:]) for b in step.params["branches"]]
    return [given[0].union(*each) for each in zip(*branches, strict=True)]


_LOOPS: Mapping[str, Callable[[Any, list[_Marks]], list[_Marks]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
