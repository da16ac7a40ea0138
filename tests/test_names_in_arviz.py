"""Names of sites and plates that clash in ArviZ are refused, with what to rename."""

import importlib

import numpy as np
import pytest

X = np.array([1.0, 0.2, 2.0, 1.0])
PACKAGES = ["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)]


def to_arviz(name, plate="data", observed="y", latents=("z",), **options):
    ppl = pytest.importorskip(name)
    array = importlib.import_module({"pyro": "torch", "numpyro": "jax.numpy"}[name]).asarray
    keys, x = (), array(X.astype(np.float32))
    if name == "numpyro":
        keys = (importlib.import_module("jax").random.key(0),)

    def model(x):
        with ppl.plate(plate, 4):
            z, *_ = (ppl.sample(n, ppl.distributions.Bernoulli(0.4 + 0 * x)) for n in latents)
            ppl.sample(observed, ppl.distributions.Normal(2.0 * z, 1.0), obs=x)
            ppl.sample("u", ppl.distributions.Normal(1.0 * z, 1.0), obs=x)

    def guide(x):
        with ppl.plate(plate, 4):
            for each in latents:
                ppl.sample(each, ppl.distributions.Bernoulli(0.3 + 0 * x))

    diagnose = importlib.import_module(f"{name}_dvae.diagnostics").to_arviz
    return diagnose(*keys, (model, guide), x, num_draws=30, **options)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"observed": "marginal"}, "evidence of each datum as 'marginal'.* rename the site"),
        ({"plate": "chain"}, "`posterior`: a dim of 'z' is called 'chain'.* Rename the plate"),
        ({"plate": "draw"}, "`posterior`: a dim of 'z' is called 'draw'"),
        ({"plate": "z_code"}, "`vi_stats`: a dim of '.*' is called 'z_code'"),
        ({"latents": ("a/b", "a.b")}, "'a/b' is 'a.b' in ArviZ.* rename one of the two"),
    ],
)
def test_names_that_clash(name, options, words):
    with pytest.raises(ValueError, match=words):
        to_arviz(name, **options)


@pytest.mark.parametrize("name", PACKAGES)
def test_groups_without_the_clash_are_there(name):
    found = to_arviz(name, observed="marginal", groups=("posterior", "observed_data"))
    assert set(found["observed_data"].data_vars) == {"marginal", "u"}


@pytest.mark.parametrize("name", PACKAGES)
def test_sites_are_in_the_order_of_the_program(name):
    """NumPyro's were in that of the alphabet."""
    found = to_arviz(name, latents=("z", "a"), groups=("posterior", "observed_data"))
    assert list(found["posterior"].data_vars) == ["z", "a"]
    assert list(found["observed_data"].data_vars) == ["y", "u"]
