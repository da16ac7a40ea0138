"""What losses say of options that they do not take, and of options that exclude each other."""

import pickle

import numpy as np
import pytest
from zoo import PROGRAMS, Program

VAE = next(program for program in PROGRAMS if program.name == "vae")
LOSSES = "DAPS_ELBO Reinforce_ELBO VIMCO_ELBO DisARM_ELBO WakeSleep_ELBO VQ_ELBO Exact_ELBO".split()
FOREIGN = {
    "pyro": ["retain_graph", "strict_enumeration_warning", "ignore_jit_warnings"],
    "numpyro": ["sum_sites", "multi_sample_guide", "alpha"],
}


def losses(backend):
    infer = backend.module("infer")
    return [getattr(infer, name) for name in (*LOSSES, "Truncated_ELBO")]


def test_options_of_other_losses_are_named(backend):
    for loss in losses(backend):
        for option in FOREIGN[backend.name]:
            message = f"{loss.__name__} does not take '{option}': .*beta"
            with pytest.raises(TypeError, match=message):
                loss(**{option: True})


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("Exact_ELBO", "closed_form_entropy"),
        ("VIMCO_ELBO", "closed_form_entropy"),
        ("WakeSleep_ELBO", "closed_form_entropy"),
        ("VQ_ELBO", "vectorize_particles"),
        ("Truncated_ELBO", "num_particles"),
        ("DAPS_ELBO", "baseline"),
        ("DisARM_ELBO", "nonsense"),
    ],
)
def test_options_that_a_loss_has_no_use_for_are_named(backend, name, option):
    loss = getattr(backend.module("infer"), name)
    with pytest.raises(TypeError, match=f"{name} does not take '{option}'"):
        loss(**{option: 2})


def test_a_loss_of_ones_own_has_its_own_options(backend):
    base = backend.module("infer").ParticleELBO

    class Mine(base):
        def __init__(self, num_particles=2, *, strength=1.0):
            super().__init__(num_particles)
            self.strength = strength

        def gain(self, particles, objective, beta, memory):
            raise NotImplementedError

    assert Mine(3, strength=0.5).strength == 0.5
    with pytest.raises(
        TypeError, match=r"Mine does not take 'beta'.*It takes num_particles, strength"
    ):
        Mine(beta=1.0)


@pytest.mark.parametrize("beta", [0.0, lambda step: 0.5])
def test_a_target_rate_excludes_other_betas(backend, beta):
    for name in ("DAPS_ELBO", "Reinforce_ELBO", "Exact_ELBO", "DisARM_ELBO", "VQ_ELBO"):
        loss = getattr(backend.module("infer"), name)
        with pytest.raises(ValueError, match=f"`target_rate` steers {name}'s beta"):
            loss(beta=beta, target_rate=2.0)
        loss(beta=0.5, target_rate=2.0)


def test_used_losses_can_be_pickled(shim):
    """With every baseline of the package; a state goes along."""
    infer, baselines = shim.module("infer"), shim.module("ops.baselines")
    case = shim.Case(VAE)
    chosen = [None, baselines.no_baseline(), baselines.moving_average(0.5)]
    for elbo in (infer.DAPS_ELBO(2), *(infer.Reinforce_ELBO(2, baseline=b) for b in chosen)):
        found = case.run(elbo, seed=3)[0] if shim.__name__.startswith("pyro") else None
        other = pickle.loads(pickle.dumps(elbo))
        assert type(other) is type(elbo)
        if found is not None:
            assert case.run(other, seed=3)[0] == found
    assert pickle.loads(pickle.dumps(baselines.learned())).predicts


def masked_guide(ppl, data):
    """A distribution under a mask of its own, within an event dim or outside of it."""
    with ppl.plate("data", 2):
        logits = ppl.param("logits", data) + 0.0 * data["x"][..., None]
        bits = ppl.dist.Bernoulli(logits=logits).mask(data["entries"]).to_event(1)
        ppl.sample("z", bits.mask(data["data"]))


def masked_model(ppl, data):
    with ppl.plate("data", 2):
        bits = ppl.dist.Bernoulli(logits=ppl.zeros(2) + 0.3).mask(data["entries"]).to_event(1)
        z = ppl.sample("z", bits.mask(data["data"]))
        ppl.sample("x", ppl.dist.Normal(z.sum(-1), 1.0), obs=data["x"])


MASKED = Program(
    "masked",
    masked_model,
    masked_guide,
    None,
    {"logits": np.array([0.4, -1.1])},
    {
        "x": np.array([0.3, 1.4]),
        "entries": np.array([[True, False], [True, True]]),
        "data": np.array([True, True]),
    },
    ("data",),
    4,
)


def test_entropies_under_a_distributions_mask_are_in_closed_form(shim):
    """No noise: at any draw the entropy is that of the entries that count."""
    case = shim.Case(MASKED)
    record = case.record(shim.module("infer").Reinforce_ELBO(3), with_entropy=True)
    p = 1 / (1 + np.exp(-MASKED.params["logits"]))
    entropies = -p * np.log(p) - (1 - p) * np.log(1 - p)
    expected = (MASKED.data["entries"] * entropies).sum(1)
    found = np.asarray(
        record.entropy.detach() if hasattr(record.entropy, "detach") else record.entropy
    )
    np.testing.assert_allclose(found, np.tile(expected, (3, 1)), rtol=1e-10)


def test_a_loss_that_was_not_called_is_named(backend):
    elbo = backend.module("infer").DAPS_ELBO
    written = "write loss=DAPS_ELBO"
    if backend.name == "pyro":
        with pytest.raises(ValueError, match=written):  # as SVI does with a function
            elbo(lambda: None, lambda: None)
        backend.module("infer.truncated").Truncated_ELBO(lambda population: population)
        return
    with pytest.raises(ValueError, match=written):
        backend.module("infer.svi").with_memory(None, elbo)
    with pytest.raises(ValueError, match=written):  # as NumPyro's SVI does: the key is in its place
        elbo.loss(0, {}, None, None)
