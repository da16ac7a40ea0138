"""Whether states that a guide cannot draw are states of the model's posterior.

A guide's distribution of a site may leave out what the model's has, and the guide be exact: where
data, or latents that it drew before, rule that out. Which it is is found by trying: the site takes
a value that the guide leaves out, latents that it drew before stay, the model draws the others, and
what it says of all is possible or not. One that is possible is enough.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from numpyro_dvae.diagnostics.silence import counted_entries, has_mask
from numpyro_dvae.programs.draw import Draw, run_pair
from numpyro_dvae.programs.readers.impossible import (
    NOTHING,
    excludes,
    left_out_values,
    read_zeros,
)
from numpyro_dvae.programs.record import Ledger, Particles, make_record
from numpyro_dvae.programs.sites import Pair, Run, Site

__all__ = ["is_left_out"]


def is_left_out(rng_key: Array, pair: Pair, run: Run, name: str) -> tuple[Array, Array]:
    """For which data a state is found that the guide leaves out, and the model may have.

    Of latents that no mask silences, and of all.

    Args:
        rng_key: Key of the state.
        pair: With its layout and notes.
        run: A draw of it.
        name: A site, of which the guide leaves out what the model's distribution has.
    """
    pair = pair._replace(layout=pair.layout._replace(summed=()))  # what is enumerated is drawn
    layout, keys = pair.layout, jax.random.split(rng_key)
    if run.model[name].is_joint:
        given = {n: s.value for n, s in run.guide.items() if not s.is_observed}
        run = run_pair(keys[1], pair, Draw(pair.notes.subsamples, layout, given))
    site, given = run.model[name], {}
    for each in run.guide.values():
        if each.name == name:
            break
        if each.name in run.model and not each.is_observed:
            given[each.name] = each.value
    value = jnp.asarray(site.value)
    other, moves = left_out_values(keys[0], run.guide[name].fn, site.fn, value)
    every = _are_possible(keys[1], pair, run, given | {name: other}, site, moves)
    if not has_mask(run, name):
        return every, every
    other = jnp.where(counted_entries(run, name), other, value)
    moves = excludes(run.guide[name].fn, other)
    return _are_possible(keys[1], pair, run, given | {name: other}, site, moves), every


def _are_possible(
    rng_key: Array, pair: Pair, run: Run, given: dict[str, Array], site: Site, moves: Array
) -> Array:
    """For which data the model may have given values, of those where a site moves."""
    layout = pair.layout
    draw = Draw(pair.notes.subsamples, layout, given)
    other = run_pair(rng_key, pair._replace(guide=None), draw)
    ledger = Ledger(layout, [*run.guide.values(), *run.model.values()])
    for each in run.model.values():  # all have their plates in it
        ledger.add_bare("all", each, jnp.zeros(each.fn.batch_shape))
    ledger.add_bare("moved", site, moves.astype(float))
    moved = (ledger.total("moved") > 0) | (ledger.total_shared("moved") > 0)
    return moved & _may_be(make_record(other, layout, 1, reads={"zeros": read_zeros}))


def _may_be(record: Particles) -> Array:
    """For which data the model has a density."""
    zeros, shared = record.extras["zeros"], record.shared_likelihood + record.shared_prior
    nothing = ~(shared + zeros["shared_likelihood"] + zeros["shared_prior"] > NOTHING)
    own = ~(record.log_p + zeros["log_likelihood"] + zeros["log_prior"] > NOTHING)
    return ~(own | nothing)
