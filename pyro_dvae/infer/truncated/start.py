"""The sets that training starts from: distinct states of every datum, drawn at random."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from pyro_dvae.infer.truncated.minibatch import prior_probs
from pyro_dvae.infer.truncated.scoring import ModelCall
from pyro_dvae.ops.sets.packing import num_words, pack
from pyro_dvae.ops.sets.states import random_states

__all__ = ["first_words"]

_CODES_AT_ONCE = 2**22  # of the first states that are drawn together: 16 MB of random numbers


def first_words(
    call: ModelCall, num_states: int, probs: float | Float[Tensor, "H"] | None
) -> Int32[Tensor, "N S W"]:
    """S distinct states of each of all N data, packed.

    Args:
        call: A call of the model, which knows N and the prior.
        num_states: S.
        probs: Probabilities of 1 of binary latents, one number or one per latent; else the
            probabilities of the codes in the prior.

    Raises:
        ValueError: If S exceeds the number of joint states, or if there are `probs` and a latent
            is not binary.
    """
    cardinalities, num_data = call.space.cardinalities, call.batch.num_data
    chances = _chances(call, probs)
    words = torch.empty(
        (num_data, num_states, num_words(cardinalities)),
        dtype=torch.int32,
        device=chances.device,
    )
    for part in words.split(max(1, _CODES_AT_ONCE // (num_states * len(cardinalities)))):
        codes = random_states(num_states, len(part), cardinalities, chances)
        part.copy_(pack(codes.transpose(0, 1), cardinalities))
    return words


def _chances(call: ModelCall, probs: float | Float[Tensor, "H"] | None) -> Float[Tensor, "H V"]:
    """Of each latent's codes."""
    prior = prior_probs(call.batch.latents, call.space)
    if probs is None:
        return prior
    if set(call.space.cardinalities) != {2}:
        raise ValueError(
            "`probs` are those of binary latents; the model has latents of "
            f"{sorted(set(call.space.cardinalities))} codes. Leave it out: the first states "
            "are then drawn with the probabilities of the prior."
        )
    ones = torch.as_tensor(probs, dtype=prior.dtype, device=prior.device).expand(len(prior))
    return torch.stack([1.0 - ones, ones], -1)
