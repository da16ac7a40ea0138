"""Models of the kinds that the test suites of Pyro and NumPyro try, written once for both.

Each has a model and a guide over the primitives of `ppl`, and parameters, which are leaves; the
sum over all draws of the guide, and over a grid for normal ones, is made by `host_pyro` and
`host_numpyro`. What a loss refuses, it says: `refusals` has the words of each.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

X = np.array([-0.5, 2.0])


class Host(NamedTuple):
    name: str
    model: Callable  # (ppl)
    guide: Callable  # (ppl)
    params: dict
    refusals: Mapping[str, str]  # of a loss's name: the words of its refusal
    nodes: int  # of the grid of a normal site


HOSTS: list[Host] = []
NOT_BERNOULLI = {"DisARM_ELBO": "antithetic pairs are of Bernoulli draws. .* use Reinforce_ELBO"}
NOT_LISTED = {"Exact_ELBO": "no finite support .* sample it: DAPS_ELBO", **NOT_BERNOULLI}


def host(model, guide, *, refusals=None, nodes=17, **params):
    """Add a pair; parameters of numbers or lists."""
    arrays = {key: np.asarray(value, dtype=float) for key, value in params.items()}
    HOSTS.append(Host(model.__name__, model, guide, arrays, refusals or {}, nodes))


def bernoulli(ppl, name, logits, **options):
    return ppl.sample(name, ppl.dist.Bernoulli(logits=logits), **options)


def seen(ppl, name, loc, value, scale=1.0):
    return ppl.sample(name, ppl.dist.Normal(loc, scale), obs=ppl.array(value))


# ------------------------------------------------------------------------- no or few sites


def no_sites(ppl):
    pass


def one_observation(ppl):
    seen(ppl, "x", ppl.param("loc"), 0.7)


def a_factor(ppl):
    ppl.factor("f", ppl.param("loc") * 2.0)


def a_plate_of_nothing(ppl):
    with ppl.plate("data", 2):
        pass
    seen(ppl, "x", ppl.param("loc"), 0.7)


host(no_sites, no_sites)
host(one_observation, no_sites, loc=0.3)
host(a_factor, no_sites, loc=0.3)
host(a_plate_of_nothing, no_sites, loc=0.3)


# ------------------------------------------------------------------------- one latent site


def coin(ppl):
    z = bernoulli(ppl, "z", -0.4)
    seen(ppl, "x", ppl.param("slope") * z, 0.7)


def coin_guide(ppl):
    bernoulli(ppl, "z", ppl.param("p"))


def coin_of_a_list(ppl):
    z = ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.array([-0.4, 0.2])).to_event(1))
    seen(ppl, "x", z.sum(-1), 0.7)


def coin_of_a_list_guide(ppl):
    ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.param("p")).to_event(1))


def weighted_states(ppl):
    z = bernoulli(ppl, "z", -0.4)
    ppl.factor("f", ppl.param("slope") * (1.0 + z))


def weighted_guide(ppl):
    bernoulli(ppl, "z", ppl.param("p"))
    ppl.guide_factor("f", 0.5 * ppl.param("p"))


def category(ppl):
    z = ppl.sample("z", ppl.dist.Categorical(probs=ppl.array([0.2, 0.5, 0.3])))
    seen(ppl, "x", ppl.array([0.0, 1.0, 3.0])[z], 1.7)


def category_guide(ppl):
    ppl.sample("z", ppl.dist.Categorical(logits=ppl.param("logits")))


def one_hot(ppl):
    z = ppl.sample("z", ppl.one_hot(probs=ppl.array([0.2, 0.5, 0.3])))
    seen(ppl, "x", (z * ppl.array([0.0, 1.0, 3.0])).sum(-1), 1.7)


def one_hot_guide(ppl):
    ppl.sample("z", ppl.one_hot(logits=ppl.param("logits")))


def trials(ppl):
    z = ppl.sample("z", ppl.dist.Binomial(3, probs=ppl.array(0.4)))
    seen(ppl, "x", 0.5 * z, 1.2)


def trials_guide(ppl):
    ppl.sample("z", ppl.dist.Binomial(3, logits=ppl.param("p")))


def count(ppl):
    z = ppl.sample("z", ppl.dist.Poisson(ppl.array(1.5)))
    seen(ppl, "x", 0.5 * z, 1.2)


def count_guide(ppl):
    ppl.sample("z", ppl.dist.Poisson(ppl.exp(ppl.param("p"))))


def failures(ppl):
    z = ppl.sample("z", ppl.dist.Geometric(probs=ppl.array(0.6)))
    seen(ppl, "x", 0.5 * z, 1.2)


def failures_guide(ppl):
    ppl.sample("z", ppl.dist.Geometric(logits=ppl.param("p")))


host(coin, coin_guide, p=0.5, slope=0.8)
host(coin_of_a_list, coin_of_a_list_guide, p=[0.5, -0.3])
host(weighted_states, coin_guide, p=0.5, slope=0.8)
host(coin, weighted_guide, p=0.5, slope=0.8)
host(category, category_guide, refusals=NOT_BERNOULLI, logits=[0.1, 0.4, -0.2])
host(one_hot, one_hot_guide, refusals=NOT_BERNOULLI, logits=[0.1, 0.4, -0.2])
host(trials, trials_guide, refusals=NOT_BERNOULLI, p=0.3)
host(count, count_guide, refusals=NOT_LISTED, p=0.2)
host(failures, failures_guide, refusals=NOT_LISTED, p=0.9)


def normal(ppl):
    seen(ppl, "x", ppl.sample("z", ppl.dist.Normal(0.0, 1.0)), 0.7)


def normal_guide(ppl):
    ppl.sample("z", ppl.dist.Normal(ppl.param("loc"), ppl.exp(ppl.param("log_scale"))))


def scored_normal_guide(ppl):
    ppl.sample("z", ppl.score_normal(ppl.param("loc"), ppl.exp(ppl.param("log_scale"))))


def rounded(ppl):
    z = ppl.sample("z", ppl.dist.Normal(0.0, 1.0))
    p = ppl.where(z > 0.5, 0.8, 0.2)
    ppl.sample("x", ppl.dist.Bernoulli(probs=p), obs=ppl.array(0.0))


def clipped(ppl):
    z = ppl.sample("z", ppl.dist.Normal(0.0, 1.0))
    seen(ppl, "x", ppl.where(z > 0.0, 1.0, 3.0) * z, 0.4)


START = {"loc": 0.3, "log_scale": -0.2}
host(normal, normal_guide, **START)
host(normal, scored_normal_guide, refusals=NOT_LISTED, **START)
host(rounded, scored_normal_guide, refusals=NOT_LISTED, nodes=801, **START)
host(clipped, normal_guide, nodes=401, **START)
host(clipped, scored_normal_guide, refusals=NOT_LISTED, nodes=401, **START)


# ------------------------------------------------------------------- several sites in a row


def pyramid(ppl):
    a = bernoulli(ppl, "a", -0.2)
    b, c = bernoulli(ppl, "b", a - 0.3), bernoulli(ppl, "c", 0.5 - a)
    d = bernoulli(ppl, "d", b - c)
    bernoulli(ppl, "e", a + b + c + d - 2.0)


def pyramid_guide(ppl):
    p = ppl.param("p")
    a = bernoulli(ppl, "a", p[0])
    b, c = bernoulli(ppl, "b", p[1] * a), bernoulli(ppl, "c", p[2] - a)
    d = bernoulli(ppl, "d", p[3] + b)
    bernoulli(ppl, "e", p[4] + c - d)


def not_a_tree(ppl):
    a, b = bernoulli(ppl, "a", -0.2), bernoulli(ppl, "b", 0.4)
    c = bernoulli(ppl, "c", a - b)
    seen(ppl, "x", ppl.param("slope") * a + c, 0.4)
    seen(ppl, "y", b - c, -0.4)


def not_a_tree_guide(ppl):
    p = ppl.param("p")
    c = bernoulli(ppl, "c", p[0])
    a = bernoulli(ppl, "a", p[1] + c)
    bernoulli(ppl, "b", p[2] - a * c)


def turned_around(ppl):
    a = bernoulli(ppl, "a", 0.3)
    bernoulli(ppl, "b", 2.0 * a - 1.0)


def turned_around_guide(ppl):
    b = bernoulli(ppl, "b", ppl.param("p")[0])
    bernoulli(ppl, "a", ppl.param("p")[1] * b)


def coin_then_normal(ppl):
    z = bernoulli(ppl, "z", 0.3)
    ppl.sample("y", ppl.dist.Normal(2.0 * z, 1.0))


def coin_then_normal_guide(ppl):
    z = bernoulli(ppl, "z", ppl.param("p"))
    ppl.sample("y", ppl.dist.Normal(ppl.param("loc") * z, ppl.exp(ppl.param("log_scale"))))


def coin_then_scored_normal_guide(ppl):
    z = bernoulli(ppl, "z", ppl.param("p"))
    ppl.sample("y", ppl.score_normal(ppl.param("loc") * z, ppl.exp(ppl.param("log_scale"))))


def normal_then_coin(ppl):
    y = ppl.sample("y", ppl.dist.Normal(0.0, 1.0))
    z = bernoulli(ppl, "z", y)
    seen(ppl, "x", y + z, 1.2)


def normal_then_coin_guide(ppl):
    y = ppl.sample("y", ppl.dist.Normal(ppl.param("loc"), ppl.exp(ppl.param("log_scale"))))
    bernoulli(ppl, "z", ppl.param("p") * y)


def three_categories(ppl):
    table = ppl.array([[0.2, 0.8], [0.7, 0.3]])
    a = ppl.sample("a", ppl.dist.Categorical(probs=ppl.array([0.4, 0.6])))
    b = ppl.sample("b", ppl.dist.Categorical(probs=table[a]))
    c = ppl.sample("c", ppl.dist.Categorical(probs=table[1 - b]))
    seen(ppl, "x", 1.0 * a + c, 1.3)


def three_categories_guide(ppl):
    logits = ppl.param("logits")
    for index, name in enumerate("abc"):
        ppl.sample(name, ppl.dist.Categorical(logits=logits[index]))


def hidden_chain(ppl):
    z = ppl.array(0.0)
    for t, x in enumerate([0.3, 1.4, -0.2]):
        z = bernoulli(ppl, f"z_{t}", 2.0 * z - 1.0)
        seen(ppl, f"x_{t}", ppl.param("slope") * z, x)


def hidden_chain_guide(ppl):
    z = ppl.array(0.0)
    for t in range(3):
        z = bernoulli(ppl, f"z_{t}", ppl.param("p")[t] * z + 0.2)


def second_order(ppl):
    before, last = ppl.array(0.0), ppl.array(0.0)
    for t in range(4):
        before, last = last, bernoulli(ppl, f"z_{t}", before - 2.0 * last)
        bernoulli(ppl, f"y_{t}", ppl.param("slope") * last, obs=ppl.array(0.0))


def second_order_guide(ppl):
    for t in range(4):
        bernoulli(ppl, f"z_{t}", ppl.param("p")[t])


FIVE = [0.3, -0.6, 0.2, 0.5, -0.1]
host(pyramid, pyramid_guide, p=FIVE)
host(not_a_tree, not_a_tree_guide, p=FIVE[:3], slope=0.8)
host(turned_around, turned_around_guide, p=FIVE[:2])
host(coin_then_normal, coin_then_normal_guide, p=0.3, **START)
host(coin_then_normal, coin_then_scored_normal_guide, refusals=NOT_LISTED, p=0.3, **START)
host(normal_then_coin, normal_then_coin_guide, p=0.3, **START)
host(
    three_categories,
    three_categories_guide,
    refusals=NOT_BERNOULLI,
    logits=[[0.1, 0.3], [-0.4, 0.2], [0.5, 0.0]],
)
host(hidden_chain, hidden_chain_guide, p=FIVE[:3], slope=0.8)
host(second_order, second_order_guide, p=FIVE[:4], slope=0.8)
