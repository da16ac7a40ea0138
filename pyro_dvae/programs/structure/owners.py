"""Whose draws each number is computed from, followed through the operations of a run.

Each number has owners: the cells of a plate whose draws it is computed from, of which the last and
the first are kept. An operation that moves numbers moves their owners with them; one that computes
joins the owners of all that it takes. So a dependence shows that has no effect where it is looked
at: a coefficient that starts at 0, a count that is met for one sum alone. Operations that are not
known lose the owners, and then numbers alone can tell.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Owners"]

_NOBODY = -(2**40)
_LIKE_ELEMENTS = """_to_copy alias binary_cross_entropy_with_logits bernoulli clone copy_ detach
    lift_fresh""".split()
_MOVING = """_unsafe_view as_strided cat constant_pad_nd diagonal expand flip index_put index_put_
    index_select permute repeat roll select slice split split_with_sizes squeeze squeeze_ stack t
    t_ transpose transpose_ tril triu unbind unfold unsqueeze unsqueeze_ view""".split()
_REDUCING = """all amax amin any argmax argmin linalg_vector_norm logsumexp max mean median min norm
    prod std sum var""".split()
_ALONG = "_log_softmax _softmax cummax cummin cumprod cumsum logcumsumexp sort".split()
_PRODUCTS = "addmm addmv baddbmm bmm dot mm mv".split()

Marks = Integer[Tensor, "*shape"]  # of several owners the largest mark stays


class Owners(TorchDispatchMode):
    """Follows cells through what runs in its block.

    Args:
        size: The number of cells.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._marks = tuple(WeakTensorKeyDictionary() for _ in range(2))

    def give(self, value: Tensor, axis: int) -> None:
        """The cells along an axis own a value."""
        cells = torch.arange(self.size, device=value.device)
        cells = cells.reshape(-1, *[1] * (value.dim() - axis % value.dim() - 1))
        for marks, sign in zip(self._marks, (1, -1), strict=True):
            marks[value] = (sign * cells).expand(value.shape).contiguous()

    def has_others(self, value: Tensor, axis: int) -> bool:
        """Whether a number is computed from the draws of other cells than the one that it is of."""
        cells = torch.arange(self.size, device=value.device)
        cells = cells.reshape(-1, *[1] * (value.dim() - axis % value.dim() - 1))
        found = zip(self._marks, (1, -1), strict=True)
        return any(
            value in marks and bool((marks[value] > sign * cells).any()) for marks, sign in found
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        for marks in self._marks:
            if any(value in marks for value in given):
                self._follow(marks, func, args, kwargs, found)
        return found

    def _follow(self, marks: Any, func: Any, args: tuple, kwargs: dict, found: Any) -> None:
        def mark(value: Tensor) -> Marks:
            if value in marks:
                return marks[value]
            return torch.tensor(_NOBODY, device=value.device).expand(value.shape)

        rule = _rule_of(func)
        try:
            joined = tree_leaves(rule and rule(func, args, kwargs, mark, found))
        except (IndexError, RuntimeError, TypeError, ValueError):  # an odd way to call it
            return
        results = tree_leaves(found)
        if len(joined) == 1:
            joined = joined * len(results)
        for result, one in zip(results, joined, strict=False):
            if not isinstance(one, Tensor) or one.shape != getattr(result, "shape", None):
                continue
            if func._schema.is_mutable and result in marks and marks[result].shape == one.shape:
                marks[result].copy_(one)  # views of it notice
            else:
                marks[result] = one


_Rule = Callable[[Any, tuple, dict, Callable[[Tensor], Marks], Any], Any]


def _rule_of(func: Any) -> _Rule | None:
    name = func.overloadpacket.__name__
    if torch.Tag.pointwise in func.tags or name in _LIKE_ELEMENTS:
        return _like_elements
    return next((rule for names, rule in _RULES if name in names), None)


def _largest(marks: Sequence[Marks], shape: torch.Size) -> Marks:
    found = marks[0].expand(shape)
    for other in marks[1:]:
        found = torch.maximum(found, other)
    return found.contiguous()


def _like_elements(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    result = found if isinstance(found, Tensor) else found[0]
    return _largest([mark(value) for value in given], result.shape)


def _moving(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """What is moved to, the rows of an index, is no number: it has none to give."""
    moved = list(args)
    for place in (0, 2) if func.overloadpacket.__name__.startswith("index_put") else (0,):
        moved[place] = tree_map_only(Tensor, mark, args[place])
    if func._schema.is_mutable:
        moved[0] = moved[0].clone()
    given = {name: value for name, value in kwargs.items() if name != "value"}
    if func.overloadpacket.__name__ == "constant_pad_nd":
        return func(*moved[:2], _NOBODY)
    return func(*moved, **given)


def _reducing(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    dims = _argument(func, args, kwargs, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    keepdim = bool(_argument(func, args, kwargs, "keepdim"))
    marks = mark(args[0])
    if marks.numel() == 0:
        return None
    return marks.amax(tuple(dims or range(marks.dim())), keepdim)


def _along(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    marks, dim = mark(args[0]), _argument(func, args, kwargs, "dim")
    return marks.amax(dim, True).expand(marks.shape).contiguous() if marks.numel() else None


def _product(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    *added, one, two = map(mark, [value for value in args if isinstance(value, Tensor)])
    if not one.numel() or not two.numel():
        return None
    is_vector = two.dim() == 1
    rows = one.amax(-1, keepdim=not is_vector)
    return _largest([rows, two.amax(0 if is_vector else -2, not is_vector), *added], found.shape)


def _picking(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """By an index, that has owners, too."""
    name = func.overloadpacket.__name__
    picked = func(mark(args[0]), *args[1:], **kwargs)
    if name == "gather":
        return torch.maximum(picked, mark(args[2]))
    if name == "embedding":
        return torch.maximum(picked, mark(args[1])[..., None])
    places = [place for place, index in enumerate(args[1]) if index is not None]
    indices = [args[1][place] for place in places]
    if any(index.dtype == torch.bool for index in indices):
        return None
    start = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    shape = torch.broadcast_shapes(*[index.shape for index in indices])
    joined = _largest([mark(index) for index in indices], shape)
    after = picked.dim() - start - len(shape)
    return torch.maximum(picked, joined.reshape(*shape, *[1] * after))


def _argument(func: Any, args: tuple, kwargs: dict, name: str) -> Any:
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[place] if place < len(args) else kwargs.get(name, argument.default_value)
    return None


_RULES: Sequence[tuple[Sequence[str], _Rule]] = (
    (_MOVING, _moving),
    (_REDUCING, _reducing),
    (_ALONG, _along),
    (_PRODUCTS, _product),
    (("embedding", "gather", "index"), _picking),
)
