"""Peak memory of pointwise log-likelihoods: 60000 images of 784 pixels, 4 draws each.

`to_arviz` runs the programs on a batch of rows at a time. What is printed is the largest resident
memory after it, beyond that of the images, the libraries and a first call on two batches.
"""

import argparse
import importlib
import json
import resource
import sys
import time
from typing import Any

import numpy as np

SHAPE, NUM_LATENTS, NUM_CODES = (28, 28), 8, 256


def train(backend: str, images: np.ndarray) -> tuple[Any, Any]:
    """One step of training, for parameters; and `to_arviz` of the package."""
    names = ("models", "nets", "guides", "infer", "fit", "diagnostics")
    models, nets, guides, infer, fit, diagnostics = (
        importlib.import_module(f"{backend}_dvae.{name}") for name in names
    )
    decoder = nets.MLPDecoder(NUM_LATENTS, NUM_CODES, SHAPE, embed_dim=64, hidden=(256,))
    prior = models.UniformPrior(NUM_LATENTS, NUM_CODES)
    model = models.DiscreteVAE(decoder, prior, models.BernoulliLikelihood())
    guide = guides.IndependentGuide(nets.MLPEncoder(SHAPE, NUM_LATENTS, NUM_CODES, hidden=(256,)))
    loss, settings = infer.Reinforce_ELBO(num_particles=2), {"num_steps": 1, "progress": False}
    if backend == "pyro":
        from pyro.infer import SVI
        from pyro.optim import Adam

        svi = SVI(model, guide, Adam({"lr": 1e-3}), loss=loss)
        return fit.fit(svi, images, **settings), diagnostics.to_arviz
    import jax
    from numpyro.optim import Adam

    key, svi = jax.random.key(0), infer.SVI(model, guide, Adam(1e-3), loss=loss)
    result = fit.fit(key, svi, images, **settings)
    return result, lambda *args, **options: diagnostics.to_arviz(key, *args, **options)


def peak() -> float:
    """Largest resident memory so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["pyro", "numpyro"], default="pyro")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=512)
    args = parser.parse_args()
    options = {"num_draws": args.draws, "batch_size": args.batch_size, "groups": ["log_likelihood"]}
    rng = np.random.default_rng(0)
    images = rng.integers(2, size=(args.images, *SHAPE), dtype=np.uint8).astype(np.float32)
    result, to_arviz = train(args.backend, images[: args.batch_size])
    to_arviz(result, images[: 2 * args.batch_size], **options)
    before, start = peak(), time.process_time()
    found = to_arviz(result, images, **options)["log_likelihood"]["x"]
    assert found.shape == (1, args.draws, args.images)
    assert np.isfinite(found).all()
    line = vars(args) | {"images_mib": images.nbytes / 2**20, "before_mib": before}
    line |= {"beyond_mib": peak() - before, "cpu_seconds": time.process_time() - start}
    print(json.dumps({k: round(v) if isinstance(v, float) else v for k, v in line.items()}))


if __name__ == "__main__":
    main()
