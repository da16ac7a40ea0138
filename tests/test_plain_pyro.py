"""Programs that need not be watched: all that they are made of asks no draw which way to go.

What others wrote is watched wherever it is, and so is a program that is made anew between steps.
"""

import enum
import functools
import importlib
import warnings

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.nn.module import to_pyro_module_
from torch import nn
from torch.overrides import TorchFunctionMode

from pyro_dvae.guides import IndependentGuide, VectorQuantizedGuide
from pyro_dvae.infer import DAPS_ELBO, VQ_ELBO, Reinforce_ELBO
from pyro_dvae.models import (
    BernoulliLikelihood,
    DiscreteVAE,
    UniformPrior,
)
from pyro_dvae.nets import (
    Codebook,
    CodebookDecoder,
)
from pyro_dvae.programs.sites import Pair
from pyro_dvae.programs.structure import looking
from pyro_dvae.programs.structure.plain import made_of

CODES, WIDTH, LATENTS = 4, 2, 3
X = torch.tensor(np.random.default_rng(0).integers(0, 2, (5, 6)), dtype=torch.float32)


class Colour(enum.Enum):
    """A setting by name."""

    RED = 1
    BLUE = 2


class OwnWeights(nn.Linear):
    """One that says nothing of how it runs, but computes what it runs with."""

    def __getattr__(self, name):
        return super().__getattr__(name)


class OwnTensor(torch.Tensor):
    """A tensor that may do what it likes."""


class OwnMode(TorchFunctionMode):
    """All operations of someone's."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Own(nn.Linear):
    """A layer of someone's, which may ask what it likes."""


class OwnForward(nn.Linear):
    """One that says nothing of its own but how it runs."""

    def forward(self, x):
        return super().forward(x)


class OwnHandler(pyro.poutine.messenger.Messenger):
    """A handler of someone's."""


def quantised(last=None):
    """A model and a guide of this package's parts."""
    codebook = Codebook(CODES, WIDTH)
    layers = [nn.Linear(6, LATENTS * WIDTH), nn.Unflatten(-1, (LATENTS, WIDTH))]
    decoder = nn.Sequential(nn.Flatten(-1), last or nn.Linear(LATENTS * WIDTH, 6))
    model = DiscreteVAE(
        CodebookDecoder(codebook, decoder), UniformPrior(LATENTS, CODES), BernoulliLikelihood()
    )
    return model, VectorQuantizedGuide(nn.Sequential(*layers), codebook)


def policy():
    """The same without vectors."""
    encoder = nn.Sequential(nn.Linear(6, LATENTS * CODES), nn.Unflatten(-1, (LATENTS, CODES)))
    network = nn.Sequential(nn.Identity(), nn.Linear(LATENTS * WIDTH, 6))
    decoder = CodebookDecoder(Codebook(CODES, WIDTH), network)
    model = DiscreteVAE(decoder, UniformPrior(LATENTS, CODES), BernoulliLikelihood())
    return model, IndependentGuide(encoder)


def made(model, guide, *args, **kwargs):
    return made_of(Pair(model, guide, args or (X,), kwargs))


@pytest.mark.parametrize("programs", [quantised, policy])
def test_what_parts_make_is_known_and_the_same_at_each_call(programs):
    model, guide = programs()
    first = made(model, guide)
    assert first is not None
    assert made(model, guide, 2.0 * X) == first
    with pyro.poutine.trace(param_only=True), pyro.poutine.scale(scale=0.5):
        assert made(model, guide) is not None


def test_settings_tell_makes_apart():
    model, guide = quantised()
    first = made(model, guide)
    model.decoder.network[0].start_dim = -2
    other = made(model, guide)
    model.decoder.network[0].start_dim = -1
    assert other != first == made(model, guide)
    guide.eval()
    assert made(model, guide) != first
    guide.train()
    model.decoder.network[1] = nn.Sequential(nn.Linear(LATENTS * WIDTH, 6))
    assert made(model, guide) != first
    assert made(model, guide, X, 1) != made(model, guide, X, 2)
    assert made(model, guide, X, 0.1) == made(model, guide, X, 0.2)  # a temperature, say
    values = 0.0, 0.1, 1.0, torch.relu, torch.flipud, Colour.RED, Colour.BLUE
    kinds = pyro.distributions.Normal, pyro.distributions.Laplace
    assert len({made(model, guide, X, [value]) for value in (*values, *kinds)}) == 9


def hooked(model, guide):
    model.decoder.network[1].register_forward_hook(lambda module, inputs, outputs: outputs)


def hooked_before(model, guide):
    guide.encoder[0].register_forward_pre_hook(lambda module, inputs: inputs)


def with_forward_of_its_own(model, guide):
    model.decoder.network[1].forward = lambda x: x[..., :6]


def with_a_function(model, guide):
    guide.gradient = lambda inputs, vectors: None


def with_a_method(model, guide):
    guide.gradient = Own(2, 2).forward.__get__(object())


def with_a_decorator(model, guide):
    @functools.wraps(guide.gradient)
    def mine(inputs, vectors, of=guide.gradient):
        return of(inputs, vectors)

    guide.gradient = mine


def with_part_of_one(model, guide):
    guide.gradient = functools.partial(lambda scale, inputs, vectors: None, 2)


def with_one_in_a_list(model, guide):
    model.decoder.marks = [1, {"f": lambda z: z}]


def with_a_script(model, guide):
    model.decoder.network[1] = torch.jit.trace(nn.Linear(LATENTS * WIDTH, 6), torch.zeros(1, 6))


def with_a_subclass(model, guide):
    model.decoder.network[1] = Own(LATENTS * WIDTH, 6)


def with_a_subclass_that_runs(model, guide):
    guide.encoder[0] = OwnForward(6, LATENTS * WIDTH)


def with_one_that_pyro_made_its_own(model, guide):
    network = nn.Sequential(nn.Flatten(-1), OwnWeights(LATENTS * WIDTH, 6))
    to_pyro_module_(network)
    model.decoder.network = network


def with_a_tensor_of_ones_own(model, guide):
    weight = model.decoder.network[1].weight
    model.decoder.network[1].weight = nn.Parameter(weight.detach().as_subclass(OwnTensor))


@pytest.mark.parametrize(
    "change",
    [
        hooked,
        hooked_before,
        with_forward_of_its_own,
        with_a_function,
        with_a_method,
        with_a_decorator,
        with_part_of_one,
        with_one_in_a_list,
        pytest.param(with_a_script, marks=pytest.mark.filterwarnings("ignore::FutureWarning")),
        with_a_subclass,
        with_a_subclass_that_runs,
        with_one_that_pyro_made_its_own,
        with_a_tensor_of_ones_own,
    ],
)
def test_what_others_wrote_is_found_wherever_it_is(change):
    model, guide = quantised()
    assert made(model, guide) is not None
    change(model, guide)
    assert made(model, guide) is None


def test_functions_handlers_and_arguments_of_others_are_found():
    model, guide = quantised()
    assert made(lambda x: model(x), guide) is None
    assert made(functools.partial(lambda n, x: model(x), 1), guide) is None
    assert made(model, guide, X, lambda z: z) is None
    assert made(model, guide, X, rule={"f": lambda z: z}) is None
    with OwnHandler():
        assert made(model, guide) is None
    with pyro.poutine.block(hide_fn=lambda msg: False):
        assert made(model, guide) is None
    with OwnMode():
        assert made(model, guide) is None
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, outputs: None)
    assert made(model, guide) is None
    hook.remove()
    assert made(model, guide) is not None


@pytest.fixture
def operations(monkeypatch):
    """How many operations are noted."""
    noted, note = [], looking.Path.__torch_function__

    def counted(self, *args, **kwargs):
        noted.append(self)
        return note(self, *args, **kwargs)

    monkeypatch.setattr(looking.Path, "__torch_function__", counted)
    return noted


@pytest.mark.parametrize(
    ("programs", "loss"),
    [(quantised, VQ_ELBO), (policy, lambda: DAPS_ELBO(3)), (policy, lambda: Reinforce_ELBO(3))],
    ids=["vq", "daps", "reinforce"],
)
def test_a_plain_program_is_watched_until_its_way_is_known(programs, loss, operations):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = programs()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss())
    counts = []
    for _ in range(5):
        before = len(operations)
        svi.step(X)
        counts.append(len(operations) - before)
    assert min(counts[:2]) > 0, counts
    assert counts[3:] == [0, 0], counts


@pytest.mark.parametrize(("one", "other"), [(-1, -2), (0, 1), (0, -1)])
def test_ways_along_other_axes_are_told_apart(one, other):
    """The last axis from the last but one, too: -1 and -2 have one hash in Python."""
    ways = []
    for dim in (one, other, one):
        with looking.Path() as path:
            torch.ones(2, 2).sum(dim)
        ways.append(path.taken)
    assert ways[0] == ways[2] != ways[1]


class Watched(nn.Module):
    """What others wrote, though it does the same."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


def losses(is_watched, loss, programs, operations):
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    model, guide = programs()
    if is_watched:
        guide.encoder[0] = Watched(guide.encoder[0])
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
    found = [float(svi.step(X)) for _ in range(4)]
    before = len(operations)
    found.append(float(svi.step(X)))
    assert (len(operations) > before) == is_watched
    return found


def picked(x):
    """A model whose data say whether it mixes particles."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", pyro.distributions.Categorical(torch.ones(LATENTS, CODES)).to_event(1))
        h = z.float()
        h = h - h.mean(0) if x.sum() > 100 else h
        pyro.sample("x", pyro.distributions.Normal(h.sum(-1), 1.0), obs=x.mean(-1))


@pytest.mark.parametrize(
    "decorate",
    [
        poutine.scale(scale=0.5),
        poutine.mask(mask=torch.tensor(True)),
        poutine.trace(param_only=True),
    ],
    ids=["scale", "mask", "trace"],
)
def test_what_a_handler_decorates_is_looked_at(decorate):
    """A handler that is called with a program, as a decorator is, hides it in a slot."""
    guide = policy()[1]
    assert made(decorate(picked), guide) is None
    assert made(decorate(policy()[0]), guide) is not None


@pytest.mark.parametrize("change", ["data", "statistics"])
def test_what_mixes_after_some_steps_has_the_credit_of_what_mixes(change):
    """The gradient is that of a loss that meets the program as it is by now."""
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide = policy()
    x, program = X, poutine.scale(scale=0.5)(picked)
    if change == "statistics":
        model.decoder.network[1] = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
        program = model.eval()

    def gradient(loss):
        pyro.set_rng_seed(4)
        guide.zero_grad()
        value = loss.loss_and_grads(program, guide, x)
        return [value, *(p.grad.numpy().copy() for p in guide.parameters())]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = Reinforce_ELBO(3)
        for _ in range(6):
            gradient(old)
        if change == "data":
            x = X + 10.0
        else:
            norm = model.decoder.network[1][1]
            norm.running_mean = norm.running_var = None  # the batch's, from now on
        found, right = ([gradient(loss) for _ in range(2)][1] for loss in (old, Reinforce_ELBO(3)))
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("programs", [quantised, policy])
def test_watched_or_not_the_numbers_are_the_same(programs, operations):
    make = VQ_ELBO if programs is quantised else lambda: DAPS_ELBO(3)
    watched, free = (losses(each, make(), programs, operations) for each in (True, False))
    assert watched == free


def test_a_layer_that_mixes_and_takes_anothers_place_is_found():
    """It is Torch's own, so that only what the program is made of has changed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(2)
    model, guide = policy()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Reinforce_ELBO(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            svi.step(X)
    network = model.decoder.network
    network[1] = nn.Sequential(network[1], nn.Softmax(dim=0))  # over particles, data at once
    with pytest.warns(UserWarning, match="change"):
        svi.step(X)


def test_the_module_is_pyros_alone():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("numpyro_dvae.programs.structure.plain")
