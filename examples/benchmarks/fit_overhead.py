"""What `fit` takes beside its steps: a tiny model, a row of the log every 50 steps.

    python examples/benchmarks/fit_overhead.py numpyro
    python examples/benchmarks/fit_overhead.py pyro

Steps of `fit` are those by which a run of twice as many takes longer: what a run does once, as
tracing its program, is told apart. They are divided by the same steps without `fit`: one compiled
scan of them in NumPyro, `SVI.step` in Pyro. CPU time, side by side; the median over rounds.
"""

import argparse
import importlib
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from timing import side_by_side

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
STEPS = {"numpyro": 20_000, "pyro": 300}


def programs(ppl: Any, zeros: Callable[[int], Any]) -> tuple[Callable, Callable]:
    """A model of four parameters, and its guide."""

    def model(x: Any) -> None:
        w = ppl.param("w", zeros(4))
        with ppl.plate("data", len(x)):
            z = ppl.sample("z", ppl.distributions.Bernoulli(0.5))
            of_x = ppl.distributions.Normal(w * z[..., None], 1.0).to_event(1)
            ppl.sample("x", of_x, obs=x)

    def guide(x: Any) -> None:
        a = ppl.param("a", zeros(4))
        with ppl.plate("data", len(x)):
            ppl.sample("z", ppl.distributions.Bernoulli(logits=x @ a))

    return model, guide


def of_numpyro(num_steps: int) -> tuple[Callable, Callable]:
    """The steps in one scan, and a `fit` of so many times as many."""
    import jax
    import numpyro

    importlib.import_module("numpyro.distributions")
    from numpyro_dvae.fit import fit
    from numpyro_dvae.infer import DAPS_ELBO, SVI

    svi = SVI(*programs(numpyro, jax.numpy.zeros), numpyro.optim.Adam(1e-3), DAPS_ELBO(4))
    x, key = jax.numpy.asarray(X), jax.random.key(0)
    state = svi.init(key, x)

    @jax.jit
    def scan(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: svi.update(s, x), state, None, length=num_steps)

    def fitted(times: int) -> Any:
        return fit(key, svi, x, num_steps=times * num_steps, progress=False, log_every=50)

    return lambda: jax.block_until_ready(scan(state)), fitted


def of_pyro(num_steps: int) -> tuple[Callable, Callable]:
    """The steps in a loop, and a `fit` of so many times as many."""
    import pyro
    import torch
    from pyro.infer import SVI

    from pyro_dvae.fit import fit
    from pyro_dvae.infer import DAPS_ELBO

    svi = SVI(*programs(pyro, torch.zeros), pyro.optim.Adam({"lr": 1e-3}), DAPS_ELBO(4))
    x = torch.from_numpy(X)

    def bare() -> None:
        for _ in range(num_steps):
            svi.step(x)

    def fitted(times: int) -> Any:
        return fit(svi, x, num_steps=times * num_steps, progress=False, log_every=50)

    return bare, fitted


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package", choices=sorted(STEPS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    make = {"numpyro": of_numpyro, "pyro": of_pyro}[options.package]
    bare, fitted = make(STEPS[options.package])
    runs = {"bare": bare, "once": lambda: fitted(1), "twice": lambda: fitted(2)}
    found = side_by_side(runs, rounds=options.rounds, repeats=1, warmup=1)
    rounds = list(zip(*found.values(), strict=True))
    ratio = statistics.median((twice - once) / bare for bare, once, twice in rounds)
    start = statistics.median(2 * once - twice for _, once, twice in rounds)
    print(f"{options.package}: `fit` takes {ratio:.2f} times its steps, and {start:.2f} s a run")


if __name__ == "__main__":
    main()
