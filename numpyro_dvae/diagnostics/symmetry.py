"""Whether programs are the same whatever the codes of their sites are called: tried, by a few runs.

Codes, and the axes of parameters and latents that go by them, are permuted together: by a swap and
by a cycle, which make up all permutations. The model's joint density is to stay as it is, of each
datum, and so is the guide's. Which axes go by the codes is not told by their length, as features
or data may be as many: it is searched for, and so is which sites are renamed together. Where two
codes change places, a chance may become 1 less itself, and a logit its negative: the entries of an
array are mirrored about 1/2 or 0.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from numpyro_dvae.diagnostics.readings import constraints_of, run_given
from numpyro_dvae.diagnostics.trained import Trained
from numpyro_dvae.fit.compiled import Compiled
from numpyro_dvae.fit.data import Batch
from numpyro_dvae.fit.templates import Template, split
from numpyro_dvae.programs.record import make_record
from numpyro_dvae.programs.sites import Run, Site, deterministic_sites
from numpyro_dvae.programs.supports import listed_values

__all__ = ["Codes", "Renaming", "Symmetries", "permuted"]

_TRIALS = 2
_SAME = 1e-4  # of a log-density and of 1 nat: more than single precision loses
_MOST_TRIED = 256  # sets of axes
_MOST_APART = 6  # sites that are tried apart from others of as many codes
_MIRRORS = (0, 1)  # in the place of an axis: entries v become 0 - v, or 1 - v
ArrayAxis = tuple[str, int]  # name of an array, and an axis of it, counted from the right


class Codes(NamedTuple):
    """Discrete sites whose codes are renamed together, and what goes by these codes."""

    sites: tuple[str, ...]
    size: int  # number of codes
    axes: Mapping[str, tuple[int, ...]]  # of parameters, latents, deterministic sites; or mirrors
    one_hot: frozenset[str]  # of the sites, those whose values are vectors
    lost: tuple[str, ...]  # parameters of the guide whose axes of the codes are not found


class Densities(NamedTuple):
    """Log-densities of one run, in nats: of each datum, and of what the data share."""

    model: Float[np.ndarray, "places"]
    guide: Float[np.ndarray, "places"]


class Symmetries:
    """What may be renamed in a trained pair.

    Args:
        rng_key: Key of what is drawn once, and tried.
        trained: Model, guide and the parameters that are tried.
        args: What they are called with.
    """

    def __init__(self, rng_key: Array, trained: Trained, args: tuple) -> None:
        self._trained = trained
        self._pair, self._key = trained.pair(rng_key, args), rng_key
        self._arrays, self._template = split(Batch(args, {}))
        self._compiled = Compiled(self._tried, static=(3,))
        run = run_given(rng_key, self._pair, {})
        self.latents = {n: s.value for n, s in run.guide.items() if not s.is_observed}
        counts = {n: _num_codes(s) for n, s in run.guide.items() if s.is_credited}
        self.sizes = {name: count for name, count in counts.items() if count > 1}
        self._one_hot = frozenset(n for n in self.sizes if run.guide[n].base.event_dim)
        self._computed = _computed(run).keys()
        supports = self._supports(rng_key, run, args)
        arrays = self._arrays_of(run)
        self.shapes = {name: tuple(value.shape) for name, value in arrays.items()}
        self._mirrors = {n: _mirrors_of(v, supports.get(n)) for n, v in arrays.items()}

    def groups(self) -> list[Codes]:
        """The sites that may be renamed: each alone, or with the fewest others that it needs."""
        found: list[Codes] = []
        for size in dict.fromkeys(self.sizes.values()):
            alike = [name for name, count in self.sizes.items() if count == size]
            fewest = range(1, len(alike) + 1) if len(alike) <= _MOST_APART else [len(alike)]
            for sites in _subsets(alike, fewest):
                if not any(set(sites) & set(codes.sites) for codes in found):
                    found += filter(None, [self.of(sites, self.shapes)])
        return found

    def asked(self, name: str, names: Collection[str]) -> Codes | None:
        """A site and what is said to go by its codes, as `of`.

        Raises:
            ValueError: If a name is of nothing that has codes, or an axis of as many.
        """
        if name not in self.sizes:
            known = sorted(self.sizes)
            raise ValueError(f"`align`: '{name}' is no site with codes; there are {known}.")
        size = self.sizes[name]
        sites = [n for n, c in self.sizes.items() if n == name or (n in names and c == size)]
        fit = {name for name, _ in self._places(self.shapes, size)}
        arrays = (set(names) - set(sites)) & fit
        if odd := sorted(set(names) - set(sites) - arrays):
            raise ValueError(
                f"`align`: {odd} have no axis of the {size} codes of '{name}'; {sorted(fit)} do."
            )
        return self.of(sites, arrays)

    def of(self, sites: Sequence[str], names: Collection[str]) -> Codes | None:
        """How sites of as many codes are renamed; None if the model is not the same afterwards.

        Args:
            sites: What is renamed together.
            names: Arrays of which some axes may go by the codes.
        """
        size, one_hot = self.sizes[sites[0]], self._one_hot & set(sites)
        trial = _Trial(self, Codes(tuple(sites), size, {}, one_hot, ()))
        places = list(self._places(set(names) - self._computed, size))
        moving = [place for place in places if trial.moves("model", place)]
        model = trial.search("model", moving, ())
        if model is None:
            return None
        others = [p for p in places if p not in moving and trial.moves("guide", p)]
        guide = trial.search("guide", others, model)
        lost = tuple(dict.fromkeys(name for name, _ in others)) if guide is None else ()
        codes = trial.codes._replace(axes=_axes([*model, *(guide or ())]), lost=lost)
        outputs = {
            name: [axis for _, axis in self._places([name], size)]
            for name in self._computed & set(names)
        }
        return codes._replace(axes={**codes.axes, **trial.computed(codes, outputs)})

    def _places(self, names: Collection[str], size: int) -> Iterator[ArrayAxis]:
        """Axes of a length, counted from the right; and mirrors, of two codes."""
        for name, shape in self.shapes.items():
            if name in names:
                yield from ((name, axis) for axis in range(-len(shape), 0) if shape[axis] == size)
                yield from ((name, about) for about in self._mirrors[name] if size == 2)

    def why(self, site: str) -> str:
        """Say why a site's codes cannot be renamed."""
        return f"the model is not found to be the same with its {self.sizes[site]} codes renamed"

    def run(
        self, values: Mapping[str, Array], renaming: "Renaming | None" = None
    ) -> tuple[dict[str, Array], Densities]:
        """Deterministic sites and densities at values, or at these with codes called otherwise."""
        params = self._trained.params
        if renaming is not None:
            values = renaming.of_values(values)
            params = {name: renaming.of_array(name, value) for name, value in params.items()}
        computed, of_model, of_guide = self._compiled(
            dict(values), params, self._arrays, self._template
        )
        return computed, Densities(_flat(*of_model), _flat(*of_guide))

    def _tried(
        self, values: dict[str, Array], params: Any, arrays: tuple[Array, ...], template: Template
    ) -> tuple[dict[str, Array], tuple[Array, Array], tuple[Array, Array]]:
        """Compiled, as it runs some hundred times."""
        model, guide = self._trained.substituted(params)
        args = template.join(arrays).args
        pair = self._pair._replace(model=model, guide=guide, args=args)
        run = run_given(self._key, pair, values)
        record = make_record(run, pair.layout, 1)
        log_p, log_q = record.scale * record.log_p, record.scale * record.log_q
        shared_p = record.shared_likelihood + record.shared_prior
        return _computed(run), (log_p, shared_p), (log_q, record.shared_q)

    def _supports(self, rng_key: Array, run: Run, args: tuple) -> dict[str, Any]:
        """Of parameters and latents, the values that they may have: nothing else asks."""
        params, _ = constraints_of(rng_key, *self._trained.substituted(), args, {})
        return {n: site.base.support for n, site in run.model.items()} | params

    def _arrays_of(self, run: Run) -> dict[str, Any]:
        """Of parameters, of latents that data share and have no codes, and deterministic sites."""
        data = {plate for name in self.sizes for plate in run.guide[name].plates}
        shared = {
            name: value
            for name, value in self.latents.items()
            if name not in self.sizes and not set(run.guide[name].plates) & data
        }
        values = {**self._trained.params, **shared, **_computed(run)}
        return {name: value for name, value in values.items() if hasattr(value, "shape")}


class Renaming(NamedTuple):
    """Codes under other names: a permutation has the new name of each."""

    codes: Codes
    permutation: np.ndarray

    def of_array(self, name: str, value: Any) -> Any:
        """A parameter, latent or deterministic site whose entries go by the codes."""
        return permuted(value, self.codes.axes.get(name, ()), self.permutation)

    def of_values(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The values of latents once the codes among them have been renamed by this permutation."""
        found = {name: self.of_array(name, value) for name, value in values.items()}
        for name in self.codes.sites:
            if name in self.codes.one_hot:
                found[name] = permuted(values[name], (-1,), self.permutation)
            else:
                table = jnp.asarray(self.permutation)
                found[name] = table[values[name].astype(int)].astype(values[name].dtype)
        return found


class _Trial:
    """Codes under trial: states at which they are tried, and the runs there."""

    def __init__(self, symmetries: Symmetries, codes: Codes) -> None:
        self.codes = codes
        self._symmetries = symmetries
        self._states = list(_states(symmetries.latents, codes))
        self._runs = [symmetries.run(values) for values in self._states]
        names = np.arange(codes.size)
        swap, self._cycle = np.r_[1, 0, names[2:]], np.roll(names, 1)
        self._all = [swap] if codes.size == 2 else [self._cycle, swap]

    def moves(self, whose: str, place: ArrayAxis) -> bool:
        """Whether a density changes when this axis alone has other names."""
        alone = self.codes._replace(sites=(), axes=_axes([place]))
        return not self._stays(whose, alone, [self._cycle])

    def search(
        self, whose: str, places: Sequence[ArrayAxis], beside: Sequence[ArrayAxis]
    ) -> tuple[ArrayAxis, ...] | None:
        """The most of these axes that, renamed with the sites, leave a density as it is.

        Of mirrors they are the fewest.
        """
        usual = {place for place in places if place[1] < 0}
        for odd in islice(_subsets(places, range(len(places) + 1)), _MOST_TRIED):
            some = tuple(place for place in places if (place in usual) != (place in odd))
            codes = self.codes._replace(axes=_axes([*beside, *some]))
            if self._stays(whose, codes, self._all):
                return some
        return None

    def computed(
        self, codes: Codes, outputs: Mapping[str, Sequence[int]]
    ) -> dict[str, tuple[int, ...]]:
        """The axes of deterministic sites that go by the codes, as few as may be."""
        runs = zip(self._states, self._runs, strict=True)
        pairs = [
            (permutation, before, self._renamed(values, codes, permutation)[0])
            for values, (before, _) in (runs if outputs else ())
            for permutation in self._all
        ]
        found: dict[str, tuple[int, ...]] = {}
        for name, axes in outputs.items():
            for some in _subsets(axes, range(len(axes) + 1)):
                if all(_alike(permuted(old[name], some, p), new[name]) for p, old, new in pairs):
                    found |= {name: some} if some else {}
                    break
        return found

    def _stays(self, whose: str, codes: Codes, permutations: Sequence[np.ndarray]) -> bool:
        for values, (_, before) in zip(self._states, self._runs, strict=True):
            for permutation in permutations:
                _, after = self._renamed(values, codes, permutation)
                if not _alike(getattr(before, whose), getattr(after, whose)):
                    return False
        return True

    def _renamed(
        self, values: Mapping[str, Array], codes: Codes, permutation: np.ndarray
    ) -> tuple[dict[str, Array], Densities]:
        return self._symmetries.run(values, Renaming(codes, permutation))


def _states(latents: Mapping[str, Array], codes: Codes) -> Iterator[dict[str, Array]]:
    """What was drawn, and other codes, some rarer than others, lest a balance hides one."""
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


def _subsets(items: Sequence[Any], sizes: Iterable[int]) -> Iterator[tuple]:
    return (some for size in sizes for some in combinations(items, size))


def _axes(places: Iterable[ArrayAxis]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, axis in places:
        found[name] = (*found.get(name, ()), axis)
    return found


def permuted(value: Any, axes: Iterable[int], permutation: np.ndarray) -> Any:
    """An array whose entries along some axes are called otherwise, or that is mirrored."""
    old = np.argsort(permutation)  # what has each name now
    for axis in axes:
        if axis < 0:
            value = jnp.take(value, old, axis)
        elif permutation[0]:
            value = axis - value
    return value


def _mirrors_of(value: Array, support: Any) -> tuple[int, ...]:
    """About what an array may be mirrored, and still be in its support."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return ()
    mirrors = _MIRRORS[: 1 + bool(((value >= 0) & (value <= 1)).all())]
    return tuple(m for m in mirrors if support is None or bool(jnp.all(support(m - value))))


def _computed(run: Run) -> dict[str, Array]:
    """Deterministic sites of the model."""
    sites = deterministic_sites(run.model_trace)
    return {name: jnp.asarray(site.value) for name, site in sites.items()}


def _flat(*parts: Array) -> np.ndarray:
    return np.concatenate([np.asarray(part).reshape(-1) for part in parts])


def _alike(value: Any, other: Any) -> bool:
    value, other = np.asarray(value, float), np.asarray(other, float)
    with np.errstate(invalid="ignore"):  # infinities
        same = np.abs(value - other) <= _SAME * (1 + np.abs(value))
    return value.shape == other.shape and bool(((value == other) | same).all())


def _num_codes(site: Site) -> int:
    """How many values one latent of a site has; 0 if they cannot be listed, or are no codes."""
    if not site.has_finite_support:
        return 0
    if known := getattr(site.base, "num_codes", 0):
        return int(known)
    try:
        support = listed_values(site)
    except ValueError:
        return 0
    expected = np.eye(len(support)) if support.ndim > 1 else np.arange(len(support))
    return (
        len(support) if support.shape == expected.shape and bool((support == expected).all()) else 0
    )
