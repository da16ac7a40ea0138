"""The gap of programs whose sites depend on draws, whatever the first run happens to have."""

import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")

from pyro import distributions as dist  # noqa: E402

from pyro_dvae.diagnostics import posterior_gap  # noqa: E402

X = torch.tensor([0.3, 1.2])


def program(chance, further):
    def run(x, *, observes):
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(chance))
        if z.sum() > 0:
            pyro.sample("w", further)
        if observes:
            with pyro.plate("again", 2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return run


def gap(chances, families, seed):
    pyro.set_rng_seed(seed)
    model, guide = map(program, chances, families)
    return posterior_gap((lambda x: model(x, observes=True), lambda x: guide(x, observes=False)), X)


@pytest.mark.parametrize("seed", [0, 3, 6])
def test_a_continuous_latent_of_some_ways_is_named(seed):
    families = dist.Normal(0.0, 1.0), dist.Normal(0.5, 1.0)
    with pytest.raises(ValueError, match=r"'w'.*`importance_diagnostics`, which samples"):
        gap((0.5, 0.4), families, seed)


@pytest.mark.parametrize("seed", [0])
def test_a_discrete_one_is_listed(seed):
    found = gap((0.5, 0.4), (dist.Bernoulli(0.3), dist.Bernoulli(0.4)), seed)
    densities = [dist.Normal(z, 1.0).log_prob(X).exp() for z in (0.0, 1.0)]
    evidence = sum(0.5 * each for each in densities).log().sum()
    torch.testing.assert_close(torch.tensor(float(found.whole_log_evidence)), evidence)
