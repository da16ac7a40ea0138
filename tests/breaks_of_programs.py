"""Deliberate breaks of what is found out about programs: see `breaks`."""

from breaks import numpyro, pyro

HIDDEN, SETTINGS = "tests/test_hidden_mixing.py", "tests/test_settings.py"
FOUND = f"{HIDDEN}::test_data_that_mix_without_effect_are_found"
TOLD = f"{HIDDEN}::test_operations_tell_whose_draws_a_number_is_of"
SEEN = f"{SETTINGS}::test_a_setting_is_seen"
STEPS = "tests/test_steps_at_once_numpyro.py"

PROGRAMS = [
    *pyro(
        "programs/structure/owners.py",
        "return torch.maximum(picked, joined.reshape(*shape, *[1] * after))",
        "return picked",
        TOLD,
    ),
    *pyro(
        "programs/structure/owners.py",
        "[rows, two.amax(0 if is_vector else -2, not is_vector), *added]",
        "[rows, *added]",
        TOLD,
    ),
    *pyro(
        "programs/structure/owners.py",
        "return marks.amax(dim, True).expand(result.shape).contiguous() if marks.numel() else None",
        "return marks",
        TOLD,
    ),
    *pyro(
        "programs/structure/mixing.py",
        "(_is_led(of_plate, sites, frame) or _mixes(of_plate, sites, frame))",
        "_mixes(of_plate, sites, frame)",
        FOUND,
    ),
    *pyro(
        "programs/structure/cells.py",
        "        return not is_led\n",
        "        return True\n",
        f"{HIDDEN}::test_exact_values_and_gradients_of_hidden_mixing",
    ),
    *pyro(
        "programs/structure/broadcasting.py",
        "if any(owners.has_others(value, 0) for value in read):",
        "if False:",
        f"{HIDDEN}::test_a_count_of_any_code_over_particles_is_found",
    ),
    *pyro(
        "programs/structure/looking.py",
        "if of_trials or (is_ours(error) and not of_shapes):",
        "if False:",
        f"{HIDDEN}::test_a_fault_of_the_package_is_no_word_of_a_program",
    ),
    *numpyro(
        "programs/structure/axes.py",
        "return [GATHERED if reduces and is_alone else MIXED] * len(step.outvars)",
        "return [MIXED] * len(step.outvars)",
        FOUND,
    ),
    *numpyro(
        "programs/structure/mixing.py",
        "        with FromZero():\n            values",
        "        if True:\n            values",
        FOUND,
    ),
    *numpyro(
        "programs/structure/cells.py",
        "        if found == GATHERED:\n            return False\n",
        "",
        f"{HIDDEN}::test_exact_values_and_gradients_of_hidden_mixing",
    ),
    *pyro(
        "programs/structure/ways.py",
        "        unfinished += further\n",
        "",
        "tests/test_ways_pyro.py",
    ),
    *pyro(
        "programs/structure/ways.py",
        "return [{**values, name: state} for state in states]",
        "return [{**values, name: states[0]}]",
        "tests/test_ways_pyro.py",
    ),
    *pyro(
        "programs/settings.py",
        "        if isinstance(inner, CodeType):\n",
        "        if False:\n",
        SEEN,
    ),
    *pyro(
        "programs/settings.py",
        "        yield from _attributes(program.__self__)\n",
        '        yield from getattr(program.__self__, "__dict__", {}).values()\n',
        SEEN,
    ),
    *pyro(
        "programs/settings.py",
        "yield from (each for each in found if isinstance(each, _PLAIN))",
        "yield from ()",
        SEEN,
    ),
    *pyro(
        "programs/settings.py",
        "        elif depth > 1:\n",
        "        elif False:\n",
        SEEN,
    ),
    *pyro(
        "infer/truncated/guide.py",
        "known = self._known(args, kwargs, path.taken)",
        "known = self._known(args, kwargs)",
        "tests/test_branches.py::test_states_of_a_branch_that_comes_late_are_refused",
    ),
    *numpyro(
        "programs/plans.py",
        "looks((pair.args, pair.kwargs)), path_taken(rng_key, pair)",
        "looks((pair.args, pair.kwargs)), 0",
        "tests/test_branches.py::test_a_setting_that_changes_late_is_found",
    ),
    *numpyro(
        "programs/structure/matching.py",
        "    _check_batches(guide, model)\n",
        "",
        f"{STEPS}::test_dims_that_do_not_fit_are_refused",
    ),
    *numpyro(
        "programs/structure/matching.py",
        "fits = given == taken and drawn == scored",
        "fits = True",
        f"{STEPS}::test_dims_that_do_not_fit_are_refused",
    ),
    *numpyro(
        "programs/handlers/steps.py",
        "if found != shape and _without_ones(found) == _without_ones(shape):",
        "if False:",
        f"{STEPS}::test_dreams_of_steps_that_the_guide_draws_at_once",
    ),
    *numpyro(
        "programs/handlers/steps.py",
        "is_masked_more = not site.is_observed and batch != drawn",
        "is_masked_more = False",
        f"{STEPS}::test_weights_around_steps_that_have_other_dims_in_the_other_program",
    ),
    *numpyro(
        "programs/handlers/steps.py",
        "if is_masked_more or jnp.broadcast_shapes(found, batch) != batch:",
        "if is_masked_more:",
        f"{STEPS}::test_weights_around_steps_that_have_other_dims_in_the_other_program",
    ),
]
