"""Discrete variational autoencoders as Pyro models: a prior, a decoder, a likelihood.

`DiscreteVAE` has the sites "z" (codes, event dim 1) and "x" (the datum) under the plate
"data" at dim -1. Its parts are networks of their own, so a learnt prior or another
likelihood is a matter of passing it in:

- a prior is a module that returns a distribution over "z" with event dim 1, when called;
- a likelihood is a module that maps the decoder's outputs and the number of event dims to
  a distribution over "x".

References:
    [1] Drolet, Al-Hafez, Bhatt, Peters & Arenz. Discrete variational autoencoding via
        policy search. ICLR, 2026. Table of networks and settings for MNIST.
"""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional

from pyro_dvae.distributions import Categorical
from pyro_dvae.nets import MLPDecoder, register

__all__ = [
    "BernoulliLikelihood",
    "BernoulliPrior",
    "DiscreteVAE",
    "GaussianLikelihood",
    "UniformPrior",
    "mnist_vae",
]


class DiscreteVAE(nn.Module):
    """Model ``p(z) p(x | z)`` of data with discrete latents.

    Args:
        decoder: Network from codes ``(*batch, L)`` to outputs ``(*batch, *shape of x)``. One
            that takes relaxed codes ``(*batch, L, V)`` has a method `batch_shape`, as `MLPDecoder`.
        prior: Module that returns p(z), as `UniformPrior`.
        likelihood: Module that turns outputs into p(x | z), as `BernoulliLikelihood`.

    Call it as ``model(x)`` to condition on data, or ``model(num_data=10)`` to sample from it.
    """

    def __init__(self, decoder: nn.Module, prior: nn.Module, likelihood: nn.Module) -> None:
        super().__init__()
        self.decoder, self.prior, self.likelihood = decoder, prior, likelihood

    def forward(
        self, x: Shaped[Tensor, "B *event"] | None = None, *, num_data: int | None = None
    ) -> Float[Tensor, "*particles_B_event"]:
        """Sample the sites "z" and, unless given, "x"; returns "x"."""
        register("model", self)
        with pyro.plate("data", _plate_size(x, num_data), dim=-1):
            z = pyro.sample("z", self.prior())
            outputs, event_dim = self._outputs(z)
            if x is not None:
                _check_data(x, outputs.shape[outputs.dim() - event_dim :])
            return pyro.sample("x", self.likelihood(outputs, event_dim), obs=x)

    def reconstruct(self, z: Shaped[Tensor, "*batch L"]) -> Float[Tensor, "*batch_event"]:
        """The mean of p(x | z)."""
        return self.likelihood(*self._outputs(z)).mean

    def _outputs(self, z: Tensor) -> tuple[Tensor, int]:
        """The decoder's outputs and how many of their dims make one datum."""
        outputs = self.decoder(z)
        batch = getattr(self.decoder, "batch_shape", _batch_of_codes)(z)
        if tuple(outputs.shape[: len(batch)]) != tuple(batch):
            raise ValueError(
                f"`decoder` must map codes {tuple(z.shape)} to outputs that begin with the batch "
                f"shape {tuple(batch)}; got {tuple(outputs.shape)}. Let it keep all leading dims."
            )
        return outputs, outputs.dim() - len(batch)


class UniformPrior(nn.Module):
    """Independent codes, each uniform over its values: nothing to learn.

    Args:
        num_latents: Codes per datum, L.
        num_codes: Values of a code, V.
    """

    logits: Tensor

    def __init__(self, num_latents: int, num_codes: int) -> None:
        super().__init__()
        self.register_buffer("logits", torch.zeros(num_latents, num_codes), persistent=False)

    def forward(self) -> Distribution:
        """The prior over "z", event shape (L,)."""
        return Categorical(logits=self.logits).to_event(1)


class BernoulliPrior(nn.Module):
    """Independent binary latents.

    Args:
        num_latents: Latents per datum, L.
        probability: That of a 1, in (0, 1); where it starts if learnt.
        learn: Whether each latent's probability is learnt.
    """

    def __init__(self, num_latents: int, *, probability: float = 0.5, learn: bool = False) -> None:
        super().__init__()
        if not 0.0 < probability < 1.0:
            raise ValueError(f"`probability` must be strictly in (0, 1); got {probability}.")
        logits = torch.full((num_latents,), math.log(probability / (1.0 - probability)))
        self.logits = nn.Parameter(logits) if learn else nn.Buffer(logits)

    def forward(self) -> Distribution:
        """The prior over "z", event shape (L,)."""
        return dist.Bernoulli(logits=self.logits).to_event(1)


class BernoulliLikelihood(nn.Module):
    """Binary data; the decoder's outputs are logits."""

    def forward(self, outputs: Tensor, event_dim: int) -> Distribution:
        """p(x | z) with the last `event_dim` dims independent."""
        return dist.Bernoulli(logits=_precise(outputs)).to_event(event_dim)


class GaussianLikelihood(nn.Module):
    """Real data; the decoder's outputs are means, the variance is a parameter.

    Args:
        variance: Where the variance starts.
        shape: Its shape, which broadcasts against a datum: () for one variance, the shape of
            a datum for one per pixel.
        bounds: Least and greatest variance, kept by a sigmoid on the log scale (gradients
            vanish towards the bounds and nowhere else); None leaves it free. Published for
            ImageNet: (0.01, 1).
        learn: Whether the variance is learnt.
    """

    def __init__(
        self,
        *,
        variance: float = 0.5,
        shape: Sequence[int] = (),
        bounds: tuple[float, float] | None = None,
        learn: bool = True,
    ) -> None:
        super().__init__()
        low, high = (0.0, math.inf) if bounds is None else bounds
        if not 0.0 <= low < variance < high:
            raise ValueError(
                f"`variance` must lie strictly between the `bounds`, at least (0, inf); got "
                f"{variance} and {bounds}."
            )
        self.bounds = bounds
        raw = torch.full(tuple(shape), self._start(variance))
        self.raw = nn.Parameter(raw) if learn else nn.Buffer(raw)

    @property
    def variance(self) -> Float[Tensor, "*shape"]:
        """The variance now."""
        if self.bounds is None:
            return self.raw.exp()
        low, high = (math.log(bound) for bound in self.bounds)
        return (low + (high - low) * functional.sigmoid(self.raw)).exp()

    def forward(self, outputs: Tensor, event_dim: int) -> Distribution:
        """p(x | z) with the last `event_dim` dims independent."""
        scale = self.variance.sqrt().expand(outputs.shape[outputs.dim() - event_dim :])
        return dist.Normal(_precise(outputs), scale).to_event(event_dim)

    def _start(self, variance: float) -> float:
        """The value of the raw parameter that gives `variance`."""
        if self.bounds is None:
            return math.log(variance)
        low, high = (math.log(bound) for bound in self.bounds)
        fraction = (math.log(variance) - low) / (high - low)
        return math.log(fraction / (1.0 - fraction))


def mnist_vae() -> DiscreteVAE:
    """The published MNIST model [1]: 8 codes of 256 values, binary 28 x 28 images."""
    decoder = MLPDecoder(8, 256, (28, 28), embed_dim=64, hidden=(64, 256))
    return DiscreteVAE(decoder, UniformPrior(8, 256), BernoulliLikelihood())


def _batch_of_codes(z: Tensor) -> Sequence[int]:
    return z.shape[:-1]


def _precise(outputs: Tensor) -> Tensor:
    """At least float32: half precision is for networks, not for log-densities."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _plate_size(x: Tensor | None, num_data: int | None) -> int:
    """Data in the plate: those of `x`, or `num_data` when there is no `x`."""
    if x is None and num_data is None:
        raise ValueError("Without `x` the model must be told `num_data`, how many data to sample.")
    size = num_data if x is None else len(x) if x.dim() else 0
    if not size or size < 1 or num_data not in (None, size):
        found = f"num_data={num_data}" if x is None else f"x of shape {tuple(x.shape)}"
        raise ValueError(
            f"`x` must hold at least one datum on its first axis, and `num_data` is for sampling "
            f"without `x`; got {found} and num_data={num_data}."
        )
    return size


def _check_data(x: Tensor, event_shape: Sequence[int]) -> None:
    """Whether the data are what the decoder makes."""
    if tuple(x.shape[1:]) != tuple(event_shape):
        raise ValueError(
            f"`x` must have shape (data, {', '.join(map(str, event_shape))}) to be observed at "
            f'site "x"; got {tuple(x.shape)}. Reshape the data, or give the decoder that '
            "`output_shape`."
        )
    if not x.is_floating_point():
        raise ValueError(
            f'`x` at site "x" must hold floating-point numbers; got {x.dtype}. Convert it first, '
            "as in x.float() / 255 or (x > 127).float()."
        )
