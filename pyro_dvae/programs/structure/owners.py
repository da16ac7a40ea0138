"""Whose draws each number is computed from, followed through the operations of a run.

Each number has owners: the cells of a plate whose draws it is computed from, of which the last and
the first are kept. An operation that moves numbers moves their owners with them; one that computes
joins the owners of all that it takes. So a dependence shows that has no effect where it is looked
at: a coefficient that starts at 0, a count that is met for one sum alone, an index that another
call may have otherwise. Operations that are not known lose the owners, and then numbers alone can
tell.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_dvae.programs.structure.layers import (
    NOBODY,
    RULES,
    Marks,
    argument_of,
    largest,
    of_all,
)

__all__ = ["Owners"]

_LIKE_ELEMENTS = """_to_copy alias binary_cross_entropy_with_logits bernoulli clone copy_ detach
    lift_fresh polar""".split()
_MOVING = """_unsafe_view as_strided cat constant_pad_nd diagonal expand flip index_put index_put_
    permute pixel_shuffle pixel_unshuffle repeat roll rot90 select slice split split_with_sizes
    squeeze squeeze_ stack t t_ transpose transpose_ tril triu unbind unfold unsafe_chunk
    unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_ view""".split()
_REDUCING = """all amax amin aminmax any argmax argmin count_nonzero kthvalue linalg_vector_norm
    logsumexp max mean median min mode nanmedian nansum norm prod std std_mean sum var
    var_mean""".split()
_ALONG = """_fft_c2c _fft_c2r _fft_r2c _log_softmax _safe_softmax _softmax cummax cummin cumprod
    cumsum logcumsumexp sort topk""".split()
_WHOLE = """_pdist_forward binary_cross_entropy dist histc huber_loss mse_loss nll_loss_forward
    smooth_l1_loss soft_margin_loss trace vdot""".split()
_OF_ROWS = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _transformer_encoder_layer_fwd col2im im2col
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d adaptive_max_pool2d avg_pool2d
    avg_pool3d convolution max_pool2d_with_indices max_pool3d_with_indices native_group_norm
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d
""".split()
_OF_TOKENS = """_scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable
    """.split()
_ADDING = """index_add index_add_ index_copy index_copy_ index_fill index_fill_ index_reduce
    index_reduce_ put put_""".split()
_SCATTERING = """scatter scatter_ scatter_add scatter_add_ scatter_reduce
    scatter_reduce_""".split()
_PRODUCTS = "addmm addmv baddbmm bmm dot mm mv".split()


class Owners(TorchDispatchMode):
    """Follows cells through what runs in its block.

    Args:
        size: The number of cells.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._marks = tuple(WeakTensorKeyDictionary() for _ in range(2))
        self._made = WeakTensorKeyDictionary()  # from nothing that was given
        self._has_sized = False  # whether draws of all say how many numbers there are
        self._checks = ExitStack()

    def __enter__(self) -> "Owners":
        # A support is no part of a density, and one that draws choose is checked by parts.
        self._checks.enter_context(pyro.validation_enabled(False))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._checks.close()
        super().__exit__(*error)

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
        return self._has_sized or any(
            value in marks and bool((marks[value] > sign * cells).any()) for marks, sign in found
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if all(value in self._made for value in given):
            self._made.update((v, True) for v in tree_leaves(found) if isinstance(v, Tensor))
        for marks in self._marks:
            if any(value in marks for value in given):
                self._follow(marks, func, args, kwargs, found)
        if torch.Tag.dynamic_output_shape in func.tags:
            if func.overloadpacket.__name__ == "index":
                given = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            self._has_sized = self._has_sized or any(value in self._marks[0] for value in given)
        return found

    def _follow(self, marks: Any, func: Any, args: tuple, kwargs: dict, found: Any) -> None:
        given = [(d, i) for d, i in _indices(func, args, kwargs) if i not in self._made]

        def mark(value: Tensor) -> Marks:
            if value not in marks:
                return torch.tensor(NOBODY, device=value.device).expand(value.shape)
            found = marks[value]
            for dim, _ in given if value is args[0] and value.numel() else ():
                found = found.amax(dim, True).expand(found.shape)  # any of these may be picked
            return found

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


def _rule_of(func: Any) -> Callable | None:
    name = func.overloadpacket.__name__
    if torch.Tag.pointwise in func.tags or name in _LIKE_ELEMENTS:
        return _like_elements
    return next((rule for names, rule in _RULES if name in names), None)


def _like_elements(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    result = found if isinstance(found, Tensor) else found[0]
    return largest([mark(value) for value in given], result.shape)


def _moving(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """What is moved to, the rows of an index, is no number: it has none to give."""
    moved = list(args)
    for place in (0, 2) if func.overloadpacket.__name__.startswith("index_put") else (0,):
        moved[place] = tree_map_only(Tensor, mark, args[place])
    if func._schema.is_mutable:
        moved[0] = moved[0].clone()
    given = {name: value for name, value in kwargs.items() if name != "value"}
    if func.overloadpacket.__name__ == "constant_pad_nd":
        return func(*moved[:2], NOBODY)
    found = func(*moved, **given)
    if func.overloadpacket.__name__.startswith("index_put"):
        places = [i for i in args[1] if i is not None and i.dtype != torch.bool]
        least = [of_all(index, mark) for index in places]
        if least and min(map(int, least)) != NOBODY:  # no other index says whose they are
            return largest([found, *least], found.shape)
    return found


def _on_diagonal(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    return func(mark(args[0]) - NOBODY, *args[1:], **kwargs) + NOBODY


def _reducing(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    dims = argument_of(func, args, kwargs, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    keepdim = bool(argument_of(func, args, kwargs, "keepdim"))
    marks = mark(args[0])
    if marks.numel() == 0:
        return None
    return marks.amax(tuple(dims or range(marks.dim())), keepdim)


def _along(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    marks, dim = mark(args[0]), argument_of(func, args, kwargs, "dim")
    result = found if isinstance(found, Tensor) else found[0]
    return marks.amax(dim, True).expand(result.shape).contiguous() if marks.numel() else None


def _whole(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """Of all that is given, unless the result is number by number, as a loss without a mean is."""
    given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v.numel()]
    result = found if isinstance(found, Tensor) else found[0]
    most = torch.stack([mark(value).amax() for value in given]).amax()
    return None if result.shape == given[0].shape != () else most.expand(result.shape).contiguous()


def _of_rows(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """What keeps the first axis, and joins all of a row."""
    marks, result = mark(args[0]), found if isinstance(found, Tensor) else found[0]
    rows = marks.flatten(1).amax(1) if marks.numel() else marks.new_zeros(0)
    return rows.reshape(-1, *[1] * (result.dim() - 1)).expand(result.shape).contiguous()


def _of_tokens(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """Attention, which joins the last two axes of queries, keys and values."""
    return largest([mark(value).amax((-2, -1), True) for value in args[:3]], found[0].shape)


def _normalized(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    marks = mark(args[0])
    return largest([marks.amax(tuple(range(-len(args[1]), 0)), True)], marks.shape)


def _scattered(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """Anywhere along the dim, by an index that has owners, too."""
    shape = tuple(1 if dim == args[1] % found.dim() else n for dim, n in enumerate(found.shape))
    put = [mark(value).amax(args[1], True) for value in args[2:] if isinstance(value, Tensor)]
    return largest([mark(args[0]), *(each.expand(shape) for each in put)], found.shape)


def _added(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """Along the dim, or anywhere, at places that may have owners, who are of all then."""
    is_put = func.overloadpacket.__name__.startswith("put")
    index, *values = [v for v in args[1 if is_put else 2 :] if isinstance(v, Tensor)]
    given = [mark(v) for v in values if v.numel() and v.dim()]
    given = [m.amax() if is_put else m.amax(args[1], True) for m in given]
    return largest([mark(args[0]), of_all(index, mark), *given], found.shape)


def _product(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    *added, one, two = map(mark, [value for value in args if isinstance(value, Tensor)])
    if not one.numel() or not two.numel():
        return None
    is_vector = two.dim() == 1
    rows = one.amax(-1, keepdim=not is_vector)
    return largest([rows, two.amax(0 if is_vector else -2, not is_vector), *added], found.shape)


def _between(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """Distances of the rows of one to those of another."""
    one, two = (mark(value).amax(-1) for value in args[:2])
    return largest([one[..., None], two[..., None, :]], found.shape)


def _among(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """Whether each of one is any of another."""
    given = [mark(args[0])] if isinstance(args[0], Tensor) else []
    given += [of_all(args[1], mark)] if isinstance(args[1], Tensor) else []
    return largest(given, found.shape)


def _indices(func: Any, args: tuple, kwargs: dict) -> Iterator[tuple[int, Tensor]]:
    """What an operation picks by: the dim, and the index."""
    name = func.overloadpacket.__name__
    if name in ("gather", "index_select"):
        yield args[1], args[2]
    elif name == "index":
        yield from ((dim, index) for dim, index in enumerate(args[1]) if index is not None)


def _picking(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """By an index, that has owners, too."""
    name = func.overloadpacket.__name__
    picked = func(mark(args[0]), *args[1:], **kwargs)
    if name == "index_select":
        return picked
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
    joined = largest([mark(index) for index in indices], shape)
    after = picked.dim() - start - len(shape)
    return torch.maximum(picked, joined.reshape(*shape, *[1] * after))


_RULES: Sequence[tuple[Sequence[str], Callable]] = (
    (_MOVING, _moving),
    (_REDUCING, _reducing),
    (_ALONG, _along),
    (_WHOLE, _whole),
    (_PRODUCTS, _product),
    (_OF_ROWS, _of_rows),
    (_OF_TOKENS, _of_tokens),
    (("_cdist_forward",), _between),
    (("diag_embed",), _on_diagonal),
    (("isin",), _among),
    (("native_layer_norm",), _normalized),
    (_ADDING, _added),
    (_SCATTERING, _scattered),
    (("embedding", "gather", "index", "index_select"), _picking),
    *RULES,
)
