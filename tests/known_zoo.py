"""Models whose posterior is known, for the diagnostics: all numbers of a report in float64 NumPy.

Each datum has a discrete latent of a few states; there may be a normal latent that the data share,
one or one for each group. `tables` gives log q, log p(z) and log p(x | z) of all states, at values
of the shared latent; sums over states and quadrature over the latent make the rest.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from zoo import Program, bernoulli, log_softmax, normal

NODES, MASSES = np.polynomial.hermite_e.hermegauss(60)
MASSES = MASSES / MASSES.sum()
RNG = np.random.default_rng(3)


class Known(NamedTuple):
    name: str
    model: Callable
    guide: Callable
    data: dict
    tables: Callable  # (mu (Q,), group) -> log q, log p(z), log p(x | z), each (S, N, Q)
    verdict: str  # of most data
    prior: tuple = ()  # mean and spread of what is shared
    q: tuple = ()  # those of its guide, of each group
    scale: float = 1.0
    plates: tuple = ("data",)

    @property
    def program(self):
        return Program(self.name, self.model, self.guide, None, {}, self.data, self.plates, 0)

    def datum(self, what):
        """The mean of a number over the guide's shared draws, in the shape of the plates."""
        groups = [self._datum(what, g) for g in range(len(self.q) or 1)]
        return np.stack(groups) if len(self.plates) > 1 else groups[0]

    def _datum(self, what, group):
        if not self.q:
            found = what(*self.tables(np.zeros(1), group))[:, 0]
            return found if self.plates else found[0]
        mean, spread = self.q[group]
        return what(*self.tables(mean + spread * NODES, group)) @ MASSES

    def spread(self, value):
        """Of a number of one draw, such as its rate, over all that the guide draws."""

        def mean_of(power):
            return self.datum(lambda *logs: (np.exp(logs[0]) * value(*logs) ** power).sum(0))

        return np.sqrt(np.maximum(mean_of(2) - mean_of(1) ** 2, 0.0))

    @property
    def shared_elbo(self):
        """Mean log p - log q of what is shared."""
        total = 0.0
        for mean, spread in self.q:
            mu = mean + spread * NODES
            log_p = normal(mu, self.prior[0], np.log(self.prior[1]))
            total += MASSES @ (log_p - normal(mu, mean, np.log(spread)))
        return total

    @property
    def part(self):
        """What each datum has of what is shared, so that the sum over all is the loss's."""
        return self.shared_elbo / (self.scale * self.datum(elbo).size)

    @property
    def whole_elbo(self):
        return self.scale * self.datum(elbo).sum() + self.shared_elbo

    @property
    def whole_evidence(self):
        """With the data weighed as in the loss; by a fine grid over what is shared."""
        if not self.q:
            return self.scale * self.datum(evidence).sum()
        grid = np.linspace(-8, 8, 8001)
        total = 0.0
        for group in range(len(self.q)):
            log_p = normal(grid, self.prior[0], np.log(self.prior[1]))
            log_p = log_p + self.scale * evidence(*self.tables(grid, group)).sum(0)
            total += np.logaddexp.reduce(log_p) + np.log(grid[1] - grid[0])
        return total


def elbo(log_q, log_prior, log_likelihood):
    q = np.exp(log_q)
    return (q * np.where(q > 0, log_prior + log_likelihood - log_q, 0.0)).sum(0)


def evidence(log_q, log_prior, log_likelihood):
    return np.logaddexp.reduce(log_prior + log_likelihood, axis=0)


def reachable(log_q, log_prior, log_likelihood):
    """Evidence of the states that the guide can draw: what its weighted bounds tend to."""
    seen = np.where(log_q > -25, log_prior + log_likelihood, -np.inf)
    return np.logaddexp.reduce(seen, axis=0)


def rate_of_draw(log_q, log_prior, log_likelihood):
    return (log_q - log_prior) / np.log(2)


def distortion_of_draw(log_q, log_prior, log_likelihood):
    return -log_likelihood


def rate(log_q, log_prior, log_likelihood):
    return (np.exp(log_q) * rate_of_draw(log_q, log_prior, log_likelihood)).sum(0)


def distortion(log_q, log_prior, log_likelihood):
    return -(np.exp(log_q) * log_likelihood).sum(0)


def inverse_size(log_q, log_prior, log_likelihood):
    """K / ESS of many draws: one and the divergence of order 2, on the states that can be drawn."""
    log_p = np.where(log_q > -1e20, log_prior + log_likelihood, -np.inf)
    log_p = log_p - np.logaddexp.reduce(log_p, axis=0)
    return np.where(log_q > -1e20, np.exp(2 * log_p - np.maximum(log_q, -1e20)), 0.0).sum(0)


# --- mixtures of three normals, whose means are shifted by what the data share

LOG_SHARES, MEANS = np.log([0.2, 0.5, 0.3]), np.array([-2.0, 0.0, 3.0])
N = 7


def draw_data(shift=0.0, size=N):
    codes = RNG.choice(3, size, p=np.exp(LOG_SHARES))
    return np.round(shift + MEANS[codes] + RNG.normal(size=size), 3)


def responsibilities(x, mu):
    """Log p(z | x, mu), up to a constant: (3, N, Q)."""
    return LOG_SHARES[:, None, None] + normal(x[None, :, None], mu + MEANS[:, None, None])


def mixture_tables(x, logits, power=0.0):
    """A guide of logits ``logits + power log p(z | x, mu)``."""

    def tables(mu, group=0):
        some = x if x.ndim == 1 else x[group]
        joint = responsibilities(some, mu)
        prior = np.broadcast_to(LOG_SHARES[:, None, None], joint.shape)
        log_q = log_softmax((logits[:, None, None] + power * joint).swapaxes(0, -1)).swapaxes(0, -1)
        return log_q, prior, joint - prior

    return tables


def local(name, verdict, logits, power=0.0):
    """A mixture with known means, and one guide or another."""
    x, logits = draw_data(), np.array(logits, float)

    def model(ppl, data):
        with ppl.plate("data", N):
            z = ppl.sample("z", ppl.dist.Categorical(logits=data["shares"]))
            ppl.sample("x", ppl.dist.Normal(data["means"][z], 1.0), obs=data["x"])

    def guide(ppl, data):
        joint = data["shares"] + ppl.dist.Normal(data["means"], 1.0).log_prob(data["x"][:, None])
        with ppl.plate("data", N):
            ppl.sample("z", ppl.dist.Categorical(logits=data["logits"] + power * joint))

    data = {"x": x, "means": MEANS, "shares": LOG_SHARES, "logits": logits}
    return Known(name, model, guide, data, mixture_tables(x, logits, power), verdict)


def sharing(name, verdict, q, power=1.0, rows=None, seen=None):
    """A mixture whose means have a shift in common; of some rows of the data, or some masked."""
    x = draw_data(1.0)
    weight = np.ones(N) if seen is None else np.asarray(seen, float)

    def shifted(ppl, data):
        return ppl.sample("mu", ppl.dist.Normal(data["q"][0], data["q"][1]))

    def plate(ppl, data):
        return ppl.plate("data", 2 * N if rows else N, subsample=data.get("rows"))

    def model(ppl, data):
        mu = ppl.sample("mu", ppl.dist.Normal(0.0 * data["q"][0], 1.0))
        with plate(ppl, data):
            z = ppl.sample("z", ppl.dist.Categorical(logits=data["shares"]))
            with ppl.mask(mask=data["weight"] > 0):
                ppl.sample("x", ppl.dist.Normal(mu + data["means"][z], 1.0), obs=data["x"])

    def guide(ppl, data):
        mu = shifted(ppl, data)
        scores = ppl.dist.Normal(mu[..., None] + data["means"], 1.0).log_prob(data["x"][:, None])
        with plate(ppl, data):
            logits = data["shares"] + data["weight"][:, None] * scores
            ppl.sample("z", ppl.dist.Categorical(logits=power * logits))

    def tables(mu, group):
        joint, prior = responsibilities(x, mu), LOG_SHARES[:, None, None]
        likelihood = weight[:, None] * (joint - prior)
        log_q = log_softmax((power * (prior + likelihood)).swapaxes(0, -1)).swapaxes(0, -1)
        return log_q, np.broadcast_to(prior, joint.shape), likelihood

    data = {"x": x, "means": MEANS, "shares": LOG_SHARES, "q": np.array(q), "weight": weight}
    if rows:
        data["rows"] = np.arange(0, 2 * N, 2)
    known = Known(name, model, guide, data, tables, verdict, (0.0, 1.0), (q,))
    return known._replace(scale=2.0 if rows else 1.0)


def grouped():
    """Effects of groups of bits: normal latents under the outer of two plates."""
    x = RNG.normal(size=(3, 4)) + np.array([-1.0, 0.5, 2.0])[:, None]
    q = ((-0.7, 0.5), (0.3, 0.4), (1.2, 0.6))

    def model(ppl, data):
        with ppl.plate("groups", 3, dim=-2):
            mu = ppl.sample("mu", ppl.dist.Normal(0.0 * data["q"][:, :1], 1.0))
            with ppl.plate("items", 4, dim=-1):
                z = ppl.sample("z", ppl.dist.Bernoulli(logits=-0.4 + 0.0 * data["x"]))
                ppl.sample("x", ppl.dist.Normal(mu + 1.5 * z, 1.0), obs=data["x"])

    def guide(ppl, data):
        with ppl.plate("groups", 3, dim=-2):
            ppl.sample("mu", ppl.dist.Normal(data["q"][:, :1], data["q"][:, 1:]))
            with ppl.plate("items", 4, dim=-1):
                ppl.sample("z", ppl.dist.Bernoulli(logits=0.8 * data["x"] - 1.0))

    def tables(mu, group):
        z = np.arange(2)[:, None, None]
        some = x[group][:, None]
        shape = (2, 4, len(mu))
        log_q = np.broadcast_to(bernoulli(z, 0.8 * some - 1.0), shape)
        return log_q, np.broadcast_to(bernoulli(z, -0.4), shape), normal(some, mu + 1.5 * z)

    plates = ("groups", "items")
    known = Known("groups", model, guide, {"x": x, "q": np.array(q)}, tables, "close")
    return known._replace(prior=(0.0, 1.0), q=q, plates=plates)


def exactly_shared():
    """What is shared and what is local do not meet, so that the guide can be the posterior."""
    x, y = np.round(0.8 + RNG.normal(size=5), 3), draw_data(size=5)
    variance = 1 / (1 + len(x))
    q = (x.sum() * variance, variance**0.5)

    def model(ppl, data):
        mu = ppl.sample("mu", ppl.dist.Normal(0.0 * data["q"][0], 1.0))
        with ppl.plate("data", 5):
            ppl.sample("x", ppl.dist.Normal(mu, 1.0), obs=data["x"])
            z = ppl.sample("z", ppl.dist.Categorical(logits=data["shares"]))
            ppl.sample("y", ppl.dist.Normal(data["means"][z], 1.0), obs=data["y"])

    def guide(ppl, data):
        ppl.sample("mu", ppl.dist.Normal(data["q"][0], data["q"][1]))
        logits = data["shares"] + ppl.dist.Normal(data["means"], 1.0).log_prob(data["y"][:, None])
        with ppl.plate("data", 5):
            ppl.sample("z", ppl.dist.Categorical(logits=logits))

    def tables(mu, group):
        log_q, prior, likelihood = mixture_tables(y, np.zeros(3), 1.0)(np.zeros(1))
        likelihood = likelihood + normal(x[:, None], mu)
        return np.broadcast_to(log_q, likelihood.shape), prior + 0.0 * likelihood, likelihood

    data = {"x": x, "y": y, "means": MEANS, "shares": LOG_SHARES, "q": np.array(q)}
    return Known("exact, shared", model, guide, data, tables, "close", (0.0, 1.0), (q,))


def latent_classes():
    """Three classes, four answers of yes or no, some of them missing."""
    logits = np.round(1.5 * RNG.normal(size=(3, 4)), 2)
    answers, seen = RNG.integers(2, size=(N, 4)).astype(float), RNG.random((N, 4)) < 0.7
    seen[0], shares = [True, False, True, True], np.array([0.3, -0.2, 0.0])

    def model(ppl, data):
        with ppl.plate("data", N):
            z = ppl.sample("z", ppl.dist.Categorical(logits=data["shares"]))
            answer = ppl.dist.Bernoulli(logits=data["logits"][z]).mask(data["seen"]).to_event(1)
            ppl.sample("x", answer, obs=data["x"])

    def guide(ppl, data):
        with ppl.plate("data", N):
            ppl.sample("z", ppl.dist.Categorical(logits=data["x"] @ data["logits"].T * 0.5))

    def tables(mu, group):
        cells = np.where(seen, bernoulli(answers, logits[:, None]), 0.0).sum(-1)
        log_q = log_softmax(answers @ logits.T * 0.5).T
        prior = np.broadcast_to(log_softmax(shares)[:, None], log_q.shape)
        return tuple(part[..., None] for part in (log_q, prior, cells))

    data = {"x": answers, "seen": seen, "logits": logits, "shares": shares}
    return Known("latent classes, masked", model, guide, data, tables, "close")


def switched(name, verdict, slope, follows):
    """A switch of all rows at once, beside a bit of each: states of all latents together."""
    x = np.array([1.7, -0.4, 0.9, 2.2])
    bits = np.array(list(itertools.product((0, 1), repeat=1 + len(x))))

    def model(ppl, data):
        s = ppl.sample("s", ppl.dist.Bernoulli(logits=-0.8 + 0.0 * data["x"][0]))
        with ppl.plate("data", 4):
            z = ppl.sample("z", ppl.dist.Bernoulli(logits=3.0 * s - 1.0 + 0.0 * data["x"]))
            ppl.sample("x", ppl.dist.Normal(2.0 * z, 1.0), obs=data["x"])

    def guide(ppl, data):
        s = ppl.sample("s", ppl.dist.Bernoulli(logits=follows + 0.0 * data["x"][0]))
        with ppl.plate("data", 4):
            logits = slope * (2.0 * data["x"] - 2.0 + 3.0 * s - 1.0)
            ppl.sample("z", ppl.dist.Bernoulli(logits=logits))

    def tables(mu, group):
        s, z = bits[:, 0], bits[:, 1:]
        step = 3.0 * s[:, None] - 1.0
        log_q = bernoulli(s, follows) + bernoulli(z, slope * (2.0 * x - 2.0 + step)).sum(1)
        prior = bernoulli(s, -0.8) + bernoulli(z, step).sum(1)
        likelihood = normal(x, 2.0 * z).sum(1)
        return tuple(part[:, None, None] for part in (log_q, prior, likelihood))

    return Known(name, model, guide, {"x": x}, tables, verdict, plates=())


ZOO = [
    local("perfect", "close", [0, 0, 0], 1.0),
    local("poor", "off", [0.6, -0.5, 0.3], 0.2),
    local("over-dispersed", "off", [0, 0, 0], 0.0),
    local("missed mode", "close", [0, 0, -40], 1.0),
    latent_classes(),
    exactly_shared(),
    sharing("unknown means", "close", (0.9, 0.35)),
    sharing("unknown means, poor guide of codes", "close", (0.9, 0.35), 0.5),
    sharing("unknown means, absurd guide", "close", (0.0, 0.05)),
    sharing("unknown means, over-dispersed", "close", (0.9, 1.2)),
    sharing("a minibatch with unknown means", "close", (0.9, 0.3), rows=True),
    sharing("unknown means, masks", "close", (0.9, 0.4), seen=[1, 1, 0, 1, 0, 1, 1]),
    grouped(),
    switched("a switch of all data", "close", 1.0, 0.7),
    switched("a switch of all data, blind guide", "off", 0.2, -2.0),
    local("truncated", "restricted", [0, 0, -1e30], 1.0),
]


def true_gap_of_shared(known):
    """KL(q ‖ posterior) of what is shared, whose codes are summed out."""
    bound = known.scale * known.datum(evidence).sum() + known.shared_elbo
    return known.whole_evidence - bound
