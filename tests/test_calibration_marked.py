"""Calibration of models whose density is not that of what they draw, or of sites without draws."""

import importlib

import numpy as np
import pytest

X = np.array([-0.3, 0.8, 1.7], np.float32)


@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_marked_sites_are_refused_by_name(name):
    ppl = pytest.importorskip(name)
    dist, key = ppl.distributions, ()
    if name == "pyro":
        x = importlib.import_module("torch").as_tensor(X)
    else:
        x, key = X, (importlib.import_module("jax").random.key(0),)

    def model(x):
        with ppl.plate("data", 3):
            k = ppl.sample("k", dist.Bernoulli(0.3))
            z = ppl.sample("z", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
            ppl.sample("x", dist.Normal(k + 2 * z, 1.0), obs=x)

    def guide(x):
        with ppl.plate("data", 3):
            ppl.sample("k", dist.Bernoulli(0.3))

    calibrate = importlib.import_module(f"{name}_dvae.diagnostics").simulation_based_calibration
    with pytest.raises(ValueError, match=r"\['z'\] are summed out.*`importance_diagnostics`"):
        calibrate(*key, (model, guide), x)


LOGIT, NUM_DATA = np.log(0.4 / 0.6), 40


def pair_of(name, scaled=(), factor=0.0):
    """The exact guide of z, unless a scale or factor counts; scales of 1/10 of some sites."""
    ppl = importlib.import_module(name)
    array = importlib.import_module({"pyro": "torch", "numpyro": "jax.numpy"}[name]).asarray
    handlers = ppl.poutine if name == "pyro" else ppl.handlers
    tenth = {site: handlers.scale(scale=0.1 if site in scaled else 1.0) for site in ("q", "z", "x")}

    def model(x):
        with ppl.plate("data", NUM_DATA):
            with tenth["z"]:
                z = ppl.sample("z", ppl.distributions.Bernoulli(logits=array(LOGIT)))
            if factor:
                ppl.factor("f", factor * z)
            with tenth["x"]:
                ppl.sample("x", ppl.distributions.Normal(2.0 * z, 1.0), obs=x)

    def guide(x):
        with ppl.plate("data", NUM_DATA), tenth["q"]:
            ppl.sample("z", ppl.distributions.Bernoulli(logits=LOGIT + 2 * x - 2))

    return model, guide


def calibrate(name, pair):
    ppl, x = pytest.importorskip(name), np.random.default_rng(8).normal(size=NUM_DATA)
    find = importlib.import_module(f"{name}_dvae.diagnostics").simulation_based_calibration
    if name == "pyro":
        ppl.set_rng_seed(0)
        return find(pair, importlib.import_module("torch").as_tensor(x).float())
    return find(importlib.import_module("jax").random.key(0), pair, x)


@pytest.mark.parametrize("name", ["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": 2.0}, "'f' is a factor: what .* counts .*`posterior_gap`"),
        ({"scaled": "x"}, "a scale of its own weighs '[zx]'.*`posterior_gap`"),
        ({"scaled": "z"}, "a scale of its own weighs 'z'"),
        ({"scaled": "zx"}, "a scale of its own weighs"),
    ],
)
def test_what_no_data_are_drawn_from_is_refused(name, options, words):
    pytest.importorskip(name)
    with pytest.raises(ValueError, match=words):
        calibrate(name, pair_of(name, **options))


@pytest.mark.parametrize("name", ["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
@pytest.mark.parametrize("scaled", ["", "qzx"])
def test_a_scale_of_everything_tempers_nothing(name, scaled):
    """The loss is then a tenth of what it was, and least at the same guide."""
    pytest.importorskip(name)
    assert "NOT" not in str(calibrate(name, pair_of(name, scaled))).split("\n")[0]
