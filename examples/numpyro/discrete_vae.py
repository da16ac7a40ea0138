"""A discrete VAE in a page: handwritten digits through four codes of sixteen values each.

Model, guide, optimiser and loss are held together by an `SVI`, as ever; `fit` takes the
steps. A draw of a discrete code has no gradient, so the loss brings one: here by policy search,
`DAPS_ELBO`; put another class of `numpyro_dvae.infer` in its place and nothing else changes. At
the end the exact evidence of some held-out digits, for 16^4 states can be listed, says how far the
guide is from the posterior, and eight digits are shown above what is left of them in 16 bits.
"""

import jax
from numpyro.handlers import substitute
from numpyro.optim import Adam
from sklearn.datasets import load_digits

from numpyro_dvae.diagnostics import posterior_gap, rate_distortion
from numpyro_dvae.fit import fit
from numpyro_dvae.guides import IndependentGuide
from numpyro_dvae.infer import DAPS_ELBO, SVI
from numpyro_dvae.models import BernoulliLikelihood, DiscreteVAE, UniformPrior
from numpyro_dvae.nets import MLPDecoder, MLPEncoder

NUM_LATENTS, NUM_CODES = 4, 16


def main(num_steps: int = 1500) -> dict[str, float]:
    """Train on 1500 digits and look at the other 297."""
    keys = jax.random.split(jax.random.key(0), 4)
    images = (load_digits().images > 7).astype("float32")  # (1797, 8, 8), black and white
    train, test = images[:1500], images[1500:]

    decoder = MLPDecoder(NUM_LATENTS, NUM_CODES, (8, 8), embed_dim=16, hidden=(64,))
    model = DiscreteVAE(decoder, UniformPrior(NUM_LATENTS, NUM_CODES), BernoulliLikelihood())
    guide = IndependentGuide(MLPEncoder((8, 8), NUM_LATENTS, NUM_CODES, hidden=(64,)))

    svi = SVI(model, guide, Adam(3e-3), loss=DAPS_ELBO(num_particles=8))
    result = fit(keys[0], svi, train, num_steps=num_steps, batch_size=128, eval_data=test)

    evidence = posterior_gap(keys[1], result, test[:8])
    carried = rate_distortion(keys[2], result, test)
    found = {
        "elbo": -result.evaluations[-1]["eval_loss"],
        "gap": float(evidence.gap.mean()),
        "rate": float(carried.rate.mean()),
        "psnr": float(carried.psnr.mean()),
    }
    print(f"ELBO of a held-out digit: {found['elbo']:.2f} nats, with {found['gap']:.2f} to gain")
    print(f"The codes carry {found['rate']:.1f} bits of it: PSNR {found['psnr']:.1f} dB")
    with substitute(data=result.params):
        codes = guide.posterior(test[:8]).sample(keys[3])
        show(test[:8], model.reconstruct(codes))
    return found


def show(*rows: jax.Array) -> None:
    """Draw rows of images as characters, a dark one for a pixel that is likely black."""
    for images in rows:
        for lines in images.swapaxes(0, 1):  # (8, N, 8)
            print("  ".join("".join(" .:*#"[int(4.99 * p)] * 2 for p in line) for line in lines))
        print()


if __name__ == "__main__":
    main()
