"""The models of `host_zoo` in NumPyro: their exact losses, and what our losses make of them."""

import contextlib
import itertools
import math
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.util import log_density
from numpyro.primitives import Messenger
from numpyro_programs import plate

from numpyro_dvae import infer
from numpyro_dvae.distributions import OneHotCategorical

__all__ = ["draws", "exact", "infer"]

QUIET = ("the discrete sites share no plate",)
COUNTS = np.arange(40)  # of families without an end: the rest is 1e-12
WIDTH = 5.0  # standard deviations on either side


class ScoreNormal(dist.Normal):
    """A normal without a pathwise gradient."""

    reparametrized_params = []  # noqa: RUF012


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
        yield


def array(value):
    return jnp.asarray(value, float)


def markov(steps):
    """As in Pyro; its home imports funsor."""
    from numpyro.contrib.funsor import markov

    return markov(steps)


def programs(host):
    """Model and guide of no arguments, and the parameters that they are of."""
    params = {name: array(value) for name, value in host.params.items()}
    ppl = SimpleNamespace(
        name="numpyro",
        sample=numpyro.sample,
        deterministic=numpyro.deterministic,
        factor=numpyro.factor,
        guide_factor=numpyro.factor,
        plate=plate,
        markov=markov,
        mask=handlers.mask,
        scale=handlers.scale,
        param=lambda name: numpyro.param(name, params[name]),
        dist=dist,
        score_normal=ScoreNormal,
        one_hot=OneHotCategorical,  # NumPyro has none
        array=array,
        bools=jnp.array,
        integers=jnp.array,
        rows=jnp.array,
        exp=jnp.exp,
        logaddexp=jnp.logaddexp,
        where=jnp.where,
    )
    return (lambda: host.model(ppl)), (lambda: host.guide(ppl)), params


class Pick(Messenger):
    """Takes one of the values of each latent, in order, and multiplies their probabilities."""

    def __init__(self, fn, places, nodes):
        super().__init__(fn)
        self.places, self.nodes, self.counts = places, nodes, []
        self.weight = 1.0

    def process_message(self, msg):
        drawn = msg["type"] == "sample" and not msg["is_observed"] and msg["value"] is None
        rows = msg["type"] == "plate" and msg["value"] is None and msg["args"][1] is not None
        if not drawn and not (rows and msg["args"][1] < msg["args"][0]):
            return
        place = self.places[len(self.counts)] if len(self.counts) < len(self.places) else 0
        pick = self._value(msg["fn"], place) if drawn else self._rows(*msg["args"], place)
        msg["value"], weight, count = pick
        self.counts.append(count)
        self.weight = self.weight * weight

    def _rows(self, size, subsample_size, place):
        values = jnp.array(list(itertools.combinations(range(size), subsample_size)))
        return values[place], 1.0 / len(values), len(values)

    def _value(self, fn, place):
        table, volume = self._table(fn)  # of each cell, its values
        cells, count = table.shape[:2]
        digits = place // count ** np.arange(cells) % count
        value = jnp.asarray(table)[np.arange(cells), digits].reshape(fn.shape())
        while isinstance(fn, dist.MaskedDistribution):  # it is drawn as ever
            fn = fn.base_dist
        return value, jnp.exp(fn.log_prob(value).sum()) * volume, count**cells

    def _table(self, fn):
        base = fn
        while hasattr(base, "base_dist"):
            base = base.base_dist
        cells = math.prod(fn.shape())
        if isinstance(base, dist.Delta):
            return jnp.broadcast_to(base.v, fn.shape()).reshape(-1, 1), 1.0
        if isinstance(base, dist.Normal):
            grid = np.linspace(-WIDTH, WIDTH, self.nodes)
            pair = (jnp.broadcast_to(x, fn.shape()).reshape(-1, 1) for x in (base.loc, base.scale))
            loc, scale = (jax.lax.stop_gradient(x) for x in pair)
            return loc + scale * grid, (scale * (grid[1] - grid[0])).prod()
        if not base.has_enumerate_support:
            return np.tile(COUNTS, (cells, 1)), 1.0
        values = base.enumerate_support(expand=False)
        if base.event_shape:  # one-hot
            return values.reshape(1, len(values), -1), 1.0
        return jnp.tile(values.reshape(1, -1), (cells, 1)), 1.0


def exact(host):
    """Minus the ELBO and its gradients, by the sum over all that the guide can draw."""
    model, guide, params = programs(host)

    def run(params, places):
        pick = Pick(handlers.substitute(guide, data=params), places, host.nodes)
        trace = handlers.trace(pick).get_trace()
        log_q, _ = log_density(handlers.replay(guide, trace), (), {}, params)
        log_p, _ = log_density(handlers.replay(model, trace), (), {}, params)
        return pick.weight * (log_q - log_p), pick.counts

    counts = []
    jax.eval_shape(lambda params: counts.extend(run(params, ())[1]), params)
    places = np.array(list(itertools.product(*map(range, counts))), int)
    places = places.reshape(math.prod(counts), len(counts))

    def total(params):
        return jax.lax.map(lambda row: run(params, row)[0], places, batch_size=64).sum()

    value, grads = jax.jit(jax.value_and_grad(total))(params)
    return float(value), {name: np.asarray(slope) for name, slope in grads.items()}


def draws(host, elbo, times):
    """Values, and gradients by name, of so many steps."""
    model, guide, params = programs(host)

    def step(key):
        return jax.value_and_grad(lambda params: elbo.loss(key, params, model, guide))(params)

    with quiet():
        keys = jax.random.split(jax.random.key(0), times)
        values, grads = jax.jit(lambda keys: jax.lax.map(step, keys))(keys)
    return np.asarray(values), {name: np.asarray(rows) for name, rows in grads.items()}
