"""Truncated posteriors: which bars make up an image? Keep the best few answers for each image.

An image is a noisy sum of bars; each of 8 is there or not, in 256 combinations. A `TruncatedGuide`
keeps 8 of them for every image and weighs them by the model's own probabilities: no encoder has to
learn them and nothing is drawn. At each step `Truncated_ELBO` mutates the combinations, keeps the
best, and ascends the bound that they make; it is printed beside the exact evidence. Then see the
bars that were learned, and the combinations that the most doubtful image is left with.
"""

import sys

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import substitute
from numpyro.optim import Adam

from numpyro_dvae.diagnostics import posterior_gap
from numpyro_dvae.fit import fit
from numpyro_dvae.infer import SVI, Truncated_ELBO, TruncatedGuide
from numpyro_dvae.ops.evolution import chain, flip, select

BARS = jnp.concatenate([jnp.eye(4).repeat(4, 1), jnp.tile(jnp.eye(4), (1, 4))])  # (8, 16)
TRUE = {"bars": BARS, "chance": jnp.full(8, 0.25), "noise": jnp.array(0.3)}


def model(images: jax.Array) -> None:
    """Images ``(N, 16)``, each a sum of those bars that are present, and noise."""
    bars = numpyro.param("bars", lambda key: images.mean(0) + 0.1 * jax.random.normal(key, (8, 16)))
    chance = numpyro.param("chance", 0.2 * jnp.ones(8), constraint=dist.constraints.unit_interval)
    noise = numpyro.param("noise", jnp.array(1.0), constraint=dist.constraints.positive)
    with numpyro.plate("data", len(images)):
        present = numpyro.sample("present", dist.Bernoulli(chance).to_event(1))
        numpyro.sample("image", dist.Normal(present @ bars, noise).to_event(1), obs=images)


def main(num_steps: int = 300, num_images: int = 500) -> dict[str, float]:
    """Learn the bars; show bound, bars and sets."""
    keys = jax.random.split(jax.random.key(0), 4)
    present = jax.random.bernoulli(keys[0], TRUE["chance"], (num_images, 8))
    images = present @ BARS + TRUE["noise"] * jax.random.normal(keys[1], (num_images, 16))

    guide = TruncatedGuide(model, num_states=8)
    loss = Truncated_ELBO(chain(select(4), flip(4)))  # children of 4 parents, 4 of each
    svi = SVI(model, guide, Adam(0.05), loss=loss)
    result = fit(keys[2], svi, images, num_steps=num_steps)

    exact = posterior_gap(keys[3], result, images)
    truth = posterior_gap(keys[3], result, images, params=result.params | TRUE)
    found = {"bound": exact.elbo.mean(), "evidence": exact.log_evidence.mean()}
    found["evidence of the truth"] = truth.log_evidence.mean()
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()), "nats per image")
    bars, chance = result.params["bars"], result.params["chance"]
    show([f"{p:.0%} on" for p in chance], bars)
    posterior = substitute(guide.posterior, data=result.params)(images)
    doubtful = posterior.weights.max(0).argmin()
    weights, best = jax.lax.top_k(posterior.weights[:, doubtful], 3)
    answers = posterior.values["present"][best, doubtful] @ bars
    show(["image", *(f"{w:.0%}" for w in weights)], jnp.stack([images[doubtful], *answers]))
    return found


def show(captions: list[str], images: jax.Array) -> None:
    """Draw images as characters, side by side."""
    print("\n" + "   ".join(caption.ljust(8) for caption in captions))
    for rows in (2 * images).round().clip(0, 4).astype(int).reshape(-1, 4, 4).swapaxes(0, 1):
        print("   ".join("".join(2 * " .*%#"[i] for i in row) for row in rows))


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
