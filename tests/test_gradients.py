"""Signal and noise of gradients against their exact values, by enumeration of all draws."""

import functools
import itertools

import numpy as np
import pytest
from zoo import PROGRAMS, exact_gradient

VAE = {program.name: program for program in PROGRAMS}["vae"]
REPEATS = 250


def moments_by_enumeration(shim):
    """Trace of the covariance of Reinforce's encoder gradient, and spread of what estimates it."""
    case, exact = shim.Case(VAE), exact_gradient(VAE)["encoder"]
    elbo_class = shim.module("infer.reinforce").Reinforce_ELBO
    elbo = case.forced(elbo_class, num_particles=2, closed_form_entropy=False)
    probs, squares = [], []
    for states in itertools.product(range(4), repeat=4):
        elbo.draws = np.array(states).reshape(2, 2)
        _, grads = case.run(elbo)
        probs.append(np.exp(elbo.log_draw))
        squares.append(((grads["encoder"] - exact) ** 2).sum())
    trace = np.dot(probs, squares)
    return trace, np.sqrt(np.dot(probs, (np.array(squares) - trace) ** 2))


@functools.cache
def quality(shim):
    case = shim.Case(VAE)
    shim.put_in_store(case)
    reinforce, exact = shim.module("infer.reinforce"), shim.module("infer.exact")
    losses = {
        "reinforce": reinforce.Reinforce_ELBO(2, closed_form_entropy=False),
        "exact": exact.Exact_ELBO(),
    }
    return shim.diagnose(
        shim.module("diagnostics").gradient_variance,
        case,
        losses=losses,
        num_repeats=REPEATS,
        select=lambda name: name == "encoder",
    )


def test_noise_is_that_of_all_draws(thrifty_shim):
    trace, spread = moments_by_enumeration(thrifty_shim)
    found = quality(thrifty_shim)
    assert abs(found.noise[0] ** 2 - trace) < 5 * spread / np.sqrt(REPEATS)
    np.testing.assert_allclose(found.variance["encoder"], found.noise**2)


def test_signal_is_the_exact_gradient_and_the_exact_loss_has_no_noise(shim):
    found, exact = quality(shim), np.linalg.norm(exact_gradient(VAE)["encoder"])
    np.testing.assert_allclose(found.signal[1], exact, rtol=1e-6)
    assert found.noise[1] < 1e-6 * exact
    assert found.snr[1] > 1e6
    assert abs(found.signal[0] - exact) < 5 * found.noise[0] / np.sqrt(REPEATS)
    naive = np.sqrt(found.signal[0] ** 2 + found.noise[0] ** 2)  # negative control: of one draw
    assert abs(naive - exact) > 5 * found.noise[0] / np.sqrt(REPEATS)


def test_unbiased_losses_agree_in_direction(shim):
    found = quality(shim)
    error = found.noise[0] / np.sqrt(REPEATS) / found.signal[0]
    assert abs(found.cosine[0, 1] - 1) < 3 * error
    np.testing.assert_array_equal(np.diag(found.cosine), 1.0)
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["signal", "reinforce", "exact"]


def test_cosines_of_gradients_by_hand(shim):
    summarise = shim.module("diagnostics.reports").gradient_quality
    moments = {
        "a": {"w": (np.array([3.0, 0.0]), 0.0)},
        "b": {"w": (np.array([0.0, 2.0]), 16.0)},
        "c": {"w": (np.array([-1.0, 0.0]), 0.0)},
        "nothing": {"w": (np.zeros(2), 0.0)},
    }
    found = summarise(moments, 4)
    np.testing.assert_allclose(found.noise**2, [0.0, 16.0, 0.0, 0.0])
    np.testing.assert_allclose(found.signal, [3.0, 0.0, 1.0, 0.0])  # 4 - 16 / 4 leaves nothing
    np.testing.assert_array_equal(found.snr, [np.inf, 0.0, np.inf, np.nan])
    assert found.cosine[0, 2] == -1.0
    assert np.isnan(found.cosine[0, 3])


def test_arguments_are_checked(shim):
    gradient_variance = shim.module("diagnostics").gradient_variance
    case, loss = shim.Case(VAE), shim.module("infer.exact").Exact_ELBO()
    with pytest.raises(ValueError, match=r"`losses` must name .*got \[\] and 100"):
        shim.diagnose(gradient_variance, case, losses={})
    with pytest.raises(ValueError, match=r"`num_repeats` be at least 2; got .* and 1"):
        shim.diagnose(gradient_variance, case, losses={"exact": loss}, num_repeats=1)
    summarise = shim.module("diagnostics.reports").gradient_quality
    with pytest.raises(ValueError, match="`select` leaves no parameter"):
        summarise({"exact": {}}, 2)


def test_a_selection_of_nothing_is_refused(thrifty_shim):
    gradient_variance = thrifty_shim.module("diagnostics").gradient_variance
    case, loss = thrifty_shim.Case(VAE), thrifty_shim.module("infer.exact").Exact_ELBO()
    thrifty_shim.put_in_store(case)
    options = {"losses": {"exact": loss}, "num_repeats": 2, "select": lambda name: False}
    with pytest.raises(ValueError, match="`select` leaves no parameter"):
        thrifty_shim.diagnose(gradient_variance, case, **options)
