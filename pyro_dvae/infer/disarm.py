"""DisARM: score-function gradients of binary latents from antithetic pairs of draws.

A pair z, z' comes from one uniform per latent, so that the two differ as often as they can. With
f the beta-ELBO's integrand and p the probability of a 1, a latent's logit gets

    ½ (f(z) - f(z')) (z - z') max(p, 1 - p)

from each pair, the expectation of the ARM estimator given the pair [1], [2]; all else follows the
gradient of f at both draws. The mean over K/2 independent pairs is unbiased.

That needs both halves to have the same p. A site whose logits depend on other draws of its particle
(an earlier discrete site, a reparameterised one) is drawn independently in the two halves and gets

    ½ (f(z) - f(z')) (grad log q(z) - grad log q(z')),

leave-one-out REINFORCE within the pair. Given all else in z', such a draw of z has the score's mean
of zero, so the whole stays unbiased; `DisARM_ELBO.inspect` tells the two kinds of sites apart.

Where a draw influences a part of a datum only, f is that part, site by site and cell by cell
(`programs.readers.credit`): of a term that it does not influence, both of a pair have the same mean
times ``z - z'``, which is as often 1 as -1, or times the score of a draw made alone.

References:
    [1] Dong, Mnih & Tucker. DisARM: an antithetic gradient estimator for binary latent
        variables. NeurIPS, 2020.
    [2] Yin, Ho, Yan, Qian & Zhou. Probabilistic best subset selection by gradient-based
        optimization. arXiv 2006.06448, 2020 (U2G).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_dvae.infer.elbo import ParticleELBO
from pyro_dvae.infer.objective import Gain, Objective, credited
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.multisample import antithetic_advantages, antithetic_draw, antithetic_factor
from pyro_dvae.ops.weighting import fill_impossible
from pyro_dvae.programs.draw import Sampler
from pyro_dvae.programs.readers.credit import Influence, credit_reader, find_influence, log_draw
from pyro_dvae.programs.record import Ledger, Particles, Reader
from pyro_dvae.programs.sites import Layout, Pair, Run, Site
from pyro_dvae.programs.structure.layout import independent_sites

__all__ = ["AntitheticSampler", "DisARM_ELBO", "PairedSites", "antithetic_pairs"]


def antithetic_pairs(
    beta_elbo: Float[Tensor, "K *plates"], log_pair: Float[Tensor, "K *plates"]
) -> Float[Tensor, "*plates"]:
    """The estimator of K/2 antithetic pairs, particles k and k + K/2.

    Args:
        beta_elbo: f of each particle, with its gradient along the pathwise parts.
        log_pair: Log-probability of each draw under the guide, of sites drawn in pairs each
            latent's by its ``max(p, 1 - p)``.

    Returns:
        What is ascended, for each datum.

    Example:
        >>> f, log_q = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1, requires_grad=True)
        >>> antithetic_pairs(f, log_q).sum().backward()
        >>> log_q.grad.flatten()  # (f(z) - f(z')) / 2 and its opposite
        tensor([-1.,  1.])
    """
    return (antithetic_advantages(beta_elbo) * log_pair + beta_elbo).mean(0)


class AntitheticSampler:
    """Draws some sites in pairs, both of a pair from the same uniforms.

    Args:
        names: Of the Bernoulli sites that it draws.
        num_particles: K, even.
    """

    def __init__(self, names: tuple[str, ...], num_particles: int) -> None:
        self.names, self.num_pairs = names, num_particles // 2
        self._uniforms: dict[tuple[str, int], Tensor] = {}

    def draws(self, name: str) -> bool:
        """Whether it draws this site."""
        return name in self.names

    def __call__(self, site: Site, shape: tuple[int, ...], particle: int | None) -> Tensor:
        """Values of one particle, or of all."""
        probs = site.fn.mean.detach()
        if particle is None:
            uniforms = probs.new_empty((self.num_pairs, *shape)).uniform_()
            halves = [antithetic_draw(probs, uniforms, mirrored) for mirrored in (False, True)]
            return torch.cat(halves).to(probs.dtype)
        key, mirrored = (site.name, particle % self.num_pairs), particle >= self.num_pairs
        if not mirrored:
            self._uniforms[key] = torch.rand_like(probs)
        return antithetic_draw(probs, self._uniforms[key], mirrored).to(probs.dtype)


def read_pairs(run: Run, layout: Layout, num_particles: int) -> Float[Tensor, "K *plates"]:
    """As `Particles.log_draw`, each latent of a pair weighed by its factor."""
    ledger = Ledger(layout, num_particles, ())
    for site in run.guide.values():
        if site.is_credited:
            ledger.add_bare("draw", site, _log_pair(site))
    return ledger.total("draw")


def _log_pair(site: Site) -> Tensor:
    return _weighed_log_prob(site) if site.by_sampler else log_draw(site)


def _weighed_log_prob(site: Site) -> Tensor:
    base = site.base
    weighed = antithetic_factor(base.probs) * base.log_prob(site.value)
    return weighed.sum(tuple(range(-site.fn.event_dim, 0))) if site.fn.event_dim else weighed


class PairedSites(NamedTuple):
    """What `DisARM_ELBO` must know of the programs."""

    paired: tuple[str, ...]  # the sites whose probabilities depend on no other draw
    influence: Influence | None  # which draws each term is computed from, if not all alike


class DisARM_ELBO(ParticleELBO):
    """Antithetic score-function estimator for Bernoulli latents, unbiased.

    Args:
        num_particles: K, even: particles k and k + K/2 are a pair.
        closed_form_entropy: See `ParticleELBO`.
        beta: See `ParticleELBO`.
        target_rate: See `ParticleELBO`.
        max_plate_nesting: See `ParticleELBO`.
        vectorize_particles: See `ParticleELBO`.

    Raises:
        ValueError: If K is odd; on the first step, if a site of the guide that needs the score
            function is not Bernoulli.
    """

    min_particles = 2
    reads: ClassVar = {"log_pair": read_pairs}

    @checked
    def __init__(
        self,
        num_particles: int = 2,
        *,
        closed_form_entropy: bool = True,
        beta: float | Callable[[int], float] = 1.0,
        target_rate: float | None = None,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        if isinstance(num_particles, int) and num_particles % 2:
            raise ValueError(
                f"`num_particles` must be even for DisARM_ELBO, which draws pairs; got "
                f"{num_particles}."
            )
        super().__init__(
            num_particles,
            beta=beta,
            target_rate=target_rate,
            closed_form_entropy=closed_form_entropy,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
        )

    def inspect(self, pair: Pair) -> PairedSites:
        """The sites that can be drawn in pairs, and which draws influence what."""
        paired = independent_sites(pair, _probability)
        return PairedSites(paired, find_influence(pair))

    def readers(self, pair: Pair) -> Mapping[str, Reader]:
        """Also what each site's draws can influence, if they are not all alike."""
        if pair.notes.influence is None or pair.structure is None or not pair.vectorize:
            return self.reads
        with_entropy = self.closed_form_entropy
        reader = credit_reader(pair.notes.influence, _log_pair, with_entropy=with_entropy)
        return {**self.reads, "credit": reader}

    def sampler(self, pair: Pair) -> Sampler:
        """Draws these sites in pairs."""
        return AntitheticSampler(pair.notes.paired, self.num_particles)

    def gain(
        self, particles: Particles, objective: Objective, beta: float | Tensor, memory: Any
    ) -> Gain:
        """Compare the two of each pair."""
        beta_elbo = fill_impossible(objective.beta_elbo)
        if "credit" in particles.extras:
            return Gain(beta_elbo.mean(0) + credited(particles, beta, antithetic_advantages))
        log_pair = particles.extras["log_pair"].expand_as(beta_elbo)  # 0 of no discrete sites
        return Gain(antithetic_pairs(beta_elbo, log_pair))


def _probability(site: Site) -> Tensor:
    if not isinstance(site.base, torch.distributions.Bernoulli):
        raise ValueError(
            f"site '{site.name}' of the guide is {site.family}, but antithetic pairs are of "
            "Bernoulli draws. Make it Bernoulli, or use Reinforce_ELBO, VIMCO_ELBO or DAPS_ELBO."
        )
    return site.fn.mean
