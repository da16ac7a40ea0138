"""Two more programs, of one datum and binary latents, and sums over every draw of K particles."""

import itertools

import numpy as np
from zoo import NOISE, Program, bernoulli, expected, normal


def sigmoid(logit):
    return 1 / (1 + np.exp(-logit))


def all_draws(program, num_particles, num_data):
    shape = (num_particles, num_data) if program.plates else (num_particles,)
    for states in itertools.product(range(program.states), repeat=int(np.prod(shape))):
        yield np.array(states).reshape(shape), None


def mean_gradient(case, elbo, weighted_draws):
    """Sum over draws of their probability (the guide's, if None) times loss and gradient."""
    mean_loss, mean, mass = 0.0, {}, 0.0
    for draws, probability in weighted_draws:
        elbo.draws = draws
        loss, grads = case.run(elbo)
        probability = np.exp(elbo.log_draw) if probability is None else probability
        mass, mean_loss = mass + probability, mean_loss + probability * loss
        mean = {name: mean.get(name, 0.0) + probability * grad for name, grad in grads.items()}
    np.testing.assert_allclose(mass, 1.0, rtol=1e-12)
    return mean_loss, mean


def assert_same(found, expected, rtol=1e-10, atol=1e-10):
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol, atol, err_msg=name)


def bits_model(ppl, data):
    prior, weight = ppl.param("prior", data), ppl.param("weight", data)
    with ppl.plate("data", len(data["x"])):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=prior).to_event(1))
        first, second = z[..., 0], z[..., 1]
        loc = weight[0] * first + weight[1] * second + weight[2] * first * second
        ppl.sample("x", ppl.dist.Normal(loc, 1.0), obs=data["x"])


def bits_guide(ppl, data):
    encoder = ppl.param("encoder", data)
    with ppl.plate("data", len(data["x"])):
        logits = data["x"][..., None] * encoder[0] + encoder[1]
        ppl.sample("z", ppl.dist.Bernoulli(logits=logits).to_event(1))


def bits_terms(p, x):
    log_q, log_p = [], []
    for b, a in itertools.product((0, 1), repeat=2):  # state s is a + 2 b
        logits = x * p["encoder"][0] + p["encoder"][1]
        log_q.append(bernoulli(a, logits[0]) + bernoulli(b, logits[1]))
        loc = p["weight"][0] * a + p["weight"][1] * b + p["weight"][2] * a * b
        prior = bernoulli(a, p["prior"][0]) + bernoulli(b, p["prior"][1])
        log_p.append(prior + normal(x, loc))
    return log_q, log_p


def chain_model(ppl, data):
    slope = ppl.param("slope", data)
    with ppl.plate("data", len(data["x"])):
        c = ppl.sample("c", ppl.dist.Normal(0.0, 1.0))
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=slope[0] + 0.0 * c))
        b = ppl.sample("b", ppl.dist.Bernoulli(logits=slope[1] * a))
        loc = slope[2] * a + slope[3] * b * c + a * b
        ppl.sample("x", ppl.dist.Normal(loc, 1.0), obs=data["x"])


def chain_guide(ppl, data):
    """The first is a root; the second depends on it and on a continuous latent."""
    gate, loc = ppl.param("gate", data), ppl.param("loc", data)
    with ppl.plate("data", len(data["x"])):
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=gate[0] + gate[1] * data["x"]))
        c = ppl.sample("c", ppl.fixed_noise_normal(loc[0] * data["x"], ppl.exp(loc[1])))
        ppl.sample("b", ppl.dist.Bernoulli(logits=gate[2] + gate[3] * a + gate[4] * c))


def chain_terms(p, x):
    c = p["loc"][0] * x + np.exp(p["loc"][1]) * NOISE
    log_q, log_p = [], []
    for b, a in itertools.product((0, 1), repeat=2):
        log_q.append(
            bernoulli(a, p["gate"][0] + p["gate"][1] * x)
            + bernoulli(b, p["gate"][2] + p["gate"][3] * a + p["gate"][4] * c)
        )
        loc = p["slope"][2] * a + p["slope"][3] * b * c + a * b
        log_p.append(
            normal(c, 0.0)
            - normal(c, p["loc"][0] * x, p["loc"][1])
            + bernoulli(a, p["slope"][0])
            + bernoulli(b, p["slope"][1] * a)
            + normal(x, loc)
        )
    return log_q, log_p


X = 0.8


def loss_of(terms):
    def loss(p, expected=expected):
        return -expected(*terms(p, X))

    return loss


RNG = np.random.default_rng(11)
BITS = Program(
    "bits",
    bits_model,
    bits_guide,
    loss_of(bits_terms),
    {name: RNG.normal(size=n) for name, n in {"prior": 2, "weight": 3, "encoder": (2, 2)}.items()},
    {"x": np.array([X])},
    ("data",),
    4,
)
CHAIN = Program(
    "chain",
    chain_model,
    chain_guide,
    loss_of(chain_terms),
    {name: RNG.normal(size=n) for name, n in {"slope": 4, "gate": 5, "loc": 2}.items()},
    {"x": np.array([X])},
    ("data",),
    4,
)
