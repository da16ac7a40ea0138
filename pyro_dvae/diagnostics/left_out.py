"""Whether states that a guide cannot draw are states of the model's posterior.

A guide's distribution of a site may leave out what the model's has, and the guide be exact: where
data, or latents that it drew before, rule that out. Which it is is found by trying: the site takes
a value that the guide leaves out, latents that it drew before stay, the model draws the others, and
what it says of all is possible or not. One that is possible is enough.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyro_dvae.diagnostics.silence import counted_entries, has_mask, in_full
from pyro_dvae.programs.draw import Draw, run_pair
from pyro_dvae.programs.readers.impossible import NOTHING, excludes, left_out_values, read_zeros
from pyro_dvae.programs.record import Ledger, Particles, make_record
from pyro_dvae.programs.sites import Pair, Run, Site
from pyro_dvae.programs.structure.looking import raise_slip

__all__ = ["is_left_out"]


def is_left_out(pair: Pair, run: Run, name: str, size: int) -> tuple[Tensor, Tensor]:
    """For which draws and data a state is found that the guide leaves out, and the model may have.

    Of latents that no mask silences, and of all.

    Args:
        pair: With its layout.
        run: Draws of it.
        name: A site, of which the guide leaves out what the model's distribution has.
        size: Draws in the run.
    """
    pair = pair._replace(layout=pair.layout._replace(summed=()))  # what is enumerated is drawn
    layout = pair.layout
    if run.model[name].is_joint:
        drawn = {n: s for n, s in run.guide.items() if not s.is_observed}
        given = {n: in_full(s, layout.nesting, size) for n, s in drawn.items()}
        run = run_pair(pair, Draw(layout, size if pair.vectorize else None, given))
    site, given = run.model[name], {}
    for each in run.guide.values():
        if each.name == name:
            break
        if each.name in run.model and not each.is_observed:
            given[each.name] = in_full(each, layout.nesting, size)
    value = in_full(site, layout.nesting, size)
    other, moves = left_out_values(run.guide[name].fn, site.fn, value)
    every = _are_possible(pair, run, size, given | {name: other}, site, moves)
    if not has_mask(run, name):
        return every, every
    other = torch.where(counted_entries(run, name), other, value)
    moves = excludes(run.guide[name].fn, other)
    return _are_possible(pair, run, size, given | {name: other}, site, moves), every


def _are_possible(
    pair: Pair, run: Run, size: int, given: dict[str, Tensor], site: Site, moves: Tensor
) -> Tensor:
    """For which draws and data the model may have given values, of those where a site moves."""
    layout, value = pair.layout, given[site.name]
    ledger = Ledger(layout, size, [*run.guide.values(), *run.model.values()])
    for each in run.model.values():  # all have their plates in it
        ledger.add_bare("all", each, torch.zeros(each.fn.batch_shape, device=value.device))
    ledger.add_bare("moved", replace(site, value=value), moves.float())
    moved = (ledger.total("moved") > 0) | _of_data(ledger.total_shared("moved") > 0, layout.plates)
    draw = Draw(layout, size if pair.vectorize else None, given)
    try:
        other = run_pair(pair._replace(guide=None), draw)
    except Exception as error:  # of values that the program cannot have
        raise_slip(error)
        return torch.zeros_like(moved)
    return moved & _may_be(make_record(other, layout, size, reads={"zeros": read_zeros}))


def _may_be(record: Particles) -> Tensor:
    """For which draws and data the model has a density."""
    zeros, plates = record.extras["zeros"], record.log_p.shape[1:]
    shared = record.shared_likelihood + record.shared_prior
    nothing = ~(shared + zeros["shared_likelihood"] + zeros["shared_prior"] > NOTHING)
    own = ~(record.log_p + zeros["log_likelihood"] + zeros["log_prior"] > NOTHING)
    return ~(own | _of_data(nothing, plates))


def _of_data(of_draws: Tensor, plates: Sequence) -> Tensor:
    return of_draws.reshape(-1, *[1] * len(plates))
