"""Distributions over codes that neither sample from nor score copies of their logits.

Particles lead the batch, ``(K, *batch)``, and the logits of a categorical latent are shared
by all of them: ``(*batch, V)`` with V codes. Stock `Categorical` broadcasts the logits to
``(K, *batch, V)`` before it draws or gathers; here the particles are folded into the
trailing axis instead, so one step costs one pass over the logits whatever K.

`AutoregressiveCategorical` is the joint ``q(z | x) = Π_l q(z_l | z_<l, x)`` of L codes as one
Pyro site. Sums over enumerated codes are exact, which the tests use.

`PathwiseCategorical` and `PathwiseBernoulli` have draws with a gradient (`ops.relaxing`), and the
log-probabilities of the discrete distributions that they stand for; they are in `_pathwise`.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Float, Integer
from pyro.distributions import OneHotCategorical, constraints
from torch import Tensor
from torch.distributions import Distribution

from pyro_dvae.distributions.pathwise import RELAXATIONS, PathwiseBernoulli, PathwiseCategorical
from pyro_dvae.ops.sampling import sample_codes

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

_NOTHING_SCORED: tuple[Any, ...] = (None, 0, False, None)
_MAX_ENUMERATED = 2**20  # joint states that `enumerate_support` is willing to list


@runtime_checkable
class _CodeTransformer(Protocol):
    """What `AutoregressiveCategorical` needs of a network; `nets.CausalTransformer` has it."""

    num_latents: int
    num_codes: int

    def __call__(self, codes: Tensor, context: Tensor | None) -> Tensor:
        """Teacher-forced logits, ``(*sample, *batch, L, V)``."""

    def sample(self, context: Tensor | None, sample_shape: Sequence[int]) -> Tensor:
        """Codes drawn one latent after the other, ``(*sample, *batch, L)``."""


def log_prob_of_codes(
    logits: Float[Tensor, "*batch V"], codes: Integer[Tensor, "*sample_batch"]
) -> Float[Tensor, "*sample_batch"]:
    """Log-probabilities of codes of shape ``(*sample, *batch)`` under logits ``(*batch, V)``.

    Forward and backward each cost one pass over `logits`, not one per particle.
    """
    if codes.shape[codes.dim() - logits.dim() + 1 :] != logits.shape[:-1]:
        raise ValueError(
            f"`codes` must end in the batch shape of `logits`, {tuple(logits.shape[:-1])}; got "
            f"{tuple(codes.shape)}. Put particles on the left."
        )
    return _gather(_log_softmax(logits), codes)


def split_shared(array: Tensor, shape: Sequence[int], num_inner: int) -> tuple[Tensor, torch.Size]:
    """Split a broadcast batch `shape` into the dims that share `array` and its own.

    `array` is ``(*batch, *inner)``. Returns it without leading dims of size one, and the
    leading part of `shape`. Copies only if a size-one dim right of a larger one must grow.
    """
    num_batch = array.dim() - num_inner
    batch, inner = array.shape[:num_batch], array.shape[num_batch:]
    while batch and batch[0] == 1:
        batch = batch[1:]
    num_lead = len(shape) - len(batch)
    shared = array.reshape(batch + inner).expand(*shape[num_lead:], *inner)
    return shared, torch.Size(shape[:num_lead])


class Categorical(dist.Categorical):
    """`pyro.distributions.Categorical` whose particles share one copy of the logits.

    Same arguments and results, with log-densities in float32 or better. `expand` keeps the
    logits as they are; `sample` and `log_prob` treat all that is left of them as particles.
    """

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if logits is not None:
            logits = logits.to(_precise(logits.dtype))
        super().__init__(probs, logits, validate_args)
        self._shared = self.logits  # normalised, before any `expand`

    def expand(
        self,
        batch_shape: Sequence[int],
        _instance: Distribution | None = None,
    ) -> "Categorical":
        """A view with a larger batch shape; nothing is copied."""
        new = super().expand(batch_shape, self._get_checked_instance(Categorical, _instance))
        new._shared = self._shared
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws of shape ``sample_shape + batch_shape``; all share the logits."""
        shape = torch.Size(sample_shape) + self.batch_shape
        logits, lead = split_shared(self._shared, shape, 1)
        size = (math.prod(lead), *logits.shape[:-1])
        uniforms = torch.rand(size, dtype=logits.dtype, device=logits.device)
        with torch.no_grad():
            return sample_codes(logits, uniforms).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of codes; leading dims of `value` are particles."""
        if getattr(value, "_pyro_categorical_support", None) == id(self):
            return super().log_prob(value)  # Pyro's shortcut for enumerated sites
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        logits, _ = split_shared(self._shared, shape, 1)
        return _gather(logits, value.long().expand(shape))


class AutoregressiveCategorical(dist.TorchDistribution):
    """Joint distribution of L codes, each drawn given those before it.

    Args:
        transformer: Network that maps codes to logits and samples, as `CausalTransformer`.
        context: What the codes depend on, ``(*batch, P, D)``; None for a prior.

    `sample` runs the network code by code with its key-value cache; `log_prob` runs it once,
    teacher-forced, with gradient. `conditional_entropy` right after `log_prob` of the same
    tensor takes over that pass.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  (torch's protocol)
    has_enumerate_support = True

    def __init__(
        self,
        transformer: _CodeTransformer,
        context: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if context is not None and context.dim() < 2:
            raise ValueError(
                "`context` must have shape (*batch, patches, embed_dim); got "
                f"{tuple(context.shape)}. Encode the data with `PatchEncoder`."
            )
        self.transformer = transformer
        self.context = context
        self._scored = _NOTHING_SCORED
        batch_shape = torch.Size() if context is None else context.shape[:-2]
        event_shape = torch.Size((transformer.num_latents,))
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Integer codes in [0, V - 1], L of them."""
        codes = constraints.integer_interval(0, self.transformer.num_codes - 1)
        return constraints.independent(codes, 1)

    def expand(
        self,
        batch_shape: Sequence[int],
        _instance: Distribution | None = None,
    ) -> "AutoregressiveCategorical":
        """A view with a larger batch shape; the context is not copied."""
        shape, own = torch.Size(batch_shape), self.batch_shape
        pairs = zip(reversed(own), reversed(shape), strict=False)
        if len(shape) < len(own) or any(size not in (1, wanted) for size, wanted in pairs):
            raise ValueError(
                f"`batch_shape` must be one that {tuple(own)} broadcasts to; got {tuple(shape)}."
            )
        new = self._get_checked_instance(AutoregressiveCategorical, _instance)
        new.transformer, new.context = self.transformer, self.context
        new._scored = _NOTHING_SCORED
        dist.TorchDistribution.__init__(new, shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Codes of shape ``sample_shape + batch_shape + (L,)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        context, lead = (
            (None, shape) if self.context is None else split_shared(self.context, shape, 2)
        )
        with torch.no_grad():
            codes = self.transformer.sample(context, sample_shape=tuple(lead))
        return codes.reshape(shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Teacher-forced log q(z), with gradient, summed over the L codes."""
        if self._validate_args:
            self._validate_sample(value)
        log_probs = self._log_conditionals(value)
        self._scored = (value, value._version, torch.is_grad_enabled(), log_probs)
        return _gather(log_probs, self._codes(value)).sum(-1)

    def conditional_log_prob(self, value: Tensor) -> Tensor:
        """``log q(z_l | z_<l)`` of each of the L codes, with gradient."""
        return _gather(self._log_conditionals(value), self._codes(value))

    def conditional_entropy(self, value: Tensor) -> Tensor:
        """``Σ_l H(q(z_l | z_<l))`` in nats at the given codes, with gradient.

        Its mean over draws of `value` is the entropy of the joint, with less variance than
        ``-log_prob(value)``: each step's sum over codes is in closed form.
        """
        (scored, *state, log_probs), self._scored = self._scored, _NOTHING_SCORED
        if scored is not value or state != [value._version, torch.is_grad_enabled()]:
            log_probs = self._log_conditionals(value)
        return -torch.linalg.vecdot(log_probs.exp(), log_probs).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All V**L joint codes, in lexicographic order, on a new leftmost dim."""
        num_latents, num_codes = self.transformer.num_latents, self.transformer.num_codes
        size = num_codes**num_latents
        if size > _MAX_ENUMERATED:
            raise ValueError(
                f"`enumerate_support` lists at most {_MAX_ENUMERATED} joint codes; "
                f"{num_codes} ** {num_latents} = {size:.3g} were asked for. Sample instead."
            )
        device = None if self.context is None else self.context.device
        grid = torch.arange(num_codes, device=device).expand(num_latents, num_codes)
        codes = torch.cartesian_prod(*grid).reshape(size, num_latents)
        codes = codes.reshape(size, *(1 for _ in self.batch_shape), num_latents)
        return codes.expand(size, *self.batch_shape, num_latents) if expand else codes

    def _codes(self, value: Tensor) -> Tensor:
        """`value` as integers, broadcast against the batch shape."""
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.long().expand(shape + self.event_shape)

    def _log_conditionals(self, value: Tensor) -> Tensor:
        """``log q(z_l = v | z_<l)``, shape (*value.shape, V)."""
        return _log_softmax(self.transformer(self._codes(value), self.context))


def _precise(dtype: torch.dtype) -> torch.dtype:
    """At least float32: half precision is for networks, not for log-densities."""
    return torch.promote_types(dtype, torch.float32)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=_precise(logits.dtype))


def _gather(
    log_probs: Float[Tensor, "*batch V"], codes: Integer[Tensor, "*sample_batch"]
) -> Float[Tensor, "*sample_batch"]:
    """Pick codes ``(*sample, *batch)``; the samples become the trailing axis of one gather."""
    batch = log_probs.shape[:-1]
    index = codes.reshape(-1, *batch).movedim(0, -1)
    return log_probs.gather(-1, index).movedim(-1, 0).reshape(codes.shape)
