"""What every loss shows of itself: its knobs by name, in one order, with one default, unchanged."""

import functools
import importlib
import inspect
import subprocess
import sys

import numpy as np
import pytest
from zoo import PROGRAMS
from zoo_binary import BITS

LOSSES = [
    "DAPS_ELBO",
    "Reinforce_ELBO",
    "VIMCO_ELBO",
    "DisARM_ELBO",
    "WakeSleep_ELBO",
    "Exact_ELBO",
    "VQ_ELBO",
    "Truncated_ELBO",
]
# The knobs that several losses have, in the order that they stand in.
SHARED = [
    "num_particles",
    "closed_form_entropy",
    "beta",
    "target_rate",
    "max_plate_nesting",
    "vectorize_particles",
]
DEFAULTS = {
    "beta": 1.0,
    "target_rate": None,
    "max_plate_nesting": float("inf"),
    "vectorize_particles": True,
}
# Pure function of arrays -> the file of `infer` that holds it beside its loss.
FUNCTIONS = {
    "policy_search": "daps",
    "policy_temperature": "daps",
    "score_function": "reinforce",
    "multisample_bound": "vimco",
    "antithetic_pairs": "disarm",
    "wake_sleep": "wake_sleep",
    "exact_expectation": "exact",
    "quantization_penalty": "quantization",
    "truncated_values": "truncated.loss",
}


@pytest.fixture(params=["pyro_dvae", "numpyro_dvae"])
def package(request):
    pytest.importorskip("torch" if request.param == "pyro_dvae" else "jax")
    return request.param


def parameters(function):
    return inspect.signature(function).parameters


def loss_class(package, name):
    return getattr(importlib.import_module(f"{package}.infer"), name)


@pytest.mark.parametrize("name", LOSSES)
def test_every_knob_is_visible(package, name):
    found = parameters(loss_class(package, name))
    kinds = {p.kind for p in found.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    assert inspect.Parameter.VAR_POSITIONAL not in kinds
    positional = [p.name for p in found.values() if p.kind is not p.KEYWORD_ONLY]
    assert positional in (["num_particles"], ["evolve"], [])
    shared = [name for name in found if name in SHARED]
    assert shared == [name for name in SHARED if name in found]
    assert {"beta", "target_rate"} <= found.keys()
    for knob, default in DEFAULTS.items():
        assert knob not in found or found[knob].default == default


def test_all_losses_are_seen(package):
    infer = importlib.import_module(f"{package}.infer")
    assert sorted(n for n in infer.__all__ if n.endswith("_ELBO")) == sorted(LOSSES)


REFUSED = {
    **dict.fromkeys(LOSSES, "temperatur"),
    **dict.fromkeys(["VIMCO_ELBO", "WakeSleep_ELBO", "Exact_ELBO"], "closed_form_entropy"),
    "Truncated_ELBO": "num_particles",
}
PROVOKE = """
from {package} import infer
for name, option in {refused!r}.items():
    try:
        getattr(infer, name)(**{{option: 2}})
    except TypeError as error:
        print(error)
"""


def test_an_option_that_is_not_taken_is_named_with_its_loss(package):
    """As users see it, in a process without the checks of tests."""
    code = PROVOKE.format(package=package, refused=REFUSED)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    messages = run.stdout.splitlines()
    assert len(messages) == len(REFUSED)
    for message, (name, option) in zip(messages, REFUSED.items(), strict=True):
        assert name in message
        assert f"'{option}'" in message


@pytest.mark.parametrize(("function", "module"), FUNCTIONS.items())
def test_an_algorithm_is_a_function_of_arrays(package, function, module):
    """Public, with an example in its docstring, and without a model, a site or a class."""
    found = getattr(importlib.import_module(f"{package}.infer.{module}"), function)
    assert ">>>" in inspect.getdoc(found)
    assert len(parameters(found)) <= 8
    assert not {"model", "guide", "self", "particles"} & parameters(found).keys()


def test_the_contract_is_public(package):
    infer = importlib.import_module(f"{package}.infer")
    assert {"Gain", "Objective", "ParticleELBO", "Particles"} <= set(infer.__all__)
    wanted = ["self", "particles", "objective", "beta", "memory"]
    assert list(parameters(infer.ParticleELBO.gain)) == wanted


# What an algorithm brings: see "what an algorithm brings" in `infer.elbo`.
CONTRACT = ["gain", "init_memory", "inspect", "readers", "sampler", "values", "run_pair"]


@pytest.mark.parametrize("name", ["ParticleELBO", *LOSSES])
def test_the_contract_is_the_same_in_both(name):
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    found = [
        [
            [
                knob
                for knob in parameters(getattr(loss_class(each, name), method))
                if knob != "rng_key"
            ]
            for method in CONTRACT
        ]
        for each in ("pyro_dvae", "numpyro_dvae")
    ]
    assert found[0] == found[1]


VAE = next(program for program in PROGRAMS if program.name == "vae")


def pixel_model(ppl, data):
    """Indexes from the left: it cannot take a particle axis in Pyro."""
    prior, weight = ppl.param("prior", data), ppl.param("weight", data)
    with ppl.plate("data", len(data["x"])):
        z = ppl.sample("z", ppl.dist.Categorical(logits=prior).to_event(1))
        loc = weight[0][z[:, 0]] + weight[1][z[:, 1]]
        ppl.sample("x", ppl.dist.Normal(loc, 1.0).to_event(1), obs=data["x"])


@pytest.mark.thrifty
@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("VQ_ELBO", "Truncated_ELBO")])
def test_no_run_overwrites_an_argument(shim, name):
    """Neither on a program that takes particles nor on one that is run in a loop."""
    program = BITS if name == "DisARM_ELBO" else VAE
    loss = shim.module("infer").__dict__[name]
    elbo = loss()
    before = {knob: getattr(elbo, knob) for knob in parameters(loss)}
    with (shim.loop_warning if program is VAE else functools.partial(np.errstate))():
        model = pixel_model if program is VAE else None
        shim.Case(program, model=model).run(elbo)
    shim.Case(program).run(elbo)
    assert {knob: getattr(elbo, knob) for knob in parameters(loss)} == before


def pair_of(shim, name):
    """A model of eight data of three numbers, and a guide that goes with the loss."""
    infer, nets, models = (shim.module(room) for room in ("infer", "nets", "models"))
    likelihood = models.GaussianLikelihood(variance=1.0, learn=False)
    if name == "Truncated_ELBO":
        prior, decoder = models.BernoulliPrior(4), nets.MLPDecoder(4, None, (3,), hidden=())
        model = models.DiscreteVAE(decoder, prior, likelihood)
        return model, infer.TruncatedGuide(model, 2)
    codebook = nets.Codebook(5, 3)
    decoder = nets.CodebookDecoder(codebook, nets.MLPDecoder(6, None, (3,), hidden=()))
    model = models.DiscreteVAE(decoder, models.UniformPrior(2, 5), likelihood)
    encoder = nets.MLPEncoder((3,), 2, 3, hidden=())
    return model, shim.module("guides").VectorQuantizedGuide(encoder, codebook)


@pytest.mark.parametrize("name", ["VQ_ELBO", "Truncated_ELBO"])
def test_no_training_overwrites_an_argument(thrifty_shim, name):
    """The same of the two losses that need a guide of their own."""
    shim, x = thrifty_shim, np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    loss = shim.module("infer").__dict__[name]
    elbo = loss()
    before = {knob: getattr(elbo, knob) for knob in parameters(loss)}
    pair, fit = pair_of(shim, name), functools.partial(shim.module("fit").fit, progress=False)
    if hasattr(shim, "torch"):
        shim.pyro.clear_param_store()
        svi = shim.pyro.infer.SVI(*pair, shim.pyro.optim.Adam({"lr": 0.01}), elbo)
        fit(svi, shim.torch.asarray(x), num_steps=2)
    else:
        svi = shim.module("infer").SVI(*pair, shim.numpyro.optim.Adam(0.01), elbo)
        fit(shim.jax.random.key(0), svi, x, num_steps=2)
    assert {knob: getattr(elbo, knob) for knob in parameters(loss)} == before
