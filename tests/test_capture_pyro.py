"""`fit(capture=True)`: networks compiled, numbers the same, and nothing left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("pyro")

import fit_pyro as kit
import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from test_fit import make_data, run

from pyro_dvae import guides, infer, models, nets
from pyro_dvae.fit.capture import _networks

ROOT = Path(__file__).parents[1]


def vae(seed=0):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    shape = (2, 2)
    patches = nets.PatchEncoder(shape, 2, embed_dim=8, num_heads=2)
    transformer = nets.CausalTransformer(3, 4, embed_dim=8, num_heads=2)
    guide = guides.AutoregressiveGuide(patches, transformer)
    decoder = nets.MLPDecoder(3, 4, shape, embed_dim=4, hidden=(8,))
    model = models.DiscreteVAE(decoder, models.UniformPrior(3, 4), models.BernoulliLikelihood())
    loss = infer.DAPS_ELBO(num_particles=3)
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=loss)


def train(num_steps=4, seed=0, **settings):
    svi, data = vae(seed), make_data().reshape(-1, 2, 2)
    return svi, run(kit, num_steps, svi, data=data, **settings)


def test_networks_are_compiled_for_the_run_alone(monkeypatch):
    seen, called = {}, []

    def compile_by(call, **options):
        name = type(call.__self__).__name__
        seen[name] = options

        def run(*args, **kwargs):
            called.append((name, {type(arg) for arg in args}))
            return call(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", compile_by)
    _, plain = train()
    assert not seen
    svi, found = train(capture=True)
    assert seen.keys() == {"PatchEncoder", "CausalTransformer", "MLPDecoder"}
    assert all(options == {"mode": "default"} for options in seen.values())  # on a CPU
    np.testing.assert_array_equal(found.losses, plain.losses)
    assert {name for name, _ in called} == seen.keys()
    assert {kind for _, kinds in called for kind in kinds} == {torch.Tensor}  # no tracer of Pyro's
    modules = [*svi.model.modules(), *svi.guide.modules()]
    assert all(net._compiled_call_impl is None for net in modules)


def test_codebooks_stay_as_they_are():
    """They ask Pyro's handlers whether they are given codes or vectors."""
    codebook = nets.Codebook(8, 4)
    guide = guides.VectorQuantizedGuide(nets.MLPEncoder((2, 2), 3, 4, hidden=(8,)), codebook)
    decoder = nets.CodebookDecoder(codebook, nets.MLPDecoder(12, None, (2, 2), hidden=(8,)))
    model = models.DiscreteVAE(decoder, models.UniformPrior(3, 8), models.BernoulliLikelihood())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=infer.VQ_ELBO())
    found = {type(net).__name__ for net in _networks(svi)}
    assert found == {"MLPEncoder", "MLPDecoder"}


# As users run it: dynamo does not read through the checks of types in tests.
COMPILED = """
import json, sys
sys.path.insert(0, {tests!r})
from test_capture_pyro import train
plain = train(6)[1].losses.tolist()
captured = train(6, capture=True)[1].losses.tolist()
train(3, capture=True, folder={folder!r})
resumed = train(6, 5, folder={folder!r}, resume=True)[1].losses.tolist()
print(json.dumps([plain, captured, resumed]))
"""


@pytest.mark.slow
def test_the_same_numbers_with_and_without_and_in_turn(tmp_path):
    code = COMPILED.format(tests=str(ROOT / "tests"), folder=str(tmp_path / "run"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    plain, captured, resumed = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(captured, plain, rtol=1e-4)
    np.testing.assert_allclose(resumed, plain, rtol=1e-4)
    assert captured != plain  # other kernels


def test_programs_without_networks_are_refused():
    def program(x):
        pyro.param("loc", torch.zeros(()))

    svi = SVI(program, program, pyro.optim.Adam({"lr": 0.1}), loss=Trace_ELBO())
    with pytest.raises(ValueError, match=r"`capture` compiles the networks.*neither is a module"):
        run(kit, 2, svi, capture=True)


def test_a_network_that_a_user_compiles_has_the_numbers_of_the_plain_one():
    """What is tried of a program is tried as it is written: Torch cannot compile under a hook."""
    dist, net = pyro.distributions, torch.nn.Linear(3, 1)
    x, used = torch.linspace(-1.0, 1.0, 5), []

    def backend(graph, example):
        return lambda *args: used.append(1) or graph(*args)

    def loss_of(net):
        def model():
            with pyro.plate("data", 5):
                z = pyro.sample("z", dist.Bernoulli(0.4 * torch.ones(3)).to_event(1))
                pyro.sample("x", dist.Normal(net(z)[..., 0], 1.0), obs=x)

        def guide():
            with pyro.plate("data", 5):
                pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(3)).to_event(1))

        loss = infer.Exact_ELBO()
        return loss.loss(model, guide), *(
            float(loss.loss_and_grads(model, guide)) for _ in range(2)
        )

    plain = loss_of(net)
    assert loss_of(torch.compile(net, backend=backend)) == pytest.approx(plain, rel=1e-5)
    assert used
