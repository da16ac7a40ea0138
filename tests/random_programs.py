"""Try random programs on every loss, and count what agrees and what is refused, and why.

    python tests/random_programs.py --backend pyro --count 200

Prints each failure with the seed that repeats it (`--start SEED --count 1`), then the counts.
"""

import argparse
import importlib
import itertools
import re
import sys
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field

from random_checks import LOSSES, Checker, RefusedError, make
from random_specs import with_rest
from random_strategy import spec_of

__all__ = ["Tally", "try_program"]

BETAS = (1.0, 0.3)
EXTRA = ("pairs of draws", "frequencies")


@dataclass
class Tally:
    """What became of the losses on some programs."""

    agreed: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)  # by (loss, reason)
    failed: list = field(default_factory=list)  # (loss, which call, error)

    def attempt(self, name, label, check, *args):
        try:
            check(*args)
        except RefusedError as error:
            self.refused[name, _reason(error)] += 1
        except Exception as error:
            self.failed.append((name, label, error))
        else:
            self.agreed[name] += 1


def _reason(error):
    """A refusal without the names of the sites."""
    return re.sub(r"'[^']*'|\[[^\]]*\]|\d+", "*", str(error))[:90]


def try_program(package, calls, seed, losses=None, order=(0, 1, 0), betas=BETAS):
    """Calls of a program in an order, by default the first one again, for each loss.

    The losses have one beta and the other in turn.
    """
    tally, program = Tally(), package.Program(calls[0])
    names = [*LOSSES, *EXTRA] if losses is None else losses
    for index, name in enumerate(names):
        beta = betas[(seed + index) % len(betas)]
        label = f"beta {beta}"
        if name in EXTRA:
            for place in set(order):
                program.use(calls[place])
                where = f"call {place}, {label}"
                _try_extra(tally, package, Checker(program, seed), name, beta, where)
            continue
        elbo = make(package, name, beta, **_options(seed + index))
        for place in order:
            spec = calls[place]
            program.use(with_rest(spec) if name == "Truncated_ELBO" else spec)
            checker = Checker(program, seed)
            tally.attempt(name, f"call {place}, {label}", checker.check, name, elbo, beta)
    return tally


def _options(number):
    """How the programs are run, which must not matter."""
    if number % 5 == 0:
        return {"vectorize_particles": False}
    return {"max_plate_nesting": 4.0} if number % 5 == 1 else {}


def _try_extra(tally, package, checker, name, beta, label):
    spec, loss = checker.spec, package.infer.Reinforce_ELBO
    if any(site.kind == "score_normal" for site in spec.of_guide()) or not checker.states.codes:
        return
    if name == "frequencies" and not spec.depends_on_draws:
        elbo = loss(20 if spec.asks_python else 200)
        tally.attempt(name, label, checker.check_frequencies, elbo)
    if name == "pairs of draws" and spec.depends_on_draws:
        for closed_form in (False, True):
            elbo = loss(2, beta=beta, closed_form_entropy=closed_form)
            tally.attempt(name, label, checker.check_pairs, elbo, beta)


# ------------------------------------------------------------------------------------ command


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("pyro", "numpyro"), default="pyro")
    parser.add_argument("--count", type=int, default=200, help="programs, of two calls each")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--trace", action="store_true", help="where each failure comes from")
    options = parser.parse_args()
    warnings.simplefilter("error")
    package = importlib.import_module(f"random_{options.backend}")
    total = Tally()
    for seed in range(options.start, options.start + options.count):
        tally = try_program(package, spec_of(seed, package.takes_python), seed)
        total.agreed += tally.agreed
        total.refused += tally.refused
        for name, label, error in tally.failed:
            text = " ".join(str(error).split())[:300]
            print(f"seed {seed}: {name}, {label}: {type(error).__name__}: {text}", flush=True)
            if options.trace:
                traceback.print_exception(error)
        total.failed += tally.failed
    _report(total, options.count)
    sys.exit(bool(total.failed))


def _report(total, count):
    agreed, refused = sum(total.agreed.values()), sum(total.refused.values())
    print(f"{count} programs: {agreed} agreed, {refused} refused, {len(total.failed)} failed")
    for name in itertools.chain(LOSSES, EXTRA):
        reasons = {r: n for (loss, r), n in total.refused.items() if loss == name}
        failed = sum(loss == name for loss, _, _ in total.failed)
        print(
            f"{name}: {total.agreed[name]} agreed, {sum(reasons.values())} refused, {failed} failed"
        )
        for reason, times in sorted(reasons.items(), key=lambda entry: -entry[1]):
            print(f"    {times} {reason}")


if __name__ == "__main__":
    main()
