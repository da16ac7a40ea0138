"""Distributions over discrete latents that NumPyro lacks, or has in a form that copies its logits.

Start with `codes`: a `Categorical` whose particles share one copy of the logits.

- `logits`: what all of them do with logits, such as normalising in float32 or better;
- `codes`: one code at a time, as an integer or as a one-hot vector;
- `certain`: the same where logits are certain or all equal, without a table of them;
- `counts`: whole numbers from 0 on, for a table of their probabilities;
- `autoregressive`: the joint distribution of all codes of a datum, one drawn after the other;
- `logistic`: integers in a row, as bytes are, by a discretised logistic;
- `pathwise`: draws that carry a gradient, as Gumbel-softmax does;
- `atoms`: a normal datum whose few factors, as of a spike-and-slab model, are summed out;
- `members`: one of a list of values, each with a weight, as a truncated posterior has them.

The room may import `ops`, and nothing of the package that is above it.

Words of this room:

- *code*: an integer below V, the value of one categorical latent; a datum has L of them;
- *logits*: unnormalised log-probabilities ``(*batch, V)``, in nats; -inf rules a value out;
- *shared*: held once, without the particle dims, for all particles that use it;
- *teacher-forced*: all conditionals of given codes at once, rather than code by code;
- *relaxed*: a point of the simplex in place of a one-hot vector;
- *pathwise*: of a draw, that its derivative with respect to the logits exists;
- *member*: one of the S states that a truncated posterior gives weight to;
- *cell*: one place of a plate that lies within a datum.
"""

from numpyro_dvae.distributions.atoms import NormalAtoms
from numpyro_dvae.distributions.autoregressive import AutoregressiveCategorical, CodeTransformer
from numpyro_dvae.distributions.certain import CertainCategorical, UniformCategorical
from numpyro_dvae.distributions.codes import Categorical, OneHotCategorical
from numpyro_dvae.distributions.counts import Counts
from numpyro_dvae.distributions.logistic import DiscretizedLogistic
from numpyro_dvae.distributions.logits import (
    log_softmax,
    pick_codes,
    precise,
    precise_dtype,
    split_shared,
)
from numpyro_dvae.distributions.members import Members
from numpyro_dvae.distributions.pathwise import RELAXATIONS, PathwiseBernoulli, PathwiseCategorical
from numpyro_dvae.ops.sampling import sample_codes

__all__ = [
    "RELAXATIONS",
    "AutoregressiveCategorical",
    "Categorical",
    "CertainCategorical",
    "CodeTransformer",
    "Counts",
    "DiscretizedLogistic",
    "Members",
    "NormalAtoms",
    "OneHotCategorical",
    "PathwiseBernoulli",
    "PathwiseCategorical",
    "UniformCategorical",
    "log_softmax",
    "pick_codes",
    "precise",
    "precise_dtype",
    "sample_codes",
    "split_shared",
]
