"""Log-densities of a program at all states of its discrete latents, by its library's own traces.

An oracle that knows nothing of the packages: each state is put in the place of the draws, and the
distributions of the trace are asked for its density.
"""

import itertools
from typing import NamedTuple

import numpy as np


class Logs(NamedTuple):
    """Of a program, by state: sums over its sites."""

    scaled: np.ndarray  # of all, as the objective weighs them
    observed: np.ndarray  # of what is observed, without scales
    drawn: np.ndarray  # of its latents, masked or not: what they are drawn from


def states_of(cells):
    """All states, by site an array of codes; `cells` are shapes and numbers of values."""
    each = [
        [np.array(codes).reshape(shape) for codes in itertools.product(range(size), repeat=count)]
        for shape, size, count in ((s, n, int(np.prod(s))) for s, n in cells.values())
    ]
    return [dict(zip(cells, codes, strict=True)) for codes in itertools.product(*each)]


def values_of(states, cells, one_hot):
    """The states as values of the sites."""
    return {
        name: np.stack(
            [np.eye(cells[name][1])[s[name]] if name in one_hot else s[name] for s in states]
        )
        for name in cells
    }


def logs_of(lab, program, args, values, params):
    """`Logs` of a program at these values ``(states, ...)`` of its latents."""
    return {"pyro": _of_pyro, "numpyro": _of_numpyro}[lab.name](lab, program, args, values, params)


def _of_pyro(lab, program, args, values, params):
    pyro, torch = lab.pyro, lab.torch
    from pyro.poutine.messenger import Messenger
    from pyro.poutine.util import site_is_subsample

    class Put(Messenger):
        def __init__(self, state):
            super().__init__()
            self.state = state

        def _pyro_sample(self, msg):
            if msg["name"] in self.state and not msg["is_observed"]:
                msg["value"], msg["done"] = self.state[msg["name"]], True

    found = []
    for number in range(len(next(iter(values.values())))):
        state = {name: torch.tensor(each[number]) for name, each in values.items()}
        with torch.no_grad(), pyro.validation_enabled(False):
            with Put(state):
                trace = pyro.poutine.trace(program).get_trace(*args)
            sites = [s for s in trace.nodes.values() if s["type"] == "sample"]
            found.append(_sums(pyro, [site for site in sites if not site_is_subsample(site)]))
    return Logs(*np.array(found).T)


def _sums(pyro, sites):
    sums = np.zeros(3)
    for site in sites:
        logs = site["fn"].log_prob(site["value"])
        logs = pyro.distributions.util.scale_and_mask(logs, 1.0, site["mask"])
        sums[0] += float(logs.sum()) * float(site["scale"])
        if site["is_observed"]:
            sums[1] += float(logs.sum())
        else:
            sums[2] += float(_unmasked(site["fn"]).log_prob(site["value"]).sum())
    return sums


def _of_numpyro(lab, program, args, values, params):
    jax, handlers = lab.jax, lab.numpyro.handlers

    def at(state):
        given = handlers.substitute(program, data={**params, **state})
        trace = handlers.trace(handlers.seed(given, 0)).get_trace(*args)
        scaled = observed = drawn = 0.0
        for site in trace.values():
            if site["type"] != "sample":
                continue
            logs = site["fn"].log_prob(site["value"]).sum()
            scaled = scaled + logs * (1.0 if site["scale"] is None else site["scale"])
            if site["is_observed"]:
                observed = observed + logs
            else:
                drawn = drawn + _unmasked(site["fn"]).log_prob(site["value"]).sum()
        return scaled, observed, drawn

    found = jax.jit(lambda values: jax.lax.map(at, values))(values)
    return Logs(*(np.asarray(part) for part in found))


def _unmasked(fn):
    if not hasattr(fn, "base_dist"):
        return fn
    base, kind = _unmasked(fn.base_dist), type(fn).__name__
    if kind == "Independent":
        return base.to_event(fn.reinterpreted_batch_ndims)
    return base.expand(fn.batch_shape) if kind == "ExpandedDistribution" else base
