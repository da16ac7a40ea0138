"""Programs with Pyro's handlers around them: the values of the programs that these make."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from any_pyro import fresh, quiet  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import SVI  # noqa: E402
from pyro.optim import Adam  # noqa: E402

from pyro_dvae.diagnostics import posterior_gap  # noqa: E402
from pyro_dvae.fit import fit  # noqa: E402
from pyro_dvae.infer import DAPS_ELBO, DisARM_ELBO, Exact_ELBO, Reinforce_ELBO  # noqa: E402

__all__ = ["fresh"]  # a fixture of every test here

X = np.array([-0.5, 1.2])


def coins(x):
    means = pyro.param("means", torch.tensor([0.0, 1.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(means[z.long()], 1.0), obs=x)


def guide(x):
    logits = pyro.param("logits", torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=logits))


def evidence(means):
    logs = np.log([0.7, 0.3]) + norm.logpdf(X[:, None], np.asarray(means))
    return logsumexp(logs, -1), logs.mean(-1) + np.log(2)


def test_a_parameter_that_is_substituted_is_none_of_the_programs():
    """It was taken for one of the store, and reports ended in an error of Torch's."""
    x = torch.tensor(X)
    pair = poutine.substitute(coins, data={"means": torch.tensor([0.5, 2.0])}), guide
    log_evidence, elbo = evidence([0.5, 2.0])
    assert float(Exact_ELBO().loss(*pair, x)) == pytest.approx(-elbo.sum(), rel=1e-6)
    gap = posterior_gap(pair, x)
    assert gap.elbo == pytest.approx(elbo, rel=1e-6)
    assert gap.elbo + gap.gap == pytest.approx(log_evidence, rel=1e-6)


@pytest.mark.slow
def test_what_is_substituted_is_not_trained():
    pair = poutine.substitute(coins, data={"means": torch.tensor([0.5, 2.0])}), guide
    svi = SVI(*pair, Adam({"lr": 0.5}), loss=Exact_ELBO())
    result = quiet(lambda: fit(svi, torch.tensor(X), num_steps=2, progress=False))
    assert set(result.params) == {"logits"}


@pytest.mark.parametrize("loss", [Reinforce_ELBO, DAPS_ELBO, DisARM_ELBO])
@pytest.mark.parametrize("vectorize", [True, False])
def test_a_guide_that_seeds_its_draws_is_refused(loss, vectorize):
    """All particles, or all steps, would have the same."""

    def own(x):
        torch.manual_seed(3)
        return guide(x)

    for seeded in (poutine.seed(guide, 3), own):
        with pytest.raises(ValueError, match=r"'z' is drawn after the program has seeded"):
            loss(2, vectorize_particles=vectorize).loss(coins, seeded, torch.tensor(X))


@pytest.mark.parametrize("loss", [Reinforce_ELBO, DAPS_ELBO])
@pytest.mark.parametrize("vectorize", [True, False])
def test_a_guide_that_seeds_by_the_seed_of_the_generator_is_refused(loss, vectorize):
    def own(x):
        pyro.set_rng_seed(3)
        return guide(x)

    def twice(program):
        pyro.set_rng_seed(3)
        losses = loss(2, vectorize_particles=vectorize)
        for _ in range(2):  # the first draw of `own` may be that of the generator itself
            losses.loss(coins, program, torch.tensor(X))

    for seeded in (poutine.seed(guide, 3), own):
        with pytest.raises(ValueError, match=r"'z' is drawn after the program has seeded"):
            twice(seeded)


def test_a_model_that_is_seeded_and_draws_nothing_counts_as_it_is():
    found = Exact_ELBO().loss(poutine.seed(coins, 3), guide, torch.tensor(X))
    assert float(found) == pytest.approx(-evidence([0.0, 1.0])[1].sum(), rel=1e-6)
