"""Diagnostics of programs with marked sites are those of the programs that are summed by hand."""

import importlib

import numpy as np
import pytest
from enumerated_zoo import BY_HAND
from host_zoo import Host


@pytest.fixture(scope="module", params=["pyro", pytest.param("numpyro", marks=pytest.mark.slow)])
def kit(request):
    library = pytest.importorskip({"pyro": "torch", "numpyro": "funsor"}[request.param])
    if request.param == "pyro":
        library.set_default_dtype(library.float64)
    yield Kit(request.param)
    if request.param == "pyro":
        library.set_default_dtype(library.float32)


class Kit:
    """Each diagnostic of a package, of a pair by name, marked or summed by hand."""

    def __init__(self, package):
        self.host = importlib.import_module(f"host_{package}")
        self.diagnostics = importlib.import_module(f"{package}_dvae.diagnostics")
        self.key = ()
        if package == "numpyro":
            self.key = (importlib.import_module("jax").random.key(0),)

    def __call__(self, name, pair, *, by_hand=False, **options):
        marked, summed, guide, params = BY_HAND[pair]
        arrays = {key: np.asarray(value, dtype=float) for key, value in params.items()}
        host = Host(pair, summed if by_hand else marked, guide, arrays, {}, 9)
        model, guide, leaves = self.host.programs(host)
        if self.key:
            options["params"] = leaves
        else:
            importlib.import_module("pyro").set_rng_seed(0)
        return getattr(self.diagnostics, name)(*self.key, (model, guide), **options)


def test_the_gap_is_that_of_a_sum_by_hand(kit):
    found, expected = (kit("posterior_gap", "upstream", by_hand=b) for b in (False, True))
    for name in ("log_evidence", "elbo"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`marginal`")  # the guide of what is shared is a rough one
def test_arviz_has_the_data_and_what_the_sum_says_of_them(kit):
    groups = ("posterior", "log_likelihood", "observed_data", "posterior_predictive")
    options = {"num_draws": 40, "groups": groups}
    found, expected = (kit("to_arviz", "halves", by_hand=b, **options) for b in (False, True))
    assert set(found["posterior"].data_vars) == {"loc", "u"}
    np.testing.assert_array_equal(found["posterior"]["u"], expected["posterior"]["u"])
    likelihoods = (each["log_likelihood"]["x"] for each in (found, expected))
    np.testing.assert_allclose(*likelihoods, rtol=1e-4)
    np.testing.assert_allclose(found["observed_data"]["x"], [-0.5, 2.0])
    assert "x" in found["posterior_predictive"]


def test_the_guide_is_weighed_as_by_hand(kit):
    found, expected = (
        kit("importance_diagnostics", "halves", by_hand=b, num_particles=100) for b in (False, True)
    )
    np.testing.assert_allclose(found.elbo, expected.elbo, rtol=1e-4)
    np.testing.assert_allclose(found.ess, expected.ess, rtol=1e-3)


def test_a_latent_without_a_density_of_its_own_is_refused(kit):
    words = (
        "site 'u' depends on a site that is enumerated.* Sample the enumerated site in the guide"
    )
    with pytest.raises(ValueError, match=words):
        kit("importance_diagnostics", "upstream")


def test_the_posterior_of_a_marked_site_is_refused_by_name(kit):
    with pytest.raises(ValueError, match=r"`sites`: 'z' is not .* enumerated is summed out"):
        kit("discrete_posterior", "halves", sites=["z"])
