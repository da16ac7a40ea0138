"""The tie of a network to Pyro's parameter store, so that `SVI` trains the network it runs.

This is no network; models and guides call it when they run.

Pyro's parameter store is global and keeps the *first* tensor that it sees under a name. With
`pyro.module`, a second network of the same name would compute with its own tensors while `SVI`
updates those of the first: it would train nothing, without a word. `register` makes the tensors of
the network that runs the entry of the store. Any number of networks so train, in turn or
interleaved, and names do not depend on how many there are: an optimiser's saved state, which goes
by name, finds them again.
"""

import pyro
import torch
from jaxtyping import Bool
from pyro.poutine.runtime import _PYRO_STACK, get_mask
from torch import Tensor, nn

from pyro_dvae.nets.inputs import not_encoded
from pyro_dvae.ops.arguments import checked

__all__ = ["gets_vectors", "mask_of_latents", "register", "run_encoder"]

_MARK = "_pyro_dvae_identity"  # id() of a tensor that `register` itself put into the store


def mask_of_latents() -> Bool[Tensor, "#B 1"] | None:
    """Which latents of the program that runs a mask leaves in; None without one."""
    mask = get_mask()
    return None if mask is None else torch.as_tensor(mask, dtype=torch.bool)[..., None]


@checked
def register(name: str, net: nn.Module) -> nn.Module:
    """Declare each trainable parameter of `net` to Pyro as ``name$$$parameter``.

    Where the store already has another tensor of that name, the parameter of `net` takes its place;
    if that tensor came from elsewhere, as by ``pyro.get_param_store().load(...)``, its values are
    copied into the parameter first.

    Args:
        name: What the network is called in the program, such as "guide".
        net: The network; parameters that do not require a gradient are left out.

    Returns:
        `net` itself.

    Raises:
        ValueError: If a loaded tensor has another shape than the parameter of `net`.
    """
    store = pyro.get_param_store()
    known = dict(store.named_parameters())  # unconstrained
    for key, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        full_name = f"{name}$$${key}"
        stored = known.get(full_name, parameter)
        if stored is not parameter:
            _adopt(full_name, stored, parameter)
            store[full_name] = parameter
        pyro.param(full_name, parameter)
        setattr(parameter, _MARK, id(parameter))
    return net


def run_encoder(encoder: nn.Module, x: Tensor) -> Tensor:
    """What the encoder of a guide makes of data.

    Raises:
        ValueError: If it fails, with what data it was given.
    """
    try:
        return encoder(x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise not_encoded(x, error) from error


def gets_vectors() -> bool:
    """Whether the program that runs is handed vectors where it samples their codes."""
    return any(getattr(handler, "gives_vectors", False) for handler in _PYRO_STACK)


def _adopt(name: str, stored: Tensor, parameter: Tensor) -> None:
    """Copy values that were loaded into the store, not those of another live network."""
    if getattr(stored, _MARK, None) == id(stored):  # a loaded copy has a new id
        return
    if stored.shape != parameter.shape:
        raise ValueError(
            f"The parameter store holds `{name}` with shape {tuple(stored.shape)}, but the "
            f"network's has {tuple(parameter.shape)}. Build the network with the sizes it was "
            "saved with, or call pyro.clear_param_store()."
        )
    with torch.no_grad():
        parameter.copy_(stored)
