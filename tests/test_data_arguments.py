"""Which argument is the data: what a site observes whatever is put in it, never by chance."""

import importlib

import numpy as np
import pytest

ROWS = 5
X = np.linspace(-1.0, 1.0, ROWS)


class Programs:
    """Programs of several arguments, of one package."""

    def __init__(self, name):
        pytest.importorskip("torch" if name == "pyro" else "jax")
        self.ppl = importlib.import_module(name)
        self.dist = importlib.import_module(f"{name}.distributions")
        self.array = importlib.import_module("torch" if name == "pyro" else "jax.numpy").asarray
        self.is_jax = name == "numpyro"
        diagnostics = importlib.import_module(f"{name}_dvae.diagnostics")
        self.simulate = diagnostics.simulation_based_calibration

    def pair(self, observe, read):
        """A model that observes one thing, and a guide that reads another."""

        def model(inputs, targets):
            with self.ppl.plate("data", ROWS):
                z = self.ppl.sample("z", self.dist.Bernoulli(0.5))
                fn = self.dist.Normal(2.0 * z - 1.0, 1.0)
                self.ppl.sample("x", fn, obs=observe(inputs, targets))

        def guide(inputs, targets):
            with self.ppl.plate("data", ROWS):
                logits = read(inputs, targets)
                self.ppl.sample("z", self.dist.Bernoulli(logits=logits))

        return model, guide

    def calibrate(self, pair, *data, **options):
        data = [self.array(each) if isinstance(each, np.ndarray) else each for each in data]
        if not self.is_jax:
            self.ppl.set_rng_seed(0)
            return self.simulate(pair, *data, num_simulations=20, **options)
        key = importlib.import_module("jax").random.key(0)
        return self.simulate(key, pair, *data, num_simulations=20, **options)


@pytest.fixture(scope="module", params=["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
def programs(request):
    return Programs(request.param)


def targets(inputs, targets):
    return targets


def blind(inputs, targets):
    return 0.0 * targets


def exact(inputs, targets):
    return 2.0 * targets


def by_inputs(inputs, targets):
    return 2.0 * inputs


ZEROS = np.zeros(ROWS)
ARGUMENTS = {
    "others": (X + 1.0, X),
    "copies": (X, X.copy()),
    "one array twice": (X, X),
    "zeros": (ZEROS, ZEROS.copy()),
    "wider": (np.zeros((ROWS, 3)), X),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_argument_that_is_observed_is_found(programs, name):
    found = programs.calibrate(programs.pair(targets, exact), *ARGUMENTS[name])
    assert found.miscalibrated == []
    found = programs.calibrate(programs.pair(targets, blind), *ARGUMENTS[name])
    assert found.miscalibrated == ["log_p"]


@pytest.mark.parametrize("name", ["one array twice", "copies", "zeros"])
def test_a_guide_that_reads_the_other_one_is_asked_about(programs, name):
    pair = programs.pair(targets, by_inputs)
    with pytest.raises(
        ValueError, match=r"'x' observes the argument 'targets'; the guide reads 'inp"
    ):
        programs.calibrate(pair, *ARGUMENTS[name])
    both = programs.calibrate(pair, *ARGUMENTS[name], data=("targets", "inputs"))
    assert both.miscalibrated == []
    if name != "zeros":  # as a covariate, which tells the guide nothing of what is simulated
        one = programs.calibrate(pair, *ARGUMENTS[name], data="targets")
        assert "log_p" in one.miscalibrated


def test_a_name_that_cannot_be_of_the_data_is_refused(programs):
    """It was left out without a word, and the guide then read other data than were simulated."""
    pair, data = programs.pair(targets, by_inputs), ARGUMENTS["wider"]
    with pytest.raises(ValueError, match=r"`data` names 'inputs', of shape \(5, 3\).*shape \(5,\)"):
        programs.calibrate(programs.pair(targets, exact), *data, data=("targets", "inputs"))
    for wrong in (3, [3]):
        with pytest.raises(ValueError, match="`data` must be the name of an argument, a sequence"):
            programs.calibrate(pair, *ARGUMENTS["others"], data=wrong)


@pytest.mark.parametrize(
    "observe",
    [lambda i, t: 2.0 * t, lambda i, t: t + 1.0, lambda i, t: -t, lambda i, t: t[::1] * i],
)
def test_what_is_computed_is_refused(programs, observe):
    with pytest.raises(ValueError, match=r"site 'x' observes none of the arguments as it is \(tri"):
        programs.calibrate(programs.pair(observe, exact), ZEROS, ZEROS.copy())
    with pytest.raises(ValueError, match="site 'x' observes none of the arguments"):
        programs.calibrate(programs.pair(observe, exact), X, ZEROS, data="targets")


def test_an_argument_of_two_sites_is_named(programs):
    """What is simulated of one cannot be that of the other."""
    ppl, dist = programs.ppl, programs.dist

    def model(x):
        with ppl.plate("data", len(x)):
            z = ppl.sample("z", dist.Bernoulli(0.4))
            for name in ("x", "again"):
                ppl.sample(name, dist.Normal(2.0 * z, 1.0), obs=x)

    def guide(x):
        with ppl.plate("data", len(x)):
            ppl.sample("z", dist.Bernoulli(logits=x))

    with pytest.raises(ValueError, match=r"'(x|again)' and '(x|again)' observe the same .* 'x'"):
        programs.calibrate((model, guide), X)


def test_what_may_be_either_is_asked_for(programs):
    pair = programs.pair(lambda i, t: t + i, exact)  # with zeros for the other, it is as it is
    with pytest.raises(ValueError, match=r"any of \['inputs', 'targets'\].*data='inputs'"):
        programs.calibrate(pair, ZEROS, ZEROS.copy())


def test_names(programs):
    pair = programs.pair(lambda i, t: t["x"], lambda i, t: 2.0 * t["x"])
    given = {"x": programs.array(X), "other": programs.array(X)}
    for data in ("targets['x']", {"x": "targets['x']"}, None):
        assert programs.calibrate(pair, 3, given, data=data).miscalibrated == []
    with pytest.raises(ValueError, match=r"`data` must name arguments .*got 'images'"):
        programs.calibrate(pair, 3, given, data="images")
    with pytest.raises(ValueError, match=r"`data` names sites \['y'\]"):
        programs.calibrate(pair, 3, given, data={"y": "targets"})


def test_a_truncated_guide_is_refused(programs):
    model, guide = programs.pair(targets, exact)

    class Kept:
        def __call__(self, *args):
            return guide(*args)

        def for_data(self, *data):
            raise NotImplementedError

    with pytest.raises(ValueError, match="keeps a posterior of each row"):
        programs.calibrate((model, Kept()), X + 1.0, X)


@pytest.mark.parametrize("is_listed", [False, True])
def test_parameters_of_each_datum_are_refused(programs, is_listed):
    """An exact guide of these data is none of simulated ones."""
    model, _ = programs.pair(targets, exact)
    autoguide = importlib.import_module(f"{programs.ppl.__name__}.infer.autoguide")
    guides = importlib.import_module(f"{programs.ppl.__name__}_dvae.guides")
    guide, options = guides.AutoDiscrete(model), {}
    if is_listed:
        hidden = programs.ppl.handlers.block(model, hide=["z"]) if programs.is_jax else model
        guide = autoguide.AutoGuideList(hidden)
        guide.append(guides.AutoDiscrete(model))
    if programs.is_jax:
        options = {"params": {"z_auto_logits": programs.array(2.0 * X[:, None])}}
    with pytest.raises(ValueError, match="AutoDiscrete has parameters for the data"):
        programs.calibrate((model, guide), X + 1.0, X, **options)


def test_missing_data_stay_missing(programs):
    """NaN, and integers for the data."""
    ppl, dist = programs.ppl, programs.dist
    where = importlib.import_module("torch" if not programs.is_jax else "jax.numpy").where

    def model(counts, reading):
        missing = reading != reading
        with ppl.plate("data", ROWS):
            z = ppl.sample("z", dist.Bernoulli(0.5))
            ppl.sample("n", dist.Poisson(1.0 + 2.0 * z), obs=counts)
            fn = dist.Normal(2.0 * z - 1.0, 1.0).mask(~missing)
            ppl.sample("x", fn, obs=where(missing, 0.0, reading))

    def guide(counts, reading):
        shown = where(reading != reading, 0.0, reading)
        with ppl.plate("data", ROWS):  # Poisson of rates 3 and 1
            ppl.sample("z", dist.Bernoulli(logits=2.0 * shown + counts * np.log(3.0) - 2.0))

    reading = np.where(np.arange(ROWS) < 3, np.nan, X)
    found = programs.calibrate((model, guide), np.arange(ROWS), reading)
    assert found.miscalibrated == []


@pytest.mark.parametrize("guide_reads", ["both", "a copy"])
def test_two_sites_that_observe_equal_arguments(programs, guide_reads):
    """Each has data of its own; what is named is named for each."""
    ppl, dist = programs.ppl, programs.dist

    def model(first, second, copy):
        with ppl.plate("data", ROWS):
            z = ppl.sample("z", dist.Bernoulli(0.5))
            ppl.sample("x", dist.Normal(2.0 * z - 1.0, 1.0), obs=first)
            ppl.sample("y", dist.Normal(1.0 - 2.0 * z, 1.0), obs=second)

    def guide(first, second, copy):
        read = copy if guide_reads == "a copy" else first
        with ppl.plate("data", ROWS):
            ppl.sample("z", dist.Bernoulli(logits=2.0 * read - 2.0 * second))

    data = programs.array(X)
    if guide_reads == "both":
        found = programs.calibrate((model, guide), data, data, data + 1.0)
        assert found.miscalibrated == []
        return
    with pytest.raises(ValueError, match=r"again, data=\{'x': \('first', 'copy'\)\}, or not"):
        programs.calibrate((model, guide), data, data + 1.0, data)
    named = {"x": ("first", "copy")}
    found = programs.calibrate((model, guide), data, data + 1.0, data, data=named)
    assert found.miscalibrated == []
