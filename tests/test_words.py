"""Sentences of verdicts on guides that are off where they cannot draw, or that drew one state."""

import functools

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of
from zoo import normal

X = np.array([0.3, 0.3, 0.3])
LOGITS = np.array([[0.0, 0.0, 0.0], [2.5, 0.0, -1e30], [5.0, 0.0, 0.0]])


def model(ppl, data):
    with ppl.plate("data", 3):
        z = ppl.sample("z", ppl.dist.Categorical(logits=ppl.zeros(3)))
        ppl.sample("x", ppl.dist.Normal(1.0 * z, 1.0), obs=data["x"])


def guide(ppl, data):
    with ppl.plate("data", 3):
        ppl.sample("z", ppl.dist.Categorical(logits=data["logits"]))


def report_of(shim, **options):
    case = shim.Case(program_of(model, guide, {}, {"x": X, "logits": LOGITS}))
    return diagnose(shim, "importance_diagnostics", case, **options)


def test_weighting_is_said_to_correct_where_the_guide_can_draw_alone(shim):
    found = report_of(shim, num_particles=2000)
    evidence = np.logaddexp.reduce(normal(0.3, np.arange(3.0)) - np.log(3))
    reached = np.logaddexp.reduce(normal(0.3, np.arange(2.0)) - np.log(3))
    assert list(found.verdicts) == ["close", "off", "unreliable"] or found.verdicts[2] == "off"
    assert found.restricted.tolist() == [False, True, False]
    assert found.ess[1] > 100
    assert abs(found.iwae[1] - reached) < 5 * found.iwae_error[1]
    assert evidence - reached > 0.1
    assert "on a set of states beyond which the guide cannot draw, so that weighting" in str(found)
    assert "though weighting corrects for it" not in str(found) or found.verdicts[2] == "off"


def test_draws_of_one_state_do_not_know_the_bound_to_the_last_digit(shim):
    sure = np.array([[6.0, 0.0, 0.0]] * 3)
    case = shim.Case(program_of(model, guide, {}, {"x": X, "logits": sure}))
    found = diagnose(shim, "importance_diagnostics", case, num_particles=25)
    one = found.num_states == 1
    assert one.any()
    np.testing.assert_allclose(found.iwae_error[one], 1 / 25)


def test_a_latent_of_one_value_has_no_state_that_a_guide_could_miss(shim):
    """Of a mixture of one class, and counts of no trials, the only guide is exact."""

    def latents(ppl, data):
        ppl.sample("z", ppl.dist.Categorical(logits=ppl.zeros((3, 1))))
        ppl.sample("n", ppl.dist.Binomial(data["trials"], 0.5 + ppl.zeros(3)))

    def whole(ppl, data):
        with ppl.plate("data", 3):
            latents(ppl, data)
            ppl.sample("x", ppl.dist.Normal(ppl.zeros(3), 1.0), obs=data["x"])

    def sole(ppl, data):
        with ppl.plate("data", 3):
            latents(ppl, data)

    case = shim.Case(program_of(whole, sole, {}, {"x": X, "trials": np.array([0, 0, 1])}))
    found = diagnose(shim, "importance_diagnostics", case, num_particles=25)
    assert list(found.num_possible) == [1, 1, 2]
    assert list(found.verdicts) == ["close"] * 3
    assert "undecided" not in str(found)
    assert found.iwae_error.max() < 1e-6


@pytest.mark.thrifty
def test_an_error_is_at_least_that_of_draws_which_miss_rare_states(shim):
    """The ELBO was said to be known to ± 0.00, where all draws were one state, or nearly."""
    rare = np.array([[12.0, 0.0, 0.0]] * 3)
    case = shim.Case(program_of(model, guide, {}, {"x": X, "logits": rare}))
    found = diagnose(shim, "importance_diagnostics", case, num_particles=100)
    assert found.has_few_states.all()
    assert not found.whole.is_elbo_settled
    assert "ELBO -2.06 ± at least 0.00, importance" in str(found)
    assert "ELBO -6.19 ± at least 0.00, importance" in str(found.whole)
    table = diagnose(shim, "evaluate", case, num_particles=100)
    assert not table.is_elbo_settled
    assert "error of ELBO, at least" in str(table)
    data = {"x": X, "logits": np.zeros((3, 3))}
    found = diagnose(shim, "importance_diagnostics", shim.Case(program_of(model, guide, {}, data)))
    assert found.whole.is_elbo_settled  # the control: all states there are


def test_weighting_is_said_to_correct_as_far_as_draws_show(shim):
    words = shim.module("diagnostics.words")
    told = "corrects for it as far as these draws show"
    assert f"{told}, but for a mode or tail" in words.in_words("off")
    line, unseen = words.lines_of(np.array(["off"]))
    assert told in line
    assert "cannot show a mode or tail that the guide hardly ever draws" in unseen


def barred(ppl, data):
    with ppl.plate("data", 3):
        z = ppl.sample("z", ppl.dist.Categorical(logits=ppl.zeros(3)))
        ppl.sample("x", ppl.dist.Normal(1.0 * z, 1.0), obs=data["x"])
        seen = ppl.dist.Categorical(logits=data["logits"], validate_args=False)
        ppl.sample("seen", seen, obs=data["seen"])


def even(ppl, data):
    with ppl.plate("data", 3):
        ppl.sample("z", ppl.dist.Categorical(logits=ppl.zeros(3)))


def reports_of(shim, where):
    logits = np.stack([np.where(where, -np.inf, 0.0), np.where(where, 0.0, -np.inf)], -1)
    inputs = {"x": X, "logits": logits, "seen": np.zeros(3, int)}
    case = shim.Case(program_of(barred, even, {}, inputs))
    names = ("importance_diagnostics", "posterior_gap")
    return [str(diagnose(shim, name, case)) for name in names]


@pytest.mark.thrifty
def test_impossible_data_are_told_apart_from_the_means_of_the_others(shim):
    evidence = np.logaddexp.reduce(normal(0.3, np.arange(3.0)) - np.log(3))
    elbo = (normal(0.3, np.arange(3.0))).mean()
    weighed, exact = reports_of(shim, [False, True, False])
    assert (
        "ELBO -inf, importance-weighted bound -inf nats per datum, as no draw of 1 of 3" in weighed
    )
    assert "nan" not in weighed + exact
    start = "Log evidence -inf, as the model allows no state of 1 of 3 data. Of the others: "
    assert exact.startswith(f"{start}log evidence {evidence:.3f}, ELBO {elbo:.3f}, gap")
    weighed, exact = reports_of(shim, [True, True, True])
    assert ", as no draw of 3 of 3 data is possible" in weighed
    assert exact == "Log evidence -inf per datum: the model allows no state."
    weighed, exact = reports_of(shim, [False, False, False])
    assert "inf" not in weighed + exact


# What tells what draws do not


def sure_guide(size, shares):
    """A model, and a guide that always draws one state, of `size` codes or bits."""

    def run(ppl, data, observes):
        if shares:
            ppl.sample("level", ppl.dist.Normal(ppl.zeros(()) + 3.0 * (not observes), 0.5))
        logits = (0.0 if observes else 1.0) * data["sure"]
        with ppl.plate("data", 3):
            if size < 10:
                z = ppl.sample("z", ppl.dist.Categorical(logits=logits))
            else:
                z = ppl.sample("z", ppl.dist.Bernoulli(logits=logits).to_event(1))[..., 0]
            if observes:
                ppl.sample("x", ppl.dist.Normal(1.0 * z, 1.0), obs=data["x"])

    sure = np.full((3, size), -40.0)
    sure[:, 0] = 40.0
    data = {"x": X, "sure": sure}
    model = functools.partial(run, observes=True)
    return program_of(model, functools.partial(run, observes=False), {}, data)


@pytest.mark.parametrize(
    ("size", "shares", "refusal"),
    [(3, False, None), (3, True, "continuous"), (17, False, "max_states")],
)
def test_the_gap_is_said_to_tell_where_it_can_be_had(thrifty_shim, size, shares, refusal):
    case = thrifty_shim.Case(sure_guide(size, shares))
    options = {"num_particles": 25, "num_shared": 25}
    found = diagnose(thrifty_shim, "importance_diagnostics", case, **options)
    assert list(found.verdicts) == ["one state"] * 3
    assert ("`posterior_gap` tells" in str(found)) == (refusal is None)
    assert ("more draws may." in str(found)) == (refusal is not None)
    if refusal is None:
        assert diagnose(thrifty_shim, "posterior_gap", case).log_evidence.shape == (3,)
    else:
        with pytest.raises(ValueError, match=refusal):
            diagnose(thrifty_shim, "posterior_gap", case)
    if shares:
        assert found.shared.verdict in ("off", "unreliable")
        assert 'summed out by marks in the model (`infer={"enumerate"' in str(found)
        assert "`posterior`, and `marginal`, which" in found.shared.warning_in(
            ["posterior", "log_likelihood"]
        )


def test_small_misses_of_a_datum_add_up(shim):
    """300 data that miss .004 each miss 1.2, and not 0.00."""
    verdicts = shim.module("diagnostics.verdicts")
    report = verdicts.ImportanceDiagnostics(
        *[np.zeros(3)] * 2,
        *[np.ones(3)] * 5,
        restricted=np.zeros(3, bool),
        num_particles=100,
        khat_threshold=0.7,
        elbo_error=np.zeros(3),
        iwae_error=np.zeros(3),
        whole=verdicts.WholeBounds(-1.2, 0.0, 0.0, 0.0),
        given=verdicts.Given(np.full(3, -0.004), np.zeros(3), 0.0),
        shared=verdicts.SharedDiagnostics(("level",), 0.0, ess=100.0, num_draws=100),
    )
    assert "the guide misses at least 0.004 nats per datum" in str(report)
