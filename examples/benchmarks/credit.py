"""Noise of gradients along a chain of Bernoulli states, beside the host's TraceGraph_ELBO.

    python examples/benchmarks/credit.py --backend numpyro --states 5 20 80

Each state is likely what the one before it was, and is seen in noise; the guide is a product, at
the prior. All losses have K draws. The true gradient is known, as the ELBO of a product is a sum
over neighbours. Printed are the trace of the covariance; its share of that of TraceGraph_ELBO of
as many draws, each gradient in units of its own mean, as the step of DAPS has another length;
how far the mean is from the true gradient, in standard errors, of losses that are unbiased; and
the mean cosine of one gradient with the true one.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from backends import get_backend
from cli import Parser, positive, run_main

STAY, CHANGE = 0.8, 0.2  # chance of a one after a one, and after a zero
_HOST = "TraceGraph_ELBO"
_OFF_ZERO = 1e-9  # nats: at logits of exactly 0 the slope of NumPyro's Bernoulli is off by a half
_AIMS_ELSEWHERE = ("DAPS_ELBO",)  # at another gradient than the ELBO's


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = Parser(__doc__, out=None)
    parser.add_argument("--states", type=positive, nargs="+", default=[5, 20, 80])
    parser.add_argument("--particles", type=positive, default=8)
    parser.add_argument("--repeats", type=positive, default=200)
    args = parser.parse_args(arguments)
    if args.smoke:
        args.states, args.repeats = [3], 4
    draws_of = {"pyro": pyro_draws, "numpyro": numpyro_draws}[get_backend(args.backend, "cpu").name]
    print(
        "| loss | states | variance | of the host's, relative | from the truth, s.e. | cosine |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    for num_states in args.states:
        x = np.random.default_rng(0).normal(1.0, 1.0, (2, num_states))
        rows = {}
        for name, draws in draws_of(x, args.particles, args.repeats):
            rows[name] = measure(draws, true_gradient(x))
            print(row_of(name, num_states, rows), flush=True)


class Noise(NamedTuple):
    """What many gradients of one loss tell."""

    variance: float  # the trace of the covariance
    relative: float  # the same, by the squared length of the mean
    error: float  # distance of the mean from the true gradient, root mean square of z-scores
    cosine: float


def measure(draws: np.ndarray, truth: np.ndarray) -> Noise:
    """Of gradients ``(repeats, parameters)``."""
    mean, covariance = draws.mean(0), draws.var(0, ddof=1)
    variance = covariance.sum()
    squared_length = (mean**2).sum() - variance / len(draws)  # without what is noise of the mean
    noise = np.sqrt(covariance / len(draws))
    varies = noise > 1e-9  # at an even chance DisARM's pairs differ but for once in many draws
    scores = (mean - truth)[varies] / noise[varies]
    cosines = draws @ truth / (np.linalg.norm(draws, axis=1) * np.linalg.norm(truth))
    root = float(np.sqrt((scores**2).mean()))
    return Noise(float(variance), float(variance / squared_length), root, float(cosines.mean()))


def row_of(name: str, num_states: int, rows: dict[str, Noise]) -> str:
    """A line of the table."""
    noise = rows[name]
    share = noise.relative / rows[_HOST].relative
    error = "" if name in _AIMS_ELSEWHERE else f"{noise.error:.1f}"
    return (
        f"| `{name}` | {num_states} | {noise.variance:.3g} | {share:.3f} | {error} | "
        f"{noise.cosine:.2f} |"
    )


def true_gradient(x: np.ndarray) -> np.ndarray:
    """Of minus the ELBO, by the logits of a product at the prior: ``(states * rows,)``."""
    ones, turns = marginals(x.shape[1]), np.log([CHANGE / (1 - CHANGE), STAY / (1 - STAY)])
    before, after = np.append(0.0, ones[:-1]), ones[1:]
    slopes = turns[0] + (turns[1] - turns[0]) * before - np.log(ones / (1 - ones))
    slopes[:-1] += after * np.log(STAY / CHANGE) + (1 - after) * np.log((1 - STAY) / (1 - CHANGE))
    slopes = slopes[:, None] + 2.0 * (x.T - 1.0)  # of the densities of what is seen
    return (-slopes * (ones * (1 - ones))[:, None]).flatten()


def marginals(num_states: int) -> np.ndarray:
    """Of the prior: the chance that each state is a one."""
    found, ones = [], 0.0
    for _ in range(num_states):
        ones = CHANGE + (STAY - CHANGE) * ones
        found.append(ones)
    return np.array(found)


def start(num_states: int, num_rows: int) -> np.ndarray:
    """The logits of the guide, ``(states, rows)``."""
    ones = marginals(num_states)
    logits = np.log(ones / (1 - ones))
    logits[abs(logits) < _OFF_ZERO] = _OFF_ZERO
    return np.repeat(logits, num_rows).reshape(num_states, num_rows)


def pyro_draws(x: np.ndarray, num_particles: int, repeats: int) -> Iterator[tuple[str, np.ndarray]]:
    """Gradients of each loss of Pyro and of `pyro_dvae`."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import TraceGraph_ELBO

    from pyro_dvae.infer import DAPS_ELBO, DisARM_ELBO, Reinforce_ELBO

    data, length = torch.tensor(x), x.shape[1]
    logits = torch.tensor(start(length, len(x)), requires_grad=True)

    def model() -> None:
        with pyro.plate("data", len(x), dim=-1):
            state = torch.zeros((), dtype=data.dtype)
            for t in range(length):
                state = pyro.sample(f"z{t}", dist.Bernoulli(CHANGE + (STAY - CHANGE) * state))
                pyro.sample(f"x{t}", dist.Normal(2.0 * state, 1.0), obs=data[:, t])

    def guide(*, averages: bool = False) -> None:
        infer = {"baseline": {"use_decaying_avg_baseline": True}} if averages else {}
        with pyro.plate("data", len(x), dim=-1):
            for t in range(length):
                pyro.sample(f"z{t}", dist.Bernoulli(logits=logits[t]), infer=infer)

    def draws(loss: Any, guide: Callable) -> np.ndarray:
        found = []
        for _ in range(repeats):
            logits.grad = None
            loss.loss_and_grads(model, guide)
            found.append(logits.grad.flatten().numpy().copy())
        return np.array(found)

    host = TraceGraph_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=True)
    pyro.set_rng_seed(0)
    yield _HOST, draws(host, guide)
    yield f"{_HOST}, moving averages", draws(host, lambda: guide(averages=True))
    for loss in (Reinforce_ELBO, DisARM_ELBO, DAPS_ELBO):
        yield loss.__name__, draws(loss(num_particles), guide)


def numpyro_draws(
    x: np.ndarray, num_particles: int, repeats: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Gradients of each loss of NumPyro and of `numpyro_dvae`."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import TraceGraph_ELBO

    from numpyro_dvae.infer import DAPS_ELBO, DisARM_ELBO, Reinforce_ELBO

    jax.config.update("jax_enable_x64", True)
    length = x.shape[1]

    def model() -> None:
        with numpyro.plate("data", len(x), dim=-1):
            state = jnp.zeros(())
            for t in range(length):
                state = numpyro.sample(f"z{t}", dist.Bernoulli(CHANGE + (STAY - CHANGE) * state))
                numpyro.sample(f"x{t}", dist.Normal(2.0 * state, 1.0), obs=x[:, t])

    def guide() -> None:
        logits = numpyro.param("logits")
        with numpyro.plate("data", len(x), dim=-1):
            for t in range(length):
                numpyro.sample(f"z{t}", dist.Bernoulli(logits=logits[t]))

    params = {"logits": jnp.asarray(start(length, len(x)))}
    keys = jax.random.split(jax.random.key(0), repeats)
    for loss in (TraceGraph_ELBO, Reinforce_ELBO, DisARM_ELBO, DAPS_ELBO):
        elbo = loss(num_particles)
        step = jax.grad(lambda params, key, elbo=elbo: elbo.loss(key, params, model, guide))
        found = jax.jit(lambda keys, step=step: jax.lax.map(lambda key: step(params, key), keys))
        yield loss.__name__, np.asarray(found(keys)["logits"]).reshape(repeats, -1)


if __name__ == "__main__":
    run_main(main)
