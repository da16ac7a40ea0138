"""Binary sparse coding without a learning rate: which atoms of a dictionary make up an image?

An image is a sum of atoms, each there or not, and noise. `Truncated_ELBO` keeps the best 16
combinations for every image, and given their probabilities everything else has a closed form: the
dictionary is that of least squares, noise and chances are means. So there is nothing for the
gradient to do; each step is one of expectation maximisation, and the bound never falls.
"""

import sys

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.optim import Adam

from numpyro_dvae.diagnostics import posterior_gap
from numpyro_dvae.fit import fit
from numpyro_dvae.infer import SVI, Truncated_ELBO, TruncatedGuide
from numpyro_dvae.models import BernoulliPrior, DiscreteVAE, GaussianLikelihood, LinearDecoder
from numpyro_dvae.ops.evolution import chain, flip, select

BARS = jnp.concatenate([jnp.eye(4).repeat(4, 1), jnp.tile(jnp.eye(4), (1, 4))])  # (8, 16)
CHANCE, NOISE, SPARE = 0.2, 0.2, 2  # of a bar, of a pixel; atoms beside those that are needed


def true_evidence(images: jax.Array) -> jax.Array:
    """Nats per image of the bars that made them: a sum over all combinations."""
    states = jnp.arange(256)[:, None] >> jnp.arange(8) & 1
    scores = dist.Normal(states @ BARS, NOISE).log_prob(images[:, None]).sum(-1)
    scores = scores + dist.Bernoulli(CHANCE).log_prob(states).sum(-1)
    return jax.nn.logsumexp(scores, -1).mean()


def main(num_steps: int = 100, num_images: int = 500) -> dict[str, float]:
    """Learn the atoms; show the bound, beside that of the truth, and the atoms."""
    keys = jax.random.split(jax.random.key(0), 5)
    present = jax.random.bernoulli(keys[0], CHANCE, (num_images, 8))
    images = present @ BARS + NOISE * jax.random.normal(keys[1], (num_images, 16))

    atoms = 2 * images.mean(0) * jax.random.uniform(keys[2], (len(BARS) + SPARE, 16))
    prior = BernoulliPrior(len(atoms), probability=CHANCE, learn="closed_form")
    likelihood = GaussianLikelihood(variance=float(images.var()), learn="closed_form")
    model = DiscreteVAE(LinearDecoder(atoms, learn="closed_form"), prior, likelihood)
    guide = TruncatedGuide(model, num_states=16)
    loss = Truncated_ELBO(chain(select(6), flip(6)), sweeps=2)
    svi = SVI(model, guide, Adam(0.01), loss=loss)  # Adam has nothing to do
    result = fit(keys[3], svi, images, num_steps=num_steps)

    exact = posterior_gap(keys[4], result, images)
    found = {"bound": exact.elbo.mean(), "evidence": exact.log_evidence.mean()}
    found["evidence of the truth"] = float(true_evidence(images))
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()), "nats per image")
    found["bound at first"] = -result.history[0]["mean_loss"] / num_images
    chances = jax.nn.sigmoid(result.params["model.prior$logits"])
    show([f"{p:.0%} on" for p in chances], model.decoder.learnt(result.params)["atoms"])
    return found


def show(captions: list[str], images: jax.Array) -> None:
    """Draw images as characters, side by side."""
    print("\n" + "   ".join(caption.ljust(8) for caption in captions))
    rows = (2 * abs(images)).round().clip(0, 4).astype(int).reshape(-1, 4, 4)
    for line in rows.transpose(1, 0, 2):
        print("   ".join("".join(2 * " .*%#"[i] for i in row) for row in line))


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
