"""Networks compiled for a training: fewer kernels, and on a GPU fewer launches.

Pyro's handlers run in Python and stay there; what they call, the networks of model and guide, is
compiled by `torch.compile`, on a GPU into CUDA graphs where their shapes allow.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_dvae.fit.svi import modules_of
from pyro_dvae.nets import Quantizer

__all__ = ["captured"]


@contextmanager
def captured(svi: SVI, capture: bool) -> Iterator[None]:
    """Run a block in which networks are compiled, each at its first call.

    Raises:
        ValueError: If model and guide hold no networks.
    """
    networks = _networks(svi) if capture else []
    if capture and not networks:
        raise ValueError(
            "`capture` compiles the networks of model and guide, but neither is a module, or a "
            "method of one, that holds any: make them attributes of a `torch.nn.Module`, or leave "
            "`capture` out."
        )
    before = [(net, net._compiled_call_impl) for net in networks]
    try:
        for net in networks:
            net._compiled_call_impl = _compiled(net)
        yield
    finally:
        for net, call in before:
            net._compiled_call_impl = call


def _compiled(net: nn.Module) -> Callable[..., Any]:
    """What calls a network compiled, or as it is where Pyro traces what depends on what."""
    on_gpu = any(parameter.is_cuda for parameter in net.parameters())
    call = torch.compile(net._call_impl, mode="reduce-overhead" if on_gpu else "default")

    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = (type(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        is_plain = all(kind in (Tensor, nn.Parameter) for kind in tensors)
        return (call if is_plain else net._call_impl)(*args, **kwargs)

    return run


def _networks(svi: SVI) -> list[nn.Module]:
    """The modules with parameters that those behind model and guide hold, each once."""
    children = [child for root in modules_of(svi).values() for child in root.children()]
    parts = [part for child in children for part in _parts(child)]
    return list({id(part): part for part in parts}.values())


def _parts(net: nn.Module) -> Iterator[nn.Module]:
    """A network, or those around a codebook in it, which asks Pyro's handlers what it is given."""
    if isinstance(net, Quantizer) or next(net.parameters(), None) is None:
        return
    if any(isinstance(module, Quantizer) for module in net.modules()):
        for child in net.children():
            yield from _parts(child)
    else:
        yield net
