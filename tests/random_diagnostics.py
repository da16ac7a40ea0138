"""Random programs through the diagnostics: numbers are those of sums over all states, or refused.

    python tests/random_diagnostics.py --backend pyro --count 200

Prints each failure with the seed that repeats it (`--start SEED --count 1`), then the counts.
"""

import argparse
import importlib
import sys
import traceback
import warnings
from collections import Counter

import numpy as np
from random_checks import Checker, RefusedError
from random_formulas import exact
from random_oracle import evaluate
from random_strategy import spec_of

__all__ = ["try_diagnostics"]

K = 200
QUIET = (
    "model or guide does not broadcast",
    "the discrete sites share no plate",
    "Python asks for the values",
)


def try_diagnostics(package, spec, seed):
    """What each diagnostic says of a program, against the exact numbers; reasons of refusals."""
    refused, program = [], package.Program(spec)
    checks = {"importance": _check_importance, "gap": _check_gap, "arviz": _check_arviz}
    for name, check in checks.items():
        try:
            with warnings.catch_warnings():
                for text in QUIET:
                    warnings.filterwarnings("ignore", text)
                check(package, program, seed)
        except ValueError as error:
            refused.append((name, str(RefusedError.of(error))))
    return refused


class _Exact:
    """Of a program whose latents are all discrete."""

    def __init__(self, program, seed):
        self.checker = Checker(program, seed)
        spec = program.spec
        kinds = {site.kind for site in spec.of_guide()}
        self.is_listed = not kinds & {"normal", "score_normal"}
        rows = self.checker.rows()  # those that NumPyro draws are not told
        self.is_known = self.is_listed and {p.name for p in spec.plates if p.full} <= set(rows)
        draws = self.checker.states._replace(rows=rows)
        data, theta = self.checker.data, self.checker.theta
        if self.is_known:
            self.elbo = -exact(spec, data, draws, theta)[0]
            found = evaluate(spec, data, theta, draws)
            terms = found["model"].values()
            total = [np.where(t.is_latent, t.bare, t.log_prob)[0].real for t in terms]
            sums = [part.reshape(len(part), -1).sum(1) for part in total]
            sites = spec.of_guide()  # a factor or a mask of its own makes log q no density
            parts = [site.guide for site in sites] + [s.model for s in sites if s.model]
            self.has_factor = "factor" in {site.kind for site in sites if site.guide}
            self.is_bound = not (
                {"factor"} & {s.kind for s in sites} or {p.mask for p in parts} - {"none"}
            )
            both = [*terms, *found["guide"].values()]  # which may weigh a site otherwise
            self.has_scale = any((t.scale != 1).any() for t in both)
            self.evidence = np.logaddexp.reduce(np.sum(sums, axis=0)) if sums else 0.0


def _check_importance(package, program, seed):
    found = package.diagnose("importance_diagnostics", program, seed, num_particles=K)
    _check_whole(found, _Exact(program, seed))
    assert np.isfinite(found.whole.iwae) or not np.isfinite(found.whole.elbo)
    assert found.verdicts.shape == found.elbo.shape
    assert str(found).endswith(".")


def _check_whole(found, known):
    whole = found.whole
    if found.is_bound.all():  # masked latents that matter count otherwise in the loss
        assert not whole.iwae < whole.elbo - 1e-6 * (1 + abs(whole.elbo))
    if known.is_known:
        error = 5 * whole.elbo_error + 0.02 + 1e-5 * abs(known.elbo)
        assert abs(whole.elbo - known.elbo) < error, (whole, known.elbo)
    if known.is_known and known.is_bound and not known.has_scale:
        error = 5 * whole.iwae_error + 0.5
        assert whole.iwae < known.evidence + error, (whole, known.evidence)
    is_called_bound = found.is_bound.all() and not (found.weighed or found.factors)
    if known.is_known and is_called_bound and not known.has_scale:
        error = 5 * whole.elbo_error + 0.02
        assert whole.elbo < known.evidence + error, (whole, known.evidence)
    if known.is_known and known.has_factor:
        assert found.factors


def _check_gap(package, program, seed):
    found, known = package.diagnose("posterior_gap", program, seed), _Exact(program, seed)
    assert known.is_listed, "a continuous latent was listed"
    assert (found.gap[found.is_bound] > -1e-6).all()
    if not known.is_known:
        return
    np.testing.assert_allclose(found.whole_elbo, known.elbo, rtol=1e-6, atol=1e-6)
    if not known.has_scale:
        np.testing.assert_allclose(found.whole_log_evidence, known.evidence, rtol=1e-6, atol=1e-6)


def _check_arviz(package, program, seed):
    with warnings.catch_warnings():  # of draws of what is shared, which may be off
        warnings.filterwarnings("ignore", "`posterior`, and `marginal`")
        idata = package.diagnose("to_arviz", program, seed, num_draws=60)
    stats = idata["vi_stats"]
    weights = idata["sample_stats"]["log_weight"].values
    assert np.isfinite(weights).all()
    known = _Exact(program, seed)
    if known.is_known:
        error = 5 * float(stats["whole_elbo_error"]) + 0.1 + 1e-5 * abs(known.elbo)
        assert abs(float(stats["whole_elbo"]) - known.elbo) < error


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["pyro", "numpyro"], default="pyro")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--scans", action="store_true", help="programs with a `scan` alone")
    args = parser.parse_args()
    package, reasons, failures = importlib.import_module(f"random_{args.backend}"), Counter(), 0
    for seed in range(args.start, args.start + args.count):
        try:
            scans = "all" if args.scans else package.takes_scans
            spec = spec_of(seed, package.takes_python, scans=scans)[0]
            reasons.update((name, text[:90]) for name, text in try_diagnostics(package, spec, seed))
        except Exception:
            failures += 1
            print(f"--start {seed} --count 1")
            traceback.print_exc(limit=-3, file=sys.stdout)
    print(f"{args.count} programs, {failures} failures; refused:")
    for (name, text), count in reasons.most_common():
        print(f"{count:5} {name}: {text}")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
