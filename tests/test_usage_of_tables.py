"""Diagnostics of a codebook of several tables count the codes of each by itself."""

import importlib

import numpy as np
import pytest

CODES = np.array([[0, 1, 2, 2], [1, 3, 2, 2], [0, 0, 2, 4]])  # two latents of each table


@pytest.mark.thrifty
@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_each_table_has_a_usage_of_its_own(name):
    """Three of five codes, and two of five; four of them in all. In a function, under a handler."""
    host, dist = pytest.importorskip(name), importlib.import_module(f"{name}.distributions")
    certain = importlib.import_module(f"{name}_dvae.distributions").CertainCategorical
    diagnostics = importlib.import_module(f"{name}_dvae.diagnostics")
    arrays = importlib.import_module("torch" if name == "pyro" else "jax.numpy")
    handlers = importlib.import_module("pyro.poutine" if name == "pyro" else "numpyro.handlers")
    key = () if name == "pyro" else (importlib.import_module("jax").random.key(0),)
    x = arrays.asarray(np.array([0.3, -0.2, 1.0], np.float32))

    def pair(tables):
        def model(x):
            with host.plate("data", 3):
                z = host.sample("z", dist.Categorical(logits=arrays.zeros((4, 5))).to_event(1))
                host.sample("x", dist.Normal(0.1 * z.sum(-1), 1.0), obs=x)

        def guide(x):
            with host.plate("data", 3):
                host.sample("z", certain(5, arrays.asarray(CODES), tables=tables).to_event(1))

        return handlers.scale(model, scale=0.5), handlers.scale(guide, scale=0.5)

    used = diagnostics.code_usage(*key, pair([2, 2]), x, num_draws=25)["z"]
    parts = CODES[:, :2], CODES[:, 2:]
    shares = [np.unique(part, return_counts=True)[1] / part.size for part in parts]
    usage = np.mean([len(share) / 5 for share in shares])
    perplexity = np.mean([np.exp(-(share * np.log(share)).sum()) for share in shares])
    np.testing.assert_allclose(used.table_share_used, usage)
    np.testing.assert_allclose(used.table_perplexity, perplexity)
    assert "The latents of each of 2 tables together use 50% of the codes" in str(used)
    found = diagnostics.evaluate(*key, pair([2, 2]), x, num_particles=25)
    np.testing.assert_allclose(found.table_usage, usage)
    np.testing.assert_allclose(found.table_perplexity, perplexity)
    used = diagnostics.code_usage(*key, pair(None), x, num_draws=25)["z"]
    assert used.table_share_used == 1.0
    with pytest.raises(ValueError, match="`tables` must have as many latents as `codes`; got "):
        pair([2, 1])[1](x)
