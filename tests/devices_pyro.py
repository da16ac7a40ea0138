"""What one of several processes of Torch does in `test_devices`; the first prints what it found.

python tests/devices_pyro.py RANK SIZE FOLDER
"""

import functools
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from pyro_dvae.fit import FitInterrupt, fit
from pyro_dvae.guides import AutoDiscrete, IndependentGuide, VectorQuantizedGuide
from pyro_dvae.infer import DAPS_ELBO, VQ_ELBO, Reinforce_ELBO, Truncated_ELBO, TruncatedGuide
from pyro_dvae.models import BernoulliLikelihood, DiscreteVAE, GaussianLikelihood, UniformPrior
from pyro_dvae.nets import Codebook, CodebookDecoder, MLPDecoder, MLPEncoder

NUM_DATA, BATCH = 24, 8
IMAGES = (np.random.default_rng(0).random((NUM_DATA, 6)) < 0.4).astype(np.float32)


def vae():
    decoder = MLPDecoder(3, 4, (6,), hidden=(8,))
    model = DiscreteVAE(decoder, UniformPrior(3, 4), BernoulliLikelihood())
    return model, IndependentGuide(MLPEncoder((6,), 3, 4, hidden=(8,)))


def quantised():
    codebook = Codebook(6, 3, decay=0.5, min_count=0.3)
    decoder = CodebookDecoder(codebook, MLPDecoder(6, None, (6,), hidden=(8,)))
    model = DiscreteVAE(decoder, UniformPrior(2, 6), GaussianLikelihood())
    return model, VectorQuantizedGuide(MLPEncoder((6,), 2, 3, hidden=(8,)), codebook)


def truncated():
    net = torch.nn.Linear(4, 6)

    def model(x, rows):
        pyro.module("net", net)
        with pyro.plate("data", NUM_DATA, subsample=rows):
            z = pyro.sample("z", dist.Bernoulli(logits=torch.zeros(4)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    return model, TruncatedGuide(model, num_states=4)


def automatic():
    model, _ = truncated()
    return model, AutoDiscrete(model)


def with_global():
    """Data that share a continuous latent, under a plate that subsamples."""

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", NUM_DATA, subsample_size=len(x)):
            z = pyro.sample("z", dist.Categorical(logits=torch.zeros(3)))
            mean = (w + z)[..., None] + torch.zeros(6)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(pyro.param("mean", torch.tensor(0.1)), 1.0))
        with pyro.plate("data", NUM_DATA, subsample_size=len(x)):
            slope = pyro.param("slope", torch.tensor(0.5))
            pyro.sample("z", dist.Categorical(logits=x[:, :3] * slope))

    return model, guide


CASES = {
    "daps": (vae, lambda: DAPS_ELBO(num_particles=4, target_rate=3.0)),
    "reinforce": (vae, lambda: Reinforce_ELBO(num_particles=1)),
    "vq": (quantised, VQ_ELBO),
    "truncated": (truncated, Truncated_ELBO),
    "automatic": (automatic, lambda: Reinforce_ELBO(num_particles=3)),
    "global": (with_global, lambda: DAPS_ELBO(num_particles=4)),
    "Trace_ELBO": (vae, lambda: Trace_ELBO(num_particles=2)),
}


def svi_of(case, optim=None, loss=None):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    programs, make_loss = CASES[case]
    return SVI(*programs(), optim or pyro.optim.Adam({"lr": 0.01}), loss=loss or make_loss())


def data_of(case):
    rows = np.arange(NUM_DATA)
    return (IMAGES, rows) if case in ("truncated", "automatic") else (IMAGES,)


def train(case, num_steps=20, svi=None, data=None, **settings):
    settings = {"batch_size": BATCH, "progress": False} | settings
    return fit(svi or svi_of(case), *(data or data_of(case)), num_steps=num_steps, **settings)


def numbers(case):
    """Gradients of one step, as steps of a gradient descent, and twenty steps, with all state."""
    descent = functools.partial(pyro.optim.SGD, {"lr": 1.0})
    found = {}
    for name, num_steps, optim in (("gradient", 1, descent()), ("steps", 20, None)):
        svi = svi_of(case, optim)
        result = train(case, num_steps, svi, eval_data=data_of(case))
        found |= {f"{name}.{key}": value.numpy() for key, value in result.params.items()}
        found[f"{name}.losses"] = result.losses
        found[f"{name}.eval"] = np.array([row["eval_loss"] for row in result.evaluations])
        for program in (svi.model, svi.guide):
            if isinstance(program, torch.nn.Module):
                for key, value in program.state_dict().items():
                    found[f"{name}.{type(program).__name__}.{key}"] = value.numpy()
    return {key: np.array(value, np.float64) for key, value in found.items()}


def worst(one, two):
    """The largest difference, in parts of what is compared where it is above 1."""
    assert one.keys() == two.keys()
    return max(float((np.abs(one[k] - two[k]) / np.maximum(1, np.abs(one[k]))).max()) for k in one)


def refused(run):
    try:
        run()
    except ValueError as error:
        return str(error)
    return "nothing"


def coupled(layer):
    """A network, in a closure, that makes more of a batch than of its rows."""
    net = torch.nn.Sequential(layer, torch.nn.Linear(6, 3))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 6), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=net(x)))

    return SVI(model, guide, pyro.optim.Adam({}), loss=DAPS_ELBO())


def without_plate():
    def model(x):
        pyro.sample("x", dist.Normal(torch.zeros(len(x), 6), 1.0).to_event(2), obs=x)

    return SVI(model, lambda x: None, pyro.optim.Adam({}), loss=Trace_ELBO())


def by_itself():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1), obs=x[rows])

    return SVI(model, lambda x: None, pyro.optim.Adam({}), loss=Trace_ELBO())


def summed_out():
    def model(x):
        w = pyro.sample("w", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            mean = w[..., None] + torch.zeros(6)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    return SVI(model, lambda x: None, pyro.optim.Adam({}), loss=Reinforce_ELBO())


def shared_code():
    """A discrete site of the batch as a whole."""

    def model(x):
        w = pyro.sample("w", dist.Categorical(torch.ones(2)))
        with pyro.plate("data", len(x)):
            mean = w[..., None] + torch.zeros(6)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("w", dist.Categorical(torch.ones(2)))

    return SVI(model, guide, pyro.optim.Adam({}), loss=DAPS_ELBO())


def refusals(rank):
    images = torch.as_tensor(IMAGES)
    dataset = TensorDataset(images)
    loader = DataLoader(dataset, batch_size=4, sampler=DistributedSampler(dataset))
    return {
        "odd": refused(lambda: train("daps", batch_size=7)),
        "few": refused(lambda: train("daps", batch_size=1)),
        "loss": refused(lambda: train("daps", svi=svi_of("daps", loss=TraceGraph_ELBO()))),
        "norm": refused(lambda: train("daps", svi=coupled(torch.nn.BatchNorm1d(6)))),
        "dropout": refused(lambda: train("daps", svi=coupled(torch.nn.Dropout(0.5)))),
        "batches": refused(lambda: train("daps", data=([IMAGES[rank:][:4]],), batch_size=None)),
        "summed": refused(lambda: train("daps", svi=summed_out())),
        "shared": refused(lambda: train("daps", svi=shared_code())),
        "plate": refused(lambda: train("daps", svi=without_plate())),
        "subsample": refused(lambda: train("daps", svi=by_itself(), batch_size=None)),
        "data": refused(lambda: train("daps", data=(IMAGES + rank,))),
        "sampler": refused(lambda: train("daps", data=(loader,), batch_size=None)),
    }


class AtStep:
    """A transform by which the second process sends itself a signal at the third step."""

    def __init__(self, number):
        self.number, self.calls = number, 0

    def __call__(self, x):
        self.calls += 1
        if self.calls == 3 and distributed.get_rank() == 1:
            os.kill(os.getpid(), self.number)
        return x


def interrupted():
    """The step at which this process stops when the second one gets a signal."""
    try:
        train("daps", transform=AtStep(signal.SIGTERM))
    except FitInterrupt as error:
        return [error.result.num_steps, error.signal == signal.SIGTERM]
    return None


def bereaved():
    """What this process says when the second one is killed."""
    try:
        train("daps", transform=AtStep(signal.SIGKILL))
    except ConnectionError as error:
        return str(error)
    return "nothing"


def meet(meeting, rank, size):
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size
    )


def main(rank, size, folder):
    found, alone, second = {"size": size}, {}, folder / "second"
    if rank == 0:
        alone = {case: numbers(case) for case in CASES}
        found["unbroken"] = train("daps", 10).losses.tolist()
        train("daps", 5, folder=folder / "alone")
    meet(folder / "first", rank, size)
    together = {case: numbers(case) for case in CASES}
    if rank == 0:
        found["differences"] = {case: worst(alone[case], together[case]) for case in CASES}
        losses = [{"losses": alone[case]["steps.losses"]} for case in ("daps", "reinforce")]
        found["control"] = worst(*losses)
    resumed = train("daps", 10, folder=folder / "alone", resume=True)
    found["from one"], found["rows"] = resumed.losses.tolist(), len(resumed.history)
    train("daps", 5, folder=folder / "together")
    found["refusals"] = refusals(rank)
    found["interrupted"] = interrupted()
    distributed.destroy_process_group()
    if rank == 0:
        resumed = train("daps", 10, folder=folder / "together", resume=True)
        found["from several"] = resumed.losses.tolist()
        found["log"] = len((folder / "alone" / "log.jsonl").read_text().splitlines())
    meet(second, rank, size)
    found["bereaved"] = bereaved()
    if rank == 0:
        print(json.dumps(found), flush=True)
    os._exit(0)  # without a farewell to those that are gone


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
