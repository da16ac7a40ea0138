"""The guide of what the data share is not blamed for the noise of sums over the data's latents."""

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of

# Forty sums of a shared level, a normal latent of each, and noise: the level's posterior is normal


ROWS = 40
X = np.round(0.5 + 1.2 * np.random.default_rng(0).normal(size=ROWS), 3)
SPREAD = 1 / np.sqrt(1 + ROWS / 1.25)
MEAN = SPREAD**2 * X.sum() / 1.25


def sums(ppl, data):
    level = ppl.sample("level", ppl.dist.Normal(0.0 * data["q"][0], 1.0))
    with ppl.plate("data", ROWS):
        z = ppl.sample("z", ppl.dist.Normal(level + 0.0 * data["x"], 1.0))
        ppl.sample("coin", ppl.dist.Bernoulli(logits=0.0 * data["x"]))
        ppl.sample("x", ppl.dist.Normal(z, 0.5), obs=data["x"])


def sums_guide(ppl, data):
    """Off by some standard deviations of the level, and by some of each datum's latent."""
    level = ppl.sample("level", ppl.dist.Normal(data["q"][0], SPREAD))
    with ppl.plate("data", ROWS):
        mean = 0.2 * (level + 4 * data["x"]) + data["q"][1]
        ppl.sample("z", ppl.dist.Normal(mean, np.sqrt(0.2)))
        ppl.sample("coin", ppl.dist.Bernoulli(logits=0.0 * data["x"]))


def case_of(shim, shared, local):
    data = {"x": X, "q": np.array([MEAN + shared * SPREAD, local * np.sqrt(0.2)])}
    return shim.Case(program_of(sums, sums_guide, {}, data))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("local", "num_particles"),
    [
        pytest.param(0.0, 30, marks=SLOW),
        (1.0, 50),
        pytest.param(1.0, 300, marks=SLOW),
        pytest.param(2.0, 50, marks=SLOW),
    ],
)
def test_an_exact_guide_is_not_off_by_the_noise_of_others(thrifty_shim, local, num_particles):
    case = case_of(thrifty_shim, 0.0, local)
    found = diagnose(thrifty_shim, "importance_diagnostics", case, num_particles=num_particles)
    assert found.shared.verdict == ("noisy" if num_particles == 50 else "close")
    assert ("undecided, as the noise of the sums" in str(found)) == (num_particles == 50)
    assert ("by the noise of these sums" in str(found)) == (local > 0)
    assert (found.shared.noise > 0.005) == (local > 0)


@pytest.mark.parametrize(
    ("shared", "local", "num_particles"),
    [(2.0, 0.0, 30), pytest.param(3.0, 1.0, 300, marks=SLOW)],
)
def test_a_wrong_guide_is(thrifty_shim, shared, local, num_particles):
    case = case_of(thrifty_shim, shared, local)
    found = diagnose(thrifty_shim, "importance_diagnostics", case, num_particles=num_particles)
    assert found.shared.verdict in ("off", "unreliable")
    assert found.shared.gap > shared**2 / 2 / 2  # half of what it misses


@pytest.mark.slow
def test_leaving_out_data_is_warned_of_where_shared_draws_are_wrong(thrifty_shim):
    options = {"num_draws": 100, "groups": ("log_likelihood", "vi_stats")}
    diagnose(thrifty_shim, "to_arviz", case_of(thrifty_shim, 0.0, 0.0), **options)
    with pytest.warns(UserWarning, match="draws of 'level' as if they were the posterior's"):
        diagnose(thrifty_shim, "to_arviz", case_of(thrifty_shim, 3.0, 0.0), **options)
    with pytest.warns(UserWarning, match="^`posterior` has the guide's draws of 'level' as if"):
        diagnose(thrifty_shim, "to_arviz", case_of(thrifty_shim, 3.0, 0.0), groups=["posterior"])
    diagnose(thrifty_shim, "to_arviz", case_of(thrifty_shim, 0.0, 0.0), groups=["posterior"])


def judged(sharing, truth, halves):
    """The verdict on log weights that are estimated twice, and on average, by noise of its own."""
    whole = truth + np.log(np.exp(halves).mean(0))
    weights = np.exp(whole - whole.max())
    errors = (halves[0] - halves[1]) ** 2 / 4  # as the delta method, in the mean
    return sharing.SharedDiagnostics(
        sites=("level",),
        elbo=0.0,
        gap=float(np.log(weights.mean()) + whole.max() - whole.mean()),
        ess=float(weights.sum() ** 2 / (weights**2).sum()),
        num_draws=len(whole),
        noise=float(errors.mean()),
        agreed=sharing.agreed_part(whole, truth + halves),
    ).verdict


def test_verdicts_over_many_repeats(thrifty_shim):
    sharing, rng = thrifty_shim.module("diagnostics.sharing"), np.random.default_rng(0)
    words = {"exact": set(), "wrong": set(), "wrong in noise": set()}
    for _ in range(300):
        spread = rng.choice([0.1, 0.5, 1.0, 3.0, 10.0])
        halves = spread * rng.normal(size=(2, 100))
        words["exact"].add(judged(sharing, np.zeros(100), halves))
        truth = 2.0 * rng.normal(size=100)  # of a guide that is off by two standard deviations
        words["wrong"].add(judged(sharing, truth, 0.1 * rng.normal(size=(2, 100))))
        words["wrong in noise"].add(judged(sharing, truth, halves))
    assert words["exact"] <= {"close", "noisy"}
    assert words["wrong"] == {"off"}
    assert words["wrong in noise"] == {"off", "noisy"}
