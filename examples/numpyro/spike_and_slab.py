"""Spike-and-slab sparse coding: atoms that are there or not, and if so, how much of each.

A datum is a sum of atoms with normal amplitudes (slabs), of those that are there (spikes), and
noise. Given the spikes the amplitudes are normal, too, so `NormalAtoms` sums them out, and the
truncated posterior is over spikes alone. The dictionary has a closed form: least squares of the
data on the second moments of spike times slab, which a `ClosedForm` that sees latents gathers.
Noise and chances go by the gradient. The learnt atoms are compared with those of the data.
"""

import sys

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.optim import Adam
from numpyro.primitives import mutable

from numpyro_dvae.distributions import NormalAtoms
from numpyro_dvae.fit import fit
from numpyro_dvae.infer import SVI, Truncated_ELBO, TruncatedGuide
from numpyro_dvae.models import ClosedForm
from numpyro_dvae.models.linear import least_squares, moments_of, solve_moments
from numpyro_dvae.ops.evolution import chain, flip, select

NUM_ATOMS, SIZE, CHANCE, NOISE = 6, 12, 0.25, 0.1


def second_moments(fn: NormalAtoms, data: jax.Array, latents: dict) -> tuple[jax.Array, jax.Array]:
    """Ones, and ``s^T s`` beside ``s^T x``, s spike times slab: its mean, and its spread."""
    (mean, spread), eye = fn.amplitudes(data), jnp.eye(NUM_ATOMS)
    spread = spread - eye * (1 - latents["spikes"][..., None])  # of an atom that is absent: none
    squares = mean[..., None] * mean[..., None, :] + spread
    beside = mean[..., None] * data[..., None, :]
    return jnp.broadcast_to(eye, squares.shape), jnp.concatenate([squares, beside], -1)


FORM = ClosedForm("moments", second_moments, solve_moments, sees_latents=True)


def model(data: jax.Array) -> None:
    """Data ``(N, SIZE)``; the atoms are those of least squares, at first some of the data."""
    largest = jnp.argsort(-jnp.square(data).sum(1))[:NUM_ATOMS]
    atoms = least_squares(mutable("moments", moments_of(data[largest])))
    start = jnp.full(NUM_ATOMS, 0.3)
    chance = numpyro.param("chance", start, constraint=dist.constraints.unit_interval)
    noise = numpyro.param("noise", jnp.array(0.5), constraint=dist.constraints.positive)
    with numpyro.plate("data", len(data)):
        spikes = numpyro.sample("spikes", dist.Bernoulli(chance).to_event(1))
        slabs_summed_out = NormalAtoms(spikes[..., None] * atoms, noise)
        numpyro.sample("datum", slabs_summed_out, obs=data, infer={"closed_form": FORM})


def main(num_steps: int = 200, num_data: int = 600) -> dict[str, float]:
    """Learn atoms from data; how near are they to those that made them?"""
    keys = jax.random.split(jax.random.key(0), 5)
    true = jnp.linalg.qr(jax.random.normal(keys[0], (SIZE, NUM_ATOMS)))[0].T
    spikes = jax.random.bernoulli(keys[1], CHANCE, (num_data, NUM_ATOMS))
    amplitudes = spikes * jax.random.normal(keys[2], (num_data, NUM_ATOMS))
    data = amplitudes @ true + NOISE * jax.random.normal(keys[3], (num_data, SIZE))

    guide = TruncatedGuide(model, num_states=12)
    svi = SVI(model, guide, Adam(0.03), loss=Truncated_ELBO(chain(select(4), flip(4))))
    params = fit(keys[4], svi, data, num_steps=num_steps).params

    atoms = least_squares(params["moments"])
    atoms = atoms / jnp.linalg.norm(atoms, axis=1, keepdims=True)
    found = {"match": float(abs(atoms @ true.T).max(0).mean())}  # 1: all are found
    found |= {"noise": float(params["noise"]), "chance": float(params["chance"].mean())}
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
