"""A guide that holds, for every datum, the states on which its truncated posterior lives [1].

Datum n owns a set of S distinct joint states of its discrete latents. The posterior is the exact
one restricted to the set,

    q_n(z) = p(x_n, z) / sum over z' in the set of p(x_n, z'),   0 elsewhere,

so that nothing is amortised and nothing is sampled to learn it: `Truncated_ELBO` improves the sets,
and the weights follow from the model as it stands. A set is kept as packed words, N x S x W of 32
bits. Its members' log joints are never kept, as they are stale once a parameter has moved.

`TruncatedGuide` is an ordinary guide: called, it samples each discrete site from q_n. Which rows a
minibatch touches it reads off the model's own data plate.

References:
    [1] Drefs, Guiraud, Panagiotou & Lücke. Direct evolutionary optimization of variational
        autoencoders with binary latents. ECML PKDD, 2022. arXiv 2011.13704.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["TruncatedGuide", "TruncatedPosterior", "draws_of"]


class TruncatedPosterior(NamedTuple):
    """The states of each datum of a minibatch, and their probabilities."""

    values: dict[str, Tensor]  # discrete site -> (S, *batch, *event)
    weights: Float[Tensor, "S *plates"]  # q_n, sums to 1 over axis 0; 0 for a repeated state


class TruncatedGuide(nn.Module):
    """A posterior truncated to S states per datum, for any model of finite discrete latents.

    Args:
        model: The model; its parameters are read, never owned.
        num_states: S, distinct states per datum.
        rest: A guide for the model's other latents, global or continuous, reparameterised. Given
            their values, each datum has its q_n.
        num_data: N; read off the model's data plate at the first call if left out.
        probs: Probabilities with which the first states are drawn: of the 1s of each binary latent
            (one number or one per latent). Default: the model's prior.

    Attributes:
        words: The packed states ``(N, S, W)``, a buffer; None before the first call.

    Raises:
        ValueError: On the first call, if S exceeds the number of joint states of a datum, if a
            discrete site is global or has no finite support, or if neither it nor `rest` samples a
            continuous site. On any, if the plates' sizes are not those of the sets.
    """

    words: Int[Tensor, "N S W"] | None

    def __init__(
        self,
        model: Callable,
        num_states: int = 64,
        *,
        rest: Callable | None = None,
        num_data: int | None = None,
        probs: float | Float[Tensor, "H"] | None = None,
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every latent site, the discrete ones from q_n; returns their values by name."""
        raise NotImplementedError

    def posterior(self, *args: Any, **kwargs: Any) -> TruncatedPosterior:
        """The states of the data in `args` and their probabilities, without gradient."""
        raise NotImplementedError

    def for_data(
        self,
        *args: Any,
        num_sweeps: int = 10,
        evolve: Callable | None = None,
        proposals: Callable | None = None,
        **kwargs: Any,
    ) -> "TruncatedGuide":
        """A guide for other data of the same model, which stays as it is.

        Args:
            *args: Arguments of the model, all of the new data at once.
            num_sweeps: E-steps to evolve the new sets by.
            evolve: As in `Truncated_ELBO`.
            proposals: An amortised guide, with the model's arguments. Its draws are the first
                states; without it, they are states of these sets, at random.
            **kwargs: Keyword arguments of the model.
        """
        raise NotImplementedError


def draws_of(guide: Callable, num_draws: int) -> Callable:
    """An operator for `evolve`: children are `num_draws` draws from an amortised guide.

    The guide is called with the model's arguments, without gradient; it must sample all discrete
    sites of a datum. Combine it with others by `ops.states.union`.
    """
    raise NotImplementedError
