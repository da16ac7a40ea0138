"""How an automatic guide holds a discrete latent: its values, its parameters, its distribution.

A latent is a site of the model. Each of its places, the cells of its plates and of its event dims,
has one of V values and P parameters: a logit of a Bernoulli, V of all other families.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Num

from numpyro_dvae.distributions import Categorical, Counts, OneHotCategorical
from numpyro_dvae.guides.counts import (
    BOUNDED,
    UNBOUNDED,
    enough_numbers,
    mass_beyond,
    numbers_of,
    probs_of_numbers,
)
from numpyro_dvae.programs.densities import entry_mask
from numpyro_dvae.programs.readers.impossible import excludes
from numpyro_dvae.programs.sites import Site

__all__ = [
    "FullPlate",
    "Latent",
    "PriorProbs",
    "check_levels",
    "count_values",
    "draw_instead",
    "is_ordered",
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

_BINARY = dist.BernoulliProbs | dist.BernoulliLogits
_CODES = dist.CategoricalProbs | dist.CategoricalLogits
_ONE_HOT = OneHotCategorical
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
    rules_out: bool | None = False  # whether the model rules values out; None if that is traced
    possible: Any = None  # (*batch, *cells, V): values that are left, if the trials alone tell them

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
        number = int(base.logits.shape[-1])
    elif isinstance(base, BOUNDED):
        known = not (depends or isinstance(base.total_count, jax.core.Tracer))
        number = int(np.asarray(base.total_count).max()) + 1 if known else None
    elif not isinstance(base, UNBOUNDED):
        raise ValueError(
            f"site '{site.name}' ({site.family}) cannot be guided by AutoDiscrete, which takes "
            "Bernoulli, Categorical, OneHotCategorical, Binomial, Poisson and Geometric. Give it a "
            "guide of its own, in an AutoGuideList, and hide it from AutoDiscrete."
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
    reason = "depends on other latents, or on what is traced"
    advice = "the largest number that it can be, plus one"
    if isinstance(site.base, UNBOUNDED):
        reason, size = "is infinite", enough_numbers(site.base)
        advice = f"{size}, beyond which the prior has 1e-6 or less" if size else "the data suggest"
    return (
        f"site '{site.name}' ({site.family}): the number of its values {reason}, and the guide "
        f"must know how many to hold. Pass num_values={{'{site.name}': V}} for 0, ..., V - 1, with "
        f"V such as {advice}."
    )


# ---------------------------------------------------------------------------------------- the prior


class PriorProbs(NamedTuple):
    """What the model says of the values of a latent, in the mean over what it depends on."""

    probs: Float[Array, "*batch_cells V"]  # the least, whatever the state of its parents is
    cut_off: Float[Array, "*batch_cells"]  # mass beyond the V values, the largest


def prior_and_beyond(latent: Latent, site: Site) -> Float[Array, "*batch_cells values"]:
    """Probabilities of the V values under the model, given the draws before, and of all others."""
    base, probs = site.base, prior(latent, site)
    if not isinstance(base, UNBOUNDED):
        return jnp.concatenate([probs, jnp.maximum(1 - probs.sum(-1, keepdims=True), 0)], -1)
    beyond = jnp.broadcast_to(mass_beyond(base, latent.num_values), probs.shape[:-1])
    return jnp.concatenate([probs, beyond[..., None]], -1)


def prior(latent: Latent, site: Site) -> Float[Array, "*batch_cells V"]:
    """Probabilities of the V values under the model, given the draws before: 0 if never drawn."""
    base, shape = site.base, (*site.fn.batch_shape, *latent.cells)
    if isinstance(base, _BINARY):
        probs = jnp.stack([1 - base.probs, base.probs], -1)
    elif isinstance(base, _CODES):
        probs = base.probs
    elif isinstance(base, _ONE_HOT):
        probs = base.mean
    else:
        probs = probs_of_numbers(base, latent.num_values)
    probs = jnp.where(_never_drawn(latent, base), 0.0, jnp.maximum(probs, _RAREST))
    return jnp.broadcast_to(probs, (*shape, latent.num_values))


def _never_drawn(latent: Latent, base: Any) -> Bool[Array, "*batch V"]:
    numbers = numbers_of(base, latent.num_values)
    most = jnp.asarray(base.total_count) if isinstance(base, BOUNDED) else numbers
    value = value_of(latent, jnp.minimum(numbers, most))
    return jnp.moveaxis(excludes(base, value, least=-math.inf) | (numbers > most), 0, -1)


# ------------------------------------------------------------------------------------ the posterior


def posterior(latent: Latent, site: Site, logits: Float[Array, "*batch_cells P"]) -> Any:
    """The distribution with these logits: of the site's family, masked as the site is.

    Values that the model rules out, given the draws so far, have no probability.

    Raises:
        ValueError: If the model now gives the latent more values than the guide holds.
    """
    if latent.rules_out is not False or issubclass(latent.family, BOUNDED):
        logits = _ruled(latent, site, logits)
    fn: Any
    if issubclass(latent.family, _BINARY):
        fn = dist.Bernoulli(logits=logits[..., 0])
    elif issubclass(latent.family, _CODES):
        fn = Categorical(logits=logits)
    elif issubclass(latent.family, _ONE_HOT):
        fn = OneHotCategorical(logits=logits)
    else:
        fn = Counts(logits=logits)
    if hasattr(site.fn, "base_dist"):
        mask = entry_mask(site, len(latent.cells))
        fn = fn.mask(mask) if mask.size > 1 or isinstance(mask, jax.core.Tracer) else fn
    return fn.to_event(len(latent.cells)) if latent.cells else fn


def _ruled(latent: Latent, site: Site, logits: Array) -> Array:
    possible = jax.lax.stop_gradient(_possible(latent, site))
    if issubclass(latent.family, BOUNDED) and latent.is_bounded_here:
        held = jnp.asarray(site.base.total_count) < latent.num_values
        logits = jnp.where(held[..., None], logits, jnp.nan)  # traced, it cannot be refused
    if issubclass(latent.family, _BINARY):
        zero, one = possible[..., :1], possible[..., 1:]
        logits = jnp.where(one, logits, -_CERTAIN)
        return jnp.where(zero, logits, _CERTAIN)
    return jnp.where(possible, logits, -jnp.inf)


def _possible(latent: Latent, site: Site) -> Bool[Array, "*batch_cells V"]:
    """Which values the model does not rule out."""
    if isinstance(site.base, BOUNDED) and latent.is_bounded_here:
        largest = np.asarray(site.base.total_count).max() if _is_known(site.base.total_count) else 0
        if largest >= latent.num_values:
            raise ValueError(
                f"site '{latent.name}' now has numbers up to {largest}, but the guide holds "
                f"{latent.num_values} values, as its first call had. Pass "
                f"num_values={{'{latent.name}': V}} with the V that all data need."
            )
    return prior(latent, site) > 0


def _is_known(array: Any) -> bool:
    return not isinstance(array, jax.core.Tracer)


def of_trials(site: Site, batch_shape: tuple[int, ...], num_values: int) -> Any:
    """Which of V values each place of a Binomial has, ``(*batch, *cells, V)``.

    None of other families, and where the trials of some places are not known: those of rows that a
    minibatch lacks, or what is traced.
    """
    if not isinstance(site.base, BOUNDED) or tuple(site.fn.batch_shape) != tuple(batch_shape):
        return None
    if not _is_known(site.base.total_count):
        return None
    possible = np.arange(num_values) <= np.asarray(site.base.total_count)[..., None]
    return np.broadcast_to(possible, (*batch_shape, *site.fn.event_shape, num_values))


def with_ruled(latent: Latent, seen: PriorProbs) -> Latent:
    """A latent that knows whether the model rules values out, and whether trials alone do so.

    Args:
        latent: The latent.
        seen: What the model says of its values, at the start.
    """
    if isinstance(seen.probs, jax.core.Tracer):
        return latent._replace(rules_out=None, possible=None)
    left, possible = np.asarray(seen.probs > 0), latent.possible
    if possible is not None and not (possible == left).all():
        possible = None
    return latent._replace(rules_out=not left.all(), possible=possible)


# ------------------------------------------------------------------------------- values and vectors


def vectors(latent: Latent, value: Array) -> Num[Array, "*batch_cells V"]:
    """Values as one-hot vectors; those of relaxed latents are such, or nearly."""
    if issubclass(latent.family, _BINARY):
        return jnp.stack([1 - value, value], -1)
    if issubclass(latent.family, _ONE_HOT):
        return value
    if issubclass(latent.family, _CODES) and jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return jax.nn.one_hot(value, latent.num_values)


def value_of(latent: Latent, codes: Array) -> Array:
    """Codes ``(*batch_cells)`` as a value of the site."""
    if issubclass(latent.family, _ONE_HOT):
        codes = jax.nn.one_hot(codes, latent.num_values)
    return codes.astype(latent.dtype)


def probs_of_values(
    latent: Latent, logits: Float[Array, "*batch_cells P"]
) -> Float[Array, "*batch_cells V"]:
    """The probabilities of the values, of a guide that has these logits."""
    if latent.num_logits < latent.num_values:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], -1)
    if latent.possible is not None:
        logits = jnp.where(latent.possible, logits, -jnp.inf)
    return jax.nn.softmax(logits, -1)


def quantile(latent: Latent, probs: Float[Array, "*batch_cells V"], level: float) -> Array:
    """The smallest value up to which the probability is at least `level`."""
    below = (jnp.cumsum(probs, -1) < level - 1e-6).sum(-1)
    return value_of(latent, jnp.minimum(below, latent.num_values - 1))


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
    if latent.rules_out is None:
        return (
            "was first seen under jax.jit (call svi.init without it), which does not tell what "
            "values it can have"
        )
    ruled = latent.rules_out and latent.possible is None
    return "cannot have all values everywhere" if ruled else ""


def draw_instead(name: str, reason: str) -> str:
    """What is said where parameters do not tell the probabilities of a site."""
    return (
        f"site '{name}' {reason}, so that its probabilities are not to be read off its "
        "parameters. Use diagnostics.discrete_posterior, which draws."
    )
