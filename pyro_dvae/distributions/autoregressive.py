"""The joint distribution of the L codes of a datum, each drawn given those before it.

``q(z | x) = Π_l q(z_l | z_<l, x)`` is one site of a program. A network over codes gives the
conditionals; what it must be able to do is `CodeTransformer`. Where V**L is small, the sum over all
codes that `enumerate_support` lists is exact.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution

from pyro_dvae.distributions.logits import log_softmax, pick_codes, split_shared
from pyro_dvae.ops.arguments import checked

__all__ = ["AutoregressiveCategorical", "CodeTransformer"]

_NOTHING_SCORED: tuple[Any, ...] = (None, 0, False, None)
_MAX_ENUMERATED = 2**20  # joint states that `enumerate_support` is willing to list


@runtime_checkable
class CodeTransformer(Protocol):
    """What `AutoregressiveCategorical` asks of a network; `nets.CausalTransformer` has it."""

    num_latents: int  # codes per datum, L
    num_codes: int  # values of a code, V

    def __call__(self, codes: Tensor, context: Tensor | None) -> Tensor:
        """Teacher-forced logits ``(*sample, *batch, L, V)`` of codes ``(*sample, *batch, L)``."""

    def sample(self, context: Tensor | None, sample_shape: Sequence[int]) -> Tensor:
        """Codes drawn one latent after the other, ``(*sample, *batch, L)``."""


class AutoregressiveCategorical(dist.TorchDistribution):
    """Joint distribution of L codes, each drawn given those before it: event shape (L,).

    `sample` runs the network code by code, and keeps what it knows of earlier codes; `log_prob`
    runs it once, teacher-forced, with gradient. `conditional_entropy` right after `log_prob` of the
    same tensor takes over that pass.

    Args:
        transformer: Network that maps codes to logits and samples, as `nets.CausalTransformer`.
        context: What the codes depend on, P vectors of width D for each datum, ``(*batch, P, D)``;
            None for a prior.
        validate_args: Whether to check values; None is Pyro's own setting.

    Raises:
        ValueError: If `context` has fewer than two dims.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  (torch's protocol)
    has_enumerate_support = True

    @checked
    def __init__(
        self,
        transformer: CodeTransformer,
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
        shape, old = torch.Size(batch_shape), self.batch_shape
        pairs = zip(reversed(old), reversed(shape), strict=False)
        if len(shape) < len(old) or any(size not in (1, wanted) for size, wanted in pairs):
            raise ValueError(
                f"`batch_shape` must be one that {tuple(old)} broadcasts to; got {tuple(shape)}."
            )
        new = self._get_checked_instance(AutoregressiveCategorical, _instance)
        new.transformer, new.context = self.transformer, self.context
        new._scored = _NOTHING_SCORED
        dist.TorchDistribution.__init__(new, shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Codes of shape ``sample_shape + batch_shape + (L,)``, without gradient."""
        shape = torch.Size(sample_shape) + self.batch_shape
        context, lead = (
            (None, shape) if self.context is None else split_shared(self.context, shape, 2)
        )
        with torch.no_grad():
            codes = self.transformer.sample(context, sample_shape=tuple(lead))
        return codes.reshape(shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the L codes together, in nats, with gradient."""
        if self._validate_args:
            self._validate_sample(value)
        log_probs = self._log_conditionals(value)
        self._scored = (value, value._version, torch.is_grad_enabled(), log_probs)
        return pick_codes(log_probs, self._codes(value)).sum(-1)

    def conditional_log_prob(self, value: Tensor) -> Tensor:
        """``log q(z_l | z_<l)`` of each of the L codes, ``(*sample, *batch, L)``, with gradient."""
        return pick_codes(self._log_conditionals(value), self._codes(value))

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
        """``log q(z_l = v | z_<l)``, shape ``(*value.shape, V)``."""
        return log_softmax(self.transformer(self._codes(value), self.context))
