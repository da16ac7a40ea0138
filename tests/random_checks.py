"""Whether a loss is right on a random program, by three checks that need no luck.

- At the draws that it made, its value and gradient are the formulas of its paper, with the data
  that it found to be independent; an exact loss is the sum over all states.
- The mean of these formulas over all draws is the exact gradient.
- Its draws are as frequent as their probabilities.

Where the sites depend on the draws, so do the data; there, pairs of draws are set, one pair after
another, and the loss's own gradients are averaged.

A loss that raises `RefusedError`, a ValueError of its own, refuses; all else is a failure.
"""

import itertools
import traceback
from pathlib import Path

import numpy as np
from random_formulas import (
    exact,
    mean_of_pairs,
    mean_over_draws,
    pieces,
    sleep,
    surrogate,
    truncated,
    value_at,
)
from random_oracle import Draws, evaluate, gradient, perturbed, states
from scipy.stats import binom

__all__ = ["LOSSES", "Checker", "RefusedError", "credited_over_states", "make"]

K = 3
LOSSES = {
    "Exact_ELBO": ("Exact_ELBO", {}),
    "Reinforce_ELBO": ("Reinforce_ELBO", {"num_particles": K, "closed_form_entropy": False}),
    "Reinforce_ELBO(entropy)": ("Reinforce_ELBO", {"num_particles": K}),
    "Reinforce_ELBO(no_baseline)": (
        "Reinforce_ELBO",
        {"num_particles": K, "baseline": "no_baseline", "closed_form_entropy": False},
    ),
    "Reinforce_ELBO(moving_average)": (
        "Reinforce_ELBO",
        {"num_particles": K, "baseline": "moving_average", "closed_form_entropy": False},
    ),
    "Reinforce_ELBO(learned)": (
        "Reinforce_ELBO",
        {"num_particles": K, "baseline": "learned", "closed_form_entropy": False},
    ),
    "DAPS_ELBO": ("DAPS_ELBO", {"num_particles": K}),
    "DAPS_ELBO(entropy)": ("DAPS_ELBO", {"num_particles": K, "closed_form_entropy": True}),
    "VIMCO_ELBO": ("VIMCO_ELBO", {"num_particles": K}),
    "WakeSleep_ELBO": ("WakeSleep_ELBO", {"num_particles": K}),
    "WakeSleep_ELBO(sleep)": (
        "WakeSleep_ELBO",
        {
            "num_particles": K,
            "sleep": 0.3,
            "replace_data": lambda made, args, kwargs: (args, kwargs),
        },
    ),
    "DisARM_ELBO": ("DisARM_ELBO", {"num_particles": 4, "closed_form_entropy": False}),
    "Truncated_ELBO": ("Truncated_ELBO", {"sweeps": 0}),
}
TOLERANCE = 1e-8
MOST_PAIRS = 144  # of states that are set one after another
SHARE_OF_FALSE_ALARMS = 1e-9


class RefusedError(Exception):
    """A loss has refused a program, for this reason."""

    @classmethod
    def of(cls, error):
        """Of a ValueError that packages or hosts raise on purpose; any other one is a failure."""
        where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not {"pyro_dvae", "numpyro_dvae", "pyro", "numpyro"} & set(where.parts):
            raise error
        return cls(str(error))


def make(package, name, beta, **more):
    """A loss by its name in `LOSSES`, with more options where it takes them."""
    kind, options = LOSSES[name]
    options = {**options, **({} if name == "Truncated_ELBO" else more)}
    if "baseline" in options:
        options["baseline"] = getattr(package.baselines, options["baseline"])()
    loss = getattr(package.infer, kind)
    if kind == "Reinforce_ELBO":  # the formulas credit each draw with all of its datum
        loss = type(kind, (loss,), {"inspect": lambda self, *args: None})
    if kind == "DisARM_ELBO":
        whole = {
            "inspect": lambda self, *args: disarm.inspect(self, *args)._replace(influence=None)
        }
        disarm, loss = loss, type(kind, (loss,), whole)
    return loss(beta=beta, **options)


def credited_over_states(package, beta, *, closed_form_entropy):
    """`Reinforce_ELBO` at all states of each datum, each weighed by its probability."""
    loss, exact_loss, fixed = package.infer.Reinforce_ELBO, package.infer.Exact_ELBO, package.fixed

    class Credited(loss):
        max_states = 2**16

        def values(self, *args):
            return exact_loss.values(self, *args)

        def run_pair(self, *args):
            return super().run_pair(*args[:-1], args[-1]._replace(expand=True))

        def gain(self, particles, objective, beta, memory):
            weights = fixed(np.e**particles.log_draw) * len(particles.log_draw)

            def weigh(scores, *_):
                cells = weights.reshape(*weights.shape, *[1] * (scores.ndim - weights.ndim))
                return scores * (1 - cells), memory

            self.baseline = self.baseline._replace(apply=weigh)
            if "credit" in particles.extras:
                value = self._credited(particles, beta)
            else:
                value = (weights * fixed(objective.beta_elbo) * particles.log_draw).mean(0)
            value = value + (weights * objective.beta_elbo).mean(0)
            return package.infer.Gain(value, memory=memory)

    options = {"baseline": package.baselines.no_baseline()}
    options["closed_form_entropy"] = closed_form_entropy
    return Credited(1, beta=beta, **options)


def assert_close(found, expected, what):
    np.testing.assert_allclose(found, expected, TOLERANCE, TOLERANCE, err_msg=what)


def assert_gradients(found, expected, places, what="gradient"):
    for name, slope in gradient(expected, places).items():
        assert_close(found[name], slope, f"{what} of {name}")


class Checker:
    """Checks of one call of a program.

    Args:
        program: In its framework, with the call's spec.
        seed: Of the draws.
    """

    def __init__(self, program, seed=0):
        self.program, self.seed = program, seed
        self.spec, self.data = program.spec, program.arrays
        self.theta, self.places = perturbed(self.spec)
        self.states = states(self.spec, self.data)
        self.fair = set()  # what was found to have the right mean

    def check(self, name, elbo, beta):
        """One loss; raises AssertionError where it is wrong."""
        if name == "Exact_ELBO":
            return self.check_exact(elbo, beta)
        if name == "Truncated_ELBO":
            return self.check_truncated(elbo, beta)
        if name == "WakeSleep_ELBO(sleep)" and self._draws_rows():
            return None  # those of the dream are others
        self.program.hold(None)
        self.beta = beta
        memory = self.program.memory(elbo)
        result = self.program.run(elbo, seed=self.seed)
        draws = self.draws(elbo.num_particles)
        plates = result.plates or ()
        frozen, paired = (), ()
        if name == "DisARM_ELBO":
            paired = self.program.sites_of(result.notes.paired)
        if name.startswith("WakeSleep_ELBO"):
            frozen = [key for key in draws.normals if set(plates) <= set(self.spec[key].plates)]
        terms = evaluate(self.spec, self.data, self.theta, draws, frozen)
        found = pieces(self.spec, terms, plates, paired or ())
        with_entropy = result.particles.entropy is not None
        assert_close(result.loss, value_at(found, with_entropy), "value")
        if paired is None:
            return None  # some steps of a site alone, of which the formulas know nothing
        if name == "Reinforce_ELBO(learned)":
            memory = self.theta["guide.baseline"]
        expected = surrogate(name, found, beta, with_entropy, result.info, memory)
        if name == "WakeSleep_ELBO(sleep)":
            expected = expected + self.sleep(found, plates)
        assert_gradients(result.grads, expected, self.places)
        if self._can_list():
            self.check_mean(plates, beta, paired)
        return None

    def sleep(self, found, plates):
        """What the dream changes: the share of its update less that of the waking one's."""
        dreamt = self.draws(1, dreamt=True)
        terms = evaluate(self.spec, self.data, self.theta, dreamt, list(dreamt.normals))
        kept = {n: t for n, t in terms["guide"].items() if self.spec[n].model is not None}
        terms["guide"] = kept  # a factor or an auxiliary site is not dreamt
        dream = pieces(self.spec, terms, plates)
        return sleep(found, dream, LOSSES["WakeSleep_ELBO(sleep)"][1]["sleep"], self.beta)

    def draws(self, count, dreamt=False):
        """Of the last call."""
        drawn, spec = self.program.drawn(count, dreamt), self.spec
        codes = {key: value for key, value in drawn.items() if spec[key].is_discrete}
        normals = {key: value for key, value in drawn.items() if not spec[key].is_discrete}
        return Draws(codes, normals, self.rows(), count=count)

    def rows(self):
        return {key[5:]: value for key, value in self.program.rows.items()}

    def rows_of_runs(self):
        """The same of each run of the last value, if these are told."""
        known = getattr(self.program, "rows_of_runs", ()) or [self.program.rows]
        return [{key[5:]: value for key, value in rows.items()} for rows in known]

    def _draws_rows(self):
        return any(plate.full and plate.rows == "drawn" for plate in self.spec.plates)

    def _can_list(self):
        scored = any(site.kind == "score_normal" for site in self.spec.of_guide())
        return not scored and not self.spec.depends_on_draws

    def check_exact(self, elbo, beta):
        """Value and gradient by a sum over all states, at one noise of the normal sites."""
        self.program.hold(self.states)
        result = self.program.run(elbo, seed=self.seed)
        draws = self.states._replace(rows=self.rows())
        value, ascended, probs = exact(self.spec, self.data, draws, self.theta, beta)
        assert_close(probs.sum(), 1.0, "probabilities")
        assert_close(result.loss, value, "value")
        assert_gradients(result.grads, ascended, self.places)
        again = self.program.value(elbo, seed=self.seed)
        found = []
        for rows in self.rows_of_runs():  # drawn anew where the plan was, or looked at
            draws = self.states._replace(rows=rows)
            found.append(exact(self.spec, self.data, draws, self.theta, beta)[0])
        nearest = min(found, key=lambda value: abs(value - again))
        assert_close(again, nearest, "value without gradient")

    def check_mean(self, plates, beta, paired=()):
        """Whether the formulas have the exact gradient as their mean with these data."""
        rows = self.rows()  # that the program has drawn, and sites may come and go with these
        key = (*sorted(plates), *paired, str(rows))
        many = len(next(iter(self.states.codes.values()), ())) > 32
        if key in self.fair or (paired and many):
            return
        draws = self.states._replace(rows=rows)
        _, expected, _ = exact(self.spec, self.data, draws, self.theta, beta)
        if paired:
            mean = mean_of_pairs(self.spec, self.data, draws, plates, paired, beta)
        else:
            mean = mean_over_draws(self.spec, self.data, draws, plates, beta)
        assert_gradients(
            gradient(mean, self.places), expected, self.places, f"mean over {key[:-1]}"
        )
        self.fair.add(key)

    def check_credit(self, elbo, beta):
        """Gradients where each draw is credited with what it can influence, over all states."""
        self.program.hold(self.states)
        result = self.program.run(elbo, seed=self.seed)
        draws = self.states._replace(rows=self.rows())
        _, expected, _ = exact(self.spec, self.data, draws, self.theta, beta)
        assert_gradients(result.grads, expected, self.places, "credited gradient")
        self.program.has_credit = "credit" in result.particles.extras

    def check_pairs(self, elbo, beta):
        """The mean of a loss's gradients over all pairs of states, where these tell the sites."""
        self.program.hold(self.states)
        value, expected, probs = exact(self.spec, self.data, self.states, self.theta, beta)
        if len(probs) ** 2 > MOST_PAIRS or self._draws_rows():
            return
        loss, mean = 0.0, {name: 0.0 for name in self.places}
        for pair in itertools.product(range(len(probs)), repeat=2):
            self.program.set_draws(self.states, pair)
            result = self.program.run(elbo, seed=self.seed)
            if self.program.vectorized:
                return
            weight = probs[list(pair)].prod()
            loss = loss + weight * result.loss
            mean = {name: mean[name] + weight * result.grads[name] for name in mean}
        self.program.set_draws(None, ())
        assert_close(loss, value, "mean value")
        assert_gradients(mean, expected, self.places, "mean gradient")

    def check_frequencies(self, elbo):
        """How often each state is drawn, at one noise of the normal sites."""
        self.program.hold(self.states)
        self.program.run(elbo, seed=self.seed)
        drawn = self.draws(elbo.num_particles).codes
        _, _, probs = exact(
            self.spec, self.data, self.states._replace(rows=self.rows()), self.theta
        )
        rows = {name: value.reshape(len(value), -1) for name, value in self.states.codes.items()}
        listed = np.concatenate([rows[name] for name in rows], 1)
        seen = np.concatenate([drawn[n].reshape(len(drawn[n]), -1) for n in rows], 1)
        counts = (seen[:, None] == listed[None]).all(-1).sum(0)
        assert counts.sum() == len(seen), "a draw is no state"
        low = binom.cdf(counts, len(seen), probs.clip(0, 1))
        high = binom.sf(counts - 1, len(seen), probs.clip(0, 1))
        assert np.minimum(low, high).min() > SHARE_OF_FALSE_ALARMS, (counts, len(seen) * probs)

    def check_truncated(self, elbo, beta):
        """All states of each datum in its set: the best posterior, and its bound's gradient."""
        self.program.hold(self.states)
        plates, result = self.program.run_sets(elbo, seed=self.seed)
        draws = self.states._replace(rows=self.rows(), count=self.states_count())
        value, bound = truncated(self.spec, self.data, self.theta, draws, plates, beta)
        assert_close(result.loss, value, "value")
        assert_gradients(result.grads, bound, self.places)

    def states_count(self):
        return max(map(len, self.states.codes.values()), default=1)
