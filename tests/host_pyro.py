"""The models of `host_zoo` in Pyro: their exact losses, and what our losses make of them."""

import contextlib
import itertools
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyro_dvae import infer

__all__ = ["draws", "exact", "infer"]

QUIET = ("the discrete sites share no plate", "Python asks for the values", ".*once per particle")
COUNTS = torch.arange(40.0, dtype=torch.float64)  # of families without an end: the rest is 1e-12
WIDTH = 5.0  # standard deviations on either side


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
        yield


def array(value):
    return torch.as_tensor(value, dtype=torch.float64)


def programs(host):
    """Model and guide of no arguments, and the leaves that they are of."""
    leaves = {n: array(value).requires_grad_() for n, value in host.params.items()}
    ppl = SimpleNamespace(
        name="pyro",
        sample=pyro.sample,
        deterministic=pyro.deterministic,
        factor=pyro.factor,
        guide_factor=lambda name, value: pyro.factor(name, value, has_rsample=False),
        plate=pyro.plate,
        markov=pyro.markov,
        mask=poutine.mask,
        scale=poutine.scale,
        param=leaves.__getitem__,
        dist=dist,
        one_hot=dist.OneHotCategorical,
        score_normal=lambda loc, scale: dist.Normal(array(loc), array(scale)).has_rsample_(False),
        array=array,
        bools=torch.tensor,
        integers=torch.tensor,
        rows=torch.tensor,
        exp=torch.exp,
        logaddexp=torch.logaddexp,
        where=lambda where, one, other: torch.where(where, array(one), array(other)),
    )
    return (lambda: host.model(ppl)), (lambda: host.guide(ppl)), leaves


class Pick(Messenger):
    """Takes one of the values of each latent, in order, and multiplies their probabilities."""

    def __init__(self, places, nodes):
        super().__init__()
        self.places, self.nodes, self.counts = iter(places), nodes, []
        self.weight = array(1.0)

    def _pyro_sample(self, msg):
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        place = next(self.places, 0)
        pick = self._rows if site_is_subsample(msg) else self._value
        msg["value"], weight, count = pick(msg["fn"], place)
        msg["done"] = True
        self.counts.append(count)
        self.weight = self.weight * weight

    def _rows(self, plate, place):
        chosen = itertools.combinations(range(plate.size), plate.subsample_size or plate.size)
        values = [torch.tensor(rows) for rows in chosen]
        return values[place], 1.0 / len(values), len(values)

    def _value(self, fn, place):
        table, volume = self._table(fn)  # of each cell, its values
        count = len(table[0]) ** len(table)
        cells = [column[place // len(column) ** n % len(column)] for n, column in enumerate(table)]
        value = torch.stack(cells).reshape(fn.shape())
        return value, fn.log_prob(value).sum().exp() * volume, count

    def _table(self, fn):
        base = fn
        while hasattr(base, "base_dist"):
            base = base.base_dist
        if isinstance(base, dist.Delta):
            return base.v.expand(fn.shape()).reshape(-1, 1), 1.0
        if isinstance(base, dist.Normal):
            grid = torch.linspace(-WIDTH, WIDTH, self.nodes, dtype=torch.float64)
            loc, scale = (
                x.detach().expand(fn.shape()).reshape(-1, 1) for x in (base.loc, base.scale)
            )
            return loc + scale * grid, float((scale * (grid[1] - grid[0])).prod())
        if not base.has_enumerate_support:
            return COUNTS.expand(math.prod(fn.shape()), -1), 1.0
        values = base.enumerate_support(expand=False)
        if base.event_shape:  # one-hot
            return values.reshape(1, len(values), -1), 1.0
        return values.reshape(1, -1).expand(math.prod(fn.shape()), -1), 1.0


def paths(run):
    """Results of `run(places)` at all places; it returns them with the number of choices."""
    waiting = [()]
    while waiting:
        places = waiting.pop()
        result, counts = run(places)
        yield result
        for index in range(len(places), len(counts)):
            more = range(1, counts[index])
            waiting += [(*places, *[0] * (index - len(places)), n) for n in more]


def exact(host):
    """Minus the ELBO and its gradients, by the sum over all that the guide can draw."""
    model, guide, leaves = programs(host)

    def run(places):
        with pyro.validation_enabled(False), Pick(places, host.nodes) as pick:
            trace = poutine.trace(guide).get_trace()
            replayed = poutine.trace(poutine.replay(model, trace)).get_trace()
        term = pick.weight * (trace.log_prob_sum() - replayed.log_prob_sum())
        return term, pick.counts

    total = sum(paths(run))
    total = total if torch.is_tensor(total) else array(total)
    if total.requires_grad:
        total.backward()
    grads = {n: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for n, p in leaves.items()}
    return float(total.detach()), grads


def draws(host, elbo, times):
    """Values, and gradients by name, of so many steps."""
    model, guide, leaves = programs(host)
    values, grads = [], {name: [] for name in leaves}
    for seed in range(times):
        pyro.set_rng_seed(seed)
        with quiet():
            values.append(float(elbo.loss_and_grads(model, guide)))
        for name, leaf in leaves.items():
            grads[name].append(np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy())
            leaf.grad = None
    return np.array(values), {name: np.array(rows) for name, rows in grads.items()}
