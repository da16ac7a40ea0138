"""Probabilistic programs at random, as data: what a model and its guide sample, not how.

A `Spec` is written out as a Pyro or a NumPyro pair by `random_pyro` and `random_numpyro`, and its
ELBO is summed over all states by `random_oracle`, which knows neither. They are made in
`random_strategy`.

A site's logit or location is ``bias + slope x + sum of what its links say of earlier sites``. A
link reduces its parent over the plates that the child is not under, in the way `how` says.

The steps of a `scan` are written as a plate, `STEPS`, of the sites in its body, which is none: it
makes no data, and is last among the plates and first among those of a site.
"""

from dataclasses import dataclass, replace

import numpy as np

__all__ = ["STEPS", "Link", "Part", "Plate", "Scan", "Site", "Spec", "make_data", "make_params"]

STEPS = "steps"

TABLED = ("categorical", "onehot")  # kinds whose values are codes of a table
NUM_CODES = 3
TOTAL = 2  # of a binomial
NUM_EVENTS = 2


@dataclass(frozen=True)
class Plate:
    """A plate; `full` is its size where this is the size of a subsample."""

    name: str
    dim: int
    size: int = 2
    full: int | None = None
    rows: str = "given"  # or "drawn", at random, by the program

    @property
    def factor(self):
        return (self.full or self.size) / self.size


@dataclass(frozen=True)
class Link:
    """What a site takes of an earlier one; `how` reduces the plates that it is not under.

    "sum" and "max" keep dims, as vectorised programs must; "bare_sum", "bare_max", "prod" and
    "first" mix particles; "item" and "if" pass through Python. Of the steps of a `scan`, "last" is
    the last one, and "kept" a sum that keeps them as a dim.
    """

    parent: str
    how: str = "sum"
    earlier: bool = False  # what the parent was in the step before, by the carry; 0 in the first


@dataclass(frozen=True)
class Part:
    """One program's half of a site."""

    links: tuple[Link, ...] = ()
    scale: float | None = None
    scale_by_cell: bool = False
    mask: str = "none"  # "handler", "all" (False for the whole site), "distribution"
    by_row: bool = False  # a mask or scale by cell is one number a row of the site's first plate
    of_events: bool = True  # a mask inside a distribution has a number for each event
    flat: bool = False  # the same in all cells, but for what links say: no data, no batch dims
    by_table: bool = False  # of an automatic guide: logits of each cell, scaled and masked as the
    # model's half is


@dataclass(frozen=True)
class Site:
    """A site; without a guide it is observed, or a factor; without a model it is auxiliary."""

    name: str
    kind: str = "bernoulli"  # categorical, onehot, binomial, normal, score_normal, factor
    plates: tuple[str, ...] = ()
    event: bool = False  # under .to_event(1), of NUM_EVENTS
    model: Part | None = Part()  # None for a factor or an auxiliary site of the guide
    guide: Part | None = None
    labelled: bool = False  # observed in calls with labels, and absent from the guide there
    needs: str | None = None  # it is there if a flag of the data is set
    in_round: bool = False  # in one of two rounds of a loop, which is subsampled
    after: str | None = None  # it is there if that earlier site is not 0, in Python
    one_number: bool = False  # what is observed is the same in all cells, without their dims

    @property
    def in_scan(self):
        return STEPS in self.plates

    @property
    def is_discrete(self):
        return self.kind in ("bernoulli", "categorical", "onehot", "binomial")

    @property
    def num_values(self):
        return {"bernoulli": 2, "binomial": TOTAL + 1}.get(self.kind, NUM_CODES)


@dataclass(frozen=True)
class Scan:
    """How the sites of `STEPS` are run, one step after another."""

    reverse: bool = False
    plates: str = "inside"  # opened anew in each step; or "before", and entered in each
    in_guide: bool = True  # else the guide draws all steps at once, under a plate


@dataclass(frozen=True)
class Spec:
    """A program, its guide, and one call of them."""

    plates: tuple[Plate, ...] = ()
    sites: tuple[Site, ...] = ()  # in the model's order
    order: tuple[str, ...] = ()  # of the guide's sites
    scale: float | None = None  # around both programs
    flags: tuple[str, ...] = ()  # of the data
    has_labels: bool = False
    seed: int = 0
    baseline: tuple[str, ...] | None = None  # plates of the guide's prediction of scores
    marked: bool = False  # discrete sites are marked for enumeration, which must not matter
    conditioned: bool = False  # data are given by `condition`, not by `obs`
    finds_dims: bool = False  # plates have no `dim`, and find those that they are said to have
    scan: Scan | None = None  # of NumPyro; a loop in Pyro

    def __getitem__(self, name):
        return next(site for site in self.sites if site.name == name)

    def plate(self, name):
        return next(plate for plate in self.plates if plate.name == name)

    def is_there(self, site):
        """In this call, as far as the data say."""
        return site.needs is None or site.needs in self.flags

    def is_latent(self, site):
        has_both = site.guide is not None and site.model is not None
        return has_both and not (site.labelled and self.has_labels)

    def of_model(self):
        return [s for s in self.sites if self.is_there(s) and s.model is not None]

    def of_guide(self):
        there = [self[name] for name in self.order]
        return [s for s in there if self.is_there(s) and (self.is_latent(s) or s.model is None)]

    def num_cells(self, site):
        sizes = [self.plate(name).size for name in site.plates]
        return int(np.prod(sizes)) * (NUM_EVENTS if site.event else 1)

    def is_by_step(self, side, sites, key):
        """Whether an array of the data has the steps of some sites of a `scan` in front."""
        kind, *rest = key.split(".")
        names = {site.name for site in sites}
        if kind in ("mask", "scale"):
            part = rest[0] == side and rest[1] in names and getattr(self[rest[1]], side)
            return bool(part) and not (kind == "mask" and part.mask == "all")
        here = [site for site in sites if not (kind == "obs" and site.one_number)]
        return kind in ("x", "obs") and rest[0] in {site.name for site in here}

    @property
    def num_states(self):
        latent = [s for s in self.of_guide() if s.is_discrete]
        return int(np.prod([float(s.num_values) ** self.num_cells(s) for s in latent]))

    def num_states_under(self, plates):
        """Of the discrete latents of a datum, a cell of these plates."""
        count = 1
        for site in self.of_guide():
            if site.is_discrete:
                sizes = [self.plate(name).size for name in site.plates if name in plates]
                count *= site.num_values ** (self.num_cells(site) // int(np.prod(sizes)))
        return count

    @property
    def depends_on_draws(self):
        """Whether which sites there are does."""
        there = [site for site in self.sites if self.is_there(site) and site.after]
        return any(self.is_latent(self[s.after]) or self[s.after].after for s in there)

    @property
    def asks_python(self):
        """Whether a value decides something in Python."""
        parts = [p for s in self.sites for p in (s.model, s.guide) if p and self.is_there(s)]
        asks = any(link.how in ("item", "if") for part in parts for link in part.links)
        return asks or self.depends_on_draws

    @property
    def asks_draws(self):
        """Whether Python asks for a value that the guide draws without a pathwise gradient."""
        drawn = {s.name for s in self.of_guide() if s.is_discrete}
        parts = [s.model for s in self.of_model()] + [s.guide for s in self.of_guide()]
        asked = {k.parent for part in parts for k in part.links if k.how in ("item", "if")}
        asked |= {s.after for s in (*self.of_model(), *self.of_guide()) if s.after}
        return bool(asked & drawn)


def with_rest(spec):
    """The program with a guide whose continuous sites know nothing of the discrete ones."""

    def kept(site, parent):
        return parent.model is not None and (site.is_discrete or not parent.is_discrete)

    def rest_of(site):
        if site.guide is None:
            return site
        links = tuple(link for link in site.guide.links if kept(site, spec[link.parent]))
        return replace(site, guide=replace(site.guide, links=links))

    sites = tuple(rest_of(site) for site in spec.sites if site.model is not None)
    names = {site.name for site in sites}
    return replace(spec, sites=sites, order=tuple(n for n in spec.order if n in names))


def of_bits(spec):
    """The program with Bernoulli latents alone, of those that are discrete."""

    def bits_of(site):
        is_latent = site.guide is not None and site.is_discrete
        return replace(site, kind="bernoulli") if is_latent else site

    return replace(spec, sites=tuple(map(bits_of, spec.sites)))


def of_one_plate(spec):
    """The program with all of its sites under its first plate, or as it is if others lie there."""
    of_data = [plate for plate in spec.plates if plate.name != STEPS]
    if not of_data or sum(p.dim == of_data[0].dim for p in of_data) > 1:
        return spec
    first = of_data[0].name

    def moved_part(part):
        ways = {"max": "max", "last": "last"}
        links = tuple(replace(link, how=ways.get(link.how, "sum")) for link in part.links)
        return replace(part, links=links)

    def moved(site):
        halves = {s: p and moved_part(p) for s, p in (("model", site.model), ("guide", site.guide))}
        others = [name for name in site.plates if name != first]
        plates = (*others[: site.in_scan], first, *others[site.in_scan :])
        return replace(site, plates=plates, after=None, **halves)

    return replace(spec, sites=tuple(map(moved, spec.sites)))


def of_automatic(spec):
    """The program with an automatic guide of its latents, all of which are discrete."""

    def guided(site):
        if not site.is_discrete or site.guide is None:
            return replace(site, guide=None, labelled=False, after=None)
        guide = replace(site.model, links=(), by_table=True, flat=False)
        return replace(site, guide=guide, after=None)

    sites = tuple(guided(site) for site in spec.sites if site.model is not None)
    order = tuple(site.name for site in sites if site.guide is not None)
    return replace(spec, sites=sites, order=order, baseline=None)


# --------------------------------------------------------------------------- numbers of a spec


def part_params(spec, site, part, rng):
    """The parameters of one half of a site."""
    size = (NUM_EVENTS,) if site.event else ()
    if part.by_table:
        full = [spec.plate(name).full or spec.plate(name).size for name in site.plates]
        logits = () if site.kind == "bernoulli" else (site.num_values,)
        return {"table": rng.normal(size=(*full, *size, *logits))}
    params = {"bias": rng.normal(size=(*size, NUM_CODES) if site.kind in TABLED else size)}
    params["slope"] = rng.normal(size=())
    if site.kind in TABLED:
        params["lift"] = rng.normal(size=NUM_CODES)
    if site.kind in ("normal", "score_normal"):
        params["log_scale"] = 0.3 * rng.normal(size=())
    for index, link in enumerate(part.links):
        tabled = spec[link.parent].kind in TABLED
        params[f"link_{index}"] = rng.normal(size=NUM_CODES if tabled else ())
    return params


def make_params(spec):
    """Arrays by "model.site.name" and "guide.site.name"."""
    rng, params = np.random.default_rng(spec.seed), {}
    if spec.baseline is not None:
        params["guide.baseline"] = np.array(0.4)
    for side in ("model", "guide"):
        for site in spec.sites:
            part = getattr(site, side)
            if part is not None:
                found = part_params(spec, site, part, rng)
                params |= {f"{side}.{site.name}.{key}": value for key, value in found.items()}
    return params


def make_data(spec):
    """Arrays over the full sizes of a site's plates, in their order, and the event dim."""
    rng, data = np.random.default_rng(spec.seed + 1), {}
    for plate in spec.plates:
        if plate.full and plate.rows == "given":
            data[f"rows.{plate.name}"] = rng.permutation(plate.full)[: plate.size]
    for site in spec.sites:
        full = [spec.plate(name).full or spec.plate(name).size for name in site.plates]
        event = [NUM_EVENTS] if site.event else []
        data[f"x.{site.name}"] = rng.normal(size=full)
        seen = event if site.one_number else full + event
        if site.kind in ("normal", "score_normal"):
            data[f"obs.{site.name}"] = rng.normal(size=seen)
        elif site.is_discrete:
            data[f"obs.{site.name}"] = rng.integers(site.num_values, size=seen)
        for side in ("model", "guide"):
            part = getattr(site, side)
            if part is not None and part.mask != "none":
                inner = event if part.mask == "distribution" else []
                inner = inner if part.of_events else [1] * len(inner)
                cells = full[:1] if part.by_row else full
                shape = [] if part.mask == "all" else cells + inner
                kept = rng.random(size=shape) < 0.6
                data[f"mask.{side}.{site.name}"] = np.zeros(shape, bool) if not shape else kept
            if part is not None and part.scale_by_cell:
                cells = full[:1] if part.by_row else full
                data[f"scale.{side}.{site.name}"] = rng.uniform(0.5, 2.0, size=cells)
    return data
