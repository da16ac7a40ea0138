"""Amortised guides q(z | x)."""

from pyro_dvae.guides.amortised import (
    AutoregressiveGuide,
    IndependentGuide,
    VectorQuantizedGuide,
    mnist_guide,
)

__all__ = [
    "AutoregressiveGuide",
    "IndependentGuide",
    "VectorQuantizedGuide",
    "mnist_guide",
]
