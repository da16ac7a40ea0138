"""Verdicts on guides in words, and errors beside numbers.

NumPy alone, so but for the package's name this file is the same in both packages.
"""

import numpy as np

from numpyro_dvae.diagnostics.costs import AT_LEAST, SHOWN

__all__ = [
    "CLOSE",
    "ENOUGH",
    "NOT_EVIDENCE",
    "NO_TAIL",
    "if_shown",
    "in_words",
    "lines_of",
    "of_shared",
    "told_apart",
    "with_error",
]

CLOSE = np.log(2)  # nats of divergence, either way, of a guide that is called close
ENOUGH = 100  # effective draws from which on a weighted bound has an error of a tenth of a nat, but
# for states of which there is no draw

NO_TAIL = (
    "have fewer than 5 distinct weights in the tail, or all within 0.001 nats, so that the "
    "effective sample size and the largest weight count"
)
_UNSEEN = ", but for a mode or tail that the guide hardly ever draws"
_OFF = f"off by more than {CLOSE:.2f} nats by these draws"
_VERDICTS = {  # worst first
    "broken": "broken, no draw being possible under the model (or a NaN): look at the guide's "
    "support",
    "unreliable": "unreliable, a few draws carrying the weight, so that bound and weights are not "
    "settled: train longer, widen the guide, or draw more",
    "off, restricted": f"{_OFF}, on a set of states beyond which the guide cannot draw, so that "
    "weighting corrects for it on these alone: more states",
    "off, thin": f"{_OFF}, and with an effective sample size below {ENOUGH}, so that weighting "
    "corrects for part of it only: draw more",
    "off": f"{_OFF}, though weighting corrects for it as far as these draws show{{}}: "
    "`expectation`",
    "noisy": "undecided, as the noise of the sums over the latents of the data makes much of what "
    "is uneven in these weights: more `num_particles`, or a nearer guide of these latents, tells",
    "one state": "undecided, as the guide drew one state only and cannot show what it misses: "
    "`posterior_gap` tells",
    "one state, unlisted": "undecided, as the guide drew one state only and cannot show what it "
    "misses: more draws may",
    "restricted": "undecided, the weights being even on a set of states beyond which the guide "
    "cannot draw: `posterior_gap` tells",
    "restricted, unlisted": "undecided, the weights being even on a set of states beyond which the "
    "guide cannot draw: more states",
    "point": "no verdict, the guide having a point and no distribution: give it one",
    "close": f"close to the posterior, within {CLOSE:.2f} nats by these draws{{}}",
}
NOT_EVIDENCE = (  # verdicts of which no bound is it
    *("off, restricted", "restricted", "restricted, unlisted", "broken"),
)
_OF_SHARED = (
    "train longer; if that does not mend it, a guide of another shape may: one of what is shared "
    "alone, discrete latents of the data being summed out by marks in the model "
    '(`infer={"enumerate": "parallel"}`), or one that draws the ones given the others'
)


def with_error(error: float, least: str = "") -> str:
    """A standard error behind its number, unless the number is infinite and has none."""
    return "" if np.isnan(error) else f" ±{least} {error:.2f}"


def if_shown(error: float, is_settled: bool) -> str:
    """A standard error behind its number, unless it rounds to nothing."""
    return with_error(error, "" if is_settled else AT_LEAST) if error >= SHOWN else ""


def told_apart(
    verdicts: np.ndarray, ess: np.ndarray, restricted: np.ndarray, listable: np.ndarray
) -> np.ndarray:
    """Tell apart what is off, with few draws that carry weight, and on some states alone.

    And what `posterior_gap` does not tell, where states cannot be listed.
    """
    off, unlisted = verdicts == "off", ~np.asarray(listable)
    return np.select(
        [
            off & restricted,
            off & (ess < ENOUGH),
            unlisted & (verdicts == "one state"),
            unlisted & (verdicts == "restricted"),
        ],
        ["off, restricted", "off, thin", "one state, unlisted", "restricted, unlisted"],
        verdicts,
    )


def in_words(verdict: str) -> str:
    """What a verdict means, and what to do."""
    return _VERDICTS[verdict].format(_UNSEEN)


def of_shared(verdict: str) -> str:
    """What a verdict on what the data share means, and what to do."""
    meaning, _, remedy = in_words(verdict).rpartition(": ")
    if verdict in ("unreliable", "off, thin"):
        return f"{meaning}: {_OF_SHARED}"
    return f"{meaning}: {remedy}; or {_OF_SHARED}" if verdict == "off" else in_words(verdict)


def lines_of(verdicts: np.ndarray, is_listable: bool = True) -> list[str]:
    """What verdicts mean, one a line with how many there are of it, the worst first.

    What no draw shows of any of them stands once, below.
    """
    counts = {word: int((verdicts == word).sum()) for word in _VERDICTS}
    width = len(str(verdicts.size))
    lines = [f"  {n:{width}} {_VERDICTS[word].format('')}." for word, n in counts.items() if n]
    if counts["off"] or counts["close"]:
        others = ", `posterior_gap`" if is_listable else ""
        lines.append(
            "Draws cannot show a mode or tail that the guide hardly ever draws: "
            f"calibration{others} or restarts may."
        )
    return lines
