"""Run guide and model with K particles and return plain arrays, for any NumPyro program.

Every algorithm gets the same record, `Particles`, so that none of them meets a trace:
log-densities per particle and per datum. A datum is one cell of the plates that all guide sites
without a pathwise gradient share: usually the data plate; no plate at all if such a site is global,
and then the whole batch carries one weight per particle.

Shapes: particles lead, left of all plates. The programs run as they are under `jax.vmap`, which
batches only what depends on a draw: an encoder runs once for all K particles, and its logits are
never copied K times. So any program will do, however it indexes. Values in nats.

`Plans` finds out how the programs of a call are run, once for calls that look alike: an abstract
run tells how the sites lie. That holds for calls whose arguments have the same structure, shapes
and types, and the same values where these are no arrays, as JAX compiles them once; and as long as
the settings around the programs are the same. A program that asks NumPy's arrays for their values,
which it can where it is not compiled, is looked at for each.

References:
    [1] Schulman, Heess, Weber & Abbeel. Gradient estimation using stochastic computation graphs.
        NeurIPS, 2015.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.handlers import replay, seed, substitute, trace, uncondition

from numpyro_dvae.programs.draw import Draw, Sampler, run_pair
from numpyro_dvae.programs.record import Ledger, Particles, Reader, make_record
from numpyro_dvae.programs.settings import settings_of
from numpyro_dvae.programs.sites import Layout, Pair, sample_sites
from numpyro_dvae.programs.structure.layout import find_layout

__all__ = [
    "Plans",
    "dream",
    "explained",
    "looks",
    "run_particles",
]


def run_particles(
    rng_key: Array,
    pair: Pair,
    num_particles: int,
    *,
    reads: Mapping[str, Reader] = MappingProxyType({}),
    with_entropy: bool = False,
    values: Mapping[str, Array] | None = None,
    sampler: Sampler | None = None,
    pathwise: bool = True,
) -> tuple[Particles, dict[str, Any]]:
    """Draw K particles from the guide and score them under guide and model.

    Args:
        rng_key: Key of all draws.
        pair: The programs, with their layout and how they are run over particles.
        num_particles: K.
        reads: What to read of the run beside the log-densities, into `Particles.extras`.
        with_entropy: Also collect closed-form entropies; None if a site offers none.
        values: Values of latent sites in place of draws, ``(K, *batch, *event)`` with singleton
            batch dims where they broadcast; every other site is then drawn once for all K. The
            guide may lack sites that are given.
        sampler: Draws some sites in its own way.
        pathwise: Whether reparameterised draws of a datum keep their gradient.

    Returns:
        The record, and the mutable state that the programs leave: of floats the mean over the
        particles, each of which starts from the same state; of the rest the last particle's.

    Raises:
        ValueError: If the shape of a site's log-density is not explained by its plates.
    """
    subsample_key, draw_key = jax.random.split(rng_key)
    keys = None if values else jax.random.split(draw_key, num_particles)
    places = None if sampler is None else jnp.arange(num_particles)
    draw = partial(Draw, subsample_key, pair.layout, sampler=sampler, pathwise=pathwise)
    record = partial(make_record, reads=reads, with_entropy=with_entropy)

    def run_one(particle: tuple[Any, dict[str, Array], Any]) -> tuple[Particles, dict[str, Any]]:
        key, given, place = particle
        handler = draw(given, particle=place, expand=pair.expand or not pair.vectorize)
        run = run_pair(draw_key if key is None else key, pair, handler)
        return record(run, pair.layout, num_particles), run.mutable()

    all_particles = keys, dict(values or {}), places
    particles, mutable = _over_particles(pair.vectorize)(run_one, all_particles)
    return particles._replace(scale=particles.scale[0]), jax.tree.map(_merge, mutable)


def _over_particles(vectorize: bool | Callable) -> Callable:
    if callable(vectorize):
        return vectorize
    return (lambda run, particles: jax.vmap(run)(particles)) if vectorize else jax.lax.map


def _merge(leaf: Array) -> Array:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf[-1]
    same = (leaf == leaf[0]).all(0)  # what no particle has changed stays so to the last bit
    return jnp.where(same, leaf[0], jnp.mean(leaf, 0))


def dream(
    rng_key: Array,
    pair: Pair,
    replace_data: Callable[[dict[str, Any], tuple, dict], tuple[tuple, dict]],
) -> Float[Array, "*plates"]:
    """Log q of latents that the model draws, given the data that it makes of them, as weighed.

    Args:
        rng_key: Key of all draws.
        pair: The programs; the model's observed sites are drawn as well.
        replace_data: Maps (made data by site, args, kwargs) to the guide's (args, kwargs).
    """
    model_key, guide_key = jax.random.split(rng_key)
    simulated = uncondition(seed(pair.model, model_key))
    model_trace = trace(simulated).get_trace(*pair.args, **pair.kwargs)
    for name in sample_sites(model_trace):
        model_trace[name]["value"] = jax.lax.stop_gradient(model_trace[name]["value"])
    sites = sample_sites(model_trace)
    made = {n: site.value for n, site in sites.items() if site.infer.get("was_observed")}
    args, kwargs = replace_data(made, pair.args, pair.kwargs)
    replayed = replay(seed(pair.guide, guide_key), trace=model_trace)
    dreamt = sample_sites(trace(replayed).get_trace(*args, **kwargs))
    latent = [site for name, site in dreamt.items() if name in sites]
    ledger = Ledger(pair.layout, latent)
    for site in latent:
        ledger.add("q", site, site.log_prob())
    return ledger.scale() * ledger.total("q")


_MOST_PLANS = 256  # of calls of different shapes that are remembered
T = TypeVar("T")


_ASKING = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do where a compiled program asks for a value, and JAX says that it is traced.

    Raises:
        ValueError: In place of JAX's error.
    """
    try:
        yield
    except _ASKING as error:
        raise ValueError(
            "model or guide asks for the value of an array, by `if`, bool(), int(), an index or "
            "NumPy; it has none yet, as programs are compiled. Compute with jax.numpy (jnp.where "
            "for if), or pass an argument that is a setting as a number of Python (True for "
            f"jnp.array(True)), which is constant. JAX says: {str(error).splitlines()[0]}"
        ) from error


class Plans:
    """What is known of the programs that were run last.

    Args:
        vectorize: How programs are run over particles: `Pair.vectorize`.
        find: From a key and a pair to its layout.
        inspect: From a key and a pair to its notes.
    """

    def __init__(
        self,
        *,
        vectorize: bool | Callable = True,
        find: Callable[[Array, Pair], Layout] = find_layout,
        inspect: Callable[[Array, Pair], Any] = lambda rng_key, pair: None,
    ) -> None:
        self.vectorize, self.find, self.inspect = vectorize, find, inspect
        self._programs: tuple[Any, Any] | None = None
        self._plans: dict[tuple, tuple[Layout, Any] | None] = {}

    def run(
        self,
        rng_key: Array,
        params: Mapping[str, Any],
        pair: Pair,
        evaluate: Callable[[Array, Pair], T],
    ) -> T:
        """Evaluate programs, with their layout and how they are run.

        Args:
            rng_key: Key of the abstract run, and of what evaluates.
            params: Parameters and mutable state, to be substituted in the programs.
            pair: Model, guide and arguments, without these.
            evaluate: Runs them.
        """
        programs = pair.model, pair.guide
        given = jax.tree.leaves((pair.args, pair.kwargs))
        given = [value for value in given if not hasattr(value, "shape")]
        key: tuple = looks((pair.args, pair.kwargs)), settings_of(*programs, *given)
        if self._programs is None or self._programs != programs or len(self._plans) > _MOST_PLANS:
            self._programs, self._plans = programs, {}
        model, guide = (substitute(program, data=dict(params)) for program in programs)
        pair = pair._replace(model=model, guide=guide, vectorize=self.vectorize)
        if key not in self._plans:
            self._plans[key] = self._plan_for_any(rng_key, pair)
        if self._plans[key] is None:
            key = *key, _values((pair.args, pair.kwargs))
            if key not in self._plans:
                self._plans[key] = self._plan(rng_key, pair)
        layout, notes = self._plans[key]  # type: ignore[misc]
        return evaluate(rng_key, pair._replace(layout=layout, notes=notes))

    @explained()
    def _plan(self, rng_key: Array, pair: Pair) -> tuple[Layout, Any]:
        layout = self.find(rng_key, pair)
        return layout, self.inspect(rng_key, pair._replace(layout=layout))

    def _plan_for_any(self, rng_key: Array, pair: Pair) -> tuple[Layout, Any] | None:
        """The plan of arrays that look like these; None if NumPy's values may choose a branch."""
        args, kwargs = jax.tree.map(
            lambda leaf: jnp.asarray(leaf) if _has_numbers(leaf) else leaf, (pair.args, pair.kwargs)
        )
        try:
            layout = self.find(rng_key, pair._replace(args=args, kwargs=kwargs))
            return layout, self.inspect(rng_key, pair._replace(layout=layout))
        except _ASKING:
            return None


def looks(value: Any) -> Any:
    """What an argument looks like: its structure, shapes and types, and values that are static."""
    leaves, structure = jax.tree.flatten(value)
    return structure, tuple(map(_looks_of_leaf, leaves))


def _has_numbers(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc"


def _values(args: Any) -> tuple[bytes, ...]:
    """Of the arrays of NumPy."""
    return tuple(leaf.tobytes() for leaf in jax.tree.leaves(args) if _has_numbers(leaf))


def _looks_of_leaf(leaf: Any) -> Any:
    if isinstance(leaf, np.generic):
        return type(leaf), leaf.item()
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return tuple(leaf.shape), str(leaf.dtype)
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        fields = (getattr(leaf, field.name) for field in dataclasses.fields(leaf))
        return type(leaf), *map(looks, fields)
    try:
        hash(leaf)
    except TypeError:
        return type(leaf)
    return leaf  # it may choose a branch
