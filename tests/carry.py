"""Carry a torch network's parameters over to its JAX twin.

Names run parallel: `blocks.0.self_qkv.weight` is `blocks_0/self_qkv/kernel`, transposed, and a
perceptron's `layers.2` (every second one is a ReLU) is `layers_1`.
"""

import jax.numpy as jnp


def network(net):
    """A torch module's state as the parameters of its flax twin."""
    params = {}
    for name, tensor in net.named_parameters():
        *path, leaf = _flax_names(name.split("."), tensor.ndim)
        branch = params
        for key in path:
            branch = branch.setdefault(key, {})
        value = tensor.detach().numpy()
        branch[leaf] = jnp.asarray(value.T if leaf == "kernel" else value)
    return params


def program(name, net):
    """A torch model's or guide's state as the parameter sites of its NumPyro twin."""
    parts = {f"{name}.{key}$params": network(part) for key, part in net.named_children()}
    return {key: params for key, params in parts.items() if params}


def _flax_names(parts, ndim):
    *path, leaf = parts
    merged = []
    for part in path:
        if part.isdigit():
            index = int(part) // 2 if merged[-1] == "layers" else int(part)
            merged[-1] = f"{merged[-1]}_{index}"
        else:
            merged.append(part)
    if leaf == "weight":
        leaf = "scale" if ndim == 1 else "embedding" if merged[-1] == "embedding" else "kernel"
    return [*merged, leaf]
