"""Codes whose distribution needs no array over all their values.

A uniform code and one that is certain are known without logits ``(*batch, V)``: where V goes into
the thousands, such arrays would be most of a step, and at 2**32 values there is no room for one.
Logits are made if asked for, as where a site is relaxed.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Shaped
from numpyro.distributions import (
    CategoricalLogits,
    Distribution,
    ExpandedDistribution,
    constraints,
)
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.util import lazy_property, validate_sample

from numpyro_dvae.distributions.logits import precise
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.refusing import refuse_gradient

__all__ = ["CertainCategorical", "UniformCategorical"]

_FINEST = 2**12  # codes that a uniform number of 24 bits tells apart; `Categorical` draws by one
_MOST_LISTED = 2**25  # codes that are put in an array
_NO_GRADIENT = (
    "The codes of a guide that quantises vectors have no gradient: its posterior is one state. "
    "Train it with VQ_ELBO, or use this loss with a guide that draws codes, as IndependentGuide."
)


class _WithoutLogits(CategoricalLogits):
    """A categorical distribution that knows its number of codes, not their logits."""

    arg_constraints: ClassVar[dict] = {}
    pytree_data_fields: tuple[str, ...] = ("like",)
    pytree_aux_fields: tuple[str, ...] = ("num_codes",)

    def _begin(self, num_codes: int, like: Array, validate_args: bool | None) -> None:
        self.num_codes, self.like = num_codes, like
        Distribution.__init__(self, jnp.shape(like), validate_args=validate_args)

    @lazy_property
    def probs(self) -> Array:
        """Probabilities of all codes."""
        return jnp.exp(self.logits)

    @property
    def support(self) -> Any:
        """The integers below V."""
        return constraints.integer_interval(0, self.num_codes - 1)

    def enumerate_support(self, expand: bool = True) -> Array:
        """The V codes, on a new leftmost dim."""
        _check_listed(self.num_codes)
        values = jnp.arange(self.num_codes).reshape(-1, *(1 for _ in self.batch_shape))
        shape = (self.num_codes, *self.batch_shape)
        return jnp.broadcast_to(values, shape) if expand else values


class UniformCategorical(_WithoutLogits):
    """Codes of V values, each as probable as any other.

    Args:
        num_codes: V.
        like: An array of the batch shape, and of the dtype of log-densities.
        validate_args: Whether to check values; None is NumPyro's own setting.

    Raises:
        ValueError: If an integer does not hold all codes.
    """

    @checked
    def __init__(
        self, num_codes: int, like: Float[Array, "*batch"], validate_args: bool | None = None
    ) -> None:
        _check_fits(num_codes, jnp.iinfo(jnp.zeros((), int).dtype).max)
        self._begin(num_codes, like, validate_args)

    @lazy_property
    def logits(self) -> Array:
        """Log-probabilities of all codes."""
        _check_listed(self.num_codes)
        return self._filled((*self.batch_shape, self.num_codes), -math.log(self.num_codes))

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
        """Codes of shape ``sample_shape + batch_shape``."""
        shape = (*sample_shape, *self.batch_shape)
        if self.num_codes > _FINEST:
            return jax.random.randint(key, shape, 0, self.num_codes, int)
        size = (math.prod(sample_shape), *self.batch_shape)
        uniforms = jax.random.uniform(key, size, precise(self.like).dtype).reshape(shape)
        return jnp.minimum((uniforms * self.num_codes).astype(int), self.num_codes - 1)

    @validate_sample
    def log_prob(self, value: Shaped[Array, "..."]) -> Array:
        """``-log V``, in nats; of what is no code -inf."""
        shape = jnp.broadcast_shapes(jnp.shape(value), self.batch_shape)
        is_code = (jnp.asarray(value) >= 0) & (jnp.asarray(value) <= self.num_codes - 1)
        return jnp.where(is_code, self._filled(shape, -math.log(self.num_codes)), -jnp.inf)

    def entropy(self) -> Array:
        """``log V``, in nats."""
        return self._filled(self.batch_shape, math.log(self.num_codes))

    def _filled(self, shape: Sequence[int], value: float) -> Array:
        return jnp.full(shape, value, precise(self.like).dtype)


class CertainCategorical(_WithoutLogits):
    """Codes of which each is known: all probability is on one value.

    Args:
        num_codes: Values of a code, V.
        codes: The known ones, ``(*batch)``.
        source: What the codes were computed from. A loss that asks for its gradient through their
            log-probability is told that there is none, instead of training nothing.
        validate_args: Whether to check values; None is NumPyro's own setting.
        tables: How many latents, in a row, are of each table of a codebook of several; None is one
            table. `VQ_ELBO` counts the usage of each table by itself.

    Raises:
        ValueError: If `tables` have another number of latents than `codes`.
    """

    pytree_data_fields = ("codes", "source")
    pytree_aux_fields = ("tables",)

    @checked
    def __init__(
        self,
        num_codes: int,
        codes: Integer[Array, "*batch"],
        source: Float[Array, "..."] | None = None,
        validate_args: bool | None = None,
        tables: Sequence[int] | None = None,
    ) -> None:
        self.codes, self.source = codes, source
        self.tables = None if tables is None else tuple(tables)
        if self.tables is not None and sum(self.tables) != codes.shape[-1]:
            raise ValueError(
                f"`tables` must have as many latents as `codes`; got {tables} for codes of shape "
                f"{tuple(codes.shape)}."
            )
        self._begin(num_codes, jnp.zeros(codes.shape, jnp.float32), validate_args)

    @lazy_property
    def logits(self) -> Array:
        """Log-probabilities of all codes: 0 and -inf."""
        _check_listed(self.num_codes)
        return jnp.log(jax.nn.one_hot(self.codes, self.num_codes))

    @property
    def mode(self) -> Array:
        """The codes."""
        return self.codes

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
        """The codes, in shape ``sample_shape + batch_shape``."""
        return jnp.broadcast_to(self.codes, (*sample_shape, *self.batch_shape))

    @validate_sample
    def log_prob(self, value: Shaped[Array, "..."]) -> Array:
        """0 of the codes, -inf of all others."""
        found = jnp.where(jnp.asarray(value).astype(int) == self.codes, 0.0, -jnp.inf)
        found = found.astype(self.like.dtype)
        return found if self.source is None else refuse_gradient(found, self.source, _NO_GRADIENT)

    def entropy(self) -> Array:
        """0."""
        return jnp.zeros(self.batch_shape, self.like.dtype)


def _kl_of_certain(p: Any, q: Any) -> Array:
    return p.log_prob(p.mode) - q.log_prob(p.mode)


kl_divergence.add((CertainCategorical, Distribution), _kl_of_certain)
kl_divergence.add((CertainCategorical, ExpandedDistribution), _kl_of_certain)  # else two match


def _check_fits(num_codes: int, most: int) -> None:
    if num_codes - 1 > most:
        raise ValueError(
            f"`num_codes` is {num_codes}, but an integer holds no code beyond {most}. Use several "
            "latents of fewer codes each."
        )


def _check_listed(num_codes: int) -> None:
    if num_codes > _MOST_LISTED:
        raise ValueError(
            f"a latent has {num_codes} codes, of which at most {_MOST_LISTED} are listed. Use what "
            "looks at draws alone: a loss that samples, VQ_ELBO, `importance_diagnostics`."
        )
