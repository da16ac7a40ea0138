"""Deliberate breaks beside the losses' own: see `breaks`."""

from breaks import both, numpyro, pyro

CELLS, MIXING = "tests/test_cells.py", "tests/test_mixing.py"
AXES = "tests/test_axes_numpyro.py"
SMALL = "tests/test_small_faults.py::test_"
WEIGH = "tests/test_draws_that_weigh.py"
MASKED = "tests/test_masked_draws.py"
HELD_OUT = "tests/test_held_out_pyro.py", "tests/test_held_out_numpyro.py"

REST = [
    # fit
    *pyro(
        "fit/svi.py",
        "            root.eval()\n",
        "            pass\n",
        *HELD_OUT,
    ),
    *pyro(
        "fit/evaluation.py",
        "for start in range(0, size, self._batch_size or size):",
        "for start in range(0, size - (self._batch_size or 1) + 1, self._batch_size or size):",
        *HELD_OUT,
    ),
    *numpyro(
        "fit/evaluation.py",
        "for start in range(0, size, step):",
        "for start in range(0, size - step + 1, step):",
        *HELD_OUT,
    ),
    *pyro("fit/evaluation.py", "rows += few", "rows += 1 + 0 * few", *HELD_OUT),
    *numpyro(
        "fit/evaluation.py",
        "rows += num_rows(",
        "rows += 1 + 0 * num_rows(",
        *HELD_OUT,
    ),
    *numpyro(
        "fit/checkpoints.py",
        "max_to_keep=1",
        "max_to_keep=None",
        "tests/test_fit_numpyro.py::test_one_step_of_a_checkpoint_is_kept",
    ),
    # missing data; of NumPyro's model no break, as its masks replace the values themselves, too
    *pyro(
        "models/vae.py",
        "torch.where(observed, x, torch.zeros_like(x))",
        "x",
        "tests/test_missing.py",
    ),
    *pyro(
        "guides/amortised.py",
        "x = torch.where(observed, x, torch.zeros_like(x))",
        "pass",
        "tests/test_missing.py",
    ),
    *numpyro(
        "guides/amortised.py",
        "x = jnp.where(jnp.asarray(observed), x, jnp.zeros_like(x))",
        "pass",
        "tests/test_missing.py",
    ),
    # diagnostics
    *both(
        "ops/importance.py",
        "math.ceil(min(",
        "math.floor(min(",
        SMALL + "a_tail_begins_at_a_fifth_of_the_draws_rounded_up",
    ),
    *both(
        "diagnostics/summaries.py",
        "data_range**2 / errors",
        "data_range / errors",
        SMALL + "the_peak_of_a_signal_is_squared",
    ),
    *both(
        "diagnostics/arrays.py",
        "np.maximum(there.sum(0) - 1, 1)",
        "np.maximum(there.sum(0), 1)",
        SMALL + "the_variance_of_active_latents_is_not_biased",
    ),
    *both(
        "diagnostics/gradients.py",
        "/ (num_repeats - 1)",
        "/ num_repeats",
        SMALL + "the_noise_of_two_gradients_is_half_their_squared_distance",
    ),
    *both(
        "diagnostics/verdicts.py",
        "0.7",
        "0.9",
        "tests/test_diagnostics.py",
    )[:0],
    *both(
        "ops/importance.py",
        "min(1.0 - 1.0 / math.log10(num_particles), 0.7)",
        "0.7",
        "tests/test_importance.py::test_threshold",
    ),
    # truncated posteriors
    *pyro(
        "infer/truncated/minibatch.py",
        "rows.to(indices.device)[:, None] * full",
        "rows.to(indices.device)[:, None] * frame.size",
        SMALL + "rows_of_nested_plates_are_of_their_full_sizes",
    ),
    *numpyro(
        "infer/truncated/minibatch.py",
        "rows[:, None] * full",
        "rows[:, None] * len(indices)",
        SMALL + "rows_of_nested_plates_are_of_their_full_sizes",
    ),
    *numpyro(
        "infer/truncated/estep.py",
        "lambda i, old: sweep(keys(i), old)",
        "lambda i, old: sweep(keys(0), old)",
        SMALL + "all_sweeps_have_noise_of_their_own",
    ),
    *pyro(
        "infer/truncated/estep.py",
        "scores = torch.where(first, scorer.of_words(words), -math.inf)",
        "scores = scorer.of_words(words)",
        "tests/test_truncated.py::test_the_bound_never_falls_and_states_stay_distinct",
    ),
    *numpyro(
        "infer/truncated/estep.py",
        "scores, none = jnp.where(first, scores, -jnp.inf), ",
        "scores, none = scores, ",
        "tests/test_truncated.py::test_the_bound_never_falls_and_states_stay_distinct",
    ),
    *pyro(
        "infer/truncated/loss.py",
        "log_prior=torch.where(first, particles.log_prior, -math.inf)",
        "log_prior=particles.log_prior",
        "tests/test_truncated.py::test_masked_latents_of_a_datum_count_as_one_state",
    ),
    *numpyro(
        "infer/truncated/loss.py",
        "jnp.where(members.is_first.reshape(shape), particles.log_prior, -jnp.inf)",
        "particles.log_prior",
        "tests/test_truncated.py::test_masked_latents_of_a_datum_count_as_one_state",
    ),
    *pyro(
        "infer/truncated/loss.py",
        "sweeps = self._current(self.sweeps, step) if torch.is_grad_enabled() else 0",
        "sweeps = self._current(self.sweeps, step)",
        "tests/test_truncated.py::test_evaluation_and_no_sweeps_leave_the_sets",
    ),
    *both(
        "ops/sets/ranking.py",
        "descending=True",
        "descending=False",
        "tests/test_states.py",
    )[:0],
    # maths
    *numpyro(
        "distributions/pathwise.py",
        "(self.num_gumbels, *shape)",
        "(10, *shape)",
        SMALL + "more_gumbels_are_less_noise",
    ),
    *pyro(
        "distributions/pathwise.py",
        "logits.expand(self.num_gumbels, *shape)",
        "logits.expand(10, *shape)",
        SMALL + "more_gumbels_are_less_noise",
    ),
    *both(
        "ops/baselines.py",
        "decay * weight + (1.0 - decay)",
        "weight + (1.0 - decay)",
        "tests/test_baselines.py",
    ),
    *both(
        "ops/bounds.py",
        "- math.log(log_weights.shape[0])",
        "- 0.0 * math.log(log_weights.shape[0])",
        "tests/test_bounds.py",
    ),
    *both("ops/tempering.py", "if shared:", "if not shared:", "tests/test_tempering.py"),
    *both("ops/tempering.py", "(num_particles - 1)", "num_particles", "tests/test_tempering.py"),
    *both(
        "ops/tempering.py",
        "squares = weights**2 if copies is None else copies * weights**2",
        "squares = weights**2",
        "tests/test_tempering.py::test_the_effective_sample_size_by_hand",
    ),
    *pyro(
        "ops/weighting.py",
        "return torch.where(possible, scores, mean)",
        "return torch.where(possible, scores, 0.0)",
        "tests/test_weighting.py",
        "tests/test_structure_pyro.py",
        "tests/test_protocols_pyro.py",
        "tests/test_scales_pyro.py",
    ),
    # programs
    *pyro(
        "programs/structure/tracking.py",
        "        hidden |= moved\n",
        "",
        "tests/test_hidden_dependence_pyro.py",
    ),
    *numpyro(
        "programs/structure/layout.py",
        "return [site.term() for site",
        "return [site.log_prob() for site",
        WEIGH,
    ),
    *both("diagnostics/silence.py", "1 + draw", "1 + 0 * draw", MASKED),
    *pyro(
        "programs/record.py",
        "always = [s for s in owned if s.name in layout.credited[:1]] if layout.asked else owned",
        "always = owned",
        "tests/test_structure_pyro.py::test_no_draw_changes_the_weight_of_a_datum",
    ),
    *pyro(
        "programs/handlers/subsamples.py",
        "if not rows.are_all:",
        "if True:",
        "tests/test_ways_pyro.py",
    ),
    *pyro(
        "programs/structure/layout.py",
        "shared &= site.plates.keys()",
        "pass",
        "tests/test_particles.py::test_the_shared_plates_are_found",
    ),
    *numpyro(
        "programs/structure/layout.py",
        "shared &= site.plates.keys()",
        "pass",
        "tests/test_particles.py::test_the_shared_plates_are_found",
    ),
    *both(
        "programs/record.py",
        "entropies_known = entropy is not None",
        "entropies_known = True",
        "tests/test_unbiased.py",
    ),
    *pyro(
        "infer/objective.py",
        "excess.clamp(-1, 1)",
        "excess.clamp(-1, 1) * -1",
        "tests/test_daps.py::test_a_target_rate_steers_beta",
    ),
    *numpyro(
        "infer/objective.py",
        "jnp.clip(excess, -1, 1)",
        "-jnp.clip(excess, -1, 1)",
        "tests/test_daps.py::test_a_target_rate_steers_beta",
    ),
    *both(
        "infer/objective.py",
        "return gain._replace(objective=expected)",
        "return gain",
        "tests/test_impossible_data.py",
        "tests/test_protocols_pyro.py",
        "tests/test_protocols_numpyro.py",
        "tests/test_scales_pyro.py",
        "tests/test_scales_numpyro.py",
    ),
    # any program
    *pyro(
        "programs/structure/broadcasting.py",
        "return next(n for n in itertools.count(_NUM_PARTICLES) if n not in taken)",
        "return _NUM_PARTICLES",
        "tests/test_structure_pyro.py::test_a_size_that_is_a_number_of_particles_by_chance_is_noticed",
    ),
    *pyro(
        "programs/sites.py",
        "while isinstance(fn, Independent | dist.ExpandedDistribution | dist.MaskedDistribution):",
        'while hasattr(fn, "base_dist"):',
        "tests/test_wrapped_draws.py",
    ),
    *numpyro(
        "programs/handlers/steps.py",
        'if msg["type"] in ("param", "mutable"):',
        'if msg["type"] == "mutable":',
        "tests/test_structure_numpyro.py::test_a_parameter_in_a_scan_or_a_cond_is_refused",
    ),
    *both(
        "infer/exact.py",
        'never = particles.extras["never"] & (',
        'never = ~particles.extras["never"] & (',
        "tests/test_hard_zeros.py::test_an_impossible_state_that_never_comes_counts_nothing",
    ),
    # cells of a plate that lead each other
    *pyro(
        "programs/structure/mixing.py",
        "enumerate(changed.T)",
        "enumerate(changed.T[:0])",
        f"{MIXING}::test_cells_that_lead_each_other_by_an_operation_that_is_not_followed_are_found",
    ),
    *numpyro(
        "programs/structure/mixing.py",
        "        yield _HIGH, (_LOW, _BELOW)[place % 2], cells\n",
        "",
        f"{MIXING}::test_cells_that_lead_each_other_are_found",
    ),
    *both(
        "programs/readers/credit.py",
        " if plate not in layout.mixed",
        "",
        f"{MIXING}::test_gradients_have_the_right_mean",
    ),
    *both(
        "programs/structure/cells.py",
        "    if pair.layout.mixed:  # that is known already\n        return False\n",
        "",
        f"{CELLS}::test_data_that_mix_have_no_posterior_each",
    ),
    *numpyro(
        "programs/structure/axes.py",
        "return found.pop() if len(found) == 1 else None",
        "return found.pop()",
        AXES,
    ),
    *numpyro(
        "infer/truncated/guide.py",
        "        check_apart(call, self._apart)\n",
        "",
        f"{CELLS}::test_data_that_mix_in_a_later_call_are_refused",
    ),
    *pyro(
        "infer/truncated/guide.py",
        "check_cells(pair._replace(layout=space.layout), a_few(space), _TOGETHER)",
        "pass",
        f"{CELLS}::test_data_that_mix_in_a_later_call_are_refused",
    ),
    *pyro(
        "programs/plans.py",
        "if not path.is_noted or path.taken == known.path:",
        "if True:",
        "tests/test_branches.py",
    ),
    *pyro(
        "programs/plans.py",
        "return planned if is_stale or is_new else None",
        "return planned",
        f"{CELLS}::test_what_a_known_program_raises_is_its_own",
    ),
    *pyro(
        "programs/structure/looking.py",
        "elif isinstance(value, Real) and not isinstance(value, bool | Enum):",
        "elif False:",
        f"{CELLS}::test_a_guide_of_states_looks_again_at_whether_a_program_broadcasts",
    ),
]
