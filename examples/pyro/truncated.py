"""Truncated posteriors: which bars make up an image? Keep the best few answers for each image.

An image is a noisy sum of bars; each of 8 is there or not, in 256 combinations. A `TruncatedGuide`
keeps 8 of them for every image and weighs them by the model's own probabilities: no encoder has to
learn them and nothing is drawn. At each step `Truncated_ELBO` mutates the combinations, keeps the
best, and ascends the bound that they make; it is printed beside the exact evidence. Then see the
bars that were learned, and the combinations that the most doubtful image is left with.
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
from pyro_dvae.ops.evolution import chain, flip, select

BARS = torch.cat([torch.eye(4).repeat_interleave(4, 1), torch.eye(4).repeat(1, 4)])  # (8, 16)
TRUE = {"bars": BARS, "chance": torch.full((8,), 0.25), "noise": torch.tensor(0.3)}


def model(images: Tensor) -> None:
    """Images ``(N, 16)``, each a sum of those bars that are present, and noise."""
    bars = pyro.param("bars", lambda: images.mean(0) + 0.1 * torch.randn(8, 16))
    chance = pyro.param("chance", 0.2 * torch.ones(8), constraint=dist.constraints.unit_interval)
    noise = pyro.param("noise", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(images)):
        present = pyro.sample("present", dist.Bernoulli(chance).to_event(1))
        pyro.sample("image", dist.Normal(present @ bars, noise).to_event(1), obs=images)


def main(num_steps: int = 300, num_images: int = 500) -> dict[str, float]:
    """Learn the bars; show bound, bars and sets."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    present = torch.bernoulli(TRUE["chance"].expand(num_images, 8))
    images = present @ BARS + TRUE["noise"] * torch.randn(num_images, 16)

    guide = TruncatedGuide(model, num_states=8)
    loss = Truncated_ELBO(chain(select(4), flip(4)))  # children of 4 parents, 4 of each
    svi = SVI(model, guide, Adam({"lr": 0.05}), loss=loss)
    result = fit(svi, images, num_steps=num_steps)

    exact = posterior_gap(result, images)
    truth = posterior_gap(result, images, params=TRUE)
    found = {"bound": exact.elbo.mean(), "evidence": exact.log_evidence.mean()}
    found["evidence of the truth"] = truth.log_evidence.mean()
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()), "nats per image")
    bars, chance = result.params["bars"], result.params["chance"]
    show([f"{p:.0%} on" for p in chance], bars)
    posterior = guide.posterior(images)
    doubtful = posterior.weights.max(0).values.argmin()
    weights, best = posterior.weights[:, doubtful].topk(3)
    answers = posterior.values["present"][best, doubtful] @ bars
    show(["image", *(f"{w:.0%}" for w in weights)], torch.stack([images[doubtful], *answers]))
    return found


def show(captions: list[str], images: Tensor) -> None:
    """Draw images as characters, side by side."""
    print("\n" + "   ".join(caption.ljust(8) for caption in captions))
    for rows in (2 * images).round().clamp(0, 4).int().reshape(-1, 4, 4).transpose(0, 1):
        print("   ".join("".join(2 * " .*%#"[i] for i in row) for row in rows))


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
