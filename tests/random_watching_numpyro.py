"""What a loss of NumPyro's is given in a run of a random program, and noise that is set."""

import contextlib
import warnings

import jax.numpy as jnp
from numpyro.primitives import _PYRO_STACK, Messenger

from numpyro_dvae import infer
from numpyro_dvae.programs.draw import Draw

__all__ = ["Held", "quiet", "watched"]

QUIET = ("the discrete sites share no plate",)


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        for text in QUIET:
            warnings.filterwarnings("ignore", text)
        yield


class Held(Messenger):
    """Normal sites at a noise that is given, unless the package gives a value."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def process_message(self, msg):
        name = msg.get("name")
        given = any(name in h.values for h in _PYRO_STACK if isinstance(h, Draw))
        is_held = msg["type"] == "sample" and name in self.noise and not given
        if is_held and msg["value"] is None:
            fn = msg["fn"]
            while hasattr(fn, "base_dist"):
                fn = fn.base_dist
            msg["value"] = fn.loc + fn.scale * self.noise[name]


def read_seen(run, layout, num_particles):
    """Draws and rows; a reader of records."""
    values = {key: site.value for key, site in run.guide.items() if not site.is_observed}
    both = {**run.guide_trace, **run.model_trace}
    rows = {f"rows.{n}": m["value"] for n, m in both.items() if m["type"] == "plate"}
    return values | {key: jnp.asarray(rows[key]) for key in rows if rows[key] is not None}


def watched(elbo):
    """Note what the loss's algorithm is given."""
    heard, estimate_of, run_of = {}, type(elbo)._estimate, type(elbo).run_pair

    def estimate(particles, state):
        heard["particles"] = particles
        return estimate_of(elbo, particles, state)

    def run_pair(rng_key, pair):
        heard["notes"], heard["plates"] = pair.notes, pair.layout.plates
        return run_of(elbo, rng_key, pair)

    elbo.reads = {**type(elbo).reads, "seen": read_seen}
    elbo._estimate = estimate
    if type(elbo).run is infer.ParticleELBO.run:
        elbo.run_pair = run_pair
    return heard
