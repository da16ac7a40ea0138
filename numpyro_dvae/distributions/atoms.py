"""Sums of atoms with normal amplitudes, and noise: the factors of a datum summed out.

With x of mean ``a W``, a standard normal, W the atoms of a dictionary and noise of standard
deviation s, x is normal with covariance ``W^T W + diag(s^2)``. It is what a spike-and-slab model
has given its spikes, which is another W for each datum and state. So there are thousands of small
least squares, and they are solved here an atom at a time, elementwise: LAPACK has a call for each,
and XLA's calls of thousands at once have been seen to wait for each other without end on machines
of two cores.

References:
    [1] Tipping & Bishop. Probabilistic principal component analysis. Journal of the Royal
        Statistical Society B 61(3), 1999.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from numpyro_dvae.ops.arguments import checked

__all__ = ["NormalAtoms"]


class NormalAtoms(Distribution):
    """The sum of atoms whose amplitudes are standard normal, and of noise.

    The law is that of a `LowRankMultivariateNormal` with mean 0; its time is that of H elementwise
    steps, so it is meant for few atoms. An atom of zeros is one that is absent.

    Args:
        atoms: W, the atoms of each place, ``(*batch, H, D)``.
        noise: Standard deviation of the noise, positive, that goes with ``(*batch, D)``.

    Raises:
        ValueError: If `atoms` have fewer than two dims, or `noise` does not go with them.

    Example:
        >>> fn = NormalAtoms(jnp.array([[3.0, 4.0]]), jnp.array(1.0))
        >>> print(f"{fn.log_prob(jnp.zeros(2)).item():.3f}")
        -3.467
    """

    arg_constraints = {  # noqa: RUF012
        "atoms": constraints.independent(constraints.real, 2),
        "noise": constraints.positive,
    }
    support = constraints.real_vector
    reparametrized_params = ["atoms", "noise"]  # noqa: RUF012
    pytree_data_fields = ("atoms", "noise")

    @checked
    def __init__(
        self,
        atoms: Float[Array, "*places"],
        noise: Float[Array, "*entries"],
        validate_args: bool | None = None,
    ) -> None:
        fits = jnp.ndim(atoms) >= 2
        shape = (*atoms.shape[:-2], *atoms.shape[-1:]) if fits else ()
        try:
            fits = fits and jnp.broadcast_shapes(jnp.shape(noise), shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                "`atoms` must be (*batch, H, D), and `noise` go with (*batch, D); got shapes "
                f"{tuple(atoms.shape)} and {tuple(noise.shape)}. For one number for each place of "
                "a batch, pass noise[..., None]."
            )
        self.atoms, self.noise = atoms, jnp.broadcast_to(noise, shape)
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Float[Array, "*batch D"]:
        """The mean: zeros."""
        return jnp.zeros(self.shape(), self.atoms.dtype)

    @property
    def variance(self) -> Float[Array, "*batch D"]:
        """The variance of each entry."""
        return (self.atoms**2).sum(-2) + self.noise**2

    def sample(
        self, key: Array, sample_shape: Sequence[int] = ()
    ) -> Float[Array, "*sample_batch D"]:
        """Data, from amplitudes and noise."""
        keys, shape = jax.random.split(key), (*sample_shape, *self.batch_shape)
        amplitudes = jax.random.normal(keys[0], (*shape, self.atoms.shape[-2]), self.atoms.dtype)
        noise = jax.random.normal(keys[1], self.shape(sample_shape), self.atoms.dtype)
        return (amplitudes[..., None] * self.atoms).sum(-2) + self.noise * noise

    @validate_sample
    def log_prob(
        self, value: Float[Array, "*value"], intermediates: Any = None
    ) -> Float[Array, "*shape"]:
        """Log-density of data, in nats."""
        left, _, log_det = self._fitted(value)
        entries = jnp.log(2 * math.pi * self.noise**2).sum(-1)
        return -0.5 * ((left**2).sum(-1) + log_det + entries)

    def amplitudes(
        self, value: Float[Array, "*value"]
    ) -> tuple[Float[Array, "*shape H"], Float[Array, "*batch H H"]]:
        """Mean and covariance of the amplitudes, given data ``(*shape, D)``."""
        left, units, _ = self._fitted(value)
        size, inverse = self.event_shape[0], jnp.stack(units, -1)
        inverse = inverse[..., size:, :]  # of the triangle that takes units to columns
        return -left[..., size:], inverse @ inverse.mT

    def _fitted(self, value: Array) -> tuple[Array, list[Array], Array]:
        """What least squares leaves of data, orthogonal units, and the log-determinant.

        The mean of the amplitudes is of least squares: of the data by the atoms, and of zeros by
        the amplitudes themselves. Gram and Schmidt's way, which needs no product of atoms, is as
        precise as the atoms are, where a precision matrix is as its square.
        """
        atoms, scaled = self.atoms / self.noise[..., None, :], value / self.noise
        num_atoms = atoms.shape[-2]
        eye = jnp.eye(num_atoms, dtype=atoms.dtype)
        eye = jnp.broadcast_to(eye, (*self.batch_shape, num_atoms, num_atoms))
        columns = jnp.concatenate([atoms, eye], -1)
        columns, units = jnp.moveaxis(columns, -2, 0), []
        left = jnp.concatenate(
            [scaled, jnp.zeros((*scaled.shape[:-1], num_atoms), scaled.dtype)], -1
        )
        log_det = 0.0 * self.noise[..., 0]
        for _ in range(num_atoms):
            square = (columns[0] ** 2).sum(-1)
            units.append(columns[0] / jnp.sqrt(square)[..., None])
            log_det = log_det + jnp.log(square)
            columns, left = (
                part - (units[-1] * part).sum(-1)[..., None] * units[-1]
                for part in (columns[1:], left)
            )
        return left, units, log_det
