"""Inference algorithms, one file each, over the particles of any NumPyro model and guide.

Swap them as the loss of an `SVI`:

- `DAPS_ELBO`: policy search, the natural gradient of a non-parametric encoder;
- `Reinforce_ELBO`: the score function with leave-one-out and other baselines, unbiased;
- `VIMCO_ELBO`: the score function of the bound of K particles, unbiased;
- `DisARM_ELBO`: antithetic pairs of Bernoulli latents, unbiased;
- `VQ_ELBO`: straight-through gradients for guides that quantise vectors, biased;
- `WakeSleep_ELBO`: reweighted wake-sleep, the posterior followed by importance weights;
- `Exact_ELBO`: the sum over all states, where they are few;
- `Truncated_ELBO`, with a `TruncatedGuide`: the best states that evolution finds for each datum.

`relax` gives the draws of a program a gradient instead: Gumbel-softmax and its like, for any loss.

`SVI` is NumPyro's, and keeps the state of a loss that has one beside that of the programs.
"""

from numpyro_dvae.infer.daps import DAPS_ELBO
from numpyro_dvae.infer.disarm import DisARM_ELBO
from numpyro_dvae.infer.exact import Exact_ELBO
from numpyro_dvae.infer.quantization import VQ_ELBO
from numpyro_dvae.infer.reinforce import Reinforce_ELBO
from numpyro_dvae.infer.relaxation import relax
from numpyro_dvae.infer.svi import SVI
from numpyro_dvae.infer.truncated.guide import TruncatedGuide
from numpyro_dvae.infer.truncated.loss import Truncated_ELBO
from numpyro_dvae.infer.truncated.proposals import draws_of, informed_flip, prior_flip
from numpyro_dvae.infer.vimco import VIMCO_ELBO
from numpyro_dvae.infer.wake_sleep import WakeSleep_ELBO

__all__ = [
    "DAPS_ELBO",
    "SVI",
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
