"""Small programs, written once for both frameworks, with their exact loss in float64 NumPy.

Each program has a model and a guide over the primitives of `ppl` (a namespace of sample, plate,
param, deterministic, mask, dist and array functions), data, parameters, and `loss`: minus the
ELBO by plain loops over all latent values. The loss is analytic in the parameters, so a complex
step differentiates it to machine precision; no gradient of a framework enters the oracle.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

NOISE = 0.7  # the one draw that every reparameterised site makes


class Program(NamedTuple):
    name: str
    model: Callable  # (ppl, data)
    guide: Callable  # (ppl, data)
    loss: Callable  # (params, expected=...) -> minus the ELBO, analytic
    params: dict
    data: dict
    plates: tuple  # the plates that its discrete sites share
    states: int  # joint discrete states of a datum (of the batch, without shared plates)


def gradient(loss, params, step=1e-30):
    """Complex-step derivative: no subtraction, hence no rounding error."""

    def derivative(name, index):
        moved = {key: value.astype(complex) for key, value in params.items()}
        moved[name][index] += 1j * step
        return loss(moved).imag / step

    return {
        name: np.array([derivative(name, i) for i in np.ndindex(value.shape)]).reshape(value.shape)
        for name, value in params.items()
    }


def exact_gradient(program):
    return gradient(program.loss, program.params)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def normal(x, loc, log_scale=0.0):
    z = (x - loc) / np.exp(log_scale)
    return -0.5 * z * z - log_scale - 0.5 * np.log(2 * np.pi)


def bernoulli(x, logit):
    return x * logit - np.log1p(np.exp(logit))


def expected(log_q, value):
    """``sum q (value - log q)`` over a list of states."""
    return sum(np.exp(q) * (v - q) for q, v in zip(log_q, value, strict=True))


def expected_bound(num_particles):
    """As `expected`, but for the bound ``log mean exp(value - log q)`` of K draws of states."""

    def bound(log_q, value):
        states = list(zip(log_q, value, strict=True))
        total = 0.0
        for draws in itertools.product(states, repeat=num_particles):
            weights = [np.exp(v - q) for q, v in draws]
            probability = np.exp(sum(q for q, _ in draws))
            total = total + probability * np.log(sum(weights) / num_particles)
        return total

    return bound


RNG = np.random.default_rng(7)


def draw(*shape):
    return RNG.normal(size=shape)


# --- a VAE: two categorical latents in one site under the data plate, a learned prior


def vae_model(ppl, data):
    prior, weight = ppl.param("prior", data), ppl.param("weight", data)
    with ppl.plate("data", len(data["x"])):
        z = ppl.sample("z", ppl.dist.Categorical(logits=prior).to_event(1))
        loc = weight[0][z[..., 0]] + weight[1][z[..., 1]]
        ppl.sample("x", ppl.dist.Normal(loc, 1.0).to_event(1), obs=data["x"])


def sample_codes(ppl, data):
    encoder = ppl.param("encoder", data)  # (2, pixels, codes)
    logits = ppl.stack([data["x"] @ encoder[0], data["x"] @ encoder[1]], -2)
    ppl.sample("z", ppl.dist.Categorical(logits=logits).to_event(1))


def vae_guide(ppl, data):
    with ppl.plate("data", len(data["x"])):
        sample_codes(ppl, data)


VAE_DATA = {"x": draw(2, 3)}


def vae_terms(p, x):
    """Of one datum's four states: log q(z|x), log p(z), log p(x|z)."""
    states = list(itertools.product((0, 1), repeat=2))  # state s has codes s % 2, s // 2
    q = [log_softmax(x @ p["encoder"][i]) for i in (0, 1)]
    prior = log_softmax(p["prior"])
    log_q = np.array([q[0][a] + q[1][b] for b, a in states])
    log_prior = np.array([prior[0, a] + prior[1, b] for b, a in states])
    loc = [p["weight"][0][a] + p["weight"][1][b] for b, a in states]
    return log_q, log_prior, np.array([normal(x, mean).sum() for mean in loc])


def vae_loss(p, expected=expected):
    elbo = 0.0
    for x in VAE_DATA["x"]:
        log_q, log_prior, log_likelihood = vae_terms(p, x)
        elbo = elbo + expected(log_q, log_prior + log_likelihood)
    return -elbo


# --- two dependent sites and a continuous one that both depend on


def mixed_model(ppl, data):
    link, slope = ppl.param("link", data), ppl.param("slope", data)
    with ppl.plate("data", len(data["x"])):
        c = ppl.sample("c", ppl.dist.Normal(0.0, 1.0))
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=link[0, 0] + 0.0 * c))
        b = ppl.sample("b", ppl.dist.Categorical(logits=link[1] * a[..., None]))
        loc = slope[0] * c + slope[1] * a * c + slope[2] * b
        ppl.sample("x", ppl.dist.Normal(loc, 1.0), obs=data["x"])


def mixed_guide(ppl, data):
    loc, gate, step = (ppl.param(name, data) for name in ("loc", "gate", "step"))
    with ppl.plate("data", len(data["x"])):
        c = ppl.sample("c", ppl.fixed_noise_normal(loc[0] * data["x"], ppl.exp(loc[1])))
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=gate[0] + gate[1] * c))
        ppl.sample("b", ppl.dist.Categorical(logits=step * (a + c * data["x"])[..., None]))


MIXED_DATA = {"x": draw(2)}


def mixed_loss(p, expected=expected):
    elbo = 0.0
    for x in MIXED_DATA["x"]:
        c = p["loc"][0] * x + np.exp(p["loc"][1]) * NOISE
        log_q, log_p = [], []
        for a, b in itertools.product((0, 1), repeat=2):
            log_q.append(
                bernoulli(a, p["gate"][0] + p["gate"][1] * c)
                + log_softmax(p["step"] * (a + c * x))[b]
            )
            loc = p["slope"][0] * c + p["slope"][1] * a * c + p["slope"][2] * b
            log_p.append(
                normal(c, 0.0)
                + bernoulli(a, p["link"][0, 0])
                + log_softmax(p["link"][1] * a)[b]
                + normal(x, loc)
            )
        elbo = elbo + expected(log_q, log_p) - normal(c, p["loc"][0] * x, p["loc"][1])
    return -elbo


# --- a global discrete site over a subsampled plate, with continuous latents of the data


def global_model(ppl, data):
    centre = ppl.param("centre", data)
    g = ppl.sample("g", ppl.dist.Categorical(logits=ppl.zeros(3)))
    with ppl.plate("data", 5, subsample=data["rows"]) as rows:
        c = ppl.sample("c", ppl.dist.Normal(centre[g], 1.0))
        ppl.sample("x", ppl.dist.Normal(c, 0.5), obs=data["x"][rows])


def global_guide(ppl, data):
    ppl_logits, loc = ppl.param("logits", data), ppl.param("loc", data)
    ppl.sample("g", ppl.dist.Categorical(logits=ppl_logits))
    with ppl.plate("data", 5, subsample=data["rows"]) as rows:
        ppl.sample("c", ppl.fixed_noise_normal(loc[0] * data["x"][rows], ppl.exp(loc[1])))


GLOBAL_DATA = {"x": draw(5), "rows": np.array([3, 1])}


def global_loss(p, expected=expected):
    log_q = log_softmax(p["logits"])
    log_p = []
    for g in range(3):
        total = -np.log(3.0)
        for x in GLOBAL_DATA["x"][GLOBAL_DATA["rows"]]:
            c = p["loc"][0] * x + np.exp(p["loc"][1]) * NOISE
            terms = normal(c, p["centre"][g]) + normal(x, c, np.log(0.5))
            total = total + 2.5 * (terms - normal(c, p["loc"][0] * x, p["loc"][1]))
        log_p.append(total)
    return -expected(log_q, log_p)


# --- nested plates: a site per word, observed per word and per document, some words masked


def nested_model(ppl, data):
    slope = ppl.param("slope", data)
    with ppl.plate("documents", 2, dim=-2):
        with ppl.plate("words", 2, dim=-1), ppl.mask(mask=data["mask"]):
            z = ppl.sample("z", ppl.dist.Bernoulli(logits=slope[0]))
            ppl.sample("w", ppl.dist.Normal(slope[1] * z, 1.0), obs=data["w"])
        total = (z * data["mask"]).sum(-1, keepdims=True)
        ppl.sample("y", ppl.dist.Normal(slope[2] * total, 1.0), obs=data["y"])
    ppl.sample("slack", ppl.dist.Normal(slope[2], 1.0), obs=data["slack"])


def nested_guide(ppl, data):
    logits = ppl.param("logits", data)
    with ppl.plate("documents", 2, dim=-2):
        with ppl.plate("words", 2, dim=-1), ppl.mask(mask=data["mask"]):
            ppl.sample("z", ppl.dist.Bernoulli(logits=logits + 0.0 * data["w"]))


NESTED_DATA = {
    "w": draw(2, 2),
    "y": draw(2, 1),
    "slack": np.array(0.3),
    "mask": np.array([[True, True], [True, False]]),
}


def nested_loss(p, expected=expected):
    data = NESTED_DATA
    elbo = normal(data["slack"], p["slope"][2])
    for w, y, mask in zip(data["w"], data["y"][:, 0], data["mask"], strict=True):
        log_q, log_p = [], []
        for z in itertools.product((0, 1), repeat=int(mask.sum())):
            log_q.append(sum(bernoulli(z[i], p["logits"]) for i in range(len(z))))
            log_p.append(
                sum(
                    bernoulli(z[i], p["slope"][0]) + normal(w[i], p["slope"][1] * z[i])
                    for i in range(len(z))
                )
                + normal(y, p["slope"][2] * sum(z))
            )
        elbo = elbo + expected(log_q, log_p)
    return -elbo


PROGRAMS = [
    Program(
        "vae",
        vae_model,
        vae_guide,
        vae_loss,
        {"prior": draw(2, 2), "weight": draw(2, 2, 3), "encoder": draw(2, 3, 2)},
        VAE_DATA,
        ("data",),
        4,
    ),
    Program(
        "mixed",
        mixed_model,
        mixed_guide,
        mixed_loss,
        {"link": draw(2, 2), "slope": draw(3), "loc": draw(2), "gate": draw(2), "step": draw(2)},
        MIXED_DATA,
        ("data",),
        4,
    ),
    Program(
        "global",
        global_model,
        global_guide,
        global_loss,
        {"centre": draw(3), "logits": draw(3), "loc": draw(2)},
        GLOBAL_DATA,
        (),
        3,
    ),
    Program(
        "nested",
        nested_model,
        nested_guide,
        nested_loss,
        {"slope": draw(3), "logits": draw(1)[0:1].reshape(())},
        NESTED_DATA,
        ("documents",),
        4,
    ),
]
