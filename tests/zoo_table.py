"""One program under a subsampled plate, masks and scales at once, and its exact objectives.

Two of five rows are seen, so that each counts 2.5 times; a row may be padding, lack an observation
or have a weight of its own. A datum has a binary latent and a continuous one, and all data share
another. What the losses ascend is written here in float64 NumPy, analytic in the parameters, at
fixed draws or over all of them; `held` are parameters that no gradient reaches.
"""

import functools
import itertools
from contextlib import contextmanager, nullcontext

import numpy as np
from truncated_zoo import SetProgram
from zoo import NOISE, Program, bernoulli, normal

RNG = np.random.default_rng(23)
ROWS = np.array([3, 1])


def table_model(ppl, data, anneal=None):
    prior, weight, slope = (ppl.param(name, data) for name in ("prior", "weight", "slope"))
    g = ppl.sample("g", ppl.dist.Normal(0.0, 1.0))
    with ppl.plate("data", 5, subsample=data["rows"]) as rows, row_handlers(ppl, data, rows):
        c = ppl.sample("c", ppl.dist.Normal(0.0, 1.0))
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=prior + 0.0 * c))
        with ppl.scale(scale=anneal) if anneal else nullcontext():
            loc = weight[0] + weight[1] * z + weight[2] * g + weight[3] * c * z
            ppl.sample("x", ppl.dist.Normal(loc, 1.0), obs=data["x"][rows])
        with ppl.mask(mask=data["seen"][rows]):
            ppl.sample("y", ppl.dist.Normal(slope * z, 0.5), obs=data["y"][rows])


@contextmanager
def row_handlers(ppl, data, rows):
    with ppl.mask(mask=data["here"][rows]), ppl.scale(scale=data["weigh"][rows]):
        yield


def annealed_model(ppl, data):
    """One of its observations is weighed otherwise than the rest."""
    table_model(ppl, data, anneal=0.6)


def table_guide(ppl, data, baseline=False):
    encoder = ppl.param("encoder", data)
    for rows in draw_rest(ppl, data):
        if baseline:
            ppl.deterministic("baseline", ppl.param("guess", data) + 0.0 * data["x"][rows])
        logits = encoder[0] + encoder[1] * data["x"][rows]
        ppl.sample("z", ppl.dist.Bernoulli(logits=logits))


def draw_rest(ppl, data):
    """Once, among the handlers of the rows."""
    loc = ppl.param("loc", data)
    ppl.sample("g", ppl.fixed_noise_normal(loc[0], ppl.exp(loc[1])))
    with ppl.plate("data", 5, subsample=data["rows"]) as rows, row_handlers(ppl, data, rows):
        ppl.sample("c", ppl.fixed_noise_normal(loc[2] * data["x"][rows], ppl.exp(loc[3])))
        yield rows


def rest_guide(ppl, data):
    for _ in draw_rest(ppl, data):
        pass


def guessing_guide(ppl, data):
    table_guide(ppl, data, baseline=True)


PARAMS = {
    "prior": np.array(0.4),
    "weight": RNG.normal(size=4),
    "slope": np.array(1.3),
    "loc": np.array([0.3, -0.8, 0.5, -0.4]),
    "encoder": RNG.normal(size=2),
}
WHOLE = {
    "x": RNG.normal(size=5),
    "y": RNG.normal(size=5),
    "rows": ROWS,
    "here": np.ones(5, bool),
    "seen": np.ones(5, bool),
    "weigh": np.ones(5),
}
CELLS = {
    "subsample": WHOLE,
    "missing": WHOLE | {"seen": np.array([1, 1, 1, 0, 1], bool)},
    "padding": WHOLE | {"here": np.array([1, 0, 1, 1, 1], bool)},
    "weights": WHOLE | {"weigh": np.array([1.0, 0.4, 1.0, 1.7, 1.0])},
    "annealed": WHOLE,
}


def model_of(cell):
    return annealed_model if cell == "annealed" else table_model


def table_program(cell, guide=table_guide, params=PARAMS):
    return Program("table", model_of(cell), guide, None, params, CELLS[cell], ("data",), 2)


def table_sets(cell):
    params = {name: value for name, value in PARAMS.items() if name != "encoder"}
    return SetProgram("table", model_of(cell), None, (2,), params, CELLS[cell], rest_guide)


# ------------------------------------------------------------------------------------- its terms


def noisy(loc, log_scale):
    return loc + np.exp(log_scale) * NOISE


def shared(p):
    """``log p - log q`` of the latent that the data share."""
    g = noisy(p["loc"][0], p["loc"][1])
    return normal(g, 0.0) - normal(g, p["loc"][0], p["loc"][1])


def log_draw(p, cell, n, z):
    """Log-probability of a draw, masked or not."""
    return bernoulli(z, p["encoder"][0] + p["encoder"][1] * CELLS[cell]["x"][n])


def own(p, cell, n, held):
    """The continuous latent of row n, and log p - log q of it."""
    x = CELLS[cell]["x"][n]
    c = noisy(held["loc"][2] * x, held["loc"][3])
    return c, normal(c, 0.0), normal(c, p["loc"][2] * x, p["loc"][3])


def terms(p, cell, n, z, held=None):
    """log q(z|x), log q(c|x), log p(z, c), log p(x|z) of row n under its mask, without its scale.

    The continuous latent of the datum is that of `held`.
    """
    data, anneal = CELLS[cell], 0.6 if cell == "annealed" else 1.0
    c, log_prior, log_q = own(p, cell, n, held or p)
    loc = p["weight"][0] + p["weight"][1] * z + p["weight"][3] * c * z
    loc = loc + p["weight"][2] * noisy(p["loc"][0], p["loc"][1])
    likelihood = anneal * normal(data["x"][n], loc)
    likelihood = likelihood + data["seen"][n] * normal(data["y"][n], p["slope"] * z, np.log(0.5))
    found = log_draw(p, cell, n, z), log_q, log_prior + bernoulli(z, p["prior"]), likelihood
    return tuple(data["here"][n] * term for term in found)


def weight_of(cell, n):
    return 2.5 * CELLS[cell]["weigh"][n]


def minus_elbo(p, cell, beta=1.0):
    """Minus the beta-ELBO, exactly."""
    return -beta * shared(p) - sum(weight_of(cell, n) * row_elbo(p, cell, n, beta) for n in ROWS)


def row_elbo(p, cell, n, beta):
    total = 0.0
    for z in (0, 1):
        log_q, log_q_c, log_prior, likelihood = terms(p, cell, n, z)
        value = likelihood + beta * (log_prior - log_q - log_q_c)
        total = total + np.exp(log_draw(p, cell, n, z)) * value
    return total


def minus_bound(p, cell, beta, num_particles):
    """Minus ``beta E log mean exp(f / beta)`` of K draws of each row."""
    total = beta * shared(p)
    for n, draws in itertools.product(ROWS, itertools.product((0, 1), repeat=num_particles)):
        log_probability = sum(log_draw(p, cell, n, z) for z in draws)
        weights = 0.0
        for log_q, log_q_c, log_prior, likelihood in (terms(p, cell, n, z) for z in draws):
            weights = weights + np.exp(likelihood / beta + log_prior - log_q - log_q_c)
        bound = beta * np.log(weights / num_particles)
        total = total + weight_of(cell, n) * np.exp(log_probability) * bound
    return -total


def minus_truncated(p, cell, beta):
    """Minus the bound of all states, and minus the ELBO of its best q."""
    p = PARAMS | p
    objective, value = beta * shared(p), shared(p)
    for n in ROWS[CELLS[cell]["here"][ROWS]]:  # the states of padding are one, of log joint 0
        both = [terms(p, cell, n, z)[1:] for z in (0, 1)]
        weights = [np.exp(like / beta + prior - log_q_c) for log_q_c, prior, like in both]
        total = sum(weights)
        objective = objective + weight_of(cell, n) * beta * np.log(total)
        for weight, (log_q_c, prior, likelihood) in zip(weights, both, strict=True):
            q = weight / total
            value = value + weight_of(cell, n) * q * (prior + likelihood - log_q_c - np.log(q))
    return -objective, -value


# --------------------------------------------------------------------------------- at given draws


def chosen(p, cell, draws, held=None):
    """Log draw, log q(z|x), log q(c|x), log p(z, c), log p(x|z), each of the shape of the draws."""
    table = [
        [
            (log_draw(p, cell, n, z), *terms(p, cell, n, z, held))
            for n, z in zip(ROWS, row, strict=True)
        ]
        for row in draws
    ]
    return np.moveaxis(np.array(table), -1, 0)


def weights_of(scores):
    weights = np.exp(scores - scores.max(0))
    return weights / weights.sum(0)


def sum_of(cell, values):
    return (np.array([weight_of(cell, n) for n in ROWS]) * values).sum()


def minus_elbo_at(draws, cell):
    """What a loss of these draws shows."""
    _, log_q, log_q_c, log_prior, likelihood = chosen(PARAMS, cell, draws)
    elbos = (likelihood + log_prior - log_q - log_q_c).mean(0)
    return -sum_of(cell, elbos) - shared(PARAMS)


def wake(p, cell, draws, beta):
    """What reweighted wake-sleep descends at given draws; no path leads to a draw of a datum."""
    _, log_q, log_q_c, log_prior, likelihood = chosen(PARAMS, cell, draws)
    weights = weights_of(likelihood / beta + log_prior - log_q - log_q_c)
    drawn, _, log_q_c, log_prior, likelihood = chosen(p, cell, draws, PARAMS)
    guide = ((weights - 1 / len(draws)) * (drawn + log_q_c)).sum(0)
    model = (weights * (likelihood + beta * log_prior)).sum(0)
    return -sum_of(cell, guide + model) - beta * shared(p)


def policy(p, cell, draws, beta, temperature):
    """What a policy search descends at given draws and temperature."""
    scores = policy_scores(cell, draws, beta)
    weights = weights_of(scores / temperature)
    drawn, _, log_q_c, log_prior, likelihood = chosen(p, cell, draws)
    guide = ((weights - 1 / len(draws)) * drawn).sum(0)
    model = (likelihood + beta * (log_prior - log_q_c)).mean(0)
    return -sum_of(cell, guide + model) - beta * shared(p)


def policy_scores(cell, draws, beta):
    _, log_q, log_q_c, log_prior, likelihood = chosen(PARAMS, cell, draws)
    return likelihood + beta * (log_prior - log_q - log_q_c)


def policy_temperature(cell, draws, beta, target):
    """At least beta; by a search over a fine grid."""
    scores, grid = policy_scores(cell, draws, beta), temperature_grid()
    weights = weights_of(scores[..., None] / grid)
    sizes = (1 / (weights**2).sum(0)).mean(0)
    if np.ptp(sizes) < 1e-9:
        return beta  # equal scores have equal weights at any
    return max(beta, np.interp(target * len(draws), sizes, grid))


@functools.cache
def temperature_grid():
    return np.exp(np.linspace(-9, 9, 20_001))


# -------------------------------------------------------------- a guide that quantises one number

VQ_PARAMS = {
    "table": np.array([-0.6, 0.2, 1.1]),
    "logits": RNG.normal(size=3),
    "slope": np.array(1.3),
    "encoder": np.array([0.2, 0.9]),
}
COMMITMENT, VQ_SCALE = 0.4, 0.7


def vq_model(ppl, data):
    """Sees codes ``(*batch, 1)``, or their vectors ``(*batch, 1, 1)``."""
    with ppl.plate("data", 5, subsample=data["rows"]) as rows, row_handlers(ppl, data, rows):
        prior = ppl.dist.Categorical(logits=ppl.param("logits", data) + ppl.zeros(1)[:, None])
        z = ppl.sample("z", prior.to_event(1))
        value = z[..., 0, 0] if z.ndim == data["x"].ndim + 2 else z[..., 0]
        loc = ppl.param("slope", data) * value
        ppl.sample("x", ppl.dist.Normal(loc, VQ_SCALE), obs=data["x"][rows])


def vq_guide(ppl, data):
    table, encoder = ppl.param("table", data), ppl.param("encoder", data)
    with ppl.plate("data", 5, subsample=data["rows"]) as rows, row_handlers(ppl, data, rows):
        inputs = (encoder[0] + encoder[1] * data["x"][rows])[..., None, None]
        distances = (inputs - table) ** 2
        codes = distances.argmin(-1)
        ppl.deterministic("z.inputs", inputs)
        ppl.deterministic("z.vectors", table[codes][..., None])
        certain = 1.0 * (codes[..., None] == ppl.stack([0 * codes[0, 0] + k for k in range(3)]))
        ppl.sample("z", ppl.dist.Categorical(probs=certain + 0.0 * distances).to_event(1))


def vq_program(cell):
    return Program("vq", vq_model, vq_guide, None, VQ_PARAMS, CELLS[cell], ("data",), 3)


def minus_vq(p, cell, beta):
    """What is descended, and minus the ELBO, of which only the first has a gradient."""
    data, held, objective, value = CELLS[cell], VQ_PARAMS, 0.0, 0.0
    for n in ROWS[data["here"][ROWS]]:
        x = data["x"][n]
        inputs, fixed_inputs = (q["encoder"][0] + q["encoder"][1] * x for q in (p, held))
        code = np.abs(fixed_inputs - held["table"]).argmin()
        fixed = held["table"][code]
        log_prior = p["logits"][code] - np.log(np.exp(p["logits"]).sum())
        likelihood = normal(x, p["slope"] * (fixed + inputs - fixed_inputs), np.log(VQ_SCALE))
        penalty = (fixed_inputs - p["table"][code]) ** 2 + COMMITMENT * (inputs - fixed) ** 2
        penalty = penalty / (2 * VQ_SCALE**2)  # what a square error of x costs in nats
        objective = objective + weight_of(cell, n) * (likelihood + beta * log_prior - penalty)
        value = value + weight_of(cell, n) * (likelihood + log_prior)
    return -objective, -value
