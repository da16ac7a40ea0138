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

        class Round(Rounded):
            pass

        def train(model, guide):
            pyro.clear_param_store()
            pyro.set_rng_seed(2)
            relaxed = relax(model, "reinmax"), relax(guide, "reinmax")
            pyro.infer.Trace_ELBO().loss_and_grads(*relaxed, torch.as_tensor(X))
            return pyro.param("l").grad.numpy()

        return SimpleNamespace(
            np=torch, ppl=pyro, dist=pyro.distributions, array=torch.as_tensor, train=train,
            whole=lambda z: z.long(), real=lambda z: z.double(), stop=lambda z: z.detach(),
            own=Rounded.apply, called=Round.apply, one_hot=pyro.distributions.OneHotCategorical,
            soft=torch.log_softmax, take=torch.take_along_dim,
        )  # fmt: skip
    jax, numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")
    from numpyro_dvae.distributions import OneHotCategorical
    from numpyro_dvae.infer import relax

    rounded = jax.custom_jvp(jax.numpy.round)
    rounded.defjvp(lambda primals, slopes: (rounded(*primals), slopes[0]))

    @jax.jit
    def floor(z):
        return z + jax.lax.stop_gradient(jax.numpy.floor(z) - z)

    def train(model, guide):
        relaxed = relax(model, "reinmax"), relax(guide, "reinmax")
        key, loss = jax.random.key(0), numpyro.infer.Trace_ELBO().loss
        start = numpyro.handlers.trace(numpyro.handlers.seed(guide, key)).get_trace(X)["l"]["value"]
        return np.asarray(jax.grad(lambda p: loss(key, p, *relaxed, X))({"l": start})["l"])

    return SimpleNamespace(
        np=jax.numpy, ppl=numpyro, dist=numpyro.distributions, array=jax.numpy.asarray, train=train,
        whole=lambda z: z.astype(int), real=lambda z: z.astype(float), stop=jax.lax.stop_gradient,
        own=rounded, called=floor, one_hot=OneHotCategorical, soft=jax.nn.log_softmax,
        take=jax.numpy.take_along_axis,
    )  # fmt: skip


def train(
    host, way, family=lambda host, logits: host.dist.Bernoulli(logits=logits), width=(), look=id
):
    logits = np.linspace(-0.5, 0.8, 3 * max(1, *width, 1)).reshape(3, *width)

    def model(x):
        with host.ppl.plate("data", 3):
            z = host.ppl.sample("z", family(host, host.array(0.1 * logits)))
            host.ppl.sample("x", host.dist.Normal(way(host, z), 1.0), obs=x)

    def guide(x):
        with host.ppl.plate("data", 3):
            look(host.ppl.sample("z", family(host, host.ppl.param("l", host.array(logits)))))

    return host.train(model, guide)


LOST = {
    "where": lambda h, z: h.np.where(z == 1, 2.0, 0.0),
    "where_less": lambda h, z: h.np.where(z < 0.5, 0.0, 2.0 * h.array(X)),
    "index": lambda h, z: h.array(TABLE)[h.whole(z)],
    "round": lambda h, z: 2 * h.np.round(z),
    "sign": lambda h, z: 2 * h.np.sign(z),
    "floor_divide": lambda h, z: z // 0.7,
    "floor": lambda h, z: h.np.floor(z + 0.2),
    "heaviside": lambda h, z: h.np.heaviside(z - 0.5, h.array(np.zeros(()))),
    "real": lambda h, z: h.real(z > 0.5),
    "copysign": lambda h, z: h.np.copysign(2 * h.np.ones_like(z), z - 0.5),
    "argmax": lambda h, z: 2.0 * h.np.stack([1 - z, z], -1).argmax(-1),
    "recorded": lambda h, z: h.ppl.deterministic("code", 2 * h.np.round(z)),
    "behind_softmax": lambda h, z: h.soft(h.np.stack([h.array(X), h.np.round(z)], -1), -1)[..., 1],
}
KEPT = {
    "choice_of_two": lambda h, z: 0.5 + z * 1.5,
    "relu": lambda h, z: h.np.where(z - 0.5 > 0, z - 0.5, 0.1 * z),
    "relu_by_product": lambda h, z: z * (z > 0.5),
    "not_a_number": lambda h, z: h.np.where(h.np.isnan(z), 0.0, z),
    "infinite": lambda h, z: h.np.where(z == np.inf, 0.0, z),
    "of_its_shape": lambda h, z: z + h.real(h.np.zeros_like(z) == 0),
    "own_derivative": lambda h, z: 2 * h.own(z),
    "own_function": lambda h, z: 2 * h.called(z),
    "detached": lambda h, z: z + h.stop(h.real(z > 0.5)),
    "beside_a_record": lambda h, z: z + 0 * len(h.ppl.deterministic("code", h.np.round(z))),
    "no_use": lambda h, z: h.array(X),
}


def asked(z):
    """Python asks for a number, and goes on as before."""
    return z + 0 * int((z > 0.5).any())


ASKED = {  # and what else is computed, with the draw's gradient or without
    "stopped": lambda h, z: 2 * h.stop(asked(z)),
    "stopped_later": lambda h, z: h.stop(2.0 * (asked(z) > 0.5)),
    "of_what_is_stopped": lambda h, z: 2.0 if (h.stop(z) > 0.5).any() else 1.0,
    "kept": lambda h, z: 2 * asked(z) if (h.stop(z) > 0.5).any() else 2 * z,
}
ASKED_AND_LOST = {
    "where": lambda h, z: h.np.where(asked(z) == 1, 2.0, 0.0),
    "beside_what_is_stopped": lambda h, z: h.stop(z) + (2.0 if (z > 0.5).any() else 1.0),
}


@pytest.mark.parametrize("way", ASKED)
def test_what_python_asks_for_changes_nothing_of_the_rest(host, way):
    found = train(host, ASKED[way])
    stop = (lambda z: z) if way == "kept" else host.stop
    by_hand = train(host, lambda h, z: h.array(ASKED[way](h, stop(z))))
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)


@pytest.mark.parametrize("way", ASKED_AND_LOST)
def test_what_python_asks_for_hides_nothing_of_the_rest(host, way):
    with pytest.raises(ValueError, match=r"site 'z' is relaxed, and"):
        train(host, ASKED_AND_LOST[way])


def straight_through(h, z):
    return h.real(z > 0.5) + z - h.stop(z)


def units(h, z):
    """0 and 1 of logits -2 and 2, by functions that both frameworks have."""
    return 1 / (1 + h.np.exp(2 - 4 * z))


def clipped(h, z):
    norm = abs(3 * z).max()
    return 3 * z / ((norm > 1) * norm + (norm <= 1))


def one_of(h, on, off, z):
    """Chosen by a number that is no draw."""
    return h.stop(z) * on + (1 - h.stop(z)) * off


def largest(h, pair):
    return h.take(pair, pair.argmax(-1)[..., None], -1)[..., 0]


def in_order(h, pair):
    return h.take(pair, pair.argsort(-1), -1)


BY_HAND = {
    "of_the_draw": (straight_through, lambda h, z: z),
    "of_a_copy": (lambda h, z: straight_through(h, 1.0 * z), lambda h, z: z),
    "of_a_view": (
        lambda h, z: straight_through(h, z.reshape(3, 1)).reshape(3),
        lambda h, z: z,
    ),
    "of_hidden_units": (
        lambda h, z: straight_through(h, units(h, z)),
        lambda h, z: h.stop(z) + 4 * h.stop(units(h, z) * (1 - units(h, z))) * (z - h.stop(z)),
    ),
    "largest": (
        lambda h, z: largest(h, h.np.stack([z, 1 - z], -1)),
        lambda h, z: one_of(h, z, 1 - z, z),
    ),
    "sorted": (
        lambda h, z: in_order(h, h.np.stack([z, 0 * z + 0.5], -1)) @ h.array(TABLE[1:]),
        lambda h, z: one_of(h, 1 - z, 2 * z - 0.5, z),
    ),
    "clipped": (clipped, lambda h, z: 3 * z / (1 + h.stop(z).max() * (3 * z.max() - 1))),
    "beside_what_is_lost": (
        lambda h, z: h.own(z) + h.array(TABLE)[h.whole(z)],
        lambda h, z: z + h.stop(2 * z),
    ),
}


@pytest.mark.thrifty
@pytest.mark.parametrize("way", BY_HAND)
def test_a_path_with_a_gradient_is_enough(host, way):
    ours, by_hand = (train(host, one) for one in BY_HAND[way])
    assert np.abs(by_hand).min() > 0.01
    np.testing.assert_allclose(ours, by_hand, rtol=1e-4, atol=1e-6)


def test_a_look_at_a_draw_is_taken(host):
    """Python may ask for what it likes, as long as no log-density follows."""

    def look(z):
        assert (z <= 1).all()

    def looking(h, z):
        return 2 * z if (z <= 1).all() else z

    plain = train(host, lambda h, z: 2 * z)
    np.testing.assert_array_equal(train(host, lambda h, z: 2 * z, look=look), plain)
    np.testing.assert_array_equal(train(host, looking), plain)
    seen = train(host, lambda h, z: 2 * h.array(X) if (z <= 1).all() else z)
    np.testing.assert_array_equal(seen, train(host, lambda h, z: 2 * h.array(X)))


@pytest.mark.parametrize("where", ["model", "guide"])
def test_what_python_decides_by_a_draw_is_refused(host, where):
    """Beside other log-densities that have its gradient, too."""

    def chosen(a, here):
        return (2.0 if a > 0.5 else -1.0) if here == where else a

    def model(x):
        a = host.ppl.sample("a", host.dist.Bernoulli(logits=host.array(0.2)))
        b = host.ppl.sample("b", host.dist.Bernoulli(logits=a))
        host.ppl.sample("x", host.dist.Normal(b + chosen(a, "model"), 1.0), obs=x[0])

    def guide(x):
        a = host.ppl.sample("a", host.dist.Bernoulli(logits=host.ppl.param("l", host.array(0.3))))
        host.ppl.sample("b", host.dist.Bernoulli(logits=host.array(0.1) + chosen(a, "guide")))

    with pytest.raises(ValueError, match=r"'a' is relaxed, and what Python does"):
        host.train(model, guide)


@pytest.mark.parametrize("way", LOST)
def test_what_loses_the_gradient_of_a_draw_is_refused(host, way):
    with pytest.raises(ValueError, match=r"site 'z' is relaxed, and the log-density of site 'x'"):
        train(host, LOST[way])


@pytest.mark.thrifty
def test_what_a_family_rounds_by_itself_is_seen(host):
    class Rounding(host.dist.Normal):
        def log_prob(self, value):
            return host.dist.Normal(host.np.round(self.loc), 1.0).log_prob(value)

    def model(x):
        with host.ppl.plate("data", 3):
            z = host.ppl.sample("z", host.dist.Bernoulli(logits=host.array(0.2)))
            host.ppl.sample("x", Rounding(z, 1.0), obs=x)

    def guide(x):
        with host.ppl.plate("data", 3):
            logits = host.ppl.param("l", host.array(np.linspace(-0.5, 0.8, 3)))
            host.ppl.sample("z", host.dist.Bernoulli(logits=logits))

    with pytest.raises(ValueError, match="by way of `round`"):
        host.train(model, guide)


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
