"""Draws of either package under one seed, and how far their frequencies are from probabilities."""

import numpy as np


def seeded(backend, function, seed, *arguments):
    """Call a function that draws, with the seed where each package has its place for it."""
    if backend.name == "numpyro":
        import jax

        return function(jax.random.key(seed), *arguments)
    import torch

    torch.manual_seed(seed)
    return function(*arguments)


def z_scores(draws, probs):
    """Distance of frequencies over axis 0 from probabilities, in standard errors."""
    spread = np.sqrt(probs * (1 - probs) / len(draws))
    return np.abs(draws.mean(0) - probs) / np.where(spread > 0, spread, 1e-9)


def as_codes(codes, cardinalities):
    return np.asarray(codes, np.uint8 if max(cardinalities) <= 256 else np.int32)


def random_codes(cardinalities, *shape, seed=0):
    codes = np.random.default_rng(seed).integers(cardinalities, size=(*shape, len(cardinalities)))
    return as_codes(codes, cardinalities)
