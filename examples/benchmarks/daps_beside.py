"""DAPS on CIFAR-10 beside its authors' code: the same small batches, networks and settings.

Both train the published configuration (64 codes of 512 values, 8 draws, beta from 6 to .01) on the
same batches. Printed are the CPU time of a step without what compiles, and the beta-ELBO at a beta
of .01 on other images: ours as `evaluate` has it, theirs as they validate, and as they train, with
norms of the batch itself, since running means of so few steps are not those of the weights.

    python examples/benchmarks/daps_beside.py --data images.npz --backend numpyro --beside jadex
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from backends import Backend, get_backend
from beside import jadex_daps
from cli import CommandError, Parser, positive, run_main
from configs import CONFIGS
from data import load

Run = tuple[dict[str, float], list[float]]  # what was reached; CPU seconds of each step


def main(arguments: list[str]) -> None:
    """Train, and print a row for each."""
    parser = Parser(__doc__, out=None)
    parser.add_argument("--data", required=True, metavar="PATH.npz")
    parser.add_argument("--steps", type=positive, default=100)
    parser.add_argument("--batch-size", type=positive, default=8)
    parser.add_argument("--test-images", type=positive, default=64)
    parser.add_argument("--beside", choices=["jadex"], help="another library, installed by you")
    args = parser.parse_args(arguments)
    num_steps, size = (12, 4) if args.smoke else (args.steps, args.batch_size)
    data = load(args.data).standardized().fewer_tests(args.test_images)
    if len(data.x_train) < size:
        raise CommandError(f"--batch-size {size}: there are only {len(data.x_train)} images")
    rows = np.random.default_rng(args.seed).integers(len(data.x_train), size=(num_steps, size))
    batches = [data.x_train[some] for some in rows]

    print(f"{num_steps} steps of {size} images", flush=True)
    ours, seconds = train_ours(get_backend(args.backend, "cpu"), batches, data.x_test, args.seed)
    show(f"{args.backend}_dvae", ours, seconds)
    if args.beside:
        theirs, others = train_theirs(batches, data.x_test, args.seed)
        show(args.beside, theirs, others)
        ratios = [a / b for a, b in zip(others, seconds, strict=True)]
        print(f"CPU time of a step of {args.beside} in one of ours: {median(ratios):.2f}")


def show(name: str, found: dict[str, float], seconds: list[float]) -> None:
    """Print what was reached, and the time of a step."""
    reached = ", ".join(f"{key} {value:.1f}" for key, value in found.items())
    print(f"{name}: {reached}; {1e3 * median(seconds):.0f} ms of CPU a step", flush=True)


def train_ours(backend: Backend, batches: list[np.ndarray], test: np.ndarray, seed: int) -> Run:
    """Train as the configuration says, and evaluate."""
    config = CONFIGS["cifar10"]
    backend.seed(seed)
    model, guide = backend.make_vae(config, batches[0])
    beta = backend.schedule(config.beta_from, config.beta_to, len(batches))
    loss = backend.make_loss("daps", beta=beta, target_ess=config.target_ess)
    rate = config.learning_rate, config.decay, len(batches)
    optim = backend.make_optimiser(*rate, **config.optimiser())
    params, seconds = STEPS[backend.name](model, guide, optim, loss, batches, seed)
    pair, options = (model, guide), {"num_particles": 8, "beta": config.beta_to, "batch_size": 16}
    found = backend.diagnose("evaluate", pair, backend.array(test), params=params, **options)
    return {"beta-ELBO": found.beta_elbo}, seconds


def steps_pyro(
    model: Any, guide: Any, optim: Any, loss: Any, batches: list[np.ndarray], seed: int
) -> tuple[None, list[float]]:
    """Steps of Pyro's SVI; its store has the parameters."""
    import pyro
    import torch

    svi = pyro.infer.SVI(model, guide, optim, loss=loss)
    with pyro.validation_enabled(False):
        steps = (lambda x=torch.as_tensor(x): svi.step(x) for x in batches)
        return None, timed(steps)


def steps_numpyro(
    model: Any, guide: Any, optim: Any, loss: Any, batches: list[np.ndarray], seed: int
) -> tuple[Any, list[float]]:
    """Steps of NumPyro's SVI, jitted; its parameters."""
    import jax

    from numpyro_dvae.infer import SVI

    svi = SVI(model, guide, optim, loss=loss)
    carry = [svi.init(jax.random.key(seed), batches[0])]
    update = jax.jit(svi.update)

    def step(x: np.ndarray) -> None:
        carry[0], _ = jax.block_until_ready(update(carry[0], x))

    step_to(carry, lambda: step(batches[0]))
    seconds = timed(lambda x=x: step(x) for x in batches)
    return svi.get_params(carry[0]), seconds


STEPS: dict[str, Callable[..., tuple[Any, list[float]]]] = {
    "pyro": steps_pyro,
    "numpyro": steps_numpyro,
}


def train_theirs(batches: list[np.ndarray], test: np.ndarray, seed: int) -> Run:
    """Train by their code, and validate as they do and with the norms of training."""
    import jax

    settings = f"train.batch_size={len(batches[0])}", f"job.total_nsteps={len(batches)}"
    daps = jadex_daps("cifar", len(batches) * len(batches[0]), *settings)
    carry = [daps.init(jax.random.PRNGKey(seed))]

    def step(x: np.ndarray) -> None:
        carry[0], _ = jax.block_until_ready(daps.update(carry[0], x))

    step_to(carry, lambda: step(batches[0]))
    seconds = timed(lambda x=x: step(x) for x in batches)
    size, state = len(batches[0]), carry[0]
    parts = [test[start : start + size] for start in range(0, len(test) - size + 1, size)]
    keys = jax.random.split(jax.random.PRNGKey(seed + 1), len(parts))
    as_validated = [daps.predict(state, *pair)["beta_elbo"] for pair in zip(parts, keys, strict=True)]
    as_trained = [daps.update(state, x)[1]["beta_elbo"] for x in parts]
    found = {"beta-ELBO": as_trained, "as they validate": as_validated}
    return {name: float(np.mean(values)) for name, values in found.items()}, seconds


def step_to(carry: list[Any], compile_step: Callable[[], None]) -> None:
    """Compile a step, and go back to where it began."""
    before = carry[0]
    compile_step()
    carry[0] = before


def timed(steps: Iterator[Callable[[], object]]) -> list[float]:
    """CPU seconds of each."""
    seconds = []
    for step in steps:
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return seconds


if __name__ == "__main__":
    run_main(main)
