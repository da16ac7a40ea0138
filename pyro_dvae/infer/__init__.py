"""Inference algorithms, one file each, over the particles of any Pyro model and guide.

Swap them as the loss of an `SVI` or as an `ELBOModule`:

- `DAPS_ELBO`: policy search, the natural gradient of a non-parametric encoder;
- `Reinforce_ELBO`: the score function with leave-one-out and other baselines, unbiased;
- `VIMCO_ELBO`: the score function of the bound of K particles, unbiased;
- `DisARM_ELBO`: antithetic pairs of Bernoulli latents, unbiased;
- `VQ_ELBO`: straight-through gradients for guides that quantise vectors, biased;
- `WakeSleep_ELBO`: reweighted wake-sleep, the posterior followed by importance weights;
- `Exact_ELBO`: the sum over all states, where they are few;
- `Truncated_ELBO`, with a `TruncatedGuide`: the best states that evolution finds for each datum.

`relax` gives the draws of a program a gradient instead: Gumbel-softmax and its like, for any loss.
"""

from pyro_dvae.infer.daps import DAPS_ELBO
from pyro_dvae.infer.disarm import DisARM_ELBO
from pyro_dvae.infer.exact import Exact_ELBO
from pyro_dvae.infer.quantization import VQ_ELBO
from pyro_dvae.infer.reinforce import Reinforce_ELBO
from pyro_dvae.infer.relaxation import relax
from pyro_dvae.infer.truncated.guide import TruncatedGuide
from pyro_dvae.infer.truncated.loss import Truncated_ELBO
from pyro_dvae.infer.truncated.proposals import draws_of, informed_flip, prior_flip
from pyro_dvae.infer.vimco import VIMCO_ELBO
from pyro_dvae.infer.wake_sleep import WakeSleep_ELBO

__all__ = [
    "DAPS_ELBO",
    "VIMCO_ELBO",
    "VQ_ELBO",
    "DisARM_ELBO",
    "Exact_ELBO",
    "Reinforce_ELBO",
    "TruncatedGuide",
    "Truncated_ELBO",
    "WakeSleep_ELBO",
    "draws_of",
    "informed_flip",
    "prior_flip",
    "relax",
]
