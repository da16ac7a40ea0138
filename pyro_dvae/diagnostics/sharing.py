"""The guide of what the data share, judged by weights from which the data's latents are summed out.

The sums are estimates, of draws of each datum's latents, and their noise makes weights uneven that
are even, and bounds that are apart of an exact guide: by about V / 2, if V is the variance that
noise has in a log weight, and their effective sample size smaller by ``exp(V)``. By the delta
method V is the sum over the data of 1 / ESS - 1 / K, which is too small where weights have heavy
tails. Two halves of the draws have noise of their own: what they agree on is none.

NumPy alone, so but for the package's name this file is the same in both packages.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from pyro_dvae.diagnostics.costs import SHOWN
from pyro_dvae.diagnostics.errors import is_unsettled
from pyro_dvae.diagnostics.notes import listed
from pyro_dvae.diagnostics.words import CLOSE, if_shown, of_shared, told_apart

__all__ = ["SharedDiagnostics", "agreed_part"]

_LEAST_NOISE = 1e-3  # variance of log weights that no verdict hangs on
_MOST_NOISE = 2.5  # times what the delta method tells, that noise is where tails are heavy
_WARNED = ("off", "unreliable", "point", "broken")
_WITH_DRAWS = {  # what groups of ArviZ have of these draws
    "posterior": "`posterior`",
    "log_likelihood": "`marginal`, which `arviz.loo` and `arviz.compare` take,",
}
_MOST, _HALF = 0.9, 0.5  # parts of the spread that halves agree on


class SharedDiagnostics(NamedTuple):
    """The guide of what the data share, by weights from which each datum's latents are summed out.

    The weight of a draw of the shared sites is p / q of these, times the importance-weighted
    estimate of each datum's evidence given the draw.
    """

    sites: tuple[str, ...]
    elbo: float  # mean of log p - log q of these sites alone, nats
    elbo_error: float = 0.0
    gap: float = 0.0  # log mean weight less mean log weight, nats: at most KL(q ‖ posterior), but
    # for the noise of the estimates
    ess: float = 1.0  # effective sample size, in [1, num_draws]
    khat: float = np.nan  # shape of the weights' tail; NaN where not applicable
    largest_weight: float = 0.0
    num_draws: int = 1  # 1 if nothing is drawn, as the sites are observed
    khat_threshold: float = np.nan
    points: tuple[str, ...] = ()  # of the sites, those of which the guide has one point
    gap_error: float = 0.0
    noise: float = 0.0  # V, nats: half of it is in the gap; more where weights have heavy tails
    agreed: float = 1.0  # part of the variance of log weights that is no noise, as halves tell

    @property
    def verdict(self) -> str:
        """One word, as of a datum; "noisy" if that may be of the noise, and of no misfit."""
        apart = np.maximum(np.log(self.num_draws / self.ess), self.gap)
        share = self.ess / self.num_draws
        unreliable = is_unsettled(self.khat, self.khat_threshold, self.largest_weight, share)
        noisy = (unreliable | (apart > CLOSE)) & self._may_be_noise
        conditions = [not np.isfinite(self.ess), bool(self.points), noisy, unreliable]
        words = ["broken", "point", "noisy", "unreliable", "off"]
        return str(np.select([*conditions, apart > CLOSE], words, "close"))

    def warning_in(self, groups: Collection[str]) -> str:
        """What to say where draws in such groups stand for the posterior's that are not."""
        found = [name for group, name in _WITH_DRAWS.items() if group in groups]
        if self.num_draws == 1 or self.verdict not in _WARNED or not found:
            return ""
        return (
            f"{', and '.join(found)} {'have' if len(found) > 1 else 'has'} the guide's draws of "
            f"{listed(self.sites)} as if they were the posterior's: means, `sd` and `hdi` are the "
            f"guide's. Verdict on these: {self._words}. No R-hat and no k̂ of ArviZ shows that."
        )

    @property
    def _words(self) -> str:
        no = np.array(False)
        return of_shared(str(told_apart(np.array(self.verdict), np.array(self.ess), no, no)))

    @property
    def _may_be_noise(self) -> bool:
        if not self.noise > _LEAST_NOISE or self.agreed >= _MOST:
            return False
        most = _MOST_NOISE * self.noise
        rest = np.maximum(np.log(self.num_draws / self.ess) - most, self.gap - most / 2)
        return not (self.agreed >= _HALF and rest > CLOSE)

    def __repr__(self) -> str:
        """A sentence with numbers and verdict."""
        names = listed(self.sites)
        if self.num_draws == 1:
            return f"What the data share, {names}, is observed: log p is {self.elbo:z.2f} nats."
        if self.points == self.sites:
            return (
                f"What the data share, {names}, has one point in the guide: log p - log q is "
                f"{self.elbo:z.2f} nats. Verdict: {self._words}."
            )
        if self.verdict == "broken":
            return (
                f"What the data share, {names}: log p - log q is {self.elbo:z.2f} nats. Verdict: "
                f"{self._words}."
            )
        error = if_shown(self.gap_error, self.verdict not in ("unreliable", "noisy"))
        misses = f"the guide misses at least {self.gap:z.2f}{error} nats"
        if self.noise / 2 >= SHOWN:
            misses = (
                f"log mean weight and mean log weight are {self.gap:z.2f}{error} nats apart, about "
                f"{self.noise / 2:.2f} of it by the noise of these sums"
            )
        return (
            f"What the data share, {names}: log p - log q is {self.elbo:z.2f} ± "
            f"{self.elbo_error:.2f} nats; the latents of the data summed out, {self.num_draws} "
            f"draws are worth {self.ess:.1f}, and {misses}. Verdict: {self._words}."
        )


def agreed_part(whole: np.ndarray, halves: np.ndarray) -> float:
    """The part of the variance of log weights that two estimates agree on, of separate draws.

    Args:
        whole: Log weights of all draws, ``(S,)``.
        halves: Those of each half of them, ``(2, S)``.
    """
    spread = whole.var(ddof=1)
    return float(np.cov(halves)[0, 1] / spread) if spread > 0 else 1.0
