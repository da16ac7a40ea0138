"""Try random programs on every loss, and count what agrees and what is refused, and why.

    python tests/random_programs.py --backend pyro --count 200
    python tests/random_programs.py --backend numpyro --count 1000 --losses 4 --calls 1 --scans

Prints each failure with the seed that repeats it (`--start SEED --count 1`), then the counts.
"""

import argparse
import importlib
import re
import sys
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field

from random_checks import LOSSES, Checker, RefusedError, credited_over_states, make
from random_specs import of_automatic, of_bits, of_one_plate, with_rest
from random_strategy import shrunk, spec_of

__all__ = ["ALL", "Tally", "in_turn", "try_program"]

BETAS = (1.0, 0.3)
AUTOMATIC = {  # with an automatic guide
    "Exact_ELBO of AutoDiscrete": "Exact_ELBO",
    "DAPS_ELBO of AutoDiscrete": "DAPS_ELBO",
}
EXTRA = ("credit", "pairs of draws", "frequencies")
ALL = (*LOSSES, *AUTOMATIC, *EXTRA)


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

    def add(self, other):
        self.agreed += other.agreed
        self.refused += other.refused
        self.failed += other.failed

    def report(self):
        """How many programs each loss met, and why some were refused."""
        agreed, refused = sum(self.agreed.values()), sum(self.refused.values())
        lines = [f"{agreed} agreed, {refused} refused, {len(self.failed)} failed"]
        for name in ALL:
            reasons = {r: n for (loss, r), n in self.refused.items() if loss == name}
            failed = sum(loss == name for loss, _, _ in self.failed)
            away = sum(reasons.values())
            lines.append(f"{name}: {self.agreed[name]} agreed, {away} refused, {failed} failed")
            for reason, times in sorted(reasons.items(), key=lambda entry: -entry[1]):
                lines.append(f"    {times} {reason}")
        return "\n".join(lines)


def _reason(error):
    """A refusal without the names of the sites."""
    return re.sub(r"'[^']*'|\[[^\]]*\]|\d+", "*", str(error))[:90]


def in_turn(seed, count):
    """So many losses for a program: over some programs, all as often."""
    return [ALL[(seed * count + place) % len(ALL)] for place in range(count)]


def try_program(package, calls, seed, losses=None, order=(0, 1, 0), betas=BETAS):
    """Calls of a program in an order, by default the first one again, for each loss.

    The losses have one beta and the other in turn.
    """
    tally, program = Tally(), package.Program(calls[0])
    names = ALL if losses is None else losses
    for index, name in enumerate(names):
        beta = betas[(seed + index) % len(betas)]
        label = f"beta {beta}"
        if name in EXTRA:
            for place in set(order):
                program.use(calls[place])
                where = f"call {place}, {label}"
                _try_extra(tally, package, Checker(program, seed), name, beta, where)
            continue
        loss = AUTOMATIC.get(name, name)
        elbo = make(package, loss, beta, **_options(seed + index))
        for place in order:
            spec = calls[place]
            program.use(taken_by(name, spec))
            checker = Checker(program, seed)
            if name in AUTOMATIC and not program.spec.order:
                continue  # there is nothing to guide
            tally.attempt(name, f"call {place}, {label}", checker.check, loss, elbo, beta)
    return tally


def taken_by(name, spec):
    """The program as a loss takes it that does not take all."""
    if name == "Truncated_ELBO":
        return shrunk(of_one_plate(with_rest(spec)))
    if name in AUTOMATIC:
        return shrunk(of_automatic(spec))
    return of_bits(spec) if name == "DisARM_ELBO" else spec


def _options(number):
    """How the programs are run, which must not matter."""
    if number % 5 == 0:
        return {"vectorize_particles": False}
    return {"max_plate_nesting": 4.0} if number % 5 == 1 else {}


def _try_extra(tally, package, checker, name, beta, label):
    spec, loss = checker.spec, package.infer.Reinforce_ELBO
    if any(site.kind == "score_normal" for site in spec.of_guide()) or not checker.states.codes:
        return
    if name == "credit":
        elbo = credited_over_states(package, beta, closed_form_entropy=spec.seed % 2 == 0)
        tally.attempt(name, label, checker.check_credit, elbo, beta)
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
    parser.add_argument("--count", type=int, default=200, help="programs")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--losses", type=int, default=len(ALL), help="of a program, in turn")
    parser.add_argument("--calls", type=int, default=3, help="of a program by a loss")
    parser.add_argument("--scans", action="store_true", help="programs with a `scan` alone")
    parser.add_argument("--trace", action="store_true", help="where each failure comes from")
    options = parser.parse_args()
    warnings.simplefilter("error")
    package = importlib.import_module(f"random_{options.backend}")
    total = Tally()
    for seed in range(options.start, options.start + options.count):
        losses = in_turn(seed, options.losses)
        order = (0, 1, 0)[: options.calls] if options.calls > 1 else (seed // len(ALL) % 2,)
        scans = "all" if options.scans else package.takes_scans
        calls = spec_of(seed, package.takes_python, scans=scans)
        tally = try_program(package, calls, seed, losses, order)
        total.add(tally)
        for name, label, error in tally.failed:
            text = " ".join(str(error).split())[:300]
            print(f"seed {seed}: {name}, {label}: {type(error).__name__}: {text}", flush=True)
            if options.trace:
                traceback.print_exception(error)
    print(f"{options.count} programs: {total.report()}")
    sys.exit(bool(total.failed))


if __name__ == "__main__":
    main()
