"""A model of one's own, no VAE, trained by three algorithms that are one argument apart.

Machine i runs at a load (idle, normal, heavy), may be faulty, the more likely the heavier its load,
and has a temperature of its own; a fault only makes its readings unsteady. Discrete latents, a
continuous one, a nested plate: any loss takes it. `Exact_ELBO` sums over six states, others draw.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import linen as nn
from numpyro import handlers
from numpyro.contrib.module import flax_module
from numpyro.optim import Adam

from numpyro_dvae.fit import fit
from numpyro_dvae.infer import DAPS_ELBO, SVI, Exact_ELBO, Reinforce_ELBO

TRUE = {
    "shares": jnp.array([0.3, 0.5, 0.2]),  # of the loads
    "fault_rate": jnp.array([0.05, 0.2, 0.6]),
    "mean": jnp.array([40.0, 55.0, 70.0]),
    "noise": jnp.array([0.5, 3.0]),  # of readings, sound and faulty
}


def model(readings: jax.Array | None, num_machines: int) -> jax.Array:
    """Eight readings of each machine."""
    shares = numpyro.param("shares", jnp.ones(3) / 3, constraint=dist.constraints.simplex)
    rate = numpyro.param("fault_rate", 0.3 * jnp.ones(3), constraint=dist.constraints.unit_interval)
    mean = numpyro.param("mean", jnp.array([45.0, 55.0, 65.0]))
    noise = numpyro.param("noise", jnp.array([1.0, 2.0]), constraint=dist.constraints.positive)
    with numpyro.plate("machines", num_machines, dim=-2):
        load = numpyro.sample("load", dist.Categorical(shares))
        fault = numpyro.sample("fault", dist.Bernoulli(rate[load])).astype(int)
        heat = numpyro.sample("temperature", dist.Normal(mean[load], 1.0))
        with numpyro.plate("readings", 8, dim=-1):
            return numpyro.sample("reading", dist.Normal(heat, noise[fault]), obs=readings)


def guide(readings: jax.Array, num_machines: int) -> None:
    """q(load) q(fault | load) q(temperature | load, fault), by mean and spread of readings."""
    layers = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(3 + 3 + 6 + 6)])
    encoder = flax_module("encoder", layers, input_shape=(1, 2))
    center, spread = readings.mean(1, keepdims=True), readings.std(1, keepdims=True, ddof=1)
    features = jnp.stack([(center - 55) / 10, jnp.log(spread)], -1)  # (machines, 1, 2)
    loads, faults, shifts, log_scales = jnp.split(encoder(features), [3, 6, 12], -1)
    with numpyro.plate("machines", num_machines, dim=-2):
        load = numpyro.sample("load", dist.Categorical(logits=loads))
        state = load + 3 * numpyro.sample("fault", dist.Bernoulli(logits=pick(faults, load)))
        heat = dist.Normal(center + pick(shifts, state), jnp.exp(pick(log_scales, state)))
        numpyro.sample("temperature", heat)


def pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """``values[..., index]``, where `index` may have particles on its left."""
    return (values * jax.nn.one_hot(index, values.shape[-1])).sum(-1)


def main(num_steps: int = 1000, num_machines: int = 2000) -> dict[str, dict[str, jax.Array]]:
    """Simulate, train by each algorithm, print what made the data beside what was found."""
    keys = jax.random.split(jax.random.key(0))
    readings = handlers.seed(handlers.substitute(model, data=TRUE), keys[0])(None, num_machines)
    found = {"true": TRUE}
    for loss in (DAPS_ELBO(num_particles=8), Reinforce_ELBO(num_particles=8), Exact_ELBO()):
        svi = SVI(model, guide, Adam(0.02), loss=loss)
        result = fit(keys[1], svi, readings, 100, num_steps=num_steps, batch_size=100)
        found[type(loss).__name__] = {name: result.params[name] for name in TRUE}
    for name, params in found.items():
        print(name.ljust(15), *(f"{key} {np.asarray(params[key]).round(2)}" for key in TRUE))
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
