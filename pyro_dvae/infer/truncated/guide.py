"""A guide that holds, for every datum, the states on which its truncated posterior lives [1].

Datum n owns a set of S distinct joint states of its discrete latents. The posterior is the exact
one restricted to the set,

    q_n(z) = p(x_n, z) / sum over z' in the set of p(x_n, z'),   0 elsewhere,

so that nothing is amortised and nothing is sampled to learn it: `Truncated_ELBO` improves the sets,
and the weights follow from the model as it stands. A set is kept as packed words, N x S x W of 32
bits. Its members' log joints are never kept, as they are stale once a parameter has moved.

`TruncatedGuide` is an ordinary guide: called, it samples each discrete site from q_n. Which rows a
minibatch touches it reads off the model's own data plate.

References:
    [1] Drefs, Guiraud, Panagiotou & Lücke. Direct evolutionary optimization of variational
        autoencoders with binary latents. ECML PKDD, 2022. arXiv 2011.13704.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int32
from pyro import poutine
from torch import Tensor, nn

from pyro_dvae.infer.truncated.estep import (
    default_evolve,
    evolve_sets,
    first_words,
    unmasked,
)
from pyro_dvae.infer.truncated.minibatch import check_sites, read_minibatch, space_by_row
from pyro_dvae.infer.truncated.parts import Part, check_part, parts_of
from pyro_dvae.infer.truncated.proposals import draws_of, from_pool
from pyro_dvae.infer.truncated.sampling import (
    add_silenced,
    in_dims,
    particles_of,
    sample_members,
    score_members,
    values_of,
)
from pyro_dvae.infer.truncated.scoring import (
    ModelCall,
    Scorer,
    given_values,
    score_silenced,
    with_drawn,
)
from pyro_dvae.ops.arguments import check_counts, checked
from pyro_dvae.ops.noise import alike, current_share
from pyro_dvae.ops.processes import all_rows, as_first
from pyro_dvae.ops.sets.evolution import Operator, union
from pyro_dvae.programs.codes import Space, a_few, latents_of
from pyro_dvae.programs.draw import run_program, run_with_draws
from pyro_dvae.programs.plans import Plans
from pyro_dvae.programs.processes import hidden
from pyro_dvae.programs.sites import Layout, Pair, sample_sites
from pyro_dvae.programs.structure.cells import check_cells
from pyro_dvae.programs.structure.looking import Path, only_looking

__all__ = ["TruncatedGuide", "TruncatedPosterior"]

_TOGETHER = "use Exact_ELBO with a guide that draws them: it lists the states of all data together"


class TruncatedPosterior(NamedTuple):
    """The states of each datum of a minibatch, and their probabilities."""

    values: dict[str, Tensor]  # discrete site -> (S, *batch, *event)
    weights: Float[Tensor, "S *plates"]  # q_n, sums to 1 over axis 0; 0 for a repeated state
    bound: Float[Tensor, "*plates"]  # log sum of p(x_n, z) over the set, nats


class TruncatedGuide(nn.Module):
    """A posterior truncated to S states per datum, for any model of finite discrete latents.

    Args:
        model: The model; its parameters are read, never owned.
        num_states: S, distinct states per datum.
        rest: A guide for the model's other latents, global or continuous, reparameterised. Given
            their values, each datum has its q_n.
        num_data: N; read off the model's data plate at the first call if left out.
        probs: Probabilities of 1 with which binary latents are drawn into the first sets, one
            number or one per latent. Default: the codes' probabilities in the model's prior.
        vectorize_particles: Score many states in one run of the model. A model that cannot
            broadcast is run once per state instead, with the same result.

    Attributes:
        words: The packed states ``(N, S, W)``, a buffer; None before the first call.

    Raises:
        ValueError: On the first call, if S exceeds the number of joint states of a datum, if a
            discrete site is global or has no finite support, or if `rest` does not sample a
            continuous site. On any, if the plates' sizes are not those of the sets.
    """

    words: Int32[Tensor, "N S W"] | None

    @checked
    def __init__(
        self,
        model: Callable,
        num_states: int = 64,
        *,
        rest: Callable | None = None,
        num_data: int | None = None,
        probs: float | Float[Tensor, "H"] | None = None,
        vectorize_particles: bool = True,
    ) -> None:
        super().__init__()
        check_counts(num_states=num_states, num_data=num_data)
        self.num_states, self.num_data, self.probs = int(num_states), num_data, probs
        self.rest, self.vectorize_particles = rest, vectorize_particles
        self._programs = (model,)  # not as a submodule: its parameters are not the guide's
        self._space: Space | None = None  # of the first call, whose states the sets hold
        self._forget()
        self.register_buffer("words", None)

    def _forget(self) -> None:
        """What is known of calls by how they look: how their data lie, and how they are run."""
        self._latents = latents_of(self.model, self.rest)
        find = self._find_space
        self._plans = Plans(vectorize=self.vectorize_particles, find=find, inspect=lambda _: {})

    def __getstate__(self) -> dict[str, Any]:
        """All but what is known of calls."""
        return {n: value for n, value in vars(self).items() if n not in ("_latents", "_plans")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    @property
    def model(self) -> Callable:
        """The model."""
        return self._programs[0]

    # --------------------------------------------------------------------------- as a program

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every latent site, the discrete ones from q_n; returns their values by name."""
        with poutine.trace() as tracer:
            if self.rest is not None:
                self.rest(*args, **kwargs)
        call = self.read(tracer.trace, args, kwargs)
        words = self.members(call)
        nesting = call.space.layout.nesting
        rests = [given_values(d, call.batch, nesting) for d in particles_of(tracer.trace, nesting)]
        calls = [call._replace(rest_values=rest) for rest in rests]
        log_weights = _stacked([in_dims(score_members(one, words), call) for one in calls])
        values = {name: site.value for name, site in sample_sites(tracer.trace).items()}
        drawn, log_weights = sample_members(call, values_of(call, words), log_weights)
        if call.batch.drawn is not None:
            silenced = _stacked([in_dims(score_silenced(one, words), call) for one in calls])
            add_silenced(call, log_weights, silenced)
        return values | drawn

    def posterior(self, *args: Any, **kwargs: Any) -> TruncatedPosterior:
        """The states of the data in `args` and their probabilities, without gradient.

        Latents that `rest` samples are drawn once.
        """
        with torch.no_grad(), hidden():
            rest_trace = self.draw_rest(args, kwargs)
            call = self.read(rest_trace, args, kwargs)
            words = self.members(call)
            scores = score_members(call, words)
        scores = scores.reshape(len(scores), *call.batch.sizes)
        values = values_of(call, words)
        return TruncatedPosterior(values, scores.softmax(0), scores.logsumexp(0))

    def for_data(
        self,
        *args: Any,
        num_sweeps: int = 10,
        evolve: Operator | None = None,
        proposals: Callable | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> "TruncatedGuide":
        """A guide for other data of the same model; this one stays as it is.

        Args:
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
        pool, other = self._pool(proposals), self._without_sets()
        operator = union(pool, evolve or default_evolve(self.num_states))
        with torch.no_grad(), hidden():
            if batch_size is None:
                other._evolve(args, kwargs, operator, num_sweeps)
                return other
            for part in parts_of(args, kwargs, batch_size):
                other._evolve_part(part, operator, num_sweeps, batch_size)
        return other

    def _evolve(self, args: tuple, kwargs: dict, operator: Operator, num_sweeps: int) -> ModelCall:
        call = self.read(self.draw_rest(args, kwargs), args, kwargs)
        scorer, words = Scorer(call), self.members(call)
        self.store(call, evolve_sets(scorer, words, operator, sweeps=num_sweeps).states)
        return call

    def _evolve_part(
        self, part: Part, operator: Operator, num_sweeps: int, batch_size: int
    ) -> None:
        """Take in the sets of some rows; a model that counts its rows knows of a part alone."""
        other = self._without_sets()
        other._space = self._space
        call = other._evolve(part.args, part.kwargs, operator, num_sweeps)
        check_part(part, min(batch_size, part.num_rows), len(call.batch.rows))
        assert other.words is not None
        found, is_all = other.words, call.batch.num_data != len(call.batch.rows)
        rows = call.batch.rows if is_all else part.start + torch.arange(len(found))
        if self.words is None:
            num_data = call.batch.num_data if is_all else part.num_rows
            self.words = found if is_all else found.new_zeros((num_data, *found.shape[1:]))
        self.words[rows.to(found.device)] = found[rows.to(found.device)] if is_all else found
        self._space = other._space

    # -------------------------------------------------------------------------------- for losses

    def draw_rest(self, args: tuple, kwargs: dict) -> poutine.Trace:
        """One draw of `rest`."""
        if self.rest is None:
            return poutine.Trace()
        with torch.no_grad(), hidden():
            return run_program(self.rest, args, kwargs)

    def read(self, rest_trace: poutine.Trace, args: tuple, kwargs: dict) -> ModelCall:
        """What a call of the model is about, given a draw of `rest`; the first one makes the sets.

        Plates that subsample do so as the surrounding handlers say, which see them.

        Raises:
            ValueError: See the class.
        """
        if self._space is None:
            self._space = self._known(args, kwargs).structure
        rest_trace = particles_of(rest_trace, self._space.layout.nesting)[0]
        with Path() as path:
            trace = run_with_draws(self.model, rest_trace, args, kwargs)
        known = self._known(args, kwargs, path.taken)
        batch = read_minibatch(trace, self._space)
        space = known.structure
        check_sites(self._space.sites, space.sites)
        batch = batch if space.layout == self._space.layout else read_minibatch(trace, space)
        call = ModelCall(
            model=self.model,
            rest=self.rest,
            args=args,
            kwargs=kwargs,
            space=space,
            batch=batch,
            vectorize=known.vectorize,
            rest_values=given_values(rest_trace, batch, space.layout.nesting),
            repeats=known.notes,
        )
        self._check_size(call)
        call = with_drawn(call)
        if self.words is None:
            with alike():
                self.words = as_first(first_words(call, self.num_states, self.probs))
        return call

    def members(self, call: ModelCall) -> Int32[Tensor, "S B W"]:
        """The members of the data, packed."""
        assert self.words is not None
        words = self.words.index_select(0, call.batch.rows.to(self.words.device))
        return unmasked(call, words.transpose(0, 1).contiguous())

    def store(self, call: ModelCall, words: Int32[Tensor, "S B W"]) -> None:
        """Make these states the members of the data."""
        assert self.words is not None
        rows, words = call.batch.rows.to(self.words.device), words.transpose(0, 1).contiguous()
        if current_share() is not None:
            rows, words = all_rows(rows), all_rows(words)
        self.words.index_copy_(0, rows, words)

    # ------------------------------------------------------------------------------------ states

    def _known(self, args: tuple, kwargs: dict, way: int = 0) -> Pair:
        """What is known of calls that look like this: space, whether states broadcast, repeats."""
        pair = Pair(self.model, self._latents, args, kwargs)
        with hidden():
            return self._plans.run(pair, lambda pair: pair, way)

    def _find_space(self, pair: Pair) -> tuple[Layout, Space]:
        space = only_looking(lambda: space_by_row(self.model, self.rest, pair.args, pair.kwargs))
        check_cells(pair._replace(layout=space.layout), a_few(space), _TOGETHER)
        return space.layout, space

    def _check_size(self, call: ModelCall) -> None:
        num_data = self.num_data if self.words is None else len(self.words)
        if num_data not in (None, call.batch.num_data):
            plates = ", ".join(f"'{name}'" for name in call.space.layout.plates)
            raise ValueError(
                f"the guide keeps states of {num_data} data, but plate {plates} has size "
                f"{call.batch.num_data}. Give the plate the size of all data, and the rows of a "
                'minibatch as its subsample, as in pyro.plate("data", N, subsample=index); for '
                "other data make a guide by `for_data`."
            )

    def _pool(self, proposals: Callable | None) -> Operator:
        """Where states of new data come from."""
        if proposals is not None:
            return draws_of(proposals, self.num_states)
        if self.words is None:
            raise ValueError(
                "for_data starts from the states of this guide, which has none yet. Train it "
                "first, or pass `proposals`, an amortised guide."
            )
        return from_pool(self.words)

    def _without_sets(self) -> "TruncatedGuide":
        """A guide of the same model and settings, for other data."""
        names = ("num_states", "rest", "probs", "vectorize_particles")
        other = TruncatedGuide(self.model, **{name: getattr(self, name) for name in names})
        other._latents, other._plans = self._latents, self._plans  # what is known by now
        return other

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Take in states of any number of data where there are none yet."""
        found = state_dict.get(f"{prefix}words")
        if found is not None and self.words is None:
            self.words = torch.empty_like(found)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _stacked(scores: list[Tensor]) -> Float[Tensor, "S *batch"]:
    """Of each particle, behind the members."""
    return torch.stack(scores, 1) if len(scores) > 1 else scores[0]
