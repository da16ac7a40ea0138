"""Which files of a package a call goes through: a step, a step with an E-step, `to_arviz`.

    python tests/way.py pyro
    python tests/way.py numpyro

prints them in the order in which they are first met, for docs/contributing.md. The program is a
mixture written by hand, so that no file counts that a model or a guide of ours is made of; neither
do the checks of arguments. In Pyro it is the fourth step that is counted, when what a program looks
like is known; in NumPyro one that is traced, as a compiled one meets no file.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("ops/arguments.py", "__init__.py")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

X = np.random.default_rng(0).normal(size=20).astype(np.float32)


def files(package, call):
    """The files of a package that a call meets, in order."""
    top, met = str(ROOT / package) + "/", {}

    def note(frame, event, _):
        if event == "call" and (path := frame.f_code.co_filename).startswith(top):
            met[path.removeprefix(top)] = None

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return [name for name in met if not name.endswith(LEFT_OUT)]


def mixture(host, infer, make_logits, asarray):
    """A model of three components of known places, an amortised guide, and a truncated one."""
    places = asarray(np.float32([-1.0, 0.0, 1.0]))

    def model(x):
        logits = host.param("prior", asarray(np.zeros(3, np.float32)))
        with host.plate("data", len(x)):
            z = host.sample("z", host.distributions.Categorical(logits=logits))
            host.sample("x", host.distributions.Normal(places[z], 1.0), obs=x)

    def guide(x):
        slopes = host.param("slopes", asarray(np.zeros(3, np.float32)))
        with host.plate("data", len(x)):
            host.sample("z", host.distributions.Categorical(logits=make_logits(x, slopes)))

    return model, guide, infer.TruncatedGuide(model, 2)


def calls_of_pyro():
    import pyro
    import torch

    from pyro_dvae import infer
    from pyro_dvae.diagnostics import to_arviz

    x = torch.tensor(X)
    model, guide, truncated = mixture(pyro, infer, lambda x, s: x[:, None] * s, torch.tensor)
    for title, q, loss in (
        ("a step of DAPS", guide, infer.DAPS_ELBO(4)),
        ("a step with truncated posteriors", truncated, infer.Truncated_ELBO()),
    ):
        svi = pyro.infer.SVI(model, q, pyro.optim.Adam({"lr": 0.01}), loss)
        for _ in range(3):
            svi.step(x)
        yield title, lambda svi=svi: svi.step(x)
    yield "`to_arviz`", lambda: to_arviz((model, guide), x, num_draws=20)


def calls_of_numpyro():
    import jax
    import jax.numpy as jnp
    import numpyro

    from numpyro_dvae import infer
    from numpyro_dvae.diagnostics import to_arviz

    x, key = jnp.asarray(X), jax.random.key(0)
    model, guide, truncated = mixture(numpyro, infer, lambda x, s: x[:, None] * s, jnp.asarray)
    for title, q, loss in (
        ("a step of DAPS", guide, infer.DAPS_ELBO(4)),
        ("a step with truncated posteriors", truncated, infer.Truncated_ELBO()),
    ):
        svi = infer.SVI(model, q, numpyro.optim.Adam(0.01), loss)
        state = svi.init(key, x)
        yield title, lambda svi=svi, state=state: jax.eval_shape(svi.update, state, x)
        if q is guide:
            params = svi.get_params(state)
    yield "`to_arviz`", lambda: to_arviz(key, (model, guide), x, params=params, num_draws=20)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("package", choices=["pyro", "numpyro"])
    name = parser.parse_args().package
    for title, call in {"pyro": calls_of_pyro, "numpyro": calls_of_numpyro}[name]():
        met = files(f"{name}_dvae", call)
        print(f"{title}: {len(met)} files\n   ", "\n    ".join(met))
