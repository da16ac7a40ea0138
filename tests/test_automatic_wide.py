"""An automatic guide of a latent whose parents have too many joint states for a table."""

import itertools

import numpy as np
import pytest
from automatic_lab import lab as make_lab
from scipy import stats
from test_automatic import log_softmax

SHARES = np.array([0.2, 0.5, 0.3])
RNG = np.random.default_rng(1)
WIDE = RNG.dirichlet(np.ones(5), 2)  # of two latents of five values


@pytest.fixture(params=["pyro", "numpyro"])
def lab(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return make_lab(request.param)


def many_parents(ppl, x):
    """A Bernoulli that depends on three latents, of 75 joint states."""
    a = ppl.array
    with ppl.plate("data", len(x), dim=-1):
        c, d = (ppl.sample(n, ppl.dist.Categorical(a(w))) for n, w in zip("cd", WIDE, strict=True))
        e = ppl.sample("e", ppl.dist.Categorical(a(SHARES)))
        b = ppl.sample("b", ppl.dist.Bernoulli(logits=a(0.3) * c - a(0.5) * d + e - a(0.2)))
        ppl.sample("x", ppl.dist.Normal(b + c - d + e, 1.0), obs=x)


@pytest.mark.thrifty
def test_of_many_parents_each_value_has_a_row_and_their_logits_are_summed(lab):
    sizes, x = {"c": 5, "d": 5, "e": 3}, np.array([0.4, 1.7])
    params = {name: RNG.normal(size=(2, size)) for name, size in sizes.items()}
    params["b"] = RNG.normal(size=(2, 1 + sum(sizes.values()), 1))  # a bias leads
    model, total = lab.bind(many_parents), 0.0
    guide = lab.guide(model, structure="model")
    value, _ = lab.loss(lab.exact(), model, guide, params, lab.array(x))
    for row, (c, d, e, b) in itertools.product(
        (0, 1), itertools.product(*map(range, (5, 5, 3, 2)))
    ):
        own = params["b"][row, [0, 1 + c, 6 + d, 11 + e], 0].sum()
        log_q = sum(
            log_softmax(params[n][row])[code] for n, code in zip("cde", (c, d, e), strict=True)
        )
        log_q += stats.bernoulli.logpmf(b, 1 / (1 + np.exp(-own)))
        log_p = np.log(WIDE[0, c] * WIDE[1, d] * SHARES[e])
        log_p += stats.bernoulli.logpmf(b, 1 / (1 + np.exp(-(0.3 * c - 0.5 * d + e - 0.2))))
        total -= np.exp(log_q) * (log_p + stats.norm.logpdf(x[row], b + c - d + e) - log_q)
    np.testing.assert_allclose(value, total, rtol=1e-9)


def shared(ppl, x):
    """One latent that all data share makes a datum of them all."""
    kind = ppl.sample("kind", ppl.dist.Bernoulli(ppl.array(0.5)))
    with ppl.plate("data", len(x)):
        z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.4)))
        ppl.sample("x", ppl.dist.Normal(z + 3.0 * kind, 1.0), obs=x)


@pytest.mark.parametrize(("num_data", "advice"), [(20, "Raise it, or sample"), (60, "Sample")])
def test_too_many_states_of_all_data_are_not_asked_for(lab, num_data, advice):
    model, x = lab.bind(shared), lab.array(np.zeros(num_data, np.float32))
    said = rf"states of all data together .*`max_states` is 4096\. {advice}: .*or leave sites of"
    with pytest.raises(ValueError, match=said):
        lab.look(lab.exact(), model, lab.guide(model), (x,), (x,))
