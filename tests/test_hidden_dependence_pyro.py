"""What a log-density depends on is found out by changing draws, where no tensor tells it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from any_pyro import assert_mean, bits, exact_loss, fresh, quiet  # noqa: E402
from pyro.infer.tracegraph_elbo import TrackNonReparam  # noqa: E402

from pyro_dvae.infer import Reinforce_ELBO  # noqa: E402
from pyro_dvae.programs.readers.credit import find_influence  # noqa: E402
from pyro_dvae.programs.sites import Pair  # noqa: E402
from pyro_dvae.programs.structure.layout import find_layout  # noqa: E402
from pyro_dvae.programs.structure.tracking import find_sources, tracked  # noqa: E402

__all__ = ["fresh"]  # a fixture of every test here


def filled(z):
    table = torch.zeros(2)
    table[0] = z
    return table.sum()


def viewed(z):
    table = torch.zeros(3)
    table[1:2].add_(z)
    return table.sum()


def written(z):
    out = torch.zeros(())
    torch.mul(z, 2.0, out=out)
    return out + 0


WAYS = {
    "in place": filled,
    "a view": viewed,
    "out": written,
    "vmap": lambda z: torch.vmap(lambda each: 2 * each)(z[None])[0],
    "a gradient": lambda z: torch.func.grad(lambda x: x * z)(torch.tensor(1.0)),
    "torch.tensor": lambda z: torch.tensor([z, 1.0]).sum(),
    "new_tensor": lambda z: torch.ones(1).new_tensor([z]).sum(),
    "a printed number": lambda z: {"0": torch.tensor(0.0), "1": torch.tensor(1.0)}[f"{z:.0f}"],
    "a shape": lambda z: torch.tensor(float(len(z[None].nonzero()))),
    "equal": lambda z: torch.tensor(float(torch.equal(z, torch.tensor(1.0)))),
}


def two_coins(way):
    def model():
        a = pyro.sample("a", dist.Bernoulli(0.5))
        b = pyro.sample("b", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(a, 1.0), obs=torch.tensor(0.3))
        pyro.sample("y", dist.Normal(way(b), 1.0), obs=torch.tensor(1.7))

    return model


def two_coins_guide():
    logits = pyro.param("logits", torch.tensor([0.3, -0.4]))
    pyro.sample("a", dist.Bernoulli(logits=logits[0]))
    pyro.sample("b", dist.Bernoulli(logits=logits[1]))


@pytest.mark.parametrize("way", WAYS)
def test_a_draw_is_credited_with_what_it_reaches_unseen(way):
    pair = Pair(two_coins(WAYS[way]), two_coins_guide, (), {})
    influence = find_influence(pair._replace(layout=find_layout(pair)[0]))
    assert influence is None or "b" in influence.model["y"]


@pytest.mark.parametrize("vectorize", [pytest.param(False, marks=pytest.mark.slow), True])
def test_its_gradient_is_right(vectorize):
    two_coins_guide()
    leaf = pyro.param("logits").unconstrained()
    exact = exact_loss(two_coins(filled), two_coins_guide, {"a": bits(), "b": bits()})
    (slope,) = torch.autograd.grad(exact, leaf)
    elbo = Reinforce_ELBO(4, vectorize_particles=vectorize)

    def gradient():
        leaf.grad = None
        quiet(lambda: elbo.loss_and_grads(two_coins(filled), two_coins_guide))
        return float(leaf.grad[1])

    assert_mean(gradient, slope[1], 200)


def test_answers_in_order():
    """OrderedLogistic fills a table: its gradient was as if the answers did not matter."""

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.55))
        with pyro.plate("data", 3):
            answers = dist.OrderedLogistic(0.8 * z, torch.tensor([-1.0, 0.5]))
            pyro.sample("x", answers, obs=torch.tensor([0, 2, 1]))

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4))))

    guide()
    leaf = pyro.param("logit").unconstrained()
    (slope,) = torch.autograd.grad(exact_loss(model, guide, {"z": bits()}), leaf)
    elbo = Reinforce_ELBO(4)

    def gradient():
        leaf.grad = None
        elbo.loss_and_grads(model, guide)
        return float(leaf.grad)

    assert_mean(gradient, slope, 200)


def plated(way):
    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(way(z), 1.0), obs=torch.arange(3.0))

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(0.6))

    return Pair(model, guide, (), {})


def cell_by_cell(z):
    return torch.vmap(lambda each: 2 * each)(z)


def all_at_once(z):
    return torch.zeros(3) + float(f"{z.sum():.0f}")


def test_cells_of_a_plate_stay_apart_unless_they_are_seen_to_mix():
    assert find_layout(plated(cell_by_cell))[0].plates == ("data",)
    with pytest.warns(UserWarning, match="all have one weight"):
        assert find_layout(plated(all_at_once))[0].plates == ()


def test_a_draw_that_is_not_used_is_credited_with_nothing():
    found = tracked(
        pair := Pair(two_coins(lambda b: 0.0 * b), two_coins_guide, (), {}), TrackNonReparam()
    )
    assert find_sources(pair, found, ["a", "b"]).model["x"] == {"a"}
    pair = Pair(two_coins(lambda b: torch.tensor(0.5)), two_coins_guide, (), {})
    found = tracked(pair, TrackNonReparam())
    sources = find_sources(pair, found, ["a", "b"])
    assert sources.model["y"] == frozenset()
    assert not sources.mixed


def test_many_draws_are_changed_by_halves():
    def chain(way):
        z = torch.tensor(0.0)
        for t in range(9):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(0.3 + 0.4 * z))
            if way is not None:
                pyro.sample(f"x_{t}", dist.Normal(way(z), 1.0), obs=torch.tensor(0.7))

    pair = Pair(lambda: chain(filled), lambda: chain(None), (), {})
    influence = find_influence(pair._replace(layout=find_layout(pair)[0]))
    assert all(f"z_{t}" in influence.model[f"x_{t}"] for t in range(9))
    np.testing.assert_array_equal(len(influence.guide), 9)


@pytest.mark.parametrize("mask", [False, torch.zeros(1, dtype=torch.bool)])
def test_a_draw_whose_density_is_masked_leads_on(mask):
    def model():
        pyro.sample("b", dist.Bernoulli(0.3))
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(c, 1.0), obs=torch.tensor(1.7))

    def guide():
        pyro.sample("b", dist.Bernoulli(0.6))
        a = pyro.sample("a", dist.Bernoulli(0.4))
        with pyro.poutine.mask(mask=mask):
            pyro.sample("c", dist.Normal(2.0 * a, 1.0))

    pair = Pair(model, guide, (), {})
    influence = find_influence(pair._replace(layout=find_layout(pair)[0]))
    assert influence.model["y"].keys() == influence.model["c"].keys() == {"a"}
