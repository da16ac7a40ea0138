"""Whether traced numbers come of the same computation, as what is traced has no value to compare.

A weight of each datum that is an argument of a jitted loss, say, is made anew for each site.
"""

from typing import Any

__all__ = ["are_one"]


def are_one(program: Any) -> bool:
    """Whether all results of a program are computed by the same operations on the same inputs.

    Args:
        program: What `jax.make_jaxpr` returns. Operations with effects are all different, and
            numbers that are known without a computation are left to those who see them.
    """
    known: dict[Any, Any] = {variable: variable for variable in program.jaxpr.constvars}
    numbers: dict[Any, int] = {}
    for step in program.jaxpr.eqns:
        inputs = tuple(_key(variable, known) for variable in step.invars)
        recipe = step.primitive, _of_params(step.params), inputs, id(step) if step.effects else 0
        number = numbers.setdefault(recipe, len(numbers))
        known.update({variable: (number, place) for place, variable in enumerate(step.outvars)})
    results = program.jaxpr.outvars
    if not results or any(_is_literal(variable) for variable in results):
        return False
    return len({known[variable] for variable in results}) == 1


def _is_literal(variable: Any) -> bool:
    return hasattr(variable, "val")


def _key(variable: Any, known: dict[Any, Any]) -> Any:
    if _is_literal(variable):
        return type(variable.val), str(variable.aval), repr(variable.val)
    return known[variable]


def _of_params(params: dict[str, Any]) -> Any:
    return tuple((name, _hashable(params[name])) for name in sorted(params))


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
