"""What is returned of the latents: codes in use, activity and rates, and a word on what they mean.

NumPy alone, so this file is the same in both packages.
"""

from typing import Any, NamedTuple

import numpy as np

from pyro_dvae.ops.bounds import NATS_PER_BIT

__all__ = ["ActiveLatents", "CodeUsage", "LatentRates"]

_WEIGHED = (
    " A scale of its own weighs its density in the loss, and so in `rate_distortion` and "
    "`evaluate`: these rates are without."
)
_SURE = 4.0  # standard errors of few draws that no rate is away from its mean by chance


class CodeUsage(NamedTuple):
    """How often the guide draws each code, over the data; of very many codes, those that occur."""

    counts: np.ndarray  # (*latents, num_codes)
    is_open: bool = False  # whether there is no largest code: counts end with the largest drawn
    num_codes: int | None = None  # of the table; None if all are counted
    codes: np.ndarray | None = None  # whose counts these are; None if they are 0, 1, ...
    tables: np.ndarray | None = None  # (*latents,), of which table; None if all share one

    @property
    def has_all_codes(self) -> bool:
        """Whether those that do not occur are among them."""
        return self.counts.shape[-1] == self._size

    @property
    def share_used(self) -> np.ndarray:
        """Share of the codes of each latent that occur at all."""
        return np.asarray((self.counts > 0).sum(-1) / self._size)

    @property
    def mean_share_used(self) -> float:
        """In the mean over the latents that are in use."""
        return float(self.share_used[self.in_use].mean())

    @property
    def perplexity(self) -> np.ndarray:
        """How many equally frequent codes would have the entropy of each latent's."""
        return _perplexity(self.counts)

    @property
    def in_use(self) -> np.ndarray:
        """Which latents are: not masked in all data. All, if none is."""
        found = np.asarray(self.counts.sum(-1) > 0)
        return found if found.any() else ~found

    @property
    def table_share_used(self) -> float:
        """Share of the codes that occur in any latent of a table, in the mean over tables."""
        return float((self._by_table > 0).sum(-1).mean() / self._size)

    @property
    def table_perplexity(self) -> float:
        """The perplexity of the codes of all latents of a table, in the mean over tables."""
        return float(_perplexity(self._by_table).mean())

    @property
    def _size(self) -> int:
        return self.num_codes or self.counts.shape[-1]

    @property
    def _by_table(self) -> np.ndarray:
        counts = self.counts.reshape(-1, self.counts.shape[-1])
        tables = np.zeros(len(counts)) if self.tables is None else self.tables.reshape(-1)
        return np.stack([counts[tables == table].sum(0) for table in np.unique(tables)])

    def _percent(self, share: float) -> str:
        return f"{share:.0%}" if self.has_all_codes else f"{100 * share:.2g}%"

    def __repr__(self) -> str:
        """A line with shares and perplexities; of several latents, of their tables as well."""
        share, perplexity = self.share_used[self.in_use], self.perplexity[self.in_use]
        even = f"perplexity {perplexity.mean():.1f} (least {perplexity.min():.1f})"
        if not self.counts.any():
            return f"All {self.perplexity.size} latents are masked in all data."
        if self.is_open:
            return f"Values up to {self._size - 1} were drawn, of no largest one; {even}."
        mean, least = self._percent(self.mean_share_used), self._percent(share.min())
        masked = self.perplexity.size - perplexity.size
        others = f" {masked} more {'is' if masked == 1 else 'are'} masked in all data."
        line = (
            f"{mean} of {self._size} codes occur in the mean of {perplexity.size} latents "
            f"(least {least}); {even}.{others * bool(masked)}"
        )
        if self.perplexity.size == 1:
            return line
        num_tables = len(self._by_table)
        whose = "All latents" if num_tables == 1 else f"The latents of each of {num_tables} tables"
        return (
            f"{line} {whose} together use {self._percent(self.table_share_used)} of the codes, "
            f"perplexity {self.table_perplexity:.1f}."
        )


class ActiveLatents(NamedTuple):
    """Variance over the data of each latent's mean under the guide."""

    variance: np.ndarray  # (*latents,)
    threshold: float
    error: Any = 0.0  # standard error of the draws, (*latents,)

    @property
    def active(self) -> np.ndarray:
        """Which latents follow the data: surely, whatever the draws are."""
        return np.asarray(self.variance - self._margin > self.threshold)

    @property
    def undecided(self) -> np.ndarray:
        """Which latents may follow the data or not, as far as the draws can tell."""
        return np.asarray((self.variance + self._margin > self.threshold) & ~self.active)

    @property
    def _margin(self) -> np.ndarray:
        return np.asarray(_SURE * self.error)

    def __repr__(self) -> str:
        """A line with the number of active latents."""
        active, unclear = self.active, _unclear("be", self.undecided)
        return f"{active.sum()} of {active.size} latents are active{unclear}."


class LatentRates(NamedTuple):
    """Nats that each latent carries, in the mean over the data."""

    rate: np.ndarray  # (*latents,), nats
    threshold: float
    error: Any = 0.0  # standard error of the draws, (*latents,); NaN if there is one draw only
    share: Any = 1.0  # of the data in which no mask silences the latent; else its rate is 0
    reordered: bool = False  # whether the guide draws it before others on which it may depend in
    # the model: its rate is a part of their sum, and no KL
    weighed: bool = False  # whether a scale of its own weighs its density, which these leave out

    @property
    def collapsed(self) -> np.ndarray:
        """Which latents follow the prior whatever the data: surely, whatever the draws are."""
        return np.asarray((self.rate + self._margin < self._least) & (not self.reordered))

    @property
    def undecided(self) -> np.ndarray:
        """Which latents may have collapsed or not, as far as the draws can tell."""
        unclear = np.abs(self.rate - self._least) <= self._margin
        return np.asarray(unclear & (self._least > 0) & (not self.reordered))

    @property
    def _least(self) -> np.ndarray:
        return np.asarray(self.threshold * self.share)

    @property
    def _margin(self) -> np.ndarray:
        return np.asarray(_SURE * np.nan_to_num(self.error, nan=np.inf))

    def __repr__(self) -> str:
        """A line with the rates."""
        bits, error = np.asarray(self.rate, float), float(np.max(self.error))
        bits, error = bits / NATS_PER_BIT, error / NATS_PER_BIT
        unclear = _unclear("have", self.undecided)
        noise = f" (± {error:.2g} at most)" * bool(error > 1e-6)  # less is of rounding
        collapse = f"{self.collapsed.sum()} of {bits.size} latents have collapsed{unclear}"
        if bits.size == 1:  # of one latent, or of several that have no rates of their own
            maybe = (
                "may have collapsed (more draws tell)" if self.undecided else "has not collapsed"
            )
            collapse = f"As a whole, it {'has collapsed' if self.collapsed else maybe}"
        if self.reordered:
            collapse = (
                "The guide draws this before latents that come before it in the model, so that its "
                "rate is a part of the sum over all sites alone, and tells no collapse"
            )
        return (
            f"{collapse}; rates from {bits.min():z.2f} to {bits.max():z.2f} bits{noise}, "
            f"{bits.sum():z.2f} together."
            f"{_WEIGHED * self.weighed}"
        )


def _unclear(verb: str, undecided: np.ndarray) -> str:
    return f", {undecided.sum()} may {verb} (more draws tell)" if undecided.any() else ""


def _perplexity(counts: np.ndarray) -> np.ndarray:
    """How many equally frequent codes would have the entropy of these, over the last axis."""
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(np.exp(-(shares * logs).sum(-1)))
