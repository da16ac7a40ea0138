"""Truncated posteriors optimised by evolution [1, 2], for any model with finite discrete latents.

With q_n the exact posterior restricted to a set of S states (see `TruncatedGuide`), the bound is

    ELBO = sum_n log sum over z in set n of p(x_n, z),    gap_n = -log p(z in set n | x_n):

no encoder, no sampled gradient, no relaxation. E-step, without gradient: propose children of the
states in a set, score them under the model, keep the S best distinct ones; so the bound never
falls. M-step: the gradient of the bound, plain automatic differentiation through the logsumexp.

With a weight beta on the rate, the best q_n on a set is ``∝ p(x|z)^(1/beta) p(z)`` and the
beta-ELBO ``beta log sum p(x|z)^(1/beta) p(z)``, which the E- and M-step then raise; the reported
loss stays minus the ELBO of that q_n.

A site whose parameter has a closed form says so in ``infer={"closed_form": ...}`` (see
`models.ClosedForm`); its statistics come from the pass that makes the bound, and the parameter is
set whenever N data have been seen. Missing entries (masks) leave the bound and the statistics.

References:
    [1] Drefs, Guiraud, Panagiotou & Lücke. Direct evolutionary optimization of variational
        autoencoders with binary latents. ECML PKDD, 2022. arXiv 2011.13704.
    [2] Drefs, Guiraud & Lücke. Evolutionary variational optimization of generative models. JMLR
        23(21), 2022.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from pyro_dvae.infer.elbo import BetaState, ParticleELBO

__all__ = ["TruncatedInfo", "TruncatedState", "Truncated_ELBO"]


class TruncatedState(NamedTuple):
    """Step and beta, and what the closed forms have gathered since their last update."""

    beta: BetaState
    totals: dict[str, Tensor]  # site -> sum over data of q's mean statistic, one datum's shape
    counts: dict[str, Tensor]  # site -> how many observed entries are in it
    rows: int  # data seen


class TruncatedInfo(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Tensor, ""]  # nats
    beta_elbo: Float[Tensor, ""]  # nats
    rate: Float[Tensor, ""]  # bits that the latents carry
    beta: float | Tensor
    ess: Float[Tensor, ""]  # effective number of states, 1 / sum q_n^2, in [1, S]
    replaced: Float[Tensor, ""]  # fraction of a set that the E-step has replaced


class Truncated_ELBO(ParticleELBO):
    """Evolve the sets of a `TruncatedGuide`, then ascend the bound that they make.

    Evaluation without gradient leaves the sets as they are.

    Args:
        evolve: Makes children of a population of states, built from `ops.states`; the default is
            ``chain(select(10), flip(9))``, fewer parents where S < 10.
        generations: Rounds of children in a sweep, each from the children of the one before.
        sweeps: E-steps per step, a number or a schedule ``step -> number``; 0 leaves the sets.
        closed_form: Whether to make the updates that sites ask for, or a schedule.
        **options: `beta`, `target_rate`, `max_plate_nesting` and `vectorize_particles`, see
            `ParticleELBO`. Without `vectorize_particles` one state is scored after another.

    Raises:
        ValueError: If an argument is out of range, or the guide is no `TruncatedGuide`.
    """

    def __init__(
        self,
        evolve: Callable | None = None,
        *,
        generations: int = 1,
        sweeps: int | Callable[[int], int] = 1,
        closed_form: bool | Callable[[int], bool] = True,
        **options: Any,
    ) -> None:
        raise NotImplementedError
