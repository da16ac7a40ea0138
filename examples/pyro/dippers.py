"""Do birds live on, or were they not seen? Survival of 294 dippers, by three algorithms.

Each summer since its first, a bird of the river lived on with probability phi, and if it lived was
caught with probability p (Cormack-Jolly-Seber; data of Marzolin, 1981 to 1987). Summed over all
lives, the likelihood has its maximum, -333.42 nats, at phi = .5602, p = .9026 (Lebreton, 1992).
`AutoDiscrete` takes the program as it is: each summer given the one before it, bird by bird; that a
bird was alive before it was caught it knows at the start.
"""

import sys

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor

from pyro_dvae.diagnostics import discrete_posterior
from pyro_dvae.fit import fit
from pyro_dvae.guides import AutoDiscrete
from pyro_dvae.infer import DAPS_ELBO, Exact_ELBO, Reinforce_ELBO

FILE = __file__.rsplit("/", 2)[0] + "/data/dipper.txt"  # a bird a line, a summer a digit


def model(caught: Tensor) -> None:
    """Histories of the birds, (birds, summers), 1 where a bird was caught."""
    phi, p = (
        pyro.param(name, torch.tensor(0.7), constraint=dist.constraints.unit_interval)
        for name in ("phi", "p")
    )
    first = caught.argmax(1)
    with pyro.plate("birds", len(caught), dim=-1):
        alive = torch.ones(())
        for t in range(1, caught.shape[1]):
            with pyro.poutine.mask(mask=t > first):
                alive = torch.where(t > first + 1, alive, 1.0)
                alive = pyro.sample(f"alive_{t}", dist.Bernoulli(phi * alive))
                pyro.sample(f"caught_{t}", dist.Bernoulli(p * alive), obs=caught[:, t])


def main(num_steps: int = 600) -> dict[str, tuple[float, float, float]]:
    """Find phi and p by each algorithm, and the bound on the likelihood that its guide reaches."""
    caught = torch.tensor(np.genfromtxt(FILE, delimiter=1)).float()
    found = {}
    reinforce = Reinforce_ELBO(64, closed_form_entropy=False)  # no noise at the exact posterior
    for loss in (Exact_ELBO(), DAPS_ELBO(64), reinforce):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        guide = AutoDiscrete(model, structure="model")
        for rate in (0.1, 0.02):
            svi = SVI(model, guide, Adam({"lr": rate, "betas": (0.9, 0.95)}), loss=loss)
            result = fit(svi, caught, num_steps=num_steps // 2, progress=False)
        bound = -Exact_ELBO().loss(model, guide, caught)
        found[type(loss).__name__] = *(result.params[n].item() for n in ("phi", "p")), bound
    print(f"{'the maximum':<15} phi .5602 p .9026 log-likelihood -333.42")
    for name, (phi, p, bound) in found.items():
        print(f"{name:<15} phi {phi:.4f} p {p:.4f} bound {bound:.2f}")
    print(discrete_posterior(result, caught))
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
