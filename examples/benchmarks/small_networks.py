"""Small convolutional networks for colour images, and codes on a grid, in Torch and flax.

Images are of 32 x 32 pixels and codes on a grid of 8 x 8; in flax they start as Torch's layers do.
"""

import importlib
from typing import Any

__all__ = ["flax_networks", "torch_networks"]


def torch_networks(width: int, decoded: int | None = None) -> tuple[Any, Any]:
    """An encoder to (N, width, 8, 8), and a decoder of vectors as wide, or of others."""
    nn = importlib.import_module("torch").nn
    encoder = nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(64, width, 1),
    )
    decoder = nn.Sequential(
        nn.Conv2d(decoded or width, 64, 3, 1, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 3, 4, 2, 1),
    )
    return encoder, decoder


def flax_networks(width: int, decoded: int | None = None) -> tuple[Any, Any]:
    """As `torch_networks`, to (N, 8, 8, width), and with the start that Torch's layers have."""
    jax, nn, nets = map(importlib.import_module, ("jax", "flax.linen", "numpyro_dvae.nets"))
    start = nn.initializers.variance_scaling

    def convolution(width: int, size: int, stride: int, channels: int) -> Any:
        most = (size * size * channels) ** -0.5

        def bias(rng_key: Any, shape: Any, dtype: Any) -> Any:
            return jax.random.uniform(rng_key, shape, dtype, -most, most)

        kernel = start(1 / 3, "fan_in", "uniform")
        return nn.Conv(width, (size, size), stride, kernel_init=kernel, bias_init=bias)

    def upsampling(width: int) -> Any:
        return nets.Upsampling(width, kernel_init=start(1 / 3, "fan_out", "uniform"))

    layers = [convolution(32, 4, 2, 3), nn.relu, convolution(64, 4, 2, 32), nn.relu]
    encoder = nn.Sequential([*layers, convolution(width, 1, 1, 64)])
    layers = [convolution(64, 3, 1, decoded or width), nn.relu, upsampling(32), nn.relu]
    return encoder, nn.Sequential([*layers, upsampling(3)])
