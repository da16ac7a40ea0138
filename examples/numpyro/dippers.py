"""Do birds live on, or were they not seen? Survival of 294 dippers, by three algorithms.

Each summer since its first, a bird of the river lived on with probability phi, and if it lived was
caught with probability p (Cormack-Jolly-Seber; data of Marzolin, 1981 to 1987). Summed over all
lives, the likelihood has its maximum, -333.42 nats, at phi = .5602, p = .9026 (Lebreton, 1992).
`AutoDiscrete` takes the program as it is: each summer given the one before it, bird by bird; that a
bird was alive before it was caught it knows at the start.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import Array
from numpyro.optim import Adam

from numpyro_dvae.diagnostics import discrete_posterior
from numpyro_dvae.fit import fit
from numpyro_dvae.guides import AutoDiscrete
from numpyro_dvae.infer import DAPS_ELBO, SVI, Exact_ELBO, Reinforce_ELBO

FILE = __file__.rsplit("/", 2)[0] + "/data/dipper.txt"  # a bird a line, a summer a digit


def model(caught: Array) -> None:
    """Histories of the birds, (birds, summers), 1 where a bird was caught."""
    phi, p = (
        numpyro.param(name, 0.7, constraint=dist.constraints.unit_interval) for name in ("phi", "p")
    )
    first = caught.argmax(1)
    with numpyro.plate("birds", len(caught), dim=-1):
        alive = jnp.ones(())
        for t in range(1, caught.shape[1]):
            with numpyro.handlers.mask(mask=t > first):
                alive = jnp.where(t > first + 1, alive, 1.0)
                alive = numpyro.sample(f"alive_{t}", dist.Bernoulli(phi * alive))
                numpyro.sample(f"caught_{t}", dist.Bernoulli(p * alive), obs=caught[:, t])


def main(num_steps: int = 600) -> dict[str, tuple[float, float, float]]:
    """Find phi and p by each algorithm, and the bound on the likelihood that its guide reaches."""
    caught = jnp.array(np.genfromtxt(FILE, delimiter=1))
    found = {}
    reinforce = Reinforce_ELBO(64, closed_form_entropy=False)  # no noise at the exact posterior
    for loss in (Exact_ELBO(), DAPS_ELBO(64), reinforce):
        guide = AutoDiscrete(model, structure="model")
        rate = optax.piecewise_constant_schedule(0.1, {num_steps // 2: 0.2})
        svi = SVI(model, guide, Adam(rate, b2=0.95), loss)
        key = jax.random.key(0)
        result = fit(key, svi, caught, num_steps=num_steps, progress=False)
        bound = -Exact_ELBO().loss(key, result.params, model, guide, caught)
        found[type(loss).__name__] = *(float(result.params[n]) for n in ("phi", "p")), float(bound)
    print(f"{'the maximum':<15} phi .5602 p .9026 log-likelihood -333.42")
    for name, (phi, p, bound) in found.items():
        print(f"{name:<15} phi {phi:.4f} p {p:.4f} bound {bound:.2f}")
    print(discrete_posterior(key, result, caught))
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
