"""Operators that ask the model what to propose: its slopes, its prior, an amortised guide.

They find the scorer of the E-step in the population's `context`, and so work in E-steps alone.

A random flip of one of H latents seldom helps. The slope of the log joint, with real numbers in
place of the binary codes, prices all H flips of a state at once, for little more than scoring it:

    gain_h ≈ (1 - 2 z_h) d log p(x, z) / d z_h.

Chances ``∝ exp(gain / 2)`` make up for the curvature that a slope does not see, as in sampling with
locally balanced proposals [1, 2]. The children are then scored as they are, so the bound never
falls however bad the slopes. They find in tens of sweeps what random flips find in hundreds, and
so may settle before the parameters have: mix both by `ops.evolution.union`, or hold a learnt prior
for some epochs, where latents die early.

References:
    [1] Zanella. Informed proposals for local MCMC in discrete spaces. JASA, 2020.
    [2] Grathwohl, Swersky, Hashemi, Duvenaud & Maddison. Oops I took a gradient: scalable sampling
        for discrete distributions. ICML, 2021.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32
from numpyro.handlers import block, substitute

from numpyro_dvae.infer.truncated.minibatch import prior_probs
from numpyro_dvae.infer.truncated.scoring import Scorer
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.sets.evolution import Operator, Population, sparse_flip, unscored
from numpyro_dvae.ops.sets.hashing import change_hash, hash_states, zobrist_table
from numpyro_dvae.ops.sets.packing import unpack
from numpyro_dvae.programs.codes import encode
from numpyro_dvae.programs.draw import Draw, run_program
from numpyro_dvae.programs.sites import sample_sites

__all__ = ["draws_of", "from_pool", "informed_flip", "prior_flip"]


@checked
def informed_flip(num_children: int) -> Operator:
    """An operator for `evolve`: children that differ from their parent in one latent each.

    Like `ops.evolution.flip`, but latents are drawn by the slope of the log joint in them. The
    latents must be binary, and the model a function of numbers: where it uses them as an index,
    it has no slope, and the flip is random. Compose it as
    ``chain(select(4), informed_flip(6))``.

    Args:
        num_children: Children of each parent, of distinct latents; H at most.

    Raises:
        ValueError: If `num_children` is not positive; in use, if a latent is not binary, or
            outside of an E-step.
    """
    if num_children < 1:
        raise ValueError(f"`num_children` must be 1 or more; got {num_children}.")

    def operator(rng_key: Array, population: Population) -> Population:
        gains = _gains(_scorer_of(population, "informed_flip"), population)
        chances = 0.5 * gains + jax.random.gumbel(rng_key, gains.shape, gains.dtype)
        codes, _, cardinalities, hashes, _ = population
        count = min(num_children, codes.shape[-1])
        latents = jnp.moveaxis(jax.lax.top_k(chances, count)[1], -1, 0)  # (C, P, B)
        flips = jnp.arange(codes.shape[-1]) == latents[..., None]
        children = (codes ^ flips.astype(codes.dtype)).reshape(-1, *codes.shape[1:])
        table = zobrist_table(cardinalities)
        hashes = hash_states(codes, table) if hashes is None else hashes
        old = jnp.take_along_axis(codes[None], latents[..., None], axis=-1)[..., 0]
        hashes = change_hash(hashes, table, latents, old, 1 - old).reshape(children.shape[:2])
        return unscored(children, population, hashes)

    return operator


@checked
def prior_flip(num_children: int, rate: float) -> Operator:
    """An operator for `evolve`: `ops.evolution.sparse_flip` with the activity of the prior.

    The number of latents that children tend to have on is the sum of the probabilities in the
    model's prior as it stands, learnt or not.

    Args:
        num_children: Children of each parent.
        rate: Mean share of the latents that flip, in (0, 1].

    Raises:
        ValueError: If an argument is out of range; in use, if a latent is not binary, or outside
            of an E-step.
    """
    sparse_flip(num_children, rate, 1.0)  # complains at once

    def operator(rng_key: Array, population: Population) -> Population | Array:
        call = _scorer_of(population, "prior_flip").call
        num_active = prior_probs(call.batch.latents, call.space)[:, 1].sum()
        return sparse_flip(num_children, rate, num_active)(rng_key, population)

    return operator


@checked
def draws_of(guide: Callable, num_draws: int) -> Operator:
    """An operator for `evolve`: children are `num_draws` draws from an amortised guide.

    The guide is called with the model's arguments, without gradient; it must sample all discrete
    sites of a datum. Its parameters are those of the `SVI`, or substituted before. Combine it with
    others by `ops.evolution.union`.

    Raises:
        ValueError: If `num_draws` is not positive; in use, if the guide lacks a discrete site, or
            outside of an E-step.
    """
    if num_draws < 1:
        raise ValueError(f"`num_draws` must be 1 or more; got {num_draws}.")

    def operator(rng_key: Array, population: Population) -> Array:
        call = _scorer_of(population, "draws_of").call
        names = [site.name for site in call.space.sites]
        program = substitute(guide, data=call.params | call.batch.subsamples)

        def draw(key: Array) -> dict[str, Array]:
            with block(), Draw(key, call.space.layout):
                sites = sample_sites(run_program(key, program, call.args, call.kwargs))
            if missing := [name for name in names if name not in sites]:
                raise ValueError(
                    f"draws_of(guide) needs a guide with the model's discrete sites {names}; it "
                    f"has no {missing}."
                )
            return {name: sites[name].value for name in names}

        values = jax.vmap(draw)(jax.random.split(rng_key, num_draws))
        return encode(call.space, values, call.batch.sizes)

    return operator


def from_pool(words: UInt32[Array, "N S W"]) -> Operator:
    """An operator for `evolve`: children are S states of the sets of other data, at random."""

    def operator(rng_key: Array, population: Population) -> Array:
        shape, keys = (words.shape[1], population.codes.shape[1]), jax.random.split(rng_key)
        rows, places = (
            jax.random.randint(key, shape, 0, size)
            for key, size in zip(keys, words.shape[:2], strict=True)
        )
        return unpack(words[rows, places], population.cardinalities)

    return operator


def _scorer_of(population: Population, name: str) -> Scorer:
    """That of the E-step that calls operator `name`."""
    if not isinstance(population.context, Scorer):
        raise ValueError(f"{name}(...) proposes inside of an E-step, where there are data.")
    return population.context


def _gains(scorer: Scorer, population: Population) -> Float[Array, "P B H"]:
    """What a flip of each latent would add to the log joint, by its slope."""
    if not all(site.is_range and len(site.support) == 2 for site in scorer.call.space.sites):
        raise ValueError(
            "`informed_flip` needs latents of the codes 0 and 1, as Bernoulli sites have; got "
            f"cardinalities {population.cardinalities}. Use ops.evolution.flip."
        )
    codes = population.codes.astype(population.scores.dtype)
    return (1 - 2 * codes) * jax.grad(lambda z: scorer.of_codes(z).sum())(codes)
