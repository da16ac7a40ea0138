"""Which measurements tell of diabetes? Spike-and-slab regression, by three losses.

Each of ten coefficients is zero, or drawn from a normal (George & McCulloch, 1993): ten bits, whose
chances given scikit-learn's data are known by a sum over all 2^10 models. The coefficients are
integrated out, which leaves their estimates by least squares. Values of the blood go together: the
posterior is no chain, and draws of the guide are weighted (`corrected`) to be right.
"""

import sys

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from sklearn.datasets import load_diabetes
from torch import Tensor

from pyro_dvae.diagnostics import discrete_posterior
from pyro_dvae.fit import fit
from pyro_dvae.guides import AutoDiscrete
from pyro_dvae.infer import DAPS_ELBO, Exact_ELBO, Reinforce_ELBO

SLAB = 0.3  # standard deviation of a coefficient that is not zero; data have one of 1


def least_squares() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the measurements, their coefficients, and the covariance of the errors."""
    data = load_diabetes()
    x = data.data / data.data.std(0)
    y = (data.target - data.target.mean()) / data.target.std()
    estimates = np.linalg.solve(x.T @ x, x.T @ y)
    variance = ((y - x @ estimates) ** 2).sum() / (len(y) - x.shape[1] - 1)
    return data.feature_names, estimates, variance * np.linalg.inv(x.T @ x)


def sum_over_models(estimates: np.ndarray, errors: np.ndarray) -> tuple[float, np.ndarray]:
    """Log-evidence and the ten chances, from all 2^10 models."""
    bits = np.indices((2,) * len(estimates)).reshape(len(estimates), -1).T
    spread = errors + SLAB**2 * bits[:, None] * np.eye(len(estimates))
    fits = np.einsum("i,mij,j->m", estimates, np.linalg.inv(spread), estimates)
    logs = -0.5 * (fits + np.linalg.slogdet(2 * np.pi * spread)[1]) - len(estimates) * np.log(2)
    weights = np.exp(logs - logs.max())
    return logs.max() + np.log(weights.sum()), weights @ bits / weights.sum()


def model(estimates: Tensor, errors: Tensor) -> None:
    """Estimates of least squares, given which coefficients are not zero."""
    bits = [pyro.sample(f"has_{i}", dist.Bernoulli(0.5)) for i in range(len(estimates))]
    spread = errors + torch.diag_embed(SLAB**2 * torch.stack(bits, -1))
    fn = dist.MultivariateNormal(torch.zeros(len(estimates)), spread)
    pyro.sample("estimates", fn, obs=estimates)


def main(num_steps: int = 400) -> dict[str, tuple[float, float]]:
    """The bound on the evidence, and the largest error of a chance, by each loss."""
    names, estimates, errors = least_squares()
    evidence, chances = sum_over_models(estimates, errors)
    data, found = (torch.tensor(estimates).float(), torch.tensor(errors).float()), {}
    for loss in (Exact_ELBO(), DAPS_ELBO(num_particles=32), Reinforce_ELBO(num_particles=32)):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        guide = AutoDiscrete(model, structure="chain")
        svi = SVI(model, guide, Adam({"lr": 0.1}), loss=loss)
        result = fit(svi, *data, num_steps=num_steps, progress=False)
        posterior = discrete_posterior(result, *data, num_draws=50_000, corrected=True)
        probs = np.array([posterior[f"has_{i}"].probs[1] for i in range(len(names))])
        bound = -Exact_ELBO().loss(model, guide, *data)
        found[type(loss).__name__] = bound, float(np.abs(probs - chances).max())
    print("by all 2^10 models:", *(f"{n} {p:.2f}" for n, p in zip(names, chances, strict=True)))
    found["the truth"] = evidence, 0.0
    for name, (bound, error) in found.items():
        print(f"{name:<15}{bound:.2f} nats, chances within {error:.3f}")
    print(posterior)
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
