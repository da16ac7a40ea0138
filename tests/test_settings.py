"""Plain values around programs that choose how these go: a loss looks at each of them."""

import argparse
import importlib
import itertools
import types

import numpy as np
import pytest
from test_mixing import OTHERS, _NumPyro, _Pyro

POOL = False
MANY = {f"entry {k}": k for k in range(40)} | {"pool": False}
OWN = types.ModuleType("own")
OWN.pool = False
DATA, LOGITS = np.array([-1.0, 0.4, 2.0]), np.array([-0.3, 0.1, 0.6])


class Programs:
    pool = False

    def __init__(self):
        self.config = argparse.Namespace(model=argparse.Namespace(pool=False))

    def of_class(self):
        return self.pool

    def of_config(self):
        return self.config.model.pool


def of_global():
    return (lambda: POOL)()


def of_container():
    return MANY["pool"]


def of_module():
    return OWN.pool


OBJECT = Programs()
WAYS = {
    "a global of a function within": (of_global, lambda v: globals().update(POOL=v)),
    "a container": (of_container, lambda v: MANY.update(pool=v)),
    "a module": (of_module, lambda v: setattr(OWN, "pool", v)),
    "a class": (OBJECT.of_class, lambda v: setattr(Programs, "pool", v)),
    "an object's object": (OBJECT.of_config, lambda v: setattr(OBJECT.config.model, "pool", v)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_setting_is_seen(way):
    pytest.importorskip("pyro")
    settings_of = importlib.import_module("pyro_dvae.programs.settings").settings_of
    program, change = WAYS[way]
    before = settings_of(program)
    change(True)
    try:
        assert settings_of(program) != before
    finally:
        change(False)
    assert settings_of(program) == before


@pytest.mark.thrifty
@pytest.mark.parametrize("lab", [_Pyro, _NumPyro], ids=["pyro", "numpyro"])
@pytest.mark.parametrize("kind", ["another", "changed"])
def test_a_setting_of_an_argument_is_seen(lab, kind):
    lab, settings = lab(), argparse.Namespace(pool=False)

    def model(x, logits, settings):
        with lab.plate("cells", 3, -1):
            z = lab.sample("z", lab.dist.Bernoulli(0.4))
            mean = z + z.mean(-1)[..., None] if settings.pool else 2.0 * z
            lab.sample("x", lab.dist.Normal(mean, 0.5), obs=x)

    def guide(x, logits, settings):
        with lab.plate("cells", 3, -1):
            lab.sample("z", lab.dist.Bernoulli(logits=logits))

    loss = importlib.import_module(f"{lab.name}_dvae.infer").Exact_ELBO()
    as_array = lab.array if lab.name == "pyro" else lab.jax.numpy.asarray

    def value(settings):
        args = model, guide, as_array(DATA), as_array(LOGITS), settings
        key = () if lab.name == "pyro" else (lab.key, {})
        return float(loss.loss(*key, *args))

    value(settings)
    if kind == "another":
        settings = argparse.Namespace(pool=True)
    settings.pool = True
    wanted = 0.0
    for row in itertools.product((0.0, 1.0), repeat=3):
        z, probs = np.array(row), 1 / (1 + np.exp(-LOGITS))
        q, p = (np.where(z == 1, each, 1 - each) for each in (probs, 0.4))
        log_x = -2 * (DATA - z - z.mean()) ** 2 - 0.5 * np.log(2 * np.pi * 0.25)
        wanted -= q.prod() * (log_x + np.log(p / q)).sum()
    with pytest.warns(UserWarning, match=OTHERS):
        assert value(settings) == pytest.approx(wanted, rel=1e-6)
