"""Models whose posterior is a guide that computes it from the data, and guides that are wrong.

What the data share, if anything, is drawn first; a datum's latents are drawn given it. Readings of
a sign z have the log odds 2 x of x ~ N(2 z - 1, 1).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

ROWS, GROUPS = 6, 4


class Known(NamedTuple):
    """A model, the guide that is its posterior, and data of the shapes it takes."""

    model: Callable
    guide: Callable
    data: dict
    shared: tuple[str, ...]


# Nothing shared: a mixture, of all rows or of some


def mixture(ppl, data):
    with ppl.plate("data", ROWS):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.zeros(1)[0]))
        ppl.sample("x", ppl.dist.Normal(2.0 * z - 1.0, 1.0), obs=data["x"])


def mixture_guide(ppl, data, slope=2.0, offset=0.0):
    with ppl.plate("data", ROWS):
        ppl.sample("z", ppl.dist.Bernoulli(logits=slope * data["x"] + offset))


def subsample(ppl, data):
    with ppl.plate("data", 2 * ROWS, subsample_size=ROWS) as rows:
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.zeros(1)[0]))
        ppl.sample("x", ppl.dist.Normal(2.0 * z - 1.0, 1.0), obs=data["x"][rows])


def subsample_guide(ppl, data):
    with ppl.plate("data", 2 * ROWS, subsample_size=ROWS) as rows:
        ppl.sample("z", ppl.dist.Bernoulli(logits=2.0 * data["x"][rows]))


# A mean that all readings share, and signs that follow it; some readings and signs missing


def hierarchy(ppl, data):
    mu = ppl.sample("mu", ppl.dist.Normal(0.0, 1.0))
    with ppl.plate("data", ROWS):
        ppl.sample("z", ppl.dist.Bernoulli(logits=2.0 * mu))
        ppl.sample("x", ppl.dist.Normal(mu, 1.0), obs=data["x"])


def hierarchy_guide(ppl, data, shift=0.0, width=1.0, slope=2.0, offset=0.0):
    loc, scale = data["x"].sum(-1) / (1.0 + ROWS) + shift, width / np.sqrt(1.0 + ROWS)
    mu = ppl.sample("mu", ppl.dist.Normal(loc, scale))
    with ppl.plate("data", ROWS):
        ppl.sample("z", ppl.dist.Bernoulli(logits=slope * mu + offset + ppl.zeros(ROWS)))


def missing(ppl, data):
    mu = ppl.sample("mu", ppl.dist.Normal(0.0, 1.0))
    with ppl.plate("data", ROWS):
        with ppl.mask(mask=data["labelled"]):
            ppl.sample("z", ppl.dist.Bernoulli(logits=2.0 * mu))
        with ppl.mask(mask=data["seen"]):
            ppl.sample("x", ppl.dist.Normal(mu, 1.0), obs=data["x"])


def missing_guide(ppl, data):
    seen = 1.0 * data["seen"]
    count = 1.0 + seen.sum(-1)
    mu = ppl.sample("mu", ppl.dist.Normal((seen * data["x"]).sum(-1) / count, count**-0.5))
    with ppl.plate("data", ROWS), ppl.mask(mask=data["labelled"]):  # all 1 where nobody asks
        logits = 2.0 * mu * data["labelled"] + 30.0 * (1.0 - 1.0 * data["labelled"])
        ppl.sample("z", ppl.dist.Bernoulli(logits=logits))


# A level of each group of rows


def groups(ppl, data):
    with ppl.plate("groups", GROUPS, dim=-1):
        level = ppl.sample("level", ppl.dist.Normal(0.0, 1.0))
        with ppl.plate("rows", ROWS, dim=-2):
            ppl.sample("z", ppl.dist.Bernoulli(logits=2.0 * level))
            ppl.sample("x", ppl.dist.Normal(level, 1.0), obs=data["x"])


def groups_guide(ppl, data, offset=0.0):
    with ppl.plate("groups", GROUPS, dim=-1):
        loc, scale = data["x"].sum(-2) / (1.0 + ROWS), 1.0 / np.sqrt(1.0 + ROWS)
        level = ppl.sample("level", ppl.dist.Normal(loc, scale))
        with ppl.plate("rows", ROWS, dim=-2):
            logits = 2.0 * level + offset + ppl.zeros(ROWS)[:, None]
            ppl.sample("z", ppl.dist.Bernoulli(logits=logits))


# A switch of all rows at once


STRONG, WEAK = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(2.0))  # chance of a 1, switched on and off


def switch(ppl, data):
    s = ppl.sample("s", ppl.dist.Bernoulli(logits=ppl.zeros(1)[0]))
    with ppl.plate("data", ROWS):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=4.0 * s - 2.0))
        ppl.sample("x", ppl.dist.Normal(2.0 * z - 1.0, 1.0), obs=data["x"])


def switch_guide(ppl, data, follows=1.0):
    up, down = ppl.exp(data["x"]), ppl.exp(-data["x"])
    on, off = (p * up + (1 - p) * down for p in (STRONG, WEAK))
    odds = (on / off).prod(-1) ** follows
    s = ppl.sample("s", ppl.dist.Bernoulli(probs=odds / (1 + odds)))
    with ppl.plate("data", ROWS):
        ppl.sample("z", ppl.dist.Bernoulli(logits=4.0 * s - 2.0 + 2.0 * data["x"]))


LINE = np.linspace(-1.0, 1.0, ROWS)
HALF = {"seen": np.arange(ROWS) % 3 > 0, "labelled": np.arange(ROWS) % 2 > 0}
KNOWN = {
    "mixture": Known(mixture, mixture_guide, {"x": LINE}, ()),
    "subsample": Known(subsample, subsample_guide, {"x": np.linspace(-1, 1, 2 * ROWS)}, ()),
    "hierarchy": Known(hierarchy, hierarchy_guide, {"x": LINE}, ("mu",)),
    "missing": Known(
        missing, missing_guide, {"x": np.where(HALF["seen"], LINE, 1e3), **HALF}, ("mu",)
    ),
    "groups": Known(
        groups, groups_guide, {"x": np.linspace(-1, 1, 24).reshape(ROWS, GROUPS)}, ("level",)
    ),
    "switch": Known(switch, switch_guide, {"x": LINE}, ()),
}
WRONG = {  # model, what is changed in its guide, and what must be found
    "blind": ("mixture", {"slope": 0.0}, "log_p"),
    "shifted": ("mixture", {"offset": 1.0}, "z"),
    "too narrow": ("hierarchy", {"width": 0.4}, "mu"),
    "beside": ("hierarchy", {"shift": 0.5}, "mu"),
    "mean field": ("hierarchy", {"slope": 0.0}, "log_p"),
    "shifted in groups": ("groups", {"offset": 1.0}, "z"),
    "blind switch": ("switch", {"follows": 0.0}, "log_p"),
}
