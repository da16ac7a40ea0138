"""Log joints of states of data under a model, many of them at once."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Float, Int32, Num
from pyro import poutine
from torch import Tensor

from pyro_dvae.infer._minibatch import Minibatch, given
from pyro_dvae.infer.particles import Particles, run_particles
from pyro_dvae.infer.space import Space, decode
from pyro_dvae.ops.states import unpack

_CODES_AT_ONCE = 2**21  # that are scored together: 8 MB as floats, which a cache holds


class Call(NamedTuple):
    """One call of a model, and what is known of it."""

    model: Callable
    args: tuple
    kwargs: dict
    space: Space
    batch: Minibatch
    vectorize: bool


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

    def of_words(self, words: Int32[Tensor, "S B W"]) -> Float[Tensor, "S B"]:
        """Scores of packed states."""
        size = max(1, _CODES_AT_ONCE // (words.shape[1] * len(self.call.space.cardinalities)))
        parts = words.split(size)
        return torch.cat([self._pass(unpack(p, self.call.space.cardinalities)) for p in parts])

    def of_codes(self, codes: Num[Tensor, "S B H"]) -> Float[Tensor, "S B"]:
        """Scores of codes, real ones too, with their gradient if they ask for it."""
        parts = codes.chunk(math.ceil(codes.numel() / _CODES_AT_ONCE))
        return torch.cat([self._pass(part) for part in parts])

    def _pass(self, codes: Num[Tensor, "S B H"]) -> Float[Tensor, "S B"]:
        """One run of the model."""
        call = self.call
        with (
            torch.set_grad_enabled(codes.requires_grad),
            poutine.block(),
            poutine.replay(trace=call.batch.subsamples),
            pyro.validation_enabled(False),  # the pass that makes the bound validates once
        ):
            particles = run_particles(
                call.model,
                None,
                call.args,
                call.kwargs,
                call.space.layout,
                len(codes),
                vectorize=call.vectorize,
                values=decode(call.space, codes, call.batch.sizes) | self.rest,
            )
            return log_weights(particles, self.beta).flatten(1)


def log_weights(particles: Particles, beta: float | Tensor = 1.0) -> Float[Tensor, "S *plates"]:
    """Unnormalised ``log q``: the beta-ELBO's best weights of given states."""
    return particles.log_likelihood / beta + particles.log_prior - particles.log_q_rest
