"""Memory and arithmetic of a training step of a configuration, by particles and batch.

Arithmetic is counted by Torch's own counter on networks without data: a pass of each and twice
that for the gradient, and for codes that are drawn one after the other a pass more. Memory is that
of weights, gradients and AdamW, and of what a step of the smallest sizes keeps for its gradient,
which is measured on this machine and grows in proportion to the batch, and to the batch times K.

    python examples/benchmarks/costs.py --config imagenet256
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from backends import get_backend
from configs import CONFIGS, Config

SHAPES = {"mnist": (28, 28), "cifar10": (32, 32, 3), "imagenet256": (256, 256, 3)}
_GIGA = 1e9


class Arithmetic(NamedTuple):
    """Floating-point operations of a step, those of one datum and of one particle of it."""

    per_datum: float
    per_particle: float

    def of(self, batch: int, num_particles: int) -> float:
        """Of a whole step."""
        return batch * (self.per_datum + num_particles * self.per_particle)


class Memory(NamedTuple):
    """Bytes of a step: what does not grow, and what is kept of a datum and of a particle."""

    fixed: float  # weights, gradients and two moments; casts of weights
    per_datum: float
    per_particle: float

    def of(self, batch: int, num_particles: int) -> float:
        """Of a whole step."""
        return self.fixed + batch * (self.per_datum + num_particles * self.per_particle)


def programs_of(config: Config, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Model and guide for data of a shape."""
    data = np.zeros((1, *shape), np.float32)
    return get_backend("pyro", "cpu").make_vae(config, data)


def arithmetic(config: Config, shape: tuple[int, ...]) -> Arithmetic:
    """Count the operations of the networks, for an autoregressive or an independent guide."""
    config = config._replace(half=False, recompute=False)  # which autocast has none of on "meta"
    model, guide = (part.to("meta") for part in programs_of(config, shape))
    codes = torch.zeros((1, 1, config.num_latents), dtype=torch.long, device="meta")
    x = torch.zeros((1, *shape), device="meta")
    decode = 3 * counted(model.decoder, codes)
    if not hasattr(guide, "transformer"):
        return Arithmetic(3 * counted(guide.encoder, x), decode)
    with torch.device("meta"):
        context = torch.zeros((1, config.num_patches, config.embed_dim))
    draws = counted(guide.transformer, codes, context)
    return Arithmetic(3 * counted(guide.encoder, x), decode + 4 * draws)


def counted(net: Any, *inputs: Any) -> int:
    """Operations of one pass."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(*inputs)
    return counter.get_total_flops()


def memory(config: Config, shape: tuple[int, ...]) -> Memory:
    """Measure what steps of one datum and of two keep, with two particles and with four."""
    model, guide = programs_of(config, shape)
    weights = sum(4 * p.numel() for net in (model, guide) for p in net.parameters())
    sizes = (1, 2), (1, 4), (2, 2)  # batch, K
    one, more, two = (kept(config, (model, guide), (b, *shape), k) for b, k in sizes)
    per_particle, datum = (more - one) / 2, two - one
    return Memory(4 * weights + one - datum, datum - 2 * per_particle, per_particle)


def kept(config: Config, programs: tuple[Any, Any], shape: tuple[int, ...], num: int) -> int:
    """Bytes that a step on data of a shape keeps for its gradient, less those of the weights."""
    model, guide = programs
    own = {p.untyped_storage().data_ptr() for net in (model, guide) for p in net.parameters()}
    held: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage  # held, lest its place be used again
        return tensor

    backend = get_backend("pyro", "cpu")
    loss = backend.make_loss("daps", num_particles=num, beta=config.beta_to)
    x = torch.zeros(shape)
    with pyro.validation_enabled(False), torch.autograd.graph.saved_tensors_hooks(keep, _same):
        loss.differentiable_loss(model, guide, x)
    return sum(storage.nbytes() for storage in held.values())


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", choices=list(SHAPES), default="imagenet256")
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    args = parser.parse_args()
    config, shape = CONFIGS[args.config], SHAPES[args.config]
    work = arithmetic(config, shape)
    kinds = {
        "plain": memory(config, shape),
        "--half": memory(config._replace(half=True), shape),
        "--recompute": memory(config._replace(recompute=True), shape),
        "both": memory(config._replace(half=True, recompute=True), shape),
    }
    print(f"| batch | K | TFLOP a step | {' | '.join(f'GB, {kind}' for kind in kinds)} |")
    print("|" + "---|" * (3 + len(kinds)))
    for batch in args.batches:
        for num in args.particles:
            cells = [f"{each.of(batch, num) / _GIGA:.2f}" for each in kinds.values()]
            print(f"| {batch} | {num} | {work.of(batch, num) / 1e12:.3f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
