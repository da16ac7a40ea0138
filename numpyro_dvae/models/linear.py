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
from dataclasses import KW_ONLY
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from numpyro_dvae.models.closed_forms import (
    ClosedForm,
    Learn,
    check_family,
    check_learn,
    raw_of,
)
from numpyro_dvae.nets.mlp import Constant
from numpyro_dvae.ops.arguments import checked

__all__ = ["LinearDecoder", "least_squares", "moments_of", "solve_moments"]

_RIDGE = 1e-5  # of the mean second moment, towards the old weights: what latents do not tell stays
_START = 0.01  # second moment of the features that the first weights stand for


@checked
class LinearDecoder(nn.Module):
    """Outputs are sums of atoms, one for each latent, and an offset.

    Args:
        atoms: Where the atoms start, one for each of L latents; the offset starts at zero.
        learn: True, by gradient; "closed_form", by least squares for a Gaussian likelihood under
            the posterior, see `ClosedForm`; False: they stay. What is learnt is read by `learnt`;
            of a closed form it is in the mutable state "model.decoder$raw".

    Raises:
        ValueError: If `learn` is out of its range; under a loss, if the closed form meets missing
            entries, which least squares of whole data do not take, or another likelihood.
    """

    atoms: Float[Array | np.ndarray, "L *shape"] | Constant
    _: KW_ONLY
    learn: Learn = True

    def __post_init__(self) -> None:
        check_learn(self.learn)
        if not isinstance(self.atoms, Constant):
            object.__setattr__(self, "atoms", Constant(self.atoms))
        super().__post_init__()

    def __call__(
        self, z: Shaped[Array, "*batch L"], held: Float[Array, "F F_and_D"] | None = None
    ) -> Float[Array, "*batch_event"]:
        """Outputs ``(*batch, *shape)`` of latents; `held` are the moments of the closed form."""
        raw = self.start() if held is None else held
        if self.learn is True:
            raw = self._learnt(raw)
        weights = least_squares(raw) if self.learn == "closed_form" else raw
        found = z.astype(weights.dtype) @ weights[:-1] + weights[-1]
        return found.reshape(*z.shape[:-1], *self._shape)

    @nn.nowrap
    def start(self) -> Float[Array, "F _"]:
        """The atoms and the offset at first, or the moments that stand for them."""
        rows = jnp.asarray(self._given)
        rows = rows.reshape(len(rows), -1)
        raw = jnp.concatenate([rows, jnp.zeros_like(rows[:1])])
        return moments_of(raw) if self.learn == "closed_form" else raw

    @nn.nowrap
    def learnt(self, params: Mapping[str, Any], *, name: str = "model.decoder") -> dict[str, Array]:
        """The "atoms" ``(L, *shape)`` and the "offset" ``shape`` after a training.

        Args:
            params: Trained values, as `result.params` of `fit` has them.
            name: What the decoder is called there; that of a `DiscreteVAE` by default.

        Raises:
            ValueError: If `params` lacks what this decoder learns.
        """
        raw = raw_of(self, params, name)
        found = least_squares(raw) if self.learn == "closed_form" else raw
        found = found.reshape(-1, *self._shape)
        return {"atoms": found[:-1], "offset": found[-1]}

    @nn.nowrap
    def closed_form(self, name: str) -> ClosedForm | None:
        """``atoms = <s^T s>^-1 <s^T x>`` of the decoder of this name, where asked for."""
        if self.learn != "closed_form":
            return None
        return ClosedForm(f"{name}$raw", self._factors, solve_moments, sees_latents=True)

    @nn.nowrap
    def _factors(self, fn: Any, x: Array, latents: Mapping[str, Array]) -> tuple[Array, Array]:
        """The latents and a 1; and the datum beside them."""
        check_family(fn, dist.Normal, "LinearDecoder", "GaussianLikelihood")
        z = latents["z"].astype(jnp.result_type(float))
        features = jnp.concatenate([z, jnp.ones_like(z[..., :1])], -1)
        x = x.reshape(*x.shape[: x.ndim - len(self._shape)], math.prod(self._shape))
        batch = jnp.broadcast_shapes(z.shape[:-1], x.shape[:-1])  # states of no datum alone
        both = [jnp.broadcast_to(part, (*batch, part.shape[-1])) for part in (features, x)]
        return both[0][..., None, :], jnp.concatenate(both, -1)[..., None, :]

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self._given.shape[1:])

    @property
    def _given(self) -> Array | np.ndarray:
        assert isinstance(self.atoms, Constant)  # since `__post_init__`
        return self.atoms.value

    @nn.compact
    def _learnt(self, start: Array) -> Array:
        return self.param("raw", lambda _: start.astype(jnp.float32))


def moments_of(weights: Float[Array, "F D"]) -> Float[Array, "F F_and_D"]:
    """Second moments that stand for these weights."""
    return _START * jnp.concatenate([jnp.eye(len(weights), dtype=weights.dtype), weights], 1)


def least_squares(moments: Float[Array, "F F_and_D"]) -> Float[Array, "F D"]:
    """The weights of least squares, ``<s^T s>^-1 <s^T x>``.

    Args:
        moments: ``<s^T s>`` and ``<s^T x>`` side by side, of features s and data x.

    Example:
        >>> least_squares(jnp.array([[2.0, 0.0, 4.0], [0.0, 1.0, 3.0]]))
        Array([[2.],
               [3.]], dtype=float32)
    """
    size = len(moments)
    return jnp.linalg.solve(moments[:, :size], moments[:, size:])


def solve_moments(
    total: Float[Array, "F F_and_D"],
    count: Float[Array, "F F_and_D"],
    old: Float[Array, "F F_and_D"],
) -> Float[Array, "F F_and_D"]:
    """The `solve` of a `ClosedForm` whose parameter is second moments.

    A small ridge holds to the old weights what the data do not tell, as of a latent that no datum
    uses; the sum of squares still never rises.
    """
    mean = total / jnp.maximum(count, 1.0)
    ridge = _RIDGE * jnp.diagonal(mean).mean()
    held = ridge / _START * moments_of(least_squares(old))
    return jnp.where(count > 0, mean + held, old)
