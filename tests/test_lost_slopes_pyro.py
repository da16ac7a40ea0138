"""What Pyro's programs lose of a relaxed draw's gradient by ways that are Torch's alone."""

from contextlib import nullcontext

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
from pyro_dvae.infer import Reinforce_ELBO, relax  # noqa: E402

X = np.array([0.3, -1.2, 1.9])


def into_a_column(z):
    table = torch.zeros(*z.shape, 2)
    table[..., 0].masked_fill_(z > 0.5, 2.0)
    return table.sum(-1)


def into_an_output(z):
    larger = torch.zeros(z.shape, dtype=torch.bool)
    torch.gt(z, 0.5, out=larger)
    return larger.double()


def written_over(z):
    table = (z > 0.5).double()
    table.fill_(1.5)
    return table


def detached(z):
    table = torch.zeros_like(z)
    table[z > 0.5] = 2.0
    return table.detach()


WAYS_OF_TORCH = {
    "column": (into_a_column, "`gt`"),
    "output": (into_an_output, "`gt`"),
    "count": (lambda z: torch.full_like(z, len(z[z > 0.5])).detach(), "what Python does"),
    "written_over": (written_over, None),
    "detached": (detached, None),
    "grid_of_others": (
        lambda z: torch.meshgrid(z, torch.ones(2), indexing="ij")[1][0],
        None,
    ),
}


@pytest.mark.parametrize("way", WAYS_OF_TORCH)
def test_it_sees_what_is_written_and_counted(way):
    compute, why = WAYS_OF_TORCH[way]

    def model():
        z = pyro.sample("z", pyro.distributions.Bernoulli(torch.full((3,), 0.4)).to_event(1))
        loc = compute(z).sum()
        pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=torch.tensor(0.7))

    def guide():
        logits = pyro.param("l", torch.linspace(-0.5, 0.8, 3))
        pyro.sample("z", pyro.distributions.Bernoulli(logits=logits).to_event(1))

    pyro.clear_param_store()
    pyro.set_rng_seed(2)
    with pytest.raises(ValueError, match=why) if why else nullcontext():
        pyro.infer.Trace_ELBO().loss_and_grads(relax(model, "reinmax"), relax(guide, "reinmax"))


def test_it_knows_its_marks_from_those_of_the_loss():
    """`TraceGraph_ELBO` marks all draws; those that are not relaxed may be indices."""

    def model():
        a = pyro.sample("a", pyro.distributions.Bernoulli(0.4))
        logits = torch.tensor([0.3, -0.2])[a.long()]
        b = pyro.sample("b", pyro.distributions.Bernoulli(logits=logits))
        pyro.sample("x", pyro.distributions.Normal(2 * b + a, 1.0), obs=torch.tensor(1.2))

    def guide():
        for name in ("a", "b"):
            logits = pyro.param(f"{name}_logits", torch.tensor(0.3))
            pyro.sample(name, pyro.distributions.Bernoulli(logits=logits))

    found = []
    for loss in (pyro.infer.Trace_ELBO(), pyro.infer.TraceGraph_ELBO()):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        pair = (relax(one, "reinmax", sites=["b"]) for one in (model, guide))
        found.append((loss.loss_and_grads(*pair), float(pyro.param("b_logits").grad)))
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_it_sees_what_is_filled_in_place_or_asked_for_by_python():
    def filled(z):
        table = torch.zeros(z.shape)
        table[z > 0.5] = 2.0
        return table

    def asked(z):
        return torch.stack([torch.tensor(2.0 if one > 0.5 else 0.0) for one in z.flatten()])

    def guide(x):
        logits = pyro.param("l", torch.zeros(3))
        with pyro.plate("data", 3):
            return pyro.sample("z", pyro.distributions.Bernoulli(logits=logits))

    def rounded(z):
        return z.clone().div_(0.7, rounding_mode="floor")

    ways = [(filled, "site 'x' .*`gt`"), (asked, "what Python does"), (rounded, "`floor_divide`")]
    ways.append((lambda z: torch.normal(2 * z, 0.1), "`normal`"))
    for way, why in ways:

        def model(x, way=way):
            with pyro.plate("data", 3):
                z = pyro.sample("z", pyro.distributions.Bernoulli(0.4))
                loc = way(z).reshape(z.shape)
                pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x)

        pair = relax(model, "reinmax"), relax(guide, "reinmax")

        def asks(way=way):
            return pytest.warns(UserWarning, match="Python asks") if way is asked else nullcontext()

        with asks():
            assert np.isfinite(Reinforce_ELBO(4).loss(*pair, torch.as_tensor(X)))  # no gradient
        with asks(), pytest.raises(ValueError, match=why):
            Reinforce_ELBO(4).loss_and_grads(*pair, torch.as_tensor(X))


PYRO = {
    "masked_select": lambda z: (2 * z - 1).masked_select(z > 0.5).sum(),
    "boolean_index": lambda z: (2 * z - 1)[z > 0.5].sum(),
}


@pytest.mark.parametrize("way", PYRO)
def test_it_takes_a_mask_that_chooses_among_what_has_the_gradient(way):
    slopes = []
    for chosen in (PYRO[way], lambda z: ((2 * z - 1) * z.detach()).sum()):

        def model(chosen=chosen):
            z = pyro.sample("z", pyro.distributions.Bernoulli(torch.full((3,), 0.4)).to_event(1))
            pyro.sample("x", pyro.distributions.Normal(chosen(z), 1.0), obs=torch.tensor(0.7))

        def guide():
            logits = pyro.param("l", torch.linspace(-0.5, 0.8, 3))
            z = pyro.sample("z", pyro.distributions.Bernoulli(logits=logits).to_event(1))
            z.mean().item(), z.detach().tolist()

        pyro.clear_param_store()
        pyro.set_rng_seed(2)
        pyro.infer.Trace_ELBO().loss_and_grads(relax(model, "reinmax"), relax(guide, "reinmax"))
        slopes.append(pyro.param("l").grad)
    torch.testing.assert_close(*slopes)


def test_it_looks_at_the_parameters_that_the_run_has_had():
    """Of handlers around it, too: none is made in the store by looking."""

    class Given(pyro.poutine.messenger.Messenger):
        def _pyro_param(self, msg):
            msg["value"], msg["done"] = torch.ones(3, requires_grad=True), True

    def model():
        logits = pyro.param("l", torch.zeros(3))
        z = pyro.sample("z", pyro.distributions.Bernoulli(logits=logits).to_event(1))
        pyro.sample("x", pyro.distributions.Normal(z, 1.0).to_event(1), obs=torch.tensor(X))

    pyro.clear_param_store()
    with Given():
        relax(model)()
    assert not pyro.get_param_store().keys()
