"""One E-step over 1000 data, against the bare decoder on the same states.

64 pixels, sets of 64 states, 360 children a datum (4 generations of 90, as published, or as many as
`--generations` says), a decoder H-H-64 with one ReLU layer; the model is a user's own, of stock
distributions. The bare decoder runs on states that are there already, as floats, in pieces of its
best size. `throughput` is its share of the E-step: how many states a second are proposed, scored
and merged, against how many the decoder alone takes. With ``--beside tvo``, the E-step of the TVAE
authors' library runs in the same rounds; with ``--beside make_fx`` ours, its passes repeated by
graphs that torch makes of them, or not at all.
"""

import argparse
import json
import time
from collections.abc import Callable
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
from beside import tvo_step
from timing import against, side_by_side, summary, table
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_dvae.infer import Truncated_ELBO, TruncatedGuide
from pyro_dvae.infer.truncated import scoring
from pyro_dvae.ops.evolution import chain, flip, select

N, D, S, PARENTS, CHILDREN = 1000, 64, 64, 40, 9  # parents of all generations
PIECES = (2_000, 4_000, 8_000, 16_000)  # rows of the bare decoder's pieces; the best one counts
# Codes that a graph scores at once, for the same choice; 5 * 2**16 are ours.
GRAPH_PIECES = {
    "graph": (4, 5, 8),
    "compiled": (4, 5, 8),
    "graph, anew": (5, 8),
    "compiled, anew": (5,),
    "passes": (8, 16),
}


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


def e_step(num_latents: int, generations: int) -> Callable[[], object]:
    """Our E-step, of sets of its own."""
    pyro.clear_param_store()
    model, x = Patches(num_latents), torch.randn(N, D)
    guide = TruncatedGuide(model, S)
    operator = chain(select(PARENTS // generations), flip(CHILDREN))
    elbo = Truncated_ELBO(operator, generations=generations)
    return lambda: elbo.e_step(model, guide, x)


def by_graph(e_step: Callable[[], object], kind: str, num_codes: int) -> Callable[[], object]:
    """An E-step whose passes are repeated by a graph that `make_fx` makes of one, or not at all.

    A graph holds what the program's Python was: numbers, branches, the minibatch. One that is kept
    from E-step to E-step is wrong where these change, as they do not here; a safe one is made anew.
    """
    kept: dict[tuple, Callable] = {}

    def repeatable_pass(function: Callable, words: Tensor) -> tuple[Tensor, Callable | None]:
        scores, shape = function(words), tuple(words.shape)
        if kind == "passes":
            return scores, None
        if shape not in kept or kind.endswith("anew"):
            is_first = shape not in kept
            kept[shape] = graph_of(function, words, compiled="compiled" in kind, tells=is_first)
            if is_first:
                report(kind, kept[shape], words, scores)
        return scores, kept[shape]

    settings = {"_CODES_REPEATED": num_codes, "_CODES_AT_ONCE": num_codes, "_REPETITIONS": 2}
    if kind == "passes":
        settings["_REPETITIONS"] = 10**9

    def step() -> None:
        with mock.patch.multiple(scoring, repeatable_pass=repeatable_pass, **settings):
            e_step()

    return step


def graph_of(function: Callable, words: Tensor, *, compiled: bool, tells: bool) -> Callable:
    """What torch makes of a pass; with `tells`, how long that took."""
    start = time.perf_counter()
    graph: Callable = make_fx(lambda words: function(words))(words)
    if compiled:
        graph = torch.compile(graph, dynamic=False)
        with torch.inference_mode():  # as the E-step calls it
            graph(words)
    if compiled and tells:
        print(f"compiled for words {tuple(words.shape)} in {time.perf_counter() - start:.1f} s")
    return graph


def report(kind: str, graph: Callable, words: Tensor, scores: Tensor) -> None:
    """Whether a graph says what the pass has said that it was made of."""
    found = graph(words)
    torch.testing.assert_close(found, scores, rtol=1e-4, atol=1e-4)
    share = (found != scores).double().mean().item()
    print(
        f"{kind}, words {tuple(words.shape)}: {share:.0%} of the scores differ in their last bits"
    )


def steps(num_latents: int, generations: int = 4, beside: str | None = None) -> dict:
    """The decoder at each size of its pieces, other E-steps, and ours."""
    ours = e_step(num_latents, generations)
    decoder, x = Patches(num_latents).net, torch.randn(N, D)
    num_states = N * (S + PARENTS * CHILDREN)
    states = torch.randint(2, (num_states, num_latents)).float()

    def decode(size: int) -> None:
        with torch.no_grad():
            for piece in states.split(size):
                decoder(piece)

    found = {f"decoder, {size} rows": (lambda size=size: decode(size)) for size in PIECES}
    if beside == "tvo":
        threads, parents = torch.get_num_threads(), PARENTS // generations
        same = {"parents": parents, "children": CHILDREN, "generations": generations}
        found[beside] = tvo_step(x, num_latents, threads=threads, num_states=S, **same)
    if beside == "make_fx":
        for kind, sizes in GRAPH_PIECES.items():
            for size in sizes:
                step = by_graph(e_step(num_latents, generations), kind, size * 2**16)
                found[f"{kind}, {size} * 2**16 codes"] = step
    return {**found, "E-step": ours}


def main() -> None:
    """Print a table for each size, and with ``--json`` one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--generations", type=int, choices=[1, 2, 4], default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--beside",
        choices=["tvo", "make_fx"],
        help="another library, installed by you; or torch's graphs",
    )
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
        for name in seconds if options.beside else ():
            if name != "E-step" and "decoder" not in name:
                print(against(seconds, name))
        print()
    if options.json:
        print(
            json.dumps(
                {"threads": options.threads, "generations": options.generations, "latents": found}
            )
        )


if __name__ == "__main__":
    main()
