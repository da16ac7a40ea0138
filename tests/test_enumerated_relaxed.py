"""Marked sites beside relaxed and quantised ones: the sums by hand, or a refusal by name."""

import importlib

import numpy as np
import pytest
import quantized
from enumerated_zoo import SUM
from host_zoo import Host, X

PRIOR, PLACES = np.array([0.2, 0.5, 0.3]), np.array([0.0, 1.0, 2.0])
PARAMS = {"q": np.array([[0.3, -0.2, 0.5], [0.1, 0.9, -0.4]]), "p": np.array(0.4)}


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
        ppl.sample("c", ppl.one_hot(logits=ppl.param("q")))


def marked(ppl):
    with ppl.plate("data", 2, dim=-1):
        c = ppl.sample("c", ppl.one_hot(ppl.array(PRIOR)))
        z = ppl.sample("z", ppl.dist.Bernoulli(ppl.param("p")), infer=dict(SUM))
        ppl.sample("x", ppl.dist.Normal(c @ ppl.array(PLACES) + z, 1.0), obs=ppl.array(X))


def by_hand(ppl):
    with ppl.plate("data", 2, dim=-1):
        c, p = ppl.sample("c", ppl.one_hot(ppl.array(PRIOR))), ppl.dist.Bernoulli(ppl.param("p"))
        means = [c @ ppl.array(PLACES) + z for z in (0.0, 1.0)]
        xs = [ppl.dist.Normal(mean, 1.0).log_prob(ppl.array(X)) for mean in means]
        ppl.factor("x", ppl.logaddexp(*(p.log_prob(ppl.array(z)) + xs[z] for z in (0, 1))))


def found(package, model, sites, method="reinmax"):
    def relaxed(program):
        return lambda ppl: package.infer.relax(lambda: program(ppl), method, sites=sites)()

    host = Host("relaxed", relaxed(model), relaxed(guide), PARAMS, {}, 9)
    return package.draws(host, package.infer.Reinforce_ELBO(4), 2)


@pytest.mark.parametrize("method", ["reinmax", pytest.param("gumbel", marks=pytest.mark.slow)])
def test_beside_relaxed_sites_it_is_the_sum_by_hand(package, method):
    values, grads = found(package, marked, ["c"], method)
    expected, slopes = found(package, by_hand, ["c"], method)
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    for name, slope in slopes.items():
        np.testing.assert_allclose(grads[name], slope, rtol=1e-8, atol=1e-10, err_msg=name)


def test_one_that_is_relaxed_itself_is_refused(package):
    words = r"site 'z' is marked .* but relaxed\. Name in `sites` of `relax` those that the guide"
    with pytest.raises(ValueError, match=words):
        found(package, marked, None)


@pytest.fixture(params=["pyro", "numpyro"])
def kit(request):
    pytest.importorskip({"pyro": "torch", "numpyro": "funsor"}[request.param])
    return getattr(quantized, f"{request.param}_kit")()


EVEN = np.full((quantized.L, quantized.V), 1 / quantized.V, np.float32)


class Moved:
    """A quantised model in which a datum is moved by one or is not: marked, or as `how` says."""

    def __init__(self, kit, model, how="marked", prob=0.3, method=None):
        self.kit, self.decoder, self.how, self.prob = kit, model.decoder, how, prob
        self.method = method

    def __call__(self, x):
        ppl = importlib.import_module(self.kit.name)
        dist, array = ppl.distributions, self.kit.asarray
        with ppl.plate("data", len(x), dim=-1):
            means = self.decoder(ppl.sample("z", dist.Categorical(array(EVEN)).to_event(1)))
            if self.how.startswith("moved"):
                x_given_z = dist.Normal(means + 1.0, 1.0).to_event(2)
                if self.how == "moved":
                    ppl.sample("x", x_given_z, obs=x)
                else:
                    ppl.factor("x", x_given_z.log_prob(x))
            elif self.how != "by hand":
                infer = dict(SUM) if self.how == "marked" else {}
                moved = ppl.sample(
                    "moved", coin(self.kit, array(self.prob), self.method), infer=infer
                )
                means = means + moved[..., None, None]
                ppl.sample("x", dist.Normal(means, 1.0).to_event(2), obs=x)
            else:
                xs = [dist.Normal(means + m, 1.0).to_event(2).log_prob(x) for m in (0.0, 1.0)]
                total = importlib.import_module("torch" if self.kit.name == "pyro" else "jax.numpy")
                ppl.factor("x", total.logaddexp(np.log(0.7) + xs[0], np.log(0.3) + xs[1]))


class Mover:
    """A quantising guide that draws "moved", too; from what it learns, or from 1 alone."""

    def __init__(self, kit, guide, *, learns, method=None):
        self.kit, self.guide, self.learns, self.method = kit, guide, learns, method
        self.encoder, self.codebook = guide.encoder, guide.codebook

    def __call__(self, x):
        ppl, start = importlib.import_module(self.kit.name), self.kit.asarray(1.0)
        prob = ppl.param("prob", 0.5 * start) if self.learns else start
        with ppl.plate("data", len(x), dim=-1):
            ppl.sample("z", self.guide.posterior(x))
            ppl.sample("moved", coin(self.kit, prob, self.method))


def coin(kit, prob, method=None):
    """A Bernoulli, or one that is relaxed by hand."""
    fn = importlib.import_module(kit.name).distributions.Bernoulli(prob)
    if method is None:
        return fn
    return kit.module("distributions").PathwiseBernoulli(fn.logits, method=method)


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", ["moving", pytest.param("gradient", marks=pytest.mark.slow)])
def test_beside_quantised_sites_it_is_the_sum_by_hand(kit, kind):
    """The codebook learns once in a step."""
    one, other = (quantised(kit, kind, how) for how in ("marked", "by hand"))
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    np.testing.assert_allclose(one.table, other.table, rtol=1e-6)
    assert (kind == "gradient") == np.array_equal(one.table, quantized.TABLE)
    # A factor has no entries whose price holds vectors and codes together.
    known, bare = (quantised(kit, kind, how) for how in ("moved", "moved by hand"))
    for found, expected, held, free in zip(
        *(e.grads for e in (one, other, known, bare)), strict=True
    ):
        np.testing.assert_allclose(found - expected, held - free, rtol=2e-5, atol=1e-4)
    assert np.abs(known.grads[0] - bare.grads[0]).max() > 1.0


@pytest.mark.thrifty
def test_a_draw_beside_quantised_sites_may_not_learn(kit):
    with pytest.raises(ValueError, match=r"VQ_ELBO has no gradient for .* site 'moved': it"):
        quantised(kit, "gradient", "drawn", prob=1.0, learns=True)
    drawn = quantised(kit, "gradient", "drawn", prob=1.0, learns=False)
    moved = quantised(kit, "gradient", "moved")
    assert drawn.loss == pytest.approx(moved.loss, rel=1e-6)
    for found, expected in zip(drawn.grads, moved.grads, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


@pytest.mark.thrifty
@pytest.mark.parametrize("method", ["reinmax", pytest.param("gumbel", marks=pytest.mark.slow)])
def test_relaxed_sites_beside_quantised_ones_are_those_that_are_relaxed_by_hand(kit, method):
    relax = kit.module("infer").relax

    def relaxed(program):
        return relax(program, method, sites=["moved"])

    found = quantised(kit, "gradient", "drawn", learns=True, under=relaxed)
    expected = quantised(kit, "gradient", "drawn", learns=True, method=method)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    for one, other in zip(found.grads, expected.grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"site 'z' is quantised.* Train the pair as it is with"):
        quantised(kit, "gradient", "drawn", learns=True, under=lambda each: relax(each, method))


def quantised(kit, kind, how, prob=0.3, learns=None, method=None, under=lambda each: each):
    kit.start(None, None)  # the same networks each time
    model, guide = quantized.pair(kit, kind)
    guide = guide if learns is None else Mover(kit, guide, learns=learns, method=method)
    run = kit.start(under(Moved(kit, model, how, prob, method)), under(guide))
    return kit.evaluate(run, kit.module("infer").VQ_ELBO())
