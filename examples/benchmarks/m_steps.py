"""A dictionary by least squares beside one by the gradient: nats and seconds after as many steps.

Handwritten digits as sums of atoms, one for each binary latent, with truncated posteriors; noise
and prior have closed forms throughout. All data are in each step. Prints a row for each M-step.

    python examples/benchmarks/m_steps.py --backend numpyro
"""

import sys
import time
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
    print("| M-step | ELBO per image, nats | CPU s |\n|---|---:|---:|")
    for rate in (None, *_RATES):
        backend.seed(args.seed)
        start = time.process_time()
        bound = train(backend, images, rate, args)
        name = "least squares" if rate is None else f"Adam, {rate:g}"
        print(f"| {name} | {bound:.2f} | {time.process_time() - start:.1f} |", flush=True)


def train(backend: Backend, images: np.ndarray, rate: float | None, args: Any) -> float:
    """The bound per image at the last step."""
    infer, evolution = backend.module("infer"), backend.module("ops.evolution")
    models, rng = backend.module("models"), np.random.default_rng(args.seed)
    start = images[rng.permutation(len(images))[: args.latents]] - images.mean(0)
    learn = "closed_form" if rate is None else True
    model = models.DiscreteVAE(
        models.LinearDecoder(backend.array(start.astype(np.float32)), learn=learn),
        models.BernoulliPrior(args.latents, probability=0.1, learn="closed_form"),
        models.GaussianLikelihood(variance=float(images.var()), learn="closed_form"),
    )
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
