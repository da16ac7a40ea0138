"""Where the cells of a plate lie in what a traced program computes, by its operations alone.

An array that is computed from draws has its cells, of which there are n, in one place: entry k of
the flat array belongs to cell ``k // inner % n``, so that a reshape changes nothing. An operation
that keeps each cell's numbers to itself moves that place; one that does not, or that is not known,
has no place to give (`MIXED`), and then only numbers can tell. What is reduced over the cells comes
from all of them (`GATHERED`), whether or not that shows in numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["GATHERED", "MIXED", "axis_of", "places_of"]

Place = int | None  # `inner`; None of what no draw leads to
MIXED, GATHERED = 0, -1

_LIKE_ELEMENTS = set(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy cos cosh digamma div eq eq_to erf
    erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow
    is_finite le le_to lgamma log log1p logistic lt lt_to max min mul mulhi name ne neg
    nextafter not optimization_barrier or polygamma population_count pow random_gamma real
    reduce_precision regularized_incomplete_beta rem round rsqrt select_n
    sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh
    sqrt square stop_gradient sub tan tanh xor zeta""".split()
)
_FLAT = {"reshape", "squeeze", "expand_dims"}  # entries stay in the order that they are in
_REDUCING = {"reduce_" + n for n in ("sum", "max", "min", "prod", "and", "or", "xor")}
_REDUCING |= {"argmax", "argmin"}
_ALONG = {  # what works along an axis, and the parameter that says along which
    "cumsum": "axis",
    "cumprod": "axis",
    "cummax": "axis",
    "cummin": "axis",
    "cumlogsumexp": "axis",
    "sort": "dimension",
    "rev": "dimensions",
    "concatenate": "dimension",
    "split": "axis",
}
_OF_MATRICES = {"cholesky", "triangular_solve", "lu", "qr", "eigh", "svd"}


def axis_of(place: int, shape: Sequence[int], size: int) -> tuple[int, int] | None:
    """The axis that holds the cells, and how many entries of it are behind each; None if several.

    Args:
        place: The cells' place.
        shape: Of the array.
        size: The number of cells.
    """
    behind = math.prod(shape)
    for axis, length in enumerate(shape):
        ahead, behind = behind, behind // max(length, 1)
        if behind <= place and place * size <= ahead:
            return (axis, place // behind) if place % behind == 0 else None
    return None


def places_of(program: Any, inputs: Sequence[Place], size: int) -> list[Place]:
    """The places of a program's results.

    Args:
        program: A closed jaxpr.
        inputs: The places of its arguments.
        size: The number of cells.
    """
    return _Follower(size).through(program.jaxpr, inputs)


def _join(one: Place, other: Place) -> Place:
    if one is None or one == other:
        return other
    if other is None:
        return one
    return GATHERED if GATHERED in (one, other) else MIXED


def _joined(places: Sequence[Place]) -> Place:
    found: Place = None
    for place in places:
        found = _join(found, place)
    return found


class _Follower:
    """Follows the cells through operations."""

    def __init__(self, size: int) -> None:
        self.size = size

    def through(self, jaxpr: Any, inputs: Sequence[Place]) -> list[Place]:
        """The places of the results of a jaxpr; its constants come from no draw."""
        known: dict[Any, Place] = dict.fromkeys(jaxpr.constvars)
        known.update(zip(jaxpr.invars, inputs, strict=True))

        def place(variable: Any) -> Place:
            return None if hasattr(variable, "val") else known[variable]

        for step in jaxpr.eqns:
            places = [place(variable) for variable in step.invars]
            known.update(zip(step.outvars, self._step(step, places), strict=True))
        return [place(variable) for variable in jaxpr.outvars]

    def _step(self, step: Any, places: list[Place]) -> list[Place]:
        count, name = len(step.outvars), step.primitive.name
        if all(place is None for place in places):
            return [None] * count
        flow = {"scan": self._scan, "while": self._while, "cond": self._cond}
        if name in flow:
            return flow[name](step, places)
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            if key in step.params and hasattr(step.params[key], "eqns"):
                inner = step.params[key]
                return self.through(getattr(inner, "jaxpr", inner), places)
        for nowhere in (GATHERED, MIXED):
            if nowhere in places:
                return [nowhere] * count
        if name in _FLAT:
            return [places[0]] * count
        return self._moved(step, places)

    # ------------------------------------------------------------------------- from axis to axis

    def _moved(self, step: Any, places: list[Place]) -> list[Place]:
        """Of an operation that says which axes of its arguments go where."""
        name, shapes = step.primitive.name, [tuple(v.aval.shape) for v in step.invars]
        axes = [
            None if place is None else axis_of(place, shape, self.size)
            for place, shape in zip(places, shapes, strict=True)
        ]
        if any(axis is None for axis, place in zip(axes, places, strict=True) if place):
            return [MIXED] * len(step.outvars)
        find = _MOVES.get(name) or (_along if name in _ALONG else None)
        find = find or (_reduced if name in _REDUCING else None)
        find = find or (_in_matrices if name in _OF_MATRICES else None)
        find = find or (_like_elements if name in _LIKE_ELEMENTS else None)
        found = None if find is None else find(step.params, axes, shapes, step)
        if found is None:
            reduces = find in (_reduced, _multiplied) or name.startswith("cum")
            is_alone = sum(axis is not None for axis in axes) == 1
            return [GATHERED if reduces and is_alone else MIXED] * len(step.outvars)
        axis, behind = found
        return [self._place(axis, behind, tuple(v.aval.shape)) for v in step.outvars]

    def _place(self, axis: int, behind: int, shape: tuple[int, ...]) -> Place:
        if axis >= len(shape) or shape[axis] % (behind * self.size):
            return MIXED
        return behind * math.prod(shape[axis + 1 :])

    # ------------------------------------------------------------------------------ control flow

    def _scan(self, step: Any, places: list[Place]) -> list[Place]:
        jaxpr, params = step.params["jaxpr"].jaxpr, step.params
        num_consts, num_carry = params["num_consts"], params["num_carry"]
        steps = num_consts + num_carry
        each = [
            self._of_steps(place, tuple(variable.aval.shape))
            for place, variable in zip(places[steps:], step.invars[steps:], strict=True)
        ]
        carry, found = places[num_consts:steps], []
        for _ in range(2 * num_carry + 1):  # each can change twice
            found = self.through(jaxpr, [*places[:num_consts], *carry, *each])
            joined = [
                _join(one, other) for one, other in zip(carry, found[:num_carry], strict=True)
            ]
            if joined == carry:
                break
            carry = joined
        return carry + found[num_carry:]

    def _of_steps(self, place: Place, shape: tuple[int, ...]) -> Place:
        """In a step: cells that are steps mix."""
        if place is None or place in (GATHERED, MIXED):
            return place
        found = axis_of(place, shape, self.size)
        return MIXED if found is None or found[0] == 0 else place

    def _while(self, step: Any, places: list[Place]) -> list[Place]:
        params = step.params
        of_test, of_body = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        carry = list(places[of_body:])
        for _ in range(2 * len(carry) + 1):
            test = self.through(params["cond_jaxpr"].jaxpr, [*places[:of_test], *carry])
            if test[0] is not None:
                return [MIXED] * len(carry)
            found = self.through(params["body_jaxpr"].jaxpr, [*places[of_test:of_body], *carry])
            joined = [_join(one, other) for one, other in zip(carry, found, strict=True)]
            if joined == carry:
                break
            carry = joined
        return carry

    def _cond(self, step: Any, places: list[Place]) -> list[Place]:
        if places[0] is not None:
            return [MIXED] * len(step.outvars)
        branches = [self.through(b.jaxpr, places[1:]) for b in step.params["branches"]]
        return [_joined(each) for each in zip(*branches, strict=True)]


# Where the cells of results are: the axis, and how many of its entries are behind each cell.
Axis = tuple[int, int] | None
# A single number with cells has no axis, and never comes here: an index or what pads.
_Move = Callable[[Mapping[str, Any], Sequence[Axis], Sequence[tuple[int, ...]], Any], Axis]


def _one(axes: Sequence[Axis]) -> Axis:
    """The axis of all arguments that have cells, if it is one."""
    found = {axis for axis in axes if axis is not None}
    return found.pop() if len(found) == 1 else None


def _like_elements(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    return _one(axes)


def _along(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    along = params[_ALONG[step.primitive.name]]
    axis = _one(axes)
    many = along if isinstance(along, tuple | list) else (along,)
    return None if axis is None or axis[0] in many else axis


def _reduced(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    axis = _one(axes)
    if axis is None or axis[0] in params["axes"]:
        return None
    return axis[0] - sum(other < axis[0] for other in params["axes"]), axis[1]


def _in_matrices(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    axis = _one(axes)
    return None if axis is None or axis[0] >= len(shapes[0]) - 2 else axis


def _transposed(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    return params["permutation"].index(axes[0][0]), axes[0][1]


def _broadcast(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    axis, behind = axes[0]
    to = params["broadcast_dimensions"][axis]
    return (to, behind) if params["shape"][to] == shapes[0][axis] else None


def _stacked(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    axis = _one(axes)
    return None if axis is None else (axis[0] + (axis[0] >= params["axis"]), axis[1])


def _unstacked(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    axis, behind = axes[0]
    return None if axis == params["axis"] else (axis - (axis > params["axis"]), behind)


def _sliced(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    axis, length = axes[0][0], shapes[0][axes[0][0]]
    stride = 1 if params["strides"] is None else params["strides"][axis]
    whole = params["start_indices"][axis] == 0 and params["limit_indices"][axis] == length
    return axes[0] if whole and stride == 1 else None


def _sliced_at(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    whole = params["slice_sizes"][axes[0][0]] == shapes[0][axes[0][0]]
    return axes[0] if whole else None


def _updated(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    axis = _one(axes[:2])
    if axis is None:
        return None
    return axis if shapes[0][axis[0]] == shapes[1][axis[0]] else None


def _padded(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    return axes[0] if tuple(params["padding_config"][axes[0][0]]) == (0, 0, 0) else None


def _multiplied(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    contracted, batched = params["dimension_numbers"]
    found = []
    for side in (0, 1):
        if axes[side] is None:
            continue
        axis, behind = axes[side]
        if axis in contracted[side]:
            return None
        if axis in batched[side]:
            found.append((batched[side].index(axis), behind))
            continue
        if axes[1 - side] is not None:
            return None
        taken = {*contracted[side], *batched[side]}
        free = [other for other in range(len(shapes[side])) if other not in taken]
        lhs_free = len(shapes[0]) - len(contracted[0]) - len(batched[0])
        found.append((len(batched[0]) + side * lhs_free + free.index(axis), behind))
    return _one(found)


def _convolved(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    numbers = params["dimension_numbers"]
    if axes[0] is None or axes[1] is not None or params["batch_group_count"] != 1:
        return None
    return (numbers.out_spec[0], axes[0][1]) if axes[0][0] == numbers.lhs_spec[0] else None


def _gathered(params: Any, axes: Any, shapes: Any, step: Any) -> Axis:
    numbers, num_dims = params["dimension_numbers"], len(step.outvars[0].aval.shape)
    batch = [dim for dim in range(num_dims) if dim not in numbers.offset_dims]
    of_operand, of_indices = axes
    found = []
    if of_indices is not None:
        if of_indices[0] >= len(batch):
            return None
        found.append((batch[of_indices[0]], of_indices[1]))
    if of_operand is not None:
        axis, behind = of_operand
        pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
        paired = dict(pairs)
        if axis in paired:
            found.append((batch[paired[axis]], behind))
        elif axis not in numbers.collapsed_slice_dims and of_indices is None:
            gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
            kept = [other for other in range(len(shapes[0])) if other not in gone]
            if params["slice_sizes"][axis] != shapes[0][axis]:
                return None
            found.append((numbers.offset_dims[kept.index(axis)], behind))
        else:
            return None
    return _one(found)


_MOVES: Mapping[str, _Move] = {
    "transpose": _transposed,
    "broadcast_in_dim": _broadcast,
    "stack": _stacked,
    "unstack": _unstacked,
    "slice": _sliced,
    "dynamic_slice": _sliced_at,
    "dynamic_update_slice": _updated,
    "pad": _padded,
    "dot_general": _multiplied,
    "conv_general_dilated": _convolved,
    "gather": _gathered,
}
