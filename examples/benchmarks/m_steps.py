"""Decoders in closed form beside the same by the gradient: nats and seconds after as many steps.

Handwritten digits as sums of atoms, one for each binary latent, or as binary pixels that causes
switch on, with truncated posteriors; noise and prior have closed forms throughout. All data are in
each step. Prints a row for each model and M-step.

    python examples/benchmarks/m_steps.py --backend numpyro
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from backends import Backend, get_backend
from cli import Parser, positive, run_main
from data import load

_RATES = 0.003, 0.01, 0.03, 0.1


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = Parser(__doc__, out=None)
    parser.add_argument("--latents", type=positive, default=32)
    parser.add_argument("--states", type=positive, default=16)
    parser.add_argument("--num-data", type=positive, default=500)
    parser.add_argument("--steps", type=positive, default=100)
    args = parser.parse_args(arguments)
    if args.smoke:
        args.num_data, args.steps, args.latents = 50, 3, 6
    backend, images = get_backend(args.backend, "cpu"), load("digits").x_train[: args.num_data]
    print("| model | M-step | ELBO per image, nats | CPU s |\n|---|---|---:|---:|")
    for name, make in {"sparse coding": sparse_coding, "noisy-OR": noisy_or}.items():
        for rate in (None, *_RATES):
            backend.seed(args.seed)
            start = time.process_time()
            bound = train(backend, images, make, rate, args)
            step = "closed form" if rate is None else f"Adam, {rate:g}"
            seconds = time.process_time() - start
            print(f"| {name} | {step} | {bound:.2f} | {seconds:.1f} |", flush=True)


def sparse_coding(
    backend: Backend, images: np.ndarray, chosen: np.ndarray, learn: Any
) -> tuple[np.ndarray, Any, Any]:
    """Data, decoder and likelihood; the atoms start as some of the images."""
    models, start = backend.module("models"), images[chosen] - images.mean(0)
    likelihood = models.GaussianLikelihood(variance=float(images.var()), learn="closed_form")
    atoms = backend.array(start.astype(np.float32))
    return images, models.LinearDecoder(atoms, learn=learn), likelihood


def noisy_or(
    backend: Backend, images: np.ndarray, chosen: np.ndarray, learn: Any
) -> tuple[np.ndarray, Any, Any]:
    """The same of binary pixels: the causes start near some of the images."""
    models, binary = backend.module("models"), (images > 0.5).astype(np.float32)
    weights = backend.array(0.1 + 0.6 * binary[chosen])
    return binary, models.NoisyOrDecoder(weights, learn=learn), models.BernoulliLikelihood()


def train(
    backend: Backend, images: np.ndarray, make: Callable, rate: float | None, args: Any
) -> float:
    """The bound per image at the last step."""
    infer, evolution = backend.module("infer"), backend.module("ops.evolution")
    models, rng = backend.module("models"), np.random.default_rng(args.seed)
    chosen = rng.permutation(len(images))[: args.latents]
    learn = "closed_form" if rate is None else True
    images, decoder, likelihood = make(backend, images, chosen, learn)
    prior = models.BernoulliPrior(args.latents, probability=0.1, learn="closed_form")
    model = models.DiscreteVAE(decoder, prior, likelihood)
    parents = evolution.select(min(4, args.states))
    loss = infer.Truncated_ELBO(evolution.chain(parents, infer.informed_flip(6)))
    result = backend.train(
        model,
        infer.TruncatedGuide(model, args.states),
        loss,
        images,
        learning_rate=rate or 1.0,  # of nothing
        num_steps=args.steps,
        log_every=max(args.steps - 1, 1),
        progress=False,
    )
    return -result.history[-1]["mean_loss"] / len(images)


if __name__ == "__main__":
    run_main(main)
