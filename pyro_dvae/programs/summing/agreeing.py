"""Whether a program says with all values of its marked sites at once what it says with one of each.

A program that reduces over all dims, indexes from the left, or looks further back in a loop than
`pyro.markov` says, may run with all values at once on shapes that happen to fit, and mix what it
should keep apart. So it is run once with a value for each cell of each marked site, and its
log-densities are compared with those that all values at once have at these.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro.ops import packed
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from pyro_dvae.programs.draw import Draw, run_pair
from pyro_dvae.programs.sites import Layout, Pair, Run, Site, sample_sites
from pyro_dvae.programs.structure.looking import only_looking, raise_slip, same_but_rounding
from pyro_dvae.programs.summing.contracting import Term, terms_of
from pyro_dvae.programs.summing.enumerating import check_marked
from pyro_dvae.programs.supports import listed_values

__all__ = ["check_agreement"]

_TRIALS = 2


def check_agreement(pair: Pair, plain: Run) -> None:
    """Compare a run with all values of marked sites with one that has one of each.

    Args:
        pair: The programs, with a layout that says which sites are summed.
        plain: A run of them in which these are drawn.

    Raises:
        ValueError: If a log-density is another.
    """

    def look() -> str | None:
        drawn = {n: s for n, s in plain.guide.items() if not s.is_observed}
        values = {name: detach_provenance(site.value) for name, site in drawn.items()}
        marked = {n: plain.model[n] for n in pair.layout.summed if n in plain.model}
        for site in marked.values():
            check_marked(site)
        state = pyro.util.get_rng_state()  # of plates that draw their rows, say
        terms = _terms(pair, values)
        found = (_odd_site(pair, values, marked, codes, terms, state) for codes in _trials(marked))
        return next((name for name in found if name is not None), None)

    with pyro.validation_enabled(False):
        name = only_looking(look)
    if name is not None:
        raise ValueError(
            f"site '{name}' has another log-density where all values of {list(pair.layout.summed)} "
            "are there at once, each site's in a dim of its own left of the plates, than where "
            "each cell has one: the model mixes its dims (sum(), z[0], a bare reshape, a table "
            "indexed by two of them without Vindex, a loop that looks further back than "
            "pyro.markov says). Index from the right, or sample these sites in the guide."
        )


def _terms(pair: Pair, values: Mapping[str, Tensor]) -> list[Term]:
    """With all values of marked sites at once."""
    try:
        whole = run_pair(pair, Draw(Layout(), None, values)).model_trace
    except (AssertionError, IndexError, RuntimeError, TypeError) as error:
        raise_slip(error)
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the model fails where all values of {list(pair.layout.summed)} are there at once, "
            f"each site's in a dim of its own left of the plates: {words}. Write it so that it "
            "broadcasts over dims left of all plates (x[..., i], Vindex, torch.where for `if`), or "
            "sample these sites in the guide."
        ) from error
    return terms_of(sample_sites(whole), pair.layout)[0]


def _trials(marked: Mapping[str, Site]) -> Iterator[dict[str, Tensor]]:
    """Codes for each cell: the first, the last, and some of each."""
    shapes = {name: tuple(site.fn.batch_shape) for name, site in marked.items()}
    sizes = {name: len(listed_values(site)) for name, site in marked.items()}
    yield {name: torch.zeros(shape, dtype=torch.long) for name, shape in shapes.items()}
    yield {name: torch.full(shape, sizes[name] - 1) for name, shape in shapes.items()}
    for _ in range(_TRIALS):
        yield {name: torch.randint(sizes[name], shape) for name, shape in shapes.items()}


def _odd_site(
    pair: Pair,
    values: Mapping[str, Tensor],
    marked: Mapping[str, Site],
    codes: Mapping[str, Tensor],
    terms: list[Term],
    state: Any,
) -> str | None:
    """The first site whose log-density is not that of one value of each; noise aside."""
    chosen = {
        n: listed_values(site)[codes[n].to(listed_values(site).device)]
        for n, site in marked.items()
    }

    def run() -> Mapping[str, Site]:
        return run_pair(
            pair._replace(layout=Layout()), Draw(Layout(), None, {**values, **chosen})
        ).model

    other = pyro.util.get_rng_state()
    pyro.util.set_rng_state(state)
    one = run()
    pyro.util.set_rng_state(other)
    owners = {term.marked: term.site for term in terms}
    for term in terms:
        site = one.get(term.site.name)
        if site is None:
            return term.site.name
        expected = term.counted(site)
        if not _alike(expected, _taken(term, owners, codes)):
            again = run().get(site.name)
            if again is not None and _alike(expected, term.counted(again)):
                return site.name
    return None


def _taken(term: Term, marked: Mapping[str | None, Site], codes: Mapping[str, Tensor]) -> Tensor:
    """The log-density at these codes of what it depends on."""
    if not term.sums:
        return term.values
    values, dims = term.values, dict(term.letters)
    for letter in sorted(term.sums & set(values._pyro_dims)):
        code = codes[marked[letter].name].to(values.device)
        values = packed.gather(values, packed.pack(code[...], dict(dims)), letter)
    return packed.unpack(values, {letter: dim for dim, letter in dims.items()})


def _alike(one: Tensor, two: Tensor) -> bool:
    try:
        one, two = torch.broadcast_tensors(one, two)
    except RuntimeError:
        return False
    return same_but_rounding(one, two)
