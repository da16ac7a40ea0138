"""Whether a program depends on its marked sites, with all values at once, as with one of each.

A program that reduces over all dims, indexes from the left, or looks further back in a loop than
`markov` says, may run with all values at once on shapes that happen to fit, and mix what it should
keep apart. What is traced has no values to compare; but a site that is computed from a marked one
must then have a dim of its values. A reduction over the cells of a plate alone is not noticed.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array
from numpyro.ops.provenance import eval_provenance

from numpyro_dvae.programs.draw import Draw, run_pair
from numpyro_dvae.programs.sites import Layout, Pair, Run, sample_sites
from numpyro_dvae.programs.summing.enumerating import check_marked

__all__ = ["check_agreement"]


def check_agreement(rng_key: Array, pair: Pair, plain: Run) -> None:
    """Compare a run with all values of marked sites with one that has one of each.

    Args:
        rng_key: Key of the runs.
        pair: The programs, with a layout that says which sites are summed.
        plain: A run of them in which these are drawn.

    Raises:
        ValueError: If a site depends on others.
    """
    for name in pair.layout.summed:
        check_marked(plain.model[name])
    marked = {n: plain.model[n] for n in pair.layout.summed if not plain.model[n].is_scanned}
    if not marked:
        return
    values = {n: s.value for n, s in plain.guide.items() if not s.is_observed}

    def log_probs(**codes: Array) -> dict[str, Array]:
        draw = Draw(rng_key, Layout(), {**values, **codes})
        one = run_pair(rng_key, pair._replace(layout=Layout()), draw)
        return {name: site.log_prob() for name, site in one.model.items()}

    sources = eval_provenance(log_probs, **{name: site.value for name, site in marked.items()})
    names = _names(rng_key, pair, values)
    for name, direct in sources.items():
        for other in sorted(direct & marked.keys() - {name} - names.get(name, set())):
            raise ValueError(
                f"site '{name}' depends on '{other}', but where all values of '{other}' are there "
                "at once, in a dim left of the plates, it has no such dim: the model mixes its "
                "dims (sum(), z[0], a bare reshape, a loop that looks further back than markov "
                "says). Index from the right, or sample these sites in the guide."
            )


def _names(rng_key: Array, pair: Pair, values: Mapping[str, Array]) -> dict[str, set[Any]]:
    """Whose values the dims of each site are, with all of them at once."""
    try:
        whole = run_pair(rng_key, pair, Draw(rng_key, Layout(), values)).model_trace
    except (AssertionError, IndexError, TypeError) as error:
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the model fails where all values of {list(pair.layout.summed)} are there at once, "
            f"each site's in a dim of its own left of the plates: {words} Write it so that it "
            "broadcasts over dims left of all plates (x[..., i], jnp.where for `if`), or sample "
            "these sites in the guide."
        ) from error
    return {n: set(s.infer["_names"].values()) for n, s in sample_sites(whole).items()}
