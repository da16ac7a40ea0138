"""One E-step over 1000 data, against the bare decoder on the same states.

64 pixels, sets of 64 states, 360 children a datum (4 generations of 90, as published, or as many as
`--generations` says), a decoder H-H-64 with one ReLU layer; the model is a user's own, of stock
distributions. The bare decoder runs on states that are there already, as floats, in pieces of its
best size. `throughput` is its share of the E-step: how many states a second are proposed, scored
and merged, against how many the decoder alone takes. With ``--beside tvo``, the E-step of the TVAE
authors' library runs in the same rounds.
"""

import argparse
import json

import pyro
import pyro.distributions as dist
import torch
from beside import tvo_step
from timing import against, side_by_side, summary, table
from torch import Tensor, nn

from pyro_dvae.infer import Truncated_ELBO, TruncatedGuide
from pyro_dvae.ops.evolution import chain, flip, select

N, D, S, PARENTS, CHILDREN = 1000, 64, 64, 40, 9  # parents of all generations
PIECES = (2_000, 4_000, 8_000, 16_000)  # rows of the bare decoder's pieces; the best one counts


class Patches(nn.Module):
    """A model that knows nothing of how it is inferred."""

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(num_latents, num_latents), nn.ReLU(), nn.Linear(num_latents, D)
        )
        self.logits = nn.Parameter(torch.full((num_latents,), -2.0))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        """Binary causes of real pixels."""
        pyro.module("patches", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.logits).to_event(1))
            noise = self.log_scale.exp()
            pyro.sample("x", dist.Normal(self.net(z), noise).to_event(1), obs=x)


def steps(num_latents: int, generations: int = 4, beside: str | None = None) -> dict:
    """The decoder at each size of its pieces, another library's E-step, and ours."""
    pyro.clear_param_store()
    model, x = Patches(num_latents), torch.randn(N, D)
    guide = TruncatedGuide(model, S)
    parents = PARENTS // generations
    elbo = Truncated_ELBO(chain(select(parents), flip(CHILDREN)), generations=generations)
    num_states = N * (S + PARENTS * CHILDREN)
    states = torch.randint(2, (num_states, num_latents)).float()

    def decode(size: int) -> None:
        with torch.no_grad():
            for piece in states.split(size):
                model.net(piece)

    bare = {f"decoder, {size} rows": (lambda size=size: decode(size)) for size in PIECES}
    same = {"parents": parents, "children": CHILDREN, "generations": generations, "num_states": S}
    threads = torch.get_num_threads()
    other = {beside: tvo_step(x, num_latents, threads=threads, **same)} if beside else {}
    return {**bare, **other, "E-step": lambda: elbo.e_step(model, guide, x)}


def main() -> None:
    """Print a table for each size, and with ``--json`` one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--generations", type=int, choices=[1, 2, 4], default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside", choices=["tvo"], help="another library, installed by you")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pyro.set_rng_seed(options.seed)
    found = {}
    for num_latents in options.latents:
        run = steps(num_latents, options.generations, options.beside)
        seconds = side_by_side(run, rounds=options.rounds, repeats=1, warmup=1)
        best = min((name for name in seconds if "decoder" in name), key=lambda n: sum(seconds[n]))
        rows = summary(seconds, best)
        found[num_latents] = {"rows": rows, "throughput": round(1 / rows[-1]["ratio"], 3)}
        print(f"H = {num_latents}\n{table(rows, best)}")
        print(f"throughput: {found[num_latents]['throughput']:.2f} of the decoder's")
        if options.beside:
            print(against(seconds, options.beside))
        print()
    if options.json:
        print(
            json.dumps(
                {"threads": options.threads, "generations": options.generations, "latents": found}
            )
        )


if __name__ == "__main__":
    main()
