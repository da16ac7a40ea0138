"""Run a model/guide pair and hand back its sites as labelled arrays, for diagnostics.

`particles` reduces a run to what a loss needs; here the values come back as well, and what is read
off their distributions: posterior and predictive draws, pointwise log-likelihoods, predictive
means, the rate of each latent, labelled (see `labels`). All is pure: the runs may be jitted.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.handlers import block

from numpyro_dvae.diagnostics.arrays import NamedArray
from numpyro_dvae.diagnostics.auxiliary import (
    Alone,
    check_discrete,
    check_listed,
    read_auxiliary,
    sites_alone,
    without,
    without_told,
)
from numpyro_dvae.diagnostics.labels import Readings, SiteReader
from numpyro_dvae.diagnostics.left_out import is_left_out
from numpyro_dvae.diagnostics.points import OF_POINTS, computed_sites
from numpyro_dvae.diagnostics.silence import (
    OF_MASKS,
    otherwise_drawn,
    read_counted_impossible,
    with_matters,
)
from numpyro_dvae.diagnostics.simulations import AT_DRAWS, at_draws
from numpyro_dvae.diagnostics.weighed import OF_WEIGHTS
from numpyro_dvae.programs.codes import enumerate_draws
from numpyro_dvae.programs.densities import has_inverse, steps_of
from numpyro_dvae.programs.draw import Draw, run_pair
from numpyro_dvae.programs.messages import (
    first_made,
    is_mutable,
    param_constraints,
    rows_of_plates,
)
from numpyro_dvae.programs.readers.impossible import read_impossible, read_num_states, read_zeros
from numpyro_dvae.programs.record import Particles, Reader, make_record, read_codes, read_silenced
from numpyro_dvae.programs.run import run_particles
from numpyro_dvae.programs.sites import Layout, Pair, Run
from numpyro_dvae.programs.structure.broadcasting import takes_singletons
from numpyro_dvae.programs.structure.cells import check_cells
from numpyro_dvae.programs.structure.layout import find_layout
from numpyro_dvae.programs.structure.mixing import with_mixed_together

__all__ = [
    "Notes",
    "enumerate_states",
    "posterior_sites",
    "prepare_pair",
    "run_given",
    "score_states",
    "states_left_out",
]

T = TypeVar("T")

_UNDRAWN = ("observed", "subsample")


class Notes(NamedTuple):
    """What is known of a pair, for all its runs."""

    subsamples: Array  # the key of those that plates draw, as `run_particles` has it of a key
    shared: tuple[str, ...]  # sites that no datum owns, as the data share them
    computed: tuple[str, ...] = ()  # sites of the guide whose values others tell
    alone: Alone = Alone()  # sites that the guide alone has
    order: tuple[str, ...] = ()  # of sites in the programs; what is compiled sorts them by name


_STATE_READERS = {
    "codes": read_codes,
    "silenced": read_silenced,
    "impossible": read_impossible,
    "counted_impossible": read_counted_impossible,
    "zeros": read_zeros,
    **OF_WEIGHTS,
}


def prepare_pair(
    rng_key: Array, model: Callable, guide: Callable, args: tuple, kwargs: dict
) -> Pair:
    """Read the structure of a pair, whose parameters are substituted; its notes are `Notes`."""
    pair = Pair(model, guide, args, kwargs)
    pair = pair._replace(layout=find_layout(rng_key, pair))
    pair = pair._replace(layout=with_mixed_together(rng_key, pair))
    if not pair.layout.credited:
        pair = pair._replace(layout=_without_discrete(rng_key, pair))
    pair = pair._replace(notes=_notes(rng_key, pair))
    alone = sites_alone(rng_key, pair)
    shared = without_told(pair.notes.shared, alone)
    return pair._replace(notes=pair.notes._replace(alone=alone, shared=shared))


def _notes(rng_key: Array, pair: Pair) -> Notes:
    def read(run: Run) -> Notes:
        sites = [*run.guide.values(), *run.model.values()]
        shared = dict.fromkeys(site.name for site in sites if not pair.layout.owns(site))
        order = tuple(dict.fromkeys([*run.guide, *run.model_trace]))
        return Notes(key, tuple(shared), computed_sites(run), order=order)

    key = jax.random.split(rng_key)[0]
    return _read_abstractly(read, rng_key, pair)


def constraints_of(
    rng_key: Array, model: Callable, guide: Callable, args: tuple, kwargs: dict
) -> tuple[dict[str, Any], set[str]]:
    """The parameters of a pair by name, and the constraint of each; and the state that it makes."""

    def read(run: Run) -> tuple[dict[str, Any], set[str]]:
        params = param_constraints(run.guide_trace) | param_constraints(run.model_trace)
        return params, first_made(run.guide_trace) | first_made(run.model_trace)

    return _read_abstractly(read, rng_key, Pair(model, guide, args, kwargs))


def _read_abstractly(read: Callable[[Run], T], rng_key: Array, pair: Pair) -> T:
    """What `read` finds in a run of guide and model: no array, as there are no values yet."""
    found: list[T] = []

    def inspect() -> None:
        found.append(read(run_pair(rng_key, pair, Draw(rng_key, pair.layout))))

    jax.eval_shape(inspect)
    return found[0]


def _without_discrete(rng_key: Array, pair: Pair) -> Layout:
    """A datum is then a cell of the plates that all sites share."""

    def read(run: Run) -> list[Mapping[str, Any]]:
        return [site.plates for sites in (run.guide, run.model) for site in sites.values()]

    frames = _read_abstractly(read, rng_key, pair)
    shared = set.intersection(*map(set, frames)) if frames else set()
    plates = sorted(shared, key=lambda name: frames[0][name].dim)
    dims = tuple(frames[0][name].dim for name in plates)
    return pair.layout._replace(plates=tuple(plates), dims=dims)


def posterior_sites(
    rng_key: Array,
    pair: Pair,
    num_draws: int,
    wanted: Collection[str],
    given: Mapping[str, Array] = MappingProxyType({}),
    *,
    weighs: bool = False,
) -> tuple[Particles, Readings]:
    """Draw from the guide, score the draws, and read `wanted`, some of `READINGS`.

    The log-densities are those of the same draws. What the data share is drawn with each, unless
    its values are `given`; what the guide computes of others is computed again, as a point has no
    density a rounding away. The record has all of them as "given". If it `weighs` draws, it has
    what is said of masked latents in `silence`, too.
    """
    layout, settled = (
        pair.layout,
        pair._replace(guide=block(pair.guide, hide_fn=is_mutable)),
    )  # what it learns is its own
    given = _without_computed(pair, given)

    def run_one(key: Array, place: Array) -> tuple[Particles, Readings, Any]:
        pair_key, predictive_key, reader_key = jax.random.split(key, 3)
        run = run_pair(pair_key, settled, Draw(pair.notes.subsamples, layout, given))
        reader = SiteReader(layout.nesting, reader_key)
        readings = reader.read(run, set(wanted) - AT_DRAWS)
        if "subsample" in wanted:
            readings["subsample"] = _subsamples(run.model_trace)
        readings |= at_draws(predictive_key, pair, given, run, reader, set(wanted))
        others = otherwise_drawn(run, place) if weighs else {}
        return make_record(run, layout, num_draws, reads=_readers(pair)), readings, others

    def score_one(key: Array, values: dict[str, Array]) -> Particles:
        run = run_pair(key, settled, Draw(pair.notes.subsamples, layout, values))
        return make_record(run._replace(guide={}), layout, num_draws)  # the model's tell

    axes = {reading: None if reading in _UNDRAWN else 0 for reading in wanted}
    keys = jax.random.split(rng_key, num_draws)
    particles, readings, others = jax.vmap(run_one, out_axes=(0, axes, 0))(
        keys, jnp.arange(num_draws)
    )
    if others:
        particles = with_matters(particles, jax.vmap(score_one)(keys, others))
    return particles._replace(scale=jnp.asarray(particles.scale)[0]), readings


def _without_computed(pair: Pair, given: Mapping[str, Array]) -> dict[str, Array]:
    return {name: value for name, value in given.items() if name not in pair.notes.computed}


def _read_given(run: Run, layout: Layout, num_draws: int) -> dict[str, Array]:
    """Values of the guide's sites that the data share, and how flows drew them; a reader."""
    sites = {n: s for n, s in run.guide.items() if not (layout.owns(s) or s.is_observed)}
    found = {name: site.value for name, site in sites.items()}
    for site in sites.values():
        found |= {} if has_inverse(site) else steps_of(site)
    return found


def _readers(pair: Pair) -> dict[str, Reader]:
    """What is read of draws; sites of the guide alone are none of the latents."""
    names = pair.notes.alone.auxiliary
    of_latents = {"codes": read_codes, "num_states": read_num_states, **OF_MASKS, **OF_POINTS}
    found = {name: without(names, read) for name, read in of_latents.items()}
    return {
        **found,
        "given": _read_given,
        "zeros": read_zeros,
        **OF_WEIGHTS,
        **read_auxiliary(names),
    }


def enumerate_states(rng_key: Array, pair: Pair, max_states: int) -> dict[str, Array]:
    """All joint values of a datum's latents, as `enumerate_draws` lists those of the guide.

    They are the model's own, so that states which the guide cannot draw are among them.

    Raises:
        ValueError: If there are continuous latents, or more than `max_states` states, or if the
            log-density of a datum changes with the draws of others.
    """

    def read(run: Run) -> set[str]:
        return {name for name, site in run.guide.items() if not site.is_observed}

    latent = _read_abstractly(read, rng_key, pair)
    check_discrete(latent - set(pair.layout.credited))
    found = enumerate_draws(rng_key, pair.model, pair.args, pair.kwargs, pair.layout, max_states)
    check_cells(rng_key, pair, found)
    check_listed(latent, found)
    return found


def run_given(rng_key: Array, pair: Pair, values: Mapping[str, Array]) -> Run:
    """One run, in which some latents have these values."""
    return run_pair(rng_key, pair, Draw(pair.notes.subsamples, pair.layout, values))


def score_states(rng_key: Array, pair: Pair, values: Mapping[str, Array]) -> Particles:
    """Log-densities of given values of the latents, which are in front."""
    num_states = max(map(len, values.values()), default=1)
    pair = pair._replace(expand=not takes_singletons(rng_key, pair, values))
    return run_particles(rng_key, pair, num_states, reads=_STATE_READERS, values=values)[0]


def _subsamples(trace: Mapping[str, Any]) -> dict[str, NamedArray]:
    return {
        name: NamedArray((name,), rows.indices)
        for name, rows in rows_of_plates(trace).items()
        if len(rows.indices) < rows.full_size
    }


def states_left_out(
    rng_key: Array, pair: Pair, num_draws: int, names: Sequence[str]
) -> dict[str, tuple[Array, Array]]:
    """Of each site, for which data the guide leaves out a state that the model may have.

    Of latents that no mask silences, and of all.

    Args:
        rng_key: Key of the tries.
        pair: With its layout and notes.
        num_draws: Tries.
        names: Sites of which the guide leaves out what the model's distribution has.
    """
    settled = pair._replace(guide=block(pair.guide, hide_fn=is_mutable))

    def run_one(key: Array) -> dict[str, tuple[Array, Array]]:
        keys = jax.random.split(key)
        run = run_pair(keys[0], settled, Draw(pair.notes.subsamples, pair.layout))
        return {name: is_left_out(keys[1], pair, run, name) for name in names}

    found = jax.vmap(run_one)(jax.random.split(rng_key, num_draws))
    return {name: (one.any(0), other.any(0)) for name, (one, other) in found.items()}
