"""DAPS on CIFAR-10 beside its authors' code: the same small batches, networks and settings.

Both train the published configuration (64 codes of 512 values, 8 draws, beta from 6 to .01) on the
same batches, a step of each in turn. Printed are the CPU time of a step without what compiles, and
the beta-ELBO at a beta of .01 on other images: ours as `evaluate` has it, theirs as they validate,
and beside it with norms of the batch, as they train, since after few steps running means lag.

    python examples/benchmarks/daps_beside.py --data images.npz --backend numpyro --beside jadex
"""

import sys
import time
from collections.abc import Callable
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
from timing import against
from tqdm import tqdm

Step = Callable[[np.ndarray], object]  # of a batch
Evaluate = Callable[[np.ndarray], dict[str, float]]  # what was reached, on other images


def main(arguments: list[str]) -> None:
    """Train side by side, and print a row for each."""
    parser = Parser(__doc__, out=None)
    parser.add_argument("--data", required=True, metavar="PATH.npz")
    parser.add_argument("--steps", type=positive, default=100)
    parser.add_argument("--batch-size", type=positive, default=8)
    parser.add_argument("--test-images", type=positive, default=64)
    parser.add_argument("--beside", choices=["jadex"], help="another library, installed by you")
    args = parser.parse_args(arguments)
    num_steps, size = (12, 4) if args.smoke else (args.steps, args.batch_size)
    data = load(args.data).standardized().fewer_tests(args.test_images)
    if size > min(len(data.x_train), len(data.x_test)):
        raise CommandError(f"--batch-size {size}: there are fewer images to train or test on")
    rows = np.random.default_rng(args.seed).integers(len(data.x_train), size=(num_steps, size))
    batches = [data.x_train[some] for some in rows]

    ours = f"{args.backend}_dvae"
    runs = {ours: make_ours(get_backend(args.backend, "cpu"), batches, args.seed)}
    if args.beside:
        runs[args.beside] = make_theirs(batches, args.seed)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for x in tqdm(batches):
        for name, (step, _) in runs.items():
            start = time.process_time()
            step(x)
            seconds[name].append(time.process_time() - start)
    print(f"{num_steps} steps of {size} images")
    for name, (_, evaluate) in runs.items():
        found = ", ".join(f"{key} {value:.1f}" for key, value in evaluate(data.x_test).items())
        print(f"{name}: {found}; {1e3 * median(seconds[name]):.0f} ms of CPU a step")
    if args.beside:
        print(against(seconds, args.beside, ours))


def make_ours(backend: Backend, batches: list[np.ndarray], seed: int) -> tuple[Step, Evaluate]:
    """A step as the configuration says, and an evaluation."""
    config = CONFIGS["cifar10"]
    backend.seed(seed)
    model, guide = backend.make_vae(config, batches[0])
    beta = backend.schedule(config.beta_from, config.beta_to, len(batches))
    loss = backend.make_loss("daps", beta=beta, target_ess=config.target_ess)
    rate = config.learning_rate, config.decay, len(batches)
    optim = backend.make_optimiser(*rate, **config.optimiser())
    make = {"pyro": svi_of_pyro, "numpyro": svi_of_numpyro}[backend.name]
    step, params = make(model, guide, optim, loss, batches[0], seed)

    def evaluate(test: np.ndarray) -> dict[str, float]:
        options = {"num_particles": 8, "beta": config.beta_to, "batch_size": 16}
        data = backend.array(test)
        found = backend.diagnose("evaluate", (model, guide), data, params=params(), **options)
        return {"beta-ELBO": found.beta_elbo}

    return step, evaluate


def svi_of_pyro(
    model: Any, guide: Any, optim: Any, loss: Any, first: np.ndarray, seed: int
) -> tuple[Step, Callable[[], None]]:
    """A step of Pyro's SVI, whose store has the parameters."""
    import pyro
    import torch

    svi = pyro.infer.SVI(model, guide, optim, loss=loss)

    def step(x: np.ndarray) -> None:
        with pyro.validation_enabled(False):
            svi.step(torch.as_tensor(x))

    return step, lambda: None


def svi_of_numpyro(
    model: Any, guide: Any, optim: Any, loss: Any, first: np.ndarray, seed: int
) -> tuple[Step, Callable[[], Any]]:
    """A step of NumPyro's SVI, jitted, and its parameters."""
    import jax

    from numpyro_dvae.infer import SVI

    svi = SVI(model, guide, optim, loss=loss)
    carry = [svi.init(jax.random.key(seed), first)]
    step = carried(carry, jax.jit(svi.update), first)
    return step, lambda: svi.get_params(carry[0])


def make_theirs(batches: list[np.ndarray], seed: int) -> tuple[Step, Evaluate]:
    """A step of their code, and an evaluation as they train and as they validate."""
    import jax

    size = len(batches[0])
    settings = f"train.batch_size={size}", f"job.total_nsteps={len(batches)}"
    daps = jadex_daps("cifar", len(batches) * size, *settings)
    carry = [daps.init(jax.random.PRNGKey(seed))]
    step = carried(carry, daps.update, batches[0])

    def evaluate(test: np.ndarray) -> dict[str, float]:
        parts = [test[start : start + size] for start in range(0, len(test) - size + 1, size)]
        keys = jax.random.split(jax.random.PRNGKey(seed + 1), len(parts))
        as_trained = [daps.update(carry[0], x)[1]["beta_elbo"] for x in parts]
        validated = [
            daps.predict(carry[0], x, key)["beta_elbo"] for x, key in zip(parts, keys, strict=True)
        ]
        found = {"beta-ELBO": validated, "with norms of the batch": as_trained}
        return {name: float(np.mean(values)) for name, values in found.items()}

    return step, evaluate


def carried(carry: list[Any], update: Callable[..., tuple[Any, Any]], first: np.ndarray) -> Step:
    """A step of the state in `carry` by a jitted update, which is compiled."""
    import jax

    jax.block_until_ready(update(carry[0], first))

    def step(x: np.ndarray) -> None:
        carry[0], _ = jax.block_until_ready(update(carry[0], x))

    return step


if __name__ == "__main__":
    run_main(main)
