"""Whether what counts depends on a latent under a mask is found by few draws."""

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of
from zoo import normal

RARE = -9.0  # logits of 1: about once in 8000 draws


def switch(ppl, data):
    return 3.0 * ppl.sample("z", ppl.dist.Bernoulli(logits=data["rare"]))


def parity(ppl, data):
    bits = [ppl.sample(name, ppl.dist.Bernoulli(logits=data["rare"])) for name in "ab"]
    return 3.0 * (bits[0] - bits[1]) ** 2


def last_of_five(ppl, data):
    return 3.0 * (ppl.sample("z", ppl.dist.Categorical(logits=data["rarely"])) == 4)


def of_none(ppl, data):
    return 0.0 * ppl.sample("z", ppl.dist.Bernoulli(logits=data["rare"]))


def level(ppl, data):
    return 3.0 * ppl.sample("z", ppl.dist.Normal(0.0 * data["y"], 1.0))


def stuck(ppl, data):
    return 3.0 * ppl.sample("z", ppl.dist.Normal(0.0 * data["y"] + 0.5, 1e-9))


def no_level(ppl, data):
    return 0.0 * level(ppl, data)


def program(latent, guide_latent=None):
    def guide(ppl, data):
        with ppl.plate("data", 3), ppl.mask(mask=data["known"]):
            (guide_latent or latent)(ppl, data)

    def model(ppl, data):
        with ppl.plate("data", 3):
            with ppl.mask(mask=data["known"]):
                mean = latent(ppl, data)
            ppl.sample("y", ppl.dist.Normal(mean, 1.0), obs=data["y"])

    rarely = np.tile([-RARE, 0.0, 0.0, 0.0, 0.0], (3, 1))
    data = {"y": np.array([0.4, 1.3, -0.2]), "known": np.array([True, False, True])}
    return program_of(model, guide, {}, {**data, "rare": np.full(3, RARE), "rarely": rarely})


@pytest.mark.thrifty
@pytest.mark.parametrize("latent", [switch, parity, last_of_five])
def test_a_rare_value_that_matters_is_found(shim, latent, monkeypatch):
    assert found_of(shim, latent, monkeypatch) == [False, True, False]


def test_a_value_that_does_not_matter_is_not(shim, monkeypatch):
    assert found_of(shim, of_none, monkeypatch) == [False] * 3


@pytest.mark.parametrize("num_particles", [1, 25])
@pytest.mark.parametrize("guide", [level, stuck])
def test_a_continuous_latent_that_matters_is_found(thrifty_shim, guide, num_particles, monkeypatch):
    """By one draw, too, and of a guide whose draws are all alike."""
    options = {"guide_latent": guide, "name": "evaluate", "num_particles": num_particles}
    assert found_of(thrifty_shim, level, monkeypatch, **options) == [False, True, False]
    assert found_of(thrifty_shim, no_level, monkeypatch, **options) == [False] * 3


def found_of(
    shim,
    latent,
    monkeypatch,
    guide_latent=None,
    name="importance_diagnostics",
    num_particles=25,
):
    """For which data a report of some draws weighs masked latents as the model draws them."""
    drawn = shim.module("diagnostics.draws").Draws
    seen = []
    monkeypatch.setattr(
        drawn,
        "importance_weights",
        property(lambda draws: seen.append(draws.record("matters").any(0)) or draws.log_weights),
    )
    case = shim.Case(program(latent, guide_latent))
    diagnose(shim, name, case, num_particles=num_particles)
    monkeypatch.undo()
    return list(seen[0])


def chained(guide_masks):
    """A masked latent that only the guide's next latent follows; nothing of the model does."""

    def guide(ppl, data):
        with ppl.plate("data", 3):
            with ppl.mask(mask=data["known"] | (not guide_masks)):
                z = ppl.sample("z", ppl.dist.Bernoulli(logits=data["even"]))
            ppl.sample("w", ppl.dist.Bernoulli(logits=2.0 * z - 0.5))

    def model(ppl, data):
        with ppl.plate("data", 3):
            with ppl.mask(mask=data["known"]):
                ppl.sample("z", ppl.dist.Bernoulli(logits=data["even"] + 1.0))
            w = ppl.sample("w", ppl.dist.Bernoulli(logits=data["even"]))
            ppl.sample("y", ppl.dist.Normal(3.0 * w, 1.0), obs=data["y"])

    data = {"y": np.array([0.4, 1.3, -0.2]), "known": np.array([True, False, True])}
    return program_of(model, guide, {}, {**data, "even": np.zeros(3)})


@pytest.mark.parametrize("guide_masks", [True, False])
def test_a_latent_that_only_the_guide_follows_does_not_matter(shim, guide_masks):
    case = shim.Case(chained(guide_masks))
    report = diagnose(shim, "importance_diagnostics", case, num_particles=4000)
    y = case.program.data["y"]
    evidence = np.logaddexp(normal(y, 0.0), normal(y, 3.0)) + np.log(0.5)
    assert (np.abs(report.iwae - evidence) < 5 * report.iwae_error).all()
    assert report.is_bound.tolist() == [True, guide_masks, True]
