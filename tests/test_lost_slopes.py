"""A relaxed draw that is compared, rounded or looked up loses its gradient: `relax` says so."""

from types import SimpleNamespace

import numpy as np
import pytest

X = np.array([0.3, -1.2, 1.9])
TABLE = np.array([0.0, 2.0, -1.0])


@pytest.fixture(params=["pyro", "numpyro"])
def host(request):
    """Arrays of a framework, and what its own ELBO says of a program under `relax`."""
    if request.param == "pyro":
        torch, pyro = pytest.importorskip("torch"), pytest.importorskip("pyro")
        from pyro_dvae.infer import relax

        class Rounded(torch.autograd.Function):
            @staticmethod
            def forward(ctx, z):
                return z.round()

            @staticmethod
            def backward(ctx, slope):
                return slope

        def train(model, guide):
            pyro.clear_param_store()
            relaxed = relax(model, "reinmax"), relax(guide, "reinmax")
            pyro.infer.Trace_ELBO().loss_and_grads(*relaxed, torch.as_tensor(X))
            return pyro.param("l").grad.numpy()

        return SimpleNamespace(
            np=torch, ppl=pyro, dist=pyro.distributions, array=torch.as_tensor, train=train,
            whole=lambda z: z.long(), real=lambda z: z.double(), stop=lambda z: z.detach(),
            own=Rounded.apply, one_hot=pyro.distributions.OneHotCategorical, soft=torch.log_softmax,
        )  # fmt: skip
    jax, numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")
    from numpyro_dvae.distributions import OneHotCategorical
    from numpyro_dvae.infer import relax

    rounded = jax.custom_jvp(jax.numpy.round)
    rounded.defjvp(lambda primals, slopes: (rounded(*primals), slopes[0]))

    def train(model, guide):
        relaxed = relax(model, "reinmax"), relax(guide, "reinmax")
        key, loss = jax.random.key(0), numpyro.infer.Trace_ELBO().loss
        return jax.grad(lambda p: loss(key, p, *relaxed, X))({})

    return SimpleNamespace(
        np=jax.numpy, ppl=numpyro, dist=numpyro.distributions, array=jax.numpy.asarray, train=train,
        whole=lambda z: z.astype(int), real=lambda z: z.astype(float), stop=jax.lax.stop_gradient,
        own=rounded, one_hot=OneHotCategorical, soft=jax.nn.log_softmax,
    )  # fmt: skip


def train(host, way, family=lambda host, logits: host.dist.Bernoulli(logits=logits), width=()):
    logits = np.linspace(-0.5, 0.8, 3 * max(1, *width, 1)).reshape(3, *width)

    def model(x):
        with host.ppl.plate("data", 3):
            z = host.ppl.sample("z", family(host, host.array(0.1 * logits)))
            host.ppl.sample("x", host.dist.Normal(way(host, z), 1.0), obs=x)

    def guide(x):
        with host.ppl.plate("data", 3):
            host.ppl.sample("z", family(host, host.ppl.param("l", host.array(logits))))

    return host.train(model, guide)


LOST = {
    "where": lambda h, z: h.np.where(z == 1, 2.0, 0.0),
    "where_less": lambda h, z: h.np.where(z < 0.5, 0.0, 2.0 * h.array(X)),
    "index": lambda h, z: h.array(TABLE)[h.whole(z)],
    "round": lambda h, z: 2 * h.np.round(z),
    "sign": lambda h, z: 2 * h.np.sign(z),
    "floor": lambda h, z: h.np.floor(z + 0.2),
    "heaviside": lambda h, z: h.np.heaviside(z - 0.5, h.array(np.zeros(()))),
    "real": lambda h, z: h.real(z > 0.5),
    "argmax": lambda h, z: 2.0 * h.np.stack([1 - z, z], -1).argmax(-1),
    "one_of_two": lambda h, z: z + h.array(TABLE)[h.whole(z)],
    "recorded": lambda h, z: h.ppl.deterministic("code", 2 * h.np.round(z)),
    "behind_softmax": lambda h, z: h.soft(h.np.stack([0 * z, h.np.round(z)], -1), -1)[..., 1],
}
KEPT = {
    "choice_of_two": lambda h, z: 0.5 + z * 1.5,
    "relu": lambda h, z: h.np.where(z - 0.5 > 0, z - 0.5, 0.1 * z),
    "relu_by_product": lambda h, z: z * (z > 0.5),
    "not_a_number": lambda h, z: h.np.where(h.np.isnan(z), 0.0, z),
    "infinite": lambda h, z: h.np.where(z == np.inf, 0.0, z),
    "of_its_shape": lambda h, z: z + h.real(h.np.zeros_like(z) == 0),
    "own_derivative": lambda h, z: 2 * h.own(z),
    "straight_through": lambda h, z: h.real(z > 0.5) + z - h.stop(z),
    "detached": lambda h, z: z + h.stop(h.real(z > 0.5)),
    "beside_a_record": lambda h, z: z + 0 * len(h.ppl.deterministic("code", h.np.round(z))),
    "no_use": lambda h, z: h.array(X),
}


@pytest.mark.parametrize("way", LOST)
def test_what_loses_the_gradient_of_a_draw_is_refused(host, way):
    with pytest.raises(ValueError, match=r"site 'z' is relaxed, and the log-density of site 'x'"):
        train(host, LOST[way])


@pytest.mark.parametrize("way", KEPT)
def test_what_keeps_it_or_is_meant_is_not(host, way):
    train(host, KEPT[way])


FAMILIES = {
    "Categorical": lambda h, logits: h.dist.Categorical(logits=logits),
    "OneHotCategorical": lambda h, logits: h.one_hot(logits=logits),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_over_codes_are_multiplied_with_a_table(host, family):
    options = {"family": FAMILIES[family], "width": (3,)}
    train(host, lambda h, z: z @ h.array(TABLE), **options)
    with pytest.raises(ValueError, match=r"way of `argmax`, which has no gradient.* z @ table"):
        train(host, lambda h, z: h.array(TABLE)[z.argmax(-1)], **options)


def test_a_guide_that_goes_on_from_a_draw_is_looked_at_too(host):
    def model(x):
        a = host.ppl.sample("a", host.dist.Bernoulli(logits=host.array(0.2)))
        b = host.ppl.sample("b", host.dist.Bernoulli(logits=a))
        host.ppl.sample("x", host.dist.Normal(a + b, 1.0), obs=x[0])

    def guide(x):
        a = host.ppl.sample("a", host.dist.Bernoulli(logits=host.ppl.param("l", host.array(0.3))))
        host.ppl.sample("b", host.dist.Bernoulli(logits=2 * host.real(a > 0.5)))

    with pytest.raises(ValueError, match=r"'a' is relaxed, and the log-density of site 'b' .*`gt`"):
        host.train(model, guide)


def test_pyro_sees_what_is_filled_in_place_or_asked_for_by_python():
    torch, pyro = pytest.importorskip("torch"), pytest.importorskip("pyro")
    from pyro_dvae.infer import Reinforce_ELBO, relax

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

    for way, why in ((filled, "site 'x' .*`gt`"), (asked, "what Python does")):

        def model(x, way=way):
            with pyro.plate("data", 3):
                z = pyro.sample("z", pyro.distributions.Bernoulli(0.4))
                loc = way(z).reshape(z.shape)
                pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x)

        pair = relax(model, "reinmax"), relax(guide, "reinmax")
        assert np.isfinite(Reinforce_ELBO(4).loss(*pair, torch.as_tensor(X)))  # no gradient
        with pytest.raises(ValueError, match=why):
            Reinforce_ELBO(4).loss_and_grads(*pair, torch.as_tensor(X))


def test_pyro_looks_at_the_parameters_that_the_run_has_had():
    """Of handlers around it, too: none is made in the store by looking."""
    torch, pyro = pytest.importorskip("torch"), pytest.importorskip("pyro")
    from pyro_dvae.infer import relax

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
