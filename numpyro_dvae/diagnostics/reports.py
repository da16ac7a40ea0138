"""What the diagnostics return: NumPy arrays with names, and a word on what they mean.

NumPy alone, so this file is the same in both packages. Arrays "per datum" have the shape of the
plates that the discrete latents share: ``(N,)`` for a data plate, ``()`` for a global latent.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

__all__ = [
    "ActiveLatents",
    "Calibration",
    "CodeUsage",
    "GradientQuality",
    "ImportanceDiagnostics",
    "LatentRates",
    "PosteriorGap",
    "RateDistortion",
    "gradient_quality",
]

_CLOSE = np.log(2)  # nats of divergence, either way, of a guide that is called close
_DOMINATES = 0.2  # share of all weight that one draw may have

_NO_TAIL = (
    "; the others have fewer than 5 distinct weights in the tail, so that the effective sample "
    "size and the largest weight count"
)
_VERDICTS = {
    "close": "close to the posterior, as far as the draws can show",
    "off": "off, though weighting the draws corrects for it",
    "unreliable": "unreliable, a few draws carrying the weight: bound and weights are not settled",
    "one state": "undecided, as the guide drew one state only and cannot show what it misses",
    "restricted": "undecided, the weights being even on a set of states beyond which the guide "
    "cannot draw",
    "broken": "broken, no draw being possible under the model (or a NaN)",
}


class ImportanceDiagnostics(NamedTuple):
    """How near the guide is to the posterior of each datum, by the weights p / q of K draws.

    `print` it for a paragraph with a verdict. `verdicts` has one word per datum:

    - "close": ``log(K / ESS)``, the divergence of order 2 from posterior to guide, and
      ``iwae - elbo``, at most KL(q ‖ posterior), are both below log 2;
    - "off": not both, but the tail of the weights is light, so that reweighting works;
    - "unreliable": k̂ is above the threshold, or one draw has over a fifth of the weight;
    - "restricted": as "close", but the guide leaves out states of the model; that the weights are
      equal on the others is what a truncated posterior is made for, and says nothing;
    - "one state": all draws are equal; a guide stuck there and a sure posterior look alike;
    - "broken": no draw is possible under the model, or there is a NaN.

    A mode that the guide never draws does not show in its weights; `simulation_based_calibration`
    and, where it can be had, `posterior_gap` find it.
    """

    elbo: np.ndarray  # mean log weight, nats
    iwae: np.ndarray  # log mean weight: the importance-weighted bound of K draws, nats
    ess: np.ndarray  # effective sample size, in [1, K]
    khat: np.ndarray  # shape of the weights' tail; NaN where not applicable
    largest_weight: np.ndarray  # share of the largest, in [1 / K, 1]
    num_tail_weights: np.ndarray  # distinct weights in the tail; below 5, k̂ is not applicable
    num_states: np.ndarray  # distinct states that were drawn; K if no two count as equal, as of
    # continuous latents, or of a truncated guide
    restricted: np.ndarray  # whether the guide cannot draw some states that the model can
    num_particles: int  # K
    khat_threshold: float

    @property
    def verdicts(self) -> np.ndarray:
        """One word for each datum."""
        with np.errstate(invalid="ignore"):  # of a broken datum
            apart = np.maximum(np.log(self.num_particles / self.ess), self.iwae - self.elbo)
        conditions = [
            ~np.isfinite(self.ess),
            self.num_states == 1,
            (self.khat > self.khat_threshold) | (self.largest_weight > _DOMINATES),
            apart > _CLOSE,
            self.restricted,
        ]
        words = ["broken", "one state", "unreliable", "off", "restricted"]
        return np.select(conditions, words, "close")

    def __str__(self) -> str:
        """A paragraph: bounds, effective sample size, k̂, verdict."""
        with np.errstate(invalid="ignore"):  # a datum that cannot be has -inf for both
            gap = (self.iwae - self.elbo).mean()
        return (
            f"{self.ess.size} data, {self.num_particles} draws each. ELBO {self.elbo.mean():.2f}, "
            f"importance-weighted bound {self.iwae.mean():.2f} nats per datum: the guide misses at "
            f"least {gap:.2f}. {self._worth()}{self._tails()} Verdict: {self._counts()}."
        )

    def _worth(self) -> str:
        fraction = self.ess[np.isfinite(self.ess)] / self.num_particles
        if not fraction.size:
            return ""
        low, middle = np.quantile(fraction, [0.05, 0.5])
        return (
            f"The draws are worth {middle:.0%} of as many exact ones (median; 5 % quantile "
            f"{low:.0%}). "
        )

    def _tails(self) -> str:
        khat = self.khat[np.isfinite(self.khat)]
        median = f"median {np.median(khat):.2f}, " if khat.size else ""
        high = (khat > self.khat_threshold).sum()
        rest = "" if khat.size == self.khat.size else _NO_TAIL
        return (
            f"k̂ applies to {khat.size} data ({median}{high} above {self.khat_threshold:.2f}){rest}."
        )

    def _counts(self) -> str:
        verdicts = self.verdicts
        counts = {word: int((verdicts == word).sum()) for word in _VERDICTS}
        return "; ".join(f"{n} {_VERDICTS[word]}" for word, n in counts.items() if n)


class CodeUsage(NamedTuple):
    """How often the guide draws each code, over the data."""

    counts: np.ndarray  # (*latents, num_codes)

    @property
    def share_used(self) -> np.ndarray:
        """Share of the codes of each latent that occur at all."""
        return np.asarray((self.counts > 0).mean(-1))

    @property
    def perplexity(self) -> np.ndarray:
        """How many equally frequent codes would have the entropy of each latent's."""
        shares = self.counts / self.counts.sum(-1, keepdims=True)
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        return np.asarray(np.exp(-(shares * logs).sum(-1)))

    def __str__(self) -> str:
        """A line with shares and perplexities."""
        return (
            f"{self.share_used.mean():.0%} of {self.counts.shape[-1]} codes occur in the mean of "
            f"{self.perplexity.size} latents (least {self.share_used.min():.0%}); perplexity "
            f"{self.perplexity.mean():.1f} (least {self.perplexity.min():.1f})."
        )


class ActiveLatents(NamedTuple):
    """Variance over the data of each latent's mean under the guide."""

    variance: np.ndarray  # (*latents,)
    threshold: float

    @property
    def active(self) -> np.ndarray:
        """Which latents follow the data."""
        return np.asarray(self.variance > self.threshold)

    def __str__(self) -> str:
        """A line with the number of active latents."""
        return f"{self.active.sum()} of {self.active.size} latents are active."


class LatentRates(NamedTuple):
    """Nats that each latent carries, in the mean over the data."""

    rate: np.ndarray  # (*latents,), nats
    threshold: float

    @property
    def collapsed(self) -> np.ndarray:
        """Which latents follow the prior whatever the data."""
        return np.asarray(self.rate < self.threshold)

    def __str__(self) -> str:
        """A line with the rates."""
        bits = self.rate / np.log(2)
        return (
            f"{self.collapsed.sum()} of {bits.size} latents have collapsed; rates from "
            f"{bits.min():.2f} to {bits.max():.2f} bits, {bits.sum():.2f} together."
        )


class RateDistortion(NamedTuple):
    """What the latents of each datum cost, and what they leave out."""

    rate: np.ndarray  # log q - log p(z), bits
    distortion: np.ndarray  # -log p(x | z), nats
    mse: np.ndarray  # of the mean of p(x | z)
    psnr: np.ndarray  # of each datum's reconstructions, decibels

    def __str__(self) -> str:
        """A line with the means."""
        return (
            f"Rate {self.rate.mean():.2f} bits, distortion {self.distortion.mean():.2f} nats, MSE "
            f"{self.mse.mean():.4g}, PSNR {self.psnr.mean():.2f} dB per datum."
        )


class PosteriorGap(NamedTuple):
    """The guide against the exact posterior of each datum."""

    log_evidence: np.ndarray  # log p(x), nats
    elbo: np.ndarray  # nats
    gap: np.ndarray  # KL(q ‖ posterior), nats
    support_mass: np.ndarray  # posterior mass of the states that the guide can draw, in [0, 1]

    def __str__(self) -> str:
        """A line with the means."""
        return (
            f"Log evidence {self.log_evidence.mean():.3f}, ELBO {self.elbo.mean():.3f}, gap "
            f"{self.gap.mean():.3f} nats per datum (largest {self.gap.max():.3f}); the guide can "
            f"draw {self.support_mass.mean():.1%} of the posterior."
        )


class GradientQuality(NamedTuple):
    """The gradients of losses at the same parameters: means, noise, and whether they agree."""

    losses: tuple[str, ...]
    signal: np.ndarray  # length of the mean gradient, of each loss
    noise: np.ndarray  # square root of the trace of its covariance
    cosine: np.ndarray  # between the mean gradients of each two losses
    variance: dict[str, np.ndarray]  # parameter -> its share of the trace, of each loss
    num_repeats: int

    @property
    def snr(self) -> np.ndarray:
        """Signal-to-noise ratio of one gradient of each loss; infinite for an exact one."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.signal / self.noise

    def __str__(self) -> str:
        """A table with a line for each loss."""
        width = max(12, *(len(name) + 2 for name in self.losses))
        columns = ("signal", "noise", "snr", *(f"cos {name}" for name in self.losses))
        lines = [" " * width + "".join(f"{column:>{width + 4}}" for column in columns)]
        for i, name in enumerate(self.losses):
            cells = (self.signal[i], self.noise[i], self.snr[i], *self.cosine[i])
            lines.append(f"{name:<{width}}" + "".join(f"{cell:>{width + 4}.4g}" for cell in cells))
        return "\n".join(lines)


def gradient_quality(
    moments: Mapping[str, Mapping[str, tuple[np.ndarray, float]]], num_repeats: int
) -> GradientQuality:
    """Sum up gradients: loss -> parameter -> (mean gradient, trace of its covariance)."""
    names = sorted({name for each in moments.values() for name in each})
    if not names:
        raise ValueError("`select` leaves no parameter: check the names it is asked for.")
    means = [
        np.concatenate([np.ravel(each[name][0]) for name in names]) for each in moments.values()
    ]
    variance = {name: np.array([each[name][1] for each in moments.values()]) for name in names}
    trace = np.sum(list(variance.values()), axis=0)
    products = np.array([[first @ second for second in means] for first in means])
    signal = np.sqrt(np.maximum(np.diag(products) - trace / num_repeats, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):  # no signal, no direction
        cosine = products / np.outer(signal, signal)
    np.fill_diagonal(cosine, np.where(signal > 0, 1.0, np.nan))
    cosine = np.clip(cosine, -1.0, 1.0)
    return GradientQuality(tuple(moments), signal, np.sqrt(trace), cosine, variance, num_repeats)


class Calibration(NamedTuple):
    """Ranks of true latents among the draws of the guide, and whether they are uniform."""

    ranks: dict[str, np.ndarray]  # site, or "log_p" -> (simulated data, *latents), in 0 ... K
    p_values: dict[str, np.ndarray]  # of the chi-square test, of each latent
    num_draws: int  # K
    num_bins: int

    def counts(self, name: str) -> np.ndarray:
        """Ranks in each bin, of each latent: (*latents, num_bins)."""
        bins = self.ranks[name] // ((self.num_draws + 1) // self.num_bins)
        return np.stack([(bins == i).sum(0) for i in range(self.num_bins)], axis=-1)

    @property
    def miscalibrated(self) -> list[str]:
        """Sites, or "log_p", with a p-value below 1 % shared by all tests."""
        level = 0.01 / sum(np.size(values) for values in self.p_values.values())
        return sorted(name for name, values in self.p_values.items() if np.min(values) < level)

    def __str__(self) -> str:
        """A line with the verdict."""
        smallest = min(float(np.min(values)) for values in self.p_values.values())
        wrong = ", ".join(self.miscalibrated)
        verdict = f"NOT calibrated: {wrong}" if wrong else "calibrated, as far as they can tell"
        return (
            f"{len(self.ranks['log_p'])} simulated data, ranks among {self.num_draws} draws: "
            f"{verdict} (smallest p-value {smallest:.2g})."
        )
