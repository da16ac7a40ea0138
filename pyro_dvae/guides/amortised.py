"""What all amortised guides have in common: the site "z" under the plate "data".

A guide is called with the model's arguments, ``guide(x)`` or, on a minibatch,
``guide(x, index, num_data)``, and has the one site "z" (event dim 1) under the plate "data" at dim
-1. What makes it one guide rather than another is its `posterior`.
"""

from typing import cast

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Int, Integer, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_dvae.models.plates import check_index, data_plate
from pyro_dvae.nets import register
from pyro_dvae.nets.grids import from_grid
from pyro_dvae.ops.arguments import checked

__all__ = ["AmortisedGuide"]


@checked
class AmortisedGuide(nn.Module):
    """A guide whose networks read the latents' distribution off the data: q(z | x).

    A guide of one's own defines `posterior`, and has its networks as attributes.
    """

    grid: tuple[int, ...] | None = None  # that the outputs of the encoder lie on
    channels_first: bool = False

    def forward(
        self,
        x: Shaped[Tensor, "B *event"] | None = None,
        index: Int[Tensor, "B"] | None = None,
        num_data: int | None = None,
        observed: Bool[Tensor, "B *event"] | None = None,
        labels: Integer[Tensor, "rows"] | None = None,
    ) -> Shaped[Tensor, "*particles_B L"]:
        """Sample the site "z" from q(z | x).

        Args:
            x: Data, at least one.
            index: Which of all data those in `x` are; None if they are all.
            num_data: The number of all data, beside `index`.
            observed: Where `x` is there; the networks see 0 elsewhere. None is everywhere.
            labels: Of a model whose prior is of classes; the guide does not need them.

        Returns:
            The value of "z".

        Raises:
            ValueError: If arguments, data and networks do not fit together.
        """
        register("guide", self)
        x = _check_data(x, index, num_data)
        if observed is not None:
            x = torch.where(observed, x, torch.zeros_like(x))
        posterior = cast("dist.TorchDistribution", self.posterior_of_step(x))
        _check_shape(posterior, x)
        with data_plate(num_data or len(x), index):
            return pyro.sample("z", posterior)

    def by_latent(self, outputs: Shaped[Tensor, "..."]) -> Shaped[Tensor, "*batch L width"]:
        """What an encoder returns on the guide's grid, if it has one, in a row."""
        return from_grid(outputs, self.grid, self.channels_first, "encoder")

    def posterior(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """q(z | x): batch shape that of the data, event shape (L,)."""
        raise NotImplementedError(f"{type(self).__name__} must define `posterior`.")

    def posterior_of_step(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """The same where the guide runs as a program; one that learns as it runs overrides it."""
        return self.posterior(x)


def _check_data(x: Tensor | None, index: Tensor | None, num_data: int | None) -> Tensor:
    """The data, if there are any and as many as the other arguments say."""
    if x is None or x.dim() < 1 or len(x) == 0:
        found = "None" if x is None else f"shape {tuple(x.shape)}"
        raise ValueError(
            f"A guide needs data `x` with at least one datum on its first axis; got {found}. To "
            "sample from the prior, call the model alone."
        )
    if index is not None:
        check_index(x, index, num_data)
    elif num_data not in (None, len(x)):
        raise ValueError(
            f"`num_data` is for sampling without `x`, or beside `index`; got {num_data} with "
            f"{len(x)} data."
        )
    return x


def _check_shape(posterior: Distribution, x: Tensor) -> None:
    """Whether there is one distribution for each datum."""
    if tuple(posterior.batch_shape) != tuple(x.shape[:1]):
        raise ValueError(
            f'q(z | x) at site "z" must have batch shape ({len(x)},) and event shape (latents,); '
            f"got {tuple(posterior.batch_shape)} and {tuple(posterior.event_shape)}. Let the "
            "encoder return (*batch, latents, codes), or (*batch, latents) with `binary`; one that "
            "leaves the latents on a grid, as convolutions do, wants the guide's `grid`."
        )
