"""Vector and finite scalar quantisation against lucidrains' vector-quantize-pytorch.

The oracle gets the same float32 inputs and codebooks, and the loss that its users write: the mean
square error and the library's own. Where its conventions are others, a test says which: it starts
the moving averages of a codebook at counts of 1 where ours starts a given one at `min_count`, it
refuses two levels, and it can round beyond more than a thousand.
"""

import functools
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

B, L, D, V = 12, 2, 3, 6
N = B * L

# On this grid distances are exact in float32: two of them are tied, in both libraries, or apart.
grid = st.integers(-40, 40).map(lambda i: i / 8)
seeds = st.integers(0, 10**6)
GRADIENTS = {"straight_through": {"rotation_trick": False}, "rotation": {"rotation_trick": True}}
DECAY, SMOOTHING = 0.8, 0.5  # smoothing that is seen; the training steps have the default, 1e-5


@pytest.fixture(scope="module")
def oracle():
    """The library, which takes 2 seconds to import, and the Torch it runs on."""
    import torch
    import vector_quantize_pytorch

    def codebook(table, count=1.0, **options):
        """A codebook of theirs in training, which starts where one of ours does."""
        settings = {"rotation_trick": False, **options}
        found = vector_quantize_pytorch.VectorQuantize(table.shape[1], len(table), **settings)
        book = found._codebook
        book.embed.data.copy_(torch.asarray(table)[None])
        book.cluster_size.fill_(count)
        book.embed_avg.copy_(count * book.embed.data)
        return found

    def state(codebook):
        """Its table, counts and sums."""
        book = codebook._codebook
        return [a.detach()[0].numpy() for a in (book.embed, book.cluster_size, book.embed_avg)]

    def leaf(array):
        return torch.tensor(array, requires_grad=True)

    def scalars(levels, **options):
        return vector_quantize_pytorch.FSQ(list(levels), **options)

    asarray = torch.asarray
    return SimpleNamespace(**locals())


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------------------- codes and averages


@functools.cache
def follower(backend):
    """One step of the moving averages: codes, and the new state."""
    ops = backend.module("ops.quantizing")

    def step(state, inputs):
        state = ops.CodebookState(*state)
        codes = ops.nearest_codes(inputs, state.table)
        counts, sums = ops.code_counts(codes, V), ops.code_sums(inputs, codes, V)
        return codes, ops.update_codebook(state, counts, sums, decay=DECAY, smoothing=SMOOTHING)

    return backend.jit(step)


def start_of(backend, table):
    """Where their moving averages start, at a count of 1 each."""
    return tuple(map(backend.asarray, (table, np.ones(V, np.float32), table)))


@given(
    inputs=npst.arrays(np.float32, (N, D), elements=grid),
    table=npst.arrays(np.float32, (V, D), elements=grid),
)
def test_the_same_codes_ties_included(backend, oracle, inputs, table):
    vectors, expected, _ = oracle.codebook(table).eval()(oracle.asarray(inputs))
    codes, _ = follower(backend)(start_of(backend, table), backend.asarray(inputs))
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(table[np.asarray(codes)], vectors)


@settings(max_examples=10)
@given(seed=seeds)
def test_the_same_moving_averages(backend, oracle, seed):
    """Smoothed alike: our `smoothing` is their `eps`, with the same default, 1e-5."""
    table = draw(seed, V, D)
    theirs, unlike = (
        oracle.codebook(table, decay=DECAY, eps=eps) for eps in (SMOOTHING, SMOOTHING / 2)
    )
    state = start_of(backend, table)
    for batch in draw(seed + 1, 4, N, D):
        codes, state = follower(backend)(state, backend.asarray(batch))
        _, expected, _ = theirs(oracle.asarray(batch))
        unlike(oracle.asarray(batch))
        np.testing.assert_array_equal(codes, expected)
        for own, other in zip(state, oracle.state(theirs), strict=True):
            np.testing.assert_allclose(own, other, rtol=2e-5, atol=1e-6)
    assert not np.allclose(state[0], oracle.state(unlike)[0], rtol=1e-3)  # negative control


# --------------------------------------------------------------------------------- training steps


def pyro_trainer(codebook, targets, commitment, gradient):
    """Steps of `VQ_ELBO` from inputs to what changed; the decoder hands its vectors on."""
    import pyro
    import pyro.distributions as dist
    import torch

    from pyro_dvae import guides, infer, nets

    targets, network = torch.asarray(targets), torch.nn.Identity()
    decoder = nets.CodebookDecoder(codebook, network)
    guide = guides.VectorQuantizedGuide(network, codebook, gradient=gradient)
    elbo = infer.VQ_ELBO(commitment=commitment)

    def model(x):
        with pyro.plate("data", B):
            z = pyro.sample("z", dist.Categorical(torch.full((L, V), 1 / V)).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=targets)

    def step(inputs):
        inputs, codebook.table.grad = torch.tensor(inputs, requires_grad=True), None
        elbo.loss_and_grads(model, guide, inputs)
        grads = [a.grad.numpy() for a in (inputs, codebook.table) if a.requires_grad]
        averages = dict(codebook.named_buffers())
        state = [averages[k].clone().numpy() for k in ("table", "counts", "sums") if k in averages]
        return SimpleNamespace(grads=grads, distance=elbo.info.distance, state=state)

    return step


def numpyro_trainer(codebook, targets, commitment, gradient):
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    from numpyro_dvae import guides, infer, nets
    from numpyro_dvae.infer.objective import LOSS_MEMORY

    decoder = nets.CodebookDecoder(codebook, lambda vectors: vectors)
    guide = guides.VectorQuantizedGuide(lambda x: x, codebook, gradient=gradient)
    elbo = infer.VQ_ELBO(commitment=commitment)

    def model(x):
        with numpyro.plate("data", B):
            z = numpyro.sample("z", dist.Categorical(jnp.full((L, V), 1 / V)).to_event(1))
            numpyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=jnp.asarray(targets))

    @jax.jit
    def evaluate(leaves, held, key):
        def loss(leaves):
            inputs, params = leaves
            found = elbo.loss_with_mutable_state(key, {**params, **held}, model, guide, inputs)
            return found["loss"], found["mutable_state"]

        return jax.grad(loss, has_aux=True)(leaves)

    held = {LOSS_MEMORY: elbo.init_loss_memory(), "codebook$state": codebook._first_state()}
    params = {"codebook$table": codebook._first(None)} if codebook.decay is None else {}

    def step(inputs):
        grads, after = evaluate((jnp.asarray(inputs), params), held, jax.random.key(0))
        distance, averages = after[LOSS_MEMORY].info.distance, after["codebook$state"]
        held.update({name: after[name] for name in held if name != LOSS_MEMORY})
        state = [np.asarray(averages[k]) for k in ("table", "counts", "sums") if k in averages]
        return SimpleNamespace(grads=jax.tree.leaves(grads), distance=distance, state=state)

    return step


def trainer(backend, table, targets, gradient, commitment=0.25, **options):
    codebook = backend.module("nets").Codebook(V, D, table=backend.asarray(table), **options)
    make = {"pyro": pyro_trainer, "numpyro": numpyro_trainer}[backend.name]
    return make(codebook, targets, commitment, gradient)


def their_step(oracle, theirs, inputs, targets):
    """The gradients to inputs and table, and the library's own loss, by its codebook.

    Half a square for each entry of a batch is the loss of a Gaussian of variance 1.
    """
    leaf = oracle.leaf(inputs)
    vectors, _, loss = theirs(leaf.reshape(N, D))
    error = vectors.reshape(B, L * D) - oracle.asarray(targets)
    (0.5 * B * L * D * (error.square().mean() + loss)).backward()
    table = theirs._codebook.embed
    grads = [leaf.grad] + ([table.grad[0]] if table.requires_grad else [])
    return [grad.numpy() for grad in grads], loss.item()


def assert_same_grads(found, expected):
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.thrifty
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_same_steps_with_moving_averages_until_codes_die(backend, oracle, gradient):
    """A code that is chosen less often than the threshold restarts at an input.

    In both as if chosen so often; theirs draws other inputs, so the comparison ends there.
    """
    table, targets, commitment, threshold = draw(0, V, D) / 2, draw(1, B, L * D), 0.25, 0.125
    options = {"decay": 0.5, "threshold_ema_dead_code": threshold, **GRADIENTS[gradient]}
    theirs = oracle.codebook(table, threshold, commitment_weight=commitment, **options)
    step = trainer(backend, table, targets, gradient, commitment, decay=0.5, min_count=threshold)
    for time in range(12):
        inputs = draw(2 + time, B, L, D)
        inputs = inputs if time < 3 else table[0] + inputs / 128  # then all are near one code
        found, (grads, loss) = step(inputs), their_step(oracle, theirs, inputs, targets)
        assert_same_grads(found.grads, grads)
        assert float(found.distance) == pytest.approx(D * loss / commitment, rel=1e-4)
        states = found.state, oracle.state(theirs)
        is_dead = [(rows[:, None] == inputs.reshape(N, D)).all(-1).any(1) for rows, *_ in states]
        np.testing.assert_array_equal(*is_dead)
        for own, other in zip(*states, strict=True):
            np.testing.assert_allclose(own[~is_dead[0]], other[~is_dead[1]], rtol=1e-4, atol=1e-6)
        if is_dead[0].any():
            break
    assert 3 < time < 11
    for rows, counts, sums in states:
        np.testing.assert_array_equal(counts[is_dead[0]], threshold)
        np.testing.assert_array_equal(sums[is_dead[0]], threshold * rows[is_dead[0]])


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_same_gradient_to_a_table_that_is_a_parameter(backend, oracle, gradient):
    """One weight of theirs is both of ours, that of the codebook's term and `commitment`."""
    table, targets, inputs = draw(3, V, D), draw(4, B, L * D), draw(5, B, L, D)
    learnt = {"learnable_codebook": True, "ema_update": False, "commitment_weight": 1.0}
    theirs = oracle.codebook(table, **learnt, **GRADIENTS[gradient])
    found = trainer(backend, table, targets, gradient, commitment=1.0)(inputs)
    grads, _ = their_step(oracle, theirs, inputs, targets)
    assert_same_grads(found.grads, grads)
    other = next(options for name, options in GRADIENTS.items() if name != gradient)
    (unlike, _), _ = their_step(oracle, oracle.codebook(table, **learnt, **other), inputs, targets)
    assert not np.allclose(unlike, found.grads[0], rtol=0.1, atol=0.1)  # negative control


# --------------------------------------------------------------------------------- finite scalars


class Scalars(NamedTuple):
    """All that two libraries say of some inputs and levels."""

    vectors: Any
    codes: Any
    slopes: Any  # of the weighted sum of the vectors
    table: Any  # the vector of every code
    places: Any  # the level indices of every code


@functools.cache
def scalars(backend, levels):
    ops = backend.module("ops.quantizing")

    def all_of_it(inputs, weights, every):
        vectors, codes = ops.quantize_levels(inputs, levels)
        places = ops.codes_to_levels(every, levels)
        slopes, table = backend.grad(total)(inputs, weights), ops.level_vectors(levels)
        return vectors, codes, slopes, table, places, ops.levels_to_codes(places, levels)

    def total(inputs, weights):
        return (weights * ops.quantize_levels(inputs, levels)[0]).sum()

    return backend.jit(all_of_it)


def both_scalars(backend, oracle, inputs, weights, levels, **options):
    """Ours, and theirs; and each takes its vectors or level indices back to codes."""
    every = np.arange(math.prod(levels))
    *ours, back = scalars(backend, levels)(*map(backend.asarray, (inputs, weights, every)))
    np.testing.assert_array_equal(back, every)
    leaf, theirs = oracle.leaf(inputs[None]), oracle.scalars(levels, **options)
    vectors, codes = theirs(leaf)
    (oracle.asarray(weights) * vectors).sum().backward()
    table, every = theirs.implicit_codebook, oracle.asarray(every)
    np.testing.assert_array_equal(theirs.codes_to_indices(table), every)
    np.testing.assert_array_equal(theirs.indices_to_codes(every), table)
    expected = vectors.detach()[0], codes[0], leaf.grad[0], table
    expected = Scalars(*expected, theirs.indices_to_level_indices(every))
    return Scalars(*map(np.asarray, ours)), Scalars(*map(np.asarray, expected))


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (7, 6, 4, 3)])
@settings(max_examples=10)
@given(seed=seeds, scale=st.sampled_from([0.3, 1.0, 4.0]))
def test_the_same_finite_scalars(backend, oracle, levels, seed, scale):
    inputs, weights = np.float32(scale) * draw(seed, 50, len(levels)), draw(9, 50, len(levels))
    ours, theirs = both_scalars(backend, oracle, inputs, weights, levels)
    np.testing.assert_array_equal(ours.codes, theirs.codes)
    np.testing.assert_array_equal(ours.places, theirs.places)
    np.testing.assert_allclose(ours.vectors, theirs.vectors, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.table, theirs.table, rtol=1e-6)
    # In float32 the slope of tanh, 1 - tanh², cancels.
    np.testing.assert_allclose(ours.slopes, theirs.slopes, rtol=1e-4, atol=1e-5)


def test_two_levels_are_split_at_zero(backend, oracle):
    """The published shift would put the threshold at -3.8; theirs asks for a symmetric formula."""
    with pytest.raises(AssertionError, match="preserve_symmetry"):
        oracle.scalars((2, 2))
    inputs, weights = 2 * draw(11, 50, 2), draw(12, 50, 2)
    ours, theirs = both_scalars(backend, oracle, inputs, weights, (2, 2), preserve_symmetry=True)
    np.testing.assert_array_equal(ours.codes, theirs.codes)
    np.testing.assert_allclose(2 * ours.vectors + 1, theirs.vectors)  # -1 and 0 to -1 and 1
    np.testing.assert_allclose(2 * ours.slopes, 1.001 * theirs.slopes, rtol=1e-4, atol=1e-5)


def test_many_levels_do_not_leave_the_codebook(backend, oracle):
    """From 1002 levels on the published range, 0.1% too large, rounds to one that is not there."""
    inputs = np.array([[-20.0], [20.0]], np.float32)
    ours, theirs = both_scalars(backend, oracle, inputs, inputs, (1101,))
    np.testing.assert_array_equal(ours.codes, [0, 1100])
    np.testing.assert_array_equal(ours.vectors, [[-1], [1]])
    np.testing.assert_array_equal(theirs.codes, [-1, 1101])
