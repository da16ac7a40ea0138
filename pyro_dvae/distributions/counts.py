"""A count with any probabilities: what a guide needs for the latents of a Poisson or a Binomial."""

from collections.abc import Sequence

from torch import Tensor

from pyro_dvae.distributions.codes import Categorical

__all__ = ["Counts"]


class Counts(Categorical):
    """A number from 0 to V - 1, in the dtype in which Pyro's distributions of counts have it.

    Args:
        probs: Probabilities of the numbers, ``(*batch, V)``.
        logits: Or their unnormalised logarithms; -inf rules a number out.
        validate_args: Whether to check arguments and values; None is Pyro's own setting.
    """

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Numbers of shape ``sample_shape + batch_shape``, from one uniform each."""
        return super().sample(sample_shape).to(self.logits.dtype)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The V numbers, on a new leftmost dim."""
        return super().enumerate_support(expand).to(self.logits.dtype)
