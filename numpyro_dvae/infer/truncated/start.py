"""The sets that training starts from: distinct states of every datum, drawn at random."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from numpyro_dvae.infer.truncated.minibatch import prior_probs
from numpyro_dvae.infer.truncated.scoring import ModelCall
from numpyro_dvae.ops.sets.packing import pack
from numpyro_dvae.ops.sets.states import random_states

__all__ = ["first_words"]

_CODES_AT_ONCE = 2**24  # of the first states, drawn together


def first_words(
    rng_key: Array, call: ModelCall, num_states: int, probs: float | Float[Array, "H"] | None
) -> UInt32[Array, "N S W"]:
    """S distinct states of each of all N data, packed.

    Args:
        rng_key: Key of the draws.
        call: A call of the model, which knows N and the prior.
        num_states: S.
        probs: Probabilities of 1 of binary latents, one number or one per latent; else the
            probabilities of the codes in the prior.

    Raises:
        ValueError: If S exceeds the number of joint states, or if there are `probs` and a latent
            is not binary.
    """
    cardinalities, num_data = call.space.cardinalities, call.batch.num_data
    return _random_words(rng_key, num_states, num_data, cardinalities, _chances(call, probs))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _random_words(
    rng_key: Array,
    num_states: int,
    num_data: int,
    cardinalities: tuple[int, ...],
    chances: Float[Array, "H V"],
) -> UInt32[Array, "N S W"]:
    size = min(max(_CODES_AT_ONCE // (num_states * len(cardinalities)), 1), num_data)

    def draw(key: Array) -> Array:
        codes = random_states(key, num_states, size, cardinalities, chances)
        return pack(jnp.swapaxes(codes, 0, 1), cardinalities)

    words = jax.lax.map(draw, jax.random.split(rng_key, -(-num_data // size)))
    return words.reshape(-1, *words.shape[2:])[:num_data]


def _chances(call: ModelCall, probs: float | Float[Array, "H"] | None) -> Float[Array, "H V"]:
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
    ones = jnp.broadcast_to(jnp.asarray(probs, prior.dtype), len(prior))
    return jnp.stack([1.0 - ones, ones], -1)
