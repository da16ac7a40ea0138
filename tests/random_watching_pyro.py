"""What a loss of Pyro's is given in a run of a random program, and the draws noted or set."""

import contextlib
import warnings

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.util import site_is_subsample

from pyro_dvae import infer
from pyro_dvae.programs.draw import Draw

__all__ = ["Watch", "quiet", "watched"]

QUIET = ("model or guide does not broadcast", "the discrete sites share no plate", "Python asks")


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        for text in QUIET:
            warnings.filterwarnings("ignore", text)
        yield


def watched(elbo):
    """Note what the loss's algorithm is given: plates are None where the draws tell them."""
    heard, estimate_of, run_of = {}, type(elbo)._estimate, type(elbo).run_pair

    def estimate(particles, state):
        heard["particles"] = particles
        return estimate_of(elbo, particles, state)

    def run_pair(pair):
        heard["notes"], heard["vectorize"] = pair.notes, pair.vectorize
        heard["plates"] = None if pair.structure is None else pair.layout.plates
        return run_of(elbo, pair)

    elbo._estimate = estimate
    if type(elbo).run is infer.ParticleELBO.run:
        elbo.run_pair = run_pair
    return heard


class Watch(Messenger):
    """Notes the draws of a program, or sets them, unless the package gives a value."""

    def __init__(self, program, rows_only=False):
        super().__init__()
        self.program, self.rows_only, self.values = program, rows_only, {}

    def _pyro_sample(self, msg):
        given = self.program.given if torch.is_grad_enabled() else None
        if given is not None and msg["name"] in given and not msg["is_observed"]:
            place = len(self.program.seen) % len(given[msg["name"]])
            msg["value"], msg["done"] = given[msg["name"]][place], True
        noise = None if self.rows_only else self.program.noise  # of the guide's draws
        held = any(msg["name"] in h.values for h in _PYRO_STACK if isinstance(h, Draw))
        if noise is not None and msg["name"] in noise and not held:
            msg["value"], msg["done"] = self.program.moved(msg["fn"], noise[msg["name"]]), True

    def _pyro_post_sample(self, msg):
        if site_is_subsample(msg):
            if not msg["name"].startswith("turns."):
                self.values[f"rows.{msg['name']}"] = msg["value"].detach().numpy()
        elif torch.is_grad_enabled() and not (msg["is_observed"] or self.rows_only):
            self.values[msg["name"]] = msg["value"].detach().numpy()
