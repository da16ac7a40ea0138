"""What the diagnostics return: NumPy arrays with names, and a word on what they mean.

NumPy alone, so this file is the same in both packages. Arrays "per datum" have the shape of the
plates that the discrete latents share: ``(N,)`` for a data plate, ``()`` for a global latent.
"""

import math
from typing import NamedTuple

import numpy as np

from pyro_dvae.diagnostics.carried import ActiveLatents, CodeUsage, LatentRates
from pyro_dvae.diagnostics.costs import SHOWN, SharedCost, WholeCost, noise_of
from pyro_dvae.diagnostics.notes import bound_note_in, notes_in
from pyro_dvae.diagnostics.quality import GradientQuality, gradient_quality

__all__ = [
    "ActiveLatents",
    "CodeUsage",
    "Evaluation",
    "GradientQuality",
    "LatentRates",
    "PerDatum",
    "PosteriorGap",
    "RateDistortion",
    "SharedCost",
    "WholeCost",
    "gradient_quality",
]


class PerDatum(NamedTuple):
    """What `Evaluation` has means of, by datum; what the data share is split evenly among them."""

    elbo: np.ndarray  # nats
    beta_elbo: np.ndarray  # nats
    importance_weighted_bound: np.ndarray  # nats
    rate: np.ndarray  # bits
    distortion: np.ndarray  # nats
    mse: np.ndarray  # of one reconstruction; NaN where nothing is observed
    psnr: np.ndarray  # decibels; infinite where a reconstruction is perfect
    ess: np.ndarray  # effective sample size, in [1, K]


class Evaluation(NamedTuple):
    """What a trained model and guide make of data, in the mean over them.

    What the data share is split evenly among them, so that the mean times what they count in the
    loss, if all count alike, is of all, as the loss sums it; and told apart. `print` it for a
    table. Numbers that there are none of are NaN: the PSNR if no likelihood tells its mean, the
    codes in use if no latent is a code.
    """

    elbo: float  # nats
    beta_elbo: float  # likelihood less `beta` times the rate, nats
    importance_weighted_bound: float  # log mean weight of K draws, nats
    rate: float  # log q - log p(z), bits
    distortion: float  # -log p(x | z), nats
    mse: float  # of one reconstruction of each datum
    psnr: float  # of one reconstruction of each datum, at most 100, decibels
    ess: float  # effective sample size of the K draws, as a share of K
    usage: float  # share of the codes that occur, in the mean over the latents
    table_usage: float  # share of the codes that occur in any latent of a table
    table_perplexity: float  # of the codes of all latents of a table together
    beta: float
    num_particles: int  # K
    data_range: float  # span of the data, to which the PSNR refers
    elbo_error: float  # standard errors over the draws, nats; NaN of one draw
    bound_error: float
    shared_rate: float  # of sites that the data share, bits; 0 if they share none
    shared_distortion: float  # nats
    whole_elbo: float  # minus the loss of all data and what they share, nats
    whole_elbo_error: float
    whole_bound: float  # importance-weighted, nats
    whole_bound_error: float
    per_datum: PerDatum
    is_settled: bool = True  # else the errors of the bounds are at least these
    points: tuple[str, ...] = ()  # continuous latents of which the guide has one point
    auxiliary: tuple[str, ...] = ()  # sites that the guide alone draws: the ELBO is no bound
    weighed: tuple[str, ...] = ()  # sites that a scale weighs: bounds are of densities so weighed
    factors: tuple[str, ...] = ()  # sites that the guide observes, which count with log q
    clamped: tuple[str, ...] = ()  # sites with a probability of 0, of which losses are finite
    is_elbo_settled: bool = True  # else that of the ELBO is, of data that drew few states of more
    is_bound: np.ndarray = np.asarray(True)  # whether the ELBO is, of each datum, as masks let it

    def __repr__(self) -> str:
        """A table with a line for each number."""
        numbers = {
            "ELBO": (self.elbo, "nats"),
            f"beta-ELBO ({self.beta:g})": (self.beta_elbo, "nats"),
            "importance-weighted bound": (self.importance_weighted_bound, "nats"),
            "rate": (self.rate, "bits"),
            "distortion": (self.distortion, "nats"),
            "PSNR": (self.psnr, "dB"),
            "effective sample size": (100 * self.ess, "%"),
            "codes in use": (100 * self.usage, "%"),
            "codes in use, all latents": (100 * self.table_usage, "%"),
            "perplexity, all latents": (self.table_perplexity, "codes"),
        }
        if max(self.elbo_error, self.bound_error) >= SHOWN:
            error = "standard error, ELBO" if self.is_elbo_settled else "error of ELBO, at least"
            numbers[error] = self.elbo_error, "nats"
            error = "standard error, bound" if self.is_settled else "error of bound, at least"
            numbers[error] = self.bound_error, "nats"
        if self.shared_rate or self.shared_distortion:
            numbers |= {
                "of all, shared: rate": (self.shared_rate, "bits"),
                "and distortion": (self.shared_distortion, "nats"),
                "all together, ELBO": (self.whole_elbo, "nats"),
                "its standard error": (self.whole_elbo_error, "nats"),
                "all together, bound": (self.whole_bound, "nats"),
            }
            error = "and its standard error" if self.is_settled else "and its error, at least"
            numbers[error] = self.whole_bound_error, "nats"
        many = self.per_datum.elbo.ndim > 0
        title = f"{self.per_datum.elbo.size} data" if many else "All data as one"
        title = f"{title}, {self.num_particles} draws each; means"
        lines = (
            f"{name:<27}{value:>z9.2f} {unit}"
            for name, (value, unit) in numbers.items()
            if not np.isnan(value)
        )
        return "\n".join([title, *lines, *bound_note_in(self), *notes_in(self)])


class RateDistortion(NamedTuple):
    """What the latents of each datum cost and leave out; what data share is split evenly."""

    rate: np.ndarray  # log q - log p(z), bits
    distortion: np.ndarray  # -log p(x | z), nats
    mse: np.ndarray  # of the mean of p(x | z)
    psnr: np.ndarray  # of each datum's reconstructions, decibels; a perfect one counts as 100
    rate_error: np.ndarray  # standard errors over the draws; NaN of one draw; at least that, where
    distortion_error: np.ndarray  # few states were drawn, as `whole.is_settled` tells
    whole: WholeCost
    shared: SharedCost | None  # None if the data share no site
    mean_rate_error: float = math.nan  # of the means over the data, which may share draws
    mean_distortion_error: float = math.nan
    points: tuple[str, ...] = ()  # of which the rate is minus the log-density: no KL
    auxiliary: tuple[str, ...] = ()  # sites that the guide alone draws, and rates count: no KL
    weighed: tuple[str, ...] = ()  # sites that a scale weighs: rates are of densities so weighed
    factors: tuple[str, ...] = ()  # sites that the guide observes, which count with log q
    clamped: tuple[str, ...] = ()  # sites with a probability of 0, of which losses are finite
    data_range: float = 1.0  # span of the data, to which the PSNR refers
    is_bound: np.ndarray = np.asarray(True)  # whether minus rate and distortion is, of each datum

    def __repr__(self) -> str:
        """A line with the means; lines of what the data share and of all together."""
        rest = "" if self.shared is None else f"\n{self.shared}\n{self.whole}"
        rest = "\n".join([rest, *bound_note_in(self), *notes_in(self)])
        seen, fidelity = ~np.isnan(self.mse), ""
        if seen.any():  # but for what is all masked, or whose likelihoods tell no mean
            psnr = self.psnr[seen].mean()
            fidelity = f", MSE {self.mse[seen].mean():.4g}, PSNR {psnr:.2f} dB"
        errors = self.mean_rate_error, self.mean_distortion_error
        noise = [noise_of(each, self.whole.is_settled) for each in errors]
        each = _each(self.rate)
        if (np.isnan(self.rate_error) & np.isfinite(self.rate)).any():
            each = f"{each}, by one draw each (num_draws=100 tells errors)"
        return (
            f"Rate {self.rate.mean():z.2f} bits{noise[0]}, distortion "
            f"{self.distortion.mean():z.2f} nats{noise[1]}{fidelity} {each}.{rest}"
        )


class PosteriorGap(NamedTuple):
    """The guide against the exact posterior of each datum."""

    log_evidence: np.ndarray  # log p(x), nats; latents under a mask are drawn as the model would
    elbo: np.ndarray  # nats
    gap: np.ndarray  # log evidence - ELBO: KL(q ‖ posterior), where the ELBO is a bound
    support_mass: np.ndarray  # posterior mass of the states that the guide can draw, in [0, 1];
    # latents under a mask, on which nothing depends, have no states
    is_bound: np.ndarray  # whether the ELBO is: not where sites outside of a mask depend on
    # latents under it, which the guide draws otherwise than the model
    whole_log_evidence: float  # of all data and what is observed beside them, as the loss sums them
    whole_elbo: float  # minus the exact loss
    points: tuple[str, ...] = ()  # sites that make ELBO and evidence those of something else, as in
    auxiliary: tuple[str, ...] = ()  # `ImportanceDiagnostics`
    weighed: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    clamped: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """A line with the means."""
        return "\n".join([f"{self._means()}.", *bound_note_in(self), *notes_in(self)])

    def _means(self) -> str:
        possible = np.isfinite(self.log_evidence)
        title, each = "Log evidence", _each(self.gap)
        if not possible.any():
            return f"{title} -inf {each}: the model allows no state"
        if not possible.all():
            some = f"of {(~possible).sum()} of {possible.size} data"
            title = (
                f"{title} -inf, as the model allows no state {some}. Of the others: log evidence"
            )
        evidence, elbo = self.log_evidence[possible].mean(), self.elbo[possible].mean()
        gap, mass = self.gap[possible], self.support_mass[possible].mean()
        largest = f" (largest {gap.max():z.3f}, together {gap.sum():z.2f})" if self.gap.ndim else ""
        return (
            f"{title} {evidence:z.3f}, ELBO {elbo:z.3f}, gap {gap.mean():z.3f} nats {each}"
            f"{largest}; the guide can draw {mass:.1%} of the posterior"
        )


def _each(values: np.ndarray) -> str:
    """What numbers are of: of each datum, unless latents make one of all data."""
    return "per datum" if values.ndim else "of all data as one"
