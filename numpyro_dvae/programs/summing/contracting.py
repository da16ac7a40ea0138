"""What NumPyro's enumeration is made of, funsor, which is imported where a site is summed out.

A marked site gets all its values in a batch dim left of plates, and every site says which of its
dims are whose; funsor sums log-densities whose dims have names [1], the steps of a `scan` by a
parallel scan.

References:
    [1] Obermeyer et al. Tensor variable elimination for plated factor graphs. ICML, 2019.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from importlib import import_module
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.primitives import Messenger

from numpyro_dvae.programs.messages import is_drawn
from numpyro_dvae.programs.sites import Site

__all__ = ["Named", "contracted", "enumerated", "means_of", "named", "probs_of"]

_TIME, _PREVIOUS = "_time", "_PREV_"
_NOTHING = -1e20  # nats, which stand for minus infinity, whose slope is none


def _module(name: str) -> Any:
    """A module that needs funsor, or is it.

    Raises:
        ModuleNotFoundError: If it is not there.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "sites marked infer={'enumerate': 'parallel'} are summed by funsor, as in NumPyro's "
            f"own enumeration: {error}. Install it (pip install funsor), or sample the sites in "
            "the guide."
        ) from error


@contextmanager
def enumerated(
    nesting: int, known: Collection[str], check: Callable[[Site], None]
) -> Iterator[None]:
    """Give marked sites all their values at once, and note the names of dims.

    Args:
        nesting: How many dims are taken by plates.
        known: Sites that the guide draws, or whose values are given.
        check: Refuses a site that cannot be summed out.
    """
    host = _module("numpyro.contrib.funsor")
    _module("funsor").set_backend("jax")  # Pyro's part of funsor may have been imported since
    first = -nesting - 1 if nesting else None
    with (
        _fresh_dims(),
        host.plate_to_enum_plate(),
        host.enum(first_available_dim=first),
        _Mark(known, check),
    ):
        yield


@contextmanager
def _fresh_dims() -> Iterator[None]:
    """Names of dims that a loop has left, which an error ended, are none of this run's."""
    messengers = _module("numpyro.contrib.funsor.enum_messenger")
    stack = vars(messengers._DIM_STACK)
    before = dict(stack)
    stack.update(vars(messengers.DimStack()))
    try:
        yield
    finally:
        stack.update(before)


class _Mark(Messenger):
    """Entered within the host's handler: takes marks away, and names dims."""

    def __init__(self, known: Collection[str], check: Callable[[Site], None]) -> None:
        super().__init__()
        self.known, self.check = known, check
        self.names = _module("numpyro.contrib.funsor.enum_messenger").NamedMessenger

    def process_message(self, msg: Any) -> None:
        """Keep the mark of a site that is to be summed out."""
        if msg["type"] == "control_flow" and msg["args"][-1]:
            raise ValueError(
                "a `scan` with reverse=True is not summed rightly by the host, which joins its "
                "steps from the first on. Turn its inputs round, jax.tree.map(lambda x: x[::-1], "
                "xs), and scan from their start, or sample the enumerated sites in the guide."
            )
        if msg["type"] != "sample":
            return
        msg["infer"] = {k: v for k, v in msg["infer"].items() if k != "expand"}
        if is_drawn(msg) and msg["infer"].get("enumerate") == "parallel":
            if msg["name"] in self.known:
                del msg["infer"]["enumerate"]
            else:
                self.check(Site.of(msg))
                msg["infer"]["_summed"] = True

    def postprocess_message(self, msg: Any) -> None:
        """Look values up, and note whose each batch dim is."""
        if msg["type"] != "sample":
            return
        fn, event = msg["fn"], msg["fn"].event_dim
        if msg["infer"].get("_summed"):  # the host's values are 0, 1, ...
            support = fn.enumerate_support(expand=False)
            msg["value"] = support.reshape(len(support), *fn.event_shape)[msg["value"]]
        batch = jnp.shape(msg["value"])[: jnp.ndim(msg["value"]) - event]
        names = self.names._get_dim_to_name(jnp.broadcast_shapes(fn.batch_shape, batch))
        msg["infer"]["_names"] = names


class Named(NamedTuple):
    """A log-density whose dims have names."""

    site: str
    values: Any  # funsor
    names: frozenset[str]  # of its dims
    size: int  # steps of a `scan`; 0 outside of one

    @property
    def times(self) -> frozenset[str]:
        """The name of its dim of steps."""
        return frozenset(name for name in self.names if name.startswith(_TIME))


def named(site: Site, values: Array) -> Named:
    """Name the dims of numbers over the batch dims of a site."""
    funsor = _module("funsor")
    names = OrderedDict(site.infer["_names"])
    sizes = {frame.dim: frame.size for frame in site.plates.values()}
    depth = max([jnp.ndim(values), *(-dim for dim in sizes)])
    values = jnp.reshape(values, (1,) * (depth - jnp.ndim(values)) + jnp.shape(values))
    shape = [sizes.get(dim - depth, size) for dim, size in enumerate(values.shape)]
    values = jnp.broadcast_to(values, shape)
    names.update({frame.dim: name for name, frame in site.plates.items()})
    steps = next((values.shape[dim] for dim, n in names.items() if n.startswith(_TIME)), 0)
    if not names:
        values = jnp.squeeze(values)
    found = funsor.to_funsor(values, output=funsor.Real, dim_to_name=names)
    return Named(site.name, found, frozenset(names.values()), steps)


def contracted(
    terms: Sequence[Named],
    sums: frozenset[str],
    plates: frozenset[str],
    outer: Mapping[str, int],
) -> Array:
    """The logarithm of a sum of products, over the batch dims of the outer plates.

    Args:
        terms: Log-densities.
        sums: Names of the sites that are summed.
        plates: Names of all plates.
        outer: The dims of those that stay.
    """
    funsor, optimizer = _module("funsor"), _module("funsor.optimizer")
    alike: dict[frozenset[str], list[Any]] = {}
    for term in terms:
        if not term.size:
            alike.setdefault(term.names, []).append(term.values)
    # Added first: one may rule out what another is all on.
    factors = [reduce(add, values) for values in alike.values()] + _steps(terms, sums, plates)
    with funsor.interpretations.lazy:
        found = funsor.sum_product.sum_product(
            funsor.ops.logaddexp,
            funsor.ops.add,
            factors,
            eliminate=sums | (plates - outer.keys()),
            plates=plates,
        )
    found = optimizer.apply_optimizer(found)
    return funsor.to_data(found, name_to_dim=OrderedDict(outer))


def probs_of(
    marked: Sequence[tuple[Site, Named]],
    terms: Sequence[Named],
    contract: Callable[[Sequence[Named]], Array],
    nesting: int,
) -> list[Array]:
    """How probable the values of marked sites of a group are, given all else.

    The slope of the logarithm of the sum in what the density of a value is multiplied by.

    Args:
        marked: These sites, with their terms.
        terms: The group.
        contract: As `contracted`, of terms.
        nesting: How many dims are taken by plates.

    Returns:
        Of each site ``(*batch, V)``, or ``(*batch, steps, V)`` of a site with steps; NaN where no
        value is possible.
    """
    funsor = _module("funsor")
    possible = [t._replace(values=funsor.ops.max(t.values, _NOTHING)) for t in terms]

    def log_sum(zeros: list[Array]) -> tuple[Array, Array]:
        added = [named(site, each) for (site, _), each in zip(marked, zeros, strict=True)]
        found = contract([*possible, *added])
        return found.sum(), found

    zeros = [_zeros(site, term) for site, term in marked]
    slopes, total = jax.grad(log_sum, has_aux=True)(zeros)
    found = []
    for (site, term), slope in zip(marked, slopes, strict=True):
        moved = [_dims(site)[name] for name in (*term.times, site.name)]
        slope = jnp.moveaxis(slope, moved, range(-len(moved), 0))
        slope = slope.reshape(slope.shape[-nesting - len(moved) :])
        is_possible = total.reshape(*total.shape, *[1] * len(moved)) > _NOTHING
        found.append(jnp.where(is_possible, slope, jnp.nan))
    return found


def means_of(
    site: Site,
    arrays: Sequence[Array],
    terms: Sequence[Named],
    contract: Callable[[Sequence[Named]], Array],
    nesting: int,
) -> list[Array]:
    """Means over the states of a group, given all else, of what one of its sites has for each.

    The slope of the logarithm of the sum in how much of it is added to the log-density.

    Args:
        site: Of the group.
        arrays: Over its batch dims, those of states, and of steps, among them.
        terms: The group.
        contract: As `contracted`, of terms.
        nesting: How many dims are taken by plates.

    Returns:
        ``(*batch)`` of each, the sum over steps.
    """
    funsor = _module("funsor")
    possible = [t._replace(values=funsor.ops.max(t.values, _NOTHING)) for t in terms]
    sizes = {frame.dim: frame.size for frame in site.plates.values()}

    def log_sum(zeros: list[Array]) -> Array:
        parts = [zero * array for zero, array in zip(zeros, arrays, strict=True)]
        return contract([*possible, *(named(site, part) for part in parts)]).sum()

    zeros = jnp.zeros([sizes.get(dim, 1) for dim in range(-nesting, 0)])
    return jax.grad(log_sum)([zeros for _ in arrays])


def _zeros(site: Site, term: Named) -> Array:
    """For each value of a marked site, in the dims that it has."""
    dims, sizes = _dims(site), {frame.dim: frame.size for frame in site.plates.values()}
    place = dims[site.name]
    sizes[place] = jnp.shape(site.value)[place - site.fn.event_dim]
    sizes |= {dims[name]: term.size for name in term.times}
    return jnp.zeros([sizes.get(dim, 1) for dim in range(min(sizes), 0)])


def _dims(site: Site) -> dict[str, int]:
    """Of the names of its dims."""
    return {name: dim for dim, name in site.infer["_names"].items()}


def _steps(terms: Sequence[Named], sums: frozenset[str], plates: frozenset[str]) -> list[Any]:
    """The factors of each `scan`, summed over all states but those of its ends."""
    funsor = _module("funsor")
    factors: dict[Any, list[Any]] = {}
    names: dict[Any, frozenset[str]] = {}
    for term in terms:
        if term.size:
            (time,) = term.times
            variable = funsor.Variable(time, funsor.Bint[term.size])
            factors.setdefault(variable, []).append(term.values)
            names[variable] = names.get(variable, frozenset()) | term.names
    if not factors:
        return []
    before = {time: frozenset(filter(_is_before, all_names)) for time, all_names in names.items()}
    ends = {time: _ends(time.name, before[time], terms) for time in factors}
    history = max(_shift(name) for found in before.values() for name in found)
    return _module("numpyro.contrib.funsor.infer_util").compute_markov_factors(
        factors, before, ends, sums, plates, history, funsor.ops.logaddexp, funsor.ops.add
    )


def _ends(time: str, before: frozenset[str], terms: Sequence[Named]) -> frozenset[str]:
    """Dims of the sites of a step that depend on the step before."""
    current = {name.replace(_PREVIOUS, "") for name in before}
    names = [t.names for t in terms if time in t.names and t.site in current and t.names & before]
    return frozenset().union(*names)


def _is_before(name: str) -> bool:
    return name.startswith(_PREVIOUS)


def _shift(name: str) -> int:
    return name.count(_PREVIOUS)
