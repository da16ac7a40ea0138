"""The rate of a latent without the noise of its own draw: KL(q ‖ p) given the draws before it."""

import math
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions.kl import kl_divergence
from torch.nn.functional import logsigmoid

from pyro_dvae.programs.densities import entry_mask, is_masked
from pyro_dvae.programs.readers.impossible import excludes, has_zeros
from pyro_dvae.programs.sites import Run, Site
from pyro_dvae.programs.summing.values import joint_latents

__all__ = ["expected_rate", "is_reordered"]

_MOST_VALUES = 2**25  # of a table: more would take longer than draws


def expected_rate(guide_site: Site, site: Site, num_cells: int) -> Tensor | None:
    """E[log q - log p] of each cell of a latent, where guide and model have the same cells.

    By a sum over its values, if the guide's can be listed, or in closed form; None if there is
    neither, as of networks whose cells depend on each other.

    Args:
        guide_site: The guide's site.
        site: The model's.
        num_cells: Event dims that are cells: the other dims of an event are of one latent.
    """
    q, p = guide_site.base, site.base
    if any(each.fn.event_dim - each.base.event_dim != num_cells for each in (guide_site, site)):
        return None
    if isinstance(q, dist.Delta) or any(hasattr(fn, "conditional_log_prob") for fn in (q, p)):
        return None  # a point has the log-density that it was given
    masked = any(is_masked(each) for each in (guide_site, site))
    parts = _by_values(q, p)
    if parts is None:
        return None if masked else _closed(q, p, site.value)
    if not masked:
        return parts[0] - parts[1]
    masks = [entry_mask(each, num_cells) for each in (guide_site, site)]
    one, two = (torch.where(mask, part, 0.0) for mask, part in zip(masks, parts, strict=True))
    return one - two


def is_reordered(name: str, run: Run) -> bool:
    """Whether the guide draws a latent before others that come before it in the model.

    What the model says of it then depends on draws that may depend on it, so that no sum over its
    values, given the other draws, is the rate; the mean over the draws is.
    """
    places = {each: place for place, each in enumerate(run.guide)}
    joint = {n for latents in joint_latents(run.model).values() if name in latents for n in latents}
    before = [n for n in list(run.model)[: list(run.model).index(name)] if n not in joint]
    return any(places.get(each, -1) > places[name] for each in before)


def _by_values(q: Any, p: Any) -> tuple | None:
    """E[log q] and E[log p], by a sum over the values of q; None if these cannot be listed."""
    if not getattr(q, "has_enumerate_support", False):
        return None
    if getattr(q, "num_codes", 0) > _MOST_VALUES:
        return None
    try:
        values = q.enumerate_support(expand=False)
    except NotImplementedError:
        return None
    num_batch = max(len(fn.batch_shape) for fn in (q, p))
    if len(values) * max(math.prod(fn.batch_shape) for fn in (q, p)) > _MOST_VALUES:
        return None
    values = values.reshape(len(values), *[1] * num_batch, *q.event_shape)
    if not bool(p.support.check(values).all()):
        return None
    try:
        log_q, never = q.log_prob(values), excludes(q, values)
        log_p = torch.where(has_zeros(p, values), -torch.inf, p.log_prob(values))
    except NotImplementedError:  # of a family without batches, as trees
        return None
    probs = torch.where(never, 0.0, log_q.exp())
    log_q, log_p = (torch.where(probs > 0, each, 0.0) for each in (log_q, log_p))
    return (probs * log_q).sum(0), (probs * log_p).sum(0)


def _closed(q: Any, p: Any, value: Tensor) -> Tensor | None:
    """KL(q ‖ p) by its formula; of counts of other numbers of trials, what a draw says of it."""
    if isinstance(q, dist.Poisson) and isinstance(p, dist.Poisson):
        log_ratio = torch.where(q.rate > 0, (q.rate / p.rate).log(), 0.0)
        return q.rate * log_ratio - q.rate + p.rate
    if isinstance(q, dist.Binomial) and isinstance(p, dist.Binomial):
        by_formula = q.total_count * sum(_of_outcomes(q, p))
        by_draw = q.log_prob(value) - p.log_prob(value)
        return torch.where(q.total_count == p.total_count, by_formula, by_draw)
    if isinstance(q, dist.Geometric) and isinstance(p, dist.Geometric):
        return sum(_of_outcomes(q, p)) / q.probs  # so many trials
    if {type(q), type(p)} == {dist.ContinuousBernoulli, dist.Uniform}:
        return None  # Torch's is infinite where the two have the same bounds
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _of_outcomes(q: Any, p: Any) -> tuple[Tensor, Tensor]:
    """What success and failure of one trial have in its KL(q ‖ p)."""
    chances = (q.probs, 1 - q.probs)
    ratios = [logsigmoid(s * q.logits) - logsigmoid(s * p.logits) for s in (1, -1)]
    one, two = (torch.where(c > 0, c * r, 0.0) for c, r in zip(chances, ratios, strict=True))
    return one, two
