"""How often exact guides are called miscalibrated, over 200 repeats: as often as is said.

The programs of `calibration_zoo` run in NumPy here, so that what is tested is how ranks are judged;
`test_calibration_shared` runs them in the packages, once by default and 200 times with the slow
tests, as three of the six models here.
"""

import importlib
import importlib.util

import numpy as np
import pytest
from calibration_zoo import KNOWN, WRONG
from numpy_programs import Runner
from scipy import stats

NUM_REPEATS, EACH, NUM_DRAWS, NUM_BINS = 200, 10, 15, 8
PLATES = {name: ("data",) for name in KNOWN} | {"groups": ("rows", "groups"), "switch": ()}


@pytest.fixture(scope="module")
def room():
    """That of one package: the files are the same in both, see `test_identical`."""
    name = "pyro" if importlib.util.find_spec("torch") else "numpyro"
    return importlib.import_module(f"{name}_dvae.diagnostics")


def simulated(room, name, rng, changes):
    """What a package hands to its tally: the truth first, then draws of the guide."""
    known, plates = KNOWN[name], PLATES[name]
    num_dims = max(len(plates), 1)
    truth = Runner(rng, 1, num_dims).run(known.model, known.data, observes=False)
    data = {**known.data, "x": truth["x"].value[0]}
    if "seen" in data:
        data["x"] = np.where(data["seen"], data["x"], 1e3)
    runner = Runner(rng, NUM_DRAWS, num_dims)
    drawn = runner.run(lambda ppl, data: known.guide(ppl, data, **changes), data)
    latents = {n: np.concatenate([truth[n].value, site.value]) for n, site in drawn.items()}
    sites = Runner(rng, 1 + NUM_DRAWS, num_dims).run(known.model, data, latents)
    return as_handed(room, name, sites, latents)


def as_handed(room, name, sites, latents):
    plates, shared = PLATES[name], KNOWN[name].shared
    arrays = importlib.import_module(f"{room.__name__}.arrays")
    uniformity = importlib.import_module(f"{room.__name__}.uniformity")

    def named(site, values):
        dims = ("data",) if name == "switch" and site == "z" else plates
        dims = {"mu": (), "s": (), "level": ("groups",)}.get(site, dims)
        sizes = {"data": 6, "rows": 6, "groups": 4}
        return arrays.NamedArray(dims, values.reshape(len(values), *(sizes[d] for d in dims)))

    def total(names):
        parts = [sites[n].log_prob for n in names]
        return sum(parts) if parts else np.zeros((len(latents["z"]), 1))

    own = total([n for n in sites if n not in shared])
    shared_log_p = total(shared).reshape(len(own), -1).sum(1)
    return uniformity.Simulated(
        {n: named(n, values) for n, values in latents.items()},
        {n: named(n, sites[n].counted[:1]) for n in latents},
        (own if plates else own.sum(1)).reshape(len(own), *own.shape[1:] if plates else ()),
        shared_log_p,
    )


def reports(room, name, num_repeats, changes=None, each=EACH):
    uniformity = importlib.import_module(f"{room.__name__}.uniformity")
    rng = np.random.default_rng(1)
    for _ in range(num_repeats):
        tally = uniformity.Tally(PLATES[name], KNOWN[name].shared, each, NUM_DRAWS, NUM_BINS, rng)
        for _ in range(each):
            tally.add(simulated(room, name, rng, changes or {}))
        yield tally.report()


SLOW = {"missing", "groups", "subsample"}
MODELS = [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in KNOWN]


@pytest.mark.parametrize("name", MODELS)
def test_exact_guides_fail_at_the_stated_rate(room, name):
    found = list(reports(room, name, NUM_REPEATS))
    failed = sum(bool(report.miscalibrated) for report in found)
    # shared by tests that are not independent, 1 % is the most
    assert stats.binomtest(failed, NUM_REPEATS, 0.01, alternative="greater").pvalue > 1e-4
    for quantity in found[0].p_values:
        p_values = np.array([np.ravel(report.p_values[quantity])[0] for report in found])
        for level in (0.05, 0.2):
            below = int((p_values <= level).sum())
            assert stats.binomtest(below, NUM_REPEATS, level, "greater").pvalue > 1e-4
        # discrete p-values are below a level less often; not much less
        below = int((p_values <= 0.3).sum())
        assert stats.binomtest(below, NUM_REPEATS, 0.15, "less").pvalue > 1e-4


@pytest.mark.parametrize("name", WRONG)
def test_wrong_guides_are_found(room, name):
    model, changes, where = WRONG[name]
    (found,) = reports(room, model, 1, changes, each=200)
    assert where in {each.removesuffix(" of all") for each in found.miscalibrated}
