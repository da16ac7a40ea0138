"""What sites hold must not be changed in place: their densities are computed after the run.

A draw, an observation or a location that the program changes behind a site, as `z += 1` does, would
be scored at what it has become; Pyro's own losses do so without a word. Torch counts the changes of
each tensor. Those of one that shows a part of a larger one may be of another part: it is compared
with a copy then.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dvae.programs.messages import is_subsample

__all__ = ["Unchanged"]


class _Held(NamedTuple):
    tensor: Tensor
    num_changes: int  # before the site held it
    copy: Tensor | None  # of a part of a larger one


class Unchanged(Messenger):
    """Refuses programs that change in place what a site has drawn, observed or is made of."""

    def __init__(self) -> None:
        super().__init__()
        self._values = list[tuple[str, _Held]]()
        self._made_of = list[tuple[str, _Held]]()

    def __enter__(self) -> Any:
        self._values, self._made_of = [], []
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        left = super().__exit__(*error)
        if error[0] is None:
            for name in _changed(self._values):
                raise _refused(name, "its value is", "z", "value")
            for name in _changed(self._made_of):
                raise _refused(name, "a tensor that its distribution is made of is", "m", "number")
        return left

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_subsample(msg):
            return
        self._values += [(msg["name"], held) for held in _held(msg["value"])]
        self._made_of += [(msg["name"], held) for held in _parts(msg["fn"])]


def _parts(fn: Any) -> Iterator[_Held]:
    """The tensors of a distribution, and of those that it wraps."""
    for part in vars(fn).values():
        if isinstance(part, torch.distributions.Distribution):
            yield from _parts(part)
        else:
            yield from _held(part)


def _held(value: Any) -> Iterator[_Held]:
    if isinstance(value, Tensor) and not value.is_inference():
        base = value._base
        is_part = base is not None and base.numel() > value.numel()
        yield _Held(value, value._version, value.detach().clone() if is_part else None)


def _changed(found: list[tuple[str, _Held]]) -> Iterator[str]:
    for name, (tensor, num_changes, copy) in found:
        if tensor._version != num_changes and not (copy is not None and _same(tensor, copy)):
            yield name


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _refused(name: str, what: str, short: str, other: str) -> ValueError:
    return ValueError(
        f"site '{name}': {what} changed in place after the site was sampled, so that its density "
        f"would be that of another {other}. Make a new tensor, {short} = {short} + 1 in place of "
        f"{short} += 1, or change a copy, {short} = {short}.clone()."
    )
