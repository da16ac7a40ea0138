"""Time a step with a chain that is summed out against the host's own enumeration.

A hidden Markov chain beside a location that is drawn, under Reinforce_ELBO and under the host: in
Pyro `TraceEnum_ELBO`; in NumPyro, whose TraceEnum_ELBO does not sum a `scan` rightly, the
`log_density` that its samplers use, in an ELBO by hand. One process, one package:

    python examples/benchmarks/enumeration.py --package pyro --steps 500
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

NUM_PARTICLES = 2
TABLE = [[0.9, 0.1], [0.3, 0.7]]


def pyro_steps(data: np.ndarray) -> tuple[Callable, Callable]:
    """A step of the host's loss and one of ours."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import TraceEnum_ELBO

    from pyro_dvae.infer import Reinforce_ELBO

    table, x = torch.tensor(TABLE), torch.as_tensor(data, dtype=torch.float32)

    def model() -> None:
        slope = pyro.param("slope", torch.tensor(1.0))
        loc, z = pyro.sample("loc", dist.Normal(0.0, 1.0)), torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z{t}", dist.Categorical(table[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"x{t}", dist.Normal(loc + slope * z, 1.0), obs=x[t])

    def guide() -> None:
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)), 0.1))

    host = TraceEnum_ELBO(
        num_particles=NUM_PARTICLES, vectorize_particles=True, max_plate_nesting=0
    )
    ours = Reinforce_ELBO(num_particles=NUM_PARTICLES)
    return (
        lambda: host.loss_and_grads(model, guide),
        lambda: ours.loss_and_grads(model, guide),
    )


def numpyro_steps(data: np.ndarray) -> tuple[Callable, Callable]:
    """A step of the host's density and one of our loss, compiled."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan
    from numpyro.contrib.funsor import enum, log_density

    from numpyro_dvae.infer import Reinforce_ELBO

    table, x, params = jnp.array(TABLE), jnp.asarray(data), {"slope": 1.0, "m": 0.0}

    def model() -> None:
        slope, loc = numpyro.param("slope", 1.0), numpyro.sample("loc", dist.Normal(0.0, 1.0))

        def step(z: Any, y: Any) -> tuple[Any, None]:
            z = numpyro.sample("z", dist.Categorical(table[z]), infer={"enumerate": "parallel"})
            numpyro.sample("x", dist.Normal(loc + slope * z, 1.0), obs=y)
            return z, None

        scan(step, 0, x)

    def guide() -> None:
        numpyro.sample("loc", dist.Normal(numpyro.param("m", 0.0), 0.1))

    def by_hand(params: dict, key: Any) -> Any:
        def one(key: Any) -> Any:
            q = dist.Normal(params["m"], 0.1)
            loc = q.sample(key)
            log_p, _ = log_density(enum(model), (), {}, {"slope": params["slope"], "loc": loc})
            return q.log_prob(loc) - log_p

        return jax.vmap(one)(jax.random.split(key, NUM_PARTICLES)).mean()

    loss = Reinforce_ELBO(num_particles=NUM_PARTICLES)
    theirs = jax.jit(jax.value_and_grad(by_hand))
    ours = jax.jit(jax.value_and_grad(lambda params, key: loss.loss(key, params, model, guide)))
    key = jax.random.key(0)
    return (
        lambda: jax.block_until_ready(theirs(params, key)),
        lambda: jax.block_until_ready(ours(params, key)),
    )


def cpu_seconds(step: Callable) -> float:
    """What a step takes of the processor."""
    start = time.process_time()
    step()
    return time.process_time() - start


def ratio(package: str, num_steps: int, repeats: int) -> tuple[float, float, float]:
    """Median seconds of CPU of a step, theirs and ours, in turn; and ours over theirs."""
    data = np.random.default_rng(0).normal(size=num_steps)
    theirs, ours = {"pyro": pyro_steps, "numpyro": numpyro_steps}[package](data)
    theirs(), ours()
    times = [(cpu_seconds(theirs), cpu_seconds(ours)) for _ in range(repeats)]
    host, own = (median(each) for each in zip(*times, strict=True))
    return host, own, own / host


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", choices=("pyro", "numpyro"), default="pyro")
    parser.add_argument("--steps", type=int, default=500, help="states of the chain")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    host, own, times = ratio(args.package, args.steps, args.repeats)
    print(
        f"{args.package}: a chain of {args.steps} states, seconds of CPU a step: host {host:.4f}, "
        f"ours {own:.4f}, ratio {times:.2f}"
    )


if __name__ == "__main__":
    main()
