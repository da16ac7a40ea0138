"""Sentences on what bounds are not, for all reports that have them.

NumPy alone, so this file is the same in both packages.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["KINDS", "NO_BOUND", "Names", "bound_note_in", "listed", "notes_in", "notes_of"]

Names = tuple[str, ...]  # of sites

NO_BOUND = "what counts depends on masked latents, which the guide draws as the model would not"

_SENTENCES = {
    "points": "The guide has one point of {}: ELBO and bounds are on log p of the data and that "
    "point together, not on the evidence, and no draw tells how near it is.",
    "auxiliary": "The guide alone draws {}: the ELBO, which is minus the loss, and rates count "
    "log q of that, so that the ELBO may exceed the evidence and is no bound; weighted bounds and "
    "verdicts leave it out, and are of the guide given its draws. Let the model sample {} as well, "
    "given the latents, and the ELBO is a bound.",
    "weighed": "A scale of its own weighs the density of {}: ELBO, bounds, evidences and verdicts "
    "are of densities so weighed, and say nothing of the evidence of the model without it.",
    "clamped": "The model gives {} a probability of 0, so that the ELBO is minus infinity; losses "
    "are finite, as the framework clamps that. If it is a network's, come to 0 or 1 by rounding, "
    "give the distribution logits.",
    "factors": "The guide has factors, {}, which count with log q: ELBO and weighted bounds are "
    "bounds only if that is the density of what the guide draws.",
}
KINDS = tuple(_SENTENCES)  # of sites that make bounds of something else, fields of reports


def notes_of(sites: Mapping[str, Names]) -> list[str]:
    """A sentence on the sites of each of `KINDS`; none where there are none."""
    return [
        text.replace("{}", listed(sites[kind]))
        for kind, text in _SENTENCES.items()
        if sites.get(kind)
    ]


def notes_in(report: Any) -> list[str]:
    """The sentences on a report."""
    return notes_of({kind: getattr(report, kind) for kind in KINDS})


def bound_note_in(report: Any) -> list[str]:
    """A sentence on data of which the ELBO is no bound; none where another sentence says so."""
    loose = int((~np.asarray(report.is_bound)).sum())
    is_said = not loose or report.auxiliary or report.weighed or report.factors
    return [] if is_said else [f"Of {loose} data the ELBO is no bound: {NO_BOUND}."]


def listed(names: Names) -> str:
    """Names of sites in a sentence."""
    return ", ".join(f"'{name}'" for name in names)
