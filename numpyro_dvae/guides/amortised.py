"""What all amortised guides have in common: the site "z" under the plate "data".

A guide is called with the model's arguments, ``guide(x)`` or, on a minibatch,
``guide(x, index, num_data)``, and has the one site "z" (event dim 1) under the plate "data" at dim
-1. What makes it one guide rather than another is its `posterior`.

Parameters live outside, as everywhere in NumPyro: "guide.encoder$params" and
"guide.transformer$params". `SVI` makes them; with trained ones, run
``numpyro.handlers.substitute(guide.posterior, data=params)(x)``.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Bool, Int, Integer, Shaped
from numpyro.distributions import Distribution

from numpyro_dvae.models.plates import check_index, data_plate
from numpyro_dvae.nets.grids import from_grid

__all__ = ["AmortisedGuide"]


class AmortisedGuide:
    """A guide whose networks read the latents' distribution off the data: q(z | x).

    A guide of one's own defines `posterior`, and calls its networks by `nets.register`.
    """

    grid: tuple[int, ...] | None = None  # that the outputs of the encoder lie on
    channels_first: bool = False

    def __call__(
        self,
        x: Shaped[Array | np.ndarray, "B *event"] | None = None,
        index: Int[Array | np.ndarray, "B"] | None = None,
        num_data: int | None = None,
        observed: Bool[Array | np.ndarray, "B *event"] | None = None,
        labels: Integer[Array | np.ndarray, "rows"] | None = None,
    ) -> Shaped[Array, "*particles_B L"]:
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
        x = _check_data(x, index, num_data)
        if observed is not None:
            x = jnp.where(jnp.asarray(observed), x, jnp.zeros_like(x))
        posterior = self.posterior_of_step(x)
        _check_shape(posterior, x)
        with data_plate(num_data or len(x), index):
            return numpyro.sample("z", posterior)

    def by_latent(self, outputs: Shaped[Array, "..."]) -> Shaped[Array, "*batch L width"]:
        """What an encoder returns on the guide's grid, if it has one, in a row."""
        return from_grid(outputs, self.grid, self.channels_first, "encoder")

    def posterior(self, x: Shaped[Array | np.ndarray, "*batch_event"]) -> Distribution:
        """q(z | x): batch shape that of the data, event shape (L,)."""
        raise NotImplementedError(f"{type(self).__name__} must define `posterior`.")

    def posterior_of_step(self, x: Shaped[Array | np.ndarray, "*batch_event"]) -> Distribution:
        """The same where the guide runs as a program; one that learns as it runs overrides it."""
        return self.posterior(x)


def _check_data(
    x: Array | np.ndarray | None, index: Array | np.ndarray | None, num_data: int | None
) -> Array:
    """The data, if there are any and as many as the other arguments say."""
    if x is None or x.ndim < 1 or len(x) == 0:
        found = "None" if x is None else f"shape {x.shape}"
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
    return jnp.asarray(x)


def _check_shape(posterior: Distribution, x: Array) -> None:
    """Whether there is one distribution for each datum."""
    if posterior.batch_shape != x.shape[:1]:
        raise ValueError(
            f'q(z | x) at site "z" must have batch shape ({len(x)},) and event shape (latents,); '
            f"got {posterior.batch_shape} and {posterior.event_shape}. Let the "
            "encoder return (*batch, latents, codes), or (*batch, latents) with `binary`; one that "
            "leaves the latents on a grid, as convolutions do, wants the guide's `grid`."
        )
