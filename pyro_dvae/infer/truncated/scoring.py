"""Log joints of states of data under a model, many of them at once.

On a CPU most states are scored by repeating the operations of one pass (see `replay`) on pieces
that a cache holds; elsewhere, and where a model cannot be repeated, by passes over large pieces.

Where nothing outside of a mask depends on the masked latents of a datum (padding), sets keep one
state for all that differ in these alone. Where something does (an animal before it is marked), they
are latents like others, `with_drawn`: a mask silences a density, never a draw, so the log joint of
a state holds the log-density of its masked latents, as `TraceEnum_ELBO` counts those that it sums
over. The guide then has a factor that takes this density out of its log q, as no model's log joint
has it.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Bool, Float, Int32, Num
from pyro import poutine
from torch import Tensor

from pyro_dvae.infer.truncated.minibatch import Minibatch
from pyro_dvae.infer.truncated.replay import repeatable_pass
from pyro_dvae.ops.sets.packing import unpack
from pyro_dvae.programs.codes import Space, decode
from pyro_dvae.programs.densities import changed
from pyro_dvae.programs.processes import hidden
from pyro_dvae.programs.record import Particles, Reader, read_silenced
from pyro_dvae.programs.run import run_particles
from pyro_dvae.programs.sites import Pair, sample_sites
from pyro_dvae.programs.structure.looking import same_but_rounding

__all__ = [
    "ModelCall",
    "Scorer",
    "log_weights",
    "masked_matter",
    "run_states",
    "score_silenced",
    "with_drawn",
]

_CODES_AT_ONCE = 2**21  # that a pass of the model scores: 8 MB as floats
_CODES_REPEATED = 5 * 2**16  # that a repetition of it scores: 1.25 MB, so that a cache holds all
_REPETITIONS = 6  # from which on recording a pass is worth it
_ROUNDING = 1e-4  # in single precision, between a pass and a repetition with sums in other orders


class ModelCall(NamedTuple):
    """One call of a model whose states are scored: what is run, and what data it is about."""

    model: Callable
    rest: Callable | None  # a guide for the latents that are no states; None: take `rest_values`
    args: tuple
    kwargs: dict
    space: Space
    batch: Minibatch
    vectorize: bool
    rest_values: dict[str, Tensor]  # one draw of `rest`, without gradient
    repeats: dict[tuple, bool]  # whether a pass on states of this shape can be repeated, if known


class Scorer:
    """Log joints of states at fixed parameters, without gradient but in the states.

    In an E-step it is the `context` of the populations that operators see.

    Args:
        call: What the states are of; its draw of the model's other latents stays.
        beta: Weight of the rate.
    """

    def __init__(self, call: ModelCall, beta: float | Tensor = 1.0) -> None:
        self.call, self.beta = call._replace(rest=None), beta
        self._repeat: Callable[[Tensor], Tensor] | None = None

    def of_words(self, words: Int32[Tensor, "S B W"]) -> Float[Tensor, "S B"]:
        """Scores of packed states."""
        num_codes = words.shape[1] * len(self.call.space.cardinalities)
        size = max(1, _CODES_REPEATED // num_codes)
        is_worth_it = self.call.vectorize and len(words) >= _REPETITIONS * size
        if words.device.type == "cpu" and is_worth_it:
            known = self._record(words, size)
            if self._repeat is not None:
                return _in_pieces(self._repeat, words, size, known)
        parts = words.split(max(1, _CODES_AT_ONCE // num_codes))
        return torch.cat([self._pass_words(part) for part in parts])

    def of_codes(self, codes: Num[Tensor, "S B H"]) -> Float[Tensor, "S B"]:
        """Scores of codes, real ones too, with their gradient if they ask for it."""
        parts = codes.chunk(math.ceil(codes.numel() / _CODES_AT_ONCE))
        return torch.cat([self._pass(part) for part in parts])

    def _record(self, words: Int32[Tensor, "S B W"], size: int) -> Tensor | None:
        """Find out how to repeat a pass on so many states; the first scores, if known from it.

        The first time it is tried on other states: a program may keep something from pass to pass.
        """
        shape = (size, *words.shape[1:])
        if self._repeat is not None or not self.call.repeats.get(shape, True):
            return None
        with torch.no_grad():
            scores, repeat = repeatable_pass(self._pass_words, words[:size])
            if repeat is not None and shape not in self.call.repeats:
                found, again = self._pass_words(words[-size:]), repeat(words[-size:])
                if not same_but_rounding(found, again, _ROUNDING):
                    repeat = None
        self._repeat = repeat
        self.call.repeats[shape] = repeat is not None
        return scores

    def _pass_words(self, words: Int32[Tensor, "S B W"]) -> Float[Tensor, "S B"]:
        return self._pass(unpack(words, self.call.space.cardinalities))

    def _pass(self, codes: Num[Tensor, "S B H"]) -> Float[Tensor, "S B"]:
        """One run of the model."""
        with (
            torch.set_grad_enabled(codes.requires_grad),
            hidden(),
            pyro.validation_enabled(False),  # the pass that makes the bound validates once
        ):
            particles = run_states(self.call, codes)
            return _log_joint(particles, self.beta).flatten(1)


def run_states(
    call: ModelCall,
    codes: Num[Tensor, "S B H"],
    reads: Mapping[str, Reader] = MappingProxyType({}),
) -> Particles:
    """The record of given states, all with the same draws of the other latents.

    Args:
        call: What the states are of.
        codes: The states.
        reads: What to read of the run beside the log-densities.
    """
    layout = call.space.layout
    pair = Pair(call.model, call.rest, call.args, call.kwargs, layout, call.vectorize)
    values = decode(call.space, codes, call.batch.sizes)
    if call.rest is None:
        values |= call.rest_values
    if call.batch.drawn is not None:
        reads = {**reads, "silenced": read_silenced}
    with poutine.replay(trace=call.batch.subsamples):
        particles = run_particles(pair, len(codes), reads=reads, values=values)
    return particles if call.batch.drawn is None else _with_silenced(particles, call.batch.drawn)


def _with_silenced(particles: Particles, drawn: Bool[Tensor, "B"]) -> Particles:
    """Masked latents of some data as the model draws them."""
    log_prior = particles.log_prior
    drawn = drawn.reshape(log_prior.shape[1:])
    silenced = torch.where(drawn, particles.extras["silenced"], 0.0)
    return particles._replace(log_prior=log_prior + silenced)


def score_silenced(call: ModelCall, states: Int32[Tensor, "S B W"]) -> Float[Tensor, "S B"]:
    """The log-density that masks silence in states of data whose masked latents are drawn."""
    assert call.batch.drawn is not None
    codes = unpack(states, call.space.cardinalities)
    with torch.no_grad(), hidden():
        particles = run_states(call._replace(rest=None), codes, {"silenced": read_silenced})
    silenced = particles.extras["silenced"].flatten(1)
    return torch.where(call.batch.drawn, silenced, 0.0).expand(len(states), states.shape[1])


def log_weights(particles: Particles, beta: float | Tensor = 1.0) -> Float[Tensor, "S *plates"]:
    """Unnormalised ``log q``: the beta-ELBO's best weights of given states."""
    return _log_joint(particles, beta) - particles.log_q_pathwise


def _log_joint(particles: Particles, beta: float | Tensor) -> Float[Tensor, "S *plates"]:
    """The same of a run without a guide."""
    if not isinstance(beta, Tensor) and beta == 1.0:
        return particles.log_p
    return particles.log_likelihood / beta + particles.log_prior


def given_values(rest_trace: poutine.Trace, batch: Minibatch, nesting: int) -> dict[str, Tensor]:
    """The draws of `rest` as `run_particles` takes them, without gradient."""
    values = {}
    for name, site in sample_sites(rest_trace).items():
        if name in batch.latents:
            value = site.value.detach()
            ones = [1] * (nesting + 1 - site.num_batch_dims)
            values[name] = value.reshape(*ones, *value.shape)
    return values


def _in_pieces(
    repeat: Callable[[Tensor], Tensor],
    words: Int32[Tensor, "S B W"],
    size: int,
    first: Tensor | None,
) -> Float[Tensor, "S B"]:
    """The scores, so many states at a time; those of the first piece may be known."""
    with torch.inference_mode():  # cheaper to call
        first = repeat(words[:size]) if first is None else first
    scores = torch.empty(words.shape[:2], dtype=first.dtype)
    scores[:size] = first
    with torch.inference_mode():
        for piece, found in zip(_cut(words, size)[1:], _cut(scores, size)[1:], strict=True):
            found.copy_(repeat(piece))
    return scores


def _cut(states: Tensor, size: int) -> list[Tensor]:
    """Pieces of one size; the last one goes back over some of those before it."""
    pieces = list(states.split(size))
    return [*pieces[:-1], states[-size:]]


_NUM_STATES = 8  # that are tried: the last codes of all latents, and others at random
_BY_CHANCE = 1e-5  # in single precision; what differs by chance only costs states


def with_drawn(call: ModelCall) -> ModelCall:
    """The call, knowing of which data the masked latents are drawn like others."""
    kept = call.batch.unmasked
    if kept is None:
        return call
    drawn = masked_matter(call, kept)
    if not bool(drawn.any()):
        return call
    return call._replace(batch=call.batch._replace(unmasked=kept | drawn[:, None], drawn=drawn))


def masked_matter(call: ModelCall, kept: Bool[Tensor, "B H"]) -> Bool[Tensor, "B"]:
    """Whether a datum's log joint changes with codes that a mask takes out, in states tried."""
    states = _states(call, kept)
    with torch.no_grad():
        scores = Scorer(call).of_codes(torch.cat([states, torch.where(kept, states, 0)]))
    some, others = scores.chunk(2)
    return changed(some, others, _BY_CHANCE).any(0)


def _states(call: ModelCall, kept: Bool[Tensor, "B H"]) -> Num[Tensor, "S B H"]:
    """The same at each call, so that no random numbers are used up."""
    sizes = torch.tensor(call.space.cardinalities)
    draws = torch.Generator().manual_seed(0)
    codes = torch.randint(2**30, (_NUM_STATES - 1, 1, len(sizes)), generator=draws) % sizes
    codes = torch.cat([(sizes - 1).expand(1, 1, -1), codes])
    return codes.to(kept.device).expand(-1, len(kept), -1)
