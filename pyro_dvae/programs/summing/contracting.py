"""Log-densities with a letter for each of their dims, and what the host's contraction makes of it.

Particles are as a plate that all sites are under.

References:
    [1] Obermeyer et al. Tensor variable elimination for plated factor graphs. ICML, 2019.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import opt_einsum
import torch
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.provenance import detach_provenance, get_provenance
from pyro.ops.rings import LogRing
from torch import Tensor

from pyro_dvae.programs.densities import without_mask
from pyro_dvae.programs.readers.impossible import has_zeros
from pyro_dvae.programs.sites import Layout, Site

__all__ = ["Symbols", "Term", "contracted", "means_of", "plates_of", "probs_of", "terms_of"]

_PARTICLES = "particles"
_NOTHING = -1e20  # nats, which stand for minus infinity, whose slope is none


def terms_of(
    sites: Mapping[str, Site], layout: Layout, *, clamped: bool = True
) -> tuple[list["Term"], "Symbols"]:
    """The log-densities of the sites of a run with all values of marked ones, and the letters.

    Unless they are `clamped`, as the host has them, a probability of 0 is minus infinity in them.
    """
    symbols = Symbols()
    return [_term(site, layout, symbols, clamped) for site in sites.values()], symbols


class Symbols(dict):
    """A letter for each plate and each marked site, as einsum wants it, and their sizes."""

    def __init__(self) -> None:
        super().__init__()

    def __missing__(self, key: Any) -> str:
        self[key] = opt_einsum.get_symbol(len(self))
        return self[key]


class Term(NamedTuple):
    """The log-density of a site, its dims named by letters."""

    site: Site
    values: Any  # a tensor, packed
    sums: frozenset[str]  # letters of the marked sites that it depends on
    sources: frozenset[str]  # draws that it depends on
    marked: str | None  # the letter of a marked site
    letters: Mapping[int, str]  # of its dims

    @property
    def is_summed(self) -> bool:
        """Whether it is a marked site's own."""
        return self.marked is not None

    @property
    def place(self) -> int:
        """The batch dim of a marked site's values."""
        return self.site.infer["_enumerate_dim"]

    def counted(self, site: Site) -> Tensor:
        """The same log-density of another run, over its batch dims."""
        values = site.log_prob()
        return _counted(site, values, self.is_summed) if self.sums else values

    @property
    def is_drawn(self) -> bool:
        """Whether it is of a site that the guide draws."""
        return not (self.is_summed or self.site.is_observed)


def _term(site: Site, layout: Layout, symbols: Symbols, clamped: bool) -> Term:
    first = -layout.nesting - 1
    letters = {frame.dim: symbols[name, frame.dim] for name, frame in site.plates.items()}
    letters[first] = symbols[_PARTICLES]
    marked = {d: symbols[i] for d, i in site.infer.get("_dim_to_id", {}).items() if d < first}
    values, place = site.log_prob(), site.infer.get("_enumerate_dim")
    sums = frozenset(
        letter
        for dim, letter in marked.items()
        if dim == place or (values.dim() >= -dim and values.shape[dim] > 1)
    )
    values = _counted(site, values, place is not None, clamped=clamped) if sums else values
    sources = get_provenance(values)
    values = detach_provenance(values)
    if sums:
        values = _packed(site, values, letters | marked)
    letter = None if place is None else marked[place]
    return Term(site, values, sums, sources, letter, letters | marked)


def _counted(site: Site, values: Tensor, is_summed: bool, *, clamped: bool = True) -> Tensor:
    """A log-density without what masks silence; a marked site's own whatever they do."""
    fn, (args, kwargs) = site.fn, site.call
    if is_summed:
        fn = without_mask(fn)
        values = fn.log_prob(site.value, *args, **kwargs)
    if not clamped:
        values = values.masked_fill(has_zeros(fn, site.value), -torch.inf)
    return values if is_summed else site.scaled(values, 1.0)


def _packed(site: Site, values: Tensor, letters: Mapping[int, str]) -> Tensor:
    shape = tuple(values.shape)
    for dim in range(-1, -len(shape) - 1, -1):
        if shape[dim] > 1 and dim not in letters:
            raise ValueError(
                f"site '{site.name}', which depends on an enumerated one: its log-density has "
                f"shape {shape}, but batch dim {dim} is under no plate. Declare the dim with "
                ".to_event(1), or put the site under a plate with "
                f"dim={dim}."
            )
    return packed.pack(values[...], dict(letters))


def contracted(terms: Sequence[Term], layout: Layout, symbols: Symbols, cache: dict) -> Tensor:
    """The logarithm of the sum, over the batch dims of the plates that all terms share."""
    _check_no_transform(terms)
    alike: dict[tuple[frozenset[str], frozenset[str]], list[Tensor]] = {}
    sizes: dict[str, int] = {}
    for term in terms:
        plates = {symbols[n, f.dim]: f.size for n, f in term.site.plates.items()}
        place = frozenset((symbols[_PARTICLES], *plates))
        alike.setdefault((place, term.sums), []).append(term.values)
        sizes |= plates
        sizes.update(zip(term.values._pyro_dims, term.values.shape, strict=True))
    sizes.setdefault(symbols[_PARTICLES], 1)
    sums = set().union(*(term.sums for term in terms))
    ring, tree = LogRing(cache, dim_to_size=sizes), OrderedDict[frozenset[str], list[Tensor]]()
    for (place, _), values in alike.items():  # added first: one may rule out what another is all on
        alone = len(values) == 1
        tree.setdefault(place, []).append(values[0] if alone else ring.sumproduct(values, set()))
    try:
        found = contract_tensor_tree(tree, sums, ring=ring)
    except NotImplementedError as error:
        listed = ", ".join(f"'{term.site.name}' under {sorted(term.site.plates)}" for term in terms)
        raise ValueError(
            f"enumerated sites and what depends on them are under plates that cross ({listed}), so "
            "that no order of sums is exact but one of exponential cost. Sample one of the sites "
            "in the guide, or loop over one of the plates."
        ) from error
    ((part,),) = found.values()
    outer = frozenset.intersection(*(frozenset(plates_of(term.site)) for term in terms))
    letters = {symbols[name, dim]: dim for name, dim in outer}
    letters[symbols[_PARTICLES]] = -layout.nesting - 1
    return packed.unpack(part, letters)


def _check_no_transform(terms: Sequence[Term]) -> None:
    """Logarithms of Pyro's contraction have a derivative of their own, for autograd alone."""
    if torch._C._functorch.get_interpreter_stack():
        names = sorted(set().union(*(term.sums for term in terms)))
        raise ValueError(
            f"{len(names)} sites are summed out by Pyro's contraction, which torch.func cannot "
            "differentiate. Take torch.autograd.grad of the loss at tensors with "
            "requires_grad, or sample these sites in the guide."
        )


def probs_of(
    terms: Sequence[Term], total: Tensor, layout: Layout, symbols: Symbols
) -> list[tuple[Site, Tensor]]:
    """Marked sites of a group, and how probable their values are, given all else.

    The slope of the logarithm of the sum in what the density of a value is multiplied by.

    Args:
        terms: The group.
        total: The logarithm of its sum, as `contracted` has it.
        layout: How the sites lie.
        symbols: The letters.

    Returns:
        Each site, and ``(K, *batch, V)``; NaN where no value is possible.
    """
    marked = {term.marked: term for term in terms if term.marked is not None}
    possible = [t._replace(values=_possible(t.values)) for t in terms]
    with torch.enable_grad():
        zeros = {letter: _zeros(term, total, layout) for letter, term in marked.items()}
        added = [
            term._replace(values=packed.pack(zeros[letter][...], dict(term.letters)))
            for letter, term in marked.items()
        ]
        found = contracted([*possible, *added], layout, symbols, {})
        slopes = torch.autograd.grad(found.sum(), list(zeros.values()))
    is_possible, result = (total > _NOTHING)[..., None], []
    for term, slope in zip(marked.values(), slopes, strict=True):
        slope = slope.movedim(term.place, -1)  # and no dims left of those of the draws
        slope = slope.reshape(slope.shape[-layout.nesting - 2 :])
        result.append((term.site, torch.where(is_possible, slope, torch.nan)))
    return result


def means_of(
    terms: Sequence[Term],
    total: Tensor,
    layout: Layout,
    symbols: Symbols,
    site: Site,
    arrays: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Means over the states of a group, given all else, of what one of its sites has for each.

    The slope of the logarithm of the sum in how much of it is added to the log-density.

    Args:
        terms: The group.
        total: The logarithm of its sum, as `contracted` has it.
        layout: How the sites lie.
        symbols: The letters.
        site: Of the group.
        arrays: Over its batch dims, those of states among them.

    Returns:
        ``(K, *batch)`` of each.
    """
    (term,) = (each for each in terms if each.site.name == site.name)
    possible, first = [t._replace(values=_possible(t.values)) for t in terms], -layout.nesting - 1
    sizes = {frame.dim: frame.size for frame in site.plates.values()}
    sizes[first] = total.shape[first] if total.dim() >= -first else 1
    shape = [sizes.get(dim, 1) for dim in range(first, 0)]
    with torch.enable_grad():
        zeros = [array.new_zeros(shape, requires_grad=True) for array in arrays]
        parts = [zero * array.detach() for zero, array in zip(zeros, arrays, strict=True)]
        added = [term._replace(values=packed.pack(part[...], dict(term.letters))) for part in parts]
        found = contracted([*possible, *added], layout, symbols, {})
        return torch.autograd.grad(found.sum(), zeros)


def _possible(values: Any) -> Any:
    found = values.clamp(min=_NOTHING)
    found._pyro_dims = values._pyro_dims
    return found


def _zeros(term: Term, total: Tensor, layout: Layout) -> Tensor:
    """For each value of a marked site, in the dims that it and its draws have."""
    sizes = {frame.dim: frame.size for frame in term.site.plates.values()}
    sizes[term.place] = term.site.value.shape[term.place - term.site.fn.event_dim]
    first = -layout.nesting - 1
    sizes[first] = total.shape[first] if total.dim() >= -first else 1
    shape = [sizes.get(dim, 1) for dim in range(term.place, 0)]
    return total.new_zeros(shape, requires_grad=True)


def plates_of(site: Site) -> set[tuple[str, int]]:
    """Names and dims of the plates of a site."""
    return {(name, frame.dim) for name, frame in site.plates.items()}
