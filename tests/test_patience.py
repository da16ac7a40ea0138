"""Programs that diagnostics run draw by draw: how long it takes is said."""

import warnings

import pytest

pyro = pytest.importorskip("pyro")
torch = pytest.importorskip("torch")
dist = pytest.importorskip("pyro.distributions")
diagnostics = pytest.importorskip("pyro_dvae.diagnostics")
patience = pytest.importorskip("pyro_dvae.diagnostics.patience")

X = torch.tensor([0.3, 1.8])


def programs(index, shared):
    """Model and guide, where the model takes the first of two bits by an index."""

    def model(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0)) if shared else 0.0
        with pyro.plate("data", len(x)):
            bits = pyro.sample("bits", dist.Bernoulli(0.5 * torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(bits[index] + shift, 1.0), obs=x)

    def guide(x):
        if shared:
            pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("bits", dist.Bernoulli(0.5 * torch.ones(2)).to_event(1))

    return model, guide


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_long_time_is_told(monkeypatch, shared):
    """How many runs, and what to write; not of programs that take all draws at once."""
    monkeypatch.setattr(patience, "_LOOKED", 0.0)
    monkeypatch.setattr(patience, "_LONG", 0.0)
    run = diagnostics.importance_diagnostics
    sizes = {"num_particles": 25, **({"num_shared": 25} if shared else {})}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        slow = run(programs((slice(None), 0), shared), X, **sizes)
    words = [str(each.message) for each in told if "is a run of its own" in str(each.message)]
    assert [int(w.split("each of ")[1].split()[0]) for w in words] == [25, *([625] * shared)]
    assert all("Index from the right (x[..., i], sum(-1))" in each for each in words)
    assert slow.elbo.shape == (2,)
    run(programs((..., 0), shared), X, **sizes)


def test_a_short_time_is_not():
    """As long as nothing is known, and if it is short."""
    assert list(patience.Patience(5).over(5)) == [0, 1, 2, 3, 4]
