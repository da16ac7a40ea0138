"""Binary sparse coding without a learning rate: which atoms of a dictionary make up an image?

An image is a sum of atoms, each there or not, and noise. `Truncated_ELBO` keeps the best 16
combinations for every image, and given their probabilities everything else has a closed form: the
dictionary is that of least squares, noise and chances are means. So there is nothing for the
gradient to do; each step is one of expectation maximisation, and the bound never falls.
"""

import sys

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor

from pyro_dvae.diagnostics import posterior_gap
from pyro_dvae.fit import fit
from pyro_dvae.infer import Truncated_ELBO, TruncatedGuide
from pyro_dvae.models import BernoulliPrior, DiscreteVAE, GaussianLikelihood, LinearDecoder
from pyro_dvae.ops.evolution import chain, flip, select

BARS = torch.cat([torch.eye(4).repeat_interleave(4, 1), torch.eye(4).repeat(1, 4)])  # (8, 16)
CHANCE, NOISE, SPARE = 0.2, 0.2, 2  # of a bar, of a pixel; atoms beside those that are needed


def true_evidence(images: Tensor) -> Tensor:
    """Nats per image of the bars that made them: a sum over all combinations."""
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 8)
    scores = dist.Normal(states @ BARS, NOISE).log_prob(images[:, None]).sum(-1)
    return (scores + dist.Bernoulli(CHANCE).log_prob(states).sum(-1)).logsumexp(-1).mean()


def main(num_steps: int = 100, num_images: int = 500) -> dict[str, float]:
    """Learn the atoms; show the bound, beside that of the truth, and the atoms."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    present = torch.bernoulli(torch.full((num_images, 8), CHANCE))
    images = present @ BARS + NOISE * torch.randn(num_images, 16)

    atoms = 2 * images.mean(0) * torch.rand(len(BARS) + SPARE, 16)
    prior = BernoulliPrior(len(atoms), probability=CHANCE, learn="closed_form")
    likelihood = GaussianLikelihood(variance=float(images.var()), learn="closed_form")
    model = DiscreteVAE(LinearDecoder(atoms, learn="closed_form"), prior, likelihood)
    guide = TruncatedGuide(model, num_states=16)
    loss = Truncated_ELBO(chain(select(6), flip(6)), sweeps=2)
    svi = SVI(model, guide, Adam({"lr": 0.01}), loss=loss)  # Adam has nothing to do
    result = fit(svi, images, num_steps=num_steps)

    exact = posterior_gap((model, guide), images)
    found = {"bound": exact.elbo.mean(), "evidence": exact.log_evidence.mean()}
    found["evidence of the truth"] = float(true_evidence(images))
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()), "nats per image")
    found["bound at first"] = -result.history[0]["mean_loss"] / num_images
    show([f"{p:.0%} on" for p in model.prior.logits.sigmoid()], model.decoder.atoms)
    return found


def show(captions: list[str], images: Tensor) -> None:
    """Draw images as characters, side by side."""
    print("\n" + "   ".join(caption.ljust(8) for caption in captions))
    for rows in (2 * images.abs()).round().clamp(0, 4).int().reshape(-1, 4, 4).transpose(0, 1):
        print("   ".join("".join(2 * " .*%#"[i] for i in row) for row in rows))


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
