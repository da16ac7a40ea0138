"""Activations computed again, and layers in half precision: the same numbers in less memory."""

import numpy as np
import pytest

RNG = np.random.default_rng(0)
IMAGES, CODES = RNG.normal(size=(3, 8, 8, 2)), RNG.integers(5, size=(2, 3, 16))
CONTEXT, FRAMES = RNG.normal(size=(3, 6, 8)), RNG.normal(size=(3, 8, 4))
HEADS = {"num_heads": 2, "num_layers": 2}
NETS = {  # name -> positional arguments, options, what it is called with
    "PatchEncoder": (((8, 8, 2), 4), {"embed_dim": 8, **HEADS}, (IMAGES,)),
    "CausalTransformer": ((16, 5), {"embed_dim": 8, **HEADS}, (CODES, CONTEXT)),
    "ConvEncoder": (((8, 8, 2), 16, 5), {"width": 8, "num_groups": 1}, (IMAGES,)),
    "ConvDecoder": ((16, 5, (16, 16, 2)), {"width": 8, "embed_dim": 4, "num_groups": 1}, (CODES,)),
    "SequenceEncoder": (((8, 4), 16, 5), {"embed_dim": 8, **HEADS}, (FRAMES,)),
    "SequenceDecoder": ((16, 5, (8, 4)), {"embed_dim": 4, "width": 8, **HEADS}, (CODES,)),
}


def slope_of(shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def pyro_gradient(kind, args, options, inputs, state=None):
    """Outputs, gradients by name, bytes that are kept for these, and the parameters."""
    import torch

    net = kind(*args, **options)
    if state is not None:
        net.load_state_dict(state)
    inputs = [torch.as_tensor(x if x.dtype == int else x.astype(np.float32)) for x in inputs]
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = net(*inputs)
    outputs.backward(torch.as_tensor(slope_of(outputs.shape)))
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}
    grads = {name: p.grad.numpy() for name, p in net.named_parameters()}
    return outputs.detach().numpy(), grads, sum(kept.values()), net.state_dict()


def numpyro_gradient(kind, args, options, inputs, state=None):
    import jax

    net = kind(*args, **options)
    inputs = [np.asarray(x, x.dtype if x.dtype == int else np.float32) for x in inputs]
    inputs = [jax.numpy.asarray(x) for x in inputs]

    @jax.jit
    def make():
        params = net.init(jax.random.key(0), *inputs)
        return jax.tree.map(lambda leaf: leaf.astype(np.float32), params)

    state = make() if state is None else state
    outputs, pull = jax.jit(lambda state: jax.vjp(lambda p: net.apply(p, *inputs), state))(state)
    (grads,) = jax.jit(lambda pull, slope: pull(slope))(pull, slope_of(outputs.shape))
    grads = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]
    }
    assert {leaf.dtype.name for leaf in grads.values()} == {"float32"}
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    return np.asarray(outputs), grads, kept, state


def dtype_of(lab, name):
    return getattr(
        lab.module("nets.layers").__dict__["torch" if lab.name == "pyro" else "jnp"], name
    )


@pytest.mark.thrifty
@pytest.mark.parametrize("name", list(NETS))
def test_the_same_numbers_in_less_memory(lab, name):
    args, options, inputs = NETS[name]
    run = {"pyro": pyro_gradient, "numpyro": numpyro_gradient}[lab.name]
    kind = getattr(lab.module("nets"), name)
    outputs, grads, kept, state = run(kind, args, options, inputs)
    again, other, less, _ = run(kind, args, {**options, "recompute": True}, inputs, state)
    np.testing.assert_allclose(again, outputs, atol=1e-5)
    assert other.keys() == grads.keys()
    for key, grad in grads.items():
        np.testing.assert_allclose(other[key], grad, atol=1e-4 * np.abs(grad).max(), err_msg=key)
    assert less < 0.7 * kept
    rough, other, _, _ = run(
        kind, args, {**options, "dtype": dtype_of(lab, "bfloat16")}, inputs, state
    )
    assert rough.dtype == np.float32
    scale = np.abs(outputs).max()
    assert 1e-5 * scale < np.abs(rough - outputs).max() < 0.05 * scale  # it did compute in half
    joined = [np.concatenate([g[key].ravel() for key in grads]) for g in (other, grads)]
    # Three digits, and units on the other side of a ReLU's kink for them.
    assert np.linalg.norm(joined[0] - joined[1]) < 0.3 * np.linalg.norm(joined[1])


@pytest.mark.thrifty
def test_a_sampler_in_half_precision_draws_from_its_own_logits(lab):
    nets, uniforms = lab.module("nets"), RNG.uniform(size=(40, 3, 16)).astype(np.float32)
    options = {"embed_dim": 8, "dtype": dtype_of(lab, "bfloat16"), "recompute": True, **HEADS}
    net = nets.CausalTransformer(16, 5, **options)
    inputs = [lab.asarray(CODES), lab.asarray(CONTEXT.astype(np.float32))]
    net = lab.network(net, *inputs, dtype="float32")
    codes = lab.numpy(net.invert_cdf(lab.asarray(uniforms), inputs[1]))
    logits = lab.numpy(net(lab.asarray(codes), inputs[1])).astype(float)
    assert logits.shape == (40, 3, 16, 5)
    below = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1)
    below /= below[..., -1:]
    edges = np.concatenate([np.zeros_like(below[..., :1]), below], -1)
    low = np.take_along_axis(edges, codes[..., None], -1)[..., 0]
    high = np.take_along_axis(edges, codes[..., None] + 1, -1)[..., 0]
    assert (np.maximum(low - uniforms, uniforms - high) < 0.02).all()


@pytest.mark.parametrize("name", list(NETS))
def test_other_precisions_are_refused(lab, name):
    args, options, _ = NETS[name]
    with pytest.raises(ValueError, match=r"`dtype` must be .*bfloat16.*got"):
        getattr(lab.module("nets"), name)(*args, **options, dtype=dtype_of(lab, "float32"))
