"""Discrete VAEs as Pyro models: a prior, a decoder and a likelihood, put together.

Start with `vae`: `DiscreteVAE` is the model, and its parts are arguments.

- a *prior* is called without arguments and returns p(z), the distribution of the latents of one
  datum, event shape (L,); `Prior` is the contract, `priors` has some;
- a *decoder* maps latents ``(*batch, L)`` to outputs ``(*batch, *shape of x)``; `Decoder` is the
  contract, `nets` has some;
- a *likelihood* turns these outputs into p(x | z), the distribution of a datum; `Likelihood` is the
  contract, `likelihoods` has some, and `heads` those that read two numbers for each entry.

`closed_forms` is for parameters that follow from a posterior without a gradient; `linear` and
`noisy_or` have a decoder each whose parameters do. `plates` has the plate "data" that a model and
its guide have in common, `variances` keeps numbers within bounds.

The room may import `ops`, `distributions` and `nets`, and nothing of the package that is above it.

Words of this room:

- *latents*: what is at the site "z": codes, integers below V, or binary numbers; L per datum;
- *datum*: one element of the plate "data"; a *batch* holds some or all of them;
- *outputs*: what a decoder returns: logits or means, as the likelihood reads them;
- *learnt*: by gradient, as any parameter; *closed form*: set by a loss that knows a posterior;
- *observed*: of an entry of a datum, that it is not missing.
"""

from pyro_dvae.models.closed_forms import ClosedForm
from pyro_dvae.models.heads import GaussianHeads, LogisticHeads
from pyro_dvae.models.likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood
from pyro_dvae.models.linear import LinearDecoder
from pyro_dvae.models.noisy_or import NoisyOrDecoder
from pyro_dvae.models.priors import (
    AutoregressivePrior,
    BernoulliPrior,
    CategoricalPrior,
    Prior,
    UniformPrior,
)
from pyro_dvae.models.vae import CodeModel, Decoder, DiscreteVAE, mnist_vae

__all__ = [
    "AutoregressivePrior",
    "BernoulliLikelihood",
    "BernoulliPrior",
    "CategoricalPrior",
    "ClosedForm",
    "CodeModel",
    "Decoder",
    "DiscreteVAE",
    "GaussianHeads",
    "GaussianLikelihood",
    "Likelihood",
    "LinearDecoder",
    "LogisticHeads",
    "NoisyOrDecoder",
    "Prior",
    "UniformPrior",
    "mnist_vae",
]
