"""Truncated posteriors optimised by evolution: a guide that keeps states, and its loss."""

from numpyro_dvae.infer.truncated.guide import TruncatedGuide, TruncatedPosterior
from numpyro_dvae.infer.truncated.loss import Truncated_ELBO, TruncatedInfo
from numpyro_dvae.infer.truncated.proposals import draws_of, informed_flip, prior_flip

__all__ = [
    "TruncatedGuide",
    "TruncatedInfo",
    "TruncatedPosterior",
    "Truncated_ELBO",
    "draws_of",
    "informed_flip",
    "prior_flip",
]
