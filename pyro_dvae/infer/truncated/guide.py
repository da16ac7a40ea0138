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

import pyro
import torch
from jaxtyping import Float, Int32, Integer
from pyro import poutine
from torch import Tensor, nn

from pyro_dvae.distributions.members import Members
from pyro_dvae.infer.truncated.estep import (
    codes_of,
    default_evolve,
    distinct,
    draws_of,
    evolve_sets,
    unmasked,
)
from pyro_dvae.infer.truncated.minibatch import draws_in, open_plates, prior_probs, read_minibatch
from pyro_dvae.infer.truncated.scoring import Call, Scorer
from pyro_dvae.ops.sets.evolution import Operator, Population, union
from pyro_dvae.ops.sets.packing import num_words, pack, unpack
from pyro_dvae.ops.sets.states import random_states
from pyro_dvae.programs.codes import Space, decode, find_space, latents_of
from pyro_dvae.programs.draw import run_program
from pyro_dvae.programs.pair import Pair
from pyro_dvae.programs.run import takes_particles
from pyro_dvae.programs.sites import sample_sites

__all__ = ["TruncatedGuide", "TruncatedPosterior", "draws_of"]

_CODES_AT_ONCE = 2**22  # of the first states that are drawn together: 16 MB of random numbers


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
        for name, count in {"num_states": num_states, "num_data": num_data}.items():
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"`{name}` must be an integer of at least 1; got {count!r}.")
        self.num_states, self.num_data, self.probs = num_states, num_data, probs
        self.rest, self.vectorize_particles = rest, vectorize_particles
        self._programs = (model,)  # not as a submodule: its parameters are not the guide's
        self._space: Space | None = None
        self._vectorize = vectorize_particles
        self._repeats: dict[tuple, bool] = {}
        self.register_buffer("words", None)

    @property
    def model(self) -> Callable:
        """The model."""
        return self._programs[0]

    # --------------------------------------------------------------------------- as a program

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every latent site, the discrete ones from q_n; returns their values by name."""
        with poutine.trace() as own:
            if self.rest is not None:
                self.rest(*args, **kwargs)
        call = self.read(own.trace, args, kwargs)
        words = self.members(call)
        draws = draws_in(own.trace, call.space.layout.nesting)
        scores = [_in_dims(self.scores(call, words, draw), call) for draw in draws]
        log_weights = torch.stack(scores, 1) if len(scores) > 1 else scores[0]
        values = {name: site.value for name, site in sample_sites(own.trace).items()}
        members = decode(call.space, codes_of(call, words), call.batch.sizes)
        layout = call.space.layout
        own_dims = tuple(dim for dim in range(-layout.nesting, 0) if dim not in layout.dims)
        for site in call.space.sites:
            fn = Members(members[site.name], log_weights, len(site.event_shape), own_dims)
            with open_plates(call.batch, site.name):
                values[site.name] = pyro.sample(site.name, fn)
            log_weights = fn.given(values[site.name])
        return values

    def posterior(self, *args: Any, **kwargs: Any) -> TruncatedPosterior:
        """The states of the data in `args` and their probabilities, without gradient.

        Latents that `rest` samples are drawn once.
        """
        with torch.no_grad(), poutine.block():
            own = self.draw_rest(args, kwargs)
            call = self.read(own, args, kwargs)
            words = self.members(call)
            scores = self.scores(call, words, own)
        scores = scores.reshape(len(scores), *call.batch.sizes)
        values = decode(call.space, codes_of(call, words), call.batch.sizes)
        return TruncatedPosterior(values, scores.softmax(0), scores.logsumexp(0))

    def for_data(
        self,
        *args: Any,
        num_sweeps: int = 10,
        evolve: Operator | None = None,
        proposals: Callable | None = None,
        **kwargs: Any,
    ) -> "TruncatedGuide":
        """A guide for other data of the same model; this one stays as it is.

        Args:
            *args: Arguments of the model, all of the new data at once (where these are very many,
                make a guide for each part).
            num_sweeps: E-steps to evolve the new sets by.
            evolve: As in `Truncated_ELBO`.
            proposals: An amortised guide, called with the model's arguments: each sweep also
                proposes S draws of it. Without it, S states of this guide's sets, at random.
            **kwargs: Keyword arguments of the model.

        Raises:
            ValueError: If `num_sweeps` is not positive, or this guide has no sets to start from.
        """
        if num_sweeps < 1:
            raise ValueError(f"`num_sweeps` must be 1 or more; got {num_sweeps}.")
        if proposals is None and self.words is None:
            raise ValueError(
                "for_data starts from the states of this guide, which has none yet. Train it "
                "first, or pass `proposals`, an amortised guide."
            )
        pool = self._from_pool if proposals is None else draws_of(proposals, self.num_states)
        other = TruncatedGuide(
            self.model,
            self.num_states,
            rest=self.rest,
            probs=self.probs,
            vectorize_particles=self.vectorize_particles,
        )
        with torch.no_grad(), poutine.block():
            own = other.draw_rest(args, kwargs)
            call = other.read(own, args, kwargs)
            evolved = evolve_sets(
                Scorer(call, own),
                other.members(call),
                union(pool, evolve or default_evolve(self.num_states)),
                sweeps=num_sweeps,
            )
            other.store(call, evolved.words)
        return other

    # -------------------------------------------------------------------------------- for losses

    def draw_rest(self, args: tuple, kwargs: dict) -> poutine.Trace:
        """One draw of `rest`."""
        if self.rest is None:
            return poutine.Trace()
        with torch.no_grad(), poutine.block():
            return run_program(self.rest, args, kwargs)

    def read(self, own: poutine.Trace, args: tuple, kwargs: dict) -> Call:
        """What a call of the model is about; the first one makes the sets.

        Raises:
            ValueError: See the class.
        """
        if self._space is None:
            self._space = find_space(self.model, self.rest, args, kwargs)
            self._vectorize = self.vectorize_particles and self._takes_particles(args, kwargs)
        draw = draws_in(own, self._space.layout.nesting)[0]
        batch = read_minibatch(self.model, draw, self._space, args, kwargs)
        num_data = self.num_data if self.words is None else len(self.words)
        if num_data not in (None, batch.num_data):
            plates = ", ".join(f"'{name}'" for name in self._space.layout.plates)
            raise ValueError(
                f"the guide keeps states of {num_data} data, but plate {plates} has size "
                f"{batch.num_data}. Give the plate the size of all data, and the rows of a "
                'minibatch as its subsample, as in pyro.plate("data", N, subsample=index); for '
                "other data make a guide by `for_data`."
            )
        call = Call(self.model, args, kwargs, self._space, batch, self._vectorize, self._repeats)
        if self.words is None:
            self.words = self._first_words(call)
        return call

    def _takes_particles(self, args: tuple, kwargs: dict) -> bool:
        assert self._space is not None
        program = latents_of(self.model, self.rest)
        with poutine.block():
            return takes_particles(Pair(self.model, program, args, kwargs, self._space.layout))

    def members(self, call: Call) -> Int32[Tensor, "S B W"]:
        """The members of the data, packed."""
        assert self.words is not None
        words = self.words.index_select(0, call.batch.rows.to(self.words.device))
        return unmasked(call, words.transpose(0, 1).contiguous())

    def scores(
        self, call: Call, words: Int32[Tensor, "S B W"], own: poutine.Trace
    ) -> Float[Tensor, "S B"]:
        """Log joints of members, -inf for one that is there already."""
        return torch.where(distinct(call, words), Scorer(call, own).of_words(words), -torch.inf)

    def store(self, call: Call, words: Int32[Tensor, "S B W"]) -> None:
        """Make these states the members of the data."""
        assert self.words is not None
        rows = call.batch.rows.to(self.words.device)
        self.words.index_copy_(0, rows, words.transpose(0, 1).contiguous())

    # ------------------------------------------------------------------------------------ states

    def _first_words(self, call: Call) -> Int32[Tensor, "N S W"]:
        cardinalities, num_data = call.space.cardinalities, call.batch.num_data
        probs = self._first_probs(call)
        words = torch.empty(
            (num_data, self.num_states, num_words(cardinalities)),
            dtype=torch.int32,
            device=probs.device,
        )
        for part in words.split(max(1, _CODES_AT_ONCE // (self.num_states * len(cardinalities)))):
            codes = random_states(self.num_states, len(part), cardinalities, probs)
            part.copy_(pack(codes.transpose(0, 1), cardinalities))
        return words

    def _first_probs(self, call: Call) -> Float[Tensor, "H V"]:
        prior = prior_probs(call.batch.latents, call.space)
        if self.probs is None:
            return prior
        if set(call.space.cardinalities) != {2}:
            raise ValueError(
                "`probs` are those of binary latents; the model has latents of "
                f"{sorted(set(call.space.cardinalities))} codes. Leave it out: the first states "
                "are then drawn with the probabilities of the prior."
            )
        ones = torch.as_tensor(self.probs, dtype=prior.dtype, device=prior.device)
        ones = ones.expand(len(prior))
        return torch.stack([1.0 - ones, ones], -1)

    def _from_pool(self, population: Population) -> Integer[Tensor, "S B H"]:
        """States of this guide's sets, at random: an operator."""
        assert self.words is not None
        shape = self.num_states, population.scores.shape[1]
        rows = torch.randint(len(self.words), shape, device=self.words.device)
        places = torch.randint(self.num_states, shape, device=self.words.device)
        return unpack(self.words[rows, places], population.cardinalities)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Take in states of any number of data where there are none yet."""
        found = state_dict.get(f"{prefix}words")
        if found is not None and self.words is None:
            self.words = torch.empty_like(found)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _in_dims(scores: Float[Tensor, "S B"], call: Call) -> Float[Tensor, "S *batch"]:
    """Scores of data in the batch dims of their plates, 1 in the others."""
    layout, sizes = call.space.layout, call.batch.sizes
    batch = [1] * layout.nesting
    for dim, size in zip(layout.dims, sizes, strict=True):
        batch[dim] = size
    return scores.reshape(len(scores), *batch)
