"""A decoder of causes, each of which may switch an entry on by itself: noisy-OR.

Latent h, where it is on, switches entry d on with probability W_hd, and so does a leak, a cause
that is always on; an entry that no cause switches on stays off:

    P(x_d = 1 | s) = N_d(s) = 1 - prod_h (1 - W_hd s_h).

If x_d = 1, cause h has been at work with probability ``W_hd s_h / N_d(s)``, if x_d = 0 not at all.
W_hd is how often h is at work when it is on, so the M-step of expectation maximisation [1] is

    W_hd <- W_hd <s_h x_d / N_d(s)> / <s_h>,

means over data and posterior: it has no learning rate and never lowers the bound. What is kept is
``(<W_hd s_h x_d / N_d(s)>, <s_h>)`` side by side, and W is their quotient: a loss that sees a batch
at a time averages these, and not quotients (see `linear`).

References:
    [1] Vomlel. Noisy-or classifier. International Journal of Intelligent Systems 21(3), 2006.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_dvae.models.closed_forms import (
    ClosedForm,
    Learn,
    check_family,
    check_learn,
    finite_logit,
)
from pyro_dvae.ops.arguments import checked

__all__ = ["NoisyOrDecoder", "chances_of", "solve_uses", "uses_of"]

_RIDGE = 1e-5  # of the mean use of a cause, towards the old weights: what no datum tells stays
_START = 0.01  # the use that the first weights stand for


class NoisyOrDecoder(nn.Module):
    """Logits of binary entries that the latents switch on, each by itself, and a leak.

    Args:
        weights: Probability that a latent switches an entry on, one for each of L latents, where
            they start; all probabilities stay one rounding error away from 0 and 1.
        leak: Probability that an entry is on without any latent, in (0, 1), where it starts.
        learn: True, by gradient; "closed_form", by the fixed point of expectation maximisation for
            a Bernoulli likelihood, see `ClosedForm`; False: they stay.

    Attributes:
        weights: Probability that a latent switches an entry on, ``(L, *shape)``, as it is now.
        leak: Probability that an entry is on without any latent, ``shape``, as it is now.

    Raises:
        ValueError: If an argument is out of its range; under a loss, if the closed form meets
            missing entries, which its means of whole data do not take, or another likelihood.
    """

    @checked
    def __init__(
        self, weights: Float[Tensor, "L *shape"], *, leak: float = 0.01, learn: Learn = True
    ) -> None:
        super().__init__()
        check_learn(learn)
        if not 0.0 < leak < 1.0:
            raise ValueError(f"`leak` must be strictly in (0, 1); got {leak}.")
        if not bool(((weights >= 0) & (weights <= 1)).all()):
            raise ValueError(
                "`weights` are probabilities, in [0, 1]; got some from "
                f"{float(weights.min()):.3g} to {float(weights.max()):.3g}."
            )
        self.shape, self.learn = tuple(weights.shape[1:]), learn
        rows = 1.0 * weights.reshape(len(weights), -1)
        raw = torch.cat([rows, torch.full_like(rows[:1], leak)])
        raw = uses_of(raw) if learn == "closed_form" else finite_logit(raw)
        self.raw = nn.Parameter(raw) if learn is True else nn.Buffer(raw)

    def forward(self, z: Shaped[Tensor, "*batch L"]) -> Float[Tensor, "*batch_event"]:
        """Logits ``(*batch, *shape)`` of latents ``(*batch, L)``."""
        logits = finite_logit(chances_of(self.raw)) if self.learn == "closed_form" else self.raw
        least, greatest = finite_logit(torch.arange(2.0, dtype=logits.dtype)).tolist()
        rates = softplus(logits.clamp(least, greatest))  # exp(-rate): it is not at work
        rate = z.to(rates.dtype) @ rates[:-1] + rates[-1]
        found = rate + torch.log(-torch.expm1(-rate))
        return found.reshape(*z.shape[:-1], *self.shape)

    @property
    def closed_form(self) -> ClosedForm | None:
        """``weights = mean of what is at work / mean of what is on``, where asked for."""
        if self.learn != "closed_form":
            return None
        return ClosedForm(self.raw, self._factors, solve_uses, sees_latents=True)

    @property
    def weights(self) -> Float[Tensor, "L *shape"]:
        """Probability that a latent switches an entry on."""
        return self._chances[:-1].reshape(-1, *self.shape)

    @property
    def leak(self) -> Float[Tensor, "*shape"]:
        """Probability that an entry is on without any latent."""
        return self._chances[-1].reshape(self.shape)

    def extra_repr(self) -> str:
        """Sizes, and how it learns."""
        return f"{len(self.raw) - 1} latents, outputs {self.shape}, learn={self.learn!r}"

    @property
    def _chances(self) -> Tensor:
        return chances_of(self.raw) if self.learn == "closed_form" else self.raw.sigmoid()

    def _factors(self, fn: Any, x: Tensor, latents: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The latents and a 1; and ``x / N`` and a 1."""
        check_family(fn, torch.distributions.Bernoulli, "NoisyOrDecoder", "BernoulliLikelihood")
        z = latents["z"].to(self.raw.dtype)
        told = x / fn.mean
        told = told.reshape(*told.shape[: told.dim() - len(self.shape)], math.prod(self.shape))
        told = told.to(z.dtype)
        both = (torch.cat([each, torch.ones_like(each[..., :1])], -1) for each in (z, told))
        left, right = (each[..., None, :] for each in both)
        return left, right


def uses_of(weights: Float[Tensor, "F D"]) -> Float[Tensor, "F D_and_1"]:
    """How often each cause is at work, and at last is on, that stand for these weights."""
    return _START * torch.cat([weights, torch.ones_like(weights[:, :1])], 1)


def chances_of(uses: Float[Tensor, "F D_and_1"]) -> Float[Tensor, "F D"]:
    """The weights: how often each cause is at work when it is on, not quite 0 or 1.

    Args:
        uses: How often each of F causes is at work at each of D entries, and at last is on.

    Example:
        >>> chances_of(torch.tensor([[0.1, 0.2, 0.4]]))
        tensor([[0.2500, 0.5000]])
    """
    chances, eps = uses[:, :-1] / uses[:, -1:], torch.finfo(uses.dtype).eps
    return chances.clamp(eps, 1.0 - eps)


def solve_uses(
    total: Float[Tensor, "F D_and_1"],
    count: Float[Tensor, "F D_and_1"],
    old: Float[Tensor, "F D_and_1"],
) -> Float[Tensor, "F D_and_1"]:
    """The `solve` of a `ClosedForm` whose parameter is how often causes are at work and are on.

    A small ridge holds to the old weights what the data do not tell, as of a cause that is never
    on; the bound still never falls.
    """
    mean, weights = total / count.clamp(min=1.0), chances_of(old)
    held = _RIDGE * mean[:, -1].mean() / _START * uses_of(weights)
    used = torch.cat([weights * mean[:, :-1], mean[:, -1:]], 1)
    return torch.where(count > 0, used + held, old)
