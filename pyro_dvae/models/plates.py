"""The plate "data" of a model and its guide: how many data there are, and which a batch holds."""

import pyro
from torch import Tensor

__all__ = ["check_index", "data_plate", "plate_size"]


def data_plate(size: int, index: Tensor | None) -> pyro.plate:
    """The plate of `size` data at dim -1; of a minibatch, with the rows `index` that it holds."""
    return pyro.plate("data", size, subsample=index, dim=-1)


def plate_size(x: Tensor | None, index: Tensor | None, num_data: int | None, name: str) -> int:
    """The number of data in the plate of a model.

    Args:
        x: The data of the batch; None to sample some.
        index: Which of all data these are; None if they are all.
        num_data: The number of all data, of a minibatch or to be sampled.
        name: What the user calls `x`.

    Raises:
        ValueError: If the three contradict each other, or the number of data is not told.
    """
    if index is not None:
        return check_index(x, index, num_data)
    if x is None and num_data is None:
        raise ValueError(
            f"Without `{name}` the model must be told `num_data`, how many data to sample."
        )
    size = num_data if x is None else len(x) if x.dim() else 0
    if not size or size < 1 or num_data not in (None, size):
        found = f"num_data={num_data}" if x is None else f"{name} of shape {tuple(x.shape)}"
        raise ValueError(
            f"`{name}` must hold at least one datum on its first axis, and `num_data` is for "
            f"sampling without `{name}`; got {found} and num_data={num_data}."
        )
    return size


def check_index(x: Tensor | None, index: Tensor, num_data: int | None) -> int:
    """The number of all data, of which `index` says the rows that the batch `x` holds.

    Raises:
        ValueError: If it is not told, or there is not one row for each datum of the batch.
    """
    if num_data is None or (x is not None and len(x) != len(index)):
        raise ValueError(
            "`index` says which rows of `num_data` the data in `x` are, one each; got "
            f"{len(index)} rows, num_data={num_data} and "
            f"{'no x' if x is None else f'x of shape {tuple(x.shape)}'}."
        )
    return num_data
