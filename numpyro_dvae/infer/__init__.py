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

To read one, open its file with the paper in hand: a pure function of arrays is the algorithm, a
class of a few lines calls it with the fields of `Particles` (DAPS: `daps`, with its weights in
`ops.weighting` and its temperature in `ops.tempering`). To write one, subclass `ParticleELBO` and
return a `Gain`, as examples/*/own_estimator.py does; `elbo` has the contract, and makes loss,
surrogate, scale, rate, beta and info; `options` refuses what a loss does not take; `closed_forms`
keeps parameters whose optimum has a closed form; `truncated` is a room of its own. This room
imports all before it and meets no trace. Its words:

- *objective*: ELBO and beta-ELBO of each particle; *gain*: what an algorithm ascends for a datum;
- *surrogate*: a number whose gradient is the estimator's; the loss itself is minus the ELBO;
- *rate*: what the latents carry, KL(q || p) or a draw of it; *beta*: its weight;
- *memory*: what an algorithm remembers from step to step; *state*: that, the step and beta.

`SVI` is NumPyro's, and keeps the state of a loss that has one beside that of the programs.
"""

from numpyro_dvae.infer.daps import DAPS_ELBO
from numpyro_dvae.infer.disarm import DisARM_ELBO
from numpyro_dvae.infer.elbo import ParticleELBO
from numpyro_dvae.infer.exact import Exact_ELBO
from numpyro_dvae.infer.objective import Gain, Objective, info_type
from numpyro_dvae.infer.quantization import VQ_ELBO
from numpyro_dvae.infer.reinforce import Reinforce_ELBO
from numpyro_dvae.infer.relaxation import relax
from numpyro_dvae.infer.svi import SVI
from numpyro_dvae.infer.truncated.guide import TruncatedGuide
from numpyro_dvae.infer.truncated.loss import Truncated_ELBO
from numpyro_dvae.infer.truncated.proposals import draws_of, informed_flip, prior_flip
from numpyro_dvae.infer.vimco import VIMCO_ELBO
from numpyro_dvae.infer.wake_sleep import WakeSleep_ELBO
from numpyro_dvae.programs.record import Particles

__all__ = [
    "DAPS_ELBO",
    "SVI",
    "VIMCO_ELBO",
    "VQ_ELBO",
    "DisARM_ELBO",
    "Exact_ELBO",
    "Gain",
    "Objective",
    "ParticleELBO",
    "Particles",
    "Reinforce_ELBO",
    "TruncatedGuide",
    "Truncated_ELBO",
    "WakeSleep_ELBO",
    "draws_of",
    "info_type",
    "informed_flip",
    "prior_flip",
    "relax",
]
