"""How an automatic guide holds a discrete latent: its values, its parameters, its distribution.

A latent is a site of the model. Each of its places, the cells of its plates and of its event dims,
has one of V values and P parameters: a logit of a Bernoulli, V of all other families.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Num
from pyro import distributions as dist
from torch import Tensor
from torch.nn import functional

from pyro_dvae.distributions import Categorical, Counts, OneHotCategorical
from pyro_dvae.guides.counts import (
    BOUNDED,
    UNBOUNDED,
    enough_numbers,
    mass_beyond,
    numbers_of,
    probs_of_numbers,
)
from pyro_dvae.programs.densities import entry_mask
from pyro_dvae.programs.readers.impossible import excludes
from pyro_dvae.programs.sites import Site

__all__ = [
    "FullPlate",
    "Latent",
    "PriorProbs",
    "check_levels",
    "count_values",
    "draw_instead",
    "is_ordered",
    "of_call",
    "of_trials",
    "posterior",
    "prior_and_beyond",
    "probs_of_values",
    "quantile",
    "value_of",
    "vectors",
    "why_unread",
    "with_ruled",
]

_BINARY = torch.distributions.Bernoulli
_CODES = torch.distributions.Categorical
_ONE_HOT = torch.distributions.OneHotCategorical
_CERTAIN = 100.0  # logit of a Bernoulli that can have one value alone; finite, for finite slopes
_RAREST = 1e-30  # probability of what is too rare to be told from 0, and is not


class FullPlate(NamedTuple):
    """A plate that a latent is under."""

    name: str
    dim: int
    size: int  # before subsampling


class Latent(NamedTuple):
    """A discrete site as an automatic guide holds it."""

    name: str
    family: type  # of its distribution in the model
    num_values: int  # V
    is_bounded_here: bool  # whether V follows from the model; else it was given
    plates: tuple[FullPlate, ...]
    batch_shape: tuple[int, ...]  # plates before subsampling
    cells: tuple[int, ...]  # event dims that hold one value each
    dtype: Any  # of its values
    parents: tuple[str, ...] = ()
    table: bool = True  # whether each joint state of the parents has parameters of its own
    num_features: int = 1  # F, rows of the parameters: 1 without parents
    rules_out: bool = False  # whether the model has ruled values out, somewhere
    possible: Any = None  # (*batch, *cells, V): values that are left, if the trials alone tell them
    always: bool = True  # whether each run has it

    @property
    def num_logits(self) -> int:
        """P, parameters of a place."""
        return 1 if issubclass(self.family, _BINARY) else self.num_values


def count_values(site: Site, bound: int | None, depends: bool) -> int:
    """V of a site: the model's own, or the bound of one that has none.

    Args:
        site: A discrete latent.
        bound: V, as the user has given it.
        depends: Whether the number of values depends on other latents.

    Raises:
        ValueError: If the family is not known, V is not, or both are and differ.
    """
    base, number = site.base, None
    if isinstance(base, _BINARY):
        number = 2
    elif isinstance(base, _CODES | _ONE_HOT):
        number = int(base.probs.shape[-1])
    elif isinstance(base, BOUNDED):
        number = None if depends else int(base.total_count.max()) + 1
    elif not isinstance(base, UNBOUNDED):
        raise ValueError(
            f"site '{site.name}' ({site.family}) cannot be guided by AutoDiscrete, which takes "
            "Bernoulli, Categorical, OneHotCategorical, Binomial, Poisson and Geometric. Give it a "
            "guide of its own, in an AutoGuideList and under the plates of this (`with "
            "guides.plates['data']:`), and hide it from AutoDiscrete."
        )
    if isinstance(base, _BINARY | _CODES | _ONE_HOT) and bound not in (None, number):
        raise ValueError(
            f"`num_values`: site '{site.name}' ({site.family}) has {number} values; got {bound}. "
            "Leave it out."
        )
    found = number if bound is None else bound
    if found is None:
        raise ValueError(_no_bound(site))
    return found


def _no_bound(site: Site) -> str:
    reason, advice = "depends on other latents", "the largest number that it can be, plus one"
    if isinstance(site.base, UNBOUNDED):
        reason = "is infinite"
        advice = f"{enough_numbers(site.base)}, beyond which the prior has 1e-6 or less"
    return (
        f"site '{site.name}' ({site.family}): the number of its values {reason}, and the guide "
        f"must know how many to hold. Pass num_values={{'{site.name}': V}} for 0, ..., V - 1, with "
        f"V such as {advice}."
    )


# ---------------------------------------------------------------------------------------- the prior


class PriorProbs(NamedTuple):
    """What the model says of the values of a latent, in the mean over what it depends on."""

    probs: Float[Tensor, "*batch_cells V"]  # the least, whatever the state of its parents is
    cut_off: Float[Tensor, "*batch_cells"]  # mass beyond the V values, the largest


def prior_and_beyond(latent: Latent, site: Site) -> Float[Tensor, "*batch_cells values"]:
    """Probabilities of the V values under the model, given the draws before, and of all others."""
    base, probs = site.base, prior(latent, site)
    if not isinstance(base, UNBOUNDED):
        return torch.cat([probs, (1 - probs.sum(-1, keepdim=True)).clamp(min=0)], -1)
    beyond = mass_beyond(base, latent.num_values).expand(probs.shape[:-1])
    return torch.cat([probs, beyond[..., None]], -1)


def prior(latent: Latent, site: Site) -> Float[Tensor, "*batch_cells V"]:
    """Probabilities of the V values under the model, given the draws before: 0 if never drawn."""
    base, shape = site.base, (*site.fn.batch_shape, *latent.cells)
    if isinstance(base, _BINARY):
        probs = torch.stack([1 - base.probs, base.probs], -1)
    elif isinstance(base, _CODES | _ONE_HOT):
        probs = base.probs
    else:
        probs = probs_of_numbers(base, latent.num_values)
    probs = torch.where(_never_drawn(latent, base), 0.0, probs.clamp(min=_RAREST))
    return probs.expand(*shape, latent.num_values)


def _never_drawn(latent: Latent, base: Any) -> Bool[Tensor, "*batch V"]:
    numbers = numbers_of(base, latent.num_values)
    most = base.total_count if isinstance(base, BOUNDED) else numbers
    value = value_of(latent, torch.minimum(numbers, most).long())
    return (excludes(base, value, least=-math.inf) | (numbers > most)).movedim(0, -1)


# ------------------------------------------------------------------------------------ the posterior


def posterior(latent: Latent, site: Site, logits: Float[Tensor, "*batch_cells P"]) -> Any:
    """The distribution with these logits: of the site's family, masked as the site is.

    Values that the model rules out, given the draws so far, have no probability.

    Raises:
        ValueError: If the model now gives the latent more values than the guide holds.
    """
    if latent.rules_out or issubclass(latent.family, BOUNDED):
        logits = _ruled(latent, site, logits)
    fn: Any
    if issubclass(latent.family, _BINARY):
        fn = dist.Bernoulli(logits=logits.squeeze(-1))
    elif issubclass(latent.family, _CODES):
        fn = Categorical(logits=logits)
    elif issubclass(latent.family, _ONE_HOT):
        fn = OneHotCategorical(logits=logits)
    else:
        fn = Counts(logits=logits)
    if hasattr(site.fn, "base_dist"):
        mask = entry_mask(site, len(latent.cells))
        fn = fn if mask.numel() == 1 and bool(mask) else fn.mask(mask)
    return fn.to_event(len(latent.cells)) if latent.cells else fn


def _ruled(latent: Latent, site: Site, logits: Tensor) -> Tensor:
    with torch.no_grad():
        possible = _possible(latent, site)
    if issubclass(latent.family, _BINARY):
        zero, one = possible[..., :1], possible[..., 1:]
        logits = torch.where(one, logits, -_CERTAIN)
        return torch.where(zero, logits, _CERTAIN)
    return torch.where(possible, logits, -torch.inf)


def _possible(latent: Latent, site: Site) -> Bool[Tensor, "*batch_cells V"]:
    """Which values the model does not rule out."""
    _check_bound(latent, site)
    return prior(latent, site) > 0


def _check_bound(latent: Latent, site: Site) -> None:
    if isinstance(site.base, BOUNDED) and latent.is_bounded_here:
        largest = int(site.base.total_count.max())
        if largest >= latent.num_values:
            raise ValueError(
                f"site '{latent.name}' now has numbers up to {largest}, but the guide holds "
                f"{latent.num_values} values, as its first call had. Pass "
                f"num_values={{'{latent.name}': V}} with the V that all data need."
            )


def of_call(latent: Latent, site: Site) -> Latent:
    """A latent with the trials that a call has, if it is one whose trials tell what is left.

    Args:
        latent: The latent, as the first call had it.
        site: The site of this call; where it has other rows than all, those trials stay.
    """
    if latent.possible is None:
        return latent
    _check_bound(latent, site)
    possible = of_trials(site, latent.batch_shape, latent.num_values)
    return latent if possible is None else latent._replace(possible=possible)


def of_trials(site: Site, batch_shape: tuple[int, ...], num_values: int) -> Any:
    """Which of V values each place of a Binomial has, ``(*batch, *cells, V)``.

    None of other families, and where the trials of some places are not known: those of rows that a
    minibatch lacks.
    """
    if not isinstance(site.base, BOUNDED) or tuple(site.fn.batch_shape) != tuple(batch_shape):
        return None
    count = site.base.total_count.detach()
    possible = torch.arange(num_values, device=count.device) <= count.unsqueeze(-1)
    return possible.expand(*batch_shape, *site.fn.event_shape, num_values)


def with_ruled(latent: Latent, seen: PriorProbs) -> Latent:
    """A latent that knows whether the model rules values out, and whether trials alone do so.

    Args:
        latent: The latent.
        seen: What the model says of its values, at the start.
    """
    left, possible = seen.probs > 0, latent.possible
    if possible is not None and not bool((possible == left).all()):
        possible = None
    return latent._replace(rules_out=not bool(left.all()), possible=possible)


# ------------------------------------------------------------------------------- values and vectors


def vectors(latent: Latent, value: Tensor) -> Num[Tensor, "*batch_cells V"]:
    """Values as one-hot vectors; those of relaxed latents are such, or nearly."""
    if issubclass(latent.family, _BINARY):
        return torch.stack([1 - value, value], -1)
    if issubclass(latent.family, _ONE_HOT):
        return value
    if issubclass(latent.family, _CODES) and value.is_floating_point():
        return value
    return functional.one_hot(value.long(), latent.num_values)


def value_of(latent: Latent, codes: Tensor) -> Tensor:
    """Codes ``(*batch_cells)`` as a value of the site."""
    if issubclass(latent.family, _ONE_HOT):
        codes = functional.one_hot(codes, latent.num_values)
    return codes.to(latent.dtype)


def probs_of_values(
    latent: Latent, logits: Float[Tensor, "*batch_cells P"]
) -> Float[Tensor, "*batch_cells V"]:
    """The probabilities of the values, of a guide that has these logits."""
    if latent.num_logits < latent.num_values:
        logits = torch.cat([torch.zeros_like(logits), logits], -1)
    if latent.possible is not None:
        logits = torch.where(latent.possible.to(logits.device), logits, -torch.inf)
    return logits.softmax(-1)


def quantile(latent: Latent, probs: Float[Tensor, "*batch_cells V"], level: float) -> Tensor:
    """The smallest value up to which the probability is at least `level`."""
    below = (probs.cumsum(-1) < level - 1e-6).sum(-1)
    return value_of(latent, below.clamp(max=latent.num_values - 1))


def is_ordered(latent: Latent) -> bool:
    """Whether its values are numbers, rather than names."""
    return not issubclass(latent.family, _CODES | _ONE_HOT)


def check_levels(quantiles: Any) -> list[float]:
    """The numbers whose quantiles are asked for.

    Raises:
        ValueError: If they are none, or not from 0 to 1.
    """
    try:
        levels = [float(level) for level in quantiles]
    except (TypeError, ValueError):
        levels = []
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise ValueError(
            f"`quantiles` must be a sequence of numbers from 0 to 1, as [0.05, 0.95]; got "
            f"{quantiles!r}."
        )
    return levels


def why_unread(latent: Latent) -> str:
    """Why the parameters do not tell the probabilities of a latent; nothing if they do."""
    if not latent.always:
        return "is not in each run"
    ruled = latent.rules_out and latent.possible is None
    return "cannot have all values everywhere" if ruled else ""


def draw_instead(name: str, reason: str) -> str:
    """What is said where parameters do not tell the probabilities of a site."""
    return (
        f"site '{name}' {reason}, so that its probabilities are not to be read off its "
        "parameters. Use diagnostics.discrete_posterior, which draws."
    )
