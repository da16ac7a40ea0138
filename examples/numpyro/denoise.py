"""Denoising in a page: a discrete VAE of the patches of one noisy image, learned from it alone.

A patch, less its mean, is a sum of atoms of a dictionary, one for each binary latent, and noise.
Each of the 63001 overlapping patches has a truncated posterior of 8 states, which the E-step
evolves by flips that follow the slope of the log joint; the gradient moves the atoms, and noise
and prior have closed forms. A pixel is the mean of what all patches that cover it make of it.
`examples/tools/denoise.py` does more: classes of patches, colour, missing pixels.
"""

import sys

import flax
import jax
import numpy as np
from numpyro.handlers import substitute
from numpyro.optim import Adam
from skimage.data import camera

from numpyro_dvae.fit import fit
from numpyro_dvae.infer import SVI, Truncated_ELBO, TruncatedGuide, informed_flip
from numpyro_dvae.models import BernoulliPrior, DiscreteVAE, GaussianLikelihood
from numpyro_dvae.ops.evolution import chain, select

SIDE, NUM_ATOMS, NOISE = 6, 32, 0.1  # of a patch; of the dictionary; of pixels in [0, 1]


def main(num_epochs: int = 3, stride: int = 2) -> dict[str, float]:
    """Add noise to every other pixel of scikit-image's photographer, and take it away."""
    rng_key = jax.random.key(0)
    clean = camera()[::stride, ::stride].astype("float32") / 255
    noisy = clean + NOISE * np.random.default_rng(0).normal(size=clean.shape).astype("float32")
    patches = cut(noisy)
    means = patches.mean(1, keepdims=True)
    data = patches - means, np.arange(len(patches)), len(patches)

    decoder = flax.linen.Dense(SIDE**2)
    prior = BernoulliPrior(NUM_ATOMS, probability=0.05, learn="closed_form")
    likelihood = GaussianLikelihood(variance=float(data[0].var()), learn="closed_form")
    model = DiscreteVAE(decoder, prior, likelihood)
    guide = TruncatedGuide(model, num_states=8)

    loss = Truncated_ELBO(chain(select(4), informed_flip(4)))  # children of 4 parents, 4 of each
    svi = SVI(model, guide, Adam(0.01), loss=loss)
    result = fit(rng_key, svi, *data, num_steps=num_epochs * len(patches) // 256, batch_size=256)

    with substitute(data=result.params):
        posterior = guide.posterior(*data)
        present = jax.numpy.einsum("sn,snh->nh", posterior.weights, posterior.values["z"])
        restored = means + np.asarray(model.reconstruct(present))  # the decoder is linear
    images = {"noisy": noisy, "means of patches": join(means.repeat(SIDE**2, 1), clean.shape)}
    images["restored"] = join(restored, clean.shape)
    found = {name: psnr(image, clean) for name, image in images.items()}
    print(", ".join(f"{name} {value:.2f} dB" for name, value in found.items()))
    return found


def cut(image: np.ndarray) -> np.ndarray:
    """All patches of an image, a row each."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (SIDE, SIDE))
    return windows.reshape(-1, SIDE**2)


def join(patches: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Each pixel the mean of the patches that cover it."""
    total, count = np.zeros(shape), np.zeros(shape)
    height, width = (size - SIDE + 1 for size in shape)
    for k, pixels in enumerate(patches.T):  # a pixel of all patches is an image, moved
        place = np.s_[k // SIDE :, k % SIDE :]
        total[place][:height, :width] += pixels.reshape(height, width)
        count[place][:height, :width] += 1
    return total / count


def psnr(image: np.ndarray, clean: np.ndarray) -> float:
    """Peak signal-to-noise ratio of pixels in [0, 1]."""
    return float(-10 * np.log10(np.mean((image - clean) ** 2)))


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
