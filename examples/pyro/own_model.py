"""A model of one's own, no VAE, trained by three algorithms that are one argument apart.

Machine i runs at a load (idle, normal, heavy), may be faulty, the more likely the heavier its load,
and has a temperature of its own; a fault only makes its readings unsteady. Discrete latents, a
continuous one, a nested plate: any loss takes it. `Exact_ELBO` sums over six states, others draw.
"""

import sys

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor, nn

from pyro_dvae.fit import fit
from pyro_dvae.infer import DAPS_ELBO, Exact_ELBO, Reinforce_ELBO

TRUE = {
    "shares": torch.tensor([0.3, 0.5, 0.2]),  # of the loads
    "fault_rate": torch.tensor([0.05, 0.2, 0.6]),
    "mean": torch.tensor([40.0, 55.0, 70.0]),
    "noise": torch.tensor([0.5, 3.0]),  # of readings, sound and faulty
}


def model(readings: Tensor | None, num_machines: int) -> Tensor:
    """Eight readings of each machine."""
    shares = pyro.param("shares", torch.ones(3) / 3, constraint=dist.constraints.simplex)
    rate = pyro.param("fault_rate", 0.3 * torch.ones(3), constraint=dist.constraints.unit_interval)
    mean = pyro.param("mean", torch.tensor([45.0, 55.0, 65.0]))
    noise = pyro.param("noise", torch.tensor([1.0, 2.0]), constraint=dist.constraints.positive)
    with pyro.plate("machines", num_machines, dim=-2):
        load = pyro.sample("load", dist.Categorical(shares))
        fault = pyro.sample("fault", dist.Bernoulli(rate[load])).long()
        heat = pyro.sample("temperature", dist.Normal(mean[load], 1.0))
        with pyro.plate("readings", 8, dim=-1):
            return pyro.sample("reading", dist.Normal(heat, noise[fault]), obs=readings)


def make_guide() -> nn.Module:
    """q(load) q(fault | load) q(temperature | load, fault), by mean and spread of readings."""
    encoder = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 3 + 3 + 6 + 6))

    def guide(readings: Tensor, num_machines: int) -> None:
        pyro.module("encoder", encoder)
        center, spread = readings.mean(1, keepdim=True), readings.std(1, keepdim=True)
        features = torch.stack([(center - 55) / 10, spread.log()], -1)  # (machines, 1, 2)
        loads, faults, shifts, log_scales = encoder(features).split([3, 3, 6, 6], -1)
        with pyro.plate("machines", num_machines, dim=-2):
            load = pyro.sample("load", dist.Categorical(logits=loads))
            state = load + 3 * pyro.sample("fault", dist.Bernoulli(logits=pick(faults, load)))
            heat = dist.Normal(center + pick(shifts, state), pick(log_scales, state).exp())
            pyro.sample("temperature", heat)

    return guide


def pick(values: Tensor, index: Tensor) -> Tensor:
    """``values[..., index]``, where `index` may have particles on its left."""
    return (values * nn.functional.one_hot(index.long(), values.shape[-1])).sum(-1)


def main(num_steps: int = 1000, num_machines: int = 2000) -> dict[str, dict[str, Tensor]]:
    """Simulate, train by each algorithm, print what made the data beside what was found."""
    pyro.set_rng_seed(0)
    found, readings = {"true": TRUE}, pyro.poutine.substitute(model, data=TRUE)(None, num_machines)
    for loss in (DAPS_ELBO(num_particles=8), Reinforce_ELBO(num_particles=8), Exact_ELBO()):
        pyro.clear_param_store()
        svi = SVI(model, make_guide(), Adam({"lr": 0.02}), loss=loss)
        result = fit(svi, readings, 100, num_steps=num_steps, batch_size=100)
        found[type(loss).__name__] = {name: result.params[name] for name in TRUE}
    for name, params in found.items():
        print(name.ljust(15), *(f"{key} {params[key].numpy().round(2)}" for key in TRUE))
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
