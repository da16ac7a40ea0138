"""How near the guide is to the posterior of each datum, and of what the data share, in words.

NumPy alone, so but for the package's name this file is the same in both packages.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from numpyro_dvae.diagnostics.costs import AT_LEAST, SHOWN
from numpyro_dvae.diagnostics.errors import are_few, is_unsettled
from numpyro_dvae.diagnostics.expectations import WeightedDraws
from numpyro_dvae.diagnostics.notes import NO_BOUND, notes_in
from numpyro_dvae.diagnostics.sharing import SharedDiagnostics
from numpyro_dvae.diagnostics.words import (
    CLOSE,
    NO_TAIL,
    NOT_EVIDENCE,
    if_shown,
    in_words,
    lines_of,
    told_apart,
    with_error,
)

__all__ = [
    "Given",
    "ImportanceDiagnostics",
    "MeanErrors",
    "SharedDiagnostics",
    "WholeBounds",
]


class WholeBounds(NamedTuple):
    """Bounds on the evidence of all data together, with what they share, as the loss sums them."""

    elbo: float  # minus the loss, nats
    elbo_error: float  # standard error; at least that, unless it is settled
    iwae: float  # importance-weighted bound, nats
    iwae_error: float  # at least that, unless it is settled
    is_settled: bool = True  # whether the weights are such that draws show the error of the bound,
    # and no datum drew few states of more
    is_elbo_settled: bool = True  # whether draws show that of the ELBO: not where a datum drew few
    # states of more that the guide can draw

    def __repr__(self) -> str:
        """Both bounds."""
        least, of_elbo = ("" if it else AT_LEAST for it in (self.is_settled, self.is_elbo_settled))
        return (
            f"ELBO {self.elbo:z.2f}{with_error(self.elbo_error, of_elbo)}, importance-weighted "
            f"bound {self.iwae:z.2f}{with_error(self.iwae_error, least)} nats"
        )


class MeanErrors(NamedTuple):
    """Standard errors over the draws of means over the data, which may share draws."""

    elbo: float
    iwae: float
    gap: float  # of iwae - elbo


class Given(NamedTuple):
    """Bounds of each datum that its own weights make, given draws of what the data share.

    Their difference is what the guide misses of a datum, at least.
    """

    elbo: np.ndarray  # mean log weight, nats; of weights for the evidence
    iwae: np.ndarray  # log mean weight, nats
    error: float = np.nan  # standard error of their difference in the mean over the data
    halves: Any = None  # `iwae` of two halves of the draws, ``(2, ...)``, where these are asked for


class ImportanceDiagnostics(NamedTuple):
    """How near the guide is to the posterior of each datum, by the weights p / q of K draws.

    `print` it for numbers, and what was found, the worst first. `verdicts` has one word per datum:

    - "close": ``log(K / ESS)``, the divergence of order 2 from posterior to guide, and
      ``iwae - elbo``, at most KL(q ‖ posterior), are both below log 2;
    - "off": not both, but the tail of the weights is light; from an effective sample size of 100
      on, weighting the draws corrects for it, on the states that the guide draws at all often;
    - "unreliable": k̂ is above the threshold, and the draws are worth less than nine tenths of as
      many exact ones, or one draw has over a fifth of the weight;
    - "restricted": as "close", but the guide leaves out states of the model; that the weights are
      equal on the others is what a truncated posterior is made for, and says nothing;
    - "one state": all draws are equal, though there are other states; a guide stuck there and a
      sure posterior look alike. A latent of one value alone is "close";
    - "point": the guide has one point of a continuous latent, as a maximum a posteriori guide has;
      bounds are then on the log-density of the data and the point together, not on the evidence;
    - "broken": no draw is possible under the model, or there is a NaN.

    A mode that the guide hardly ever draws does not show in its weights;
    `simulation_based_calibration` and, where it can be had, `posterior_gap` find it.

    Where the data share latents outside of their plate, all that is said of how near the guide is
    to the posterior of a datum is given draws of these: a mean over the draws (of k̂ and the largest
    weight the median). `shared` judges them, and `whole` has the bounds on all. What the data share
    is split evenly among them in `elbo` and `iwae`, so that the sums of these are the whole's (each
    datum times what it counts in the loss, if a minibatch stands for more). Where a datum has no
    weights of its own, as all latents hang together, the arrays are of shape () and of the whole.
    """

    elbo: np.ndarray  # of each datum, with its part of what the data share, nats: the sum, each
    # times what it counts in the loss (plates that subsample, scales), is minus the loss
    iwae: np.ndarray  # the importance-weighted bound of K draws, nats; as `elbo`
    ess: np.ndarray  # effective sample size, in [1, K]
    khat: np.ndarray  # shape of the weights' tail; NaN where not applicable
    largest_weight: np.ndarray  # share of the largest, in [1 / K, 1]
    num_tail_weights: np.ndarray  # distinct weights in the tail; below 5, k̂ is not applicable;
    # 1 where all are within 0.001 nats
    num_states: np.ndarray  # distinct states that were drawn; K if no two count as equal, as of
    # continuous latents, or of a truncated guide
    restricted: np.ndarray  # whether the guide cannot draw some states that the model can
    num_particles: int  # K
    khat_threshold: float
    elbo_error: np.ndarray  # standard error of the ELBO; at least that, where few states were drawn
    iwae_error: np.ndarray
    whole: WholeBounds
    given: Given
    is_bound: np.ndarray = np.asarray(True)  # whether the ELBO is: not where what is seen depends
    # on latents under a mask, which the guide draws otherwise than the model; as it draws them
    # they have their part in all else here. And not beside `auxiliary` or `weighed`
    # sites
    shared: SharedDiagnostics | None = None  # None if the data share no site
    draws: WeightedDraws | None = None  # None if they are too many to be kept
    mean_errors: MeanErrors = MeanErrors(np.nan, np.nan, np.nan)
    points: tuple[str, ...] = ()  # continuous latents of which the guide has one point
    auxiliary: tuple[str, ...] = ()  # sites that the guide alone draws, and no latent tells: the
    # ELBO, as the loss, counts their log q, and all else here is given draws of them
    weighed: tuple[str, ...] = ()  # sites that a scale weighs otherwise than their datum: all here
    # is of densities so weighed
    factors: tuple[str, ...] = ()  # sites that the guide observes, which count with log q
    clamped: tuple[str, ...] = ()  # sites to whose values the model gives a probability of 0, which
    # losses, and the framework's densities, clamp
    num_possible: np.ndarray = np.asarray(np.inf)  # states that the guide can draw, however rarely;
    # inf where that is not known
    is_sole: np.ndarray = np.asarray(False)  # whether neither guide nor model has a second state
    is_listable: np.ndarray = np.asarray(False)  # whether the model's states are few enough
    # for `posterior_gap`, which takes no continuous latents, though

    def expectation(self, fn: Callable[[Mapping[str, np.ndarray]], Any]) -> np.ndarray:
        """The posterior mean of a function of the latents, by the weighted draws.

        Its error is that of the weights: see the verdicts. Latents under a mask, on which nothing
        else depends, are as the guide draws them. Where the data share latents, each draw
        of these has some of the others, picked by their weights: 1000 in all, at least one each.

        Args:
            fn: From values by site, draws in front of the plates, to numbers of the same draws; of
                the same data, too, where each has weights of its own. For the posterior
                probability of code 2, ``lambda latents: latents["z"] == 2``.

        Returns:
            What `fn` returns, without the axis of draws.

        Raises:
            ValueError: If `fn` mixes data or draws, or if the draws were not kept.
        """
        if self.draws is None:
            raise ValueError(
                "the draws of the latents were too many to be kept. Ask for fewer data or a "
                "smaller `num_particles`."
            )
        return self.draws.expectation(fn)

    @property
    def gap(self) -> np.ndarray:
        """What the guide misses of each datum, at least, given what the data share; nats."""
        return np.asarray(self.given.iwae - self.given.elbo)

    @property
    def verdicts(self) -> np.ndarray:
        """One word for each datum."""
        with np.errstate(invalid="ignore"):  # of a broken datum
            share = self.ess / self.num_particles
            apart = np.maximum(-np.log(share), self.gap)
        conditions = [
            ~np.isfinite(self.ess) | self._is_impossible,
            np.broadcast_to(self.is_at_a_point, self.ess.shape),
            (self.num_states == 1) & ~np.asarray(self.is_sole) & ~np.asarray(self.restricted),
            is_unsettled(self.khat, self.khat_threshold, self.largest_weight, share),
            apart > CLOSE,
            self.restricted,
        ]
        words = ["broken", "point", "one state", "unreliable", "off", "restricted"]
        return np.select(conditions, words, "close")

    @property
    def _is_impossible(self) -> bool:
        """Whether what the data share is, though each of them is possible."""
        return bool(np.isfinite(self.given.iwae).all() and self.whole.iwae == -np.inf)

    @property
    def warning(self) -> str:
        """What to say where weighted bounds are not the evidence of some data; nothing else."""
        words = self._told_apart
        found = words[np.isin(words, NOT_EVIDENCE)]
        if not found.size:
            return ""
        counts = zip(*np.unique(found, return_counts=True), strict=True)
        listed = "; ".join(f"{count} {in_words(str(word))}" for word, count in counts)
        return (
            "`marginal`, which `arviz.loo` and `arviz.compare` take, is not the evidence of "
            f"{found.size} of {words.size} data. Verdict on these: {listed}. No k̂ of ArviZ shows "
            "that."
        )

    def __repr__(self) -> str:
        """Lines of numbers, then the verdicts, the worst first, and what the bounds are not."""
        shared = " on the data, given that" if self.has_shared_latents else ""
        numbers = [*self._bounds(), *self._worth(), self._tails()]
        return "\n".join([*numbers, *self._verdict(f"Verdict{shared}"), *notes_in(self)])

    @property
    def has_few_states(self) -> np.ndarray:
        """Whether few states were drawn of each datum, of more that the guide can draw."""
        return are_few(self.num_states, self.num_possible)

    @property
    def is_at_a_point(self) -> bool:
        """Whether the guide has a point of a latent that is not of what the data share."""
        return bool(set(self.points) - set(self.shared.sites if self.shared else ()))

    @property
    def has_shared_latents(self) -> bool:
        """Whether what is said of a datum is given draws of what the data share."""
        return self.shared is not None and self.shared.num_draws > 1

    def _bounds(self) -> list[str]:
        if not self.has_shared_latents:
            many, errors = bool(self.ess.ndim), self.mean_errors
            title = f"{self.ess.size} data" if many else "All data as one"
            settled = self.whole.is_settled, self.whole.is_elbo_settled
            least, of_elbo = ("" if it else AT_LEAST for it in settled)
            return [
                f"{title}, {self.num_particles} draws each.",
                f"ELBO {self.elbo.mean():z.2f}{with_error(errors.elbo, of_elbo)}, "
                f"importance-weighted bound {self.iwae.mean():z.2f}"
                f"{with_error(errors.iwae, least)} nats{' per datum' if many else ''}"
                f"{self._gaps()}.",
            ]
        whole = self.whole
        misses = self._misses(whole.iwae - whole.elbo, np.hypot(whole.elbo_error, whole.iwae_error))
        own = self._misses(self.gap.mean(), self.given.error, " nats per datum")
        return [
            f"{self.ess.size} data together: {whole}{misses}.",
            str(self.shared),
            f"Given that, {self.num_particles} draws of each datum{own}.",
        ]

    def _gaps(self) -> str:
        possible = np.isfinite(self.iwae)
        if possible.all():
            return self._misses(self.gap.mean(), self.mean_errors.gap, size=possible.size)
        without = f"{(~possible).sum()} of {possible.size} data"
        if not possible.any():
            return f", as no draw of {without if possible.ndim else 'it'} is possible (or a NaN)"
        elbo, iwae = self.elbo[possible], self.iwae[possible]
        misses = self._misses((iwae - elbo).mean(), np.nan, size=elbo.size)
        return (
            f", as no draw of {without} is possible (or a NaN). Of the others: ELBO "
            f"{elbo.mean():z.2f}, bound {iwae.mean():z.2f}{misses}"
        )

    def _misses(self, gap: float, error: float, unit: str = "", size: int = 1) -> str:
        loose = int((~np.asarray(self.is_bound)).sum())
        if np.isnan(gap):
            return ""  # of bounds that are both infinite
        if not loose:
            settled = self.whole.is_settled and self.whole.is_elbo_settled
            noise, digits = if_shown(error, settled), 3 if unit and gap < SHOWN else 2
            together = f", together {size * gap:z.2f}{if_shown(size * error, settled)}"
            return (
                f": the guide misses at least {gap:z.{digits}f}{noise}{unit}"
                f"{together if size > 1 else ''}"  # verdicts are of each datum: small misses add up
            )
        if unit or self.auxiliary or self.weighed:
            return ""  # it is said elsewhere
        some = f"Of {loose} data the ELBO" if self.ess.ndim else "The ELBO"
        return f". {some} is no bound: {NO_BOUND}; for the weights they are as the model draws them"

    def _worth(self) -> list[str]:
        fraction = self.ess[np.isfinite(self.ess)] / self.num_particles
        if not fraction.size:
            return []
        low, middle = np.quantile(fraction, [0.05, 0.5])
        of_all = f" (median; 5 % quantile {low:.0%})" if self.ess.ndim else ""
        return [f"The draws are worth {middle:.0%} of as many exact ones{of_all}."]

    def _tails(self) -> str:
        khat, threshold = self.khat[np.isfinite(self.khat)], f"{self.khat_threshold:.2f}"
        if not khat.size:
            return f"k̂ applies to none: all {NO_TAIL}."
        if not self.khat.ndim:
            return f"k̂ is {khat[0]:.2f}, and should be below {threshold}."
        high = (khat > self.khat_threshold).sum()
        others = "" if khat.size == self.khat.size else f"; the others {NO_TAIL}"
        middle = f"median {np.median(khat):.2f}, {high} above {threshold}"
        return f"k̂ applies to {khat.size} data ({middle}){others}."

    def _verdict(self, title: str) -> list[str]:
        words = self._told_apart
        if not words.ndim:
            return [f"{title}: {in_words(str(words))}."]
        return [f"{title}, the worst first:", *lines_of(words, bool(np.any(self._has_gap)))]

    @property
    def _told_apart(self) -> np.ndarray:
        return told_apart(self.verdicts, self.ess, np.asarray(self.restricted), self._has_gap)

    @property
    def _has_gap(self) -> np.ndarray:
        """Of which data `posterior_gap` tells."""
        return np.asarray(self.is_listable & (not (self.has_shared_latents or self.auxiliary)))
