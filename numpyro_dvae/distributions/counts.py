"""A count with any probabilities: what a guide needs for the latents of a Poisson or a Binomial."""

from numpyro_dvae.distributions.codes import Categorical

__all__ = ["Counts"]


class Counts(Categorical):
    """A number from 0 to V - 1, an integer, as NumPyro's distributions of counts have it.

    Args:
        probs: Probabilities of the numbers, ``(*batch, V)``.
        logits: Or their unnormalised logarithms; -inf rules a number out.
        validate_args: Whether to check arguments and values; None is NumPyro's own setting.
    """
