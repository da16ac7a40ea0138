"""Marked sites that cannot be summed out are refused, by name and with a way out."""

import importlib

import numpy as np
import pytest
from enumerated_zoo import SUM
from host_zoo import Host, X, bernoulli, seen

SAMPLED = ("Exact_ELBO", "Reinforce_ELBO", "DAPS_ELBO")


@pytest.fixture(params=["pyro", "numpyro"])
def package(request):
    library = pytest.importorskip({"pyro": "torch", "numpyro": "funsor"}[request.param])
    if request.param == "pyro":
        library.set_default_dtype(library.float64)
    yield importlib.import_module(f"host_{request.param}")
    if request.param == "pyro":
        library.set_default_dtype(library.float32)


def guide(ppl):
    with ppl.plate("data", 2, dim=-1):
        bernoulli(ppl, "u", ppl.param("q"))


def no_end(ppl):
    with ppl.plate("data", 2, dim=-1):
        bernoulli(ppl, "u", 0.3)
        z = ppl.sample("z", ppl.dist.Poisson(ppl.array(1.5)), infer=SUM)
        seen(ppl, "x", 0.1 * z, X)


def continuous(ppl):
    with ppl.plate("data", 2, dim=-1):
        bernoulli(ppl, "u", 0.3)
        z = ppl.sample("z", ppl.dist.Normal(0.0, 1.0), infer=SUM)
        seen(ppl, "x", z, X)


def draws_in_place_of_a_sum(ppl):
    with ppl.plate("data", 2, dim=-1):
        bernoulli(ppl, "u", 0.3)
        z = bernoulli(ppl, "z", 0.3, infer={**SUM, "num_samples": 5})
        seen(ppl, "x", z, X)


def a_vector(ppl):
    with ppl.plate("data", 2, dim=-1):
        bernoulli(ppl, "u", 0.3)
        z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array([0.2, 0.4])).to_event(1), infer=SUM)
        seen(ppl, "x", z.sum(-1), X)


def of_no_plate(ppl):
    z = bernoulli(ppl, "z", ppl.array([0.3, 0.4]), infer=SUM)
    with ppl.plate("data", 2, dim=-1):
        bernoulli(ppl, "u", 0.3)
        seen(ppl, "x", 1.0 * z, X)


def crossed(ppl):
    data, columns = ppl.plate("data", 2, dim=-1), ppl.plate("columns", 3, dim=-2)
    with data:
        bernoulli(ppl, "u", 0.3)
        z = bernoulli(ppl, "z", 0.3, infer=SUM)
    with columns:
        w = bernoulli(ppl, "w", 0.3, infer=SUM)
        with data:
            seen(ppl, "x", z + w, np.ones((3, 2)))


def outside_of_its_plate(ppl):
    with ppl.plate("data", 2, dim=-1):
        bernoulli(ppl, "u", 0.3)
        z = bernoulli(ppl, "z", 0.3, infer=SUM)
    seen(ppl, "x", 1.0 * z.sum(-1), 0.7)


def beside_its_plate(ppl):
    with ppl.plate("data", 2, dim=-2):
        z = bernoulli(ppl, "z", 0.3, infer=SUM)
    with ppl.plate("others", 2, dim=-1):
        bernoulli(ppl, "u", 0.3)
        seen(ppl, "x", 1.0 * z, X)


def two_scales(ppl):
    with ppl.plate("data", 2, dim=-1):
        bernoulli(ppl, "u", 0.3)
        z = bernoulli(ppl, "z", 0.3, infer=SUM)
        with ppl.scale(scale=0.5):
            seen(ppl, "x", 1.0 * z, X)


def within_what_is_summed(ppl):
    z = bernoulli(ppl, "z", 0.3, infer=SUM)
    with ppl.plate("data", 2, dim=-1):
        bernoulli(ppl, "u", 0.3)
        with ppl.scale(scale=ppl.array([0.5, 2.0])):
            seen(ppl, "x", 1.0 * z, X)


def masked_above(ppl):
    with ppl.plate("data", 2, dim=-1):
        z = bernoulli(ppl, "z", 0.3, infer=SUM)
        with ppl.mask(mask=ppl.bools([True, False])):
            bernoulli(ppl, "u", 1.0 * z)


REFUSED = [
    (no_end, r"site 'z' \(Poisson\) is marked .* no finite support .* cut a count off"),
    (continuous, r"site 'z' \(Normal\) is marked .* no finite support .* Sample it in the guide"),
    (draws_in_place_of_a_sum, "site 'z' is marked with num_samples=5.* Leave num_samples out"),
    (
        a_vector,
        r"'z' \(Bernoulli.*\) is marked .* .to_event makes .* Put its entries under a plate",
    ),
    (of_no_plate, r"site 'z'.* shape .* under no plate"),
    (crossed, "plates that cross .*'z' under.*'data'.* Sample one of the sites in the guide"),
    (outside_of_its_plate, "site 'x'.*( under no plate|mixes its dims)"),
    (beside_its_plate, "'x' depends on 'z', which is enumerated under plate 'data', from outside"),
    (two_scales, "must have one scale; got 1 at 'z' and 0.5 at 'x'.* Put them under the same"),
    (within_what_is_summed, "one scale|differs within plates that are summed"),
    (masked_above, "site 'u', which is drawn, is masked and depends on 'z'"),
]


@pytest.mark.parametrize(("model", "words"), REFUSED, ids=[model.__name__ for model, _ in REFUSED])
def test_what_cannot_be_summed_is_refused(package, model, words):
    pair = Host(model.__name__, model, guide, {"q": np.array([0.4, -0.3])}, {}, 9)
    for loss in SAMPLED:
        with pytest.raises(ValueError, match=words):
            package.draws(pair, getattr(package.infer, loss)(), 1)


def mixing():
    """Programs of Pyro that mix dims which they should keep apart, and run all the same."""
    import pyro
    import pyro.distributions as dist
    import torch

    def over_cells():
        with pyro.plate("data", 2):
            pyro.sample("u", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Bernoulli(0.3), infer=SUM)
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) + z, 1.0), obs=torch.tensor(X))

    def over_all():
        with pyro.plate("data", 2):
            pyro.sample("u", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Bernoulli(0.3), infer=SUM)
            pyro.sample("x", dist.Normal(z.mean(), 1.0), obs=torch.tensor(X))

    def from_the_left():
        with pyro.plate("data", 2):
            pyro.sample("u", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Bernoulli(0.3), infer=SUM)
            pyro.sample("x", dist.Normal(z[0], 1.0), obs=torch.tensor(X))

    def two_steps_back():
        table, z = torch.tensor([[0.2, 0.8], [0.7, 0.3]]), [torch.tensor(0), torch.tensor(1)]
        with pyro.plate("data", 2):
            pyro.sample("u", dist.Bernoulli(0.3))
        for t in pyro.markov(range(4)):
            z.append(pyro.sample(f"z{t}", dist.Categorical(table[z[-2]]), infer=SUM))
            pyro.sample(f"x{t}", dist.Normal(z[-1], 1.0), obs=torch.tensor(0.3))

    def by_an_if():
        with pyro.plate("data", 2):
            pyro.sample("u", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Bernoulli(0.3), infer=SUM)
        pyro.sample("x", dist.Normal(1.0 if z else 0.0, 1.0), obs=torch.tensor(0.3))

    return [over_cells, over_all, from_the_left, two_steps_back, by_an_if]


@pytest.mark.parametrize("number", range(5))
def test_programs_that_mix_all_values_are_refused(number):
    torch = pytest.importorskip("torch")
    import pyro
    import pyro.distributions as dist

    from pyro_dvae.infer import Reinforce_ELBO

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("u", dist.Bernoulli(torch.tensor([0.4, 0.6])))

    model = mixing()[number]
    with pytest.raises(ValueError, match=r"all values of \['z.* are there at once") as caught:
        Reinforce_ELBO(4).loss_and_grads(model, guide)
    assert "sample these sites in the guide" in str(caught.value)
