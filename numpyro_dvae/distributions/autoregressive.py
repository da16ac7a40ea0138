"""The joint distribution of the L codes of a datum, each drawn given those before it.

``q(z | x) = Π_l q(z_l | z_<l, x)`` is one site of a program. A network over codes gives the
conditionals; what it must be able to do is `CodeTransformer`. Where V**L is small, the sum over all
codes that `enumerate_support` lists is exact.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax.core.tracers import current_trace
from jaxtyping import Array, Shaped
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from numpyro_dvae.distributions.logits import log_softmax, pick_codes, split_shared
from numpyro_dvae.ops.arguments import checked

__all__ = ["AutoregressiveCategorical", "CodeTransformer"]

_MAX_ENUMERATED = 2**20  # joint states that `enumerate_support` is willing to list


@runtime_checkable
class CodeTransformer(Protocol):
    """What `AutoregressiveCategorical` asks of a network; `nets.CausalTransformer` has it.

    It is a JAX pytree that holds its own parameters, as what `nets.register` returns.
    """

    num_latents: int  # codes per datum, L
    num_codes: int  # values of a code, V

    def __call__(self, codes: Array, context: Array | None) -> Array:
        """Teacher-forced logits ``(*sample, *batch, L, V)`` of codes ``(*sample, *batch, L)``."""

    def sample(self, rng_key: Array, context: Array | None, sample_shape: Sequence[int]) -> Array:
        """Codes drawn one latent after the other, ``(*sample, *batch, L)``."""


class AutoregressiveCategorical(Distribution):
    """Joint distribution of L codes, each drawn given those before it: event shape (L,).

    `sample` runs the network code by code, and keeps what it knows of earlier codes; `log_prob`
    runs it once, teacher-forced, with gradient. `conditional_entropy` right after `log_prob` of the
    same array takes over that pass.

    Args:
        transformer: Network that maps codes to logits and samples, as `nets.CausalTransformer` with
            its parameters, which `nets.register` returns.
        context: What the codes depend on, P vectors of width D for each datum, ``(*batch, P, D)``;
            None for a prior.
        validate_args: Whether to check values; None is NumPyro's own setting.

    Raises:
        ValueError: If `context` has fewer than two dims.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (NumPyro's protocol)
    pytree_data_fields = ("transformer", "context")
    has_enumerate_support = True
    _scored: tuple[Any, Array] | None = None
    _trace: Any = None  # that of the last copy from a pytree is unknown: nothing is kept there

    @checked
    def __init__(
        self,
        transformer: CodeTransformer,
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
        shape, old = tuple(batch_shape), self.batch_shape
        pairs = zip(reversed(old), reversed(shape), strict=False)
        if len(shape) < len(old) or any(size not in (1, wanted) for size, wanted in pairs):
            raise ValueError(f"`batch_shape` must be one that {old} broadcasts to; got {shape}.")
        new = AutoregressiveCategorical(self.transformer, self.context, validate_args=False)
        new._batch_shape, new._validate_args = shape, self._validate_args
        return new

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
        """Codes of shape ``sample_shape + batch_shape + (L,)``, without gradient."""
        shape = (*sample_shape, *self.batch_shape)
        context, lead = (
            (None, shape) if self.context is None else split_shared(self.context, shape, 2)
        )
        codes = self.transformer.sample(key, context, sample_shape=lead)
        return codes.reshape(shape + self.event_shape)

    @validate_sample
    def log_prob(self, value: Shaped[Array | np.ndarray, "*sample_batch L"]) -> Array:
        """Log-probability of the L codes together, in nats, with gradient."""
        log_probs = self._log_conditionals(value)
        if self._trace is not None and self._trace == current_trace():  # else a tracer may leak
            self._scored = (value, log_probs)
        return pick_codes(log_probs, self._codes(value)).sum(-1)

    def conditional_log_prob(self, value: Shaped[Array | np.ndarray, "*sample_batch L"]) -> Array:
        """``log q(z_l | z_<l)`` of each of the L codes, ``(*sample, *batch, L)``, with gradient."""
        return pick_codes(self._log_conditionals(value), self._codes(value))

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
        """All V**L joint codes, in lexicographic order, on a new leftmost dim.

        Raises:
            ValueError: If there are more than 2**20 of them.
        """
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
        """``log q(z_l = v | z_<l)``, shape ``(*value.shape, V)``."""
        return log_softmax(self.transformer(self._codes(value), self.context))
