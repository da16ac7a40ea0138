"""Log joints of states of data under a model, many of them at once.

On a CPU most states are scored by repeating the operations of one pass (see `_replay`) on pieces
that a cache holds; elsewhere, and where a model cannot be repeated, by passes over large pieces.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Float, Int32, Num
from pyro import poutine
from torch import Tensor

from pyro_dvae.infer.truncated.minibatch import Minibatch, given
from pyro_dvae.infer.truncated.replay import Replay, record
from pyro_dvae.ops.sets.packing import unpack
from pyro_dvae.programs.codes import Space, decode
from pyro_dvae.programs.pair import Pair
from pyro_dvae.programs.record import Particles
from pyro_dvae.programs.run import run_particles

_CODES_AT_ONCE = 2**21  # that a pass of the model scores: 8 MB as floats
_CODES_REPEATED = 5 * 2**16  # that a repetition of it scores: 1.25 MB, so that a cache holds all
_REPETITIONS = 6  # from which on recording a pass is worth it
_TOLERANCE = 1e-4  # between a pass and a repetition, whose sums may be in another order


class Call(NamedTuple):
    """One call of a model, and what is known of it."""

    model: Callable
    args: tuple
    kwargs: dict
    space: Space
    batch: Minibatch
    vectorize: bool
    repeats: dict[tuple, bool]  # whether a pass on states of this shape can be repeated, if known


class Scorer:
    """Log joints of states at fixed parameters, without gradient but in the states.

    Args:
        call: What the states are of.
        own: Draws of the model's other latents.
        beta: Weight of the rate.
    """

    def __init__(self, call: Call, own: poutine.Trace, beta: float | Tensor = 1.0) -> None:
        self.call, self.beta = call, beta
        rest = given(own, call.space.layout.nesting)
        self.rest = {name: value for name, value in rest.items() if name in call.batch.latents}
        self._replay: Replay | None = None

    def of_words(self, words: Int32[Tensor, "S B W"]) -> Float[Tensor, "S B"]:
        """Scores of packed states."""
        num_codes = words.shape[1] * len(self.call.space.cardinalities)
        size = max(1, _CODES_REPEATED // num_codes)
        is_worth_it = self.call.vectorize and len(words) >= _REPETITIONS * size
        if words.device.type == "cpu" and is_worth_it:
            known = self._record(words, size)
            if self._replay is not None:
                return self._repeated(self._replay, words, known)
        parts = words.split(max(1, _CODES_AT_ONCE // num_codes))
        return torch.cat([self._pass_words(part) for part in parts])

    def of_codes(self, codes: Num[Tensor, "S B H"]) -> Float[Tensor, "S B"]:
        """Scores of codes, real ones too, with their gradient if they ask for it."""
        parts = codes.chunk(math.ceil(codes.numel() / _CODES_AT_ONCE))
        return torch.cat([self._pass(part) for part in parts])

    def _record(self, words: Int32[Tensor, "S B W"], size: int) -> list[Tensor]:
        """Find out how to repeat a pass on so many states; scores that are known from it already.

        The first time it is tried on other states: a program may keep something from pass to pass.
        """
        shape = (size, *words.shape[1:])
        if self._replay is not None or not self.call.repeats.get(shape, True):
            return []
        with torch.no_grad():
            scores, replay = record(self._pass_words, words[:size])
            if replay is not None and shape not in self.call.repeats:
                found, again = self._pass_words(words[-size:]), replay(words[-size:])
                if not torch.allclose(found, again, _TOLERANCE, _TOLERANCE, equal_nan=True):
                    replay = None
        self._replay = replay
        self.call.repeats[shape] = replay is not None
        return [scores]

    def _repeated(
        self, replay: Replay, words: Int32[Tensor, "S B W"], known: list[Tensor]
    ) -> Float[Tensor, "S B"]:
        """The scores, a piece at a time."""
        scores, size = replay.result.new_empty(words.shape[:2]), len(replay.source)
        with torch.inference_mode():  # cheaper to call
            for piece, found in zip(_cut(words, size), _cut(scores, size), strict=True):
                found.copy_(known.pop() if known else replay(piece))
        return scores

    def _pass_words(self, words: Int32[Tensor, "S B W"]) -> Float[Tensor, "S B"]:
        return self._pass(unpack(words, self.call.space.cardinalities))

    def _pass(self, codes: Num[Tensor, "S B H"]) -> Float[Tensor, "S B"]:
        """One run of the model."""
        call = self.call
        layout, vectorize = call.space.layout, call.vectorize
        pair = Pair(call.model, None, call.args, call.kwargs, layout, vectorize)
        with (
            torch.set_grad_enabled(codes.requires_grad),
            poutine.block(),
            poutine.replay(trace=call.batch.subsamples),
            pyro.validation_enabled(False),  # the pass that makes the bound validates once
        ):
            values = decode(call.space, codes, call.batch.sizes) | self.rest
            particles = run_particles(pair, len(codes), values=values)
            return _log_joint(particles, self.beta).flatten(1)


def _cut(states: Tensor, size: int) -> list[Tensor]:
    """Pieces of one size; the last one goes back over some of those before it."""
    pieces = list(states.split(size))
    return [*pieces[:-1], states[-size:]]


def log_weights(particles: Particles, beta: float | Tensor = 1.0) -> Float[Tensor, "S *plates"]:
    """Unnormalised ``log q``: the beta-ELBO's best weights of given states."""
    return _log_joint(particles, beta) - particles.log_q_pathwise


def _log_joint(particles: Particles, beta: float | Tensor) -> Float[Tensor, "S *plates"]:
    """The same of a run without a guide."""
    if not isinstance(beta, Tensor) and beta == 1.0:
        return particles.log_p
    return particles.log_likelihood / beta + particles.log_prior
