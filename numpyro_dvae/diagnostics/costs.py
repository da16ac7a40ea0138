"""What the data share costs, and all together; and errors beside numbers.

NumPy alone, so this file is the same in both packages.
"""

from typing import NamedTuple

__all__ = ["AT_LEAST", "SHOWN", "SharedCost", "WholeCost", "noise_of"]

AT_LEAST = " at least"  # of an error that few draws, which carry the weight, cannot show
SHOWN = 0.005  # nats: what rounds to 0.00 is not printed


class SharedCost(NamedTuple):
    """What the data share, outside of their plate: a row of its own, in the mean over the draws."""

    sites: tuple[str, ...]
    rate: float  # log q - log p(z), bits
    distortion: float  # -log p(x | z) of what is observed of them, nats
    rate_error: float = 0.0  # standard errors over the draws; NaN of one draw
    distortion_error: float = 0.0

    def __repr__(self) -> str:
        """A line with the numbers."""
        names = ", ".join(f"'{name}'" for name in self.sites)
        return (
            f"What the data share, {names}: rate {self.rate:z.2f} bits{noise_of(self.rate_error)}, "
            f"distortion {self.distortion:z.2f} nats{noise_of(self.distortion_error)}."
        )


class WholeCost(NamedTuple):
    """All data together and what they share, as the loss sums them."""

    rate: float  # bits
    distortion: float  # nats
    elbo: float  # minus the loss: -distortion - rate log 2, nats
    elbo_error: float  # standard error over the draws; NaN of one draw
    is_settled: bool = True  # else the error is at least that: see `errors.are_few`

    def __repr__(self) -> str:
        """A line with the numbers."""
        return (
            f"All together: rate {self.rate:z.2f} bits, distortion {self.distortion:z.2f} nats, "
            f"ELBO {self.elbo:z.2f}{noise_of(self.elbo_error, self.is_settled)}."
        )


def noise_of(error: float, is_settled: bool = True) -> str:
    """A standard error beside its number, unless it rounds to 0 or is not known."""
    least = "" if is_settled else AT_LEAST
    return f" (±{least} {error:.2f})" if error >= SHOWN else ""
