"""Arguments within dicts and lists, arrays of any size beside them, and data that no one sees."""

import importlib

import numpy as np
import pytest
from quiet import arviz, first_only, group_names

ROWS = 5
X = np.linspace(-1.0, 2.0, ROWS)
MEANS = np.array([0.0, 2.0])


class Programs:
    """A mixture of two normals, whose arguments come in one way or another, of one package."""

    def __init__(self, name):
        pytest.importorskip("torch" if name == "pyro" else "jax")
        self.ppl = importlib.import_module(name)
        self.dist = importlib.import_module(f"{name}.distributions")
        self.array = importlib.import_module("torch" if name == "pyro" else "jax.numpy").asarray
        self.diagnostics = importlib.import_module(f"{name}_dvae.diagnostics")
        self.is_jax = name == "numpyro"

    def pair(self, read, power):
        """Programs of arguments of which `read` makes x, the means, and what is seen.

        The guide is exact, but for a power of its odds.
        """

        def model(*args):
            x, means, seen = (self.array(each) for each in read(*args))
            with self.ppl.plate("data", len(x)):
                z = self.ppl.sample("z", self.dist.Bernoulli(0.4))
                loc = means[0] + (means[1] - means[0]) * z
                self.ppl.sample("x", self.dist.Normal(loc, 1.0).mask(seen), obs=x)

        def guide(*args):
            x, means, seen = (self.array(each) for each in read(*args))
            with self.ppl.plate("data", len(x)):
                slope = (means[1] - means[0]) * (x - means.sum() / 2)
                logits = np.log(0.4 / 0.6) + self.array(seen) * slope
                self.ppl.sample("z", self.dist.Bernoulli(logits=power * logits))

        return model, guide

    def __call__(self, name, read, *args, power=1.0, **options):
        function = getattr(self.diagnostics, name)
        if not self.is_jax:
            self.ppl.set_rng_seed(0)
            return function(self.pair(read, power), *args, **options)
        key = importlib.import_module("jax").random.key(0)
        return function(key, self.pair(read, power), *args, **options)


@pytest.fixture(scope="module", params=["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
def programs(request):
    return Programs(request.param)


SEEN = np.ones(ROWS, bool)


def of_dict(data):
    return data["x"], MEANS, data["more"][0]


def of_tables(data):
    return data["x"], data["means"], SEEN


def of_rows(data):
    return data["x"], data["means"], SEEN[: len(data["x"])]


def of_two(x, other):
    return x, MEANS, SEEN


def of_mask(x, seen):
    return x, MEANS, seen


def evidence(x):
    parts = np.log([0.6, 0.4]) - 0.5 * (x[:, None] - MEANS) ** 2
    return np.logaddexp.reduce(parts, axis=1) - 0.5 * np.log(2 * np.pi)


@pytest.mark.parametrize("batch_size", [None, 2, 3])
def test_a_dict_is_cut_as_its_arrays_are(programs, batch_size):
    """Parts of 2, 2 and 1 rows; of 3 and 2."""
    data = {"x": programs.array(X), "more": [programs.array(SEEN)], "text": "kept"}
    found = programs("posterior_gap", of_dict, data, batch_size=batch_size)
    np.testing.assert_allclose(found.log_evidence, evidence(X), rtol=1e-5)
    options = {"batch_size": batch_size, "power": 0.5}
    report = programs("importance_diagnostics", of_dict, data, **options)
    error = 5 * report.iwae_error + 1e-3
    np.testing.assert_array_less(np.abs(report.iwae - evidence(X)), error)


def test_arrays_that_are_not_of_the_rows_are_left_whole(programs):
    data = {"means": programs.array(MEANS), "x": programs.array(X)}  # in JAX's order
    found = programs("posterior_gap", of_rows, data, batch_size=3)
    np.testing.assert_allclose(found.log_evidence, evidence(X), rtol=1e-5)
    with pytest.raises(ValueError, match="of arrays among the arguments, of which there are none"):
        programs("evaluate", lambda none: (X, MEANS, SEEN), None, batch_size=2)


def test_arrays_of_numpy_within_a_dict_have_simulated_data_put_in_them(programs):
    data = {"x": X, "means": MEANS}
    options = {"num_simulations": 40, "data": "argument_0['x']"}
    found = programs("simulation_based_calibration", of_tables, data, **options)
    assert found.miscalibrated == []
    found = programs("simulation_based_calibration", of_tables, data, **options, power=-1.0)
    assert "z" in found.miscalibrated
    np.testing.assert_array_equal(data["x"], X)


@pytest.mark.parametrize("other", [X, X + 1.0])
def test_a_size_tells_no_plate_and_equal_numbers_no_data(programs, other, tmp_path):
    options = {"num_draws": 26, "groups": ("observed_data", "constant_data")}
    x, other = programs.array(X), programs.array(other)
    found = programs("to_arviz", of_two, x, other, **options)
    names = ["argument_0", "argument_1"] if (other == x).all() else ["argument_1"]
    assert list(found["constant_data"]) == names
    assert found["constant_data"]["argument_1"].dims == ("argument_1_dim_0",)
    options["dims"] = {"argument_1": ["data"]}
    found = programs("to_arviz", of_two, x, other, **options)
    assert found["constant_data"]["argument_1"].dims == ("data",)


def test_what_a_dict_holds_is_constant_data_and_found_again_in_a_file(programs, tmp_path):
    data = {"x": programs.array(X), "means": programs.array(MEANS)}
    groups = ("observed_data", "constant_data")
    found = programs("to_arviz", of_tables, data, num_draws=26, groups=groups)
    found.to_netcdf(str(tmp_path / "found.nc"))
    again = arviz.from_netcdf(str(tmp_path / "found.nc"))
    assert list(again["constant_data"]) == ["argument_0['means']"]
    np.testing.assert_allclose(again["constant_data"]["argument_0['means']"], MEANS)


@first_only
def test_what_no_one_sees_has_no_likelihood_and_no_place_for_simulated_data(programs):
    x, seen = programs.array(np.full(ROWS, 1e6)), programs.array(~SEEN)
    found = programs("to_arviz", of_mask, x, seen, num_draws=26)
    assert "log_likelihood" not in group_names(found)
    with pytest.raises(TypeError, match="log likelihood not found"):
        arviz.loo(found, var_name="marginal")
    for power in (1.0, -1.0):  # the prior, or its opposite
        options = {"num_simulations": 100, "power": power}
        found = programs("simulation_based_calibration", of_mask, x, seen, **options)
        assert ("z" in found.miscalibrated) == (power < 0)
    report = programs("importance_diagnostics", of_mask, x, seen)
    np.testing.assert_allclose(report.iwae, 0.0, atol=1e-6)
    assert "-0.00" not in str(report)
