"""What `pyro_dvae.fit` does and its sibling has no counterpart of."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("pyro")

import fit_pyro as kit
import numpy as np
import pyro
import torch
from pyro.infer import TraceGraph_ELBO
from test_fit import make_data, run


def test_a_step_of_plain_optimisers_is_the_step_of_svi():
    def make():
        optim = pyro.optim.ClippedAdam({"lr": 0.01})
        return kit.make_svi(optim=optim, loss=TraceGraph_ELBO())

    svi, x = make(), torch.tensor(make_data())
    losses = [svi.step(x) for _ in range(10)]
    result = run(kit, 10, make(), batch_size=None)
    np.testing.assert_array_equal(result.losses, np.float32(losses))


def test_a_plateau_scheduler_watches_the_evaluation_loss():
    def make():
        return pyro.optim.ReduceLROnPlateau(
            {
                "optimizer": torch.optim.Adam,
                "optim_args": {"lr": 0.01},
                "patience": 0,
                "threshold": 9,
            }
        )

    with pytest.raises(ValueError, match="`eval_data` is needed"):
        run(kit, svi=kit.make_svi(optim=make()))
    svi = kit.make_svi(optim=make())
    run(kit, svi=svi, eval_data=make_data(), eval_every=2)
    rates = {s.optimizer.param_groups[0]["lr"] for s in svi.optim.optim_objs.values()}
    assert max(rates) < 0.01


class Odd_ELBO(TraceGraph_ELBO):
    state = ("fine", object())


def test_a_loss_that_cannot_be_checkpointed_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"\['loss_state'\]\[1\], a object"):
        run(kit, 4, kit.make_svi(loss=Odd_ELBO()), folder=tmp_path)


def test_the_format_of_a_checkpoint(tmp_path):
    """Files of earlier versions are read by these names: another set is another format."""
    run(kit, 4, folder=tmp_path)
    saved = torch.load(tmp_path / kit.CHECKPOINT, weights_only=True)
    assert saved["format"] == 2
    names = {"format", "step", "seconds", "identity", "losses", "history", "data", "training"}
    assert saved.keys() == names
    assert saved["data"].keys() == {"size", "order", "cursor"}
    assert saved["training"].keys() == {"params", "modules", "optim", "loss_state", "rng"}
    assert saved["training"]["modules"].keys() == {"model", "guide"}
    assert saved["training"]["rng"].keys() == {"torch", "cuda", "numpy", "python"}
    assert (saved["step"], len(saved["losses"])) == (4, 4)


def test_a_state_of_another_loss_is_refused(tmp_path):
    """One that remembers a moving average from one that does not, and one of an older version."""
    from pyro_dvae.fit.checkpoints import Checkpoint, load_checkpoint, restore
    from pyro_dvae.infer import DAPS_ELBO, Reinforce_ELBO

    def sampled(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Bernoulli(0.5))

    def trained(loss, **options):
        pyro.clear_param_store()
        svi = pyro.infer.SVI(sampled, sampled, pyro.optim.Adam({}), loss)
        kit.package.fit(
            svi, torch.zeros(4), num_steps=2, folder=tmp_path, progress=False, **options
        )
        return svi

    trained(DAPS_ELBO(2))
    with pytest.raises(ValueError, match=r"`loss` is Reinforce_ELBO, but .* with DAPS_ELBO"):
        trained(Reinforce_ELBO(1), resume=True)
    svi, saved = trained(DAPS_ELBO(2)), load_checkpoint(tmp_path)
    assert isinstance(saved, Checkpoint)
    older = saved._replace(training={**saved.training, "loss_state": (2, 0.0)})
    with pytest.raises(ValueError, match="another loss than DAPS_ELBO"):
        restore(svi, older)
    restore(svi, saved)
    assert svi.loss_and_grads.__self__.state.beta.step == 2
