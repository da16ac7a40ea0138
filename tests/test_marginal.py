"""What statisticians expect: evidences for ArviZ's loo, expectations, labels, names in files."""

import functools
import importlib
import warnings

import numpy as np
import pytest
from known_zoo import MEANS, ZOO, N, evidence, responsibilities
from quiet import arviz, first_only, group_names
from test_diagnostics import diagnose, program_of
from zoo import normal

BY_NAME = {known.name: known for known in ZOO}
NUM_DRAWS = 800
GROUPS = ("posterior", "log_likelihood", "observed_data", "vi_stats")


@functools.cache
def arviz_of(shim, name):
    case = shim.Case(BY_NAME[name].program)
    return diagnose(shim, "to_arviz", case, num_draws=NUM_DRAWS, groups=GROUPS)


@first_only
@pytest.mark.parametrize("name", ["perfect", "poor", "over-dispersed", "latent classes, masked"])
def test_loo_of_the_marginal_is_the_evidence(thrifty_shim, name):
    idata, exact = arviz_of(thrifty_shim, name), BY_NAME[name].datum(evidence)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # where weights tie, ArviZ's k̂ would be infinite
        loo = arviz.loo(idata, var_name="marginal", pointwise=True)
    error = idata.vi_stats["iwae_error"].values
    np.testing.assert_array_less(np.abs(loo.loo_i.values - exact), 5 * error + 0.01)
    np.testing.assert_allclose(loo.loo_i, idata.vi_stats["iwae"], atol=1e-3)
    assert loo.elpd_loo > idata.vi_stats["elbo"].values.sum() or name == "perfect"


def normal_pair(guide_spread):
    def program(spread, observes):
        def run(ppl, data):
            with ppl.plate("data", 30):
                ppl.sample("c", ppl.dist.Normal(0.0 * data["x"], spread))
                if observes:
                    ppl.sample("x", ppl.dist.Normal(0.0, 1.0), obs=data["x"])

        return run

    data = {"x": np.zeros(30)}
    return program_of(program(1.0, True), program(guide_spread, False), {}, data)


@first_only
def test_loo_warns_where_weights_have_a_heavy_tail(thrifty_shim):
    """k = 1 - 1/25 of a guide of a fifth of the posterior's width; ArviZ's k̂ is that of weights."""
    case = thrifty_shim.Case(normal_pair(0.2))
    idata = diagnose(thrifty_shim, "to_arviz", case, num_draws=NUM_DRAWS, groups=GROUPS)
    with pytest.warns(UserWarning, match="Estimated shape parameter of Pareto"):
        loo = arviz.loo(idata, var_name="marginal", pointwise=True)
    np.testing.assert_allclose(loo.pareto_k, idata.vi_stats["khat"], atol=0.15)
    case = thrifty_shim.Case(normal_pair(1.1))
    idata = diagnose(thrifty_shim, "to_arviz", case, num_draws=NUM_DRAWS, groups=GROUPS)
    with warnings.catch_warnings():  # the control
        warnings.simplefilter("error")
        arviz.loo(idata, var_name="marginal")


def test_to_arviz_warns_where_a_marginal_is_not_the_evidence(thrifty_shim):
    """Of a guide that has two states of four, `loo` is short by log 2 of each datum."""

    def program(states, observes):
        def run(ppl, data):
            with ppl.plate("data", 8):
                ppl.sample("z", ppl.dist.Categorical(logits=data[states]))
                if observes:
                    ppl.sample("x", ppl.dist.Normal(0.0, 1.0), obs=data["x"])

        return run

    some = np.where(np.arange(8)[:, None] < 5, np.array([0.0, 0.0, -1e30, -1e30]), 0.0)
    data = {"x": np.zeros(8), "all": np.zeros((8, 4)), "some": some}
    case = thrifty_shim.Case(program_of(program("all", True), program("some", False), {}, data))
    options = {"num_draws": 100, "groups": GROUPS}
    with pytest.warns(UserWarning, match="`marginal`.* not the evidence of 5 of 8 data.*5 undecid"):
        found = diagnose(thrifty_shim, "to_arviz", case, **options)
    short = normal(0.0, 0.0) - np.where(np.arange(8) < 5, np.log(2), 0.0)
    np.testing.assert_allclose(found.vi_stats["iwae"], short, rtol=1e-6)
    with warnings.catch_warnings():  # the control
        warnings.simplefilter("error")
        diagnose(thrifty_shim, "to_arviz", case, num_draws=100, groups=("posterior",))


X = np.array([-3.1, -3.4, 0.1, 0.4, -0.3, 2.9, 3.3, 3.1, -2.8, 0.2])
CLASSES = {  # means and log shares
    "1": ([0.2], [0.0]),
    "2": ([-1.2, 3.0], np.log([0.7, 0.3])),
    "3": ([-3.0, 0.0, 3.0], np.log([0.3, 0.4, 0.3])),
    "4, for one datum": ([-3.0, 0.0, 3.0, -3.4], np.log([0.15, 0.35, 0.2, 0.3])),
}


def classes(name):
    """A mixture, and a guide that is off by a fifth."""
    means, shares = map(np.array, CLASSES[name])

    def model(ppl, data):
        with ppl.plate("data", len(X)):
            z = ppl.sample("z", ppl.dist.Categorical(logits=data["shares"]))
            ppl.sample("x", ppl.dist.Normal(data["means"][z], 1.0), obs=data["x"])

    def guide(ppl, data):
        joint = data["shares"] + ppl.dist.Normal(data["means"], 1.0).log_prob(data["x"][:, None])
        with ppl.plate("data", len(X)):
            ppl.sample("z", ppl.dist.Categorical(logits=0.8 * joint))

    data = {"x": X, "means": means, "shares": shares}
    exact = np.logaddexp.reduce(shares + normal(X[:, None], means), axis=-1).sum()
    return program_of(model, guide, {}, data), exact


@first_only
def test_compare_ranks_as_the_exact_evidence_does(thrifty_shim):
    found, exact = {}, {}
    for name in CLASSES:
        program, exact[name] = classes(name)
        case = thrifty_shim.Case(program)
        options = {"num_draws": 300, "groups": ("posterior", "log_likelihood")}
        found[name] = diagnose(thrifty_shim, "to_arviz", case, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ's, of pandas
        warnings.filterwarnings("error", "Estimated shape parameter of Pareto")
        table = arviz.compare(found, var_name="marginal", method="pseudo-BMA")
    assert list(table.index) == sorted(exact, key=lambda name: -exact[name])
    assert table.index[0] == "3"
    for name, value in exact.items():
        np.testing.assert_allclose(table.loc[name, "elpd_loo"], value, atol=0.1)


@pytest.mark.filterwarnings("ignore:`posterior`, and `marg")  # that 60 draws tell little of mu
@pytest.mark.parametrize(
    "names", [None, pytest.param(np.array([*"abcdefghij"]), marks=pytest.mark.slow)]
)
def test_what_no_one_has_seen_is_not_among_the_log_likelihoods(thrifty_shim, names):
    known = BY_NAME["unknown means, masks"]
    seen = known.data["weight"] > 0
    labels = np.arange(len(seen)) if names is None else names[: len(seen)]
    options = {"num_draws": 60, "coords": None if names is None else {"data": labels}}
    idata = diagnose(thrifty_shim, "to_arviz", thrifty_shim.Case(known.program), **options)
    likelihoods = idata["log_likelihood"]
    for dim in ("x_seen", "marginal_seen"):
        assert likelihoods[dim].values.tolist() == labels[seen].tolist()
    assert likelihoods["x"].dims == ("chain", "draw", "x_seen")
    assert likelihoods["x"].shape[-1] == likelihoods["marginal"].shape[-1] == seen.sum() == 5
    z, mu = (idata["posterior"][name].values[0] for name in ("z", "mu"))
    expected = normal(known.data["x"], mu[:, None] + MEANS[z])[:, seen]
    np.testing.assert_allclose(likelihoods["x"].values[0], expected, rtol=1e-4)
    stats = idata["sample_stats"]
    parts = stats["log_weight"].sum("data") + stats["log_weight_shared"]
    np.testing.assert_allclose(parts, stats["log_weight_whole"], rtol=1e-5)
    assert idata["vi_stats"]["shared_verdict"].ndim == 0
    stats = idata["vi_stats"]
    assert stats["given_elbo"].attrs == stats["khat"].attrs == {"given": "mu"}
    assert stats["elbo"].attrs == {}  # with a datum's part of it, so that the sum is the whole's
    np.testing.assert_allclose(stats["elbo"].sum(), stats["whole_elbo"], rtol=1e-6)
    np.testing.assert_allclose(stats["iwae"].sum(), stats["whole_iwae"], rtol=1e-6)


def test_data_that_stand_for_more_are_weighed_in_the_whole(shim):
    def scaled(observes):
        def run(ppl, data):
            with ppl.plate("data", len(X)), ppl.scale(scale=2.5):
                z = ppl.sample("z", ppl.dist.Bernoulli(logits=data["x"]))
                if observes:
                    ppl.sample("x", ppl.dist.Normal(2.0 * z, 1.0), obs=data["x"])

        return run

    case = shim.Case(program_of(scaled(True), scaled(False), {}, {"x": X}))
    options = {"num_draws": 30, "groups": ("sample_stats", "vi_stats")}
    found = diagnose(shim, "to_arviz", case, **options)
    stats, whole = found["sample_stats"], found["vi_stats"]["whole_elbo"]
    np.testing.assert_allclose(
        stats["log_weight_whole"], 2.5 * stats["log_weight"].sum("data"), rtol=1e-5
    )
    np.testing.assert_allclose(stats["log_weight_whole"].mean(), whole, rtol=1e-5)


# Expectations


def test_expectations_of_codes_are_the_exact_posterior(shim):
    known = BY_NAME["poor"]
    found = diagnose(shim, "importance_diagnostics", shim.Case(known.program), num_particles=2000)
    _, prior, likelihood = (part[..., 0] for part in known.tables(np.zeros(1), 0))
    exact = np.exp(prior + likelihood - np.logaddexp.reduce(prior + likelihood, axis=0))
    probs = found.expectation(lambda latents: np.stack([latents["z"] == i for i in range(3)], -1))
    assert probs.shape == (N, 3)
    error = np.sqrt(exact.T * (1 - exact.T) / found.ess[:, None])
    np.testing.assert_array_less(np.abs(probs - exact.T), 5 * error + 0.005)
    with pytest.raises(ValueError, match=r"`fn` must return an array of shape \(2000, 7\)"):
        found.expectation(lambda latents: latents["z"].mean(1))
    with pytest.raises(ValueError, match="too many to be kept"):
        found._replace(draws=None).expectation(lambda latents: latents["z"])


@pytest.mark.parametrize("plates", [(4,), (2, 2)])
def test_expectations_that_mix_are_refused_whatever_their_shape(backend, plates):
    """As many draws as data as entries of each: shapes tell nothing."""
    rng = np.random.default_rng(0)
    values = {"z": rng.integers(3, size=(4, *plates, 4)), "mu": rng.normal(size=4)}
    axes = {"z": tuple(range(1, 1 + len(plates))), "mu": ()}
    log_weights = rng.normal(size=(4, *plates))
    draws = backend.module("diagnostics.verdicts").WeightedDraws(values, log_weights, axes)
    weights = np.exp(log_weights) / np.exp(log_weights).sum(0)
    with pytest.raises(ValueError, match=r"`fn` asks for 'y'; the latents are \['mu', 'z'\]"):
        draws.expectation(lambda v: v["y"])
    with pytest.raises(ValueError, match="`fn` must be a function of the latents; got 3"):
        draws.expectation(3)
    none = draws._replace(log_weights=np.where(np.arange(2) == 1, -np.inf, log_weights[..., :2]))
    if plates == (2, 2):  # of data of which no draw is possible there is nothing
        assert np.isnan(none.expectation(lambda v: v["z"])[:, 1]).all()
    kept = draws.expectation(lambda v: v["z"] == 1)
    np.testing.assert_allclose(kept, (weights[..., None] * (values["z"] == 1)).sum(0))
    wide = (slice(None), *[None] * len(plates))
    sums = draws.expectation(lambda v: v["z"].sum(-1) + v["mu"][wide])
    expected = weights * (values["z"].sum(-1) + values["mu"][wide])
    np.testing.assert_allclose(sums, expected.sum(0))
    draws.expectation(lambda v: v["z"] + rng.normal(size=v["z"].shape))  # noise is its own
    with pytest.raises(ValueError, match="numbers of each datum by itself"):
        draws.expectation(lambda v: v["z"] - v["z"].mean(axes["z"], keepdims=True))
    with pytest.raises(ValueError, match="numbers of each datum by itself"):
        draws.expectation(lambda v: np.swapaxes(v["z"], 1, -1).reshape(v["z"].shape))
    with pytest.raises(ValueError, match="numbers of each draw by itself"):
        draws.expectation(lambda v: v["z"] - v["z"].mean(0))


def test_expectations_of_what_is_shared_are_the_exact_posterior(thrifty_shim):
    known = BY_NAME["unknown means, over-dispersed"]
    options = {"num_particles": 100, "num_shared": 400}
    case = thrifty_shim.Case(known.program)
    found = diagnose(thrifty_shim, "importance_diagnostics", case, **options)
    grid = np.linspace(-6, 6, 2001)
    joint = responsibilities(known.data["x"], grid)
    log_p = normal(grid, 0.0) + np.logaddexp.reduce(joint, axis=0).sum(0)
    weights = np.exp(log_p - np.logaddexp.reduce(log_p))
    mean = weights @ grid
    spread = np.sqrt(weights @ (grid - mean) ** 2)
    error = 5 * spread / np.sqrt(found.shared.ess)
    assert abs(found.expectation(lambda latents: latents["mu"]) - mean) < error < 2 * spread
    share = found.expectation(lambda latents: (latents["z"] == 1).mean(-1))
    codes = np.exp(joint - np.logaddexp.reduce(joint, axis=0)) @ weights
    assert abs(share - codes[1].mean()) < 5 * 0.2 / np.sqrt(found.shared.ess)


# Labels


@pytest.mark.thrifty
def test_dims_and_coords_have_the_names_that_are_given(shim):
    case = shim.Case(BY_NAME["latent classes, masked"].program)
    names, answers = [f"row {i}" for i in range(N)], ["a", "b", "c", "d"]
    options = {"num_draws": 5, "groups": ("posterior", "observed_data", "vi_stats")}
    labels = {"coords": {"data": names, "answer": answers}, "dims": {"x": ["answer"]}}
    idata = diagnose(shim, "to_arviz", case, **options, **labels)
    assert idata["observed_data"]["x"].dims == ("data", "answer")
    assert list(idata["observed_data"]["answer"].values) == answers
    assert (
        list(idata["posterior"]["data"].values) == list(idata["vi_stats"]["data"].values) == names
    )
    wrong = {"coords": {"data": names[1:]}}, {"coords": {"rows": names}}, {"dims": {"y": ["a"]}}
    texts = "`coords` has 6 labels for 'data', which has 7", "`coords` has .'rows'.", "`dims` has"
    for labels, text in zip(wrong, texts, strict=True):
        with pytest.raises(ValueError, match=text):
            diagnose(shim, "to_arviz", case, **options, **labels)
    with pytest.raises(ValueError, match=r"the 1 event dims of 'x', \['x_dim_0'\]; got"):
        diagnose(shim, "to_arviz", case, **options, dims={"x": ["a", "b"]})
    with pytest.raises(ValueError, match=r"of 'z', which has none; got \['a'\]"):
        diagnose(shim, "to_arviz", case, **options, dims={"z": ["a"]})


def test_names_and_labels_are_lists(backend):
    labels_of = backend.module("diagnostics.names").labels_of
    for groups in ("posterior", None, 3, [3]):
        with pytest.raises(ValueError, match=r'`groups` must be names, as in `\("posterior",\)`'):
            labels_of(groups, None, None)
    for coords in ("abc", 3, None, np.zeros((3, 2)), (i for i in range(3))):
        with pytest.raises(ValueError, match="`coords` must have a list of labels for 'data'; got"):
            labels_of((), {"data": coords}, None)
    for dims in ("pixel", [3], None, 3):
        with pytest.raises(ValueError, match=r"`dims` must have a list of names for 'x', as `\["):
            labels_of((), None, {"x": dims})
    for wrong in ([("data", [0, 1])], "data"):
        with pytest.raises(ValueError, match="`coords` must be a dict of lists"):
            labels_of((), wrong, None)
        with pytest.raises(ValueError, match="`dims` must be a dict of lists"):
            labels_of((), None, wrong)
    assert labels_of(("prior",), {"data": range(3)}, {"x": ("a", "b")}).dims == {"x": ("a", "b")}


def vectors(ppl, data):
    with ppl.plate("data", 3):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.zeros(3)))
        ppl.sample(
            "x", ppl.dist.Normal(z[..., None] + ppl.zeros(2), 1.0).to_event(1), obs=data["x"]
        )


def of_vectors(ppl, data):
    with ppl.plate("data", 3):
        ppl.sample("z", ppl.dist.Bernoulli(logits=data["x"].sum(-1)))


@pytest.mark.thrifty
def test_dims_of_an_event_are_named_in_all_groups_that_have_them(shim):
    case = shim.Case(program_of(vectors, of_vectors, {}, {"x": np.arange(6.0).reshape(3, 2)}))
    idata = diagnose(shim, "to_arviz", case, num_draws=4, dims={"x": ["pixel"]})
    assert idata["observed_data"]["x"].dims == ("data", "pixel")
    assert idata["posterior_predictive"]["x"].dims == ("chain", "draw", "data", "pixel")
    assert idata["log_likelihood"]["x"].dims == ("chain", "draw", "data")


@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_names_of_scopes_are_found_again_in_a_file(name, tmp_path):
    pytest.importorskip("torch" if name == "pyro" else "jax")
    shim = importlib.import_module(f"{name}_shim")
    home = "pyro.contrib.autoname" if name == "pyro" else "numpyro.handlers"
    scope = importlib.import_module(home).scope
    known = BY_NAME["poor"]
    case = shim.Case(known.program)

    class Scoped:
        model, guide = (scope(program, prefix="inner") for program in (case.model, case.guide))
        data, params = case.data, case.params

    to_arviz = importlib.import_module(f"{name}_dvae.diagnostics").to_arviz
    idata = shim.diagnose(to_arviz, Scoped, num_draws=4)
    path = str(tmp_path / "idata.nc")
    idata.to_netcdf(path)
    found = arviz.from_netcdf(path)
    assert group_names(found) == group_names(idata)
    assert found["posterior"]["inner.z"].shape == (1, 4, N)
    assert found["log_likelihood"]["inner.x"].shape == (1, 4, N)
    np.testing.assert_array_equal(found["posterior"]["inner.z"], idata["posterior"]["inner.z"])
