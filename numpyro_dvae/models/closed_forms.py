"""Parameters that follow from a posterior over all data, without a gradient.

Given a posterior, the best probability of a Bernoulli latent is the mean of that latent over data
and states, and the best variance of a Gaussian is the mean square error. A
prior or a likelihood that is built with ``learn="closed_form"`` says so to the losses by a
`ClosedForm`; what it takes to solve one is here.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import Distribution, ExpandedDistribution, MaskedDistribution

from numpyro_dvae.nets.registration import own_name

__all__ = ["ClosedForm", "check_family", "check_learn", "finite_logit", "logit_of_mean"]

_WRAPPERS = dist.Independent, ExpandedDistribution, MaskedDistribution

Learn = bool | Literal["closed_form"]


class ClosedForm(NamedTuple):
    """How a site's parameter follows from a posterior, for ``infer={"closed_form": ...}``.

    A loss that knows its posterior over all data (`infer.Truncated_ELBO`) then sets the parameter
    whenever it has seen all N data; every other loss of this package moves it towards the best of
    its batch, by a tenth of the way at each step (`infer.closed_forms`). The framework's own losses
    leave it as it is. The parameter becomes ``solve(total, count, old)``: the total over all data
    of the posterior mean of the statistic, how many data each entry of it is the total of, and the
    parameter as it was. A site may have several forms, in a tuple.

    Where `sees_latents`, the statistic is of (distribution, value, latents), the values of the
    model's latent sites by name, and returns two factors ``(*batch, R, A)`` and ``(*batch, R, B)``;
    the total is that of ``left^T right``, of the parameter's shape (A, B). So second moments, as
    of least squares, take no array for each state. See `LinearDecoder`.
    """

    target: str  # the name of the mutable state that holds the parameter
    statistic: Callable[..., Any]  # of (distribution, value), for each entry
    solve: Callable[[Array, Array, Array], Array]
    sees_latents: bool = False


def check_learn(learn: bool | str) -> None:
    """Check the argument `learn` of a prior or a likelihood.

    Raises:
        ValueError: If it is neither a truth value nor "closed_form".
    """
    if learn not in (True, False, "closed_form"):
        raise ValueError(f'`learn` must be True, False or "closed_form"; got {learn!r}.')


def check_family(fn: Distribution, family: Any, decoder: str, likelihood: str) -> None:
    """Check that a site has the distribution whose optimum a decoder's closed form is.

    Args:
        fn: The site's distribution, which may be wrapped.
        family: Its class without what wraps it, or several.
        decoder: The name of the decoder's class.
        likelihood: The name of one that has such a distribution.

    Raises:
        ValueError: If the distribution is of another class.
    """
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    if not isinstance(fn, family):
        raise ValueError(
            f'{decoder}(learn="closed_form") is for data as of {likelihood}; got '
            f"{type(fn).__name__}. Take that one, or learn the decoder by gradient."
        )


def raw_of(decoder: Any, params: Mapping[str, Any], name: str) -> Array:
    """The array that a decoder of this name learns, among trained values.

    Raises:
        ValueError: If they are not those of a program with the decoder.
    """
    if decoder.learn is False:
        return decoder.start()
    name = own_name(decoder, name)
    in_closed_form = decoder.learn == "closed_form"
    key = f"{name}$raw" if in_closed_form else f"{name}$params"
    if key not in params:
        raise ValueError(
            f"`params` must hold '{key}', as `result.params` of a training of this decoder does; "
            f"got {sorted(params)}. Pass `name`, what is before the $, if it is called otherwise."
        )
    return jnp.asarray(params[key] if in_closed_form else params[key]["raw"])


def finite_logit(probs: Array) -> Array:
    """``log p - log(1 - p)``, kept finite: p stays one rounding error away from 0 and 1."""
    eps = jnp.finfo(probs.dtype).eps
    probs = jnp.clip(probs, eps, 1.0 - eps)
    return jnp.log(probs) - jnp.log1p(-probs)


def logit_of_mean(total: Array, count: Array, old: Array) -> Array:
    """The logit of the mean; the old one where nothing was counted."""
    return jnp.where(count > 0, finite_logit(total / count), old)
