"""How near the guide is to the posterior of each datum, in words.

NumPy alone, so this file is the same in both packages.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["ImportanceDiagnostics"]

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
        others = "" if khat.size == self.khat.size else _NO_TAIL
        threshold = f"{self.khat_threshold:.2f}"
        return f"k̂ applies to {khat.size} data ({median}{high} above {threshold}){others}."

    def _counts(self) -> str:
        verdicts = self.verdicts
        counts = {word: int((verdicts == word).sum()) for word in _VERDICTS}
        return "; ".join(f"{n} {_VERDICTS[word]}" for word, n in counts.items() if n)
