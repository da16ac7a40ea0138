"""`evaluate` against exact numbers: codes that are known, and states that can be listed."""

import numpy as np
import oracles
import pytest
from test_diagnostics import VAE, assert_near, diagnose, expected_bound, program_of
from test_latents import CODES, SURE, sure_guide, sure_model, vae_tables
from zoo import PROGRAMS, VAE_DATA

RATE = 2 * np.log2(3)  # bits of two codes of three values, known under a uniform prior
DISTORTION = 0.125 + 0.5 * np.log(2 * np.pi)  # half a unit from the mean, at scale 1


def evaluate(shim, program, **options):
    return diagnose(shim, "evaluate", shim.Case(program), **options)


def sure_program(model=sure_model, **data):
    params, x = SURE
    return program_of(model, sure_guide, params, {**x, **data})


def test_all_numbers_where_codes_are_known(shim):
    found = evaluate(shim, sure_program(), num_particles=3, beta=0.1)
    elbo = -DISTORTION - RATE * np.log(2)
    expected = {
        "elbo": elbo,
        "beta_elbo": -DISTORTION - 0.1 * RATE * np.log(2),
        "importance_weighted_bound": elbo,
        "rate": RATE,
        "distortion": DISTORTION,
        "mse": 0.25,
        "psnr": 10 * np.log10(2.0**2 / 0.25),
        "ess": 1.0,
        "usage": (1 + 1 / 3) / 2,
        "table_usage": 1.0,
        "table_perplexity": np.exp(-(np.log([0.2, 0.7, 0.1]) * [0.2, 0.7, 0.1]).sum()),
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name
        assert isinstance(getattr(found, name), float)
    assert (found.beta, found.num_particles, found.data_range) == (0.1, 3, 2.0)
    for name, values in found.per_datum._asdict().items():
        assert values.shape == (5,), name
        np.testing.assert_allclose(values, 3 if name == "ess" else expected[name], rtol=1e-9)


def test_the_table(thrifty_shim):
    lines = str(evaluate(thrifty_shim, sure_program(), num_particles=3, beta=0.1)).splitlines()
    assert lines[0] == "5 data, 3 draws each; means"
    assert lines[1] == "ELBO                           -3.24 nats"
    assert lines[2] == "beta-ELBO (0.1)                -1.26 nats"
    assert [line.split()[0] for line in lines[3:]] == [
        *("importance-weighted", "rate", "distortion", "PSNR", "effective", "codes"),
        *("codes", "perplexity,", "error", "error"),
    ]
    assert lines[-5].endswith(" 66.67 %")
    # What was not seen in 3 draws may have a third of the mass, for each of 5 data.
    assert lines[-2:] == [
        "error of ELBO, at least         0.00 nats",
        "error of bound, at least        0.15 nats",
    ]


def test_bounds_of_random_codes_have_their_exact_means(thrifty_shim):
    """200 copies of two data, 5 draws of each, against all that could be drawn."""
    program = VAE._replace(data={"x": np.repeat(VAE_DATA["x"], 200, axis=0)})
    found = evaluate(thrifty_shim, program, num_particles=5, beta=0.3)
    log_q, log_prior, log_likelihood = vae_tables()
    q, log_weights = np.exp(log_q), log_prior + log_likelihood - log_q

    def check(values, exact, spread, num_draws):
        assert_near(values.reshape(2, 200).mean(1), exact, spread, num_draws)

    bound, spread = expected_bound(log_q, log_weights, 5)
    check(found.per_datum.importance_weighted_bound, bound, spread, 200)
    terms = {
        "elbo": log_weights,
        "beta_elbo": log_likelihood + 0.3 * (log_prior - log_q),
        "rate": (log_q - log_prior) / np.log(2),
        "distortion": -log_likelihood,
    }
    for name, values in terms.items():
        exact = oracles.expect(q, values)
        spread = np.sqrt(oracles.expect(q, (values - exact) ** 2))
        check(getattr(found.per_datum, name), exact, spread, 1000)
        assert getattr(found, name) == pytest.approx(getattr(found.per_datum, name).mean())
    bound, spread = expected_bound(log_q, log_weights, 5)
    with pytest.raises(AssertionError):  # negative control: the ELBO is not the bound
        check(found.per_datum.elbo, bound, spread, 200)


def known_guide(ppl, data):
    """As `sure_guide`, of rows that may be cut."""
    with ppl.plate("data", len(data["x"])):
        logits = ppl.param("table", data)[data["codes"]]
        ppl.sample("z", ppl.dist.Categorical(logits=logits).to_event(1))


def evaluate_arrays(shim, change=lambda x: x, **options):
    """Evaluate programs of several arguments, that get the data after a change."""
    params, data = {"table": 60.0 * np.eye(3)}, {**SURE[1], "codes": CODES}
    case = shim.Case(program_of(sure_model, known_guide, params, data))

    def called_with_arrays(program):
        return lambda x, codes, nothing, shift: program(case.ppl, {"x": x + shift, "codes": codes})

    pair = called_with_arrays(sure_model), called_with_arrays(known_guide)
    keys = () if shim.__name__ == "pyro_shim" else (shim.new_key(),)
    args = change(case.data["x"]), case.data["codes"], None, 1.0
    options = {"num_particles": 3, "params": case.params, **options}
    return shim.module("diagnostics").evaluate(*keys, pair, *args, **options)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5])
def test_arguments_and_batches_change_nothing(thrifty_shim, batch_size):
    expected = evaluate(thrifty_shim, sure_program(), num_particles=3)
    found = evaluate_arrays(thrifty_shim, lambda x: x - 1.0, batch_size=batch_size)
    for name in set(found._fields) - {"per_datum"}:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9), name
    for first, second in zip(found.per_datum, expected.per_datum, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-9)
    shifted = evaluate_arrays(thrifty_shim, batch_size=batch_size)  # negative control
    assert shifted.mse > 2.0


def pixels_model(ppl, data):
    """Two pixels that the first code makes, some of which are missing."""
    with ppl.plate("data", len(data["x"])):
        z = ppl.sample("z", ppl.dist.Categorical(logits=ppl.zeros(6).reshape(2, 3)).to_event(1))
        pixels = ppl.dist.Normal(z[..., :1] + 0.0 * data["x"], 1.0)
        ppl.sample("x", pixels.mask(data["mask"]).to_event(1), obs=data["x"])


MASK = np.array([[True, True], [True, False], [False, True], [True, True], [False, False]])


def test_missing_entries_do_not_count(shim):
    """Entries of a datum, by the distribution's mask; what fills them is far off."""
    x = np.where(MASK, CODES[:, :1] + [0.5, 1.0], 99.0)
    found = evaluate(shim, sure_program(pixels_model, x=x, mask=MASK), num_particles=2)
    squares = np.where(MASK, [0.25, 1.0], 0.0).sum(1)
    with np.errstate(invalid="ignore"):
        mse = squares / MASK.sum(1)
    np.testing.assert_allclose(found.per_datum.mse, mse)
    assert found.mse == pytest.approx(mse[:4].mean())  # the fifth shows nothing
    distortion = squares / 2 + MASK.sum(1) * 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found.per_datum.distortion, distortion)
    assert found.data_range == pytest.approx(1.5)  # 0.5 to 2.0 of what is seen
    assert found.psnr == pytest.approx((10 * np.log10(1.5**2 / mse[:4])).mean())
    assert found.rate == pytest.approx(RATE)


def test_missing_data_do_not_count(thrifty_shim):
    """Whole data, by a handler."""

    def model(ppl, data):
        with ppl.plate("data", len(data["x"])), ppl.mask(mask=data["mask"]):
            sure_model_site(ppl, data)

    def sure_model_site(ppl, data):
        z = ppl.sample("z", ppl.dist.Categorical(logits=ppl.zeros(6).reshape(2, 3)).to_event(1))
        ppl.sample("x", ppl.dist.Normal(z[..., 0] + 0.0 * data["x"], 1.0), obs=data["x"])

    def guide(ppl, data):
        with ppl.plate("data", len(data["x"])), ppl.mask(mask=data["mask"]):
            ppl.sample("z", ppl.dist.Categorical(logits=ppl.param("logits", data)).to_event(1))

    mask = np.array([True, True, False, True, False])
    x = np.where(mask, CODES[:, 0] + 0.5, 99.0)
    program = program_of(model, guide, SURE[0], {"x": x, "mask": mask})
    found = evaluate(thrifty_shim, program, num_particles=2)
    np.testing.assert_allclose(found.per_datum.rate, np.where(mask, RATE, 0.0), atol=1e-12)
    np.testing.assert_allclose(found.per_datum.mse, np.where(mask, 0.25, np.nan))
    assert found.mse == pytest.approx(0.25)


def test_what_no_datum_owns_is_left_out(thrifty_shim):
    """Nested plates, a masked word, and an observation outside: the exact ELBO of each document."""
    program = {each.name: each for each in PROGRAMS}["nested"]
    found = evaluate(thrifty_shim, program, num_particles=4000)
    gap = diagnose(thrifty_shim, "posterior_gap", thrifty_shim.Case(program))
    importance = diagnose(
        thrifty_shim, "importance_diagnostics", thrifty_shim.Case(program), num_particles=4000
    )
    assert found.per_datum.elbo.shape == (2,)
    spread = np.sqrt(4000 / importance.ess)  # of the weights, and of the order of the logs'
    assert_near(found.per_datum.elbo, gap.elbo, spread, 4000)
    assert_near(found.per_datum.importance_weighted_bound, gap.log_evidence, spread, 4000, 1e-3)


def observing(distribution, x):
    """A program whose observation tells nothing of its latent."""

    def model(ppl, data):
        with ppl.plate("data", len(data["x"])):
            ppl.sample("c", ppl.dist.Normal(ppl.param("zero", data), 1.0))
            ppl.sample("x", distribution(ppl, data), obs=data["x"])

    def guide(ppl, data):
        with ppl.plate("data", len(data["x"])):
            ppl.sample("c", ppl.dist.Normal(ppl.param("zero", data), 1.0))

    return program_of(model, guide, {"zero": np.zeros(len(x))}, {"x": x})


def test_what_there_is_none_of_is_left_out_of_the_table(thrifty_shim):
    """Continuous latents have no codes, categories no mean."""
    program = observing(
        lambda ppl, data: ppl.dist.Categorical(logits=ppl.zeros(3)), np.array([0, 1, 2, 1])
    )
    found = evaluate(thrifty_shim, program, num_particles=2)
    assert np.isnan([found.usage, found.psnr, found.mse]).all()
    assert found.elbo == pytest.approx(-np.log(3))
    assert "PSNR" not in str(found)
    assert "codes" not in str(found)
    assert "effective" in str(found)


def test_the_range_of_the_data(thrifty_shim):
    def program(x):
        return observing(lambda ppl, data: ppl.dist.Normal(0.0 * data["x"] + 0.5, 1.0), x)

    for x, data_range in (([0.1, 0.6], 1.0), ([0.0, 4.0], 4.0), ([-3.0, -1.0], 2.0)):
        found = evaluate(thrifty_shim, program(np.array(x)), num_particles=1)
        assert found.data_range == data_range
        mse = (np.array(x) - 0.5) ** 2
        assert found.psnr == pytest.approx((10 * np.log10(data_range**2 / mse)).mean())
    given = evaluate(thrifty_shim, program(np.array([0.0, 4.0])), num_particles=1, data_range=255.0)
    assert given.data_range == 255.0
    assert given.psnr > found.psnr + 20


def test_a_perfect_reconstruction_leaves_the_mean_finite(thrifty_shim):
    x = np.array([0.5, 0.25])
    program = observing(lambda ppl, data: ppl.dist.Normal(0.0 * data["x"] + 0.5, 1.0), x)
    found = evaluate(thrifty_shim, program, num_particles=1)
    other = 10 * np.log10(1 / 0.25**2)
    np.testing.assert_allclose(found.per_datum.psnr, [np.inf, other])
    assert found.psnr == pytest.approx((100 + other) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "`num_particles` must be at least 1; got 0"),
        ({"data_range": -1.0}, r"`data_range` must be positive; got -1\.0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1; got 0"),
    ],
)
def test_arguments_are_checked(shim, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(shim, sure_program(), **options)
