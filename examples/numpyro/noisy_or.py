"""Which diseases explain the symptoms? A noisy-OR network, learned without knowing either.

A patient has each of 6 diseases or not; a symptom stays away if no disease brings it about, nor its
leak. Diseases explain each other away, so that they depend on one another given the symptoms: no
product of probabilities says how. Every patient has a truncated posterior over sets of diseases,
of 16 sets, and by the gradient of its bound all probabilities are learned; the exact evidence is
printed beside that of the network that made the data, and which symptoms each disease brings about.
"""

import sys

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.optim import Adam

from numpyro_dvae.diagnostics import posterior_gap
from numpyro_dvae.fit import fit
from numpyro_dvae.infer import SVI, Truncated_ELBO, TruncatedGuide
from numpyro_dvae.ops.evolution import chain, flip, select

OWN, SHARED = jnp.eye(6).repeat(3, 1), jnp.tile(jnp.roll(jnp.eye(6), 1, 0), 3)
WEIGHT = jnp.maximum(0.8 * OWN, 0.4 * SHARED)  # of diseases (6) on symptoms (18)
TRUE = {"prior": jnp.full(6, 0.2), "leak": jnp.full(18, 0.03), "weight": WEIGHT}


def model(symptoms: jax.Array) -> None:
    """Symptoms ``(N, 18)``, 0 or 1."""
    between = dist.constraints.unit_interval
    prior = numpyro.param("prior", jnp.full(6, 0.3), constraint=between)
    leak = numpyro.param("leak", jnp.full(18, 0.1), constraint=between)
    weight = numpyro.param(
        "weight", lambda key: 0.1 + 0.4 * jax.random.uniform(key, (6, 18)), constraint=between
    )
    with numpyro.plate("patients", len(symptoms)):
        diseases = numpyro.sample("diseases", dist.Bernoulli(prior).to_event(1))
        rate = -jnp.log1p(-leak) - diseases @ jnp.log1p(-weight)  # exp(-rate): no symptom
        present = dist.Bernoulli(logits=rate + jnp.log(-jnp.expm1(-rate)))
        numpyro.sample("symptoms", present.to_event(1), obs=symptoms)


def main(num_steps: int = 400, num_patients: int = 1000) -> dict[str, float]:
    """Simulate patients, learn the network, compare it with the truth."""
    keys = jax.random.split(jax.random.key(0), 4)
    diseases = jax.random.bernoulli(keys[0], TRUE["prior"], (num_patients, 6))
    log_absent = jnp.log1p(-TRUE["leak"]) + diseases @ jnp.log1p(-WEIGHT)
    symptoms = jax.random.bernoulli(keys[1], -jnp.expm1(log_absent)).astype(jnp.float32)

    guide = TruncatedGuide(model, num_states=16)
    loss = Truncated_ELBO(chain(select(4), flip(4)))  # children of 4 parents, 4 of each
    svi = SVI(model, guide, Adam(0.05), loss=loss)
    result = fit(keys[2], svi, symptoms, num_steps=num_steps)

    exact = posterior_gap(keys[3], result, symptoms)
    truth = posterior_gap(keys[3], result, symptoms, params=result.params | TRUE)
    found = {"bound": exact.elbo.mean(), "evidence": exact.log_evidence.mean()}
    found["evidence of the truth"] = truth.log_evidence.mean()
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()), "nats per patient")
    for prior, weight in zip(result.params["prior"], result.params["weight"], strict=True):
        print(f"{float(prior):4.0%} of patients: " + "".join(" .-+#"[int(4.9 * w)] for w in weight))
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
