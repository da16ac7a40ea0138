"""Diagnostics of programs whose sites depend on what they draw: by all ways that they can take."""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("torch")

import pyro
import pyro.distributions as dist
import torch

from pyro_dvae.diagnostics import (
    code_usage,
    evaluate,
    importance_diagnostics,
    latent_rates,
    posterior_gap,
    rate_distortion,
    to_arviz,
)
from pyro_dvae.infer import Reinforce_ELBO
from pyro_dvae.programs.sites import Pair
from pyro_dvae.programs.structure.broadcasting import takes_particles
from pyro_dvae.programs.structure.layout import find_layout

Y = torch.tensor(2.3)
WAYS = np.arange(5)  # how often one went on
PRIOR = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
GUIDE = np.array([0.4, 0.24, 0.144, 0.0864, 0.1296])
JOINT = np.log(PRIOR) + dist.Normal(0.9 * torch.arange(5.0), 1.0).log_prob(Y).double().numpy()
EVIDENCE = np.logaddexp.reduce(JOINT)
ELBO = GUIDE @ (JOINT - np.log(GUIDE))


def count(goes_on):
    n = 0
    while n < 4 and bool(pyro.sample(f"more_{n}", dist.Bernoulli(goes_on))):
        n += 1
    return n


def model(y):
    pyro.sample("y", dist.Normal(0.9 * count(0.5), 1.0), obs=y)


def guide(y):
    count(0.6)


@pytest.fixture(autouse=True)
def seeded():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def test_the_gap_is_that_of_all_ways():
    found = posterior_gap((model, guide), Y)
    np.testing.assert_allclose(found.log_evidence, EVIDENCE, rtol=1e-6)
    np.testing.assert_allclose(found.elbo, ELBO, rtol=1e-6)
    np.testing.assert_allclose(found.support_mass, 1.0)
    with pytest.raises(ValueError, match=r"more than 4 ways, the `max_states` that are listed"):
        posterior_gap((model, guide), Y, max_states=4)


def test_a_way_with_a_site_that_cannot_be_listed_is_refused():
    def endless(y):
        if bool(pyro.sample("more", dist.Bernoulli(0.5))):
            pyro.sample("n", dist.Poisson(1.0))
        if y is not None:
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"'n' \(Poisson\) has no finite support"):
        posterior_gap((endless, lambda y: endless(None)), Y)


def test_weights_are_of_the_whole_and_have_their_exact_means():
    found = importance_diagnostics((model, guide), Y, num_particles=800)
    weights = np.exp(JOINT - np.log(GUIDE))
    assert found.elbo.shape == ()
    assert abs(found.elbo - ELBO) < 5 * found.elbo_error < 0.3
    assert abs(found.iwae - EVIDENCE) < 5 * found.iwae_error < 0.3
    size = (GUIDE @ weights) ** 2 / (GUIDE @ weights**2)
    np.testing.assert_allclose(found.ess / 800, size, atol=0.1)
    assert found.whole.elbo == found.elbo
    assert str(found).startswith("All data as one, 800 draws each.")
    assert "per datum" not in str(found)


def test_rates_and_evaluations_have_their_exact_means():
    costs = rate_distortion((model, guide), Y, num_draws=400)
    rate = GUIDE @ np.log2(GUIDE / PRIOR)
    assert abs(costs.rate - rate) < 5 * costs.rate_error < 0.5
    found = evaluate((model, guide), Y, num_particles=200)
    assert abs(found.whole_elbo - ELBO) < 5 * found.whole_elbo_error < 1


def test_a_latent_that_draws_may_lack_has_a_rate_of_zero_in_these():
    found = latent_rates((model, guide), Y, num_draws=600)
    each = 0.6 * np.log(0.6 / 0.5) + 0.4 * np.log(0.4 / 0.5)
    for n in range(4):
        reached = 0.6**n
        rates = found[f"more_{n}"]
        noise = (reached * (1 - reached) / 600) ** 0.5
        assert abs(rates.share[0] - reached) <= 5 * noise
        np.testing.assert_allclose(rates.rate, each * rates.share, rtol=1e-5)
        np.testing.assert_allclose(rates.error, each * noise, rtol=0.25, atol=1e-9)
    assert not any(rates.collapsed.any() for rates in found.values())


def test_a_site_that_is_not_there_is_nan_in_arviz_and_counts_for_nothing():
    idata = to_arviz((model, guide), Y, num_draws=100)
    codes = np.stack([idata.posterior[f"more_{i}"].values[0] for i in range(4)])
    ways = np.nan_to_num(codes).sum(0).astype(int)
    there = np.arange(4)[:, None] <= np.minimum(ways, 3)
    np.testing.assert_array_equal(np.isnan(codes), ~there)
    expected = JOINT[ways] - np.log(GUIDE[ways])
    np.testing.assert_allclose(idata.sample_stats["log_weight"].values[0], expected, rtol=1e-5)
    assert idata.posterior["more_0"].dtype.kind == "i"
    counts = code_usage((model, guide), Y, num_draws=300)
    goes_on = counts["more_0"].counts[1]
    assert counts["more_1"].counts.sum() == goes_on


def rare(is_model):
    with pyro.plate("data", 2):
        a = pyro.sample("a", dist.Bernoulli(0.3 if is_model else 1e-4))
        if a.sum().item() > 0:
            pyro.sample("b", dist.Bernoulli(0.5))


@pytest.mark.parametrize("is_noisy", [False, True])
def test_a_way_that_no_particle_goes_at_first_is_tried(is_noisy):
    """No draw has the second site; beside others, the lowest values go their way."""

    def guide():
        rare(False)
        return torch.rand(()) if is_noisy else None

    pair = Pair(partial(rare, True), guide, (), {})
    with pytest.warns(UserWarning, match="Python asks for the values of"):
        layout, _ = find_layout(pair)
    assert not takes_particles(pair._replace(layout=layout), warn=False)


def test_a_shared_draw_with_dims_of_its_own_is_told_in_one_sentence():
    def marked(y, guided=False):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        if not guided:
            with pyro.plate("data", 2):
                chance = dist.Bernoulli(logits=a[..., None, None])  # particles lie left of these
                z = pyro.sample("z", chance, infer={"enumerate": "parallel"})
                pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    loss = Reinforce_ELBO(num_particles=2)
    told = r"put the site under a plate with dim=-\d\. It will run .* add no dims to a draw"
    with pytest.warns(UserWarning, match=told):
        loss.loss(marked, lambda y: marked(y, guided=True), torch.zeros(2))
