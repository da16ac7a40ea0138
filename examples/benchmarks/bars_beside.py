"""How often does one start of a sparse code, or of a noisy-OR network, find the bars of its images?

Images of 4 x 4 pixels, as in the bars test of the TVAE authors: each of 8 bars is there with
probability 1/4. Sums of bars and noise of standard deviation .1 for sparse coding, with normal
amplitudes for spikes and slabs, and for the network pixels that each bar over them switches on with
probability .8. A run has arrived where the exact log-likelihood of what it learnt is at least that
of the parameters that made the images.
For sparse coding half of the steps have the noise level known and the rate weighted by beta, which
falls from 50 to 1; "at once" is without these. A row for each, of as many seeds; with
``--beside tvo`` the authors' library on the same images with sets of as many states, else by the
settings of its own test (40 epochs), and after 5 times its epochs.

    python examples/benchmarks/bars_beside.py --backend numpyro
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import bars
import noisy_or
from backends import Backend, get_backend
from beside import tvo_bars
from cli import Parser, positive, run_main
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

_LATENTS, _CHANCE = 8, 0.25
_NOISE, _STRENGTH = 0.1, 0.8  # of a pixel; of a bar on the pixels under it
_START = 50.0  # beta at first, and how much less than the images' variance the noise's is
_STATES = {"sparse coding": 10, "spike and slab": 16, "noisy-OR": 32}  # of a set; theirs have 10


class Task(NamedTuple):
    """Images of a model, and how to judge what was learnt of them."""

    images: np.ndarray  # (N, 16)
    likelihood: Callable[..., float]  # exact, per image, of parameters
    truth: tuple  # these parameters, of those that made the images


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = Parser(__doc__, out=None)
    parser.add_argument("--seeds", type=positive, default=20)
    parser.add_argument("--num-data", type=positive, default=500)
    parser.add_argument(
        "--steps", type=positive, default=100, help="of all images; of noisy-OR .6 times as many"
    )
    parser.add_argument("--models", choices=list(_STATES), nargs="+", default=list(_STATES))
    parser.add_argument("--beside", choices=["tvo"], help="another library, installed by you")
    parser.add_argument("--epochs", type=positive, nargs="+", default=[40, 200], help="of it")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.seeds, args.num_data, args.steps = 1, 40, 4
    print("| model | by | arrived | nats per image beside the truth, median | CPU s |")
    print("|---|---|---:|---:|---:|")
    tasks = {"sparse coding": sparse_coding, "spike and slab": slabs, "noisy-OR": network}
    for name in args.models:
        make = tasks[name]
        for method, learn in methods(name, args).items():
            gaps, seconds = [], []
            for seed in range(args.seed, args.seed + args.seeds):
                task = make(np.random.default_rng(seed), args.num_data)
                start = time.process_time()
                found = learn(task.images, seed)
                seconds.append(time.process_time() - start)
                gaps.append(task.likelihood(*found) - task.likelihood(*task.truth))
            arrived = f"{np.sum(np.array(gaps) >= 0)} of {args.seeds}"
            row = f"{arrived} | {np.median(gaps):+.2f} | {np.median(seconds):.1f}"
            print(f"| {name} | {method} | {row} |", flush=True)


def sparse_coding(rng: np.random.Generator, num_data: int) -> Task:
    """Sums of bars, and noise."""
    atoms = bars.make_bars(_LATENTS).reshape(_LATENTS, -1)
    present = rng.random((num_data, _LATENTS)) < _CHANCE
    images = present @ atoms + _NOISE * rng.standard_normal((num_data, atoms.shape[1]))
    states = bars.every_state(_LATENTS)

    def likelihood(atoms: np.ndarray, offset: Any, variance: float, prior: np.ndarray) -> float:
        return bars.log_likelihood(images, states, states @ atoms + offset, variance, prior)

    truth = atoms, 0.0, _NOISE**2, np.full(_LATENTS, _CHANCE)
    return Task(images.astype(np.float32), likelihood, truth)


def slabs(rng: np.random.Generator, num_data: int) -> Task:
    """Sums of bars with normal amplitudes, and noise."""
    atoms = bars.make_bars(_LATENTS).reshape(_LATENTS, -1)
    amplitudes = (rng.random((num_data, _LATENTS)) < _CHANCE) * rng.standard_normal(
        (num_data, _LATENTS)
    )
    images = amplitudes @ atoms + _NOISE * rng.standard_normal((num_data, atoms.shape[1]))
    states = bars.every_state(_LATENTS)

    def likelihood(
        atoms: np.ndarray, mean: np.ndarray, spread: np.ndarray, variance: float, prior: np.ndarray
    ) -> float:
        there = states[..., None] * atoms  # (states, H, pixels)
        covariances = np.swapaxes(there, 1, 2) @ spread @ there + variance * np.eye(len(images[0]))
        scores = [
            multivariate_normal(mean @ each, covariance).logpdf(images)
            for each, covariance in zip(there, covariances, strict=True)
        ]
        log_prior = states @ np.log(prior) + (1 - states) @ np.log1p(-prior)
        return float(logsumexp(np.stack(scores, 1) + log_prior, axis=1).mean())

    truth = atoms, np.zeros(_LATENTS), np.eye(_LATENTS), _NOISE**2, np.full(_LATENTS, _CHANCE)
    return Task(images.astype(np.float32), likelihood, truth)


def network(rng: np.random.Generator, num_data: int) -> Task:
    """Pixels that bars switch on."""
    atoms = bars.make_bars(_LATENTS).reshape(_LATENTS, -1)
    leak = np.full(atoms.shape[1], 1e-7)
    truth = noisy_or.Network(np.full(_LATENTS, _CHANCE), leak, _STRENGTH * atoms)
    images = noisy_or.simulate(rng, truth, num_data)

    def likelihood(prior: np.ndarray, leak: np.ndarray, weight: np.ndarray) -> float:
        return noisy_or.log_likelihood(noisy_or.Network(prior, leak, weight), images)

    return Task(images, likelihood, truth)


def methods(name: str, args: Any) -> dict[str, Callable]:
    """Functions of images and a seed, each to the parameters learnt."""
    backend, found = get_backend(args.backend, "cpu"), {}
    if name == "noisy-OR":
        found[args.backend] = lambda images, seed: learn_network(backend, images, seed, args.steps)
    elif name == "spike and slab":
        found[args.backend] = lambda images, seed: learn_slabs(backend, images, seed, args.steps)
    else:
        for method, betas in {
            f"{args.backend}, at once": (1.0,),
            args.backend: (_START, 1.0),
        }.items():
            found[method] = lambda images, seed, betas=betas: learn_atoms(
                backend, images, seed, args.steps, betas
            )
    for epochs in args.epochs if args.beside else ():
        found[f"tvo, {epochs} epochs"] = lambda images, seed, epochs=epochs: tvo_bars(
            name, images, seed, num_latents=_LATENTS, num_states=_STATES[name], epochs=epochs
        )
    return found


def learn_atoms(
    backend: Backend, images: np.ndarray, seed: int, num_steps: int, betas: tuple[float, ...]
) -> tuple:
    """Atoms, offset, variance of the noise and prior, all in closed form, from random atoms.

    Args:
        backend: Of the package that learns.
        images: The data.
        seed: Of atoms and E-steps.
        num_steps: In all.
        betas: Where beta starts, in each part of the steps; it ends at 1. With two parts the noise
            level and the prior are known in the first one.
    """
    infer, evolution = backend.module("infer"), backend.module("ops.evolution")
    models = backend.module("models")
    backend.seed(seed)
    rng = np.random.default_rng(seed)
    atoms = 2 * images.mean(0) * rng.random((_LATENTS, images.shape[1]))
    variance, num_steps = float(images.var()), num_steps // len(betas)
    for beta in betas:
        known = beta > 1
        learn: Any = False if known else "closed_form"
        model = models.DiscreteVAE(
            models.LinearDecoder(backend.array(atoms.astype(np.float32)), learn="closed_form"),
            models.BernoulliPrior(_LATENTS, probability=_CHANCE, learn=learn),
            models.GaussianLikelihood(variance=variance / (_START if known else 1.0), learn=learn),
        )
        loss = infer.Truncated_ELBO(
            evolution.chain(evolution.select(5), evolution.flip(3)),
            generations=2,
            beta=backend.schedule(beta, 1.0, num_steps) if known else 1.0,
        )
        result = backend.train(
            model,
            infer.TruncatedGuide(model, _STATES["sparse coding"]),
            loss,
            images,
            learning_rate=0.01,  # of nothing: all has a closed form
            num_steps=num_steps,
            log_every=num_steps,
            progress=False,
        )
        states = np.concatenate([np.zeros((1, _LATENTS)), np.eye(_LATENTS)]).astype(np.float32)
        means, noise, prior = backend.conditional(result.model, states)
        atoms, variance = means[1:] - means[0], _START * float(np.mean(noise))
    return atoms, means[0], float(np.mean(noise)), prior[0]


def learn_slabs(backend: Backend, images: np.ndarray, seed: int, num_steps: int) -> tuple:
    """Atoms, means and covariance of amplitudes, variance of the noise and prior, by the gradient.

    The atoms are some of the images at first; amplitudes, with the mean 0 and the variance 1, are
    summed out.
    """
    infer, evolution = backend.module("infer"), backend.module("ops.evolution")
    backend.seed(seed)
    start = images[np.random.default_rng(seed).permutation(len(images))[:_LATENTS]]
    model = _SLABS[backend.name](backend.array(start))
    result = backend.train(
        model,
        infer.TruncatedGuide(model, _STATES["spike and slab"]),
        infer.Truncated_ELBO(evolution.chain(evolution.select(4), evolution.flip(4))),
        images,
        learning_rate=0.03,
        num_steps=3 * num_steps,
        log_every=3 * num_steps,
        progress=False,
    )
    found = {name: np.asarray(value, np.float64) for name, value in result.params.items()}
    variance = float(found["noise"]) ** 2
    return found["atoms"], np.zeros(_LATENTS), np.eye(_LATENTS), variance, found["prior"]


def pyro_slabs(start: Any) -> Callable:
    """Spike-and-slab sparse coding from these atoms, in Pyro."""
    import pyro
    import pyro.distributions as dist
    import torch

    from pyro_dvae.distributions import NormalAtoms

    def model(images: Any) -> None:
        between, positive = dist.constraints.unit_interval, dist.constraints.positive
        atoms = pyro.param("atoms", start)
        prior = pyro.param("prior", torch.full((_LATENTS,), _CHANCE), constraint=between)
        noise = pyro.param("noise", torch.tensor(0.5), constraint=positive)
        with pyro.plate("images", len(images)):
            spikes = pyro.sample("spikes", dist.Bernoulli(prior).to_event(1))
            pyro.sample("image", NormalAtoms(spikes[..., None] * atoms, noise), obs=images)

    return model


def numpyro_slabs(start: Any) -> Callable:
    """The same in NumPyro."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    from numpyro_dvae.distributions import NormalAtoms

    def model(images: Any) -> None:
        between, positive = dist.constraints.unit_interval, dist.constraints.positive
        atoms = numpyro.param("atoms", start)
        prior = numpyro.param("prior", jnp.full(_LATENTS, _CHANCE), constraint=between)
        noise = numpyro.param("noise", 0.5, constraint=positive)
        with numpyro.plate("images", len(images)):
            spikes = numpyro.sample("spikes", dist.Bernoulli(prior).to_event(1))
            numpyro.sample("image", NormalAtoms(spikes[..., None] * atoms, noise), obs=images)

    return model


_SLABS = {"pyro": pyro_slabs, "numpyro": numpyro_slabs}


def learn_network(
    backend: Backend, images: np.ndarray, seed: int, num_steps: int
) -> noisy_or.Network:
    """A noisy-OR network, its weights in closed form."""
    backend.seed(seed)
    args = Namespace(
        causes=_LATENTS, states=_STATES["noisy-OR"], restarts=1, steps=6 * num_steps // 10
    )
    result = noisy_or.train(backend, images, args, np.random.default_rng(seed))
    return noisy_or.learnt(backend, result.model, _LATENTS)


if __name__ == "__main__":
    run_main(main)
