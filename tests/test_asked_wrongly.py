"""What guides and reports are asked that they cannot say is refused by name, or has its error."""

import importlib

import numpy as np
import pytest
from automatic_lab import lab as make_lab

X = np.array([0.2, 1.4])


@pytest.fixture(params=["pyro", "numpyro"])
def lab(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return make_lab(request.param)


def coins(ppl, x):
    """Four states of each datum."""
    with ppl.plate("data", len(x), dim=-1):
        a = ppl.sample("a", ppl.dist.Bernoulli(ppl.array(0.4)))
        b = ppl.sample("b", ppl.dist.Bernoulli(ppl.array(0.2)))
        ppl.sample("x", ppl.dist.Normal(a + 2.0 * b, 1.0), obs=x)


def summary(lab, guide, name, params, *options):
    if lab.name == "pyro":
        return getattr(guide, name)(*options, lab.array(X))
    return getattr(guide, name)(params, *options)


@pytest.mark.parametrize("quantiles", [[1.5], 0.5, [], [0.1, float("nan")], "half"])
def test_quantiles_are_numbers_from_0_to_1(lab, quantiles):
    guide = lab.guide(lab.bind(coins))
    lab.start(guide, lab.array(X))
    with pytest.raises(ValueError, match="`quantiles` must be a sequence of numbers from 0 to 1"):
        summary(lab, guide, "quantiles", {}, quantiles)


@pytest.mark.parametrize("name", ["mode", "median"])
def test_a_guide_that_knows_no_model_says_so(lab, name):
    guide = lab.guide(lab.bind(coins))
    params = () if lab.name == "pyro" else ({},)
    with pytest.raises(ValueError, match="the guide has not run its model yet"):
        getattr(guide, name)(*params)


def test_parameters_that_are_missing_are_named():
    pytest.importorskip("jax")
    lab = make_lab("numpyro")
    guide = lab.guide(lab.bind(coins))
    lab.start(guide, lab.array(X))
    with pytest.raises(ValueError, match=r"`params` has no 'a_auto_logits'.*svi.get_params"):
        guide.mode({})


def test_a_class_is_no_loss():
    for package, library in (("pyro", "torch"), ("numpyro", "jax")):
        pytest.importorskip(library)
        infer, optim = (importlib.import_module(f"{package}.{n}") for n in ("infer", "optim"))
        adam = optim.Adam({"lr": 0.1}) if package == "pyro" else optim.Adam(0.1)
        svi = infer.SVI(lambda x: None, lambda x: None, adam, infer.Trace_ELBO)
        key = () if package == "pyro" else (importlib.import_module("jax").random.key(0),)
        fit = importlib.import_module(f"{package}_dvae.fit").fit
        with pytest.raises(TypeError, match=r"the class Trace_ELBO .*loss=Trace_ELBO\(\)"):
            fit(*key, svi, X, num_steps=1, progress=False)


def test_losses_sites_and_parameters_that_are_none_are_refused(backend):
    """By name, before anything runs."""
    loss = backend.module("infer").Reinforce_ELBO(num_particles=2)
    diagnostics = backend.module("diagnostics")
    call = () if backend.name == "pyro" else (importlib.import_module("jax").random.key(0),)
    pair, x = (lambda x: None, lambda x: None), backend.asarray(X)
    for losses in ([loss], loss, {}):
        with pytest.raises(ValueError, match="`losses` must name at least one loss, as in"):
            diagnostics.gradient_variance(*call, pair, x, losses=losses)
    for losses in ({"a": 3}, {1: loss}, {"a": type(loss)}):
        with pytest.raises(ValueError, match=r"`losses` must have losses, as `Reinforce_ELBO\(\)`"):
            diagnostics.gradient_variance(*call, pair, x, losses=losses)
    with pytest.raises(ValueError, match="`params` must be a dict of parameters by name; got"):
        diagnostics.evaluate(*call, pair, x, params=[1])
    choose_sites = backend.module("diagnostics.posteriors").choose_sites
    for sites in (3, "z", [], {"z": 1}):
        with pytest.raises(ValueError, match="`sites` must be a sequence of names, at least one"):
            choose_sites(None, sites)


@pytest.mark.thrifty
def test_errors_of_few_states_are_at_least_what_they_show(lab):
    """A datum has four states: of three draws some are missing, of 400 none."""
    model = lab.bind(coins)
    guide = lab.guide(model)
    params = {name: np.zeros((2, 1)) for name in lab.start(guide, lab.array(X))}
    held, diagnostics = lab.held(guide, params), lab.module("diagnostics")
    key = () if lab.name == "pyro" else (lab.jax.random.key(0),)
    options = {"params": held} if held else {}

    def cost(num_draws):
        return diagnostics.rate_distortion(
            *key, (model, guide), lab.array(X), num_draws=num_draws, **options
        )

    few, many = cost(3), cost(400)
    assert not few.whole.is_settled
    assert "± at least " in str(few)
    assert many.whole.is_settled
    assert "at least" not in str(many)


@pytest.mark.thrifty
@pytest.mark.parametrize("family", ["Binomial", "BetaBinomial", "DiscreteUniform"])
def test_values_of_a_range_are_counted(lab, family):
    """Of three values, each drawn many times, none is missing."""
    dist, array = lab.primitives.dist, lab.primitives.array
    if not hasattr(dist, family):
        pytest.skip("a family of NumPyro's alone")
    made = {
        "Binomial": lambda: dist.Binomial(total_count=2, probs=array(0.6)),
        "BetaBinomial": lambda: dist.BetaBinomial(array(2.0), array(1.0), total_count=2),
        "DiscreteUniform": lambda: dist.DiscreteUniform(3, 5),
    }[family]

    def model(x):
        z = lab.primitives.sample("z", made())
        lab.primitives.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)

    def guide(x):
        lab.primitives.sample("z", made())

    key = () if lab.name == "pyro" else (lab.jax.random.key(0),)
    cost = lab.module("diagnostics").rate_distortion
    found = [cost(*key, (model, guide), array(0.5), num_draws=n) for n in (2, 400)]
    assert [each.whole.is_settled for each in found] == [False, True]


@pytest.mark.thrifty
def test_as_many_states_as_are_listed_may_be_listed(lab):
    """16^4, whose logarithm is rounded: `posterior_gap` takes them, and the report says so."""
    prior, dist = lab.module("models").UniformPrior(4, 16), lab.primitives.dist

    def guide(x):
        with lab.primitives.plate("data", 2):
            lab.primitives.sample("z", prior())

    def model(x):
        with lab.primitives.plate("data", 2):
            z = lab.primitives.sample("z", prior())
            lab.primitives.sample("x", dist.Normal(0.1 * z.sum(-1), 1.0), obs=x)

    key = () if lab.name == "pyro" else (lab.jax.random.key(0),)
    diagnostics = lab.module("diagnostics")
    report = diagnostics.importance_diagnostics(*key, (model, guide), lab.array([0.5, 1.0]))
    assert report.is_listable.all()
    assert "`posterior_gap` or restarts may" in str(report)


FAMILIES = ("logits", "probs", "codes", "code_probs", "one_hot", "counts")


@pytest.mark.thrifty
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", ["guide", "prior", "likelihood"])
def test_a_nan_among_parameters_is_one_of_the_loss(family, place):
    """NumPyro's densities of Bernoullis by logits, and Categoricals by probabilities, hide it."""
    jax = pytest.importorskip("jax")
    jnp, dist, ppl = (
        jax.numpy,
        *(importlib.import_module(f"numpyro{n}") for n in (".distributions", "")),
    )
    infer, ours = (importlib.import_module(f"numpyro_dvae.{n}") for n in ("infer", "distributions"))

    def drawn(logits):
        odds = jnp.stack([jnp.zeros_like(logits), logits], -1)
        return {
            "logits": lambda: dist.Bernoulli(logits=logits),
            "probs": lambda: dist.Bernoulli(jax.nn.sigmoid(logits)),
            "codes": lambda: dist.Categorical(logits=odds),
            "code_probs": lambda: dist.Categorical(jax.nn.softmax(odds)),
            "one_hot": lambda: ours.OneHotCategorical(logits=odds),
            "counts": lambda: dist.Binomial(2, logits=logits),
        }[family]()

    def model(logits):
        with ppl.plate("data", 2):
            z = ppl.sample("z", drawn(logits["prior"]))
            z = z[..., 1] if family == "one_hot" else z
            ppl.sample("x", dist.Bernoulli(logits=z + logits["likelihood"]), obs=jnp.arange(2))

    def guide(logits):
        with ppl.plate("data", 2):
            ppl.sample("z", drawn(logits["guide"]))

    def losses(logits):
        key = jax.random.key(0)
        return [
            elbo.loss(key, {}, model, guide, logits)
            for elbo in (infer.Exact_ELBO(), infer.Reinforce_ELBO(2), infer.DAPS_ELBO(4))
        ]

    logits = {name: jnp.zeros(2) for name in ("guide", "prior", "likelihood")}
    assert np.isfinite(jax.jit(losses)(logits)).all()
    assert np.isnan(jax.jit(losses)(logits | {place: jnp.array([0.0, jnp.nan])})).all()


def test_reports_name_a_parameter_that_is_nan(lab):
    model = lab.bind(coins)
    guide = lab.guide(model)
    params = {name: np.zeros((2, 1)) for name in lab.start(guide, lab.array(X))}
    diagnostics, held = lab.module("diagnostics"), lab.held(guide, params)
    name = "b_auto_logits" if held else "guide$$$logits.b"
    params = {**held, name: lab.array(np.full((2, 1), np.nan))}
    key = () if lab.name == "pyro" else (lab.jax.random.key(0),)
    for report in ("discrete_posterior", "evaluate", "importance_diagnostics"):
        with pytest.raises(ValueError, match=r"logits.* has entries that are NaN"):
            getattr(diagnostics, report)(*key, (model, guide), lab.array(X), params=params)


@pytest.mark.thrifty
def test_weights_beside_a_shared_latent_that_is_drawn_from_the_prior(lab):
    """Its own weight is 1 then, but those of the data depend on it."""

    def shared(ppl, x):
        mu = ppl.sample("mu", ppl.dist.Normal(ppl.array(0.0), 2.0))
        with ppl.plate("data", len(x), dim=-1):
            z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.5)))
            ppl.sample("x", ppl.dist.Normal(mu + z, 1.0), obs=x)

    def prior(ppl, x):
        ppl.sample("mu", ppl.dist.Normal(ppl.array(0.0), 2.0))
        with ppl.plate("data", len(x), dim=-1):
            ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.5)))

    posterior = lab.posterior(lab.bind(shared), lab.bind(prior), {}, X, num_draws=50)
    report = posterior.report
    log_p = posterior.log_weights
    np.testing.assert_array_equal(log_p[:, 0], log_p[:, 1])
    assert report.has_shared_latents


@pytest.mark.slow
def test_mutable_state_that_is_missing_is_named():
    """The states of a TruncatedGuide are none of the parameters of NumPyro's SVI."""
    jax = pytest.importorskip("jax")
    lab, infer = make_lab("numpyro"), importlib.import_module("numpyro_dvae.infer")
    model, key, x = lab.bind(coins), jax.random.key(0), lab.array(X)
    guide = infer.TruncatedGuide(model, num_states=2)
    svi = infer.SVI(model, guide, lab.numpyro.optim.Adam(0.1), infer.Truncated_ELBO())
    state, gap = svi.init(key, x), lab.module("diagnostics").posterior_gap
    with pytest.raises(
        ValueError, match=r"`params` lacks \['guide.words'.*svi_state.mutable_state"
    ):
        gap(key, (model, guide), x, params=svi.get_params(state))
    found = gap(key, (model, guide), x, params=svi.get_params(state) | state.mutable_state)
    assert np.isfinite(found.elbo).all()
