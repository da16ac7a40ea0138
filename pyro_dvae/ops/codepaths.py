"""Ways past the choice of a code: vectors of codes with a gradient to what chose them.

A vector z is replaced by e, that of its code, and the choice has no gradient. Each function here
gives the decoder e, with a derivative of its own in place of the one that is missing:

- straight-through [1]: that of z, the identity;
- the rotation trick [2]: that of ``λ R z``, with R the rotation that takes z to the direction of e
  and ``λ = |e| / |z|``, both constant: a gradient keeps its angle to the vector that it is of;
- DiVeQ [3]: that of ``z + |e - z| u``, with u the constant direction of ``e - z``. A gradient along
  the error goes to the code, what is across goes to z, so that the codebook learns from the loss of
  the model alone. In training noise turns u a little: the decoder sees an input moved by as much in
  nearly the direction of its code, and learns to decode what is around a code. Without a gradient
  there is no noise, and it sees e.

Straight-through and rotated gradients never reach e. It is held to z by a penalty, and z to e.

Shapes: vectors are ``(*batch, D)``.

References:
    [1] van den Oord, Vinyals & Kavukcuoglu. Neural discrete representation learning. NeurIPS, 2017.
    [2] Fifty, Junkins, Duan, Iyengar, Liu, Amid, Thrun & Ré. Restructuring vector quantization with
        the rotation trick. ICLR, 2025. Section 4.2.
    [3] Vali, Bäckström & Solin. DiVeQ: differentiable vector quantization using the
        reparameterization trick. ICLR, 2026.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_dvae.ops.relaxing import with_slope

__all__ = ["Route", "diveq", "rotation_trick", "straight_through_codes"]


class Route(NamedTuple):
    """Where gradients go: through the decoder, and by the penalty that holds z and e together."""

    path: Float[Tensor, "*batch D"]  # e, as the decoder sees it
    inputs: Float[Tensor, "*batch D"]  # z, as the penalty sees it
    vectors: Float[Tensor, "*batch D"]  # e, as the penalty sees it


def straight_through_codes(
    inputs: Float[Tensor, "*batch D"], vectors: Float[Tensor, "*batch D"]
) -> Route:
    """The codes' vectors, with the gradient of the inputs [1]."""
    return Route(with_slope(vectors, inputs), inputs, vectors)


def rotation_trick(inputs: Float[Tensor, "*batch D"], vectors: Float[Tensor, "*batch D"]) -> Route:
    """The codes' vectors, with the gradient of inputs that are turned and scaled to them [2].

    With unit vectors a of z and b of e, and c that of a + b, ``R = 1 - 2 c cᵀ + 2 b aᵀ``. Where a
    and b are opposite there are many rotations; c = 0 then makes R a reflection. An input of 0 has
    no direction: it gets the gradient of its code, straight-through.
    """
    fixed = inputs.detach(), vectors.detach()
    sizes = [_norm(array) for array in fixed]
    a, b = (_unit(array, size) for array, size in zip(fixed, sizes, strict=True))
    sum_of_both, is_zero = a + b, sizes[0] == 0
    c = torch.where(is_zero, 0.0, _unit(sum_of_both, _norm(sum_of_both)))
    ratio = torch.where(is_zero, 1.0, sizes[1] / sizes[0])
    turned = torch.addcmul(inputs, _dot(inputs, c), -2 * c)
    turned = ratio * torch.addcmul(turned, _dot(inputs, a), 2 * b)
    return Route(with_slope(vectors, turned), inputs, vectors)


def diveq(
    inputs: Float[Tensor, "*batch D"],
    vectors: Float[Tensor, "*batch D"],
    noise: Float[Tensor, "*batch D"] | None = None,
) -> Route:
    """The codes' vectors, with the gradient of inputs that move to them in a straight line [3].

    Nothing else moves the codebook: the penalty sees constants. An input that is its code has the
    gradient to itself.

    Args:
        inputs: z.
        vectors: e.
        noise: What is added to ``e - z`` before its direction is taken. Where a gradient is taken,
            the path then is ``z + |e - z| u`` with that direction, instead of e.
    """
    fixed = (vectors - inputs).detach()
    u = _unit(fixed, _norm(fixed))
    # The derivative of |e - z| is u: that of the whole is (1 - u uᵀ) dz + u uᵀ de.
    size = _dot(vectors - inputs, u)
    if noise is not None and torch.is_grad_enabled():
        path = inputs + size * _unit(fixed + noise, _norm(fixed + noise))
    else:
        path = with_slope(vectors, inputs + size * u)
    return Route(path, inputs.detach(), vectors.detach())


def _norm(array: Tensor) -> Tensor:
    return torch.linalg.vector_norm(array, dim=-1, keepdim=True)


def _unit(array: Tensor, size: Tensor) -> Tensor:
    """The direction; 0 has none."""
    return array / torch.where(size == 0, 1.0, size)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(-1, keepdim=True)
