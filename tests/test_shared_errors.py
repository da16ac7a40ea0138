"""Data that share latents share their draws: what is said of means over them, and of each alone."""

import numpy as np
from known_zoo import MASSES, NODES, distortion_of_draw, rate_of_draw
from test_diagnostics import diagnose, program_of
from zoo import bernoulli, normal

# Forty coins that share their level, and a guide of each that is off


ROWS = 40
X = np.round(0.8 + np.random.default_rng(1).normal(size=ROWS), 2)


def coins(ppl, data):
    level = ppl.sample("level", ppl.dist.Normal(0.0 * data["q"][0], 1.0))
    with ppl.plate("data", ROWS):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=level + 0.0 * data["x"]))
        ppl.sample("x", ppl.dist.Normal(level + 2.0 * z, 1.0), obs=data["x"])


def coins_guide(ppl, data):
    level = ppl.sample("level", ppl.dist.Normal(data["q"][0], data["q"][1]))
    with ppl.plate("data", ROWS):
        ppl.sample("z", ppl.dist.Bernoulli(logits=0.5 * data["x"] - level))


def tables(level):
    """Log q, log p(z) and log p(x | z) of both sides of each coin: (2, N, Q)."""
    bits = np.arange(2)[:, None, None]
    log_q = bernoulli(bits, 0.5 * X[:, None] - level)
    prior = np.broadcast_to(bernoulli(bits, level), log_q.shape)
    return log_q, prior, normal(X[:, None], level + 2.0 * bits)


def exact_coins():
    """The chance of each coin, and the posterior mean of the level, by a fine grid."""
    grid = np.linspace(-4, 4, 4001)
    joint = sum(tables(grid)[1:])
    log_p = normal(grid, 0.0) + np.logaddexp.reduce(joint, axis=0).sum(0)
    weights = np.exp(log_p - np.logaddexp.reduce(log_p))
    chance = np.exp(joint[1] - np.logaddexp.reduce(joint, axis=0)) @ weights
    return chance, weights @ grid


NEAR, WIDE = (0.1, 0.3), (0.8, 1.0)  # a guide's shift and spread of the level


def case_of(shim, shift, spread):
    q = np.array([exact_coins()[1] + shift, spread])
    return shim.Case(program_of(coins, coins_guide, {}, {"x": X, "q": q}))


# Errors of means


def exact_error(of_draw, num_draws):
    """Of the mean over the data, by the law of total variance, given what they share."""
    level = exact_coins()[1] + WIDE[0] + WIDE[1] * NODES
    logs = tables(level)
    q, values = np.exp(logs[0]), of_draw(*logs)  # (2, N, Q)
    each = (q * values).sum(0)
    within = ((q * values**2).sum(0) - each**2).sum(0) / ROWS**2
    log_q = normal(WIDE[1] * NODES, 0.0, np.log(WIDE[1]))
    mean = each.mean(0) + of_draw(log_q, normal(level, 0.0), 0.0) / ROWS  # with what they share
    between = MASSES @ mean**2 - (MASSES @ mean) ** 2
    return np.sqrt((MASSES @ within + between) / num_draws)


def log_weight(log_q, log_prior, log_likelihood):
    return log_prior + log_likelihood - log_q


def test_errors_of_means_over_data_that_share_draws(thrifty_shim):
    case, num_draws = case_of(thrifty_shim, *WIDE), 400
    table = diagnose(thrifty_shim, "evaluate", case, num_particles=num_draws)
    errors = [exact_error(of, num_draws) for of in (log_weight, rate_of_draw, distortion_of_draw)]
    np.testing.assert_allclose(table.elbo_error, errors[0], rtol=0.2)
    costs = diagnose(thrifty_shim, "rate_distortion", case, num_draws=num_draws)
    found = costs.mean_rate_error, costs.mean_distortion_error
    np.testing.assert_allclose(found, errors[1:], rtol=0.2)
    assert f"nats (± {found[1]:.2f})" in str(costs)
    independent = np.sqrt((costs.distortion_error**2).sum()) / ROWS  # the control
    assert independent < 0.5 * errors[2]
    report = diagnose(thrifty_shim, "importance_diagnostics", case, num_particles=num_draws)
    total = exact_error(log_weight, 100) * ROWS
    np.testing.assert_allclose(report.mean_errors.elbo * ROWS, total, rtol=0.4)
    np.testing.assert_allclose(report.whole.elbo_error, report.mean_errors.elbo * ROWS, rtol=1e-6)
    start = f"{ROWS} data together: ELBO {report.elbo.sum():.2f} ± {report.whole.elbo_error:.2f},"
    assert str(report).startswith(start)


# Each alone, weighted


def test_corrected_probabilities_are_worth_what_the_report_says(thrifty_shim):
    """Weights of all coins at once would leave one draw of a thousand."""
    case = case_of(thrifty_shim, *NEAR)
    options = {"num_draws": 300, "corrected": True}
    found = diagnose(thrifty_shim, "discrete_posterior", case, **options)
    probs, exact = found["z"].probs[:, 1], exact_coins()[0]
    ess = found.report.shared.ess
    assert ess > 15
    apart = np.abs(probs - exact)
    assert (apart < 5 * np.sqrt(exact * (1 - exact) / ess / 2) + 0.02).all()
    assert apart.mean() < 0.05
    drawn = found["z"].draws.mean(0) - exact  # the control
    assert np.abs(drawn).max() > 0.15
    share = found.report.expectation(lambda latents: latents["z"].mean(-1))
    assert abs(share - exact.mean()) < 0.05
    whole = np.exp(found.log_weights - found.log_weights.max(0))[:, 0]
    assert whole.sum() ** 2 / (whole**2).sum() < 6  # what its own draws would be worth
