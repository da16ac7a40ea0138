"""Distributions over codes that neither sample from nor score copies of their logits.

Particles lead the batch, ``(K, *batch)``, and the logits of a categorical latent are shared
by all of them: ``(*batch, V)`` with V codes. Stock `Categorical` draws one Gumbel per value of
each code and copies the logits to ``(K, *batch, V)`` before it gathers; here one uniform per
code is enough and the particles are folded into the trailing axis, so one step costs one pass
over the logits whatever K. The same holds for particles under `jax.vmap`.

`AutoregressiveCategorical` is the joint ``q(z | x) = Π_l q(z_l | z_<l, x)`` of L codes as one
NumPyro site. Sums over enumerated codes are exact, which the tests use.

`PathwiseCategorical` and `PathwiseBernoulli` have draws with a gradient (`ops.relaxing`), and the
log-probabilities of the discrete distributions that they stand for; they are in `_pathwise`.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax.core.tracers import current_trace
from jaxtyping import Array, Float, Integer, Shaped
from numpyro.distributions import CategoricalLogits, Distribution, constraints
from numpyro.distributions.util import validate_sample

from numpyro_dvae.distributions.pathwise import (
    RELAXATIONS,
    NotNaN,
    PathwiseBernoulli,
    PathwiseCategorical,
)
from numpyro_dvae.ops import relaxing
from numpyro_dvae.ops.bounds import categorical_entropy
from numpyro_dvae.ops.sampling import sample_codes

__all__ = [
    "RELAXATIONS",
    "AutoregressiveCategorical",
    "Categorical",
    "OneHotCategorical",
    "PathwiseBernoulli",
    "PathwiseCategorical",
    "log_prob_of_codes",
    "sample_codes",
    "split_shared",
]

_MAX_ENUMERATED = 2**20  # joint states that `enumerate_support` is willing to list


@runtime_checkable
class _CodeTransformer(Protocol):
    """What `AutoregressiveCategorical` needs of a network; `nets.CausalTransformer` has it.

    It must be a JAX pytree that holds its own parameters, as what `nets.register` returns.
    """

    num_latents: int
    num_codes: int

    def __call__(self, codes: Array, context: Array | None) -> Array:
        """Teacher-forced logits, ``(*sample, *batch, L, V)``."""

    def sample(self, rng_key: Array, context: Array | None, sample_shape: Sequence[int]) -> Array:
        """Codes drawn one latent after the other, ``(*sample, *batch, L)``."""


def log_prob_of_codes(
    logits: Float[Array, "*batch V"], codes: Integer[Array, "*sample_batch"]
) -> Float[Array, "*sample_batch"]:
    """Log-probabilities of codes of shape ``(*sample, *batch)`` under logits ``(*batch, V)``.

    Forward and backward each cost one pass over `logits`, not one per particle.
    """
    if codes.shape[codes.ndim - logits.ndim + 1 :] != logits.shape[:-1]:
        raise ValueError(
            f"`codes` must end in the batch shape of `logits`, {logits.shape[:-1]}; got "
            f"{codes.shape}. Put particles on the left."
        )
    return _gather(_log_softmax(logits), codes)


def split_shared(
    array: Array, shape: Sequence[int], num_inner: int
) -> tuple[Array, tuple[int, ...]]:
    """Split a broadcast batch `shape` into the dims that share `array` and its own.

    `array` is ``(*batch, *inner)``. Returns it without leading dims of size one, and the
    leading part of `shape`. Copies only if a size-one dim right of a larger one must grow.
    """
    num_batch = array.ndim - num_inner
    batch, inner = array.shape[:num_batch], array.shape[num_batch:]
    while batch and batch[0] == 1:
        batch = batch[1:]
    num_lead = len(shape) - len(batch)
    shared = jnp.broadcast_to(array.reshape(batch + inner), (*shape[num_lead:], *inner))
    return shared, tuple(shape[:num_lead])


class Categorical(CategoricalLogits):
    """`numpyro.distributions.Categorical` whose particles share one copy of the logits.

    Same arguments and results, with log-densities in float32 or better, and logits of -inf for
    codes that cannot be. `sample` takes one uniform per code; `log_prob` treats the leading
    dims of its value as particles.
    """

    arg_constraints = {"logits": constraints.independent(NotNaN(), 1)}  # noqa: RUF012

    def __init__(
        self,
        probs: Array | None = None,
        logits: Array | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if (probs is None) == (logits is None):
            raise ValueError("Give one of `probs` and `logits`, not both or neither.")
        raw = jnp.log(jnp.asarray(probs)) if logits is None else jnp.asarray(logits)
        super().__init__(_log_softmax(raw), validate_args=validate_args)

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
        """Draws of shape ``sample_shape + batch_shape``; all share the logits."""
        size = (math.prod(sample_shape), *self.batch_shape)
        codes = sample_codes(self.logits, jax.random.uniform(key, size, self.logits.dtype))
        return codes.reshape(*sample_shape, *self.batch_shape)

    @validate_sample
    def log_prob(self, value: Shaped[Array | np.ndarray, "..."]) -> Array:
        """Log-probability of codes; leading dims of `value` are particles."""
        value = jnp.asarray(value).astype(int)
        shape = jnp.broadcast_shapes(jnp.shape(value), self.batch_shape)
        logits, _ = split_shared(self.logits, shape, 1)
        return _gather(logits, jnp.broadcast_to(value, shape))

    def entropy(self) -> Array:
        """Entropy in nats; codes that cannot be add nothing."""
        return categorical_entropy(self.logits)


class OneHotCategorical(Distribution):
    """One of V codes as a one-hot vector, as `pyro.distributions.OneHotCategorical`.

    Args:
        probs: Probabilities of the codes, ``(*batch, V)``.
        logits: Or their unnormalised logarithms; -inf rules a code out.
    """

    arg_constraints = {"logits": constraints.independent(NotNaN(), 1)}  # noqa: RUF012
    support = constraints.simplex
    pytree_data_fields = ("logits",)
    has_enumerate_support = True

    def __init__(
        self,
        probs: Array | None = None,
        logits: Array | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.logits = Categorical(probs, logits).logits
        shapes = self.logits.shape[:-1], self.logits.shape[-1:]
        super().__init__(*shapes, validate_args=validate_args)

    @property
    def mean(self) -> Array:
        """Probabilities of the codes."""
        return jnp.exp(self.logits)

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
        """One-hot vectors of shape ``sample_shape + batch_shape + (V,)``."""
        codes = Categorical(logits=self.logits).sample(key, sample_shape)
        return jax.nn.one_hot(codes, self.logits.shape[-1], dtype=self.logits.dtype)

    def log_prob(self, value: Array) -> Array:
        """Log-probability of one-hot vectors."""
        return relaxing.linear_log_prob(self.logits, jnp.asarray(value, self.logits.dtype))

    def entropy(self) -> Array:
        """Entropy in nats; codes that cannot be add nothing."""
        return categorical_entropy(self.logits)

    def enumerate_support(self, expand: bool = True) -> Array:
        """The V one-hot vectors, on a new leftmost dim."""
        size = self.logits.shape[-1]
        values = jnp.eye(size).reshape(size, *(1 for _ in self.batch_shape), size)
        shape = (size, *self.batch_shape, size)
        return jnp.broadcast_to(values, shape) if expand else values


class AutoregressiveCategorical(Distribution):
    """Joint distribution of L codes, each drawn given those before it.

    Args:
        transformer: Network that maps codes to logits and samples, as `CausalTransformer` with
            its parameters, which `nets.register` returns.
        context: What the codes depend on, ``(*batch, P, D)``; None for a prior.

    `sample` runs the network code by code with its key-value cache; `log_prob` runs it once,
    teacher-forced, with gradient. `conditional_entropy` right after `log_prob` of the same
    array takes over that pass.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (NumPyro's protocol)
    pytree_data_fields = ("transformer", "context")
    has_enumerate_support = True
    _scored: tuple[Any, Array] | None = None
    _trace: Any = None  # that of the last copy from a pytree is unknown: nothing is kept there

    def __init__(
        self,
        transformer: _CodeTransformer,
        context: Array | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if context is not None and context.ndim < 2:
            raise ValueError(
                "`context` must have shape (*batch, patches, embed_dim); got "
                f"{context.shape}. Encode the data with `PatchEncoder`."
            )
        self.transformer = transformer
        self.context = context
        self._trace = current_trace()
        batch_shape = () if context is None else context.shape[:-2]
        event_shape = (transformer.num_latents,)
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Integer codes in [0, V - 1], L of them."""
        codes = constraints.integer_interval(0, self.transformer.num_codes - 1)
        return constraints.independent(codes, 1)

    def expand(self, batch_shape: Sequence[int]) -> "AutoregressiveCategorical":
        """A view with a larger batch shape; the context is not copied."""
        shape, own = tuple(batch_shape), self.batch_shape
        pairs = zip(reversed(own), reversed(shape), strict=False)
        if len(shape) < len(own) or any(size not in (1, wanted) for size, wanted in pairs):
            raise ValueError(f"`batch_shape` must be one that {own} broadcasts to; got {shape}.")
        new = AutoregressiveCategorical(self.transformer, self.context, validate_args=False)
        new._batch_shape, new._validate_args = shape, self._validate_args
        return new

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
        """Codes of shape ``sample_shape + batch_shape + (L,)``."""
        shape = (*sample_shape, *self.batch_shape)
        context, lead = (
            (None, shape) if self.context is None else split_shared(self.context, shape, 2)
        )
        codes = self.transformer.sample(key, context, sample_shape=lead)
        return codes.reshape(shape + self.event_shape)

    @validate_sample
    def log_prob(self, value: Shaped[Array | np.ndarray, "*sample_batch L"]) -> Array:
        """Teacher-forced log q(z), with gradient, summed over the L codes."""
        log_probs = self._log_conditionals(value)
        if self._trace is not None and self._trace == current_trace():  # else a tracer may leak
            self._scored = (value, log_probs)
        return _gather(log_probs, self._codes(value)).sum(-1)

    def conditional_log_prob(self, value: Shaped[Array | np.ndarray, "*sample_batch L"]) -> Array:
        """``log q(z_l | z_<l)`` of each of the L codes, with gradient."""
        return _gather(self._log_conditionals(value), self._codes(value))

    def conditional_entropy(self, value: Shaped[Array | np.ndarray, "*sample_batch L"]) -> Array:
        """``Σ_l H(q(z_l | z_<l))`` in nats at the given codes, with gradient.

        Its mean over draws of `value` is the entropy of the joint, with less variance than
        ``-log_prob(value)``: each step's sum over codes is in closed form.
        """
        scored, self._scored = self._scored, None
        if scored is not None and scored[0] is value and self._trace == current_trace():
            log_probs = scored[1]
        else:
            log_probs = self._log_conditionals(value)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=(-2, -1))

    def enumerate_support(self, expand: bool = True) -> Array:
        """All V**L joint codes, in lexicographic order, on a new leftmost dim."""
        num_latents, num_codes = self.transformer.num_latents, self.transformer.num_codes
        size = num_codes**num_latents
        if size > _MAX_ENUMERATED:
            raise ValueError(
                f"`enumerate_support` lists at most {_MAX_ENUMERATED} joint codes; "
                f"{num_codes} ** {num_latents} = {size:.3g} were asked for. Sample instead."
            )
        codes = jnp.indices((num_codes,) * num_latents).reshape(num_latents, size).T
        codes = codes.reshape(size, *(1 for _ in self.batch_shape), num_latents)
        shape = (size, *self.batch_shape, num_latents)
        return jnp.broadcast_to(codes, shape) if expand else codes

    def _codes(self, value: Array | np.ndarray) -> Array:
        """`value` as integers, broadcast against the batch shape."""
        shape = jnp.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return jnp.broadcast_to(value, shape + self.event_shape).astype(int)

    def _log_conditionals(self, value: Array | np.ndarray) -> Array:
        """``log q(z_l = v | z_<l)``, shape (*value.shape, V)."""
        return _log_softmax(self.transformer(self._codes(value), self.context))


def _precise(dtype: Any) -> Any:
    """At least float32: half precision is for networks, not for log-densities."""
    return jnp.promote_types(dtype, jnp.float32)


def _log_softmax(logits: Shaped[Array, "*batch V"]) -> Float[Array, "*batch V"]:
    return jax.nn.log_softmax(logits.astype(_precise(logits.dtype)))


def _gather(
    log_probs: Float[Array, "*batch V"], codes: Integer[Array, "*sample_batch"]
) -> Float[Array, "*sample_batch"]:
    """Pick codes ``(*sample, *batch)``; the samples become the trailing axis of one gather."""
    batch = log_probs.shape[:-1]
    index = jnp.moveaxis(codes.reshape(-1, *batch), 0, -1)
    picked = jnp.take_along_axis(log_probs, index, axis=-1)
    return jnp.moveaxis(picked, -1, 0).reshape(codes.shape)
