"""A model of one's own, no VAE: machines with a hidden load, a hidden fault and a temperature.

Machine i runs at a load (idle, normal, heavy), may be faulty, the more likely the heavier its
load, and has a working temperature of its own. A fault does not heat it but makes its readings
unsteady. Two discrete latents, one depending on the other, a continuous one, and a nested plate:

    load_i ~ Categorical(shares)                fault_i ~ Bernoulli(fault_rate[load_i])
    temperature_i ~ Normal(mean[load_i], 1)     reading_ij ~ Normal(temperature_i, noise[fault_i])

The inference is one argument, `--method`; the model and the guide do not know of it. Prints
the parameters that made the data beside those found. (The ELBO's own gradient, `reinforce` or
`exact`, ends in a local optimum where heavy machines are all faulty; `daps` does not.)
"""

from typing import Any

import numpy as np
from backends import get_backend
from cli import CommandError, Parser, finish, open_folder, positive, run_main

_METHODS = {
    "daps": {"num_particles": 8},
    "reinforce": {"num_particles": 8},
    "exact": {},
}
_TRUE = {
    "shares": np.array([0.3, 0.5, 0.2]),
    "fault_rate": np.array([0.05, 0.2, 0.6]),
    "mean": np.array([40.0, 55.0, 70.0]),
    "noise": np.array([0.5, 3.0]),
}
_BATCH_SIZE = 100
_LOADS = ("idle", "normal", "heavy")


def simulate(rng: np.random.Generator, num_machines: int, num_readings: int = 8) -> np.ndarray:
    """Readings (machines, readings) of the model at the true parameters."""
    load = rng.choice(3, size=num_machines, p=_TRUE["shares"])
    fault = rng.random(num_machines) < _TRUE["fault_rate"][load]
    temperature = rng.normal(_TRUE["mean"][load], 1.0)
    noise = _TRUE["noise"][fault.astype(int)]
    readings = rng.normal(temperature[:, None], noise[:, None], (num_machines, num_readings))
    return readings.astype(np.float32)


def make_pyro_programs() -> tuple[Any, Any]:
    """The model and the guide, as one would write them in Pyro."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.distributions import constraints

    encoder = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 15))

    def model(readings: torch.Tensor) -> None:
        shares = pyro.param("shares", torch.full((3,), 1 / 3), constraint=constraints.simplex)
        rate = pyro.param("fault_rate", torch.full((3,), 0.3), constraint=constraints.unit_interval)
        mean = pyro.param("mean", torch.tensor([45.0, 55.0, 65.0]))
        noise = pyro.param("noise", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
        with pyro.plate("machines", readings.shape[0], dim=-2):
            load = pyro.sample("load", dist.Categorical(shares))
            fault = pyro.sample("fault", dist.Bernoulli(rate[load]))
            temperature = pyro.sample("temperature", dist.Normal(mean[load], 1.0))
            with pyro.plate("readings", readings.shape[1], dim=-1):
                scale = noise[fault.long()]
                pyro.sample("reading", dist.Normal(temperature, scale), obs=readings)

    def guide(readings: torch.Tensor) -> None:
        pyro.module("encoder", encoder)
        centre, spread = readings.mean(1, keepdim=True), readings.std(1, keepdim=True)
        features = torch.stack([(centre - 55) / 10, spread.log()], -1)  # (machines, 1, 2)
        load_logits, fault_logits, shift, log_scale = encoder(features).split([3, 3, 3, 6], -1)
        with pyro.plate("machines", readings.shape[0], dim=-2):
            load = pyro.sample("load", dist.Categorical(logits=load_logits))
            fault = pyro.sample("fault", dist.Bernoulli(logits=_pick(fault_logits, load)))
            scale = _pick(log_scale, load + 3 * fault.long()).exp()
            pyro.sample("temperature", dist.Normal(centre + _pick(shift, load), scale))

    def _pick(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """values[..., index]; `index` may have particles or states on its left."""
        shape = torch.broadcast_shapes(values.shape[:-1], index.shape)
        values = values.expand(*shape, values.shape[-1])
        return values.gather(-1, index.expand(shape)[..., None])[..., 0]

    return model, guide


def make_numpyro_programs() -> tuple[Any, Any]:
    """The same in NumPyro."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from flax import linen
    from numpyro.contrib.module import flax_module
    from numpyro.distributions import constraints

    layers = linen.Sequential([linen.Dense(32), linen.tanh, linen.Dense(15)])

    def model(readings: jax.Array) -> None:
        shares = numpyro.param("shares", jnp.full(3, 1 / 3), constraint=constraints.simplex)
        rate = numpyro.param("fault_rate", jnp.full(3, 0.3), constraint=constraints.unit_interval)
        mean = numpyro.param("mean", jnp.array([45.0, 55.0, 65.0]))
        noise = numpyro.param("noise", jnp.array([1.0, 2.0]), constraint=constraints.positive)
        with numpyro.plate("machines", readings.shape[0], dim=-2):
            load = numpyro.sample("load", dist.Categorical(shares))
            fault = numpyro.sample("fault", dist.Bernoulli(rate[load]))
            temperature = numpyro.sample("temperature", dist.Normal(mean[load], 1.0))
            with numpyro.plate("readings", readings.shape[1], dim=-1):
                scale = noise[fault.astype(int)]
                numpyro.sample("reading", dist.Normal(temperature, scale), obs=readings)

    def guide(readings: jax.Array) -> None:
        encoder = flax_module("encoder", layers, input_shape=(1, 2))
        centre, spread = readings.mean(1, keepdims=True), readings.std(1, keepdims=True, ddof=1)
        features = jnp.stack([(centre - 55) / 10, jnp.log(spread)], -1)  # (machines, 1, 2)
        outputs = jnp.split(encoder(features), [3, 6, 9], -1)
        load_logits, fault_logits, shift, log_scale = outputs
        with numpyro.plate("machines", readings.shape[0], dim=-2):
            load = numpyro.sample("load", dist.Categorical(logits=load_logits))
            fault = numpyro.sample("fault", dist.Bernoulli(logits=_pick(fault_logits, load)))
            scale = jnp.exp(_pick(log_scale, load + 3 * fault.astype(int)))
            numpyro.sample("temperature", dist.Normal(centre + _pick(shift, load), scale))

    def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
        """values[..., index]; `index` may have states on its left."""
        shape = jnp.broadcast_shapes(values.shape[:-1], index.shape)
        values = jnp.broadcast_to(values, (*shape, values.shape[-1]))
        index = jnp.broadcast_to(index, shape)[..., None]
        return jnp.take_along_axis(values, index, -1)[..., 0]

    return model, guide


_PROGRAMS = {"pyro": make_pyro_programs, "numpyro": make_numpyro_programs}


def main(arguments: list[str]) -> None:
    """Simulate, train, compare."""
    parser = Parser(__doc__, out=None)
    parser.add_argument("--method", choices=list(_METHODS), default="daps")
    parser.add_argument("--steps", type=positive, default=2000)
    parser.add_argument("--num-machines", type=positive, default=2000)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    args = parser.parse_args(arguments)
    if args.num_machines < _BATCH_SIZE:
        raise CommandError(f"--num-machines {args.num_machines}: takes at least {_BATCH_SIZE}")
    if not args.learning_rate > 0:
        raise CommandError(f"--learning-rate must be positive, got {args.learning_rate}")
    out = open_folder(args.out) if args.out else None
    backend = get_backend(args.backend, "cpu")
    readings = simulate(np.random.default_rng(args.seed), args.num_machines)
    backend.seed(args.seed)
    model, guide = _PROGRAMS[args.backend]()
    result = backend.train(
        model,
        guide,
        backend.make_loss(args.method, **_METHODS[args.method]),
        readings,
        learning_rate=args.learning_rate,
        num_steps=20 if args.smoke else args.steps,
        batch_size=_BATCH_SIZE,
        folder=out,
    )
    found = {name: np.asarray(result.params[name]) for name in _TRUE}
    print_table(found)
    errors = {name: float(np.abs(found[name] - _TRUE[name]).max()) for name in _TRUE}
    summary = {
        "method": args.method,
        "backend": args.backend,
        "loss_per_datum": result.history[-1]["mean_loss"] / _BATCH_SIZE,
        "found": {name: list(value) for name, value in found.items()},
        "true": {name: list(value) for name, value in _TRUE.items()},
        "largest_error": errors,
        "seconds": result.seconds,
        "steps": result.num_steps,
        "seed": args.seed,
    }
    finish(summary, out, show=args.json, name="result.json")


def print_table(found: dict[str, np.ndarray]) -> None:
    """True values and found ones, side by side."""
    labels = {"shares": _LOADS, "fault_rate": _LOADS, "mean": _LOADS, "noise": ("sound", "faulty")}
    print(f"{'parameter':<20}{'true':>10}{'found':>10}")
    for name, true in _TRUE.items():
        for label, wanted, value in zip(labels[name], true, found[name], strict=True):
            print(f"{name + ', ' + label:<20}{wanted:>10.3f}{value:>10.3f}")


if __name__ == "__main__":
    run_main(main)
