"""How random programs are made: one choice after another, the simplest first.

`specs` is the hypothesis strategy; `spec_of` makes the same kind of program from a seed.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from random_specs import STEPS, Link, Part, Plate, Scan, Site, Spec

__all__ = ["spec_of", "specs"]

MOST_STATES = 128
MOST_STATES_OF_SCANS = 256
FORMS = {  # of plates, and which of them a site can be under
    "none": ((), ((),)),
    "data": ((("data", -1),), (("data",), ())),
    "nested": ((("data", -2), ("words", -1)), (("data",), ("data", "words"), ("data",), ())),
    "inner": ((("data", -1), ("words", -2)), (("data",), ("data", "words"), ())),
    "crossed": (
        (("items", -2), ("people", -1)),
        (("people",), ("items",), ("items", "people"), ()),
    ),
    "gap": ((("data", -3),), (("data",), ())),
    "deep": (
        (("data", -3), ("words", -2), ("signs", -1)),
        (("data",), ("data", "words"), ("data", "words", "signs"), ("data", "signs")),
    ),
    "apart": ((("left", -1), ("right", -1)), (("left",), ("right",), ())),
}
# Before, inside and after it.
LATENTS_OF_SCANS = ((0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1), (1, 0, 0), (1, 2, 0), (1, 1, 1))
KINDS = ("bernoulli", "categorical", "normal", "onehot", "binomial")
REDUCTIONS = ("sum", "max", "bare_sum", "bare_max", "prod", "first", "item", "if")
ELEMENTWISE = ("sum",)


class Chooser:
    """Choices one after another: `choose` takes options, the simplest first."""

    def __init__(self, choose, python=True, rare=True, wide=True):
        self.choose, self.python, self.rare, self.wide = choose, python, rare, wide

    def often(self, first, second):
        """The second in one case of four."""
        return self.choose((first, first, first, second))

    def maybe(self, share=4):
        return self.choose((False,) * (share - 1) + (True,))

    def rarely(self):
        return self.rare and self.maybe(8)


def plates_of(chooser, form):
    plates = []
    for name, dim in FORMS[form][0]:
        size, full, rows = chooser.choose((2, 2, 2, 3, 1)), None, "given"
        if chooser.maybe():
            full, rows = size + chooser.choose((1, 2)), chooser.choose(("given", "drawn"))
        plates.append(Plate(name, dim, size, full, rows))
    return tuple(plates)


def part_of(chooser, earlier, site, body=()):
    """One half of a site; `body` are sites of a `scan`, of which it may take the step before."""
    links = []
    for parent in [s for s in earlier if s.kind != "factor"][-3:]:
        if chooser.choose((True, False)):
            links.append(Link(parent.name, _how(chooser, parent, site)))
    for parent in [s for s in body if s.kind != "factor"]:
        if chooser.maybe(3):
            links.append(Link(parent.name, _how(chooser, parent, site), earlier=True))
    kind = chooser.often("none", "some")
    mask = chooser.choose(("handler", "distribution", "all")) if kind == "some" else "none"
    if site.kind == "factor" and mask == "distribution":
        mask = "handler"
    scale = chooser.choose((0.5, 3.0)) if chooser.maybe(6) else None
    by_cell = scale is not None and chooser.maybe(3)
    by_cell = by_cell and not (site.in_scan and chooser.choose((True, True, False)))  # refused
    by_row = site.in_scan and (by_cell or mask == "handler") and chooser.maybe(3)
    return Part(tuple(links), scale, by_cell, mask, by_row)


def _how(chooser, parent, site):
    """A way to reduce that the parent's plates allow."""
    lost = set(parent.plates) - set(site.plates)
    bare = not set(parent.plates) & set(site.plates)
    ways = ["sum", "sum"]
    if lost:
        ways.append("max")
    if STEPS in lost:
        ways += ["last", "kept"]
    if bare and parent.plates and not parent.event:
        ways += ["bare_sum", "bare_max", "prod"] + ["first"] * (len(parent.plates) == 1)
    if bare and parent.kind in ("bernoulli", "binomial") and chooser.python:
        ways += ["item", "if"]
    return chooser.choose(tuple(ways))


def latent(chooser, name, form, earlier, steps=()):
    kind, under = chooser.choose(KINDS), (*steps, *chooser.choose(FORMS[form][1]))
    if kind == "normal" and chooser.maybe(6):
        kind = "score_normal"
    event = kind in ("bernoulli", "normal", "categorical") and chooser.maybe()
    site = Site(name, kind, under, event)
    site = replace(site, model=part_of(chooser, earlier, site, _body(earlier, site)))
    site = replace(site, in_round=chooser.rarely())
    if chooser.maybe(6):
        site = replace(site, labelled=True)
    elif chooser.maybe(6):
        site = replace(site, needs="flag")
    switches = [s for s in earlier if s.kind == "bernoulli" and not s.event]
    if switches and chooser.python and chooser.maybe(3):
        site = replace(site, after=switches[-1].name, labelled=False, needs=switches[-1].needs)
        if switches[-1].labelled:
            site = replace(site, after=None)
    return site


def _body(earlier, site):
    """Of a site in a `scan`: the others there, and itself."""
    return [*(s for s in earlier if s.in_scan), site] if site.in_scan else []


def closing(chooser, name, form, earlier, steps=()):
    kind = chooser.choose(("normal", "bernoulli", "categorical", "factor", "normal"))
    under = (*steps, *chooser.choose(FORMS[form][1]))
    event = kind == "normal" and chooser.maybe()
    site = Site(name, kind, under, event)
    site = replace(site, model=part_of(chooser, earlier, site, _body(earlier, site)))
    switches = [s for s in earlier if s.kind == "bernoulli" and not s.event]
    if switches and chooser.python and chooser.maybe(6):
        site = replace(site, after=switches[0].name, needs=switches[0].needs)
    return site


def there(sites):
    """Without links to sites that may be absent while the child is there."""
    by_name = {s.name: s for s in sites}

    def kept(site, part):
        fine = [
            link
            for link in part.links
            if (p := by_name[link.parent]).after in (None, site.after)
            and p.needs in (None, site.needs)
        ]
        return replace(part, links=tuple(fine))

    return [replace(s, model=kept(s, s.model)) if s.model else s for s in sites]


def guides_of(chooser, form, sites):
    """Guide halves, in an order of their own, some after an auxiliary site."""
    latent = [s for s in sites if s.guide is None and s.name.startswith("z")]
    free = not any(s.after for s in latent)
    order = latent[::-1] if free and chooser.maybe(3) else latent
    done, found, extra = [], {}, []
    if chooser.rarely():
        extra = [Site("a", "bernoulli", chooser.choose(FORMS[form][1]), model=None, guide=Part())]
    for site in order:

        def is_known(other, site=site):
            is_there = other.after in (None, site.after) and other.needs in (None, site.needs)
            return is_there and not (other.labelled and not site.labelled)

        earlier = list(filter(is_known, extra + done))
        body = [s for s in latent if s.in_scan and is_known(s)] if site.in_scan else []
        part = part_of(chooser, earlier, site, body)
        found[site.name] = replace(site, guide=part)
        done.append(site)
    names = tuple(s.name for s in extra + order)
    return extra + [found.get(s.name, s) for s in sites], names


def _plain(chooser, form):
    """Sites of a model."""
    sites = []
    for index in range(chooser.choose((1, 2, 3))):
        sites.append(latent(chooser, f"z{index}", form, sites))
    for index in range(chooser.choose((1, 2))):
        sites.append(closing(chooser, f"y{index}", form, sites))
    return sites


def _scanned(chooser, form):
    """Sites of a model, one to three of them in the body of a `scan`."""
    before, inside, after = chooser.choose(LATENTS_OF_SCANS)
    seen = chooser.choose((1, 1, 2) if inside < 2 else (1, 0))
    makers = [("z", latent)] * inside + [("y", closing)] * seen
    makers = makers[::-1] if chooser.maybe() else makers
    outside = [("z", latent)] * after + [("y", closing)] * chooser.choose((0, 1) if seen else (1,))
    sites = []
    for place, (letter, make) in enumerate([("z", latent)] * before + makers + outside):
        steps = (STEPS,) if before <= place < before + len(makers) else ()
        sites.append(make(chooser, f"{letter}{place}", form, sites, steps))
    body = [site for site in sites if site.in_scan and site.kind != "factor"]
    if len(body) > 1 and chooser.maybe():  # the first takes what the last was
        first, last = body[0], body[-1]
        link = Link(last.name, _how(chooser, last, first), earlier=True)
        part = replace(first.model, links=(*first.model.links, link))
        sites[sites.index(first)] = replace(first, model=part)
    return sites


def build(chooser, scans=False):
    """One spec and another call of it: other sizes, flags and labels; with a `scan`, or without."""
    chooser.python = chooser.python and not scans
    form = chooser.choose(tuple(FORMS))
    sites = _scanned(chooser, form) if scans else _plain(chooser, form)
    sites, order = guides_of(chooser, form, there(sites))
    if chooser.maybe(8):
        factor = Site("g", "factor", model=None)
        earlier = [s for s in sites if s.name in order and not (s.after or s.needs or s.labelled)]
        sites.append(replace(factor, guide=part_of(chooser, earlier, factor)))
        order = (*order, "g")
    seed, scale = chooser.choose(tuple(range(50))), 0.5 if chooser.maybe(6) else None
    flags = ("flag",) if chooser.choose((True, False)) else ()
    first = Spec(plates_of(chooser, form), tuple(sites), order, scale, flags, False, seed)
    finds_dims = form in ("data", "inner", "apart") and chooser.choose((False, True))
    first = replace(first, marked=chooser.rarely())
    plates = next(site for site in sites if site.model).plates
    plates = tuple(name for name in plates if name != STEPS)
    baseline = chooser.choose((plates, None, ()))
    first = replace(first, baseline=baseline)
    first = replace(first, conditioned=chooser.maybe(), finds_dims=finds_dims)
    other = replace(
        first,
        plates=plates_of(chooser, form),
        flags=("flag",) if chooser.choose((True, False)) else (),
        has_labels=chooser.choose((True, False)),
    )
    if chooser.wide:
        sites = _widened(chooser, first.sites)
        first, other = replace(first, sites=sites), replace(other, sites=sites)
    if scans:
        first, other = _with_steps(chooser, first, other)
    smallest = (
        replace(s, plates=tuple(replace(p, size=1) for p in s.plates)) for s in (first, other)
    )
    if max(spec.num_states for spec in smallest) > _most_states(first):
        first, other = _without_events(first), _without_events(other)
    return shrunk(first), shrunk(other)


def _widened(chooser, sites):
    """The sites, some of whose parts and data have fewer dims than their cells."""
    parts = [part for site in sites for part in (site.model, site.guide) if part]
    parents = {link.parent for part in parts for link in part.links} | {s.after for s in sites}
    return tuple(_wide(chooser, site, site.name not in parents) for site in sites)


def _wide(chooser, site, is_leaf):
    def wide(part):
        part = replace(part, flat=chooser.maybe(5))
        if site.event and part.mask == "none" and chooser.maybe(3):
            part = replace(part, mask="distribution")
        if site.event and part.mask == "distribution":
            part = replace(part, of_events=chooser.choose((True, False)))
        is_weighed = part.scale_by_cell or part.mask in ("handler", "distribution")
        if is_weighed and site.plates and not site.in_scan:
            part = replace(part, by_row=chooser.maybe(3))
        return part

    halves = {side: wide(part) for side in ("model", "guide") if (part := getattr(site, side))}
    is_seen = is_leaf and site.guide is None and not site.in_scan and site.kind != "factor"
    return replace(site, **halves, one_number=is_seen and chooser.maybe(5))


def _with_steps(chooser, *calls):
    """Rows that are drawn are those of all steps where their plate is made before."""
    drawn = any(plate.full and plate.rows == "drawn" for spec in calls for plate in spec.plates)
    where = "before" if drawn else chooser.choose(("inside", "before"))
    scan = Scan(chooser.maybe(), where)
    steps = [Plate(STEPS, 0, chooser.choose((2, 2, 3))) for _ in calls]
    if chooser.wide and chooser.maybe(3):
        scan = replace(scan, in_guide=False)
    return [
        replace(_at_once(spec, scan), scan=scan, plates=(*spec.plates, plate))
        for spec, plate in zip(calls, steps, strict=True)
    ]


def _at_once(spec, scan):
    """Without what a guide that draws all steps at once cannot say of them."""

    def depth_of(site):
        return max((-spec.plate(name).dim for name in site.plates if name != STEPS), default=0)

    def is_said(site, link):
        parent = spec[link.parent]
        return not (link.earlier or (parent.in_scan and depth_of(parent) != depth_of(site)))

    def told(site):
        if scan.in_guide or not site.in_scan or not site.guide:
            return site
        links = tuple(link for link in site.guide.links if is_said(site, link))
        return replace(site, guide=replace(site.guide, links=links))

    return replace(spec, sites=tuple(map(told, spec.sites)))


def _most_states(spec):
    return MOST_STATES_OF_SCANS if spec.scan else MOST_STATES


def _smallest(spec):
    return replace(spec, plates=tuple(replace(plate, size=1) for plate in spec.plates))


def _without_events(spec):
    return replace(spec, sites=tuple(replace(site, event=False) for site in spec.sites))


def shrunk(spec):
    """With as few cells as it takes to list the states."""
    while spec.num_states > _most_states(spec):
        large = [p for p in spec.plates if p.size > 1]
        plate = max(large, key=lambda p: (p.name != STEPS, p.size))
        small = replace(plate, size=plate.size - 1)
        spec = replace(spec, plates=tuple(small if p is plate else p for p in spec.plates))
    return spec


@st.composite
def specs(draw, python=True, rare=True, scans=False):
    """A program and two calls of it; with Python's `if` on draws and rare kinds, or without."""
    chooser = Chooser(lambda options: draw(st.sampled_from(options)), python, rare)
    return build(chooser, scans and chooser.maybe())


def spec_of(seed, python=True, rare=True, scans=False, wide=True):
    """The same by a seed, as a command needs it; a `scan` is in every fifth."""
    rng = np.random.default_rng(seed)

    def choose(options: tuple) -> Any:
        return options[rng.integers(len(options))]

    return build(Chooser(choose, python, rare, wide), scans == "all" or (scans and seed % 5 == 4))
