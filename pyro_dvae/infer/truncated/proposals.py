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

import torch
from jaxtyping import Float, Int32
from pyro import poutine
from torch import Tensor

from pyro_dvae.infer.truncated.minibatch import prior_probs
from pyro_dvae.infer.truncated.scoring import Scorer
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.noise import drawn_for_rows
from pyro_dvae.ops.sets.evolution import Operator, Population, sparse_flip, unscored
from pyro_dvae.ops.sets.packing import unpack
from pyro_dvae.ops.sets.states import change_latents
from pyro_dvae.programs.codes import encode
from pyro_dvae.programs.draw import Draw, run_program
from pyro_dvae.programs.processes import hidden
from pyro_dvae.programs.sites import sample_sites

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

    def operator(population: Population) -> Population:
        gains = _gains(_scorer_of(population, "informed_flip"), population)
        noise = drawn_for_rows(lambda s: gains.new_empty(s).exponential_(), gains.shape, -2)
        chances = 0.5 * gains - noise.log()
        count = min(num_children, gains.shape[-1])
        latents = chances.topk(count, -1, sorted=False).indices.movedim(-1, 0)  # (C, P, B)
        children, hashes = population.words.repeat(count, 1, 1), population.hashes
        before = None if hashes is None else hashes.repeat(count, 1).flatten()
        cardinalities = population.cardinalities
        hashes = change_latents(children.flatten(0, 1), before, latents.flatten(), cardinalities)
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

    def operator(population: Population) -> Population | Tensor:
        call = _scorer_of(population, "prior_flip").call
        num_active = prior_probs(call.batch.latents, call.space)[:, 1].sum()
        return sparse_flip(num_children, rate, num_active)(population)

    return operator


@checked
def draws_of(guide: Callable, num_draws: int) -> Operator:
    """An operator for `evolve`: children are `num_draws` draws from an amortised guide.

    The guide is called with the model's arguments, without gradient; it must sample all discrete
    sites of a datum. Combine it with others by `ops.evolution.union`.

    Raises:
        ValueError: If `num_draws` is not positive; in use, if the guide lacks a discrete site, or
            outside of an E-step.
    """
    if num_draws < 1:
        raise ValueError(f"`num_draws` must be 1 or more; got {num_draws}.")

    def operator(population: Population) -> Tensor:
        call = _scorer_of(population, "draws_of").call
        space, batch = call.space, call.batch
        with torch.no_grad(), hidden(), poutine.replay(trace=batch.subsamples):
            with Draw(space.layout, num_draws):
                sites = sample_sites(run_program(guide, call.args, call.kwargs))
        names = [site.name for site in space.sites]
        if missing := [name for name in names if name not in sites]:
            raise ValueError(
                f"draws_of(guide) needs a guide with the model's discrete sites {names}; it has "
                f"no {missing}."
            )
        values = {name: sites[name].value for name in names}
        return encode(space, values, batch.sizes)

    return operator


def from_pool(words: Int32[Tensor, "N S W"]) -> Operator:
    """An operator for `evolve`: children are S states of the sets of other data, at random."""

    def operator(population: Population) -> Tensor:
        shape = words.shape[1], population.scores.shape[1]
        rows, places = (torch.randint(size, shape, device=words.device) for size in words.shape[:2])
        return unpack(words[rows, places], population.cardinalities)

    return operator


def _scorer_of(population: Population, name: str) -> Scorer:
    """That of the E-step that calls operator `name`."""
    if not isinstance(population.context, Scorer):
        raise ValueError(f"{name}(...) proposes inside of an E-step, where there are data.")
    return population.context


def _gains(scorer: Scorer, population: Population) -> Float[Tensor, "P B H"]:
    """What a flip of each latent would add to the log joint, by its slope."""
    if not all(site.is_range and len(site.support) == 2 for site in scorer.call.space.sites):
        raise ValueError(
            "`informed_flip` needs latents of the codes 0 and 1, as Bernoulli sites have; got "
            f"cardinalities {population.cardinalities}. Use ops.evolution.flip."
        )
    with torch.enable_grad():
        codes = population.codes.to(population.scores.dtype).requires_grad_()
        (slopes,) = torch.autograd.grad(scorer.of_codes(codes).sum(), codes)
    return (1 - 2 * codes.detach()) * slopes
