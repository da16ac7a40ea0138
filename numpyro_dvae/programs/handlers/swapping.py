"""A model run as a guide: its discrete latents drawn from other distributions, all else hidden.

The model itself says which plates a latent is under, which rows a minibatch holds, what is masked,
and what a latent's own distribution is, given the draws before it. What is computed for nothing,
the compiler leaves out.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpyro
from jaxtyping import Array
from numpyro.handlers import block, substitute, trace
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import Messenger

from numpyro_dvae.programs.draw import Draw, run_program, seeded
from numpyro_dvae.programs.handlers.rows import names_in
from numpyro_dvae.programs.messages import Rows, is_among, is_drawn, is_subsample, rows_of_plates
from numpyro_dvae.programs.sites import Layout, Site, sample_sites

__all__ = [
    "Choose",
    "Found",
    "given_run",
    "is_discrete",
    "latents_and_parents",
    "sample_many",
    "swap_sites",
    "terms_and_draws",
]

# From a site, as the model has it, the draws so far, and the rows of its plates that were chosen,
# to the distribution to draw from.
Choose = Callable[[Site, Mapping[str, Array], Mapping[str, Array]], Any]


def is_discrete(site: Site) -> bool:
    """Whether a site's values are discrete."""
    return site.needs_credit and (site.base.support.is_discrete or site.has_finite_support)


class _Swap(Messenger):
    """Draws discrete latents from what `choose` says, and keeps their values and the rows."""

    def __init__(self, choose: Choose, rng_key: Array | None) -> None:
        super().__init__()
        self.choose, self.rng_key = choose, rng_key
        self.values: dict[str, Array] = {}
        self.rows: dict[str, Array] = {}
        self.full_sizes: dict[str, int] = {}

    def process_message(self, msg: Any) -> None:
        """Swap the distribution of a site."""
        if not is_drawn(msg) or not is_discrete(site := Site.of(msg, self.full_sizes)):
            return
        msg["fn"] = self.choose(site, self.values, self.rows)
        msg["infer"] = {k: v for k, v in site.infer.items() if k != "enumerate"}
        if self.rng_key is not None:  # one that the model brings may be the same at each call
            number = zlib.crc32(site.name.encode())
            msg["kwargs"]["rng_key"] = jax.random.fold_in(self.rng_key, number)
        self.values[site.name] = site.value

    def postprocess_message(self, msg: Any) -> None:
        """Note the rows of a plate, or the value of a site."""
        if is_subsample(msg):
            self.rows[msg["name"]], self.full_sizes[msg["name"]] = Rows.of(msg)
        elif is_among(msg, self.values):
            self.values[msg["name"]] = msg["value"]


def _only_params() -> block:
    """Hides all but parameters, which handlers around may know."""
    return block(hide_fn=lambda msg: msg["type"] != "param")


def swap_sites(model: Callable, args: tuple, kwargs: dict, choose: Choose) -> dict[str, Array]:
    """Run a model as a guide of its discrete latents, and return their draws by name.

    Handlers around see these sites, the model's plates and its parameters alone.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        choose: From what to draw a site.
    """
    swap = _Swap(choose, numpyro.prng_key())  # None if no key is needed

    def hide(msg: Any) -> bool:
        is_plain = msg["type"] in ("plate", "param", "prng_key")
        return not is_plain and not is_among(msg, swap.values)

    with block(hide_fn=hide), swap:
        model(*args, **kwargs)
    return dict(swap.values)


class Found(NamedTuple):
    """A latent site of a model."""

    site: Site
    parents: frozenset[str]  # draws that it depends on
    looked: frozenset[str]  # draws that a part of it depends on
    before: frozenset[str]  # draws that come before it


def latents_and_parents(
    rng_key: Array, model: Callable, args: tuple, kwargs: dict, look: Callable[[Site], Any]
) -> dict[str, Found]:
    """Latent sites of a model, and the draws that each depends on.

    A site depends on the latents that its distribution is computed from without another draw in
    between.

    Args:
        rng_key: Key of the runs.
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        look: A part of a site's distribution, whose own dependence is wanted.
    """

    def latents(draws: Mapping[str, Array]) -> dict[str, Site]:
        sites = _run_at(rng_key, model, args, kwargs, draws)
        return {name: site for name, site in sites.items() if not site.is_observed}

    def looks(**draws: Array) -> dict[str, tuple[Any, Any]]:
        return {n: (s.log_prob(), look(s)) for n, s in latents(draws).items() if not s.is_scanned}

    sites = latents({})
    draws = {name: site.value for name, site in sites.items() if not site.is_scanned}
    depends = eval_provenance(looks, **draws)
    found: dict[str, Found] = {}
    for name, site in sites.items():
        parents, looked = depends.get(name, (frozenset(), frozenset()))
        found[name] = Found(site, names_in(parents) - {name}, names_in(looked), frozenset(found))
    return found


def terms_and_draws(
    rng_key: Array, model: Callable, args: tuple, kwargs: dict
) -> dict[str, frozenset[str]]:
    """For each site, names of the draws that what it adds to the objective depends on; its own too.

    Without another draw in between, as in `latents_and_parents`; of observed sites, too.

    Args:
        rng_key: Key of the runs.
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    def terms(**draws: Array) -> dict[str, Array]:
        sites = _run_at(rng_key, model, args, kwargs, draws)
        return {name: site.term() for name, site in sites.items() if not site.is_scanned}

    sites = _run_at(rng_key, model, args, kwargs, {})
    drawn = {n: s.value for n, s in sites.items() if not (s.is_scanned or s.is_observed)}
    return {name: names_in(parts) for name, parts in eval_provenance(terms, **drawn).items()}


def _run_at(
    rng_key: Array, model: Callable, args: tuple, kwargs: dict, draws: Mapping[str, Array]
) -> dict[str, Site]:
    """The sites of a run in which some latents have these values."""
    with _only_params(), Draw(rng_key, Layout(), draws):
        return sample_sites(run_program(rng_key, model, args, kwargs))


def given_run(
    rng_key: Array,
    model: Callable,
    args: tuple,
    kwargs: dict,
    values: Mapping[str, Array],
    rows: Mapping[str, Array],
) -> tuple[dict[str, Site], dict[str, Array]]:
    """Sites of a run in which some latents have these values, and plates some of these rows.

    The run only looks; what is not given is drawn from the model.

    Returns:
        The sites, and the rows of the plates.
    """
    draw = Draw(rng_key, Layout(), values, expand=True)
    with _only_params(), numpyro.validation_enabled(False), trace() as found, draw:
        seeded(substitute(model, data=dict(rows)), rng_key)(*args, **kwargs)
    taken = rows_of_plates(found)
    return sample_sites(found), {name: rows.indices for name, rows in taken.items()}


def sample_many(
    rng_key: Array,
    program: Callable,
    params: Mapping[str, Any],
    args: tuple,
    kwargs: dict,
    sample_shape: tuple[int, ...],
) -> dict[str, Array]:
    """Values that a guide returns, ``(*sample_shape, ...)``, at these parameters."""

    def draw(key: Array) -> dict[str, Array]:
        with block():
            return seeded(substitute(program, data=dict(params)), key)(*args, **kwargs)

    if not sample_shape:
        return draw(rng_key)
    keys = jax.random.split(rng_key, math.prod(sample_shape))
    drawn = jax.vmap(draw)(keys)
    return {n: value.reshape(*sample_shape, *value.shape[1:]) for n, value in drawn.items()}
