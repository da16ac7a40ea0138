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

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Distribution

from pyro_dvae.ops.arguments import checked

__all__ = ["NormalAtoms"]


class NormalAtoms(TorchDistribution):
    """The sum of atoms whose amplitudes are standard normal, and of noise.

    The law is that of a `LowRankMultivariateNormal` with mean 0; its time is that of H elementwise
    steps, so it is meant for few atoms. An atom of zeros is one that is absent.

    Args:
        atoms: W, the atoms of each place, ``(*batch, H, D)``.
        noise: Standard deviation of the noise, positive, that goes with ``(*batch, D)``.

    Raises:
        ValueError: If `atoms` have fewer than two dims, or `noise` does not go with them.

    Example:
        >>> fn = NormalAtoms(torch.tensor([[3.0, 4.0]]), torch.tensor(1.0))
        >>> print(f"{fn.log_prob(torch.zeros(2)).item():.3f}")
        -3.467
    """

    arg_constraints = {  # noqa: RUF012
        "atoms": constraints.independent(constraints.real, 2),
        "noise": constraints.positive,
    }
    support = constraints.real_vector
    has_rsample = True

    @checked
    def __init__(
        self,
        atoms: Float[Tensor, "*places"],
        noise: Float[Tensor, "*entries"],
        validate_args: bool | None = None,
    ) -> None:
        fits = atoms.dim() >= 2
        shape = (*atoms.shape[:-2], *atoms.shape[-1:]) if fits else ()
        try:
            fits = fits and torch.broadcast_shapes(noise.shape, shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                "`atoms` must be (*batch, H, D), and `noise` go with (*batch, D); got shapes "
                f"{tuple(atoms.shape)} and {tuple(noise.shape)}. For one number for each place of "
                "a batch, pass noise[..., None]."
            )
        self.atoms, self.noise = atoms, noise.expand(shape)
        batch, event = torch.Size(shape[:-1]), torch.Size(shape[-1:])
        super().__init__(batch, event, validate_args=validate_args)

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> "NormalAtoms":
        """The same law for a larger batch shape."""
        atoms = self.atoms.expand(*batch_shape, *self.atoms.shape[-2:])
        noise = self.noise.expand(*batch_shape, *self.event_shape)
        return NormalAtoms(atoms, noise, validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """The mean: zeros."""
        return torch.zeros_like(self.noise)

    @property
    def variance(self) -> Float[Tensor, "*batch D"]:
        """The variance of each entry."""
        return (self.atoms**2).sum(-2) + self.noise**2

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*sample_batch D"]:
        """Data, from amplitudes and noise."""
        shape = self._extended_shape(torch.Size(sample_shape))
        amplitudes = self.atoms.new_empty(*shape[:-1], self.atoms.shape[-2]).normal_()
        noise = self.atoms.new_empty(shape).normal_()
        return (amplitudes[..., None] * self.atoms).sum(-2) + self.noise * noise

    def log_prob(self, value: Float[Tensor, "*value"]) -> Float[Tensor, "*shape"]:
        """Log-density of data, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        left, _, log_det = self._fitted(value)
        entries = torch.log(2 * math.pi * self.noise**2).sum(-1)
        return -0.5 * ((left**2).sum(-1) + log_det + entries)

    def amplitudes(
        self, value: Float[Tensor, "*value"]
    ) -> tuple[Float[Tensor, "*shape H"], Float[Tensor, "*batch H H"]]:
        """Mean and covariance of the amplitudes, given data ``(*shape, D)``."""
        left, units, _ = self._fitted(value)
        size, inverse = self.event_shape[0], torch.stack(units, -1)
        inverse = inverse[..., size:, :]  # of the triangle that takes units to columns
        return -left[..., size:], inverse @ inverse.mT

    def _fitted(self, value: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """What least squares leaves of data, orthogonal units, and the log-determinant.

        The mean of the amplitudes is of least squares: of the data by the atoms, and of zeros by
        the amplitudes themselves. Gram and Schmidt's way, which needs no product of atoms, is as
        precise as the atoms are, where a precision matrix is as its square.
        """
        atoms, scaled = self.atoms / self.noise[..., None, :], value / self.noise
        num_atoms = atoms.shape[-2]
        eye = torch.eye(num_atoms, dtype=atoms.dtype, device=atoms.device)
        eye = eye.expand(*self.batch_shape, num_atoms, num_atoms)
        columns = torch.cat([atoms, eye], -1)
        columns, units = columns.movedim(-2, 0), []
        left = torch.cat([scaled, scaled.new_zeros(*scaled.shape[:-1], num_atoms)], -1)
        log_det = 0.0 * self.noise[..., 0]
        for _ in range(num_atoms):
            square = (columns[0] ** 2).sum(-1)
            units.append(columns[0] / torch.sqrt(square)[..., None])
            log_det = log_det + torch.log(square)
            columns, left = (
                part - (units[-1] * part).sum(-1)[..., None] * units[-1]
                for part in (columns[1:], left)
            )
        return left, units, log_det
