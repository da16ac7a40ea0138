"""A decoder that is linear in the latents: atoms of a dictionary, summed.

With x of mean ``s W``, s the latents of a datum and a 1 for the offset, the best W for a Gaussian
likelihood under a posterior is that of least squares,

    W = <s^T s>^-1 <s^T x>,

means over data and posterior, whatever the variance: the M-step of sparse coding, without a
learning rate. What is kept is the second moments ``(<s^T s>, <s^T x>)`` side by side, and W follows
from them at each call. So a loss that sees a batch at a time averages moments, which is the online
EM algorithm [1], and not solutions, which a small batch may not determine.

References:
    [1] Cappé & Moulines. On-line expectation-maximization algorithm for latent data models. Journal
        of the Royal Statistical Society B 71(3), 2009.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_dvae.models.closed_forms import ClosedForm, Learn, check_family, check_learn
from pyro_dvae.ops.arguments import checked

__all__ = ["LinearDecoder", "least_squares", "moments_of", "solve_moments"]

_RIDGE = 1e-5  # of the mean second moment, towards the old weights: what latents do not tell stays
_START = 0.01  # second moment of the features that the first weights stand for


class LinearDecoder(nn.Module):
    """Outputs are sums of atoms, one for each latent, and an offset.

    Args:
        atoms: Where the atoms start, one for each of L latents; the offset starts at zero.
        learn: True, by gradient; "closed_form", by least squares for a Gaussian likelihood under
            the posterior, see `ClosedForm`; False: they stay.

    Attributes:
        atoms: What each latent adds, ``(L, *shape)``, as it is now.
        offset: What is there without any latent, ``shape``, as it is now.

    Raises:
        ValueError: If `learn` is out of its range; under a loss, if the closed form meets missing
            entries, which least squares of whole data do not take, or another likelihood.
    """

    @checked
    def __init__(self, atoms: Float[Tensor, "L *shape"], *, learn: Learn = True) -> None:
        super().__init__()
        check_learn(learn)
        self.shape, self.learn = tuple(atoms.shape[1:]), learn
        rows = atoms.reshape(len(atoms), -1)
        raw = torch.cat([rows, torch.zeros_like(rows[:1])])
        raw = moments_of(raw) if learn == "closed_form" else raw
        self.raw = nn.Parameter(raw) if learn is True else nn.Buffer(raw)

    def forward(self, z: Shaped[Tensor, "*batch L"]) -> Float[Tensor, "*batch_event"]:
        """Outputs ``(*batch, *shape)`` of latents ``(*batch, L)``."""
        weights = self._weights
        found = z.to(weights.dtype) @ weights[:-1] + weights[-1]
        return found.reshape(*z.shape[:-1], *self.shape)

    @property
    def closed_form(self) -> ClosedForm | None:
        """``atoms = <s^T s>^-1 <s^T x>``, where asked for."""
        if self.learn != "closed_form":
            return None
        return ClosedForm(self.raw, self._factors, solve_moments, sees_latents=True)

    @property
    def atoms(self) -> Float[Tensor, "L *shape"]:
        """What each latent adds."""
        return self._weights[:-1].reshape(-1, *self.shape)

    @property
    def offset(self) -> Float[Tensor, "*shape"]:
        """What is there without any latent."""
        return self._weights[-1].reshape(self.shape)

    def extra_repr(self) -> str:
        """Sizes, and how it learns."""
        return f"{len(self.raw) - 1} latents, outputs {self.shape}, learn={self.learn!r}"

    @property
    def _weights(self) -> Tensor:
        return least_squares(self.raw) if self.learn == "closed_form" else self.raw

    def _factors(self, fn: Any, x: Tensor, latents: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The latents and a 1; and the datum beside them."""
        check_family(fn, torch.distributions.Normal, "LinearDecoder", "GaussianLikelihood")
        z = latents["z"].to(self.raw.dtype)
        features = torch.cat([z, torch.ones_like(z[..., :1])], -1)
        x = x.reshape(*x.shape[: x.dim() - len(self.shape)], math.prod(self.shape))
        batch = torch.broadcast_shapes(z.shape[:-1], x.shape[:-1])  # states of no datum alone
        both = [part.to(z.dtype).expand(*batch, part.shape[-1]) for part in (features, x)]
        return both[0][..., None, :], torch.cat(both, -1)[..., None, :]


def moments_of(weights: Float[Tensor, "F D"]) -> Float[Tensor, "F F_and_D"]:
    """Second moments that stand for these weights."""
    eye = torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
    return _START * torch.cat([eye, weights], 1)


def least_squares(moments: Float[Tensor, "F F_and_D"]) -> Float[Tensor, "F D"]:
    """The weights of least squares, ``<s^T s>^-1 <s^T x>``.

    Args:
        moments: ``<s^T s>`` and ``<s^T x>`` side by side, of features s and data x.

    Example:
        >>> least_squares(torch.tensor([[2.0, 0.0, 4.0], [0.0, 1.0, 3.0]]))
        tensor([[2.],
                [3.]])
    """
    size = len(moments)
    return torch.linalg.solve(moments[:, :size], moments[:, size:])


def solve_moments(
    total: Float[Tensor, "F F_and_D"],
    count: Float[Tensor, "F F_and_D"],
    old: Float[Tensor, "F F_and_D"],
) -> Float[Tensor, "F F_and_D"]:
    """The `solve` of a `ClosedForm` whose parameter is second moments.

    A small ridge holds to the old weights what the data do not tell, as of a latent that no datum
    uses; the sum of squares still never rises.
    """
    mean = total / count.clamp(min=1.0)
    ridge = _RIDGE * mean.diagonal().mean()
    held = ridge / _START * moments_of(least_squares(old))
    return torch.where(count > 0, mean + held, old)
