"""Whether a model is the same whatever the codes of its sites are called: tried, by a few draws.

Its codes, and all parameters and latents with an axis of them, are permuted together: by a swap and
by a cycle, which make up all permutations. The joint density is to stay as it is.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_dvae.diagnostics.readings import run_given
from numpyro_dvae.diagnostics.trained import Trained
from numpyro_dvae.programs.record import make_record
from numpyro_dvae.programs.sites import Run, Site, deterministic_sites

__all__ = ["Codes", "as_symmetric", "coded_groups", "permuted"]

_TRIALS = 2
_SAME = 1e-4  # of the log joint density and of 1 nat: more than single precision loses


class Codes(NamedTuple):
    """Discrete sites whose codes are renamed together, and what has axes of them."""

    sites: tuple[str, ...]
    size: int  # number of codes
    arrays: frozenset[str]  # parameters, latents and deterministic sites
    one_hot: frozenset[str]  # of the sites, those whose values are vectors


def coded_groups(
    rng_key: Array, trained: Trained, args: tuple, align: Mapping[str, Collection[str]] | None
) -> list[Codes]:
    """What may be renamed together: as `align` says, or all of as many codes.

    Raises:
        ValueError: If a name of `align` is of nothing that has codes, or an axis of them.
    """
    run, _ = _run(rng_key, trained, args, {})
    sizes = {n: _num_codes(s) for n, s in run.guide.items() if s.is_credited and _num_codes(s) > 1}
    one_hot = frozenset(n for n in sizes if run.guide[n].base.event_dim)
    shapes = _shapes(run, trained, sizes)
    if align is None:
        found = []
        for size in dict.fromkeys(sizes.values()):
            sites = tuple(name for name, count in sizes.items() if count == size)
            arrays = frozenset(name for name, shape in shapes.items() if size in shape)
            found.append(Codes(sites, size, arrays, one_hot & set(sites)))
        return found
    return [_asked(name, set(names), sizes, shapes, one_hot) for name, names in align.items()]


def _asked(
    name: str,
    names: set[str],
    sizes: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    one_hot: frozenset[str],
) -> Codes:
    if name not in sizes:
        raise ValueError(f"`align`: '{name}' is no site with codes; there are {sorted(sizes)}.")
    size = sizes[name]
    sites = [n for n, count in sizes.items() if n == name or (n in names and count == size)]
    arrays = frozenset(n for n in names - set(sites) if size in shapes.get(n, ()))
    if odd := sorted(names - set(sites) - arrays):
        raise ValueError(
            f"`align`: {odd} have no axis of the {size} codes of '{name}'; these have: "
            f"{sorted(n for n, shape in shapes.items() if size in shape)}."
        )
    return Codes(tuple(sites), size, arrays, one_hot & set(sites))


def _shapes(run: Run, trained: Trained, coded: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Of parameters, of latents that have no codes, and of deterministic sites of the model."""
    latents = {n: s.value for n, s in run.guide.items() if not s.is_observed and n not in coded}
    shared = {n: v for n, v in latents.items() if not set(run.guide[n].plates) & _data(run, coded)}
    values = {**trained.params, **shared, **_computed(run)}
    return {n: tuple(v.shape) for n, v in values.items() if hasattr(v, "shape")}


def _data(run: Run, coded: Collection[str]) -> set[str]:
    """Plates of the sites that have codes."""
    return {plate for name in coded for plate in run.guide[name].plates}


def _computed(run: Run) -> dict[str, Any]:
    """Deterministic sites of the model."""
    sites = deterministic_sites(run.model_trace)
    return {name: jnp.asarray(site.value) for name, site in sites.items()}


def as_symmetric(rng_key: Array, trained: Trained, args: tuple, codes: Codes) -> Codes | None:
    """The codes, if the joint density of the model stays as it is under other names of them.

    Deterministic sites that then stay as they are, too, are no longer among the arrays.
    """
    run, _ = _run(rng_key, trained, args, {})
    latents = {n: s.value for n, s in run.guide.items() if not s.is_observed}
    names, odd = np.arange(codes.size), set[str]()
    swap, cycle = np.r_[1, 0, names[2:]], np.roll(names, 1)
    for values in _trials(latents, codes):
        run, before = _run(rng_key, trained, args, values)
        for permutation in (swap, cycle)[: 1 if codes.size == 2 else 2]:
            params = {
                n: permuted(v, codes.size, permutation) if n in codes.arrays else v
                for n, v in trained.params.items()
            }
            other = trained._replace(params=params)
            moved, after = _run(rng_key, other, args, _renamed(values, codes, permutation))
            if after != before and not abs(after - before) <= _SAME * (1 + abs(before)):
                return None
            odd |= _unmoved(run, moved, codes, permutation)
    return codes._replace(arrays=codes.arrays - odd)


def _trials(latents: Mapping[str, Any], codes: Codes) -> Iterator[dict[str, Any]]:
    """The draw, and others in which some codes are rarer than others, lest a balance hides one."""
    yield dict(latents)
    rng = np.random.default_rng(0)
    for _ in range(_TRIALS):
        values = dict(latents)
        for name in codes.sites:
            value = values[name]
            shape = value.shape[:-1] if name in codes.one_hot else value.shape
            found = rng.choice(codes.size, tuple(shape), p=rng.dirichlet(np.ones(codes.size)))
            table = np.eye(codes.size) if name in codes.one_hot else np.arange(codes.size)
            values[name] = jnp.asarray(table[found]).astype(value.dtype)
        yield values


def _unmoved(run: Run, moved: Run, codes: Codes, permutation: np.ndarray) -> set[str]:
    """Deterministic sites whose axes are not of the codes."""
    before, after = _computed(run), _computed(moved)
    names = codes.arrays & before.keys()
    return {n for n in names if not _alike(before[n], after[n], codes, permutation)}


def _alike(value: Any, moved: Any, codes: Codes, permutation: np.ndarray) -> bool:
    expected = permuted(value, codes.size, permutation)
    return bool(np.allclose(expected, moved, rtol=_SAME, atol=_SAME))


def _renamed(values: Mapping[str, Any], codes: Codes, permutation: np.ndarray) -> dict[str, Any]:
    found = dict(values)
    for name in codes.sites:
        if name in codes.one_hot:
            found[name] = values[name][..., np.argsort(permutation)]
        else:
            table = jnp.asarray(permutation)
            found[name] = table[values[name].astype(int)].astype(values[name].dtype)
    for name in codes.arrays & values.keys():
        found[name] = permuted(values[name], codes.size, permutation)
    return found


def permuted(value: Any, size: int, permutation: np.ndarray) -> Any:
    """An array with the entries of all its axes of this size called otherwise."""
    old = jnp.asarray(np.argsort(permutation))
    for axis, length in enumerate(value.shape):
        if length == size:
            value = jnp.take(value, old, axis)
    return value


def _num_codes(site: Site) -> int:
    """How many values one latent of a site has; 0 if they cannot be listed, or are no codes."""
    if not site.has_finite_support:
        return 0
    if known := getattr(site.base, "num_codes", 0):
        return int(known)
    support = site.base.enumerate_support(expand=False)
    support = support.reshape(len(support), *site.base.event_shape)
    expected = np.eye(len(support)) if support.ndim > 1 else np.arange(len(support))
    return (
        len(support)
        if support.shape == expected.shape and bool((np.asarray(support) == expected).all())
        else 0
    )


def _run(
    rng_key: Array, trained: Trained, args: tuple, values: Mapping[str, Array]
) -> tuple[Run, float]:
    """A run at these parameters, with some values given, and the model's log joint density."""
    pair = trained.pair(rng_key, args)
    run = run_given(rng_key, pair, values)
    record = make_record(run, pair.layout, 1)
    log_p = (record.scale * record.log_p).sum() + record.shared_likelihood + record.shared_prior
    return run, float(log_p)
