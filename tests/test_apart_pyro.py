"""Pairs that need no trials: parts of them are known to keep the draws of particles and data apart.

Each such part is tried here all the same; what others wrote, or changed, is tried wherever it is.
"""

import functools
import importlib
import inspect
import itertools

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule, PyroSample
from test_plain_pyro import CODES, LATENTS, WIDTH, Own, Watched, X, policy
from torch import nn

from pyro_dvae.guides import AutoregressiveGuide
from pyro_dvae.infer import Reinforce_ELBO
from pyro_dvae.models import (
    AutoregressivePrior,
    BernoulliLikelihood,
    CategoricalPrior,
    DiscreteVAE,
    GaussianLikelihood,
    UniformPrior,
    vae,
)
from pyro_dvae.nets import (
    BinaryCodes,
    CausalTransformer,
    Codebook,
    CodebookDecoder,
    FiniteScalars,
    LinearCodebook,
    MLPDecoder,
)
from pyro_dvae.programs.sites import Pair
from pyro_dvae.programs.structure import broadcasting, looking, mixing, plain
from pyro_dvae.programs.structure.layout import find_layout
from pyro_dvae.programs.structure.plain import keeps_draws_apart

DECODERS = {
    "table": lambda: MLPDecoder(LATENTS, CODES, (6,)),
    "codebook": lambda: CodebookDecoder(
        Codebook(CODES, WIDTH), nn.Sequential(nn.Linear(LATENTS * WIDTH, 8), nn.GELU(), last())
    ),
    "finite scalars": lambda: CodebookDecoder(FiniteScalars((2, 2)), nn.Linear(LATENTS * 2, 6)),
    "signs": lambda: CodebookDecoder(BinaryCodes(2), nn.Linear(LATENTS * 2, 6)),
    "grid": lambda: CodebookDecoder(
        LinearCodebook(CODES, WIDTH), nn.Sequential(nn.Linear(WIDTH, 2), Rows()), grid=(3,)
    ),
}
PRIORS = {
    "uniform": lambda: UniformPrior(LATENTS, CODES),
    "learnt": lambda: CategoricalPrior(LATENTS, CODES),
    "autoregressive": lambda: AutoregressivePrior(
        CausalTransformer(LATENTS, CODES, embed_dim=8, cross_attention=False)
    ),
}
GUIDES = {
    "independent": lambda: policy()[1],
    "autoregressive": lambda: AutoregressiveGuide(
        nn.Sequential(nn.Linear(6, 8), nn.Unflatten(-1, (1, 8))),
        CausalTransformer(LATENTS, CODES, embed_dim=8),
    ),
}


def last():
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 6))


def Rows():  # noqa: N802
    """From vectors on a grid to a row of outputs, which no layer of the list does."""
    return nn.Flatten(1)


def planned(model, guide):
    """The pair with its layout, as a loss plans it."""
    pair = Pair(model, guide, (X,), {})
    return pair._replace(layout=find_layout(pair, float("inf"))[0])


EACH = {
    *((decoder, "learnt", "independent", BernoulliLikelihood) for decoder in DECODERS),
    *(("table", prior, "autoregressive", GaussianLikelihood) for prior in PRIORS),
}
ALL = itertools.product(DECODERS, PRIORS, GUIDES, (BernoulliLikelihood, GaussianLikelihood))


@pytest.mark.parametrize(
    ("decoder", "prior", "guide", "likelihood"),
    [pytest.param(*row, marks=() if row in EACH else pytest.mark.slow) for row in ALL],
)
def test_parts_that_are_said_to_keep_draws_apart_do_so_in_all_trials(
    decoder, prior, guide, likelihood
):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model = DiscreteVAE(DECODERS[decoder](), PRIORS[prior](), likelihood())
    pair = planned(model, GUIDES[guide]())
    assert keeps_draws_apart(pair) == (decoder != "grid")
    if decoder != "grid":
        assert broadcasting._trouble(pair, broadcasting._READ) is None
        assert looking.only_looking(lambda: mixing._mixed_plates(pair)) == []


def test_each_part_that_is_said_to_keep_draws_apart_exists():
    for name, unseen in plain._APART.items():
        module, _, kind = name.rpartition(".")
        found = getattr(importlib.import_module(f"pyro_dvae.{module}"), kind)
        assert found.__module__ == f"pyro_dvae.{module}"
        for part in unseen:
            assert f"self.{part}" in inspect.getsource(found), (name, part)


def test_layers_that_are_said_to_keep_rows_apart_do_so():
    """Each row alone has what it has among others, in value and in gradient."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    made = {
        nn.Linear: (4, 2),
        nn.LayerNorm: (4,),
        nn.RMSNorm: (4,),
        nn.Embedding: (7, 2),
        nn.Threshold: (0.1, 0.5),
    }
    for kind in plain._OF_TORCH - {nn.Sequential, nn.ModuleList, nn.ModuleDict}:
        layer = kind(*made.get(kind, ())).double()
        rows = torch.randint(7, (3, 5, 4)) if kind is nn.Embedding else x
        together = layer(rows)
        alone = [[layer(rows[k, n]) for n in range(5)] for k in range(3)]
        alone = torch.stack([torch.stack(row) for row in alone])
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12, msg=kind.__name__)
        assert plain._is_apart(layer), kind


class Subclass(DiscreteVAE):
    """A model of someone's."""


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.BatchNorm1d(6),
        lambda: nn.Softmax(0),
        lambda: nn.Dropout(0.5),
        lambda: nn.Flatten(1),
        lambda: nn.LayerNorm((5, 6)),
        lambda: Own(6, 6),
        lambda: nn.Sequential(nn.Linear(6, 6), nn.Softmax(-1)),
    ],
)
def test_others_are_tried(layer):
    model, guide = policy()
    assert keeps_draws_apart(Pair(model, guide, (X,), {}))
    model.decoder.network = nn.Sequential(nn.Linear(LATENTS * WIDTH, 6), layer())
    assert not keeps_draws_apart(Pair(model, guide, (X,), {}))


def test_what_others_add_to_parts_is_tried():
    model, guide = policy()
    parts = model.decoder, model.prior, model.likelihood

    def apart(model, guide=guide, *args):
        return keeps_draws_apart(Pair(model, guide, args or (X,), {}))

    assert apart(model)
    assert not apart(Subclass(*parts))
    assert not apart(model, guide, X, lambda z: z)
    assert not apart(lambda x: model(x))
    assert not apart(model, lambda x: guide(x))
    assert not apart(DiscreteVAE(functools.partial(torch.softmax, dim=0), *parts[1:]))
    assert not apart(DiscreteVAE(parts[0], lambda: parts[1](), parts[2]))
    table = nn.Embedding(CODES, 6, scale_grad_by_freq=True)
    assert not apart(DiscreteVAE(table, *parts[1:]))
    with pyro.poutine.scale(scale=torch.ones(5)):
        assert not apart(model)
    with pyro.poutine.trace():
        assert apart(model)
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, outputs: None)
    assert not apart(model)
    hook.remove()
    model.decoder.network[1].forward = lambda x: x
    assert not apart(model)


def test_an_encoder_whose_weights_are_drawn_is_tried():
    """Its draws have the particle axis in front, which no layer of Torch takes: one by one."""
    model, guide = policy()
    layer = PyroModule[nn.Linear](6, LATENTS * CODES)
    layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([LATENTS * CODES, 6]).to_event(2))
    guide.encoder[0] = layer
    assert not keeps_draws_apart(Pair(model, guide, (X,), {}))


def test_a_first_step_of_known_parts_is_little_more_than_a_step(monkeypatch):
    runs, register = [], vae.register
    monkeypatch.setattr(vae, "register", lambda *args: (runs.append(1), register(*args))[1])

    def first_step(model, guide):
        pyro.clear_param_store()
        before = len(runs)
        Reinforce_ELBO(3).loss(model, guide, X)
        return len(runs) - before

    known = policy()
    others = policy()
    others[0].decoder.network = Watched(others[0].decoder.network)
    assert first_step(*known) <= 3 < 10 < first_step(*others)
