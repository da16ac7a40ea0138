"""Spike-and-slab sparse coding: atoms that are there or not, and if so, how much of each.

A datum is a sum of atoms with normal amplitudes (slabs), of those that are there (spikes), and
noise. Given the spikes the amplitudes are normal, too, so `NormalAtoms` sums them out, and the
truncated posterior is over spikes alone. The dictionary has a closed form: least squares of the
data on the second moments of spike times slab, which a `ClosedForm` that sees latents gathers.
Noise and chances go by the gradient. The learnt atoms are compared with those of the data.
"""

import sys

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor

from pyro_dvae.distributions import NormalAtoms
from pyro_dvae.fit import fit
from pyro_dvae.infer import Truncated_ELBO, TruncatedGuide
from pyro_dvae.models import ClosedForm
from pyro_dvae.models.linear import least_squares, moments_of, solve_moments
from pyro_dvae.ops.evolution import chain, flip, select

NUM_ATOMS, SIZE, CHANCE, NOISE = 6, 12, 0.25, 0.1


def second_moments(fn: NormalAtoms, data: Tensor, latents: dict) -> tuple[Tensor, Tensor]:
    """Ones, and ``s^T s`` beside ``s^T x``, s spike times slab: its mean, and its spread."""
    (mean, spread), eye = fn.amplitudes(data), torch.eye(NUM_ATOMS)
    spread = spread - eye * (1 - latents["spikes"][..., None])  # of an atom that is absent: none
    squares = mean[..., None] * mean[..., None, :] + spread
    beside = mean[..., None] * data[..., None, :]
    return eye.expand(squares.shape), torch.cat([squares, beside], -1)


MOMENTS = torch.zeros(NUM_ATOMS, NUM_ATOMS + SIZE)
FORM = ClosedForm(MOMENTS, second_moments, solve_moments, sees_latents=True)


def model(data: Tensor) -> None:
    """Data ``(N, SIZE)``; the atoms are those of least squares, at first some of the data."""
    if not MOMENTS.any():
        MOMENTS.copy_(moments_of(data[data.norm(dim=1).topk(NUM_ATOMS).indices]))
    start = torch.full((NUM_ATOMS,), 0.3)
    chance = pyro.param("chance", start, constraint=dist.constraints.unit_interval)
    noise = pyro.param("noise", torch.tensor(0.5), constraint=dist.constraints.positive)
    with pyro.plate("data", len(data)):
        spikes = pyro.sample("spikes", dist.Bernoulli(chance).to_event(1))
        slabs_summed_out = NormalAtoms(spikes[..., None] * least_squares(MOMENTS), noise)
        pyro.sample("datum", slabs_summed_out, obs=data, infer={"closed_form": FORM})


def main(num_steps: int = 200, num_data: int = 600) -> dict[str, float]:
    """Learn atoms from data; how near are they to those that made them?"""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    true = torch.linalg.qr(torch.randn(SIZE, NUM_ATOMS))[0].T
    spikes = torch.bernoulli(torch.full((num_data, NUM_ATOMS), CHANCE))
    amplitudes = spikes * torch.randn(num_data, NUM_ATOMS)
    data = amplitudes @ true + NOISE * torch.randn(num_data, SIZE)

    guide = TruncatedGuide(model, num_states=12)
    svi = SVI(model, guide, Adam({"lr": 0.03}), loss=Truncated_ELBO(chain(select(4), flip(4))))
    params = fit(svi, data, num_steps=num_steps).params

    atoms = torch.nn.functional.normalize(least_squares(MOMENTS), dim=1)
    found = {"match": float((atoms @ true.T).abs().max(0).values.mean())}  # 1: all are found
    found |= {"noise": float(params["noise"]), "chance": float(params["chance"].mean())}
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
