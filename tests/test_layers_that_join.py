"""Layers that join draws of several cells are found out before they have any effect.

A last layer that starts at 0, as many do, hides what those before it join: the operations tell.
"""

import itertools
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_dvae.infer import Exact_ELBO
from pyro_dvae.programs.structure.owners import Owners

WIDTH, COUNT = 4, 3
LAYERS = {
    "rnn": lambda: nn.RNN(WIDTH, WIDTH, batch_first=True),
    "gru": lambda: nn.GRU(WIDTH, WIDTH, batch_first=True),
    "lstm": lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True),
    "norm": lambda: nn.BatchNorm1d(WIDTH),
}


class Net(nn.Module):
    """Takes numbers of shape (*batch, steps) along their last axis; a head of 0 hides it."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer = nn.Linear(1, WIDTH), LAYERS[kind]()
        self.head = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.head.weight)
        self.double()

    def forward(self, z):
        h = self.first(z.double()[..., None])
        if isinstance(self.layer, nn.BatchNorm1d):
            return self.head(self.layer(h.flatten(0, -2)).reshape(h.shape))[..., 0]
        return self.head(self.layer(h)[0])[..., 0]

    def learn(self):
        """A head that is not 0."""
        with torch.no_grad():
            self.head.weight.copy_(torch.linspace(-2.0, 3.0, WIDTH)[None])


def of_a_plate(net, x):
    """Of the cells of a plate."""
    with pyro.plate("data", COUNT):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4, dtype=torch.float64)))
        pyro.sample("x", dist.Normal(net(z) + z, 1.0), obs=x)


def its_guide(x):
    logits = pyro.param("logits", lambda: torch.linspace(-0.5, 1.0, COUNT, dtype=torch.float64))
    with pyro.plate("data", COUNT):
        pyro.sample("z", dist.Bernoulli(logits=logits))


def of_a_chain(net, x):
    """Of sites, in front of which a draw has its particles: the network takes these for steps."""
    prior = dist.Bernoulli(torch.tensor(0.4, dtype=torch.float64))
    z = torch.stack([pyro.sample(f"z{t}", prior) for t in range(COUNT)])
    means = net(z)
    for t in range(COUNT):
        pyro.sample(f"x{t}", dist.Normal(means[t] + z[t], 1.0), obs=x[t])


def guide_of_a_chain(x):
    logits = pyro.param("logits", lambda: torch.linspace(-0.5, 1.0, COUNT, dtype=torch.float64))
    for t in range(COUNT):
        pyro.sample(f"z{t}", dist.Bernoulli(logits=logits[t]))


def expected(net, x):
    """The loss and its gradient, state by state, in double precision."""
    logits, loss, slope = np.linspace(-0.5, 1.0, COUNT), 0.0, np.zeros(COUNT)
    probs = 1 / (1 + np.exp(-logits))
    for state in itertools.product([0.0, 1.0], repeat=COUNT):
        z = np.array(state)
        with torch.no_grad():
            means = net(torch.tensor(z)).numpy() + z
        log_q = np.log(np.where(z > 0, probs, 1 - probs)).sum()
        log_p = np.log(np.where(z > 0, 0.4, 0.6)).sum()
        log_p += (-0.5 * (x - means) ** 2 - 0.5 * np.log(2 * np.pi)).sum()
        loss -= np.exp(log_q) * (log_p - log_q)
        slope -= np.exp(log_q) * (log_p - log_q) * (z - probs)
    return loss, slope


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("programs", [(of_a_plate, its_guide), (of_a_chain, guide_of_a_chain)])
def test_what_a_head_of_zeros_hides_is_found(kind, programs):
    pyro.clear_param_store()
    net, x = Net(kind), torch.linspace(-1.0, 1.0, COUNT, dtype=torch.float64)
    model, loss = (lambda x: programs[0](net, x)), Exact_ELBO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss.loss_and_grads(model, programs[1], x)
        net.learn()
        logits = pyro.param("logits").unconstrained()
        logits.grad = None
        value = loss.loss_and_grads(model, programs[1], x)
    right, slope = expected(net, x.numpy())
    np.testing.assert_allclose(value, right, rtol=1e-9)
    np.testing.assert_allclose(logits.grad.numpy(), slope, rtol=1e-8, atol=1e-9)


def sequences(layer, first=False):
    net = layer(WIDTH, WIDTH, batch_first=first, num_layers=2, bidirectional=True)
    return lambda x: net(x)[0]


def states(layer):
    net = layer(WIDTH, WIDTH)
    return lambda x: net(x[0], net(x[1]))[0] if layer is nn.LSTMCell else net(x[0], net(x[1]))


def of_matrix(function):
    return lambda x: function(x @ x.mT + 3 * torch.eye(x.shape[-1]))


LOOKED_AT = {
    **{
        f"{layer.__name__} {first}": (sequences(layer, first), (3, 5, WIDTH), (0, 1), (0, 1))
        for layer in (nn.RNN, nn.GRU, nn.LSTM)
        for first in (True, False)
    },
    **{f"{n.__name__}": (states(n), (2, 5, WIDTH), (1,), (0,)) for n in (nn.GRUCell, nn.LSTMCell)},
    "norm": (nn.BatchNorm1d(4), (3, 4, 2), (0, 1), (0, 1)),
    "norm by statistics": (nn.BatchNorm1d(4).eval(), (3, 4, 2), (0, 1), (0, 1)),
    "norm of instances": (nn.InstanceNorm1d(4), (3, 4, 2), (0, 1), (0, 1)),
    "glu": (nn.GLU(1), (3, 4), (0,), (0,)),
    "bilinear": (lambda x: BILINEAR(x, x.flip(-1)), (3, 5, WIDTH), (0, 1), (0, 1)),
    "folds": (lambda x: nn.Unfold(2)(x), (3, 2, 4, 4), (0,), (0,)),
    "folded": (lambda x: nn.Fold((4, 4), 2, stride=2)(x), (3, 8, 4), (0,), (0,)),
    "padded": (nn.ReflectionPad1d(1), (3, 2, 4), (0, 1), (0, 1)),
    "shuffled": (nn.PixelShuffle(2), (3, 4, 2, 2), (0,), (0,)),
    "inverse": (of_matrix(torch.linalg.inv), (3, 4, 4), (0, 1), (0, 1)),
    "cholesky": (of_matrix(torch.linalg.cholesky), (3, 4, 4), (0,), (0,)),
    "determinant": (of_matrix(torch.logdet), (3, 4, 4), (0,), (0,)),
    "values": (of_matrix(torch.linalg.eigvalsh), (3, 4, 4), (0, 1), (0, 1)),
    "solved": (
        lambda x: torch.linalg.solve(x + 4 * torch.eye(4), x[..., 0]),
        (3, 4, 4),
        (0,),
        (0,),
    ),
    "columns": (
        lambda x: torch.linalg.solve_triangular(LOWER, x, upper=False),
        (4, 3),
        (0, 1),
        (0, 1),
    ),
    "rows": (
        lambda x: torch.linalg.solve_triangular(LOWER, x, upper=False, left=False),
        (3, 4),
        (0, 1),
        (0, 1),
    ),
    "right sides": (lambda x: torch.cholesky_solve(x, LOWER), (2, 4, 3), (0, 1, 2), (0, 1, 2)),
    "many": (lambda x: torch.linalg.solve(LOWER, x), (2, 4, 3), (0, 1, 2), (0, 1, 2)),
    "density": (
        lambda x: torch.distributions.MultivariateNormal(torch.zeros(4), scale_tril=LOWER).log_prob(
            x
        ),
        (5, 4),
        (0,),
        (0,),
    ),
    "renorm": (lambda x: x.renorm(2, 0, 0.1), (3, 4), (0, 1), (0, 1)),
    "addbmm": (lambda x: torch.addbmm(x[0], x, x), (3, 4, 4), (0, 1), (0, 0)),
    "addr": (lambda x: torch.addr(x, x[:, 0], x[0]), (4, 4), (0, 1), (0, 1)),
    "vdot": (lambda x: torch.vdot(x, x)[None], (4,), (0,), (0,)),
    "filled": (lambda x: x.clone().fill_(x[0, 0]), (3, 4), (0, 1), (0, 1)),
    "scattered": (
        lambda x: x.scatter_reduce(1, torch.zeros(3, 4).long(), x, "sum"),
        (3, 4),
        (0, 1),
        (0, 1),
    ),
    "encoder": (
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(),
        (3, 5, 4),
        (0, 1),
        (0, 1),
    ),
}  # what it does, the shape, and the axes of the cells in what is given and in what comes out
LOWER = torch.eye(4) + torch.ones(4, 4).tril()
BILINEAR = nn.Bilinear(WIDTH, WIDTH, 2)


@pytest.mark.parametrize("name", LOOKED_AT)
def test_owners_are_those_that_numbers_tell(name):
    function, shape, axes, results = LOOKED_AT[name]
    torch.manual_seed(1)
    value = torch.randn(shape)
    for axis, result in zip(axes, results, strict=True):
        size = shape[axis]
        with torch.no_grad():
            before, mixes = function(value), False
            for cell in range(size):
                other = value.clone()
                other.select(axis, cell).add_(0.5)
                moved = (function(other) - before).abs().movedim(result, 0)
                moved = moved.flatten(1).amax(1) > 1e-6 if moved.dim() > 1 else moved > 1e-6
                mixes |= len(moved) != size or bool(moved[torch.arange(size) != cell].any())
            given = value.clone()
            with Owners(size) as owners:
                owners.give(given, axis)
                found = function(given)
                has_others = found.shape[result] != size or owners.has_others(
                    found, result - found.dim()
                )
        assert has_others == mixes, (name, axis)
