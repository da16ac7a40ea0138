"""The operators of `ops.sets`, under the import path that users know."""

from pyro_dvae.ops.sets import Operator as Operator
from pyro_dvae.ops.sets import (
    Population,
    chain,
    cross,
    flip,
    flip_probs,
    propose,
    select,
    sparse_flip,
    union,
)

__all__ = [
    "Population",
    "chain",
    "cross",
    "flip",
    "flip_probs",
    "propose",
    "select",
    "sparse_flip",
    "union",
]
