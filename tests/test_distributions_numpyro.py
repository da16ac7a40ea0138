"""Code distributions as JAX pytrees: jit, grad and vmap, and no tracer kept past its trace."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
import multipledispatch  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
import numpyro_lab as lab  # noqa: E402
from numpyro.distributions.kl import kl_divergence  # noqa: E402
from test_distributions import autoregressive, counting  # noqa: E402

from numpyro_dvae.distributions import Categorical, CertainCategorical, sample_codes  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh():
    lab.reset()
    lab.module = lambda path: __import__(f"numpyro_dvae.{path}", fromlist=["_"])


def test_the_joint_passes_through_jit_and_grad():
    q = autoregressive(lab)
    codes = lab.draw(q, (3,))
    score = jax.jit(lambda q, codes: q.log_prob(codes))
    np.testing.assert_allclose(score(q, codes), q.log_prob(codes), rtol=1e-12)
    slopes = jax.grad(lambda q: q.log_prob(codes).sum())(q)
    assert type(slopes) is type(q)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(slopes.transformer.params)[-3:])
    np.testing.assert_array_equal(jax.jit(lambda q: q)(q).log_prob(codes), q.log_prob(codes))


def test_particles_under_vmap():
    q = autoregressive(lab)
    keys = jax.random.split(jax.random.key(1), 6)
    codes = jax.jit(jax.vmap(q.sample))(keys)
    assert codes.shape == (6, 2, 3)
    assert len(np.unique(np.asarray(codes)[:, 0], axis=0)) > 1
    np.testing.assert_allclose(jax.vmap(q.log_prob)(codes), q.log_prob(codes), rtol=1e-12)


def test_a_pass_is_shared_within_one_trace_only(monkeypatch):
    q = autoregressive(lab)
    codes = lab.draw(q, (3,))
    jax.jit(lambda: q.log_prob(codes))()  # q was made outside: nothing may stay in it
    assert q._scored is None
    expected, passes = q.conditional_entropy(codes), counting(q, monkeypatch)

    @jax.jit
    def both(context):
        inside = type(q)(q.transformer, context)
        return inside.log_prob(codes), inside.conditional_entropy(codes)

    np.testing.assert_allclose(both(q.context)[1], expected, rtol=1e-12)
    assert len(passes) == 1


def test_no_tracer_leaks():
    q = autoregressive(lab)
    codes = lab.draw(q, (3,))

    def loss(context):
        inside = type(q)(q.transformer, context)
        return (inside.log_prob(codes) + inside.conditional_entropy(codes)).sum()

    with jax.checking_leaks():
        jax.jit(jax.grad(loss))(q.context)


def test_gradients_leave_the_sampler_alone():
    q = autoregressive(lab)

    def drawn(context):
        return type(q)(q.transformer, context).sample(jax.random.key(0)).sum().astype(float)

    np.testing.assert_array_equal(jax.grad(drawn)(q.context), 0)


@pytest.mark.parametrize("num_codes", [1, 2, 3, 5, 16, 17, 100])
def test_two_levels_find_what_one_finds(num_codes):
    """Blocks of codes, then codes of a block: any number of codes, full blocks or not."""
    rng = np.random.default_rng(0)
    logits, uniforms = rng.normal(size=(30, num_codes)), rng.uniform(size=(40, 30))
    mass = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1)
    expected = (mass <= uniforms[..., None] * mass[:, -1:]).sum(-1)
    found = sample_codes(jnp.asarray(logits), jnp.asarray(uniforms))
    np.testing.assert_array_equal(found, expected)


def test_one_of_probs_and_logits():
    with pytest.raises(ValueError, match="one of `probs` and `logits`"):
        Categorical()


def test_no_pair_of_distributions_has_two_kls():
    ambiguous = multipledispatch.conflict.ambiguities(kl_divergence.funcs)
    assert not [pair for pair in ambiguous if "numpyro_dvae" in str(pair)]
    probs = jnp.array([0.2, 0.3, 0.5])
    prior = dist.CategoricalProbs(probs).expand([2])
    found = kl_divergence(CertainCategorical(3, jnp.array([0, 2])), prior)
    np.testing.assert_allclose(found, -np.log([0.2, 0.5]), rtol=1e-6)
