"""Steps a second, peak memory and share of the matrix rate of one configuration, as one JSON line.

python examples/benchmarks/gpu_speed.py --config cifar10 --backend numpyro
"""

import argparse
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from backends import get_backend
from configs import CONFIGS, Config

SHAPES = {"mnist": (28, 28), "cifar10": (32, 32, 3), "imagenet256": (256, 256, 3)}
STEPS = {"mnist": 400, "cifar10": 100, "imagenet256": 20}  # of each of two measurements
_SMALL = {"num_latents": 16, "num_codes": 8, "embed_dim": 16, "batch_size": 2, "num_particles": 2}


def matrix_rate(backend: Any, half: bool, size: int) -> float:
    """Operations a second of products of square matrices."""
    if backend.name == "pyro":
        torch = importlib.import_module("torch")
        dtype = torch.bfloat16 if half else torch.float32
        a = torch.randn(size, size, device=backend.device, dtype=dtype)
        multiply, wait = (lambda: a @ a), _torch_wait(backend)
    else:
        jax = importlib.import_module("jax")
        dtype = jax.numpy.bfloat16 if half else jax.numpy.float32
        with jax.default_device(backend.device):
            a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        product, wait = jax.jit(lambda a: a @ a), jax.block_until_ready  # no constant to fold
        multiply = partial(product, a)
    return 2 * size**3 / seconds_of(multiply, wait, 20)


def _torch_wait(backend: Any) -> Callable[[Any], Any]:
    torch = importlib.import_module("torch")
    on_gpu = backend.device.type == "cuda"
    return lambda found: torch.cuda.synchronize() if on_gpu else found


def seconds_of(call: Callable[[], Any], wait: Callable[[Any], Any], repeats: int) -> float:
    """Seconds of a call, after two that are not counted: the first may change what is compiled."""
    wait(call())
    wait(call())
    start = time.perf_counter()
    for _ in range(repeats):
        found = call()
    wait(found)
    return (time.perf_counter() - start) / repeats


def peak_bytes(backend: Any) -> int:
    """Most memory so far: of the device, or on a CPU of the process."""
    if backend.name == "pyro" and backend.device.type == "cuda":
        return importlib.import_module("torch").cuda.max_memory_allocated()
    stats = backend.device.memory_stats() if backend.name == "numpyro" else None
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def by_hand(backend: Any, repeats: int) -> dict[str, float]:
    """Seconds of a step of MNIST's independent guide: written by hand, and by the package."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    module = importlib.import_module(f"step_speed_{backend.name}")
    if cores is not None:  # of which it takes one, for its own timings on a CPU
        os.sched_setaffinity(0, cores)
    x = (np.random.default_rng(0).random((module.BATCH, 28, 28)) > 0.8).astype(np.float32)
    if backend.name == "pyro":
        torch = importlib.import_module("torch")
        with torch.device(backend.device):
            loss = module.DAPS_ELBO(num_particles=module.K, beta=module.BETA)
            steps = module.by_hand(x := backend._tensors((x,))[0]), module.with_svi(loss, x)
            wait = _torch_wait(backend)
            hand, ours = (seconds_of(step, wait, repeats) for step in steps)
    else:
        jax = importlib.import_module("jax")
        x = jax.device_put(x, backend.device)
        loss = module.DAPS_ELBO(num_particles=module.K, beta=module.BETA)
        steps = module.by_hand(x), module.with_svi(loss, x)
        hand, ours = (seconds_of(step, jax.block_until_ready, repeats) for step in steps)
    return {"by_hand_seconds": hand, "svi_seconds": ours, "against_by_hand": ours / hand}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train on noise, and say how fast."""
    backend = get_backend(args.backend, args.device)
    config, shape = CONFIGS[args.config]._replace(half=args.half), SHAPES[args.config]
    num_steps = STEPS[args.config]
    if args.smoke:
        config, shape, num_steps = (
            config._replace(num_patches=16, **_SMALL),
            (16, 16, *shape[2:]),
            2,
        )
    found: dict[str, Any] = {"config": args.config, "backend": backend.name}
    found |= {"device": str(backend.device), "half": args.half, "batch": config.batch_size}
    images = np.random.default_rng(0).random((2 * config.batch_size, *shape)).astype(np.float32)
    images = images.round() if config.likelihood == "bernoulli" else images
    backend.seed(0)
    model, guide = backend.make_vae(config, images)
    loss = backend.make_loss("daps", num_particles=config.num_particles, beta=config.beta_to)
    result = backend.train(
        *(model, guide, loss, images),
        learning_rate=config.learning_rate,
        optimiser=config.optimiser(),
        num_steps=2 * num_steps,
        batch_size=config.batch_size,
        log_every=num_steps,
        progress=False,
        capture=args.capture,
    )
    speed = result.history[-1]["steps_per_second"]
    found |= {"steps_per_second": speed, "images_per_second": speed * config.batch_size}
    found |= {"peak_gigabytes": peak_bytes(backend) / 1e9}
    return found | share(backend, config, shape, speed, args) | hand_of(backend, args)


def share(
    backend: Any, config: Config, shape: tuple[int, ...], speed: float, args: argparse.Namespace
) -> dict[str, float]:
    """The part of a measured rate that the arithmetic of a step makes of its time."""
    rate = matrix_rate(backend, args.half, 256 if args.smoke else 8192)
    found = {"matrix_teraflops": rate / 1e12}
    try:
        costs = importlib.import_module("costs")
    except ImportError:  # it counts by Torch
        return found
    work = costs.arithmetic(config, shape).of(config.batch_size, config.num_particles)
    return found | {"step_teraflop": work / 1e12, "share_of_rate": work * speed / rate}


def hand_of(backend: Any, args: argparse.Namespace) -> dict[str, float]:
    """Of MNIST the step by hand as well."""
    return by_hand(backend, 2 if args.smoke else 100) if args.config == "mnist" else {}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", choices=list(SHAPES), default="mnist")
    parser.add_argument("--backend", choices=["pyro", "numpyro"], default="pyro")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--capture", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="a few steps of small networks")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
