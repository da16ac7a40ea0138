"""How long until the geyser erupts again? Two kinds of waits, none of them named, by three losses.

Waits that are made as Old Faithful's are, of which some follow a short eruption: the kind of each
is a latent. Expectation maximisation (scikit-learn's `GaussianMixture`) finds the maximum of the
likelihood. A guide that can be the posterior, as a product over the waits can, finds the same one.
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
from sklearn.mixture import GaussianMixture

from numpyro_dvae.diagnostics import discrete_posterior
from numpyro_dvae.fit import fit
from numpyro_dvae.guides import AutoDiscrete
from numpyro_dvae.infer import DAPS_ELBO, SVI, Exact_ELBO, WakeSleep_ELBO


def geyser(num_waits: int = 200) -> np.ndarray:
    """Waits, in hours."""
    rng = np.random.default_rng(0)
    is_long = rng.random(num_waits) < 0.64
    return np.where(is_long, rng.normal(1.33, 0.1, num_waits), rng.normal(0.91, 0.1, num_waits))


def maximum(waits: np.ndarray) -> tuple[float, float, float, float]:
    """By expectation maximisation: the log-likelihood, the share of long waits, both means."""
    start = np.array([[0.5], [1.5]])
    mixture = GaussianMixture(2, means_init=start, reg_covar=0.0, tol=1e-9, max_iter=9999)
    mixture.fit(waits[:, None])
    likelihood = mixture.score(waits[:, None]) * len(waits)
    return likelihood, float(mixture.weights_[1]), *map(float, mixture.means_[:, 0])


def model(waits: Array) -> None:
    """Waits, each of which is short or long."""
    positive, interval = dist.constraints.positive, dist.constraints.unit_interval
    share = numpyro.param("share", 0.5, constraint=interval)
    means = numpyro.param("means", jnp.array([0.5, 1.5]))
    scales = numpyro.param("scales", jnp.array([0.2, 0.2]), constraint=positive)
    with numpyro.plate("waits", len(waits), dim=-1):
        is_long = numpyro.sample("is_long", dist.Bernoulli(share))
        numpyro.sample("wait", dist.Normal(means[is_long], scales[is_long]), obs=waits)


def main(num_steps: int = 1200) -> dict[str, tuple[float, float, float, float]]:
    """The bound, the share and the means by each loss, and by expectation maximisation."""
    waits = geyser()
    data, found = jnp.array(waits), {"EM": maximum(waits)}
    key = jax.random.key(0)
    for loss in (Exact_ELBO(), DAPS_ELBO(num_particles=32), WakeSleep_ELBO(num_particles=32)):
        guide = AutoDiscrete(model)
        rate = optax.piecewise_constant_schedule(
            0.1, {num_steps // 3: 0.3, num_steps * 2 // 3: 0.3}
        )
        svi = SVI(model, guide, Adam(rate, b2=0.9), loss)
        result = fit(key, svi, data, num_steps=num_steps, progress=False)
        bound = -float(Exact_ELBO().loss(key, result.params, model, guide, data))
        share, means = (result.params[name].tolist() for name in ("share", "means"))
        found[type(loss).__name__] = bound, share, *means
    print(f"{'':<15}log-likelihood  share of long waits  means")
    for name, (bound, share, short, long) in found.items():
        print(f"{name:<15}{bound:>14.2f}{share:>21.3f}  {short:.3f} {long:.3f}")
    print(discrete_posterior(key, result, data))
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
