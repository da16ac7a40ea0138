"""Sentences on what bounds are not, for all reports that have them.

NumPy alone, so this file is the same in both packages.
"""

__all__ = ["NO_BOUND", "listed", "notes_of"]

NO_BOUND = "what counts depends on masked latents, which the guide draws as the model would not"


def notes_of(points: tuple[str, ...], auxiliary: tuple[str, ...] = ()) -> list[str]:
    """Sentences on sites that make bounds of something else; none if there are none.

    Args:
        points: Continuous latents of which the guide has a point.
        auxiliary: Sites that the guide alone draws.
    """
    found = []
    if points:
        found.append(
            f"The guide has one point of {listed(points)}: ELBO and bounds are on log p of the "
            "data and that point together, not on the evidence, and no draw tells how near it is."
        )
    if auxiliary:
        names = listed(auxiliary)
        found.append(
            f"The guide alone draws {names}: the ELBO, which is minus the loss, and rates count "
            "log q of that, so that the ELBO may exceed the evidence and is no bound; weighted "
            "bounds and verdicts leave it out, and are of the guide given its draws. Let the model "
            f"sample {names} as well, given the latents, and the ELBO is a bound."
        )
    return found


def listed(names: tuple[str, ...]) -> str:
    """Names of sites in a sentence."""
    return ", ".join(f"'{name}'" for name in names)
