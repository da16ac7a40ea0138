"""Whether what a program computes from a relaxed draw keeps its gradient.

A program that compares a draw, rounds it or takes it as an index goes on with numbers that have no
gradient: its value is right, and nothing says that the draw learns nothing of what these lead to.
So it is traced once more, at the draws that it has had, and its operations say of each number which
of them it comes from, and by which operation the gradient of one was lost.

Some operations lose nothing that would be missed: a comparison that chooses between what has the
gradient (``where(h > 0, h, a * h)``, ``h * (h > 0)``), or looks for NaN and infinities; what is
behind `stop_gradient` by the program's own words. A function with a derivative of its own, by
`jax.custom_jvp` or `jax.custom_vjp`, is its own affair, too.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.handlers import trace
from numpyro.primitives import Messenger

from numpyro_dvae.programs.sites import sample_sites

__all__ = ["LostSlope", "lost_slope"]

_FLAT = {"ceil", "floor", "floor_divide", "heaviside", "round", "sign"}
_GATES = {"mul", "select_n"}
_OWN = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")

# Of a draw's name: itself, the name and None; what has its gradient, the name alone; what has lost
# it, the name and an operation, "" where it is the draw that is stopped: the program sees to it.
_Marks = frozenset
_NONE: _Marks = frozenset()


class LostSlope(NamedTuple):
    """Of which draw, by which operation, and on the way to which log-density."""

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
    sites: list[tuple[str, int]] = []  # and how many arrays each log-density is computed from

    def read(values: Sequence[Array]) -> list[Array]:
        again = _Again({**draws, **dict(zip(names, values, strict=True))})
        with again, trace() as messages:
            run()
        found: list[Array] = []
        for site in sample_sites(messages).values():
            leaves = jax.tree.leaves((site.fn, site.scale, site.value if site.is_observed else ()))
            arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
            sites.append((site.name, len(arrays)))
            found += arrays
        return found

    try:
        program = jax.make_jaxpr(read)([draws[name] for name in names])
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return LostSlope("', '".join(names), "bool, int or float", "what Python does")
    except Exception:  # what a program says of another run
        return None
    given = [frozenset({name, (name, None)}) for name in names]
    marks = _through(program.jaxpr, given)
    for to, count in sites:
        joined, marks = _NONE.union(*marks[:count]), marks[count:]
        for name, by in sorted(m for m in joined if isinstance(m, tuple) and m[1]):
            if (name, "") not in joined:
                return LostSlope(name, by, f"the log-density of site '{to}'")
    return None


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
        is_computed = msg.get("is_observed") or msg["type"] == "deterministic"
        if msg.get("name") in self.values and not is_computed:
            value = self.values[msg["name"]]
            msg["value"] = dict(value) if isinstance(value, dict) else value


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
    name, joined = step.primitive.name, _NONE.union(*given)
    name = name if step.params.get("name") not in _FLAT else step.params["name"]  # a function's
    if not joined or _says_nothing(step):
        return [_NONE] * len(step.outvars)
    if name in _LOOPS:
        return _LOOPS[name](step, given)
    is_known = name in _OWN or name in _FLAT
    for inner in (step.params[key] for key in _INNER if key in step.params and not is_known):
        return _through(getattr(inner, "jaxpr", inner), given)
    if name == "stop_gradient":
        stopped = frozenset((m[0], "") for m in joined if isinstance(m, tuple) and m[1] is None)
        return [stopped] * len(step.outvars)
    return [_marks_by(name, joined, variable.aval.dtype) for variable in step.outvars]


def _says_nothing(step: Any) -> bool:
    """Whether a comparison looks for NaN and infinities alone."""
    if step.primitive.name not in ("eq", "ne", "is_finite"):
        return False
    numbers = [v.val for v in step.invars if hasattr(v, "val")]
    return len({id(v) for v in step.invars}) == 1 or any(np.isinf(n).all() for n in numbers)


def _marks_by(by: str, marks: _Marks, dtype: Any) -> _Marks:
    """Of the result of an operation, from those of what it is computed from."""
    marks = frozenset(m for m in marks if isinstance(m, str) or m[1] is not None)
    names = frozenset(mark for mark in marks if isinstance(mark, str))
    if by in _FLAT or not jnp.issubdtype(dtype, jnp.inexact):
        return (marks - names) | {(name, by) for name in names}
    if by in _GATES:
        return frozenset(m for m in marks if isinstance(m, str) or m[0] not in names or not m[1])
    return marks


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
