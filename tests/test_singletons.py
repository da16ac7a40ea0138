"""Programs that read the sizes of their latents, or join them with data, where states are listed.

All data go through the same states, so that one value can stand for all; not for such programs.
"""

import itertools

import numpy as np
import pytest
from zoo import Program, bernoulli, gradient, normal

SIZE = 4
RNG = np.random.default_rng(5)
DATA = {"y": RNG.normal(size=SIZE), "table": RNG.normal(size=(SIZE, 2))}
PARAMS = {"slope": np.array([0.7, -0.4]), "logit": np.array([0.3, -0.9])}


def by_row(ppl, lib, y, a, b, table, slope):
    """Each datum has a row of its own: an index as long as the latent."""
    return slope[0] * table[lib.arange(a.shape[-1]), lib.index(a)] + slope[1] * b


def joined(ppl, lib, y, a, b, table, slope):
    """Data and latents side by side, as inputs of a network."""
    features = lib.concatenate([lib.column(table[:, 0], a), a[..., None], b[..., None]])
    return features[..., 1] * slope[0] + features[..., 2] * slope[1] + 0.1 * features[..., 0]


def stacked(ppl, lib, y, a, b, table, slope):
    """One datum after the other, in Python."""
    rows = [table[n, 0] * a[..., n] + slope[1] * b[..., n] for n in range(a.shape[-1])]
    return slope[0] * ppl.stack(rows, -1)


def mapped(ppl, lib, y, a, b, table, slope):
    """A function of one datum, over all."""
    return lib.vmap(lambda y, a, b: slope[0] * y * a + slope[1] * b, table[:, 0], a, b)


def plain(ppl, lib, y, a, b, table, slope):
    return slope[0] * a + slope[1] * b


def right(kind, p, n, a, b):
    row, slope = DATA["table"][n], p["slope"]
    return {
        "by_row": slope[0] * row[a] + slope[1] * b,
        "joined": slope[0] * a + slope[1] * b + 0.1 * row[0],
        "stacked": slope[0] * (row[0] * a + slope[1] * b),
        "mapped": slope[0] * row[0] * a + slope[1] * b,
        "plain": slope[0] * a + slope[1] * b,
    }[kind]


KINDS = {f.__name__: f for f in (by_row, joined, stacked, mapped, plain)}


def minus_elbo(kind):
    def loss(p):
        total = 0.0
        for n, (a, b) in itertools.product(range(SIZE), itertools.product((0, 1), repeat=2)):
            log_q = bernoulli(a, p["logit"][0]) + bernoulli(b, p["logit"][1])
            log_p = bernoulli(a, 0.0) + bernoulli(b, 0.5)
            log_p = log_p + normal(DATA["y"][n], right(kind, p, n, a, b))
            total = total + np.exp(log_q) * (log_p - log_q)
        return -total

    return loss


def program(kind, lib):
    def model(ppl, data):
        with ppl.plate("data", SIZE):
            a = ppl.sample("a", ppl.dist.Bernoulli(logits=ppl.zeros(1)))
            b = ppl.sample("b", ppl.dist.Bernoulli(logits=ppl.zeros(1) + 0.5))
            slope = ppl.param("slope", data)
            loc = KINDS[kind](ppl, lib, data["y"], a, b, data["table"], slope)
            ppl.sample("y", ppl.dist.Normal(loc, 1.0), obs=data["y"])

    def guide(ppl, data):
        logit = ppl.param("logit", data)
        with ppl.plate("data", SIZE):
            ppl.sample("a", ppl.dist.Bernoulli(logits=logit[0] + ppl.zeros(1)))
            ppl.sample("b", ppl.dist.Bernoulli(logits=logit[1] + ppl.zeros(1)))

    return Program(kind, model, guide, minus_elbo(kind), PARAMS, DATA, ("data",), 4)


class Torch:
    def __init__(self):
        import torch

        self.arange = torch.arange

    def index(self, value):
        return value.long()

    def column(self, value, like):
        return value.expand(like.shape)[..., None]

    def concatenate(self, parts):
        import torch

        return torch.cat(parts, -1)

    def vmap(self, function, *arrays):
        import torch

        if arrays[1].dim() > 1:
            return torch.stack(
                [self.vmap(function, arrays[0], *rest) for rest in zip(*arrays[1:], strict=True)]
            )
        return torch.vmap(function)(*arrays)


class Jax:
    def __init__(self):
        import jax.numpy as jnp

        self.arange = jnp.arange

    def index(self, value):
        return value.astype(int)

    def column(self, value, like):
        return value[:, None]

    def concatenate(self, parts):
        import jax.numpy as jnp

        return jnp.concatenate(parts, -1)

    def vmap(self, function, *arrays):
        import jax

        return jax.vmap(function)(*arrays)


def library(shim):
    return Torch() if shim.__name__.startswith("pyro") else Jax()


@pytest.mark.parametrize("kind", KINDS)
def test_enumeration_gives_the_exact_loss_and_gradient(shim, kind):
    chosen = program(kind, library(shim))
    loss, grads = shim.Case(chosen).run(shim.module("infer").Exact_ELBO())
    np.testing.assert_allclose(loss, chosen.loss(PARAMS), rtol=1e-10)
    for name, expected in gradient(chosen.loss, PARAMS).items():
        np.testing.assert_allclose(grads[name], expected, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", ["by_row", "joined"])
def test_the_exact_gap(shim, kind):
    chosen = program(kind, library(shim))
    gap = shim.diagnose(shim.module("diagnostics").posterior_gap, shim.Case(chosen))
    np.testing.assert_allclose(gap.elbo.sum(), -chosen.loss(PARAMS), rtol=1e-6)


@pytest.mark.parametrize("kind", ["by_row", "joined", "mapped"])
def test_all_states_of_a_truncated_posterior(shim, kind):
    from truncated_zoo import SetProgram, truncated

    def log_joint(p, data):
        return None

    chosen = program(kind, library(shim))
    params = {"slope": PARAMS["slope"]}
    sets = shim.Sets(SetProgram(kind, chosen.model, log_joint, (2, 2), params, DATA), 4)
    expected = 0.0
    for n in range(SIZE):
        terms = [
            bernoulli(a, 0.0)
            + bernoulli(b, 0.5)
            + normal(DATA["y"][n], right(kind, PARAMS, n, a, b))
            for a, b in itertools.product((0, 1), repeat=2)
        ]
        expected -= np.log(np.exp(terms).sum())
    np.testing.assert_allclose(sets.loss(truncated(shim)), expected, rtol=1e-10)


def test_programs_that_need_no_sizes_share_one_value(shim):
    """The work of all data but one is spared: a decoder sees a state once."""
    case = shim.Case(program("plain", library(shim)))
    elbo = shim.module("infer").Exact_ELBO()
    case.run(elbo)
    (found,) = elbo._plans._plans.values()
    notes = found[0].pair.notes if isinstance(found, list) else found[1]  # Pyro's are lists
    assert notes is False
