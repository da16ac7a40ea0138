"""When was the die loaded? Sequences of rolls of many lengths, by three losses.

A casino changes between a fair die and a loaded one (Durbin & al., 1998). What is true is known by
the forward and backward algorithms. `AutoDiscrete` draws each die given the last, as it is drawn.
"""

import sys

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import Adam

from pyro_dvae.diagnostics import discrete_posterior
from pyro_dvae.fit import fit
from pyro_dvae.guides import AutoDiscrete
from pyro_dvae.infer import DAPS_ELBO, Exact_ELBO, WakeSleep_ELBO

MOVES = np.array([[0.95, 0.05], [0.10, 0.90]], np.float32)  # from a die (row) to a die
FACES = np.array([[1 / 6] * 6, [0.1] * 5 + [0.5]], np.float32)  # of the fair and the loaded one


def casino(longest: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Rolls, (sequences, longest), and the sequences' lengths, from 1 on."""
    rng = np.random.default_rng(0)
    rolls, die = np.zeros((30, longest), int), rng.integers(2, size=30)
    for t in range(longest):
        rolls[:, t] = (rng.random((30, 1)) > FACES.cumsum(1)[die]).sum(1).clip(max=5)
        die = (rng.random(30) < MOVES[die, 1]).astype(int)
    return rolls, rng.integers(1, longest + 1, size=30)


def forward_backward(rolls: np.ndarray, lengths: np.ndarray) -> tuple[float, np.ndarray]:
    """Log-likelihood of all rolls, and the chance of the loaded die at each, (sequences, T)."""
    seen = np.arange(rolls.shape[1]) < lengths[:, None]
    likelihood = np.where(seen[..., None], FACES.T[rolls], 1.0)
    ahead, behind = likelihood / 2, np.ones(likelihood.shape)
    for t in range(1, rolls.shape[1]):
        ahead[:, t] = likelihood[:, t] * (ahead[:, t - 1] @ MOVES)
        behind[:, -t - 1] = (behind[:, -t] * likelihood[:, -t]) @ MOVES.T
    both = ahead * behind
    return np.log(both[:, 0].sum(-1)).sum(), seen * both[..., 1] / both.sum(-1)


def model(rolls: torch.Tensor, lengths: torch.Tensor) -> None:
    """Rolls 0 to 5, (sequences, longest), of which the first of each sequence count."""
    with pyro.plate("sequences", len(rolls), dim=-1):
        chances = torch.tensor([0.5, 0.5])
        for t, roll in enumerate(rolls.T):
            with pyro.poutine.mask(mask=t < lengths):
                die = pyro.sample(f"die_{t}", dist.Categorical(chances))
                pyro.sample(f"roll_{t}", dist.Categorical(torch.tensor(FACES)[die]), obs=roll)
            chances = torch.tensor(MOVES)[die]


def main(num_steps: int = 600) -> dict[str, tuple[float, float]]:
    """The bound on the likelihood, and the largest error of a chance, by each loss."""
    (evidence, loaded), data = forward_backward(*casino()), tuple(map(torch.tensor, casino()))
    found = {"the truth": (evidence, 0.0)}
    for loss in (Exact_ELBO(), DAPS_ELBO(num_particles=16), WakeSleep_ELBO(num_particles=16)):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        guide = AutoDiscrete(model, structure="chain")
        for rate in (0.05, 0.01):
            svi = SVI(model, guide, Adam({"lr": rate, "betas": (0.9, 0.99)}), loss=loss)
            result = fit(svi, *data, num_steps=num_steps // 2, progress=False)
        posterior = discrete_posterior(result, *data, num_draws=20_000)
        chances = np.stack([posterior[f"die_{t}"].probs[:, 1] for t in range(8)], 1)
        bound = -Exact_ELBO().loss(model, guide, *data)
        found[type(loss).__name__] = bound, float(np.abs(chances - loaded)[loaded > 0].max())
    for name, (bound, error) in found.items():
        print(f"{name:<15}{bound:.2f} nats, chances of the loaded die within {error:.3f}")
    print(posterior)
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
