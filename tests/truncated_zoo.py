"""Programs for truncated posteriors, written once for both frameworks, and exact log joints.

As in `zoo`, a program is over the primitives of `ppl`. `log_joint(params, data)` is a table over
all states of a datum, ``(states, data)``, in the order of `oracles.all_codes(cardinalities)`;
analytic in the parameters, so that `zoo.gradient` differentiates what is made of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from oracles import all_codes
from zoo import NESTED_DATA, NOISE, PROGRAMS, bernoulli, log_softmax, nested_model, normal

RNG = np.random.default_rng(3)


class SetProgram(NamedTuple):
    name: str
    model: Callable  # (ppl, data)
    log_joint: Callable  # (params, data) -> (states, data)
    cardinalities: tuple
    params: dict
    data: dict
    rest: Callable | None = None  # (ppl, data)


def draw(*shape):
    return RNG.normal(size=shape)


def log_sum_exp(values):
    """Analytic, so that a complex step goes through."""
    top = values.real.max(0)
    return np.log(np.exp(values - top).sum(0)) + top


# --- binary causes of real pixels, rows of a larger data set, some pixels missing

NUM_DATA = 6
CAUSES = (2,) * 4


def causes_model(ppl, data):
    weight, prior = ppl.param("weight", data), ppl.param("prior", data)
    with ppl.plate("data", NUM_DATA, subsample=data["rows"]):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=prior).to_event(1))
        noise = ppl.dist.Normal(z @ weight, ppl.exp(ppl.param("log_scale", data)))
        ppl.sample("x", noise.mask(data["seen"]).to_event(1), obs=data["x"])


def causes_log_joint(p, data):
    codes = all_codes(CAUSES)
    log_prior = bernoulli(codes, p["prior"]).sum(-1)
    pixels = normal(data["x"], (codes @ p["weight"])[:, None], p["log_scale"])
    return log_prior[:, None] + (pixels * data["seen"]).sum(-1)


CAUSES_DATA = {
    "x": draw(NUM_DATA, 3) * 2,
    "rows": np.arange(NUM_DATA),
    "seen": np.ones((NUM_DATA, 3), bool),
}


def some(rows, data=CAUSES_DATA):
    """A minibatch."""
    rows = np.asarray(rows)
    return {"x": data["x"][rows], "rows": rows, "seen": data["seen"][rows]}


# --- two sites, with other numbers of codes, one given the other; a datum is a cell of two plates


def sites_model(ppl, data):
    gate, weight = ppl.param("gate", data), ppl.param("weight", data)
    with ppl.plate("groups", 2, dim=-2), ppl.plate("items", 2, dim=-1):
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=gate[1, :2]).to_event(1))
        b = ppl.sample("b", ppl.dist.Categorical(logits=gate[0] * a[..., :1] + weight))
        loc = a @ weight[:2] + gate[1][b]
        ppl.sample("x", ppl.dist.Normal(loc, 1.0), obs=data["x"])


SITES = (2, 2, 3)


def sites_log_joint(p, data):
    table = []
    for *a, b in all_codes(SITES):
        a = np.array(a)
        log_prior = bernoulli(a, p["gate"][1, :2]).sum()
        log_prior = log_prior + log_softmax(p["gate"][0] * a[0] + p["weight"])[b]
        table.append(log_prior + normal(data["x"], a @ p["weight"][:2] + p["gate"][1][b]))
    return np.array(table).reshape(len(table), -1)


# --- latents in a plate of their own within a datum, some of them masked


def nested_log_joint(p, data):
    """A masked word has but one state, its first code."""
    table = []
    for z in all_codes((2, 2)):
        words = bernoulli(z, p["slope"][0]) + normal(data["w"], p["slope"][1] * z)
        total = (z * data["mask"]).sum(-1)
        ours = (words * data["mask"]).sum(-1) + normal(data["y"][:, 0], p["slope"][2] * total)
        table.append(np.where((z * ~data["mask"]).any(-1), -np.inf, ours))
    return np.array(table)


# --- a continuous site of the datum and a global one beside the states


def rest_model(ppl, data):
    slope = ppl.param("slope", data)
    shift = ppl.sample("shift", ppl.dist.Normal(0.0, 1.0))
    with ppl.plate("data", len(data["x"])):
        c = ppl.sample("c", ppl.dist.Normal(0.0, 1.0))
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=slope[0] * c))
        loc = slope[1] * a + slope[2] * c + shift
        ppl.sample("x", ppl.dist.Normal(loc, 1.0), obs=data["x"])


def rest_guide(ppl, data):
    loc = ppl.param("loc", data)
    ppl.sample("shift", ppl.fixed_noise_normal(loc[0], ppl.exp(loc[1])))
    with ppl.plate("data", len(data["x"])):
        ppl.sample("c", ppl.fixed_noise_normal(loc[2] * data["x"], ppl.exp(loc[3])))


def rest_log_joint(p, data):
    """Given the one draw of the rest, with its own log-densities ratio in."""
    shift = p["loc"][0] + np.exp(p["loc"][1]) * NOISE
    c = p["loc"][2] * data["x"] + np.exp(p["loc"][3]) * NOISE
    ratio = normal(c, 0.0) - normal(c, p["loc"][2] * data["x"], p["loc"][3])
    return np.array(
        [
            bernoulli(a, p["slope"][0] * c)
            + normal(data["x"], p["slope"][1] * a + p["slope"][2] * c + shift)
            + ratio
            for a in (0, 1)
        ]
    )


def rest_shared(p):
    shift = p["loc"][0] + np.exp(p["loc"][1]) * NOISE
    return normal(shift, 0.0) - normal(shift, p["loc"][0], p["loc"][1])


CAUSES_PROGRAM = SetProgram(
    "causes",
    causes_model,
    causes_log_joint,
    CAUSES,
    {"weight": draw(4, 3), "prior": draw(4), "log_scale": np.array(-0.3)},
    CAUSES_DATA,
)
SITES_PROGRAM = SetProgram(
    "sites",
    sites_model,
    sites_log_joint,
    SITES,
    {"gate": draw(2, 3), "weight": draw(3)},
    {"x": draw(2, 2)},
)
NESTED_PROGRAM = SetProgram(
    "nested",
    nested_model,
    nested_log_joint,
    (2, 2),
    next(program.params for program in PROGRAMS if program.name == "nested"),
    NESTED_DATA,
)
REST_PROGRAM = SetProgram(
    "rest",
    rest_model,
    rest_log_joint,
    (2,),
    {"slope": draw(3), "loc": 0.5 * draw(4)},
    {"x": draw(3)},
    rest_guide,
)


def truncated(shim, **options):
    return shim.module("infer.truncated").Truncated_ELBO(**options)


def as_index(codes, cardinalities=CAUSES):
    """Which state of the table codes are."""
    return np.ravel_multi_index(np.moveaxis(codes.astype(int), -1, 0), cardinalities)


def table(data=CAUSES_DATA, params=CAUSES_PROGRAM.params):
    return CAUSES_PROGRAM.log_joint(params, data)


def members_log_joint(sets, data=CAUSES_DATA):
    """(S, data) of the sets' own states, from the oracle's table."""
    index = as_index(sets.codes()[data["rows"]])  # (data, S)
    return np.take_along_axis(table(data), index.T, 0)
