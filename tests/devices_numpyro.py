"""Trainings on one and on two devices of JAX, for `test_devices`; prints what it found.

XLA_FLAGS=--xla_force_host_platform_device_count=2 python tests/devices_numpyro.py FOLDER
python tests/devices_numpyro.py FOLDER RANK SIZE ADDRESS  # each of several processes
XLA_FLAGS=... python tests/devices_numpyro.py restarts
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from numpyro.optim import SGD

from numpyro_dvae.fit import fit, fit_restarts
from numpyro_dvae.guides import IndependentGuide, VectorQuantizedGuide
from numpyro_dvae.infer import (
    DAPS_ELBO,
    SVI,
    VQ_ELBO,
    Reinforce_ELBO,
    Truncated_ELBO,
    TruncatedGuide,
)
from numpyro_dvae.models import (
    BernoulliLikelihood,
    BernoulliPrior,
    DiscreteVAE,
    GaussianLikelihood,
    UniformPrior,
)
from numpyro_dvae.nets import Codebook, CodebookDecoder, MLPDecoder, MLPEncoder

NUM_DATA, BATCH = 24, 8
IMAGES = (np.random.default_rng(0).random((NUM_DATA, 6)) < 0.4).astype(np.float32)


def vae():
    decoder = MLPDecoder(3, 4, (6,), hidden=())
    model = DiscreteVAE(decoder, UniformPrior(3, 4), BernoulliLikelihood())
    return model, IndependentGuide(MLPEncoder((6,), 3, 4, hidden=()))


def quantised():
    codebook = Codebook(6, 3, decay=0.5, min_count=0.3)
    decoder = CodebookDecoder(codebook, MLPDecoder(6, None, (6,), hidden=()))
    model = DiscreteVAE(decoder, UniformPrior(2, 6), GaussianLikelihood())
    return model, VectorQuantizedGuide(MLPEncoder((6,), 2, 3, hidden=()), codebook)


def truncated():
    decoder = MLPDecoder(4, None, (6,), hidden=())
    model = DiscreteVAE(decoder, BernoulliPrior(4), BernoulliLikelihood())
    return model, TruncatedGuide(model, num_states=4)


CASES = {
    "daps": (vae, lambda: DAPS_ELBO(num_particles=4, target_rate=3.0)),
    "reinforce": (vae, lambda: Reinforce_ELBO(num_particles=1)),
    "vq": (quantised, VQ_ELBO),
    "truncated": (truncated, Truncated_ELBO),
}


def train(case, devices=None, num_steps=20, **settings):
    programs, make_loss = CASES[case]
    data = (IMAGES, np.arange(NUM_DATA), NUM_DATA) if case == "truncated" else (IMAGES,)
    settings = {"batch_size": BATCH, "progress": False} | settings
    svi = SVI(*programs(), SGD(0.01), loss=make_loss())
    key = jax.random.key(0)
    return fit(key, svi, *data, num_steps=num_steps, devices=devices, **settings)


def numbers(case, devices=None):
    result = train(case, devices, eval_data=IMAGES if case == "daps" else None)
    leaves = jax.tree_util.tree_flatten_with_path(result.params)[0]
    found = {jax.tree_util.keystr(path): np.asarray(value, np.float64) for path, value in leaves}
    return {**found, "losses": result.losses, "eval": result.history[-1].get("eval_loss", 0.0)}


def worst(one, two):
    """The largest difference, in parts of what is compared where it is above 1."""
    assert one.keys() == two.keys()
    return max(float(np.max(np.abs(one[k] - two[k]) / np.maximum(1, np.abs(one[k])))) for k in one)


def refused(run):
    try:
        run()
    except ValueError as error:
        return str(error)
    return "nothing"


def main(folder):
    devices = jax.devices()
    alone = {case: numbers(case) for case in CASES}
    together = {case: numbers(case, devices) for case in CASES}
    losses = [{"losses": alone[case]["losses"]} for case in ("daps", "reinforce")]
    train("daps", devices, 5, folder=folder)
    several = train("daps", devices, 8, folder=folder, resume=True)
    found = {
        "devices": len(devices),
        "differences": {case: worst(alone[case], together[case]) for case in CASES},
        "control": worst(*losses),
        "unbroken": alone["daps"]["losses"].tolist(),
        "refusals": {
            "odd": refused(lambda: train("daps", devices, batch_size=7)),
            "few": refused(lambda: train("daps", devices, batch_size=1)),
            "none": refused(lambda: train("daps", [])),
        },
    }
    if jax.process_index() == 0:  # the others have left the folder
        resumed = train("daps", None, 20, folder=folder, resume=True)
        found["from several"] = resumed.losses.tolist()
        found["rows"] = [len(several.history), len(resumed.history)]
        print(json.dumps(found), flush=True)


def leaves(result):
    """All numbers of the parameters."""
    return dict(enumerate(map(np.asarray, jax.tree.leaves(result.params))))


def restarts():
    """Runs side by side, on one device and on all."""

    def train(devices):
        programs, make_loss = CASES["daps"]
        return fit_restarts(
            jax.random.key(0),
            lambda: SVI(*programs(), SGD(0.01), loss=make_loss()),
            IMAGES,
            num_restarts=3,
            num_steps=20,
            batch_size=BATCH,
            devices=devices,
            progress=False,
        )

    alone, together = (train(devices).runs for devices in (None, jax.devices()))
    pairs = [*zip(alone, together, strict=True), (alone[0], alone[1])]
    print(json.dumps([worst(leaves(a), leaves(b)) for a, b in pairs]))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        rank, size, address = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
        jax.distributed.initialize(address, num_processes=size, process_id=rank)
    restarts() if sys.argv[1] == "restarts" else main(Path(sys.argv[1]))
