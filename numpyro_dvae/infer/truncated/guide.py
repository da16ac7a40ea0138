"""A guide that holds, for every datum, the states on which its truncated posterior lives [1].

Datum n owns a set of S distinct joint states of its discrete latents. The posterior is the exact
one restricted to the set,

    q_n(z) = p(x_n, z) / sum over z' in the set of p(x_n, z'),   0 elsewhere,

so that nothing is amortised and nothing is sampled to learn it: `Truncated_ELBO` improves the sets,
and the weights follow from the model as it stands. A set is kept as packed words, N x S x W of 32
bits. Its members' log joints are never kept, as they are stale once a parameter has moved.

`TruncatedGuide` is an ordinary guide: called, it samples each discrete site from q_n. Which rows a
minibatch touches it reads off the model's own data plate. The words are mutable state, at the site
"guide.words": `SVI` makes them, and ``Predictive(guide, params=result.params)`` finds them. Pass
its draws to ``Predictive(model, draws, params=...)``; one call for both copies the words per draw.

References:
    [1] Drefs, Guiraud, Panagiotou & Lücke. Direct evolutionary optimization of variational
        autoencoders with binary latents. ECML PKDD, 2022. arXiv 2011.13704.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float, Integer, UInt32
from numpyro.handlers import block, replay, substitute, trace

from numpyro_dvae.infer.truncated.estep import (
    default_evolve,
    distinct,
    evolve_sets,
    first_words,
    unmasked,
)
from numpyro_dvae.infer.truncated.minibatch import check_sites, read_minibatch, space_by_row
from numpyro_dvae.infer.truncated.parts import alone, evolve_parts, parts_of
from numpyro_dvae.infer.truncated.proposals import draws_of, from_pool
from numpyro_dvae.infer.truncated.sampling import add_silenced, in_dims, sample_members
from numpyro_dvae.infer.truncated.scoring import (
    ModelCall,
    Scorer,
    check_apart,
    score_silenced,
    with_drawn,
)
from numpyro_dvae.ops.arguments import check_counts, checked
from numpyro_dvae.ops.sets.evolution import Operator, union
from numpyro_dvae.ops.sets.packing import num_words, pack, unpack
from numpyro_dvae.programs.codes import CodedSite, decode
from numpyro_dvae.programs.draw import Draw, FixedKeys, run_pair
from numpyro_dvae.programs.handlers.steps import StepsChecked
from numpyro_dvae.programs.messages import is_of_run, known_state, mutable_values, param_values
from numpyro_dvae.programs.sites import Pair, sample_sites

__all__ = ["TruncatedGuide", "TruncatedPosterior"]


class TruncatedPosterior(NamedTuple):
    """The states of each datum of a minibatch, and their probabilities."""

    values: dict[str, Array]  # discrete site -> (S, *batch, *event)
    weights: Float[Array, "S *plates"]  # q_n, sums to 1 over axis 0; 0 for a repeated state
    bound: Float[Array, "*plates"]  # log sum of p(x_n, z) over the set, nats


class TruncatedGuide:
    """A posterior truncated to S states per datum, for any model of finite discrete latents.

    Args:
        model: The model; its parameters are read, never owned.
        num_states: S, distinct states per datum.
        rest: A guide for the model's other latents, global or continuous, reparameterised. Given
            their values, each datum has its q_n.
        num_data: N; read off the model's data plate at the first call if left out.
        probs: Probabilities of 1 with which binary latents are drawn into the first sets, one
            number or one per latent. Default: the codes' probabilities in the model's prior.
        vectorize_particles: Score many states in one run of the model, under `jax.vmap`; else one
            state after another, with the same result.

    Attributes:
        words: The packed states ``(N, S, W)`` to start from, of a guide that `for_data` made; else
            None. Those of a training are in its mutable state.

    Raises:
        ValueError: On the first call, if S exceeds the number of joint states of a datum, if a
            discrete site is global or has no finite support, or if `rest` does not sample a
            continuous site. On any, if the plates' sizes are not those of the sets.
    """

    words: UInt32[Array, "N S W"] | None

    @checked
    def __init__(
        self,
        model: Callable,
        num_states: int = 64,
        *,
        rest: Callable | None = None,
        num_data: int | None = None,
        probs: float | Float[Array, "H"] | None = None,
        vectorize_particles: bool = True,
    ) -> None:
        check_counts(num_states=num_states, num_data=num_data)
        self.num_states, self.num_data, self.probs = int(num_states), num_data, probs
        self.model, self.rest, self.vectorize_particles = model, rest, vectorize_particles
        self.words, self.site = None, "guide.words"
        self._sites: tuple[CodedSite, ...] | None = None  # that the states are of
        self._apart = set[Any]()  # how calls look whose data keep apart

    # --------------------------------------------------------------------------- as a program

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Sample every latent site, the discrete ones from q_n; returns their values by name."""
        with trace() as rest_trace:
            if self.rest is not None:
                self.rest(*args, **kwargs)
        call = self._read_here(rest_trace, args, kwargs)
        codes, scores = self._score_members(call)
        values = {name: site.value for name, site in sample_sites(rest_trace).items()}
        states = decode(call.space, codes, call.batch.sizes)
        drawn, log_weights = sample_members(call, states, in_dims(scores, call))
        if call.batch.drawn is not None:
            add_silenced(call, log_weights, in_dims(score_silenced(call, codes), call))
        return values | drawn

    def posterior(self, *args: Any, **kwargs: Any) -> TruncatedPosterior:
        """The states of the data in `args` and their probabilities, without gradient.

        With trained parameters, ``handlers.substitute(guide.posterior, data=params)(x)``. Latents
        that `rest` samples are drawn once, and need `handlers.seed`.
        """
        with block(hide_fn=is_of_run), trace() as rest_trace:
            if self.rest is not None:
                self.rest(*args, **kwargs)
        call = self._read_here(rest_trace, args, kwargs)
        codes, scores = self._score_members(call)
        scores = scores.reshape(self.num_states, *call.batch.sizes)
        values = decode(call.space, codes, call.batch.sizes)
        return TruncatedPosterior(values, jax.nn.softmax(scores, 0), jax.nn.logsumexp(scores, 0))

    def for_data(
        self,
        rng_key: Array,
        params: dict[str, Any],
        *args: Any,
        num_sweeps: int = 10,
        evolve: Operator | None = None,
        proposals: Callable | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> "TruncatedGuide":
        """A guide for other data of the same model; this one stays as it is.

        Args:
            rng_key: Key of the first states and of the proposals.
            params: Trained parameters and mutable state, the words of this guide among them.
            *args: Arguments of the model, all of the new data at once.
            num_sweeps: E-steps to evolve the new sets by.
            evolve: As in `Truncated_ELBO`.
            proposals: An amortised guide, called with the model's arguments: each sweep also
                proposes S draws of it. Without it, S states of this guide's sets, at random.
            batch_size: How many data evolve at once, which bounds the memory; all by default. The
                arrays among the arguments that are as long as the first are cut to so many rows.
            **kwargs: Keyword arguments of the model.

        Raises:
            ValueError: If `num_sweeps` or `batch_size` is not positive, if this guide has no sets
                to start from, or if the model's data are not the rows of its arguments.
        """
        if num_sweeps < 1:
            raise ValueError(f"`num_sweeps` must be 1 or more; got {num_sweeps}.")
        self._pool(params, proposals)  # complains at once
        other = self._without_sets()

        def evolve_rows(rng_key: Array, params: Any, args: tuple, kwargs: dict) -> tuple:
            operator = union(
                self._pool(params, proposals), evolve or default_evolve(self.num_states)
            )
            call_key, first_key, evolve_key = jax.random.split(rng_key, 3)
            call = other.read(call_key, params, self.model, args, kwargs)
            part = call if batch_size is None else alone(call)
            words = other._first_words(first_key, part)
            scorer, codes = Scorer(call), other.members(part, words)
            codes = evolve_sets(evolve_key, scorer, codes, operator, sweeps=num_sweeps).states
            return call.batch.rows, other.store(part, words, codes)

        if batch_size is None:
            _, other.words = evolve_rows(rng_key, params, args, kwargs)
        else:
            read = partial(other.read, rng_key, params, self.model)
            parts = parts_of(args, kwargs, batch_size)
            other.words = evolve_parts(rng_key, params, parts, read, evolve_rows)
        return other

    # -------------------------------------------------------------------------------- for losses

    def read(
        self, rng_key: Array, params: dict[str, Any], model: Callable, args: tuple, kwargs: dict
    ) -> ModelCall:
        """What a call of the model with these parameters is about, outside of any handler.

        Raises:
            ValueError: See the class.
        """
        rest = _nothing if self.rest is None else self.rest
        model, rest = (substitute(program, data=params) for program in (model, rest))
        subsample_key, draw_key = jax.random.split(rng_key)  # as `run_particles` does
        with block():
            space = space_by_row(rng_key, model, self.rest and rest, args, kwargs)
            pair = Pair(model, rest, args, kwargs, space.layout)
            run = run_pair(draw_key, pair, Draw(subsample_key, space.layout))
        batch = read_minibatch(run.model_trace, space)
        model, rest = (substitute(program, data=batch.subsamples) for program in (model, rest))
        call = ModelCall(
            rng_key=rng_key,
            params=params,
            model=model,
            rest=rest,
            args=args,
            kwargs=kwargs,
            space=space,
            batch=batch,
            vectorize=self.vectorize_particles,
        )
        return with_drawn(call.measured())

    def members(self, call: ModelCall, words: UInt32[Array, "N S W"]) -> Integer[Array, "S B H"]:
        """The codes of the data's members."""
        self._check_words(call, words)
        check_apart(call, self._apart)
        found = words[jnp.clip(call.batch.rows, 0, len(words) - 1)]
        codes = unpack(jnp.swapaxes(found, 0, 1), call.space.cardinalities)
        return unmasked(call, codes)

    def store(
        self, call: ModelCall, words: UInt32[Array, "N S W"], codes: Integer[Array, "S B H"]
    ) -> UInt32[Array, "N S W"]:
        """The words, with these states as the members of the data."""
        packed = pack(jnp.swapaxes(codes, 0, 1), call.space.cardinalities)
        rows = jnp.where(call.batch.in_range, call.batch.rows, len(words))
        return words.at[rows].set(packed, mode="drop")

    # ------------------------------------------------------------------------------------ states

    def _read_here(self, rest_trace: Mapping[str, Any], args: tuple, kwargs: dict) -> ModelCall:
        """What this call is about, among handlers: they see parameters, mutable state, plates."""
        with block(hide_fn=is_of_run), FixedKeys(), StepsChecked():
            plain = trace(replay(self.model, trace=rest_trace)).get_trace(*args, **kwargs)
        found = {**rest_trace, **plain}
        params = jax.lax.stop_gradient(param_values(found) | mutable_values(found))
        model, rest = substitute(self.model, data=params), self.rest
        rest = None if rest is None else substitute(rest, data=params)
        space = space_by_row(jax.random.key(0), model, rest, args, kwargs)
        batch = read_minibatch(plain, space)
        drawn = {n: jax.lax.stop_gradient(s.value) for n, s in sample_sites(rest_trace).items()}
        call = ModelCall(
            rng_key=jax.random.key(0),
            params=params,
            model=substitute(self.model, data=params | drawn | batch.subsamples),
            rest=_nothing,
            args=args,
            kwargs=kwargs,
            space=space,
            batch=batch,
            vectorize=self.vectorize_particles,
        )
        return with_drawn(call.measured())

    def _score_members(
        self, call: ModelCall
    ) -> tuple[Integer[Array, "S B H"], Float[Array, "S B"]]:
        """Members, and their log joints; -inf for one that is there already."""

        def score(words: Array) -> tuple[Array, Array]:
            codes = self.members(call, words)
            scores = jnp.where(distinct(call, codes), Scorer(call).of_codes(codes), -jnp.inf)
            return codes, jnp.where(call.batch.in_range, scores, jnp.nan)

        return jax.jit(score)(self._declare_words(call))  # compiled as one where nothing else is

    def _declare_words(self, call: ModelCall) -> UInt32[Array, "N S W"]:
        words = known_state(self.site, self.words)
        if words is not None:
            return words
        rng_key = numpyro.prng_key() if numpyro.primitives._PYRO_STACK else None
        if rng_key is None:
            raise ValueError(
                f"the guide needs its states, mutable state '{self.site}', or a key to draw them. "
                "Run it with SVI, as numpyro.handlers.substitute(guide, data=result.params) after "
                "training, or as numpyro.handlers.seed(guide, rng_key) with fresh states."
            )
        return numpyro.primitives.mutable(self.site, self._first_words(rng_key, call))

    def _first_words(self, rng_key: Array, call: ModelCall) -> UInt32[Array, "N S W"]:
        self._check_size(call, self.num_data or call.batch.num_data)
        self._sites = call.space.sites
        return first_words(rng_key, call, self.num_states, self.probs)

    def _check_words(self, call: ModelCall, words: Array) -> None:
        self._sites = self._sites or call.space.sites
        check_sites(self._sites, call.space.sites)
        shape = self.num_states, num_words(call.space.cardinalities)
        if words.ndim != 3 or words.shape[1:] != shape:
            raise ValueError(
                f"the states at '{self.site}' must have shape (data, {shape[0]} states, "
                f"{shape[1]} words); got {words.shape}. They are of another model or guide."
            )
        self._check_size(call, len(words))

    def _check_size(self, call: ModelCall, num_data: int) -> None:
        if num_data != call.batch.num_data:
            plates = ", ".join(f"'{name}'" for name in call.space.layout.plates)
            raise ValueError(
                f"the guide keeps states of {num_data} data, but plate {plates} has size "
                f"{call.batch.num_data}. Give the plate the size of all data, and the rows of a "
                'minibatch as its subsample, as in handlers.substitute(data={"data": index}) '
                "around the plate; for other data make a guide by `for_data`."
            )

    def _pool(self, params: dict[str, Any], proposals: Callable | None) -> Operator:
        """Where states of new data come from."""
        if proposals is not None:
            return draws_of(proposals, self.num_states)
        words = params.get(self.site, self.words)
        if words is None:
            raise ValueError(
                "for_data starts from the states of this guide, which has none yet. Train it "
                "first, or pass `proposals`, an amortised guide."
            )
        return from_pool(words)

    def _without_sets(self) -> "TruncatedGuide":
        """A guide of the same model and settings, for other data."""
        other = TruncatedGuide(
            self.model,
            self.num_states,
            rest=self.rest,
            probs=self.probs,
            vectorize_particles=self.vectorize_particles,
        )
        other.site = f"{self.site}.new"  # the words in `params` stay those of the old data
        return other


def _nothing(*args: Any, **kwargs: Any) -> None:
    """A guide without sites."""
