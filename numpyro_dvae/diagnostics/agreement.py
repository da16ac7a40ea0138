"""Whether runs agree: R-hat of each quantity, what it is by noise alone, and spreads of parameters.

NumPy alone, so but for the package's name this file is the same in both packages.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import f as variance_ratio
from scipy.stats import norm

from numpyro_dvae.diagnostics.groups import rhat_of

__all__ = [
    "differ_in_mean",
    "differences_of",
    "evidence_of",
    "line_of_params",
    "line_of_starts",
    "noise_of_rhat",
    "rhats_of",
]

_EVIDENCE = "evidence"
_AGREES = 1.01  # R-hat below which runs are not told apart (Vehtari et al.)
_CHANCE = 0.01  # that runs which agree are said to differ in a quantity
_MOST_SHOWN = 8  # parameters
_TIE = 1e-3  # nats of an evidence that are no difference
_ROUNDING = 8 * float(np.finfo(np.float32).eps)  # of sums in single precision, relative


def evidence_of(chains: Any) -> Float[np.ndarray, "R K"]:
    """Log weight of all data and of what they share, of each draw; its mean is the ELBO."""
    stats = chains["sample_stats"]
    name = "log_weight_whole" if "log_weight_whole" in stats else "log_weight"
    values = np.asarray(stats[name])
    return values.reshape(*values.shape[:2], -1).sum(-1)


def differences_of(
    evidence: np.ndarray, rhats: Mapping[str, float], limits: Mapping[str, float]
) -> dict[str, Any]:
    """The quantities in which runs differ, and whether only the ELBOs' errors hide it."""
    beyond = [name for name, value in rhats.items() if value > limits[name]]
    others = [name for name in beyond if name != _EVIDENCE]
    differs = (_EVIDENCE, *others) if differ_in_mean(evidence) else tuple(others)
    return {"differs": differs, "undecided": not differs and _EVIDENCE in beyond}


def differ_in_mean(evidence: Float[np.ndarray, "R K"]) -> bool:
    """Whether means of two runs differ by more than their errors, ties or rounding explain.

    Runs of which a draw is impossible, with a mean of -inf, differ from those of which none is.
    """
    possible = np.isfinite(evidence).all(1)
    if not possible.all():
        return bool(possible.any())
    means, errors = evidence.mean(1), evidence.std(1, ddof=1) / evidence.shape[1] ** 0.5
    pairs = math.comb(len(means), 2)
    noise = norm.isf(_CHANCE / 2 / pairs) * np.hypot(errors[:, None], errors)
    return bool((np.abs(means[:, None] - means) > np.maximum(noise, _step_of(means))).any())


def _step_of(numbers: np.ndarray) -> float:
    """Nats by which evidences are told apart."""
    return max(_TIE, _ROUNDING * float(np.abs(numbers).max()))


def _in_steps(evidence: Float[np.ndarray, "R K"]) -> Float[np.ndarray, "R K"]:
    """Evidences that are tied, but for rounding, as one number: R-hat is of ranks.

    Steps have the median in their middle, since most ties are there.
    """
    if not np.isfinite(evidence).all():
        return evidence
    middle = np.quantile(evidence, 0.5, method="lower")
    step = _step_of(evidence)
    return np.asarray(middle + step * np.round((evidence - middle) / step))


def rhats_of(
    chains: Any, evidence: np.ndarray, quantities: Sequence[str] | None
) -> tuple[dict[str, float], dict[str, float]]:
    """The largest R-hat of each quantity's entries, and what it is at most where runs agree."""
    posterior = chains["posterior"]
    known = [str(name) for name in posterior.data_vars]
    names = known if quantities is None else list(quantities)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"`quantities` has {unknown}; the posterior has {known}.")
    arrays = {_EVIDENCE: _in_steps(evidence)} | {
        name: np.asarray(posterior[name]) for name in names
    }
    found, limits = {}, {}
    for name, values in arrays.items():
        cells = values.reshape(*values.shape[:2], -1).astype(float)
        entries = np.moveaxis(cells, -1, 0)[_counted(chains, name, values.shape[2:])]
        each = [rhat_of(entry) for entry in entries if np.isfinite(entry).all()]
        found[name] = max(each, default=np.nan if cells.size else 1.0)
        limits[name] = max(_AGREES, noise_of_rhat(*cells.shape))
    return found, limits


def _counted(chains: Any, name: str, shape: tuple[int, ...]) -> Bool[np.ndarray, "entries"]:
    """Entries of a quantity but for places of a latent that a mask silences in a run."""
    stats, table = chains["vi_stats"] if "vi_stats" in chains else {}, f"{name}_counted"
    counted = np.ones(shape, bool)
    if table in stats:
        places = np.asarray(stats[table]).all(0)
        if shape[: places.ndim] == places.shape:  # a vector is one code
            counted &= places.reshape(*places.shape, *[1] * (len(shape) - places.ndim))
    return counted.ravel()


def noise_of_rhat(num_runs: int, num_draws: int, num_entries: int) -> float:
    """The largest R-hat of entries of runs that do not differ; all but one time in a hundred.

    Of the halves of all runs, a variance between over one within; twice, as R-hat is also folded.
    """
    num_halves, size = 2 * num_runs, max(num_draws // 2, 2)
    chance = _CHANCE / 2 / max(num_entries, 1)
    ratio = variance_ratio.isf(chance, num_halves - 1, num_halves * (size - 1))
    return float(((size - 1 + ratio) / size) ** 0.5)


def line_of_params(params: Mapping[str, np.ndarray]) -> list[str]:
    """How far parameters of the runs lie apart, beside their size; those of few entries first."""
    numbers = {n: v for n, v in params.items() if v.size and v.dtype.kind == "f"}
    names = sorted(numbers, key=lambda name: numbers[name].size)
    shown = [
        f"{name} {np.ptp(params[name], 0).max():.2g} of {np.sqrt(np.mean(params[name] ** 2)):.2g}"
        for name in names[:_MOST_SHOWN]
    ]
    more = f", and {len(names) - len(shown)} more in `params`" if len(names) > len(shown) else ""
    return [
        "Parameters, which have no draws to be judged by, differ between runs by at most, beside "
        f"their size (root mean square): {', '.join(shown)}{more}."
    ][: len(shown)]


def line_of_starts(alike: Sequence[str]) -> list[str]:
    """Which parameters began at the same values in all runs, that is, did not start anew."""
    if not alike:
        return []
    more = f" and {len(alike) - _MOST_SHOWN} more" if len(alike) > _MOST_SHOWN else ""
    return [
        f"All runs began at the same values of {', '.join(alike[:_MOST_SHOWN])}{more}, as their "
        'programs give them: starts that are drawn, by a function in `param("name", ...)`, would '
        "search further."
    ]
