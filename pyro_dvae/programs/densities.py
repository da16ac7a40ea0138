"""Log-densities of sites, and where a mask is that silences them.

A mask silences a log-density, never a draw. `Site.scaled` applies that of a handler
(`poutine.mask`); a distribution applies its own (`.mask(...)`), as does `fast_log_prob`.

That function is for many states at once. Torch broadcasts a distribution's parameters to the shape
of all its draws and then works on each copy: for a thousand data and hundreds of states that is
several times the cost of a decoder. Here a parameter that was only expanded is worked on once, and
sums over a datum's entries become products of matrices. The values are the same, to rounding.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool
from pyro import distributions as dist
from pyro.distributions.util import broadcast_shape, scale_and_mask
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional

from pyro_dvae.programs.sites import Site

__all__ = [
    "cell_log_prob",
    "changed",
    "count_cells",
    "entropy_of",
    "entry_mask",
    "fast_log_prob",
    "has_inverse",
    "is_masked",
    "without_mask",
]

_NORMAL = torch.distributions.Normal.log_prob
_BERNOULLI = torch.distributions.Bernoulli.log_prob


def fast_log_prob(site: Site) -> Tensor:
    """Log-density of a model's site; the distribution's own, if there is no faster way."""
    fn, num_dims, masks = site.fn, 0, []
    while isinstance(fn, dist.Independent | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            masks.append((fn._mask, num_dims))
        else:
            num_dims += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    kind = getattr(type(fn), "log_prob", None)
    within = all(inner == num_dims and isinstance(mask, Tensor) for mask, inner in masks)
    is_plain = kind in (_NORMAL, _BERNOULLI) and within and len(masks) < 2
    if not (is_plain and num_dims and fn.batch_shape.numel()):
        return site.log_prob()
    if site.is_observed and fn._validate_args and not _is_real(fn, site.value):
        fn._validate_sample(site.value)
    mask = unexpanded(masks[0][0]) if masks else None
    value = site.value.expand(broadcast_shape(site.value.shape, site.fn.event_shape))
    if kind is _NORMAL:
        value = _normal(fn.loc, fn.scale, value, mask, num_dims)
    else:
        value = _bernoulli(fn.logits, value, mask, num_dims)
    return value.expand(broadcast_shape(value.shape, site.fn.batch_shape))


def _is_real(fn: Any, value: Tensor) -> bool:
    """Whether values may be any real numbers, and are: a sum finds a NaN by less than a look."""
    if fn.support is not constraints.real or value.shape != fn.batch_shape:
        return False
    return not value.detach().sum().isnan()


def _normal(
    loc: Tensor, scale: Tensor, value: Tensor, mask: Tensor | None, num_dims: int
) -> Tensor:
    dims, scale = tuple(range(-num_dims, 0)), unexpanded(scale)
    num_scales = scale.shape[-num_dims:].numel()
    value, loc = torch.broadcast_tensors(value, loc)  # in which either may be one for several
    event = loc.shape[-num_dims:]
    square = functional.mse_loss(loc, value, reduction="none")  # fused, in one piece of memory
    log_norm = scale.log() + 0.5 * math.log(2 * math.pi)
    has_gradient = square.requires_grad or scale.requires_grad
    if mask is None and scale.numel() == num_scales and not has_gradient:
        weights = (-0.5 / scale.square()).reshape(scale.shape[-num_dims:]).expand(event)
        offset = log_norm.sum() * (event.numel() / num_scales)
        return _affine(square.flatten(-num_dims), weights.contiguous().flatten(), -offset)
    if num_scales > 1:
        square = square / scale.square()
    if mask is not None:  # which, as a scale, may be one for several entries
        square, log_norm = (torch.where(mask, each, 0.0) for each in (square, log_norm))
    num_copies = square.shape[-num_dims:].numel() / log_norm.shape[-num_dims:].numel()
    square, log_norm = square.sum(dims), log_norm.sum(dims) * num_copies
    if num_scales == 1:
        square = square / scale.square().sum(dims)
    return -0.5 * square - log_norm


def _bernoulli(logits: Tensor, value: Tensor, mask: Tensor | None, num_dims: int) -> Tensor:
    """``sum z a - log(1 + e^a)`` with the logits a."""
    dims, event = tuple(range(-num_dims, 0)), value.shape[-num_dims:]
    logits, value = unexpanded(logits), value.to(logits.dtype)
    if mask is not None:
        cells = torch.where(mask, value * logits - functional.softplus(logits), 0.0)
        return cells.sum(dims)
    log_norm = functional.softplus(logits).sum(dims)
    log_norm = log_norm * (event.numel() / logits.shape[-num_dims:].numel())
    if logits.numel() == event.numel() == logits.shape[-num_dims:].numel():
        return _affine(value.flatten(-num_dims), logits.flatten(), -log_norm.flatten())
    return (value * logits).sum(dims) - log_norm


def _affine(rows: Tensor, weights: Tensor, offset: Tensor) -> Tensor:
    """A matrix times a vector, plus a number; with all digits under autocast, too."""
    if torch.is_autocast_enabled(rows.device.type):
        return (rows * weights).sum(-1) + offset
    sums = torch.addmv(offset.reshape(1), rows.reshape(-1, len(weights)), weights)
    return sums.view(rows.shape[:-1])


def unexpanded(value: Tensor) -> Tensor:
    """One of the copies that `expand` has made, in size 1."""
    for dim, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
        if size > 1 and stride == 0:
            value = value.narrow(dim, 0, 1)
    return value


_IN_DOUBLE = 1e-9  # rounding of log-densities, of themselves and of a nat


def entry_mask(site: Site, entries: int) -> Bool[Tensor, "*batch_entries"]:
    """Where no mask, of a handler or of the distribution, silences an entry of a site.

    Entries are the cells of the `entries` event dims that the distribution takes as independent.
    """
    mask = torch.ones((1,) * entries, dtype=torch.bool)
    if site.mask is not None:
        mask = _both(mask, site.mask, entries)
    fn, inner = site.fn, 0  # event dims that belong to the batch of this inner distribution
    while hasattr(fn, "base_dist"):
        if isinstance(fn, dist.MaskedDistribution):
            mask = _both(mask, fn._mask, entries - inner)
        inner += getattr(fn, "reinterpreted_batch_ndims", 0)
        fn = fn.base_dist
    return mask


def _both(mask: Tensor, other: bool | Tensor, missing: int) -> Tensor:
    """Two masks, the other with `missing` event dims fewer."""
    other = torch.as_tensor(other, dtype=torch.bool)
    return mask.to(other.device) & other.reshape((*other.shape, *[1] * missing))


def count_cells(fn: Any) -> int:
    """Event dims whose entries have a log-density of their own."""
    if isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
        return count_cells(fn.base_dist)
    if isinstance(fn, dist.Independent):
        return fn.reinterpreted_batch_ndims + count_cells(fn.base_dist)
    return 1 if hasattr(fn, "conditional_log_prob") else 0


def cell_log_prob(fn: Any, value: Tensor, num_cells: int) -> Tensor:
    """Log-density of each cell, over the last `num_cells` dims; 0 where `fn` masks it itself."""
    if not num_cells:
        return fn.log_prob(value)
    if isinstance(fn, dist.MaskedDistribution):
        mask = torch.as_tensor(fn._mask)
        scores = cell_log_prob(fn.base_dist, value, num_cells)
        return torch.where(mask.reshape(mask.shape + (1,) * num_cells), scores, 0.0)
    if isinstance(fn, dist.ExpandedDistribution):
        return cell_log_prob(fn.base_dist, value, num_cells)
    if isinstance(fn, dist.Independent):
        num_cells = num_cells - fn.reinterpreted_batch_ndims
        return cell_log_prob(fn.base_dist, value, num_cells)
    return fn.conditional_log_prob(value)


def without_mask(fn: Any) -> Any:
    """The distribution that draws are made from."""
    if isinstance(fn, dist.MaskedDistribution):
        return without_mask(fn.base_dist)
    if not isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        return fn
    base = without_mask(fn.base_dist)
    if base is fn.base_dist:
        return fn
    if isinstance(fn, dist.ExpandedDistribution):
        return base.expand(fn.batch_shape)
    return base.to_event(fn.reinterpreted_batch_ndims)


def is_masked(site: Site) -> bool:
    """Whether a site is under a mask, whatever it silences."""
    return site.mask is not None or without_mask(site.fn) is not site.fn


def changed(one: Tensor, two: Tensor, in_single: float) -> Bool[Tensor, "..."]:
    """Where log-densities differ by more than rounding, when masked latents have other values.

    Args:
        one: The log-densities.
        two: The same with other values.
        in_single: What rounding is in single precision, of themselves and of a nat; in double
            precision it is 1e-9, so that weak traces show.
    """
    in_double = torch.promote_types(one.dtype, two.dtype) == torch.float64
    most = _IN_DOUBLE if in_double else in_single
    return ~torch.isclose(one, two, rtol=most, atol=most, equal_nan=True)


def entropy_of(fn: Any, value: Tensor) -> Tensor | None:
    """Closed form, or closed form per step given the earlier codes (autoregressive guides)."""
    if hasattr(fn, "conditional_entropy"):
        return fn.conditional_entropy(value)
    if without_mask(fn) is not fn:
        return _masked_entropy(fn, value)
    try:
        return fn.entropy()
    except (NotImplementedError, AttributeError):  # PyTorch's Multinomial, once it is expanded
        return None


def _masked_entropy(fn: Any, value: Tensor) -> Tensor | None:
    """Of a distribution with a mask somewhere within: nothing where it silences."""
    entropy = entropy_of(fn.base_dist, value)
    if entropy is None:
        return None
    if isinstance(fn, dist.MaskedDistribution):
        return scale_and_mask(entropy, mask=fn._mask)
    if isinstance(fn, dist.ExpandedDistribution):
        return entropy.expand(fn.batch_shape)
    return entropy.sum(tuple(range(-fn.reinterpreted_batch_ndims, 0)))


def has_inverse(site: Site) -> bool:
    """Whether a site's log-density can be told of a value without how that was drawn."""
    try:
        site.fn.log_prob(site.value.clone())
    except (NotImplementedError, KeyError):  # Pyro's flows look for what they have drawn
        return False
    return True
