"""Results on MNIST that a change must not lose; minutes each, and only where the data are.

They are looked for where `test_example_train` looks: the folder `PYRO_DVAE_MNIST`, as
torchvision's.
"""

import shutil

import pytest
from run_examples import result_alone as result_of
from test_example_train import MNIST

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MNIST.is_dir(), reason="PYRO_DVAE_MNIST names no folder"),
]


def train(folder, backend, method, *options):
    """The JSON that `train.py` ends with, on the published MNIST model."""
    shutil.copytree(MNIST, folder / "data" / "MNIST")
    data = ["--data", "mnist", "--data-root", folder / "data", "--config", "mnist"]
    command = ["--backend", backend, "--method", method, *data, "--out", folder / "out"]
    return result_of("train.py", *command, *options)


@pytest.mark.parametrize("seed", [0, 1])
def test_200_steps_of_the_autoregressive_guide(backend, tmp_path, seed):
    """The authors' code: -209.0, -209.2; their Gumbel-Softmax: -202.8."""
    options = ["--steps", "200", "--beta-steps", "250000", "--iwae-particles", "8"]
    found = train(tmp_path, backend.name, "daps", *options, "--seed", str(seed))
    assert found["elbo"] > -204.0


@pytest.mark.parametrize("method", ["daps", "reinforce"])
def test_3000_steps_of_the_independent_guide(backend, tmp_path, method):
    """The authors' update: -116.0; Gumbel straight-through: -109.6."""
    options = ["--guide", "independent", "--steps", "3000", "--iwae-particles", "8"]
    found = train(tmp_path, backend.name, method, *options)
    assert found["beta_elbo"] > -103.0
