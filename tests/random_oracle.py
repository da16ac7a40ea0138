"""The ELBO of a random program, in NumPy alone: log-densities of each cell, sums over all states.

Arrays have the axes ``[P, R, *plates of the spec, event]``: P - 1 parameters, each moved by an
imaginary step (the first entry is where they are), R rows of draws. A number's gradient is then
``imag / STEP``, to the last digit. The steps of a `scan` are the last of the plates, which makes no
data; what a site takes of the step before it is moved along them.
"""

import itertools
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from random_specs import NUM_CODES, NUM_EVENTS, STEPS, TABLED, TOTAL, make_params

__all__ = ["STEP", "Draws", "Term", "evaluate", "gradient", "perturbed", "states"]

STEP = 1e-30
EVENT_WEIGHTS = np.array([1.0, 0.5])
CHOOSE = np.array([1.0, 2.0, 1.0])  # of TOTAL = 2


class Draws(NamedTuple):
    """Rows of draws of the guide, ``[R, *plates, event]``."""

    codes: dict  # of discrete sites
    normals: dict  # values of normal sites; of noise where `is_noise`
    rows: dict  # of the subsampled plates, ``[size]``
    is_noise: bool = False
    count: int = 1  # of rows, where there are no draws


class Term(NamedTuple):
    """A site's part of a program's log-density, for each cell."""

    log_prob: np.ndarray  # masked, not scaled
    scale: np.ndarray
    bare: np.ndarray  # neither masked nor scaled
    entropy: np.ndarray | None  # of discrete sites, masked
    alive: np.ndarray  # in which rows the site is there
    plates: tuple
    is_latent: bool
    weighed: np.ndarray | None  # as `bare`, a Bernoulli's cells weighed by max(p, 1 - p)
    probs: np.ndarray | None  # of a Bernoulli's cells, in the first row


def perturbed(spec):
    """Parameters by name, ``[P, *shape]``, and which entries of P belong to each."""
    params, theta, places = make_params(spec), {}, {}
    count = 1 + sum(value.size for value in params.values())
    start = 1
    for name, value in params.items():
        moved = np.broadcast_to(value, (count, *value.shape)).astype(complex)
        flat = moved.reshape(count, -1)
        flat[start + np.arange(value.size), np.arange(value.size)] += 1j * STEP
        theta[name], places[name] = flat.reshape(moved.shape), (start, value.shape)
        start += value.size
    return theta, places


def gradient(values, places):
    """Of a number ``[P]``, by parameter."""
    count = max((start + int(np.prod(shape)) for start, shape in places.values()), default=1)
    slopes = np.imag(np.broadcast_to(values, count)) / STEP  # one number where no plate has cells
    return {
        name: slopes[start : start + int(np.prod(shape))].reshape(shape)
        for name, (start, shape) in places.items()
    }


# ------------------------------------------------------------------------------- log-densities


class _Run:
    """One program run at given draws."""

    def __init__(self, spec, data, theta, draws):
        self.spec, self.data, self.theta, self.draws = spec, data, theta, draws
        self.values, self.alive, self.frozen, self.before = {}, {}, set(), {}
        self.num_rows = max(
            [draws.count, *map(len, draws.codes.values()), *map(len, draws.normals.values())]
        )

    def cells(self, site, array, event=False):
        """An array over the site's plates, with an axis for each plate of the spec."""
        array = np.asarray(array)
        for axis, name in enumerate(site.plates):
            plate = self.spec.plate(name)
            rows = self.draws.rows.get(name, np.arange(plate.size))
            array = array.take(rows, axis)
        order = [p.name for p in self.spec.plates if p.name in site.plates]
        inner = list(range(len(site.plates), array.ndim))
        array = array.transpose([site.plates.index(name) for name in order] + inner)
        shape = [p.size if p.name in site.plates else 1 for p in self.spec.plates]
        return array.reshape((1, 1, *shape, *array.shape[len(site.plates) :]))

    def draw(self, site, array):
        """Draws ``[R, *site's plates, event]`` with an axis for each plate."""
        return np.stack([self._placed(site, row) for row in array])[None]

    def _placed(self, site, array):
        order = [p.name for p in self.spec.plates if p.name in site.plates]
        inner = list(range(len(site.plates), array.ndim))
        array = array.transpose([site.plates.index(name) for name in order] + inner)
        shape = [p.size if p.name in site.plates else 1 for p in self.spec.plates]
        return array.reshape((*shape, *array.shape[len(site.plates) :]))

    def param(self, key, extra=0):
        """``[P, 1, 1..., *shape]``, of which the last `extra` dims stay behind the plates."""
        value = self.theta[key]
        ones = (1,) * (1 + len(self.spec.plates) + extra - (value.ndim - 1))
        return value.reshape(value.shape[0], *ones, *value.shape[1:])

    def lean(self, side, site, part):
        """``slope x + links``."""
        key = f"{side}.{site.name}"
        x = self.cells(site, self.data[f"x.{site.name}"])
        total = self.param(f"{key}.slope") * (np.ones_like(x) if part.flat else x)
        for index, link in enumerate(part.links):
            total = total + self.linked(site, link, self.theta[f"{key}.link_{index}"])
        return total

    def linked(self, site, link, weight):
        parent = self.spec[link.parent]
        value = self.earlier(parent) if link.earlier else self.values[link.parent]
        flat = (len(weight),) + (1,) * (value.ndim - 1)
        if parent.kind in TABLED:
            table = sum(weight[:, v].reshape(flat) * (value == v) for v in range(NUM_CODES))
            value, weight = table, np.ones(1)
        if parent.event:
            value = value @ EVENT_WEIGHTS
        lost = set(parent.plates) - set(site.plates)
        axes = tuple(2 + i for i, p in enumerate(self.spec.plates) if p.name in lost)
        if link.how == "last":
            place = 0 if self.spec.scan.reverse else -1
            value = value.take([place], 1 + len(self.spec.plates))
        value = _reduced(value, axes, link.how)
        return weight.reshape(-1, *[1] * (value.ndim - 1)) * value

    def earlier(self, site):
        """A site's value in the step before, in the order of the `scan`; 0 in the first."""
        value = self.before.get(site.name)
        if value is None:
            return np.zeros((1,) * (2 + len(self.spec.plates)) + (NUM_EVENTS,) * site.event)
        axis, is_turned = 1 + len(self.spec.plates), self.spec.scan.reverse
        moved = np.roll(value, -1 if is_turned else 1, axis)
        first = np.arange(value.shape[axis]) == (value.shape[axis] - 1 if is_turned else 0)
        first = first.reshape(-1, *[1] * (value.ndim - axis - 1))
        return np.where(first, 0, moved)

    def scanned(self, side, sites):
        """Sites in the body of a `scan`: after as many rounds as there are steps, all are right.

        In the first round the values of the step before are known in the first step alone, in the
        next one in the second as well, and so on.
        """
        own = [s.name for s in sites if s.name in self.draws.normals] if side == "guide" else []
        terms = {}
        for _ in range(self.spec.plate(STEPS).size):
            self.before = dict(self.values)
            for name in own:
                self.values.pop(name, None)
            terms = {s.name: self.term(side, s, getattr(s, side)) for s in sites}
        return terms

    def term(self, side, site, part):
        """Draw or look up the site's value, and its log-density."""
        alive = np.ones(self.num_rows, bool)
        if site.after:
            switch = self.values[site.after]
            switch = np.real(switch).reshape(switch.shape[1], -1)  # [R, cells]
            alive = (switch != 0).any(1) & self.alive[site.after]
            alive = np.broadcast_to(alive, self.num_rows)
        self.alive[site.name] = alive
        lean = None if part.by_table else self.lean(side, site, part)
        key, shape = f"{side}.{site.name}", [1] * (2 + len(self.spec.plates))
        here = alive.reshape(1, -1, *shape[2:])
        entropy = chances = None
        if site.kind == "factor":
            cells = (self.param(f"{key}.bias") + lean)[..., None]
        elif site.is_discrete:
            log_probs = self.tabled(key, site) if lean is None else self.log_probs(key, site, lean)
            value = self.value(site)
            cells = sum(log_probs[..., v] * (value == v) for v in range(site.num_values))
            entropy = -(np.exp(log_probs) * log_probs).sum(-1)
            chances = np.exp(log_probs[:1, ..., 1].real) if site.kind == "bernoulli" else None
        else:
            cells = self.normal(key, site, lean, side)
            log_scale = self.param(f"{key}.log_scale", 1 if site.event else 0)
            if site.kind == "score_normal":
                entropy = log_scale + 0.5 + 0.5 * np.log(2 * np.pi) + 0 * cells
        cells = cells if site.event or site.kind == "factor" else cells[..., None]
        mask = self.mask(side, site, part)
        if entropy is not None:
            entropy = entropy if site.event else entropy[..., None]
            entropy = np.where(mask, entropy, 0).sum(-1) * here
        plates = [p.size if p.name in site.plates else 1 for p in self.spec.plates]
        full = (cells.shape[0], self.num_rows, *plates)

        def spread(array):
            return np.broadcast_to(array, full)

        weighed = None
        if chances is not None:
            larger = np.maximum(chances, 1 - chances)
            larger = larger if site.event else larger[..., None]
            weighed = spread((larger * cells).sum(-1) * here)
        return Term(
            log_prob=spread(np.where(mask, cells, 0).sum(-1) * here),
            scale=self.scale(side, site, part),
            bare=spread(cells.sum(-1) * here),
            entropy=None if entropy is None else spread(entropy),
            alive=alive,
            plates=site.plates,
            is_latent=self.spec.is_latent(site),
            weighed=weighed,
            probs=None if chances is None else chances[0, 0].reshape(-1),
        )

    def log_probs(self, key, site, lean):
        """``[..., event, V]``."""
        if site.kind in TABLED:
            bias = self.param(f"{key}.bias", 2 if site.event else 1)
            lean = lean[..., None, None] if site.event else lean[..., None]
            logits = bias + self.param(f"{key}.lift", 2 if site.event else 1) * lean
            top = logits.real.max(-1, keepdims=True)
            return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        bias = self.param(f"{key}.bias", 1 if site.event else 0)
        logit = bias + (lean[..., None] if site.event else lean)
        log_one, log_zero = -np.log(1 + np.exp(-logit)), -np.log(1 + np.exp(logit))
        if site.kind == "bernoulli":
            return np.stack([log_zero, log_one], -1)
        k = np.arange(TOTAL + 1)
        both = log_one[..., None] * k + log_zero[..., None] * (TOTAL - k)
        return both + np.log(CHOOSE)

    def tabled(self, key, site):
        """The same of an automatic guide."""
        logits = np.concatenate([self.cells(site, table) for table in self.theta[f"{key}.table"]])
        if site.kind == "bernoulli":
            return -np.log(1 + np.exp(np.stack([logits, -logits], -1)))
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def value(self, site):
        """Codes of a discrete site, of the guide's draws or of the data."""
        if site.name not in self.values:
            if site.name in self.draws.codes:
                self.values[site.name] = self.draw(site, self.draws.codes[site.name])
            else:
                self.values[site.name] = self.observed(site)
        return self.values[site.name]

    def observed(self, site):
        value = self.data[f"obs.{site.name}"]
        if site.one_number:
            shape = self.cells(site, self.data[f"x.{site.name}"]).shape
            return np.broadcast_to(value, (*shape, *value.shape))
        return self.cells(site, value)

    def normal(self, key, site, lean, side):
        bias = self.param(f"{key}.bias", 1 if site.event else 0)
        loc = bias + (lean[..., None] if site.event else lean)
        log_scale = self.param(f"{key}.log_scale", 1 if site.event else 0)
        if site.name not in self.values:
            if site.name not in self.draws.normals:
                self.values[site.name] = self.observed(site)
            else:
                value = self.draw(site, self.draws.normals[site.name])
                if site.kind == "normal" and side == "guide":
                    noise = value
                    if not self.draws.is_noise:
                        noise = (value - loc[:1].real) / np.exp(log_scale[:1].real)
                    if site.name not in self.frozen:
                        value = loc + np.exp(log_scale) * noise
                self.values[site.name] = value
        z = (self.values[site.name] - loc) / np.exp(log_scale)
        return -0.5 * z * z - log_scale - 0.5 * np.log(2 * np.pi)

    def mask(self, side, site, part):
        """``[1, 1, *plates, event or 1]``."""
        if part.mask == "none":
            return np.ones(1, bool)
        side = "model" if part.by_table else side
        mask = self.data[f"mask.{side}.{site.name}"]
        if part.mask == "all":
            return mask.reshape(1)
        mask = self.cells(_of_rows(site) if part.by_row else site, mask)
        inner = part.mask == "distribution" and site.event
        return mask if inner else mask[..., None]

    def scale(self, side, site, part):
        side = "model" if part.by_table else side
        scale = np.ones((1, 1, *[1] * len(self.spec.plates)))
        for name in site.plates:
            scale = scale * self.spec.plate(name).factor
        if self.spec.scale:
            scale = scale * self.spec.scale
        if site.in_round:
            scale = scale * 2
        if part.scale_by_cell:
            of_cells = _of_rows(site) if part.by_row else site
            scale = scale * self.cells(of_cells, self.data[f"scale.{side}.{site.name}"])
        elif part.scale:
            scale = scale * part.scale
        return scale


def _of_rows(site):
    return replace(site, plates=site.plates[:1])


def _reduced(value, axes, how):
    if not axes and how in ("sum", "max", "bare_sum", "bare_max", "first"):
        return value
    if how in ("max", "bare_max"):
        shape = value.shape
        axes_last = [a for a in range(value.ndim) if a not in axes] + list(axes)
        flat = value.transpose(axes_last).reshape(*[shape[a] for a in axes_last[: -len(axes)]], -1)
        top = flat.real.argmax(-1)[..., None]
        return np.take_along_axis(flat, top, -1).reshape(
            [1 if a in axes else n for a, n in enumerate(shape)]
        )
    if how == "prod":
        return np.prod(1 - 0.5 * value, axes, keepdims=True)
    if how == "first":
        return value.take([0], axes[0])
    total = value.sum(axes, keepdims=True)
    return np.where(total.real > 0, 1.0, -1.0) if how == "if" else total


def evaluate(spec, data, theta, draws, frozen=()):
    """Terms of both programs, ``{"guide": {name: Term}, "model": {...}}``.

    Draws of the sites `frozen` stay where they are as the parameters move.
    """
    run, found = _Run(spec, data, theta, draws), {"guide": {}, "model": {}}
    run.frozen = set(frozen)
    for side, sites in (("guide", spec.of_guide()), ("model", spec.of_model())):
        for in_scan, group in itertools.groupby(sites, lambda site: site.in_scan):
            if in_scan:
                found[side] |= run.scanned(side, list(group))
            else:
                found[side] |= {s.name: run.term(side, s, getattr(s, side)) for s in group}
    return found


# ------------------------------------------------------------------------------------- states


def states(spec, data, noise=0.3):
    """Draws of which each row is a joint state of all discrete latents; normals share a noise."""
    rng = np.random.default_rng(spec.seed + 2)
    rows = {p.name: data.get(f"rows.{p.name}", np.arange(p.size)) for p in spec.plates}
    latent, codes, normals = spec.of_guide(), {}, {}
    discrete = [s for s in latent if s.is_discrete]
    counts = [s.num_values for s in discrete for _ in range(spec.num_cells(s))]
    table = np.array(list(itertools.product(*map(range, counts))), int)
    table = table.reshape(-1, len(counts)) if counts else np.zeros((1, 0), int)
    start = 0
    for site in discrete:
        size, shape = spec.num_cells(site), shape_of(spec, site)
        codes[site.name] = table[:, start : start + size].reshape(len(table), *shape)
        start += size
    kept = np.ones(len(table), bool)
    for site in discrete:  # what is not there has no states
        if site.after:
            on = codes.get(site.after)
            if on is None:  # observed
                continue
            on, own = (value.reshape(len(table), -1) for value in (on, codes[site.name]))
            off = ~(on > 0).any(1) & (own > 0).any(1)
            kept &= ~off
    codes = {name: value[kept] for name, value in codes.items()}
    for site in latent:
        if site.kind in ("normal", "score_normal"):
            normals[site.name] = np.broadcast_to(
                noise * rng.normal(size=shape_of(spec, site)), (kept.sum(), *shape_of(spec, site))
            )
    return Draws(codes, normals, rows, is_noise=True)


def shape_of(spec, site):
    """Of a value: the site's plates, in its order, and the event."""
    sizes = tuple(spec.plate(name).size for name in site.plates)
    return (*sizes, NUM_EVENTS) if site.event else sizes
