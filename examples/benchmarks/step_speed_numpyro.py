"""One training step of the published MNIST model, against the same step written by hand in JAX.

Independent guide: 8 codes of 256 values, K = 8, batch 256. By hand means no NumPyro: the networks
as functions, inverse-CDF draws, one gather for log q, the weights and the temperature of DAPS,
optax's Adam, jitted. Printed beside it: the same loss on the published autoregressive guide,
alone and in fours, as `fit` sends them to the device (the memory of a step is then mapped once),
REINFORCE, NumPyro's own TraceGraph_ELBO, and the seconds that compilation takes; with ``--beside
jadex``, the autoregressive step of the DAPS authors' library, in the same rounds.
"""

import argparse
import json
import math
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
import optax
from beside import jadex_step
from numpyro.infer import TraceGraph_ELBO
from timing import against, side_by_side, summary, table

from numpyro_dvae.distributions import sample_codes
from numpyro_dvae.guides import mnist_guide
from numpyro_dvae.infer import DAPS_ELBO, SVI, Reinforce_ELBO
from numpyro_dvae.models import mnist_vae
from numpyro_dvae.ops.tempering import effective_sample_size, solve_temperature

K, BATCH, L, V, BETA = 8, 256, 8, 256, 0.1
PER_CALL = {"autoregressive, in fours": 4}


def initial_params(rng_key: jax.Array) -> dict:
    """Weights of the encoder (784-256-2048), the embedding and the decoder (512-64-256-784)."""
    sizes = {"encoder": (784, 256, L * V), "decoder": (L * 64, 64, 256, 784)}
    params = {"embedding": jax.random.normal(rng_key, (V, 64))}
    for name, widths in sizes.items():
        keys = jax.random.split(rng_key, len(widths) - 1)
        params[name] = [
            (jax.random.normal(key, (a, b)) / math.sqrt(a), jnp.zeros(b))
            for key, a, b in zip(keys, widths[:-1], widths[1:], strict=True)
        ]
    return params


def perceptron(layers: list, x: jax.Array) -> jax.Array:
    """Dense layers with ReLU between them."""
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def by_hand(x: jax.Array) -> Callable:
    """DAPS as one would write it for this model alone."""
    optimiser = optax.adam(3e-4)

    def loss_fn(params: dict, rng_key: jax.Array) -> jax.Array:
        logits = perceptron(params["encoder"], x.reshape(BATCH, -1)).reshape(BATCH, L, V)
        log_probs = jax.nn.log_softmax(logits)
        uniforms = jax.random.uniform(rng_key, (K, BATCH, L))
        codes = sample_codes(jax.lax.stop_gradient(logits), uniforms)
        log_q = jnp.take_along_axis(log_probs, jnp.moveaxis(codes, 0, -1), -1).sum(1).T
        outputs = perceptron(params["decoder"], params["embedding"][codes].reshape(K, BATCH, -1))
        pixels = x.reshape(BATCH, -1)
        log_likelihood = (pixels * outputs - jax.nn.softplus(outputs)).sum(-1)
        scores = jax.lax.stop_gradient(log_likelihood - BETA * (L * math.log(V) + log_q))
        copies = (codes[:, None] == codes[None]).all(-1).sum(0)
        temperature = jnp.maximum(solve_temperature(scores, 0.75, copies, shared=True), BETA)
        weights = jax.nn.softmax(scores / temperature, 0)
        effective_sample_size(scores / temperature, copies).mean()
        return -((weights - 1 / K) * log_q).sum() - log_likelihood.mean(0).sum()

    @jax.jit
    def update(params: dict, state: tuple, rng_key: jax.Array) -> tuple:
        rng_key, key = jax.random.split(rng_key)
        slope = jax.grad(loss_fn)(params, key)
        change, state = optimiser.update(slope, state)
        return optax.apply_updates(params, change), state, rng_key

    params = initial_params(jax.random.key(0))
    carry = [(params, optimiser.init(params), jax.random.key(1))]

    def step() -> None:
        carry[0] = jax.block_until_ready(update(*carry[0]))

    return step


def with_svi(
    loss: object, x: jax.Array, *, autoregressive: bool = False, num_steps: int = 1
) -> Callable:
    """The same through `SVI`, some steps in one dispatch."""
    guide = mnist_guide(autoregressive=autoregressive)
    svi = SVI(mnist_vae(), guide, numpyro.optim.Adam(3e-4), loss=loss)
    carry = [svi.init(jax.random.key(0), x)]

    @jax.jit
    def update(state: Any, x: jax.Array) -> Any:
        return jax.lax.fori_loop(0, num_steps, lambda _, state: svi.update(state, x)[0], state)

    def step() -> None:
        carry[0] = jax.block_until_ready(update(carry[0], x))

    return step


def main() -> None:
    """Print the table, and with ``--json`` one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside", choices=["jadex"], help="another library, installed by you")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    x = (jax.random.uniform(jax.random.key(options.seed), (BATCH, 28, 28)) > 0.8).astype(float)
    daps = {"num_particles": K, "beta": BETA}
    steps = {
        "by hand, JAX": by_hand(x),
        "DAPS_ELBO": with_svi(DAPS_ELBO(**daps), x),
        "Reinforce_ELBO": with_svi(Reinforce_ELBO(**daps), x),
        "TraceGraph_ELBO": with_svi(TraceGraph_ELBO(K), x),
    }
    for name, num_steps in {"DAPS_ELBO, autoregressive": 1, **PER_CALL}.items():
        loss = DAPS_ELBO(**daps)
        steps[name] = with_svi(loss, x, autoregressive=True, num_steps=num_steps)
    if options.beside:
        steps[options.beside] = jadex_step(x)
    compiling = {}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        compiling[name] = round(time.perf_counter() - start, 2)
    seconds = side_by_side(steps, rounds=options.rounds, per_call=PER_CALL)
    rows = summary(seconds, "by hand, JAX")
    print(table(rows, "by hand, JAX"))
    print("seconds to the first step:", ", ".join(f"{k} {v}" for k, v in compiling.items()))
    if options.beside:
        for name in ("DAPS_ELBO, autoregressive", *PER_CALL):
            print(against(seconds, options.beside, name))
    if options.json:
        print(json.dumps({"rows": rows, "compile_seconds": compiling}))


if __name__ == "__main__":
    main()
