"""Distributions over codes: exact probabilities, exact draws at the edges, cheap particles."""

import itertools

import numpy as np
import pytest


def functions(backend):
    try:
        return backend.module("distributions")
    except ModuleNotFoundError as error:
        pytest.skip(f"{backend.name} has no distributions yet: {error}")


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def exceeds_chi_square(counts, probs):
    """Whether counts are too far from probs, by Wilson and Hilferty's normal quantile."""
    expected = counts.sum() * probs
    statistic, dof = ((counts - expected) ** 2 / expected).sum(), len(probs) - 1
    cube = (statistic / dof) ** (1 / 3)
    z_score = (cube - (1 - 2 / (9 * dof))) / np.sqrt(2 / (9 * dof))
    return z_score > 4.75  # the normal tail of 1e-6


def test_uniforms_inside_each_step_give_its_code(backend):
    logits = np.random.default_rng(0).normal(size=(5, 3, 7))
    upper = softmax(logits).cumsum(-1)
    middles = upper - softmax(logits) / 2
    uniforms = np.moveaxis(middles, -1, 0)
    drawn = functions(backend).sample_codes(backend.asarray(logits), backend.asarray(uniforms))
    np.testing.assert_array_equal(np.asarray(drawn), np.arange(7)[:, None, None] + np.zeros((5, 3)))


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_impossible_codes_are_never_drawn(backend, uniform):
    logits = np.random.default_rng(1).normal(size=(2000, 300)).astype(np.float32)
    logits[:, :5] = logits[:, -5:] = logits[:, 100:110] = -np.inf
    uniforms = np.full((1, 2000), uniform, np.float32)
    drawn = functions(backend).sample_codes(backend.asarray(logits), backend.asarray(uniforms))
    drawn = np.asarray(drawn)[0]
    assert np.all((drawn == 5) if uniform == 0 else (drawn >= 250) & (drawn < 295))
    # Negative control: the textbook rule, first step at or above u, takes code 0 at u = 0,
    # and finds none where rounding leaves the last step below u.
    naive = (softmax(logits).cumsum(-1) >= uniform).argmax(-1)
    assert np.any(np.isneginf(logits[np.arange(2000), naive]))


def test_nan_logits_give_a_valid_index(backend):
    logits = backend.asarray(np.full((2, 4), np.nan))
    drawn = functions(backend).sample_codes(logits, backend.asarray(np.full((1, 2), 0.5)))
    assert np.all((np.asarray(drawn) >= 0) & (np.asarray(drawn) < 4))


@pytest.mark.parametrize("lead", [(), (6,), (2, 3)])
def test_log_prob_of_codes_with_particles_on_the_left(backend, lead):
    rng = np.random.default_rng(2)
    logits, codes = rng.normal(size=(4, 3, 5)), rng.integers(5, size=(*lead, 4, 3))
    found = functions(backend).log_prob_of_codes(backend.asarray(logits), backend.asarray(codes))
    table = np.broadcast_to(np.log(softmax(logits)), (*lead, 4, 3, 5))
    expected = np.take_along_axis(table, codes[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)


def test_codes_of_another_batch_are_refused(backend):
    logits, codes = np.zeros((4, 3, 5)), np.zeros((3, 4), int)
    with pytest.raises(ValueError, match="batch shape"):
        functions(backend).log_prob_of_codes(backend.asarray(logits), backend.asarray(codes))


torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
stock = pyro.distributions

from pyro_dvae.distributions import AutoregressiveCategorical, Categorical  # noqa: E402
from pyro_dvae.nets import CausalTransformer  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    pyro.set_rng_seed(0)


@pytest.mark.parametrize(
    ("batch", "expanded", "value"),
    [
        ((4, 3), (4, 3), (4, 3)),
        ((4, 3), (4, 3), (6, 4, 3)),
        ((4, 3), (5, 4, 3), (5, 4, 3)),
        ((1, 3), (4, 3), (4, 3)),
        ((3,), (2, 4, 3), (7, 2, 4, 3)),
        ((4, 1), (5, 4, 3), (5, 4, 3)),
        ((), (3,), (2, 3)),
        ((4, 3), (4, 3), (1, 3)),
        ((4, 3), (4, 3), ()),
        ((4, 3), (4, 3), (6, 1, 1)),
    ],
)
def test_categorical_scores_as_pyro_does(batch, expanded, value):
    logits = torch.randn(*batch, 5, dtype=torch.float64, requires_grad=True)
    codes = torch.randint(5, value)
    ours, theirs = (c(logits=logits).expand(expanded) for c in (Categorical, stock.Categorical))
    found, wanted = ours.log_prob(codes), theirs.log_prob(codes)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((weights * v).sum(), logits)[0] for v in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert ours.sample((2,)).shape == theirs.sample((2,)).shape == (2, *expanded)
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert ours._shared.data_ptr() == ours.expand((9, *expanded))._shared.data_ptr()


def test_categorical_from_probs_and_its_support():
    probs = torch.tensor([[0.2, 0.8], [0.5, 0.5]], dtype=torch.float64)
    ours, theirs = Categorical(probs), stock.Categorical(probs)
    for expand in (True, False):
        codes, wanted = (d.enumerate_support(expand=expand) for d in (ours, theirs))
        torch.testing.assert_close(ours.log_prob(codes), theirs.log_prob(wanted))
    with pytest.raises(ValueError, match="support"):
        ours.log_prob(torch.tensor([0, 2]))


def test_categorical_draws_are_independent_across_all_expanded_dims():
    probs = np.array([0.05, 0.25, 0.3, 0.4])
    one = Categorical(probs=torch.tensor(probs)).expand((1,))
    draws = one.expand((200, 300)).sample((1,)).reshape(-1)
    pairs = np.bincount((4 * draws[:-1] + draws[1:]).numpy(), minlength=16)
    assert not exceeds_chi_square(pairs, np.outer(probs, probs).ravel())
    wrong = np.array([0.05, 0.25, 0.28, 0.42])  # negative control
    assert exceeds_chi_square(pairs, np.outer(wrong, wrong).ravel())


def test_categorical_under_parallel_enumeration():
    logits = torch.randn(3, 5, dtype=torch.float64)

    def loss(family):
        def model():
            with pyro.plate("data", 3):
                z = pyro.sample("z", family(logits=logits), infer={"enumerate": "parallel"})
                pyro.sample("x", stock.Normal(z.double(), 1.0), obs=torch.ones(3).double())

        return pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda: None)

    assert loss(Categorical) == pytest.approx(loss(stock.Categorical), rel=1e-12)


def autoregressive(num_latents=3, num_codes=4, batch=(2,), dtype=torch.float64):
    net = CausalTransformer(num_latents, num_codes, embed_dim=8, num_heads=2, num_layers=2)
    context = torch.randn(*batch, 5, 8, dtype=dtype)
    return AutoregressiveCategorical(net.to(dtype), context)


def all_codes(q):
    num_latents, num_codes = q.transformer.num_latents, q.transformer.num_codes
    return torch.tensor(list(itertools.product(range(num_codes), repeat=num_latents)))


def test_joint_probabilities_sum_to_one():
    q = autoregressive()
    support = q.enumerate_support()
    assert torch.equal(support[:, 0], all_codes(q))
    assert q.enumerate_support(expand=False).shape == (64, 1, 3)
    total = q.log_prob(support).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)
    torch.testing.assert_close(q.log_prob(q.enumerate_support(expand=False)), q.log_prob(support))


def test_conditional_entropy_averages_to_the_joint_entropy():
    q = autoregressive()
    support = q.enumerate_support()
    log_prob = q.log_prob(support)
    exact = -(log_prob.exp() * log_prob).sum(0)
    averaged = (log_prob.exp() * q.conditional_entropy(support)).sum(0)
    torch.testing.assert_close(averaged, exact, rtol=1e-12, atol=0)
    sampled = -(log_prob - exact)  # negative control: pointwise, -log q is something else
    assert (q.conditional_entropy(support) - sampled).abs().max() > 0.1


def test_samples_follow_the_enumerated_probabilities():
    q = autoregressive(batch=())
    probs = q.log_prob(q.enumerate_support()).exp().detach().numpy()
    draws = q.sample((40_000,)) @ torch.tensor([16, 4, 1])
    counts = np.bincount(draws.numpy(), minlength=64)
    assert not exceeds_chi_square(counts, probs)
    independent = all_codes(q) @ torch.tensor([16, 4, 1])  # negative control: reversed order
    reverse = all_codes(q).flip(-1) @ torch.tensor([16, 4, 1])
    assert exceeds_chi_square(counts[independent], probs[reverse])


@pytest.mark.parametrize("expanded", [(2,), (6, 2), (4, 6, 2)])
def test_expanding_the_joint_copies_nothing(expanded):
    q = autoregressive()
    wide = q.expand(expanded)
    codes = wide.sample((3,))
    assert codes.shape == (3, *expanded, 3)
    assert wide.context is q.context
    torch.testing.assert_close(wide.log_prob(codes), q.log_prob(codes))
    with pytest.raises(ValueError, match="broadcasts"):
        q.expand((5,))


def test_joint_of_one_context_expanded_to_a_batch():
    q = autoregressive(batch=(1,))
    codes = q.expand((4, 5)).sample((2,))
    assert codes.shape == (2, 4, 5, 3)
    expected = autoregressive(batch=()).__class__(q.transformer, q.context[0]).log_prob(codes)
    torch.testing.assert_close(q.expand((4, 5)).log_prob(codes), expected)


def test_entropy_takes_over_the_pass_of_log_prob():
    q, calls = autoregressive(), []
    codes, net = q.sample((3,)), q.transformer
    expected = q.conditional_entropy(codes)
    net.register_forward_hook(lambda *_: calls.append(1))
    q.log_prob(codes)
    torch.testing.assert_close(q.conditional_entropy(codes), expected, rtol=0, atol=0)
    assert len(calls) == 1
    with torch.no_grad():
        q.log_prob(codes)
    q.conditional_entropy(codes).sum().backward()  # a pass of its own, since one needs gradients
    assert len(calls) == 3


def test_nothing_stale_is_taken_over():
    q = autoregressive()
    codes = q.sample((3,))
    q.log_prob(codes)
    codes[0] = (codes[0] + 1) % 4
    torch.testing.assert_close(q.conditional_entropy(codes), q.conditional_entropy(codes.clone()))
    before = q.log_prob(codes).detach()
    with torch.no_grad():
        q.transformer.head.weight.mul_(2)
    assert not torch.equal(q.log_prob(codes), before)


def test_joint_under_a_plate_and_a_particle_plate():
    q = autoregressive()

    def guide():
        with pyro.plate("particles", 7, dim=-2), pyro.plate("data", 2, dim=-1):
            return pyro.sample("z", q)

    trace = pyro.poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["value"].shape == (7, 2, 3)
    assert trace.nodes["z"]["log_prob"].shape == (7, 2)


def test_joint_refuses_what_it_cannot_do():
    q = autoregressive()
    with pytest.raises(ValueError, match="support"):
        q.log_prob(torch.full((2, 3), 4))
    with pytest.raises(ValueError, match=r"8 \*\* 7.*Sample instead"):
        autoregressive(num_latents=7, num_codes=8).enumerate_support()
    with pytest.raises(ValueError, match="`context` must have shape"):
        AutoregressiveCategorical(q.transformer, torch.zeros(8))
