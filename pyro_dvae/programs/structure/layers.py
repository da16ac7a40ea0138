"""Whose draws the outputs of layers and of matrices' operations are made of.

An operation is given the marks of each number that it takes, and says those of its results. So
layers that start without effect, as a normalisation whose weights are 0 does, show what they join.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["NOBODY", "RULES", "Marks", "argument_of", "largest", "of_all"]

NOBODY = -(2**40)
_NORMS = """_batch_norm_no_update _batch_norm_with_update _native_batch_norm_legit batch_norm
    cudnn_batch_norm miopen_batch_norm native_batch_norm""".split()
_RECURRENT = "_cudnn_rnn miopen_rnn mkldnn_rnn_layer".split()
_OF_SEVERAL_ROWS = "_thnn_fused_gru_cell _thnn_fused_lstm_cell _trilinear".split()
_PADDING = """reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d""".split()
_OF_MATRICES = """_linalg_det _linalg_eigh _linalg_slogdet _linalg_svd cholesky_inverse
    linalg_cholesky_ex linalg_eig linalg_inv_ex linalg_lu linalg_lu_factor_ex linalg_matrix_exp
    linalg_qr""".split()
_SOLVING = "_linalg_solve_ex linalg_solve_triangular cholesky_solve linalg_lu_solve".split()

Marks = Integer[Tensor, "..."]  # of several owners the largest mark stays
_Rule = Callable[[Any, tuple, dict, Callable[[Tensor], Marks], Any], Any]


def largest(marks: Sequence[Marks], shape: torch.Size) -> Marks:
    """The largest of marks that broadcast to a shape."""
    found = marks[0].expand(shape)
    for other in marks[1:]:
        found = torch.maximum(found, other)
    return found.contiguous()


def of_all(value: Tensor, mark: Callable[[Tensor], Marks]) -> Marks:
    """The largest mark of any number in a tensor."""
    return mark(value).amax() if value.numel() else torch.tensor(NOBODY, device=value.device)


def argument_of(func: Any, args: tuple, kwargs: dict, name: str) -> Any:
    """What an operation is given, or else has, for an argument by name; None if it takes none."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[place] if place < len(args) else kwargs.get(name, argument.default_value)
    return None


def _of_everything(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """Of all that is given, in each number."""
    given = [of_all(v, mark) for v in _tensors((args, kwargs))]
    return [largest(given, value.shape) for value in _tensors(found)]


def _of_channels(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """Batch normalisation joins the numbers of a channel, unless it has statistics to use."""
    marks, has_statistics = mark(args[0]), func.overloadpacket.__name__ == "_batch_norm_no_update"
    if argument_of(func, args, kwargs, "training") is not False and not has_statistics:
        marks = marks.amax([dim for dim in range(marks.dim()) if dim != 1], True)
    shape = (-1, *[1] * (marks.dim() - 2))
    others = [mark(v).reshape(shape) for v in args[1:5] if isinstance(v, Tensor)]
    return [largest([marks, *others], args[0].shape), *[None] * (len(tree_leaves(found)) - 1)]


def _recurrent(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """A recurrent network joins the steps of each sequence, its first state among them."""
    inputs = args[0]
    if inputs.dim() != 3:  # sequences of several lengths, packed
        return _of_everything(func, args, kwargs, mark, found)
    is_first = func.overloadpacket.__name__ != "mkldnn_rnn_layer"  # which has the steps in front
    batch = 0 if is_first and argument_of(func, args, kwargs, "batch_first") else 1
    rows = mark(inputs).amax((1 - batch, 2))
    for name in ("hx", "cx", "hx_", "cx_"):
        state = argument_of(func, args, kwargs, name)
        if isinstance(state, Tensor) and state.numel():
            rows = torch.maximum(rows, mark(state).amax(-1).reshape(-1, len(rows)).amax(0))
    outputs, *states = tree_leaves(found)
    of_outputs = rows[:, None] if batch else rows[:, None, None]
    given = [of_outputs.expand(outputs.shape), *(rows[:, None].expand(s.shape) for s in states[:2])]
    return [*(each.contiguous() for each in given), *[None] * (len(states) - 2)]


def _of_several_rows(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """Each row of the results is of that row of all that have as many, and of all else."""
    given, results = [v for v in _tensors(args) if v.numel()], _tensors(found)
    count = len(results[0])
    have = [v.dim() > 1 and len(v) == count for v in given]
    marks = [
        mark(v).flatten(1).amax(1) if own else mark(v).amax()
        for v, own in zip(given, have, strict=True)
    ]
    rows = largest(marks, torch.Size([count]))
    return [rows.reshape(-1, *[1] * (v.dim() - 1)).expand(v.shape).contiguous() for v in results]


def _of_matrices(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """What joins the last two axes, of each matrix by itself."""
    rows = mark(args[0]).flatten(-2).amax(-1)
    return [
        rows.reshape(*rows.shape, *[1] * (v.dim() - rows.dim())).expand(v.shape).contiguous()
        for v in _tensors(found)
    ]


def _solving(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """Each column is of that of the right side, or each row where the matrix is behind it."""
    is_cholesky = func.overloadpacket.__name__ == "cholesky_solve"
    right, matrix = args[:2] if is_cholesky else (_tensors(args)[-1], args[0])
    results = tree_leaves(found)
    is_vector = right.shape == matrix.shape[:-1]
    axis = -2 if not is_vector and argument_of(func, args, kwargs, "left") is not False else -1
    joined, of_matrix = mark(right).amax(axis, True), mark(matrix).amax((-2, -1))
    of_matrix = of_matrix[..., None] if is_vector else of_matrix[..., None, None]
    return [largest([joined, of_matrix], results[0].shape), *[None] * (len(results) - 1)]


def _padding(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    return func(mark(args[0]).double(), *args[1:], **kwargs).long()  # they take no integers


def _halved(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    return torch.maximum(*mark(args[0]).chunk(2, argument_of(func, args, kwargs, "dim")))


def _scaled(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """`renorm` joins all axes but one."""
    marks, kept = mark(args[0]), args[2] % found.dim()
    joined = marks.amax([dim for dim in range(marks.dim()) if dim != kept], True)
    return joined.expand(found.shape).contiguous()


def _added_products(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    added, one, two = map(mark, args[:3])
    if func.overloadpacket.__name__ == "addbmm":
        one, two = one.amax((0, 2)), two.amax((0, 1))
    return largest([added, one[:, None], two], found.shape)


def _with_any_other(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """Each number is of one of the first, and of any of the rest."""
    others = [of_all(value, mark) for value in args[1:] if isinstance(value, Tensor)]
    return largest([mark(args[0]), *others], found.shape)


def _looked_up(func: Any, args: tuple, kwargs: dict, mark: Callable, found: Any) -> Any:
    """The same of the second: places among the first, or what the first has at places."""
    if not isinstance(args[1], Tensor):
        return _of_everything(func, args, kwargs, mark, found)
    return largest([mark(args[1]), of_all(args[0], mark)], found.shape)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


RULES: Sequence[tuple[Sequence[str], _Rule]] = (
    (_NORMS, _of_channels),
    (_RECURRENT, _recurrent),
    (_OF_SEVERAL_ROWS, _of_several_rows),
    (_OF_MATRICES, _of_matrices),
    (_SOLVING, _solving),
    (_PADDING, _padding),
    (("glu",), _halved),
    (("renorm",), _scaled),
    (("addbmm", "addr"), _added_products),
    (("bucketize", "fill_", "masked_scatter"), _with_any_other),
    (("searchsorted", "take"), _looked_up),
    (("_embedding_bag", "bincount", "grid_sampler_2d", "grid_sampler_3d"), _of_everything),
)
