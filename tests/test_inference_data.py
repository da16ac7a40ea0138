"""What `to_arviz` returns: each group against the exact one, and ArviZ's functions run on it."""

import contextlib
import functools
import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import test_guides
import test_quantization
from conftest import shim_of
from quiet import arviz, call_all, dataset, first_only, group_names
from test_diagnostics import assert_near, program_of
from zoo import draw, log_softmax, normal

NUM_DATA, NUM_DRAWS, STATES = 6, 600, 6
PARAMS = {"prior": draw(2), "weight": 0.5 * draw(2, 3), "encoder": draw(2, 2), "decoder": draw(3)}
DATA = {"x": draw(NUM_DATA, 2), "age": draw(NUM_DATA)}
HISTORY = [{"step": 2, "mean_loss": 5.0}, {"step": 4, "mean_loss": 4.0, "eval_loss": 3.0}]


def model(ppl, data):
    """Two discrete latents, the second given the first; data of two pixels, with a covariate."""
    prior, weight, decoder = (ppl.param(name, data) for name in ("prior", "weight", "decoder"))
    with ppl.plate("data", len(data["x"])):
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=prior[0]))
        b = ppl.sample("b", ppl.dist.Categorical(logits=weight[0] + weight[1] * a[..., None]))
        loc = decoder[0] * a + decoder[1] * b + decoder[2] * data["age"]
        ppl.deterministic("level", loc)
        pixels = loc[..., None] + ppl.zeros(2)
        ppl.sample("x", ppl.dist.Normal(pixels, 1.0).to_event(1), obs=data["x"])
        ppl.sample("y", ppl.dist.Bernoulli(logits=loc), obs=0.0 * data["age"])


def guide(ppl, data):
    encoder, weight = ppl.param("encoder", data), ppl.param("weight", data)
    with ppl.plate("data", len(data["x"])):
        ppl.sample("a", ppl.dist.Bernoulli(logits=data["x"] @ encoder[0]))
        ppl.sample("b", ppl.dist.Categorical(logits=weight[0][None] * data["age"][:, None]))


def tables():
    """Log q, log p(z) and log p(x, y | z) of each datum's states, in cells [a, b] of (2, 3, N)."""
    a, b = np.arange(2)[:, None, None], np.arange(3)[:, None]
    logit = DATA["x"] @ PARAMS["encoder"][0]
    log_b = log_softmax(PARAMS["weight"][0] * DATA["age"][:, None]).T
    log_q = -np.log1p(np.exp(-(2 * a - 1) * logit)) + log_b
    log_prior = -np.log1p(np.exp(-(2 * a - 1) * PARAMS["prior"][0]))
    given_a = np.stack([log_softmax(PARAMS["weight"][0] + PARAMS["weight"][1] * i) for i in (0, 1)])
    loc = PARAMS["decoder"] @ np.stack(np.broadcast_arrays(a, b, DATA["age"])).reshape(3, -1)
    loc = loc.reshape(2, 3, NUM_DATA)
    x = normal(DATA["x"], loc[..., None]).sum(-1)
    log_prior = np.broadcast_to(log_prior + given_a[:, :, None], log_q.shape)
    return log_q, log_prior, {"x": x, "y": -np.log1p(np.exp(loc))}, loc


@functools.cache
def made(shim, batch_size=None, groups=None):
    case = shim.Case(program_of(model, guide, PARAMS, DATA))
    pair = [
        lambda x, age, program=program: program(case.ppl, {"x": x, "age": age})
        for program in (model, guide)
    ]
    result = SimpleNamespace(
        model=pair[0], guide=pair[1], params=case.params, losses=np.arange(4.0), history=HISTORY
    )
    options = {} if groups is None else {"groups": groups}
    to_arviz = shim.module("diagnostics").to_arviz
    keys = () if shim.__name__ == "pyro_shim" else (shim.new_key(),)
    return to_arviz(
        *keys, result, *case.data.values(), num_draws=NUM_DRAWS, batch_size=batch_size, **options
    )


CASES = [
    ("pyro", None),
    ("pyro", 3),
    ("numpyro", None),
    pytest.param(("numpyro", 3), marks=pytest.mark.slow),  # compiles once more
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'in batches' if case[1] else 'whole'}")
def idata(request):
    name, batch_size = request.param
    return made(shim_of(name), batch_size)


@pytest.mark.thrifty
def test_groups_dims_and_types(idata):
    groups = {"posterior", "prior", "posterior_predictive", "prior_predictive", "vi_stats"}
    groups |= {"log_likelihood", "sample_stats", "observed_data", "constant_data"}
    assert group_names(idata) == groups
    sizes = {"chain": 1, "draw": NUM_DRAWS, "data": NUM_DATA}
    assert dict(idata.posterior.sizes) == sizes
    for group in ("posterior", "prior"):
        for name in ("a", "b"):
            assert idata[group][name].dims == ("chain", "draw", "data")
            assert idata[group][name].dtype.kind == "i"
    assert idata.posterior_predictive["x"].dims == ("chain", "draw", "data", "x_dim_0")
    assert idata.posterior_predictive["y"].dtype.kind == "i"
    assert idata.observed_data["y"].dtype.kind == "i"
    np.testing.assert_array_equal(idata.observed_data["x"], DATA["x"])
    assert list(idata.constant_data) == ["age"]
    np.testing.assert_array_equal(idata.constant_data["age"], DATA["age"])
    assert idata.constant_data["age"].dims == ("age_dim_0",)  # its size is no name
    np.testing.assert_array_equal(idata.posterior.coords["data"], np.arange(NUM_DATA))


def test_log_densities_are_those_of_the_draws(idata):
    """To the last digit, draw by draw and row by row."""
    log_q, log_prior, log_likelihood, loc = tables()
    a, b = (idata.posterior[name].values[0] for name in ("a", "b"))
    cell = a, b, np.arange(NUM_DATA)
    stats, scored = idata.sample_stats, idata.log_likelihood
    for name, table in log_likelihood.items():
        np.testing.assert_allclose(scored[name][0], table[cell], rtol=1e-10)
    log_p = log_prior[cell] + sum(table[cell] for table in log_likelihood.values())
    np.testing.assert_allclose(stats["lp"][0], log_p, rtol=1e-10)
    np.testing.assert_allclose(stats["log_q"][0], log_q[cell], rtol=1e-10)
    np.testing.assert_allclose(stats["log_weight"][0], log_p - log_q[cell], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(idata.posterior["level"][0], loc[cell], rtol=1e-10)


def frequencies(a, b):
    return (a[None, None] == np.arange(2)[:, None, None, None]) & (
        b[None, None] == np.arange(3)[:, None, None]
    )


@pytest.mark.parametrize("group", ["posterior", "prior"])
def test_draws_are_from_the_guide_and_from_the_prior(idata, group):
    log_q, log_prior, _, _ = tables()
    probs = np.exp(log_q if group == "posterior" else log_prior)
    found = frequencies(*(idata[group][name].values[0] for name in ("a", "b"))).mean(2)
    assert_near(found, probs, np.sqrt(probs * (1 - probs)), NUM_DRAWS)
    uniform = np.full_like(probs, 1 / STATES)  # negative control: these draws are from no other
    with pytest.raises(AssertionError):
        assert_near(found, uniform, np.sqrt(uniform * (1 - uniform)), NUM_DRAWS)


@pytest.mark.parametrize("group", ["posterior", "prior"])
def test_predictive_draws_are_from_the_likelihood_at_the_draws(idata, group):
    *_, loc = tables()
    a, b = (idata[group][name].values[0] for name in ("a", "b"))
    predictive = idata[f"{group}_predictive"]
    level = loc[a, b, np.arange(NUM_DATA)]
    noise = predictive["x"].values[0] - level[..., None]
    assert_near(noise.mean((0, 2)), 0.0, 1.0, 2 * NUM_DRAWS)
    assert_near((noise**2).mean((0, 2)), 1.0, np.sqrt(2.0), 2 * NUM_DRAWS)
    rate = 1 / (1 + np.exp(-level))
    assert_near((predictive["y"].values[0] - rate).mean(0), 0.0, 0.5, NUM_DRAWS)


def test_statistics_of_the_fit(idata):
    stats = idata.vi_stats
    np.testing.assert_array_equal(stats["loss"], np.arange(4.0))
    np.testing.assert_array_equal(stats["log_mean_loss"], [5.0, 4.0])
    np.testing.assert_array_equal(stats["log_eval_loss"], [np.nan, 3.0])
    log_weights = idata.sample_stats["log_weight"].values[0]
    np.testing.assert_allclose(stats["elbo"], log_weights.mean(0))
    np.testing.assert_allclose(stats["iwae"], np.log(np.exp(log_weights).mean(0)))
    assert set(stats["verdict"].values) <= {"close", "off", "unreliable", "one state"}
    assert stats["ess"].dims == stats["khat"].dims == ("data",)
    assert (stats["num_states"] == STATES).all()
    shares = [(idata.posterior["b"] == code).mean() for code in range(3)]
    np.testing.assert_allclose(stats["b_code_share"], shares)
    assert stats["b_probs"].dims == ("data", "b_code")
    np.testing.assert_allclose(np.mean(stats["b_probs"], 0), shares)
    np.testing.assert_array_equal(stats["b_most_likely"], np.argmax(stats["b_probs"].values, -1))
    assert stats.attrs["num_particles"] == NUM_DRAWS


GROUPS = ("posterior", "log_likelihood", "observed_data", "vi_stats")


@pytest.mark.thrifty
def test_netcdf_round_trip(shim, tmp_path):
    idata = made(shim, None)
    path = str(tmp_path / "idata.nc")
    idata.to_netcdf(path)
    found = arviz.from_netcdf(path)
    assert all(dataset(idata, group).equals(dataset(found, group)) for group in GROUPS)


@first_only
def test_the_container_of_arviz_1(thrifty_shim, tmp_path, monkeypatch):
    """It reads files by `xarray.open_datatree`, under another name."""
    import xarray

    groups, idata = thrifty_shim.module("diagnostics.groups"), made(thrifty_shim, None)
    monkeypatch.setattr(arviz, "__version__", "1.0.0")
    tree = groups._assemble({group: idata[group] for group in GROUPS})
    assert isinstance(tree, xarray.DataTree)
    assert list(tree.children) == list(GROUPS)
    assert tree["posterior"]["a"].dims == ("chain", "draw", "data")
    tree.to_netcdf(tmp_path / "tree.nc")
    with xarray.open_datatree(tmp_path / "tree.nc") as found:
        assert all(idata[group].equals(found[group].to_dataset()) for group in GROUPS)
        assert found["posterior"].attrs["inference_library"] == groups.__name__.partition(".")[0]
    first = arviz.from_netcdf(str(tmp_path / "tree.nc"))  # as ArviZ 0.23 reads the file
    assert all(idata[group].equals(first[group]) for group in GROUPS)


@pytest.mark.parametrize("name", ["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
@pytest.mark.parametrize(("observed", "latent"), [("x", "a"), ("y", "b"), ("x", "level")])
def test_arviz_runs_on_it_without_warnings(name, observed, latent):
    call_all(made(shim_of(name), None), observed, latent, {"data": [0, 1]})


@pytest.mark.parametrize("site", ["a", "b"])
def test_weighted_draws_have_the_exact_posterior_marginals(idata, site):
    """Draws of the guide, at the weights p / q that `log_weight` has."""
    log_q, log_prior, log_likelihood, _ = tables()
    log_p = log_prior + sum(log_likelihood.values())
    joint = np.exp(log_p - np.logaddexp.reduce(log_p, axis=(0, 1)))
    axis, size = ("a", "b").index(site), {"a": 2, "b": 3}[site]
    expected = joint.sum(1 - axis)
    weights = np.exp(idata.sample_stats["log_weight"].values[0])
    drawn = idata.posterior[site].values[0] == np.arange(size)[:, None, None]
    found = (weights * drawn).sum(1) / weights.sum(0)
    ratio = np.exp(log_p - log_q) / np.exp(log_p).sum((0, 1))
    cells = np.eye(size)[:, :, None, None] if axis == 0 else np.eye(size)[:, None, :, None]
    influence = ratio * (cells - expected[:, None, None])
    spread = np.sqrt((np.exp(log_q) * influence**2).sum((1, 2)))
    assert_near(found, expected, spread, NUM_DRAWS, floor=0.01)
    with pytest.raises(AssertionError):  # negative control: unweighted, they are the guide's
        assert_near(drawn.mean(1), expected, spread, NUM_DRAWS, floor=0.01)


def guided(shim, kind):
    """A discrete VAE with one of the package's guides, its parameters, and images."""
    if kind == "quantised":
        model, guide = test_quantization.pair(shim, kind, table=None)
        x = test_quantization.X
    else:
        model, guide = test_guides.pair(shim, kind)
        x = np.random.default_rng(0).integers(2, size=(6, *test_guides.SHAPE)).astype(np.float32)
    if shim.__name__ == "pyro_shim":
        return (), (model, guide), x, {}
    lab = importlib.import_module("numpyro_lab")
    lab.reset()
    params = lab.params_of(guide, x) | lab.params_of(model, x) | lab.state_of(guide, x)
    return (lab.next_key(),), (model, guide), x, params


@pytest.mark.parametrize("kind", [*test_guides.KINDS, "quantised"])
def test_every_guide_of_the_package_is_taken(thrifty_shim, kind):
    """A truncated one, too: see `test_diagnostics`."""
    keys, programs, x, params = guided(thrifty_shim, kind)
    to_arviz = thrifty_shim.module("diagnostics").to_arviz
    warned = pytest.warns(UserWarning, match=r"`marginal`.* not the evidence of (\d+) of \1 data")
    with warned if kind == "quantised" else contextlib.nullcontext():
        found = to_arviz(*keys, programs, x, num_draws=30, params=params or None)
    assert found["posterior"]["z"].dims == ("chain", "draw", "data", "z_dim_0")
    assert found["posterior"]["z"].dtype.kind == "i"
    assert found["posterior_predictive"]["x"].shape == (1, 30, *x.shape)
    stats = found["sample_stats"]
    np.testing.assert_allclose(stats["lp"] - stats["log_q"], stats["log_weight"], rtol=1e-4)
    log_q = stats["log_q"].values
    assert (log_q == 0).all() if kind == "quantised" else (log_q < 0).all()
    np.testing.assert_array_equal(found["observed_data"]["x"], x)


def test_groups_can_be_chosen(thrifty_shim):
    idata = made(thrifty_shim, groups=("log_likelihood",))
    assert group_names(idata) == {"log_likelihood"}


def test_groups_are_checked(shim):
    with pytest.raises(ValueError, match=r"`groups` must be of posterior, .*got \['posteriors'\]"):
        made(shim, groups=("posteriors",))


def test_batches_of_no_rows_are_refused(shim):
    with pytest.raises(ValueError, match="`batch_size` must be at least 1; got 0"):
        made(shim, batch_size=0)
