"""Runs from different starts as chains of ArviZ, their labels aligned where the model allows it."""

import dataclasses
import functools
import importlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

CENTRES = np.array([-4.0, 0.0, 5.0])
X = (CENTRES[:, None] + np.random.default_rng(0).normal(0, 0.7, (3, 4))).ravel().astype(np.float32)
STARTS = ([4.0, -3.0, 1.0], [0.5, 4.0, -5.0], [-3.0, 1.0, 4.0])  # each is called otherwise


def pyro_kit():
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI

    names = {n: importlib.import_module(f"pyro_dvae.{n}") for n in ("fit", "diagnostics", "infer")}

    def pair(weights, shift):
        starts = itertools.cycle(STARTS)

        def model(x):
            means = pyro.param("means", lambda: torch.tensor(next(starts)))
            pyro.deterministic("centres", means + torch.tensor(shift))
            pyro.deterministic("fixed", torch.tensor([1.0, 2.0, 3.0]))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.tensor(weights)))
                pyro.sample("x", dist.Normal(means[z], 1.0), obs=x)

        def guide(x):
            logits = pyro.param("logits", torch.zeros(len(x), 3))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Categorical(logits=logits))

        return model, guide

    def restarts(weights=(1 / 3, 1 / 3, 1 / 3), shift=0.0):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide = pair(weights, shift)
        elbo = names["infer"].Exact_ELBO

        def make():
            return SVI(model, guide, pyro.optim.Adam({"lr": 0.2}), elbo())

        return names["fit"].fit_restarts(
            make, torch.tensor(X), num_restarts=3, num_steps=60, progress=False
        )

    def compare(result, **options):
        return names["diagnostics"].compare_restarts(result, torch.tensor(X), **options)

    def one(result, **options):
        return names["diagnostics"].to_arviz(result, torch.tensor(X), **options)

    return SimpleNamespace(**locals())


def numpyro_kit():
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    names = {
        n: importlib.import_module(f"numpyro_dvae.{n}") for n in ("fit", "diagnostics", "infer")
    }
    key = jax.random.key(0)

    def pair(weights, shift):
        starts = itertools.cycle(STARTS)

        def first(key):
            return jnp.array(next(starts))

        def model(x):
            means = numpyro.param("means", first)
            numpyro.deterministic("centres", means + shift)
            numpyro.deterministic("fixed", jnp.array([1.0, 2.0, 3.0]))
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Categorical(jnp.array(weights)))
                numpyro.sample("x", dist.Normal(means[z], 1.0), obs=x)

        def guide(x):
            logits = numpyro.param("logits", jnp.zeros((len(x), 3)))
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", dist.Categorical(logits=logits))

        return model, guide

    def restarts(weights=(1 / 3, 1 / 3, 1 / 3), shift=0.0):
        model, guide = pair(weights, shift)
        infer = names["infer"]

        def make():
            return infer.SVI(model, guide, numpyro.optim.Adam(0.2), infer.Exact_ELBO())

        return names["fit"].fit_restarts(key, make, X, num_restarts=3, num_steps=60, progress=False)

    def compare(result, **options):
        return names["diagnostics"].compare_restarts(key, result, X, **options)

    def one(result, **options):
        return names["diagnostics"].to_arviz(key, result, X, **options)

    return SimpleNamespace(**locals())


def _align(package):
    return importlib.import_module(f"{package}.diagnostics.restarts").align_codes


@functools.cache
def made(package):
    pytest.importorskip("torch" if package == "pyro" else "jax")
    kit = {"pyro": pyro_kit, "numpyro": numpyro_kit}[package]()
    kit.result = kit.restarts()
    return kit


@pytest.fixture(params=["pyro", "numpyro"])
def each_kit(request):
    return made(request.param)


@pytest.fixture(params=["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
def kit(request):
    """NumPyro's compiles for a while."""
    return made(request.param)


def test_the_runs_are_kept_the_best_first(kit):
    runs = kit.result.runs
    assert len(runs) == 3
    np.testing.assert_array_equal(*(np.asarray(r.params["means"]) for r in (kit.result, runs[0])))
    orders = {tuple(np.argsort(np.asarray(run.params["means"]))) for run in runs}
    assert len(orders) == 3  # else there would be nothing to align
    assert kit.result.alike == ("logits",)


@pytest.mark.thrifty
def test_labels_of_a_mixture_are_aligned(each_kit):
    kit = each_kit
    found = kit.compare(kit.result, num_draws=60)
    means = found.params["means"]
    np.testing.assert_allclose(means, means[:1].repeat(3, 0), atol=0.5)
    for run, permutation, aligned in zip(
        kit.result.runs, found.permutations["z"], means, strict=True
    ):
        np.testing.assert_array_equal(aligned[permutation], np.asarray(run.params["means"]))
    assert (found.agreement["z"] > 0.9).all()
    posterior = found.to_arviz()["posterior"]
    assert dict(posterior["z"].sizes) == {"chain": 3, "draw": 60, "data": 12}
    np.testing.assert_allclose(posterior["centres"][:, 0], means, rtol=1e-6)
    np.testing.assert_array_equal(posterior["fixed"][:, 0], [[1, 2, 3]] * 3)  # not of the codes
    codes = np.asarray(posterior["z"])
    assert (codes == codes[:1, :1]).mean() > 0.9
    assert found.rhat["fixed"] == 1.0
    assert not {"z", "fixed"} & set(found.differs)
    assert "codes are called as in the best run" in str(found)
    most_likely = np.asarray(found.to_arviz()["vi_stats"]["z_most_likely"])
    assert most_likely.shape == (3, 12)
    np.testing.assert_array_equal(most_likely, most_likely[:1].repeat(3, 0))


@pytest.mark.slow
def test_without_alignment_the_runs_differ(kit):
    apart = kit.compare(kit.result, num_draws=60, align={})
    assert apart.rhat["z"] > 2.0
    assert "z" in apart.differs
    assert "Runs differ in" in str(apart)
    aligned = kit.compare(kit.result, num_draws=60)
    assert aligned.rhat["z"] < apart.rhat["z"]


@pytest.mark.slow
def test_the_elbo_of_each_run_is_that_of_its_own_draws(kit):
    found = kit.compare(kit.result, num_draws=200)
    for run, elbo, error in zip(kit.result.runs, found.elbo, found.elbo_error, strict=True):
        weights = np.asarray(kit.one(run, num_draws=200)["sample_stats"]["log_weight"])
        other = weights.sum(-1)
        assert abs(other.mean() - elbo) < 5 * (error**2 + other.var() / 200) ** 0.5 + 1e-5


def test_a_prior_that_tells_codes_apart_is_not_aligned(kit):
    result = kit.restarts(weights=(0.2, 0.3, 0.5))
    found = kit.compare(result, num_draws=10)
    assert "not found to be the same" in found.unaligned["z"]
    assert not found.permutations
    with pytest.raises(ValueError, match=r"`align`: .* not found to be the same with its 3 codes"):
        kit.compare(result, num_draws=10, align={"z": ("means",)})


def test_what_cannot_be_compared_is_refused(kit):
    with pytest.raises(ValueError, match="at least 2 that did not diverge; it has 0"):
        kit.compare(kit.result.runs[1])
    with pytest.raises(ValueError, match=r"`align`: 'y' is no site with codes; there are \['z'\]"):
        kit.compare(kit.result, num_draws=5, align={"y": ()})
    with pytest.raises(ValueError, match=r"`align`: \['x'\] have no axis of the 3 codes"):
        kit.compare(kit.result, num_draws=5, align={"z": ("x",)})
    with pytest.raises(ValueError, match=r"`align`: the model is not found to be the same"):
        kit.compare(kit.result, num_draws=5, align={"z": ()})  # without its means
    with pytest.raises(ValueError, match=r"`quantities` has \['w'\]; the posterior has"):
        kit.compare(kit.result, num_draws=5, quantities=["w"])


def test_runs_differ_by_more_than_the_noise_of_few_draws():
    """Equal runs are told apart as rarely as is said; what is one to rounding never."""
    pytest.importorskip("torch")
    module = importlib.import_module("pyro_dvae.diagnostics.agreement")
    rng = np.random.default_rng(0)
    runs = rng.gamma(2.0, size=(500, 3, 40))
    assert np.mean([module.differ_in_mean(each) for each in runs]) < 0.03
    limit = module.noise_of_rhat(3, 40, 1)
    rhats = np.array([module.rhat_of(each) for each in runs[:200]])
    assert (rhats > 1.01).mean() > 0.3  # as is said of long chains
    assert (rhats > limit).mean() < 0.03
    assert module.rhat_of(np.tile([0.0, 1.0], (3, 20))) < limit  # folded, they are all one value
    apart = runs[0] + np.array([[0.0], [0.0], [2.5]])
    assert module.differ_in_mean(apart)
    assert module.rhat_of(apart) > limit
    exact = np.float32([[-812.4413], [-812.4412], [-812.4413]]).repeat(40, 1)
    assert not module.differ_in_mean(exact)
    assert module.differ_in_mean(exact + np.float32([[0.0], [0.1], [0.0]]))


def test_what_ties_but_for_rounding_is_no_difference():
    """Log weights of equal runs, one mirrored, are summed in single precision in another order."""
    pytest.importorskip("torch")
    xarray = pytest.importorskip("xarray")
    module = importlib.import_module("pyro_dvae.diagnostics.agreement")
    rng = np.random.default_rng(0)
    same = np.array([0.2, 0.2 + 1e-8])[:, None, None] * np.array([1.0, 2.0])
    broken = np.full((2, 400), np.nan)
    posterior = xarray.Dataset(
        {
            "same": (("chain", "draw", "d"), np.tile(same, (1, 400, 1))),
            "broken": (("chain", "draw"), broken),
        }
    )

    counted = np.array([[True, False]] * 2)  # the draws of "z" under a mask stand for nothing
    draws = rng.integers(2, size=(2, 400, 2))
    draws[1, :, 1] = 1
    posterior["z"] = ("chain", "draw", "z_dim_0"), draws
    chains = {"posterior": posterior, "vi_stats": {"z_counted": counted}}
    assert module.rhats_of(chains, np.zeros((2, 400)), ["z"])[0]["z"] < 1.01
    assert module.rhats_of({"posterior": posterior}, np.zeros((2, 400)), ["z"])[0]["z"] > 1.1

    def told(evidence):
        found = module.rhats_of(chains, evidence, None)
        return found[0], module.differences_of(evidence, *found)

    exact = -43.34 + np.array([[0.0], [1e-6]]) + rng.normal(0, 1e-7, (2, 400))
    others = rng.permuted(np.tile(np.repeat([0.0, -3.0], [360, 40]), (2, 1)), axis=1)
    for evidence in (exact, exact + others):
        rhats, verdict = told(evidence)
        assert rhats["evidence"] < 1.01
        assert rhats["same"] == 1.0
        assert np.isnan(rhats["broken"])
        assert verdict == {"differs": (), "undecided": False}
    assert told(exact + np.array([[0.0], [0.002]]))[1]["differs"] == ("evidence",)
    impossible = np.where(np.arange(400) == 7, -np.inf, exact)
    with np.errstate(invalid="ignore"):
        assert not told(impossible)[1]["differs"]
        impossible[0] = exact[0]
        assert told(impossible)[1]["differs"] == ("evidence",)


def test_weights_that_differ_are_not_said_to_agree(kit):
    """Heavy tails hide a difference of the means, and not that of the distributions."""
    found = kit.compare(kit.result, num_draws=50)
    agree, undecided, differ = (
        str(dataclasses.replace(found, differs=differs, undecided=undecided))
        for differs, undecided in [((), False), ((), True), (("z",), False)]
    )
    assert "The runs agree" in agree
    assert "a larger `num_draws` would tell" in undecided
    assert "agree," not in undecided
    assert "Runs differ in z" in differ
    spread = np.ptp(found.params["means"], 0).max()
    size = np.sqrt(np.mean(np.square(found.params["means"])))
    assert f"(root mean square): means {spread:.2g} of {size:.2g}, logits" in agree
    assert "All runs began at the same values of logits, as their programs give" in agree
    packed = {"words": np.array([[1, 2], [3, 4]], np.uint32), "seen": np.array([[True], [False]])}
    assert str(dataclasses.replace(found, params=found.params | packed)) == str(found)
    assert "Parameters" not in str(dataclasses.replace(found, params=packed))
    agreement = type(found).__module__.replace("restarts", "agreement")
    limit = max(1.01, importlib.import_module(agreement).noise_of_rhat(3, 50, 1))
    assert found.undecided == (not found.differs and found.rhat["evidence"] > limit)


@pytest.mark.parametrize("package", ["pyro_dvae", "numpyro_dvae"])
def test_places_that_are_masked_neither_agree_nor_differ(package):
    """They are rows of zeros."""
    pytest.importorskip("torch" if package == "pyro_dvae" else "jax")
    probs = np.array([[0.9, 0.1], [0.0, 0.0], [0.2, 0.8], [0.0, 0.0]])
    permutation, agreement = _align(package)(probs[:, ::-1], probs)
    assert list(permutation) == [1, 0]
    assert agreement == pytest.approx(1.0)
    _, agreement = _align(package)(probs, np.array([[0.8, 0.2], [0.0, 0.0], [0.2, 0.8], [0, 0]]))
    assert agreement == pytest.approx(0.95)
    assert _align(package)(np.zeros((3, 2)), np.zeros((3, 2)))[1] == 1.0


@pytest.mark.parametrize("package", ["pyro", "numpyro"])
def test_latents_are_mirrored_where_two_codes_change_places(package):
    pytest.importorskip("torch" if package == "pyro" else "jax")
    xarray = pytest.importorskip("xarray")
    module = importlib.import_module(f"{package}_dvae.diagnostics.restarts")
    codes = module.Codes(("z",), 2, {"share": (1,), "level": (0,)}, frozenset(), ())
    posterior = {"z": ("n", [0, 1, 1]), "share": ("d", [0.2, 0.9]), "level": ("d", [1.5, -2.0])}
    stats = {"z_most_likely": ("n", [0, 1, 1]), "z_code_share": ("v", [0.3, 0.7])}
    stats["z_probs"] = ("n", "v"), [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]
    table = {"posterior": xarray.Dataset(posterior), "vi_stats": xarray.Dataset(stats)}
    module._rename(module.Renaming(codes, np.array([0, 1])), table)
    np.testing.assert_allclose(table["posterior"]["share"], [0.2, 0.9])
    module._rename(module.Renaming(codes, np.array([1, 0])), table)
    np.testing.assert_allclose(table["posterior"]["z"], [1, 0, 0])
    np.testing.assert_allclose(table["posterior"]["share"], [0.8, 0.1])
    np.testing.assert_allclose(table["posterior"]["level"], [-1.5, 2.0])


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(2, 4), st.integers(0, 10_000))
def test_the_assignment_is_the_best_of_all(places, size, seed):
    probs, reference = np.random.default_rng(seed).dirichlet(np.ones(size), (2, places))

    def score(names):
        return sum((probs[:, old] * reference[:, new]).sum() for old, new in enumerate(names))

    best = max(score(names) for names in itertools.permutations(range(size)))
    for package, library in (("pyro_dvae", "torch"), ("numpyro_dvae", "jax")):
        pytest.importorskip(library)
        permutation, agreement = _align(package)(probs, reference)
        assert score(permutation) == pytest.approx(best)
        renamed = probs[:, np.argsort(permutation)]
        assert agreement == pytest.approx(np.minimum(renamed, reference).sum(1).mean())
