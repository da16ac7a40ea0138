"""One code: an integer below V, or the one-hot vector that stands for it.

Particles lead the batch, ``(K, *batch)``, and the logits of a categorical latent are shared by all
of them, ``(*batch, V)``. The stock `Categorical` broadcasts the logits to ``(K, *batch, V)`` before
it draws or scores; the one here makes a single pass over them, whatever K.
"""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import OneHotCategorical  # NumPyro has none: its twin is written out
from torch import Tensor
from torch.distributions import Distribution

from pyro_dvae.distributions.logits import pick_codes, precise, split_shared
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.sampling import sample_codes

__all__ = ["Categorical", "OneHotCategorical"]


class Categorical(dist.Categorical):
    """`pyro.distributions.Categorical` whose particles share one copy of the logits.

    It takes the same arguments and has the same results, with log-densities in float32 or better.

    Args:
        probs: Probabilities of the codes, ``(*batch, V)``.
        logits: Or their unnormalised logarithms; -inf rules a code out.
        validate_args: Whether to check arguments and values; None is Pyro's own setting.
    """

    @checked
    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(probs, None if logits is None else precise(logits), validate_args)
        self._shared = self.logits  # normalised, before any `expand`

    def expand(
        self,
        batch_shape: Sequence[int],
        _instance: Distribution | None = None,
    ) -> "Categorical":
        """A view with a larger batch shape; the logits stay as they are."""
        new = super().expand(batch_shape, self._get_checked_instance(Categorical, _instance))
        new._shared = self._shared
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Codes of shape ``sample_shape + batch_shape``, from one uniform each."""
        shape = torch.Size(sample_shape) + self.batch_shape
        logits, lead = split_shared(self._shared, shape, 1)
        size = (math.prod(lead), *logits.shape[:-1])
        uniforms = torch.rand(size, dtype=logits.dtype, device=logits.device)
        with torch.no_grad():
            return sample_codes(logits, uniforms).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probabilities of codes, in nats; leading dims of `value` are particles."""
        if getattr(value, "_pyro_categorical_support", None) == id(self):
            return super().log_prob(value)  # Pyro's shortcut for enumerated sites
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        logits, _ = split_shared(self._shared, shape, 1)
        return pick_codes(logits, value.long().expand(shape))
