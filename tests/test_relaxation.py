"""`relax` on programs of every kind, under stock losses and ours; the distributions it puts in."""

import itertools

import numpy as np
import pytest
from zoo import PROGRAMS, Program, bernoulli, expected, gradient, log_softmax, normal

METHODS = ["gumbel", "straight_through_gumbel", "straight_through", "reinmax", "gr_mck"]
VAE = next(program for program in PROGRAMS if program.name == "vae")


def relaxed(shim, program, method="gumbel", **options):
    """A program of `zoo`'s kind, relaxed."""
    relax = shim.module("infer.relaxation").relax

    def run(ppl, data):
        return relax(lambda data: program(ppl, data), method, **options)(data)

    return run


# ------------------------------------------- reinmax is exact here: the ELBO's integrand is of
# degree 2 in the one-hot vectors, the log-likelihood being Gaussian around a linear mean

DATA = 400
X = np.array([0.9, -0.4])


def square_model(family):
    def model(ppl, data):
        prior, weight = ppl.param("prior", data), ppl.param("weight", data)
        with ppl.plate("data", DATA):
            z = ppl.sample("z", family(ppl.dist)(logits=prior).to_event(1))
            loc = (z[..., None] * weight).sum((-3, -2) if z.shape[-2:] == (2, 3) else -2)
            ppl.sample("x", ppl.dist.Normal(loc, 0.5).to_event(1), obs=data["x"])

    return model


def square_guide(family):
    def guide(ppl, data):
        with ppl.plate("data", DATA):
            ppl.sample("z", family(ppl.dist)(logits=ppl.param("encoder", data)).to_event(1))

    return guide


def square_loss(weight_of):
    """Of one datum, by all states of its two latents, each with V values."""

    def loss(p):
        log_prior, log_q = (logits_of(p[name]) for name in ("prior", "encoder"))
        states = list(itertools.product(range(log_q.shape[-1]), repeat=2))
        q = [log_q[0, a] + log_q[1, b] for a, b in states]
        prior = [log_prior[0, a] + log_prior[1, b] for a, b in states]
        loc = [weight_of(p["weight"], 0, a) + weight_of(p["weight"], 1, b) for a, b in states]
        likelihood = [normal(X, mean, np.log(0.5)).sum() for mean in loc]
        return -expected(q, [a + b for a, b in zip(prior, likelihood, strict=True)])

    return loss


def logits_of(logits):
    """Log-probabilities (latents, values) of Bernoulli or categorical logits."""
    if logits.ndim == 2:
        return log_softmax(logits)
    return np.stack([bernoulli(0, logits), bernoulli(1, logits)], -1)


RNG = np.random.default_rng(2)


def square(name, family, shape, weight_of):
    params = {"prior": RNG.normal(size=shape), "encoder": RNG.normal(size=shape)}
    params["weight"] = RNG.normal(size=(*shape, 2))
    data = {"x": np.tile(X, (DATA, 1))}
    programs = square_model(family), square_guide(family)
    return Program(name, *programs, square_loss(weight_of), params, data, ("data",), 0)


BINARY = square("binary", lambda d: d.Bernoulli, (2,), lambda w, i, value: w[i] * value)
CODES = square("codes", lambda d: d.Categorical, (2, 3), lambda w, i, value: w[i, value])


def deviations(shim, case, elbo, num_runs=40):
    """How far the mean loss and gradient are from those of the exact ELBO, in standard errors."""
    runs = [case.run(elbo, seed) for seed in range(num_runs)]
    found = {name: np.stack([grads[name] for _, grads in runs]) for name in case.program.params}
    found["loss"] = np.array([loss for loss, _ in runs])
    exact = gradient(case.program.loss, case.program.params)
    exact["loss"] = case.program.loss(case.program.params)

    def deviation(name):
        error = found[name].std(0) / np.sqrt(num_runs)
        return (np.abs(found[name].mean(0) - DATA * exact[name]) / error).max()

    return {name: deviation(name) for name in found}


def case_of(shim, program, method, **options):
    programs = (relaxed(shim, p, method, **options) for p in (program.model, program.guide))
    model, guide = programs
    return shim.Case(program, model=model, guide=guide)


@pytest.mark.parametrize("program", [BINARY, CODES], ids=lambda program: program.name)
def test_reinmax_is_unbiased_where_it_should_be_under_the_stock_loss(shim, program):
    found = deviations(shim, case_of(shim, program, "reinmax"), shim.stock("Trace_ELBO"))
    assert max(found.values()) < 5, found


def test_reinmax_is_unbiased_under_ours_too(shim):
    case = case_of(shim, CODES, "reinmax")
    elbo = shim.module("infer.reinforce").Reinforce_ELBO(2, beta=1.0)
    found = deviations(shim, case, elbo)
    assert max(found.values()) < 5, found
    assert case.layout().plates == ("data",)  # relaxed latents make a datum as discrete ones do


def test_straight_through_is_biased_and_its_loss_is_not(shim):
    """Negative control: hard draws make the value an honest ELBO, but the slope is not exact."""
    found = deviations(
        shim, case_of(shim, CODES, "straight_through"), shim.stock("Trace_ELBO"), num_runs=80
    )
    assert found["loss"] < 5
    assert found["encoder"] > 5
    assert found["weight"] < 5  # the model's gradient needs no path


# ------------------------------------------------------------------------ wrappers and masks

WRAPPED = {
    "bits_q": RNG.normal(size=3),
    "bits_prior": RNG.normal(size=()),
    "codes_q": RNG.normal(size=(2, 2, 3)),
    "codes_prior": RNG.normal(size=3),
    "vector_q": RNG.normal(size=4),
    "vector_prior": RNG.normal(size=(2, 4)),
}


def wrapped(shim, suffix):
    one_hot = shim.module("distributions").OneHotCategorical
    categorical = shim.module("distributions").Categorical

    def program(ppl, data):
        bits, codes, vector = (
            ppl.param(name + suffix, data) for name in ("bits", "codes", "vector")
        )
        with ppl.plate("data", 2):
            ppl.sample("bits", ppl.dist.Bernoulli(logits=bits).expand([2, 3]).to_event(1))
            masked = categorical(logits=codes).expand([2, 2]).mask(data["keep"][:, None])
            ppl.sample("codes", masked.to_event(1))
            with ppl.mask(mask=data["keep"]):
                ppl.sample("vector", one_hot(logits=vector).expand([2]))

    return program


def wrapped_loss(p):
    """KL(q || p) of all factors; the second datum's codes and vector are masked."""
    probs = 1 / (1 + np.exp(-p["bits_q"]))
    kl = 2 * (bernoulli_kl(probs, p["bits_q"], p["bits_prior"])).sum()
    q, prior = log_softmax(p["codes_q"])[0], log_softmax(p["codes_prior"])
    kl = kl + (np.exp(q) * (q - prior)).sum()
    q, prior = log_softmax(p["vector_q"]), log_softmax(p["vector_prior"])[0]
    return kl + (np.exp(q) * (q - prior)).sum()


def bernoulli_kl(probs, logits, prior):
    ones = bernoulli(1, logits) - bernoulli(1, prior)
    return probs * ones + (1 - probs) * (bernoulli(0, logits) - bernoulli(0, prior))


def test_the_kl_is_in_closed_form_under_every_wrapper(shim):
    """TraceMeanField_ELBO has no noise here: no likelihood, and KLs without draws."""
    program = Program(
        "wrapped", None, None, wrapped_loss, WRAPPED, {"keep": np.array([True, False])}, (), 0
    )
    model, guide = (relaxed(shim, wrapped(shim, suffix)) for suffix in ("_prior", "_q"))
    loss, grads = shim.Case(program, model=model, guide=guide).run(
        shim.stock("TraceMeanField_ELBO")
    )
    np.testing.assert_allclose(loss, wrapped_loss(WRAPPED), rtol=1e-10)
    for name, exact in gradient(wrapped_loss, WRAPPED).items():
        np.testing.assert_allclose(grads[name], exact, rtol=1e-8, atol=1e-12, err_msg=name)


def test_chosen_sites_alone_are_relaxed(shim):
    """The rest keeps its score function: layout tells."""

    def program(ppl, data):
        with ppl.plate("data", 2):
            a = ppl.sample("a", ppl.dist.Bernoulli(logits=ppl.zeros(2)))
            ppl.sample("b", ppl.dist.Bernoulli(logits=a))

    for sites, credited in ((["a"], ("b",)), (["a", "b"], ()), (None, ()), ([], ("a", "b"))):
        both = relaxed(shim, program, sites=sites)
        assert shim.Case(VAE, model=both, guide=both).layout().credited == credited


# -------------------------------------------------------------------------------- bad input


def trace_elbo(shim, model, guide):
    return shim.Case(VAE, model=model, guide=guide).run(shim.stock("Trace_ELBO"))


def test_a_program_that_wants_integers_is_told_what_to_do(shim):
    """The zoo's VAE reads its codes as indices."""
    with pytest.raises(
        ValueError, match=r"site 'z' is Categorical.*vector over 2 codes.*z @ table"
    ):
        trace_elbo(shim, relaxed(shim, VAE.model), relaxed(shim, VAE.guide))


def test_half_a_pair_is_named(shim):
    with pytest.raises(ValueError, match=r"site 'z': its distribution here is relaxed.*Relax both"):
        trace_elbo(shim, relaxed(shim, VAE.model), VAE.guide)

    def poisson(ppl, data):
        with ppl.plate("data", DATA):
            ppl.sample("z", ppl.dist.Poisson(ppl.zeros(2) + 1.0).to_event(1))

    case = shim.Case(CODES, model=relaxed(shim, poisson), guide=relaxed(shim, CODES.guide))
    with pytest.raises(ValueError, match=r"site 'z'.*Poisson, not relaxed.*is relaxed"):
        case.run(shim.stock("Trace_ELBO"))


@pytest.mark.parametrize("program", [BINARY, CODES], ids=lambda program: program.name)
def test_a_guide_alone_is_relaxed_if_the_model_has_a_density_at_its_draws(shim, program):
    elbo = shim.module("infer.reinforce").Reinforce_ELBO(2, beta=1.0)
    half = shim.Case(program, guide=relaxed(shim, program.guide))
    with pytest.raises(ValueError, match=r"'z' is relaxed in the guide and .* Relax"):
        half.run(elbo)
    if program is BINARY:
        at_codes = shim.Case(program, guide=relaxed(shim, program.guide, "reinmax"))
        both = case_of(shim, program, "reinmax")
        np.testing.assert_allclose(at_codes.run(elbo)[0], both.run(elbo)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["x"], "'x' cannot be relaxed, it is observed"),
        (["y"], r"`sites`: the program has no site \['y'\]"),
        (["c"], "'c' cannot be relaxed, it is of the family Normal"),
    ],
)
def test_sites_that_cannot_be_relaxed(shim, sites, message):
    def model(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("c", ppl.dist.Normal(ppl.zeros(2), 1.0))
            ppl.sample("x", ppl.dist.Bernoulli(logits=ppl.zeros(2)), obs=ppl.zeros(2))

    def guide(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("c", ppl.dist.Normal(ppl.zeros(2), 1.0))

    with pytest.raises(ValueError, match=message):
        trace_elbo(shim, relaxed(shim, model, sites=sites), guide)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "softmax"}, "`method` must be one of .*'gumbel'.*got 'softmax'"),
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"temperature": float("inf")}, "`temperature`"),
        ({"num_gumbels": 0}, "`num_gumbels` must be at least 1"),
        ({"sites": "z"}, r"`sites` is a list of names; got the string 'z': \['z'\]"),
    ],
)
def test_bad_settings(shim, arguments, message):
    with pytest.raises(ValueError, match=message):
        shim.module("infer.relaxation").relax(lambda: None, **arguments)


# ---------------------------------------------------------------------------- distributions


@pytest.mark.thrifty
@pytest.mark.parametrize("method", METHODS)
def test_draws_follow_the_probabilities(lab, method):
    distributions = lab.module("distributions")
    logits = np.log([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])
    options = {"method": method, "temperature": 0.01}

    given = lab.asarray(logits)
    draws = lab.numpy(lab.draw(distributions.PathwiseCategorical(given, **options), (4000,)))
    bits = lab.numpy(lab.draw(distributions.PathwiseBernoulli(given[0], **options), (4000,)))
    assert draws.shape == (4000, 2, 3)
    np.testing.assert_allclose(draws.sum(-1), 1.0, rtol=1e-6)
    assert (draws.max(-1) > 0.99).mean() > (0.9 if method == "gumbel" else 0.9999)
    error = np.sqrt(np.exp(logits) * (1 - np.exp(logits)) / 4000)
    assert (np.abs(draws.mean(0) - np.exp(logits)) < 5 * error).all()
    probs = 1 / (1 + np.exp(-logits[0]))
    assert (np.abs(bits.mean(0) - probs) < 5 * np.sqrt(probs * (1 - probs) / 4000)).all()


def test_they_score_as_the_distributions_they_stand_for(lab):
    distributions = lab.module("distributions")
    logits = lab.asarray(np.random.default_rng(0).normal(size=(2, 3)))
    one = distributions.PathwiseCategorical(logits)
    codes = distributions.Categorical(logits=logits)
    vectors = distributions.OneHotCategorical(logits=logits)
    for code in range(3):
        hard = lab.asarray(np.eye(3)[[code, code]])
        expected = lab.numpy(codes.log_prob(lab.asarray(np.array([code, code]))))
        for found in (one.log_prob(hard), vectors.log_prob(hard)):
            np.testing.assert_allclose(lab.numpy(found), expected, rtol=1e-6)
    np.testing.assert_allclose(lab.numpy(one.entropy()), lab.numpy(codes.entropy()), rtol=1e-6)
    np.testing.assert_allclose(lab.numpy(vectors.entropy()), lab.numpy(codes.entropy()), rtol=1e-6)
    np.testing.assert_allclose(lab.numpy(one.mean), lab.numpy(vectors.mean), rtol=1e-6)
    bit, stock = distributions.PathwiseBernoulli(logits), lab.stock.Bernoulli(logits=logits)
    for value in (0.0, 1.0):
        value = lab.asarray(np.full((2, 3), value))
        found, expected = bit.log_prob(value), stock.log_prob(value)
        np.testing.assert_allclose(lab.numpy(found), lab.numpy(expected), rtol=1e-6)
    np.testing.assert_allclose(lab.numpy(bit.entropy()), lab.numpy(stock.entropy()), rtol=1e-5)
    assert one.expand((4, 2)).event_shape == (3,)
    assert lab.draw(bit.expand((4, 2, 3)).to_event(1), (5,)).shape == (5, 4, 2, 3)


def test_one_hot_categoricals_draw_and_enumerate(lab):
    probs = np.array([[0.5, 0.0, 0.5], [0.2, 0.5, 0.3]])
    fn = lab.module("distributions").OneHotCategorical(probs=lab.asarray(probs))
    draws = lab.numpy(lab.draw(fn, (2000,)))
    assert set(np.unique(draws)) == {0, 1}
    assert (np.abs(draws.mean(0) - probs) <= 5 * np.sqrt(probs * (1 - probs) / 2000)).all()
    np.testing.assert_array_equal(lab.numpy(fn.enumerate_support())[:, 0], np.eye(3))
    assert fn.enumerate_support(expand=False).shape == (3, 1, 3)


# --------------------------------------------------------------------- networks and schedules


def make_pair(lab, shape=(4, 4)):
    models, guides, nets = (lab.module(name) for name in ("models", "guides", "nets"))
    decoder = nets.MLPDecoder(3, 5, shape, embed_dim=6, hidden=(8,))
    model = models.DiscreteVAE(decoder, models.UniformPrior(3, 5), models.BernoulliLikelihood())
    return model, guides.IndependentGuide(nets.MLPEncoder(shape, 3, 5, hidden=(8,)))


def test_the_decoder_takes_vectors_as_it_takes_codes(lab):
    decoder = lab.module("nets").MLPDecoder(3, 5, (2, 2), embed_dim=6, hidden=(8,))
    codes = np.random.default_rng(0).integers(5, size=(7, 3))
    net = lab.network(decoder, lab.asarray(codes))
    vectors = lab.asarray(np.eye(5)[codes])
    np.testing.assert_allclose(
        lab.numpy(net(vectors)), lab.numpy(net(lab.asarray(codes))), rtol=1e-6, atol=1e-9
    )
    assert tuple(decoder.batch_shape(vectors)) == tuple(decoder.batch_shape(lab.asarray(codes)))


@pytest.mark.thrifty
def test_a_relaxed_vae_trains_in_svi_and_keeps_its_attributes(lab):
    relax = lab.module("infer.relaxation").relax
    model, guide = make_pair(lab)
    x = lab.asarray((np.random.default_rng(0).random((12, 4, 4)) > 0.5).astype("float32"))
    soft = relax(guide, "straight_through_gumbel", temperature=0.5)
    assert soft.binary is guide.binary
    trainer = lab.Trainer(relax(model, "straight_through_gumbel"), soft, x)
    before = trainer.parameters()
    trainer.run(3, x)
    assert len(before) == 9
    moved = [np.abs(a - b).max() for a, b in zip(trainer.parameters(), before, strict=True)]
    assert min(moved) > 1e-4
    assert all(map(np.isfinite, moved))
