"""All ways that a program can take whose sites depend on what it draws: `while`, `if`, recursion.

The program is run with the values of some sites given, up to the first site that lacks one; each
value of that site is one more way to go on. A run that lacks none has come to its end.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dvae.programs.draw import run_program
from pyro_dvae.programs.messages import is_drawn
from pyro_dvae.programs.sites import Pair, Site
from pyro_dvae.programs.supports import listed_values

__all__ = ["list_paths"]


def list_paths(pair: Pair, max_states: int) -> list[dict[str, Tensor]]:
    """The values of the latents on each way through the model of a pair.

    Args:
        pair: The programs; the guide is not run.
        max_states: The most that are listed.

    Raises:
        ValueError: If a site has no finite support, or if there are more ways.
    """
    paths: list[dict[str, Tensor]] = []
    unfinished: list[dict[str, Tensor]] = [{}]
    while unfinished:
        given = unfinished.pop()
        branch = _values_to_come(pair, given)
        if branch is None:
            paths.append(given)
        else:
            name, values = branch
            unfinished.extend({**given, name: value} for value in values)
        if len(paths) + len(unfinished) > max_states:
            raise ValueError(
                f"the program can take more than {max_states} ways, the `max_states` that are "
                "listed. Raise it, or use `importance_diagnostics`, which samples."
            )
    return paths


def _values_to_come(pair: Pair, given: Mapping[str, Tensor]) -> tuple[str, list[Tensor]] | None:
    """The first site without a value and all that it may have; None if there is no such site."""
    with _Given(given):
        try:
            run_program(pair.model, pair.args, pair.kwargs)
        except _BranchError as branch:
            return branch.site.name, list(_support(branch.site))
    return None


class _BranchError(Exception):
    """A run has come to a site without a value."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.name)
        self.site = site


class _Given(Messenger):
    """Takes the values that are given, and stops where there is none."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or not is_drawn(msg):
            return
        if msg["name"] not in self.values:
            raise _BranchError(Site.of(msg))
        msg["value"], msg["done"] = self.values[msg["name"]], True


def _support(site: Site) -> Iterator[Tensor]:
    """All values of a site, of which each cell takes all of one latent."""
    if not site.has_finite_support:
        raise ValueError(
            f"site '{site.name}' ({site.family}) has no finite support, so that the posterior "
            "cannot be listed. Use `importance_diagnostics`, which samples."
        )
    base = site.base
    support = listed_values(site)
    shape = (*site.fn.batch_shape, *site.fn.event_shape)
    cells = shape[: len(shape) - len(base.event_shape)]
    for codes in itertools.product(range(len(support)), repeat=torch.Size(cells).numel()):
        yield support[list(codes)].reshape(shape)
