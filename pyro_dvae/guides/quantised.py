"""A guide that quantises vectors: each latent is the code of the vector nearest to an input."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_dvae.distributions import CertainCategorical
from pyro_dvae.guides.amortised import AmortisedGuide
from pyro_dvae.nets import Quantized, Quantizer
from pyro_dvae.nets.grids import check_grid
from pyro_dvae.nets.inputs import check_width
from pyro_dvae.nets.registration import mask_of_latents, run_encoder
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.codepaths import Route, diveq, rotation_trick, straight_through_codes

__all__ = ["VectorQuantizedGuide"]

Gradient = str | Callable[[Tensor, Tensor], Route]


class VectorQuantizedGuide(AmortisedGuide):
    """The codes of quantised vectors: a posterior with all its mass on one state.

    `VQ_ELBO` trains it, by the deterministic sites "z.inputs" (the encoder's vectors), "z.vectors"
    (those of the codes) and "z.path" (the latter, with a gradient to the former). In training,
    moving averages of the codebook advance whenever the guide runs as a program.

    Args:
        encoder: Network from data ``(*batch, *event)`` to vectors ``(*batch, L, D)``, as
            `MLPEncoder` with D for V.
        codebook: `Codebook` or any other quantiser; the model's decoder holds the same one, as
            `CodebookDecoder`.
        gradient: How the encoder gets one past the choice of its codes: "straight_through",
            "rotation" or "diveq", see `ops.codepaths`; or a function from vectors before and after
            to a `Route`. None is "rotation" for codebooks that are tables and "straight_through"
            for those that round. With "diveq" there is no penalty: `commitment` has no effect; and
            the model's vectors have noise while it is trained, none where it is evaluated.
        noise_variance: Variance of that noise of "diveq", as published: of what is added to the way
            from a vector to its code before its direction is taken, in squared units of the
            vectors. Its authors advise less than 0.01; 0 is none.
        entropy: Weight of the entropy of a code less that of the mean code, in nats, against the
            mean square error of the data: it makes codes sure and all of them used, and takes
            arrays of (latents, codes).
        entropy_scale: How wide these codes are, s in `ops.assignments`.
        grid: Sizes of the grid that the latents lie on, as (8, 8), where the encoder returns one:
            ``(*batch, *grid, D)``.
        channels_first: Whether it returns ``(*batch, D, *grid)``.

    Raises:
        ValueError: If `gradient` is none of these, another argument out of its range, or the grid
            none; on a call, if the grid is another than that of the vectors.
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        codebook: Quantizer,
        *,
        gradient: Gradient | None = None,
        noise_variance: float = 0.005,
        entropy: float = 0.0,
        entropy_scale: float = 0.07,
        grid: Sequence[int] | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.codebook = encoder, codebook
        self.grid, self.channels_first = check_grid(grid, channels_first, encoder), channels_first
        check_entropy(entropy, entropy_scale)
        if not 0.0 <= noise_variance < math.inf:
            raise ValueError(
                f"`noise_variance` must be finite and not negative; got {noise_variance}."
            )
        self.noise_variance = noise_variance
        self.gradient = route_of(gradient, codebook)
        self.entropy, self.entropy_scale = entropy, entropy_scale

    def posterior(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """q(z | x), one-hot; the codebook stays as it is."""
        return self.quantized(x, learn=False)

    def posterior_of_step(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """The same; in training, moving averages of the codebook advance."""
        return self.quantized(x, learn=self.training and torch.is_grad_enabled())

    def quantized(self, x: Tensor, *, learn: bool) -> Distribution:
        """What `posterior` returns; if `learn`, the state of the codebook advances."""
        inputs = self.by_latent(run_encoder(self.encoder, x))
        check_width(inputs, self.codebook.embed_dim, "encoder")
        mask = mask_of_latents()
        quantized = self.codebook.quantize(inputs, learn=learn, mask=mask)
        return self.publish(quantized, self._route(quantized, learn), mask)

    def _route(self, quantized: Quantized, learn: bool) -> Route:
        """The way of the gradient; in training that of DiVeQ is turned a little."""
        if self.gradient is diveq and learn:
            noise = math.sqrt(self.noise_variance) * torch.randn_like(quantized.vectors)
            return diveq(quantized.inputs, quantized.vectors, noise)
        return _routed(self.gradient(quantized.inputs, quantized.vectors), quantized.vectors.shape)

    def publish(self, quantized: Quantized, route: Route, mask: Tensor | None) -> Distribution:
        """Say what `VQ_ELBO` is to know."""
        for name, value in route._asdict().items():
            pyro.deterministic(f"z.{name}", value)
        if self.entropy:
            penalty = self.entropy * self.codebook.entropies(
                quantized.inputs, self.entropy_scale, mask
            )
            pyro.deterministic("z.penalty", penalty)
        codes, num_codes = quantized.codes, self.codebook.num_codes
        tables = [block.shape[-1] for block in self.codebook.blocks(codes)]
        found = CertainCategorical(num_codes, codes, quantized.inputs, tables=tables)
        return found.to_event(1)


def route_of(gradient: Gradient | None, codebook: Quantizer) -> Callable[[Tensor, Tensor], Route]:
    """The function that an argument `gradient` means.

    Raises:
        ValueError: If it means none.
    """
    named = {"straight_through": straight_through_codes, "rotation": rotation_trick, "diveq": diveq}
    if gradient is None:
        return straight_through_codes if codebook.by_rule else rotation_trick
    if callable(gradient):
        return gradient
    if gradient not in named:
        raise ValueError(
            f"`gradient` must be one of {sorted(named)}, or a function of vectors before and after "
            f"to a Route; got {gradient!r}."
        )
    return named[gradient]


def _routed(route: Any, shape: tuple[int, ...]) -> Route:
    """What a function that was passed for `gradient` returns.

    Raises:
        ValueError: If that is no Route, or one of other vectors.
    """
    if not isinstance(route, Route):
        found = type(route).__name__
    elif any(getattr(array, "shape", None) != shape for array in route):
        found = str([tuple(getattr(array, "shape", ())) for array in route])
    else:
        return route
    raise ValueError(
        f"`gradient` must return a Route of three arrays {tuple(shape)}, of `ops.codepaths`; got "
        f"{found}. Of z and e, and a path of the decoder's: Route(path, z, e)."
    )


def check_entropy(entropy: float, entropy_scale: float) -> None:
    """Whether the penalty of entropies is one.

    Raises:
        ValueError: If not.
    """
    if not 0.0 <= entropy < math.inf:
        raise ValueError(f"`entropy` must be finite and not negative; got {entropy}.")
    if not 0.0 < entropy_scale < math.inf:
        raise ValueError(f"`entropy_scale` must be positive and finite; got {entropy_scale}.")
