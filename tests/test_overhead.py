"""What `fit` takes beside its steps, on a tiny model: in CPU time, interleaved with steps by hand.

`pytest -m slow -s tests/test_overhead.py` prints the ratios.
"""

import time

import numpy as np
import pytest

pytestmark = pytest.mark.slow
X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)


def ratio(bare, fitted, repeats=4):
    """CPU time of as many more steps in `fit`, by that of these steps without it.

    What a `fit` does once, as tracing its program, is told beside it; the least times count.
    """
    runs = {"bare": bare, "once": lambda: fitted(1), "twice": lambda: fitted(2)}
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    least = {name: min(found) for name, found in times.items()}
    steps = least["twice"] - least["once"]
    return steps / least["bare"], least["once"] - steps


def test_fit_takes_little_beside_a_tiny_scan(capsys):
    jax = pytest.importorskip("jax")
    import numpyro
    import numpyro.distributions as dist

    from numpyro_dvae.fit import fit
    from numpyro_dvae.infer import DAPS_ELBO, SVI

    def model(x):
        w = numpyro.param("w", jax.numpy.zeros(4))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(w * z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        a = numpyro.param("a", jax.numpy.zeros(4))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Bernoulli(logits=x @ a))

    svi, steps = SVI(model, guide, numpyro.optim.Adam(1e-3), DAPS_ELBO(4)), 20_000
    x, key = jax.numpy.asarray(X), jax.random.key(0)
    state = svi.init(key, x)
    scan = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: svi.update(s, x), state, None, length=steps)
    )

    def bare():
        jax.block_until_ready(scan(state))

    def fitted(times):
        fit(key, svi, x, num_steps=times * steps, progress=False, log_every=50)

    bare(), fitted(1)  # compile
    found, once = ratio(bare, fitted)
    with capsys.disabled():
        print(f"numpyro: {found:.2f} times the bare scan, and {once:.2f} s a run")
    assert found < 1.4


def test_fit_takes_a_tenth_of_tiny_steps_at_most(capsys):
    torch = pytest.importorskip("torch")
    import pyro
    import pyro.distributions as dist
    from pyro.infer import SVI

    from pyro_dvae.fit import fit
    from pyro_dvae.infer import DAPS_ELBO

    def model(x):
        w = pyro.param("w", torch.zeros(4))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(w * z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        a = pyro.param("a", torch.zeros(4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x @ a))

    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), DAPS_ELBO(4))
    x, steps = torch.from_numpy(X), 300

    def bare():
        for _ in range(steps):
            svi.step(x)

    def fitted(times):
        fit(svi, x, num_steps=times * steps, progress=False, log_every=50)

    bare(), fitted(1)
    found, once = ratio(bare, fitted)
    with capsys.disabled():
        print(f"pyro: {found:.2f} times the bare steps, and {once:.2f} s a run")
    assert found < 1.1
