"""Distributions over codes that neither sample from nor score copies of their logits.

Particles lead the batch, ``(K, *batch)``, and the logits of a categorical latent are shared
by all of them: ``(*batch, V)`` with V codes. Stock `Categorical` draws one Gumbel per value of
each code and copies the logits to ``(K, *batch, V)`` before it gathers; here one uniform per
code is enough and the particles are folded into the trailing axis, so one step costs one pass
over the logits whatever K. The same holds for particles under `jax.vmap`.

`AutoregressiveCategorical` is the joint ``q(z | x) = Π_l q(z_l | z_<l, x)`` of L codes as one
NumPyro site. Sums over enumerated codes are exact, which the tests use.
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

from numpyro_dvae.ops.bounds import categorical_entropy

__all__ = [
    "AutoregressiveCategorical",
    "Categorical",
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


@jax.jit
def sample_codes(
    logits: Float[Array, "*batch V"], uniforms: Float[Array, "K *batch"]
) -> Integer[Array, "K *batch"]:
    """Turn one uniform in [0, 1) per code into draws from ``softmax(logits)``.

    Inverts the cumulative distribution in two levels, blocks of codes and codes of a block, so
    K draws cost one pass over `logits` and some 2 sqrt(V) steps each. A code of zero
    probability is never drawn: a step of zero height is not the first above any target. NaN
    logits give the last code; their log-probability is NaN and shows.
    """
    logits = jax.lax.stop_gradient(logits).astype(_precise(logits.dtype))
    num_codes = logits.shape[-1]
    width = math.isqrt(num_codes - 1) + 1  # of a block: V rounded up to a square's side
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, -num_codes % width)]
    mass = jnp.pad(jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)), padding)
    blocks = mass.reshape(-1, mass.shape[-1] // width, width)
    totals = jnp.sum(blocks, axis=-1)
    targets = uniforms.reshape(len(uniforms), -1).astype(mass.dtype) * jnp.sum(totals, axis=-1)
    block, below = _invert(totals, targets)
    chosen = blocks[jnp.arange(len(blocks)), block]
    code, _ = _invert(chosen, targets - below)
    return (block * width + code).reshape(uniforms.shape).astype(int)


def _invert(
    mass: Float[Array, "*#sample N n"], targets: Float[Array, "*sample N"]
) -> tuple[Integer[Array, "*sample N"], Float[Array, "*sample N"]]:
    """First entry at which the running sum of `mass` exceeds the target, and the sum before it.

    Added one after the other, since a parallel sum may rise where an entry is zero, or fall.
    Where rounding leaves the whole sum below the target, the last entry that is not zero.
    """
    total = below = below_last = jnp.zeros_like(targets)
    passed = last = jnp.zeros(targets.shape, jnp.int32)
    for position in range(mass.shape[-1]):
        entry = mass[..., position]
        possible = entry != 0
        last = jnp.where(possible, position, last)
        below_last = jnp.where(possible, total, below_last)
        total = total + entry
        too_low = ~(total > targets)  # NaN passes them all
        passed = passed + too_low
        below = jnp.where(too_low, total, below)
    return jnp.minimum(passed, last), jnp.where(passed > last, below_last, below)


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


class _NotNaN(constraints.ParameterFreeConstraint):
    """Any number but NaN: a logit of -inf rules a code out."""

    event_dim = 0

    def __call__(self, x: Any) -> Any:
        return x == x

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.zeros_like(prototype)


class Categorical(CategoricalLogits):
    """`numpyro.distributions.Categorical` whose particles share one copy of the logits.

    Same arguments and results, with log-densities in float32 or better, and logits of -inf for
    codes that cannot be. `sample` takes one uniform per code; `log_prob` treats the leading
    dims of its value as particles.
    """

    arg_constraints = {"logits": constraints.independent(_NotNaN(), 1)}  # noqa: RUF012

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
