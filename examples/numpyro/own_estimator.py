"""A new estimator in a dozen lines: the log-variance loss, and what it turns out to be.

Where q is the posterior, log p(x, z) - log q(z | x) is the same for all z. So let the guide lower
its variance over K draws (Richter et al., NeurIPS 2020). A `ParticleELBO` says what is to be
ascended for each datum, in arrays of log-densities; model, particles and loss are taken care of.
See that from the same draws its gradient is that of leave-one-out REINFORCE, and what it reaches.
"""

import sys

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.optim import Adam

from numpyro_dvae.diagnostics import posterior_gap
from numpyro_dvae.fit import fit
from numpyro_dvae.infer import SVI, Gain, Objective, ParticleELBO, Particles, Reinforce_ELBO


class LogVariance_ELBO(ParticleELBO):
    """The guide lowers the variance of the log weights, the model ascends the ELBO."""

    min_particles = 2

    def gain(
        self, particles: Particles, objective: Objective, beta: float | jax.Array, memory: None
    ) -> Gain:
        """Both, for each datum, from log-densities ``(K, data)``."""
        log_weights = jax.lax.stop_gradient(particles.log_p) - particles.log_q
        return Gain(particles.log_p.mean(0) - log_weights.var(0, ddof=1) / 2)


def model(x: jax.Array) -> None:
    """A mixture of three normals."""
    shares = numpyro.param("shares", jnp.ones(3) / 3, constraint=dist.constraints.simplex)
    means = numpyro.param("means", jnp.array([-1.0, 0.0, 1.0]))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(shares))
        numpyro.sample("x", dist.Normal(means[z], 1.0), obs=x)


def guide(x: jax.Array) -> None:
    """Logits linear in the data, as those of the posterior are."""
    slopes, offsets = numpyro.param("slopes", jnp.zeros(3)), numpyro.param("offsets", jnp.zeros(3))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Categorical(logits=x[:, None] * slopes + offsets))


def gradient(loss: ParticleELBO, x: jax.Array) -> jax.Array:
    """Of the guide's slopes, from the draws of one seed."""

    def value(slopes: jax.Array) -> jax.Array:
        return loss.loss(jax.random.key(0), {"slopes": slopes}, model, guide, x)

    return jax.grad(value)(jnp.zeros(3))


def main(num_steps: int = 1000) -> dict[str, float]:
    """Compare gradients, train, and print the bound beside the evidence."""
    keys = jax.random.split(jax.random.key(0), 4)
    means = jnp.array([-4.0, 0.0, 4.0])[jax.random.randint(keys[0], (300,), 0, 3)]
    x = means + jax.random.normal(keys[1], (300,))
    ours, theirs = LogVariance_ELBO(4), Reinforce_ELBO(4, closed_form_entropy=False)
    slopes = gradient(ours, x), gradient(theirs, x)
    print("gradients", *(slope.round(3) for slope in slopes))
    svi = SVI(model, guide, Adam(0.03), loss=ours)
    result = fit(keys[2], svi, x, num_steps=num_steps, batch_size=100)
    exact = posterior_gap(keys[3], result, x)
    found = {"elbo": exact.elbo.mean(), "evidence": exact.log_evidence.mean()}
    found["difference"] = float(jnp.abs(slopes[0] - slopes[1]).max() / jnp.abs(slopes[1]).max())
    print(", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
