"""Distributions over codes that the framework lacks."""

from pyro_dvae.distributions.codes import (
    RELAXATIONS,
    AutoregressiveCategorical,
    Categorical,
    OneHotCategorical,
    PathwiseBernoulli,
    PathwiseCategorical,
    log_prob_of_codes,
    sample_codes,
    split_shared,
)

__all__ = [
    "RELAXATIONS",
    "AutoregressiveCategorical",
    "Categorical",
    "OneHotCategorical",
    "PathwiseBernoulli",
    "PathwiseCategorical",
    "log_prob_of_codes",
    "sample_codes",
    "split_shared",
]
