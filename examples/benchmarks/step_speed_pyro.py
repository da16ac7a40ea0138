"""One training step of the published MNIST model, against the same step written by hand in torch.

Independent guide: 8 codes of 256 values, K = 8, batch 256. By hand means no Pyro: one gather for
log q, one `multinomial`, the weights and the temperature of DAPS, Adam. Printed beside it: the
same loss on the published autoregressive guide, REINFORCE, and Pyro's own TraceGraph_ELBO; with
``--beside jadex``, the autoregressive step of the DAPS authors' library (JAX), in the same rounds.
"""

import argparse
import json
import math
import time

import pyro
import torch
from beside import jadex_step
from pyro.infer import SVI, TraceGraph_ELBO
from timing import against, side_by_side, summary, table
from torch.nn import functional

from pyro_dvae.guides import mnist_guide
from pyro_dvae.infer.daps import DAPS_ELBO
from pyro_dvae.infer.reinforce import Reinforce_ELBO
from pyro_dvae.models import mnist_vae
from pyro_dvae.ops.tempering import effective_sample_size, solve_temperature

K, BATCH, L, V, BETA = 8, 256, 8, 256, 0.1


def by_hand(x: torch.Tensor):  # noqa: ANN201
    """DAPS as one would write it for this model alone."""
    encoder, decoder = mnist_guide(autoregressive=False).encoder, mnist_vae().decoder
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-4)

    def step() -> None:
        log_probs = torch.log_softmax(encoder(x), -1)
        with torch.no_grad():
            rows = log_probs.exp().reshape(-1, V)
            codes = torch.multinomial(rows, K, replacement=True).reshape(BATCH, L, K)
        log_q = log_probs.gather(-1, codes).sum(1).T
        codes = codes.permute(2, 0, 1)
        logits = decoder(codes)
        log_likelihood = -functional.binary_cross_entropy_with_logits(
            logits, x.expand(K, *x.shape), reduction="none"
        ).sum((-2, -1))
        scores = (log_likelihood - BETA * (L * math.log(V) + log_q)).detach()
        copies = (codes[:, None] == codes[None]).all(-1).sum(0)
        temperature = solve_temperature(scores, 0.75, copies, shared=True).clamp(min=BETA)
        weights = torch.softmax(scores / temperature, 0)
        effective_sample_size(scores / temperature, copies).mean()
        loss = -((weights - 1 / K) * log_q).sum() - log_likelihood.mean(0).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def with_svi(loss: pyro.infer.ELBO, x: torch.Tensor, *, autoregressive: bool = False):  # noqa: ANN201
    """The same through `SVI`."""
    svi = SVI(
        mnist_vae(),
        mnist_guide(autoregressive=autoregressive),
        pyro.optim.Adam({"lr": 3e-4}),
        loss=loss,
    )
    return lambda: svi.step(x)


def main() -> None:
    """Print the table, and with ``--json`` one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside", choices=["jadex"], help="another library, installed by you")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pyro.set_rng_seed(options.seed)
    x = (torch.rand(BATCH, 28, 28) > 0.8).float()
    daps = {"num_particles": K, "beta": BETA}
    steps = {
        "by hand, torch": by_hand(x),
        "DAPS_ELBO": with_svi(DAPS_ELBO(**daps), x),
        "Reinforce_ELBO": with_svi(Reinforce_ELBO(**daps), x),
        "TraceGraph_ELBO": with_svi(TraceGraph_ELBO(K, vectorize_particles=True), x),
        "DAPS_ELBO, autoregressive": with_svi(DAPS_ELBO(**daps), x, autoregressive=True),
    }
    if options.beside:
        steps[options.beside] = jadex_step(x)
    first = {}
    for name, step in steps.items():
        start = time.process_time()
        step()
        first[name] = round(time.process_time() - start, 2)
    seconds = side_by_side(steps, rounds=options.rounds)
    rows = summary(seconds, "by hand, torch")
    print(table(rows, "by hand, torch"))
    print("seconds of the first step:", ", ".join(f"{k} {v}" for k, v in first.items()))
    if options.beside:
        print(against(seconds, options.beside, "DAPS_ELBO, autoregressive"))
    if options.json:
        print(json.dumps({"threads": options.threads, "rows": rows, "first_step_seconds": first}))


if __name__ == "__main__":
    main()
