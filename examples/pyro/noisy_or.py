"""Which diseases explain the symptoms? A noisy-OR network, learned without knowing either.

A patient has each of 6 diseases or not; a symptom stays away if no disease brings it about, nor its
leak. Diseases explain each other away, so that they depend on one another given the symptoms: no
product of probabilities says how. Every patient has a truncated posterior over sets of diseases,
of 16 sets, and by the gradient of its bound all probabilities are learned; the exact evidence is
printed beside that of the network that made the data, and which symptoms each disease brings about.
"""

import sys

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor

from pyro_dvae.diagnostics import posterior_gap
from pyro_dvae.fit import fit
from pyro_dvae.infer import Truncated_ELBO, TruncatedGuide
from pyro_dvae.ops.evolution import chain, flip, select

OWN, SHARED = torch.eye(6).repeat_interleave(3, 1), torch.eye(6).roll(1, 0).repeat(1, 3)
WEIGHT = torch.maximum(0.8 * OWN, 0.4 * SHARED)  # of diseases (6) on symptoms (18)
TRUE = {"prior": torch.full((6,), 0.2), "leak": torch.full((18,), 0.03), "weight": WEIGHT}


def model(symptoms: Tensor) -> None:
    """Symptoms ``(N, 18)``, 0 or 1."""
    between = dist.constraints.unit_interval
    prior = pyro.param("prior", torch.full((6,), 0.3), constraint=between)
    leak = pyro.param("leak", torch.full((18,), 0.1), constraint=between)
    weight = pyro.param("weight", lambda: 0.1 + 0.4 * torch.rand(6, 18), constraint=between)
    with pyro.plate("patients", len(symptoms)):
        diseases = pyro.sample("diseases", dist.Bernoulli(prior).to_event(1))
        rate = -torch.log1p(-leak) - diseases @ torch.log1p(-weight)  # exp(-rate): no symptom
        present = dist.Bernoulli(logits=rate + torch.log(-torch.expm1(-rate)))
        pyro.sample("symptoms", present.to_event(1), obs=symptoms)


def main(num_steps: int = 400, num_patients: int = 1000) -> dict[str, float]:
    """Simulate patients, learn the network, compare it with the truth."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    diseases = torch.bernoulli(TRUE["prior"].expand(num_patients, 6))
    log_absent = torch.log1p(-TRUE["leak"]) + diseases @ torch.log1p(-WEIGHT)
    symptoms = torch.bernoulli(-torch.expm1(log_absent))

    guide = TruncatedGuide(model, num_states=16)
    loss = Truncated_ELBO(chain(select(4), flip(4)))  # children of 4 parents, 4 of each
    result = fit(SVI(model, guide, Adam({"lr": 0.05}), loss=loss), symptoms, num_steps=num_steps)

    exact = posterior_gap(result, symptoms)
    truth = posterior_gap(result, symptoms, params=TRUE)
    found = {"bound": exact.elbo.mean(), "evidence": exact.log_evidence.mean()}
    found["evidence of the truth"] = truth.log_evidence.mean()
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()), "nats per patient")
    for prior, weight in zip(result.params["prior"], result.params["weight"], strict=True):
        print(f"{float(prior):4.0%} of patients: " + "".join(" .-+#"[int(4.9 * w)] for w in weight))
    return found


if __name__ == "__main__":
    print(__doc__) if sys.argv[1:] else main()
