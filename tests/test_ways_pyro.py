"""Sizes, families and names that Python takes from a draw: every way through a program counts."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from any_pyro import fresh, quiet  # noqa: E402
from pyro import poutine  # noqa: E402

from pyro_dvae.diagnostics import importance_diagnostics, posterior_gap  # noqa: E402
from pyro_dvae.infer import DAPS_ELBO, Exact_ELBO, Reinforce_ELBO  # noqa: E402

__all__ = ["fresh"]  # a fixture of every test here

Y = torch.tensor(1.3, dtype=torch.float64)


def coin(name):
    return dist.Bernoulli(logits=pyro.param(f"of_{name}", torch.tensor(0.3)))


def three():
    return dist.Categorical(logits=pyro.param("three", torch.tensor([0.1, 0.2, 0.4])))


def sized(is_model):
    n = int(
        pyro.sample("n", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])) if is_model else three())
    )
    with pyro.plate("each", n + 1):
        return pyro.sample("w", dist.Bernoulli(0.3) if is_model else coin("w")).sum()


def named(is_model):
    n = int(
        pyro.sample("n", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])) if is_model else three())
    )
    return n + pyro.sample(f"w_{n}", dist.Bernoulli(0.3) if is_model else coin("w"))


def of_a_family(is_model):
    if pyro.sample("s", dist.Bernoulli(0.4) if is_model else coin("s")):
        return pyro.sample("w", dist.Bernoulli(0.3) if is_model else coin("w"))
    uniform = dist.Categorical(torch.ones(3) / 3)
    return pyro.sample("w", uniform if is_model else three()).double()


def supported(is_model):
    n = int(
        pyro.sample("n", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])) if is_model else three())
    )
    logits = torch.zeros(3) if is_model else pyro.param("of_w", torch.tensor([0.1, 0.2, 0.4]))
    return pyro.sample("w", dist.Categorical(logits=logits[: n + 1])).double()


PROGRAMS = [sized, named, of_a_family, supported]
SLOW = [pytest.param(program, marks=pytest.mark.slow) for program in PROGRAMS[1:]]


def pair_of(program):
    def model(y):
        pyro.sample("y", dist.Normal(program(True), 1.0), obs=y)

    return model, lambda y: program(False)


class OpenError(Exception):
    """A run has come to a draw that is not given."""


class Given(poutine.messenger.Messenger):
    """Takes values one after another."""

    def __init__(self, values):
        super().__init__()
        self.values = iter(values)

    def _pyro_sample(self, msg):
        if msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        value = next(self.values, None)
        if value is None:
            support = msg["fn"].enumerate_support(expand=False).flatten()
            cells = itertools.product(support, repeat=msg["fn"].batch_shape.numel())
            raise OpenError([torch.stack(each).reshape(msg["fn"].batch_shape) for each in cells])
        msg["value"], msg["done"] = value, True


def ways(program):
    """All runs of a program."""
    unfinished = [()]
    while unfinished:
        values = unfinished.pop()
        try:
            with Given(values):
                trace = poutine.trace(program).get_trace(Y)
            yield trace
        except OpenError as branch:
            unfinished.extend((*values, value) for value in branch.args[0])


def exact(model, guide):
    loss = 0.0
    for trace in ways(guide):
        log_q = trace.log_prob_sum()
        log_p = poutine.trace(poutine.replay(model, trace)).get_trace(Y).log_prob_sum()
        loss = loss - log_q.exp() * (log_p - log_q)
    return loss


@pytest.mark.parametrize("loss", [Reinforce_ELBO, pytest.param(DAPS_ELBO, marks=pytest.mark.slow)])
@pytest.mark.parametrize("program", [*PROGRAMS[:1], *SLOW])
def test_what_samples_is_right(program, loss):
    model, guide = pair_of(program)
    guide(Y)
    expected = exact(model, guide)
    expected.backward()
    leaves = {name: leaf.unconstrained() for name, leaf in pyro.get_param_store().items()}
    slopes = torch.cat([leaf.grad.flatten() for leaf in leaves.values()])
    elbo, draws = loss(4), []
    for _ in range(80):
        for leaf in leaves.values():
            leaf.grad = None
        value = quiet(lambda: elbo.loss_and_grads(model, guide, Y))
        grads = [
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves.values()
        ]
        draws.append([float(value), *torch.cat([grad.flatten() for grad in grads]).tolist()])
    draws, right = np.array(draws), np.array([expected.item(), *slopes.tolist()])
    kept = slice(None) if loss is Reinforce_ELBO else slice(1)  # a policy search has its own slope
    apart = np.abs(draws.mean(0) - right)[kept]
    assert (apart < 5 * draws.std(0, ddof=1)[kept] / len(draws) ** 0.5 + 1e-12).all(), apart


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_lists_states_refuses_whatever_is_drawn_first(program):
    for seed in range(3):
        pyro.set_rng_seed(seed)
        with pytest.raises(ValueError, match="so the states cannot be listed"):
            quiet(lambda: Exact_ELBO().loss(*pair_of(program), Y))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_evidence_is_that_of_all_ways(program):
    pair = pair_of(program)
    pair[1](Y)
    log_p = torch.stack([trace.log_prob_sum() for trace in ways(pair[0])])
    gap = posterior_gap(pair, Y)
    np.testing.assert_allclose(gap.log_evidence, float(log_p.logsumexp(0)), rtol=1e-6)
    np.testing.assert_allclose(gap.elbo, -exact(*pair).item(), rtol=1e-6)
    if program is sized:
        with pytest.raises(ValueError, match="'w' has another shape in some draws"):
            importance_diagnostics(pair, Y, num_particles=30)
        return
    report = importance_diagnostics(pair, Y, num_particles=100)
    assert abs(float(report.iwae) - float(log_p.logsumexp(0))) < 5 * float(report.iwae_error)


def test_marked_sites_that_come_and_go_are_summed_or_refused():
    """Refused where the first run shows programs without them; else the right sum."""

    def model():
        k = pyro.sample("k", dist.Bernoulli(0.3))
        loc = torch.tensor(2.0)
        if not k:
            fn = dist.Bernoulli(0.6)
            loc = 2.0 * pyro.sample("j", fn, infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(1.5))

    def guide():
        pyro.sample("k", dist.Bernoulli(0.3))

    values, refusals = [], []
    for seed in range(20):
        pyro.set_rng_seed(seed)
        try:
            values.append(-Reinforce_ELBO(20, vectorize_particles=False).loss(model, guide))
        except ValueError as error:
            refusals.append(str(error))
    assert refusals
    assert all("['j'] are marked" in words for words in refusals)
    at = np.exp(-0.5 * (1.5 - np.array([0.0, 2.0])) ** 2) / np.sqrt(2 * np.pi)
    expected = 0.3 * np.log(at[1]) + 0.7 * np.log(0.4 * at[0] + 0.6 * at[1])
    assert abs(np.mean(values) - expected) < 5 * np.std(values) / len(values) ** 0.5
