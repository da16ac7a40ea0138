"""Flips for truncated posteriors that ask the model: its slopes, its prior.

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

import torch
from torch import Tensor

from pyro_dvae.infer.truncated.estep import current_setting
from pyro_dvae.infer.truncated.minibatch import prior_probs
from pyro_dvae.ops.sets.evolution import Operator, Population, sparse_flip, unscored
from pyro_dvae.ops.sets.states import change_latents

__all__ = ["informed_flip", "prior_flip"]


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
        setting = current_setting("informed_flip")
        codes, scores, cardinalities = population.codes, population.scores, population.cardinalities
        if not all(site.is_range and len(site.support) == 2 for site in setting.call.space.sites):
            raise ValueError(
                "`informed_flip` needs latents of the codes 0 and 1, as Bernoulli sites have; got "
                f"cardinalities {cardinalities}. Use ops.evolution.flip."
            )
        with torch.enable_grad():
            real = codes.to(scores.dtype).requires_grad_()
            (slopes,) = torch.autograd.grad(setting.score(real).sum(), real)
        gains = (1 - 2 * real.detach()) * slopes
        chances = 0.5 * gains - torch.empty_like(gains).exponential_().log()
        count = min(num_children, codes.shape[-1])
        latents = chances.topk(count, -1, sorted=False).indices.movedim(-1, 0)  # (C, P, B)
        children = population.words.repeat(count, 1, 1)
        known = population.hashes
        hashes = change_latents(
            children.flatten(0, 1),
            None if known is None else known.repeat(count, 1).flatten(),
            latents.flatten(),
            cardinalities,
        )
        return unscored(children, cardinalities, hashes)

    return operator


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
        call = current_setting("prior_flip").call
        num_active = prior_probs(call.batch.latents, call.space)[:, 1].sum()
        return sparse_flip(num_children, rate, num_active)(population)

    return operator
