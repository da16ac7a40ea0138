"""The record of a run: which plates, which scale, which sums, for programs of every shape."""

import numpy as np
import pytest
from zoo import NOISE, PROGRAMS, VAE_DATA, gradient, log_softmax, normal, vae_terms

BY_NAME = {program.name: program for program in PROGRAMS}
VAE = BY_NAME["vae"]
DISTINCT = np.array([[0, 2], [1, 3], [3, 0]])


def losses(shim):
    yield shim.module("infer.daps").DAPS_ELBO, {"num_particles": 3}
    yield shim.module("infer.reinforce").Reinforce_ELBO, {"num_particles": 3}


def assert_same(found, expected, **tolerance):
    np.testing.assert_allclose(found[0], expected[0], **tolerance)
    for name in expected[1]:
        np.testing.assert_allclose(found[1][name], expected[1][name], err_msg=name, **tolerance)


@pytest.mark.parametrize("name", BY_NAME)
def test_the_shared_plates_are_found(shim, name):
    """In "nested" the words' sites are observed together per document: no weight per word."""
    assert shim.Case(BY_NAME[name]).layout().plates == BY_NAME[name].plates


@pytest.mark.thrifty
@pytest.mark.parametrize(
    "name",
    [n if n == "mixed" else pytest.param(n, marks=pytest.mark.slow) for n in BY_NAME],
)
def test_a_loop_over_particles_gives_the_same(shim, name):
    program = BY_NAME[name]
    shape = (3, 2) if program.plates else (3,)
    draws = np.arange(np.prod(shape)).reshape(shape) % program.states
    for elbo_class, options in losses(shim):
        found = []
        for vectorize in (True, False):
            case = shim.Case(program)
            elbo = case.forced(elbo_class, vectorize_particles=vectorize, **options)
            elbo.draws = draws
            found.append(case.run(elbo))
        assert_same(*found, rtol=1e-9, atol=1e-12)


def test_a_program_that_cannot_broadcast_is_looped_over_with_a_warning(shim):
    def model(ppl, data):
        prior, weight = ppl.param("prior", data), ppl.param("weight", data)
        with ppl.plate("data", 2):
            z = ppl.sample("z", ppl.dist.Categorical(logits=prior).to_event(1))
            first, second = (z[:, 0], z[:, 1])  # the particles' axis is not foreseen
            loc = weight[0][first] + weight[1][second]
            ppl.sample("x", ppl.dist.Normal(loc, 1.0).to_event(1), obs=data["x"])

    for elbo_class, options in losses(shim):
        found = []
        for program_model in (VAE.model, model):
            case = shim.Case(VAE, model=program_model)
            elbo = case.forced(elbo_class, **options)
            elbo.draws = DISTINCT
            if program_model is model:
                state = elbo.state
                with shim.loop_warning():
                    case.run(elbo)
                elbo.state = state
            found.append(case.run(elbo))
        assert_same(*found, rtol=1e-9, atol=1e-12)


def test_subsampling_scales_the_loss_and_never_the_weights(shim):
    """Two of five data stand for all: 2.5 times loss and gradient, the same weights."""

    def subsampled(program):
        def run(ppl, data):
            plate = ppl.plate
            ppl.plate = lambda name, size: plate(name, 5, subsample=data["rows"])
            try:
                program(ppl, data)
            finally:
                ppl.plate = plate

        return run

    data = VAE_DATA | {"rows": np.array([4, 1])}
    for elbo_class, options in losses(shim):
        plain = shim.Case(VAE)
        small = shim.Case(
            VAE._replace(data=data), model=subsampled(VAE.model), guide=subsampled(VAE.guide)
        )
        found = []
        for case in (small, plain):
            elbo = case.forced(elbo_class, **options)
            elbo.draws = DISTINCT
            found.append(case.run(elbo))
        loss, grads = found[1]
        expected = 2.5 * loss, {name: 2.5 * grad for name, grad in grads.items()}
        assert_same(found[0], expected, rtol=1e-6, atol=1e-9)


def test_a_scaled_site_counts_less_but_is_drawn_the_same(shim):
    """poutine.scale on a latent (KL annealing): its score function stays unscaled."""

    def scaled(program):
        def run(ppl, data):
            sample = ppl.sample

            def annealed(name, *args, **kwargs):
                with ppl.scale(scale=0.25 if name == "z" else 1.0):
                    return sample(name, *args, **kwargs)

            ppl.sample = annealed
            try:
                program(ppl, data)
            finally:
                ppl.sample = sample

        return run

    def loss(p):
        terms = [vae_terms(p, x) for x in VAE_DATA["x"]]
        return -sum((np.exp(q) * (lik + 0.25 * (prior - q))).sum() for q, prior, lik in terms)

    case = shim.Case(VAE, model=scaled(VAE.model), guide=scaled(VAE.guide))
    expected = loss(VAE.params), gradient(loss, VAE.params)
    assert_same(case.run(shim.module("infer.exact").Exact_ELBO()), expected, rtol=1e-10)
    from test_unbiased import mean_gradient

    elbo_class = shim.module("infer.reinforce").Reinforce_ELBO
    assert_same(mean_gradient(case, elbo_class, 2), expected, rtol=1e-10)


def test_a_masked_distribution_is_drawn_from_all_the_same(shim):
    """`fn.mask(...)` in model and guide: no share in the ELBO, but one in the probabilities."""
    keep = np.array([True, False])

    def model(ppl, data):
        prior, weight = ppl.param("prior", data), ppl.param("weight", data)
        with ppl.plate("data", 2):
            z = ppl.sample("z", ppl.dist.Categorical(logits=prior).mask(data["keep"]).to_event(1))
            loc = weight[0][z[..., 0]]
            ppl.sample("x", ppl.dist.Normal(loc, 1.0).to_event(1), obs=data["x"])

    def guide(ppl, data):
        encoder = ppl.param("encoder", data)
        logits = ppl.stack([data["x"] @ encoder[0], data["x"] @ encoder[1]], -2)
        with ppl.plate("data", 2):
            ppl.sample("z", ppl.dist.Categorical(logits=logits).mask(data["keep"]).to_event(1))

    def loss(p):
        total = 0.0
        for x in VAE_DATA["x"]:
            log_q = log_softmax(x @ p["encoder"][0])
            likelihood = np.array([normal(x, p["weight"][0][code]).sum() for code in (0, 1)])
            total = (
                total - (np.exp(log_q) * (likelihood + log_softmax(p["prior"])[0] - log_q)).sum()
            )
        return total

    case = shim.Case(VAE._replace(data=VAE_DATA | {"keep": keep}), model=model, guide=guide)
    expected = loss(VAE.params), gradient(loss, VAE.params)
    assert_same(case.run(shim.module("infer.exact").Exact_ELBO()), expected, rtol=1e-9, atol=1e-12)


def test_a_global_continuous_site_is_shared_and_no_datum_weighs_it(shim):
    """Its prior and entropy enter the loss once; its pathwise gradient is exact."""

    def model(ppl, data):
        prior, weight = ppl.param("prior", data), ppl.param("weight", data)
        shift = ppl.sample("shift", ppl.dist.Normal(0.0, 1.0))
        with ppl.plate("data", 2):
            z = ppl.sample("z", ppl.dist.Categorical(logits=prior).to_event(1))
            loc = weight[0][z[..., 0]] + weight[1][z[..., 1]] + shift[..., None]
            ppl.sample("x", ppl.dist.Normal(loc, 1.0).to_event(1), obs=data["x"])

    def guide(ppl, data):
        spread = ppl.param("spread", data)
        ppl.sample("shift", ppl.fixed_noise_normal(spread[0], ppl.exp(spread[1])))
        VAE.guide(ppl, data)

    params = VAE.params | {"spread": np.array([0.2, -0.4])}

    def loss(p):
        shift = p["spread"][0] + np.exp(p["spread"][1]) * NOISE
        total = 0.5 * shift**2 + 0.5 * np.log(2 * np.pi)
        total = total - 0.5 * NOISE**2 - p["spread"][1] - 0.5 * np.log(2 * np.pi)
        for x in VAE_DATA["x"]:
            log_q, _, _ = vae_terms(p, x)
            _, log_prior, log_likelihood = vae_terms(p, x - shift)
            total = total - (np.exp(log_q) * (log_likelihood + log_prior - log_q)).sum()
        return total

    expected = loss(params), gradient(loss, params)
    case = shim.Case(VAE, params, model=model, guide=guide)
    assert case.layout().plates == ("data",)
    assert_same(case.run(shim.module("infer.exact").Exact_ELBO()), expected, rtol=1e-9)


def test_the_last_minibatch_may_be_smaller(shim):
    elbo = shim.module("infer.reinforce").Reinforce_ELBO(1)  # its moving average remembers
    case = shim.Case(VAE)
    for rows in (2, 2, 1, 2):
        case.data = shim.as_data({"x": VAE_DATA["x"][:rows]})
        loss, grads = case.run(elbo)
        assert np.isfinite(loss)
        assert np.abs(grads["encoder"]).max() > 0


def test_scalar_sites_under_the_plate_have_their_copies_counted(shim):
    """A site without event dims is its datum's one code: K equal draws are one."""

    def program(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.zeros(2) + 50.0))

    case = shim.Case(VAE, model=program, guide=program)
    elbo = shim.module("infer.daps").DAPS_ELBO(4)
    case.run(elbo)
    np.testing.assert_allclose(float(elbo.info.ess), 0.25)


def without(name):
    """The VAE's guide, less or more than its model asks for."""

    def guide(ppl, data):
        if name != "z":
            VAE.guide(ppl, data)
        if name == "extra":
            ppl.sample("extra", ppl.dist.Normal(0.0, 1.0))

    return guide


def other_plate(ppl, data):
    with ppl.plate("images", 2):
        ppl.sample("z", ppl.dist.Categorical(logits=ppl.param("prior", data)).to_event(1))


def no_plate(ppl, data):
    logits = ppl.param("prior", data)
    ppl.sample("z", ppl.dist.Categorical(logits=ppl.stack([logits, logits], 0)).to_event(2))


def forgotten_event(ppl, data):
    with ppl.plate("data", 2, dim=-2):
        ppl.sample("z", ppl.dist.Categorical(logits=ppl.zeros(3)[None, None] + ppl.zeros(3)))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (without("z"), r"sites \['z'\] of the model are neither observed nor sampled"),
        (without("extra"), "site 'extra' of the guide is not a latent site of the model"),
        (other_plate, r"site 'z' is under 'images' .* in the guide, but under 'data'"),
        (no_plate, "site 'z' is under no plate in the guide, but under 'data'"),
    ],
)
def test_a_pair_that_does_not_match_is_named(shim, guide, message):
    for elbo_class, options in losses(shim):
        case = shim.Case(VAE, guide=guide)
        with pytest.raises(ValueError, match=message):
            case.run(elbo_class(**options))


def test_a_batch_dim_without_a_plate_is_named(shim):
    def program(ppl, data):
        with ppl.plate("data", 2, dim=-2):
            ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.zeros(6).reshape(2, 3)))

    case = shim.Case(VAE, model=program, guide=program)
    loss, message = (
        shim.module("infer.reinforce").Reinforce_ELBO(),
        "batch dim -1 is under no plate",
    )
    if "numpyro" in shim.__name__:  # which takes it, as NumPyro does, but lists no states of it
        np.testing.assert_allclose(case.run(loss)[0], 0.0, atol=1e-6)
        loss, message = shim.module("infer.exact").Exact_ELBO(), "with a dim that is under no plate"
    with pytest.raises(ValueError, match=rf"site 'z'.*{message}.*to_event"):
        case.run(loss)


def test_discrete_sites_that_share_no_plate_are_named(shim):
    def program(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.zeros(2)))
        with ppl.plate("topics", 3):
            ppl.sample("t", ppl.dist.Bernoulli(logits=ppl.zeros(3)))

    case = shim.Case(VAE, model=program, guide=program)
    with pytest.warns(UserWarning, match=r"share no plate .*'t' under \['topics'\].*one weight"):
        case.run(shim.module("infer.daps").DAPS_ELBO())


def test_too_many_states_to_enumerate(shim):
    with pytest.raises(ValueError, match=r"needs 4 states per datum \('z': 2\^2\).*`max_states`"):
        shim.Case(VAE).run(shim.module("infer.exact").Exact_ELBO(max_states=3))


def test_infinite_support_cannot_be_enumerated(shim):
    def program(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("z", ppl.dist.Poisson(ppl.zeros(2) + 1.0))

    case = shim.Case(VAE, model=program, guide=program)
    message = r"site 'z' \(Poisson\) has no finite support.* Binomial.* importance_diagnostics"
    with pytest.raises(ValueError, match=message):
        case.run(shim.module("infer.exact").Exact_ELBO())


@pytest.mark.thrifty
def test_learned_baseline_without_a_prediction(shim):
    learned = shim.module("ops.baselines").learned()
    with pytest.raises(ValueError, match=r'needs the guide.*deterministic\("baseline"'):
        shim.Case(VAE).run(shim.module("infer.reinforce").Reinforce_ELBO(baseline=learned))
