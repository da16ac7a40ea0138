"""One E-step over 1000 data, against the bare decoder on the same states.

64 pixels, sets of 64 states, 360 children a datum (4 generations of 90, as published, or as many as
`--generations` says), a decoder H-H-64 with one ReLU layer; the model is a user's own, of stock
distributions. The bare decoder runs, compiled, on states that are there already, as floats, in
pieces of its best size. `throughput` is its share of the E-step: how many states a second are
proposed, scored and merged, against how many the decoder alone takes. Beside it: a whole step of
`SVI`, and the seconds that compilation takes; with ``--beside tvo``, the E-step of the TVAE
authors' library, in the same rounds.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
if hasattr(os, "sched_setaffinity"):  # one core: XLA would share out operations among more
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from beside import tvo_step
from timing import against, side_by_side, summary, table

from numpyro_dvae.infer import SVI, Truncated_ELBO, TruncatedGuide
from numpyro_dvae.ops.evolution import chain, flip, select

N, D, S, PARENTS, CHILDREN = 1000, 64, 64, 40, 9  # parents of all generations
PIECES = (1, 2, 4, 8)  # states of all data at a time, for the bare decoder; the best one counts


def patches(num_latents: int) -> Callable[[jax.Array], None]:
    """A model that knows nothing of how it is inferred: binary causes of real pixels."""

    def layer(width: int) -> Callable[[jax.Array], jax.Array]:
        return lambda key: jax.random.normal(key, (num_latents, width)) / num_latents**0.5

    def model(x: jax.Array) -> None:
        first, second = (
            numpyro.param("first", layer(num_latents)),
            numpyro.param("second", layer(D)),
        )
        bias, mean = numpyro.param("bias", jnp.zeros(num_latents)), numpyro.param("mean", x.mean(0))
        logits = numpyro.param("logits", jnp.full(num_latents, -2.0))
        noise = jnp.exp(numpyro.param("log_scale", jnp.zeros(())))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
            loc = jax.nn.relu(z @ first + bias) @ second + mean
            numpyro.sample("x", dist.Normal(loc, noise).to_event(1), obs=x)

    return model


def bare(params: dict[str, Any], states: jax.Array, size: int) -> Callable:
    """The decoder alone, some states of all data at a time."""

    @jax.jit
    def decode(params: dict[str, Any], states: jax.Array) -> jax.Array:
        def run(z: jax.Array) -> jax.Array:
            hidden = jax.nn.relu(z @ params["first"] + params["bias"])
            return hidden @ params["second"] + params["mean"]

        return jax.lax.map(run, states.reshape(-1, size, *states.shape[1:]))

    return lambda: jax.block_until_ready(decode(params, states))


def steps(
    rng_key: jax.Array, num_latents: int, generations: int = 4, beside: str | None = None
) -> dict[str, Callable]:
    """The decoder at each size of its pieces, a step of training, and E-steps, ours last."""
    model, x = patches(num_latents), jax.random.normal(rng_key, (N, D))
    guide = TruncatedGuide(model, S)
    parents = PARENTS // generations
    elbo = Truncated_ELBO(chain(select(parents), flip(CHILDREN)), generations=generations)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), loss=elbo)
    carry = [jax.jit(svi.init)(rng_key, x)]
    params = {**svi.get_params(carry[0]), **carry[0].mutable_state}
    evolve = jax.jit(lambda key, params: elbo.e_step(key, params, model, guide, x))
    update = jax.jit(svi.update)

    def train() -> None:
        carry[0], _ = jax.block_until_ready(update(carry[0], x))

    num_states = S + PARENTS * CHILDREN
    states = jax.random.bernoulli(rng_key, 0.1, (num_states, N, num_latents)).astype(x.dtype)
    decoders = {f"decoder, {size} states": bare(params, states, size) for size in PIECES}
    same = {"parents": parents, "children": CHILDREN, "generations": generations, "num_states": S}
    other = {beside: tvo_step(x, num_latents, **same)} if beside else {}
    return {
        **decoders,
        **other,
        "step of SVI": train,
        "E-step": lambda: jax.block_until_ready(evolve(rng_key, params)),
    }


def main() -> None:
    """Print a table for each size, and with ``--json`` one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--generations", type=int, choices=[1, 2, 4], default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside", choices=["tvo"], help="another library, installed by you")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {}
    for num_latents in options.latents:
        key = jax.random.key(options.seed)
        run = steps(key, num_latents, options.generations, options.beside)
        compiling = {}
        for name, step in run.items():
            start = time.perf_counter()
            step()
            compiling[name] = round(time.perf_counter() - start, 2)
        seconds = side_by_side(run, rounds=options.rounds, repeats=1, warmup=1)
        best = min((name for name in seconds if "decoder" in name), key=lambda n: sum(seconds[n]))
        rows = summary(seconds, best)
        found[num_latents] = {"rows": rows, "throughput": round(1 / rows[-1]["ratio"], 3)}
        print(f"H = {num_latents}\n{table(rows, best)}")
        print(f"throughput: {found[num_latents]['throughput']:.2f} of the decoder's")
        print(f"seconds to the first E-step {compiling['E-step']}, step {compiling['step of SVI']}")
        if options.beside:
            print(against(seconds, options.beside))
        print()
    if options.json:
        print(json.dumps({"generations": options.generations, "latents": found}))


if __name__ == "__main__":
    main()
