"""Deliberate breaks of the packages, each with the tests that must notice: see `mutants.py`.

A break is one replacement in one file. `both` is for a text that the twins share.
"""

from typing import NamedTuple


class Break(NamedTuple):
    package: str  # "pyro" or "numpyro"
    file: str  # within the package
    old: str  # stands there once
    new: str
    tests: tuple[str, ...]  # of these, at least one fails

    @property
    def name(self) -> str:
        return f"{self.package}_dvae/{self.file}: {self.old.strip().splitlines()[0][:60]}"


def both(file, old, new, *tests):
    return [Break(package, file, old, new, tests) for package in ("pyro", "numpyro")]


def pyro(file, old, new, *tests):
    return [Break("pyro", file, old, new, tests)]


def numpyro(file, old, new, *tests):
    return [Break("numpyro", file, old, new, tests)]


def table(*names):
    return tuple(f"tests/test_table.py::test_{name}" for name in names)


ELBO, RECORD = "infer/elbo.py", "programs/record.py"
SURROGATE = "surrogate=-(scale * gain.value).sum()"

LOSSES = [
    # subsampling: the weight of a datum in value, gradient, and in one loss at a time
    *both(ELBO, SURROGATE, "surrogate=-gain.value.sum()", *table("enumeration")),
    *both(
        ELBO,
        "loss=-(scale * expected.elbo.mean(0)).sum()",
        "loss=-expected.elbo.mean(0).sum()",
        *table("enumeration"),
    ),
    *both(
        "infer/vimco.py",
        "return beta * ((signal * log_draw).sum(0) + bound)",
        "return beta * ((signal * log_draw).sum(0) / 2.5 + bound)",
        *table("vimco"),
    ),
    *both(
        "infer/disarm.py",
        "return (antithetic_advantages(beta_elbo) * log_pair + beta_elbo).mean(0)",
        "return (antithetic_advantages(beta_elbo) * log_pair / 2.5 + beta_elbo).mean(0)",
        "tests/test_algorithms.py::test_antithetic_pairs_compare_with_their_partners",
    ),
    *both(
        "infer/disarm.py",
        "return Gain(beta_elbo.mean(0) + credited(particles, beta, antithetic_advantages))",
        "return Gain(beta_elbo.mean(0) + credited(particles, beta, antithetic_advantages) / 2.5)",
        *table("disarm"),
    ),
    *both(
        "infer/wake_sleep.py",
        "return guide + (weights * returns).sum(0)",
        "return guide / 2.5 + (weights * returns).sum(0)",
        *table("wake_sleep"),
    ),
    *both(
        "infer/wake_sleep.py",
        "guide = (1.0 - sleep) * guide + sleep * dreamt",
        "guide = (1.0 - sleep) * guide + sleep * dreamt / 2.5",
        *table("sleep"),
    ),
    *both(
        "infer/daps.py",
        "return policy + (shares * returns).sum(0)",
        "return policy + (shares * returns).sum(0) / 2.5",
        *table("daps"),
    ),
    *both(
        "infer/quantization.py",
        "value = value - (precision * held).mean(0)",
        "value = value - (precision * held).mean(0) / particles.scale",
        *table("quantised_vectors"),
    ),
    *both(
        "infer/exact.py",
        "return Gain(exact_expectation(probs, values), objective=expected)",
        "return Gain(exact_expectation(probs, values) / particles.scale, objective=expected)",
        *table("enumeration"),
    ),
    *both(
        "infer/truncated/loss.py",
        "return Gain(values.bound, info, memory, expected)",
        "return Gain(values.bound / particles.scale, info, memory, expected)",
        *table("all_states_as_a_truncated_posterior"),
    ),
    # beta
    *both(
        "infer/exact.py",
        "values = objective.log_likelihood - beta * (",
        "values = objective.log_likelihood - (",
        *table("enumeration"),
    ),
    *both(
        "infer/reinforce.py",
        "beta_elbo = fill_impossible(objective.beta_elbo)",
        "beta_elbo = fill_impossible(objective.elbo)",
        *table("leave_one_out"),
    ),
    *pyro(
        "infer/disarm.py",
        "fill_impossible(objective.beta_elbo)",
        "fill_impossible(objective.elbo)",
        *table("disarm"),
    ),
    *numpyro(
        "infer/disarm.py",
        "beta_elbo = fill_impossible(objective.beta_elbo)",
        "beta_elbo = fill_impossible(objective.elbo)",
        *table("disarm"),
    ),
    *both(
        "infer/quantization.py",
        "objective.beta_elbo.mean(0)",
        "objective.elbo.mean(0)",
        *table("quantised_vectors"),
    ),
    *both(
        ELBO,
        "- expected.shared_beta_elbo.mean()",
        "- expected.shared_elbo.mean()",
        *table("daps", "leave_one_out"),
    ),
    *both(
        "infer/wake_sleep.py",
        "particles.log_likelihood + beta * particles.log_prior",
        "particles.log_likelihood + beta**2 * particles.log_prior",
        *table("wake_sleep"),
    ),
    *pyro(
        "infer/wake_sleep.py",
        "scores = objective.beta_elbo.detach() / beta",
        "scores = objective.beta_elbo.detach() / beta**2",
        *table("wake_sleep"),
    ),
    *numpyro(
        "infer/wake_sleep.py",
        "scores = jax.lax.stop_gradient(objective.beta_elbo) / beta",
        "scores = jax.lax.stop_gradient(objective.beta_elbo) / beta**2",
        *table("wake_sleep"),
    ),
    *both(
        "infer/vimco.py",
        "scores = particles.log_likelihood / beta - rate",
        "scores = particles.log_likelihood - rate",
        *table("vimco"),
    ),
    *both(
        "infer/daps.py",
        "returns = particles.log_likelihood + beta * negative_rate",
        "returns = particles.log_likelihood + negative_rate",
        *table("daps"),
    ),
    *both(
        "infer/daps.py",
        "returns + beta * surprise)",
        "returns + surprise)",
        *table("daps"),
    ),
    *pyro(
        "infer/daps.py",
        "return temperature.clamp(min=beta)",
        "return temperature",
        "tests/test_daps.py::test_the_target_is_attained_or_the_clamp_holds",
    ),
    *numpyro(
        "infer/daps.py",
        "return jnp.maximum(temperature, beta)",
        "return temperature",
        "tests/test_daps.py::test_the_target_is_attained_or_the_clamp_holds",
    ),
    *both(
        "infer/truncated/loss.py",
        "beta * scores.logsumexp(0)",
        "scores.logsumexp(0)",
        *table("all_states_as_a_truncated_posterior"),
    )[:1],
    *both(
        "infer/truncated/loss.py",
        "(1.0 - 1.0 / beta)",
        "(1.0 - beta)",
        *table("all_states_as_a_truncated_posterior"),
    ),
    *both(
        "infer/objective.py",
        "beta_elbo=particles.log_likelihood + beta * negative_rate",
        "beta_elbo=particles.log_likelihood + beta * (particles.log_prior + entropy)",
        *table("leave_one_out"),
    ),
    # masks, weights of data, what is scored
    *both(
        RECORD,
        'ledger.add_bare("draw", site, draw_log_prob(site, values))',
        'ledger.add("draw", site, values)',
        *table("leave_one_out", "vimco"),
        "tests/test_unbiased.py",
    ),
    *pyro(
        RECORD,
        'ledger.add("entropy", site, entropy)',
        'ledger.add_bare("entropy", site, entropy)',
        *table("leave_one_out"),
    ),
    *both(
        RECORD,
        "scale = 1.0 if self.is_common else scale / self.common",
        "scale = 1.0",
        *table("enumeration"),
    ),
    *numpyro(
        RECORD,
        "alike = layout.one_scale or",
        "alike =",
        *table("vimco", "all_states_as_a_truncated_posterior"),
    ),
    *numpyro(
        "programs/structure/layout.py",
        "inputs, id(step) if step.effects else 0",
        "inputs, 0",
        "tests/test_computing_numpyro.py",
    ),
    *numpyro(
        "programs/structure/layout.py",
        "or any(_is_literal(variable) for variable in results)",
        "",
        "tests/test_computing_numpyro.py",
    ),
    *both(
        "infer/wake_sleep.py",
        "particles.log_draw + particles.log_q_pathwise",
        "particles.log_draw",
        "tests/test_small_faults.py::test_wake_sleep_weighs_draws_of_continuous_latents",
    ),
    *both(
        "infer/wake_sleep.py",
        "    pathwise = False\n",
        "",
        *table("wake_sleep"),
    ),
    *both(
        "infer/vimco.py",
        "rate = particles.log_q - particles.log_prior",
        "rate = particles.log_q_discrete - particles.log_prior",
        *table("vimco"),
    ),
    *both(
        "infer/truncated/scoring.py",
        "- particles.log_q_pathwise",
        "",
        *table("all_states_as_a_truncated_posterior"),
    ),
    # the estimators' own coefficients
    *both(
        "infer/reinforce.py",
        "value = value - 0.5 *",
        "value = value - 1.0 *",
        *table("a_learned_baseline"),
    ),
    *pyro(
        "infer/reinforce.py",
        "((beta_elbo.detach() - baseline) * log_draw",
        "((beta_elbo - baseline) * log_draw",
        *table("one_particle_with_other_baselines"),
    ),
    *numpyro(
        "infer/reinforce.py",
        "((scores - baseline) * log_draw",
        "((beta_elbo - baseline) * log_draw",
        *table("one_particle_with_other_baselines"),
    ),
    *both(
        "ops/baselines.py",
        "/ (scores.shape[0] - 1), state",
        "/ scores.shape[0], state",
        "tests/test_baselines.py",  # it stays unbiased
    ),
    *both(
        "ops/weighting.py",
        "return weights - 1.0 / weights.shape[0]",
        "return weights",
        *table("daps"),
    ),
    *pyro(
        "ops/multisample.py",
        "return torch.maximum(probs, 1.0 - probs)",
        "return torch.ones_like(probs)",
        *table("disarm"),
    ),
    *numpyro(
        "ops/multisample.py",
        "return jnp.maximum(probs, 1.0 - probs)",
        "return jnp.ones_like(probs)",
        *table("disarm"),
    ),
    *both(
        "ops/multisample.py",
        "/ (log_values.shape[0] - 1)",
        "/ log_values.shape[0]",
        "tests/test_multisample.py",
    ),
    *both(
        "infer/quantization.py",
        "squares = squares + commitment *",
        "squares = squares +",
        *table("quantised_vectors"),
    ),
    *pyro(
        "infer/quantization.py",
        "(inputs.detach() - vectors).square()",
        "(inputs - vectors).square()",
        *table("quantised_vectors"),
    ),
    *numpyro(
        "infer/quantization.py",
        "jnp.square(fixed_inputs - vectors)",
        "jnp.square(inputs - vectors)",
        *table("quantised_vectors"),
    ),
]
