"""Inference algorithms, one file each, over the particles of any Pyro model and guide.

Swap them as the loss of an `SVI` or as an `ELBOModule`:

- `DAPS_ELBO`: policy search, the natural gradient of a non-parametric encoder;
- `Reinforce_ELBO`: the score function with leave-one-out and other baselines, unbiased;
- `Exact_ELBO`: the sum over all states, where they are few;
- `Truncated_ELBO`, with a `TruncatedGuide`: the best states that evolution finds for each datum.
"""

from pyro_dvae.infer.daps import DAPS_ELBO
from pyro_dvae.infer.exact import Exact_ELBO
from pyro_dvae.infer.reinforce import Reinforce_ELBO
from pyro_dvae.infer.truncated import Truncated_ELBO
from pyro_dvae.infer.truncated_guide import TruncatedGuide, draws_of

__all__ = [
    "DAPS_ELBO",
    "Exact_ELBO",
    "Reinforce_ELBO",
    "TruncatedGuide",
    "Truncated_ELBO",
    "draws_of",
]
