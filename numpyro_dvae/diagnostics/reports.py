"""What the diagnostics return: NumPy arrays with names, and a word on what they mean.

NumPy alone, so this file is the same in both packages. Arrays "per datum" have the shape of the
plates that the discrete latents share: ``(N,)`` for a data plate, ``()`` for a global latent.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["ImportanceDiagnostics"]

_CLOSE = 0.5  # effective sample size, as a fraction of K, of a guide that is called close
_DOMINATES = 0.2  # share of all weight that one draw may have

_VERDICTS = {
    "close": "close to the posterior",
    "off": "off, though weighting the draws corrects for it",
    "unreliable": "unreliable, a few draws carrying the weight: bound and weights are not settled",
    "one state": "undecided, as the guide drew one state only and cannot show what it misses",
    "broken": "broken, no draw being possible under the model (or a NaN)",
}


class ImportanceDiagnostics(NamedTuple):
    """How near the guide is to the posterior of each datum, by the weights p / q of K draws.

    `print` it for a paragraph with a verdict. `verdicts` has one per datum: "close" (ESS at least
    half of K), "off" (less, but the weights' tail is light: reweighting works), "unreliable" (k̂
    above the threshold, or one draw with over a fifth of the weight), "one state" (all draws
    equal: the weights of a guide stuck there and of a sure posterior look alike), "broken".
    """

    elbo: np.ndarray  # mean log weight, nats
    iwae: np.ndarray  # log mean weight: the importance-weighted bound of K draws, nats
    ess: np.ndarray  # effective sample size, in [1, K]
    khat: np.ndarray  # shape of the weights' tail; NaN where not applicable
    largest_weight: np.ndarray  # share of the largest, in [1 / K, 1]
    num_tail_weights: np.ndarray  # distinct weights in the tail; below 5, k̂ is not applicable
    num_states: np.ndarray  # distinct states of the discrete latents that were drawn
    num_particles: int  # K
    khat_threshold: float

    @property
    def verdicts(self) -> np.ndarray:
        """One word for each datum."""
        conditions = [
            ~np.isfinite(self.ess),
            self.num_states == 1,
            (self.khat > self.khat_threshold) | (self.largest_weight > _DOMINATES),
            self.ess < _CLOSE * self.num_particles,
        ]
        return np.select(conditions, ["broken", "one state", "unreliable", "off"], "close")

    def __str__(self) -> str:
        """A paragraph: bounds, effective sample size, k̂, verdict."""
        num_data, fraction = self.ess.size, self.ess / self.num_particles
        applies = np.isfinite(self.khat)
        high = (self.khat[applies] > self.khat_threshold).sum() if applies.any() else 0
        with np.errstate(invalid="ignore"):  # a datum that cannot be has -inf for both
            gap = (self.iwae - self.elbo).mean()
        lines = [
            f"{num_data} data, {self.num_particles} draws each. ELBO {self.elbo.mean():.2f}, "
            f"importance-weighted bound {self.iwae.mean():.2f} nats per datum: the guide misses at "
            f"least {gap:.2f}.",
            f"The draws are worth {np.nanmedian(fraction):.0%} of as many exact ones (median; "
            f"5 % quantile {np.nanquantile(fraction, 0.05):.0%})."
            if np.isfinite(fraction).any()
            else "",
            f"k̂ applies to {applies.sum()} data"
            + (f" (median {np.median(self.khat[applies]):.2f}, " if applies.any() else " (")
            + f"{high} above {self.khat_threshold:.2f}); the others have fewer than 5 distinct "
            "weights in the tail, so that the effective sample size and the largest weight count.",
            f"Verdict: {self._counts()}.",
        ]
        return " ".join(filter(None, lines))

    def _counts(self) -> str:
        verdicts = self.verdicts
        counts = {word: int((verdicts == word).sum()) for word in _VERDICTS}
        return "; ".join(f"{n} {_VERDICTS[word]}" for word, n in counts.items() if n)
