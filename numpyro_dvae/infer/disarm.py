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
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from numpyro_dvae.infer.elbo import ParticleELBO
from numpyro_dvae.infer.objective import Gain, Objective, credited
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.multisample import antithetic_advantages, antithetic_draw, antithetic_factor
from numpyro_dvae.ops.weighting import fill_impossible
from numpyro_dvae.programs.draw import Sampler
from numpyro_dvae.programs.readers.credit import Influence, credit_reader, find_influence, log_draw
from numpyro_dvae.programs.record import Ledger, Particles, Reader
from numpyro_dvae.programs.sites import Layout, Pair, Run, Site
from numpyro_dvae.programs.structure.layout import independent_sites

__all__ = ["AntitheticSampler", "DisARM_ELBO", "PairedSites", "antithetic_pairs"]


def antithetic_pairs(
    beta_elbo: Float[Array, "K *plates"], log_pair: Float[Array, "K *plates"]
) -> Float[Array, "*plates"]:
    """The estimator of K/2 antithetic pairs, particles k and k + K/2.

    Args:
        beta_elbo: f of each particle, with its gradient along the pathwise parts.
        log_pair: Log-probability of each draw under the guide, of sites drawn in pairs each
            latent's by its ``max(p, 1 - p)``.

    Returns:
        What is ascended, for each datum.

    Example:
        >>> f = jnp.array([[1.0], [3.0]])
        >>> step = lambda log_q: antithetic_pairs(f, log_q).sum()
        >>> jax.grad(step)(jnp.zeros((2, 1))).ravel()  # (f(z) - f(z')) / 2 and its opposite
        Array([-1.,  1.], dtype=float32)
    """
    return (antithetic_advantages(beta_elbo) * log_pair + beta_elbo).mean(0)


class AntitheticSampler:
    """Draws some sites in pairs, both of a pair from the same uniforms.

    Args:
        rng_key: Key of all pairs.
        names: Of the Bernoulli sites that it draws.
        num_particles: K, even.
    """

    def __init__(self, rng_key: Array, names: tuple[str, ...], num_particles: int) -> None:
        self.names, self.num_pairs = names, num_particles // 2
        rng_key = jax.random.fold_in(rng_key, num_particles)  # none of those of the particles
        self._keys = jax.random.split(rng_key, self.num_pairs)

    def draws(self, name: str) -> bool:
        """Whether it draws this site."""
        return name in self.names

    def __call__(self, site: Site, shape: tuple[int, ...], particle: Array) -> Array:
        """The value in one particle."""
        probs, mirrored = site.fn.mean, particle >= self.num_pairs
        key = self._keys[particle % self.num_pairs]
        key = jax.random.fold_in(key, zlib.crc32(site.name.encode()))
        uniforms = jax.random.uniform(key, shape, probs.dtype)
        return antithetic_draw(probs, uniforms, mirrored).astype(int)


def read_pairs(run: Run, layout: Layout, num_particles: int) -> Float[Array, "*plates"]:
    """As `Particles.log_draw`, each latent of a pair weighed by its factor."""
    ledger = Ledger(layout, ())
    for site in run.guide.values():
        if site.is_credited:
            ledger.add_bare("draw", site, _log_pair(site))
    return ledger.total("draw")


def _log_pair(site: Site) -> Array:
    return _weighed_log_prob(site) if site.by_sampler else log_draw(site)


def _weighed_log_prob(site: Site) -> Array:
    base = site.base
    weighed = antithetic_factor(base.probs) * site.log_prob_under(base)
    return weighed.sum(range(-site.fn.event_dim, 0))


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

    def inspect(self, rng_key: Array, pair: Pair) -> PairedSites:
        """The sites that can be drawn in pairs, and which draws influence what."""
        paired = independent_sites(rng_key, pair, _probability)
        return PairedSites(paired, find_influence(rng_key, pair))

    def readers(self, pair: Pair) -> Mapping[str, Reader]:
        """Also what each site's draws can influence, if they are not all alike."""
        if pair.notes.influence is None:
            return self.reads
        with_entropy = self.closed_form_entropy
        reader = credit_reader(pair.notes.influence, _log_pair, with_entropy=with_entropy)
        return {**self.reads, "credit": reader}

    def sampler(self, rng_key: Array, pair: Pair) -> Sampler:
        """Draws these sites in pairs."""
        return AntitheticSampler(rng_key, pair.notes.paired, self.num_particles)

    def gain(
        self, particles: Particles, objective: Objective, beta: float | Array, memory: Any
    ) -> Gain:
        """Compare the two of each pair."""
        beta_elbo = fill_impossible(objective.beta_elbo)
        if "credit" in particles.extras:
            return Gain(beta_elbo.mean(0) + credited(particles, beta, antithetic_advantages))
        log_pair = particles.extras["log_pair"]  # 0 of no discrete sites
        log_pair = jnp.broadcast_to(log_pair, beta_elbo.shape)
        return Gain(antithetic_pairs(beta_elbo, log_pair))


def _probability(site: Site) -> Array:
    if not isinstance(site.base, dist.BernoulliLogits | dist.BernoulliProbs):
        raise ValueError(
            f"site '{site.name}' of the guide is {site.family}, but antithetic pairs are of "
            "Bernoulli draws. Make it Bernoulli, or use Reinforce_ELBO, VIMCO_ELBO or DAPS_ELBO."
        )
    return site.fn.mean
