"""The bars test: does a model of noisy, overlapping bars find the bars?

Images of b x b pixels are sums of horizontal and vertical bars, each there with probability 2 / H,
and Gaussian noise. A discrete VAE with H binary latents and one hidden layer learns them by
truncated posteriors. Its decoder would often stall on mixtures of bars. Therefore no hidden unit
starts dead (weights from 0 / 1 latents are positive at first), the posterior starts blurred (a
large beta, which falls to 1), and the best of several starts is kept, by its bound. The sets evolve
in one epoch of six; the other epochs are steps of the decoder alone.
The space is small enough to sum over, so the result is an exact log-likelihood, less that of the
parameters that made the data: 0 is as good as the truth. The JSON tells the seconds in all from the
milliseconds per epoch once all is compiled (of all starts in NumPyro, of the best one in Pyro,
where they run in turn).

    python examples/tools/bars.py --backend numpyro
"""

import math
from typing import Any

import numpy as np
from backends import Backend, Programs, get_backend
from cli import CommandError, Parser, finish, open_folder, positive, run_main
from pictures import save_bars

_START = 50.0  # beta at first
_BLURRED = 0.625  # share of the epochs in which beta falls to 1
_EVERY = 6  # epochs per E-step
_NOISE = 1e-6, 1e6  # bars are 1: no more is left of the noise, or of the bars, in float32
_MOST_LATENTS = 12  # 2 ** H states are summed over


def main(arguments: list[str]) -> None:
    """Make the data, learn them, compare with the truth."""
    parser = Parser(__doc__, out="out/bars")
    parser.add_argument("--latents", type=positive, default=8, help="bars, H; even")
    parser.add_argument("--num-data", type=positive, default=500)
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation")
    parser.add_argument("--states", type=positive, default=64, help="states per image")
    parser.add_argument("--restarts", type=positive, default=3, help="starts, the best is kept")
    parser.add_argument("--epochs", type=positive, default=200)
    parser.add_argument("--batch-size", type=positive, default=50)
    args = parser.parse_args(arguments)
    if args.latents % 2 or not 4 <= args.latents <= _MOST_LATENTS:
        raise CommandError(f"--latents {args.latents}: an even number from 4 to {_MOST_LATENTS}")
    if args.smoke:
        args.num_data, args.epochs, args.restarts, args.states = 50, 4, 2, 16
    if not _NOISE[0] <= args.noise <= _NOISE[1]:
        raise CommandError(f"--noise {args.noise}: from {_NOISE[0]:g} to {_NOISE[1]:g}")
    if args.states > 2**args.latents:
        most = f"at most {2**args.latents} with --latents {args.latents}"
        raise CommandError(f"--states {args.states}: {most}")
    if args.batch_size > args.num_data:
        raise CommandError(f"--batch-size {args.batch_size}: there are {args.num_data} images")
    backend, out = get_backend(args.backend), open_folder(args.out)
    backend.seed(args.seed)
    bars = make_bars(args.latents)
    images = draw_images(bars, args.num_data, args.noise, args.seed)
    result = train(backend, images, args)
    states = every_state(args.latents)
    means, variance, probs = backend.conditional(result.model, states)
    truth = (np.tensordot(states, bars, 1), args.noise**2, np.full(args.latents, 2 / args.latents))
    found = log_likelihood(images, states, means, variance, probs[0])
    gap = found - log_likelihood(images, states, *truth)
    picture = out / "bars.png"
    singles = means[1 << np.arange(args.latents)] - means[0]
    save_bars(picture, images, bars, singles)
    print(
        f"exact log-likelihood per image {found:.3f} nats, {gap:+.3f} against the truth: {picture}"
    )
    found = {"gap": gap, "log_likelihood": found, "sigma": math.sqrt(float(np.mean(variance)))}
    found |= {"seconds": result.seconds, "epochs": args.epochs, "restarts": args.restarts}
    found |= {"milliseconds_per_epoch": steady(result, args), "picture": picture}
    found |= {"backend": backend.name, "seed": args.seed}
    finish(found, out, show=args.json, name="bars.json")


def make_bars(num_latents: int) -> np.ndarray:
    """Rows, then columns, of a square image: ``(H, H / 2, H / 2)``."""
    size = num_latents // 2
    bars = np.zeros((num_latents, size, size), np.float32)
    for i in range(size):
        bars[i, i, :] = bars[size + i, :, i] = 1.0
    return bars


def draw_images(bars: np.ndarray, num_data: int, noise: float, seed: int) -> np.ndarray:
    """Noisy sums of bars."""
    rng = np.random.default_rng(seed)
    present = rng.random((num_data, len(bars))) < 2 / len(bars)
    images = np.tensordot(present, bars, 1) + noise * rng.standard_normal(
        (num_data, *bars[0].shape)
    )
    return images.astype(np.float32)


def train(backend: Backend, images: np.ndarray, args: Any) -> Any:
    """Keep the best of several starts."""
    infer, evolution = backend.module("infer"), backend.module("ops.evolution")
    models, nets = backend.module("models"), backend.module("nets")
    num_data, shape, num_latents = len(images), images.shape[1:], args.latents
    per_epoch = num_data // args.batch_size
    num_steps = args.epochs * per_epoch
    blurred = int(_BLURRED * num_steps)

    def make() -> Programs:
        model = models.DiscreteVAE(
            nets.MLPDecoder(num_latents, None, shape, hidden=(num_latents,), positive=True),
            models.BernoulliPrior(num_latents, probability=2 / num_latents, learn="closed_form"),
            models.GaussianLikelihood(variance=float(images.var()) / _START, learn="closed_form"),
        )
        loss = infer.Truncated_ELBO(
            evolution.chain(evolution.select(min(4, args.states)), evolution.flip(4)),
            sweeps=lambda step: step // per_epoch % _EVERY == 0,
            beta=backend.schedule(_START, 1.0, blurred),
            closed_form=lambda step: step >= blurred,  # noise and prior are held till then
        )
        return model, infer.TruncatedGuide(model, args.states), loss

    return backend.train_best(
        make,
        images,
        np.arange(num_data),
        num_data,
        num_restarts=args.restarts,
        learning_rate=1e-2,
        decay=0.1,
        num_steps=num_steps,
        batch_size=args.batch_size,
        log_every=max(1, num_steps // 20),
    )


def steady(result: Any, args: Any) -> float:
    """Milliseconds an epoch takes once all is compiled: after the first row of the log."""
    first, last = result.history[0], result.history[-1]
    steps = max(last["step"] - first["step"], 1)
    return 1e3 * (last["seconds"] - first["seconds"]) / steps * (args.num_data // args.batch_size)


def every_state(num_latents: int) -> np.ndarray:
    """All binary states ``(2 ** H, H)``; state ``2 ** h`` has latent h alone."""
    return (np.arange(2**num_latents)[:, None] >> np.arange(num_latents) & 1).astype(np.float32)


def log_likelihood(
    images: np.ndarray, states: np.ndarray, means: Any, variance: Any, probs: np.ndarray
) -> float:
    """Exact, per image, in nats: the sum over all states."""
    x, means = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (images, means))
    variance = float(np.mean(variance))  # one for all pixels
    probs = np.asarray(probs, np.float64)
    log_prior = states @ np.log(probs) + (1 - states) @ np.log1p(-probs)
    errors = (x**2).sum(1)[:, None] - 2 * x @ means.T + (means**2).sum(1)
    scores = log_prior - 0.5 * errors / variance
    scores = scores - 0.5 * x.shape[1] * math.log(2 * math.pi * variance)
    return float(np.logaddexp.reduce(scores, axis=1).mean())


if __name__ == "__main__":
    run_main(main)
