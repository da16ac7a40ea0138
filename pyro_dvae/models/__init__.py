"""Discrete VAEs: a prior, a decoder, a likelihood."""

from pyro_dvae.models.vae import (
    AutoregressivePrior,
    BernoulliLikelihood,
    BernoulliPrior,
    CategoricalPrior,
    ClosedForm,
    CodeModel,
    DiscreteVAE,
    GaussianLikelihood,
    UniformPrior,
    mnist_vae,
)

__all__ = [
    "AutoregressivePrior",
    "BernoulliLikelihood",
    "BernoulliPrior",
    "CategoricalPrior",
    "ClosedForm",
    "CodeModel",
    "DiscreteVAE",
    "GaussianLikelihood",
    "UniformPrior",
    "mnist_vae",
]
