"""The handler that relaxes the discrete sites of a program, and checks that their values fit.

Each chosen site that is not observed draws from the relaxed form of its distribution, a
`PathwiseBernoulli` or a `PathwiseCategorical`. Codes, which are integers, become vectors.
"""

from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger

from pyro_dvae.distributions import CertainCategorical, PathwiseBernoulli, PathwiseCategorical
from pyro_dvae.programs.handlers.slopes import LostSlope
from pyro_dvae.programs.messages import is_subsample
from pyro_dvae.programs.sites import Site

__all__ = ["RefusalError", "Relaxing", "not_followed", "not_taken", "relaxed"]


class RefusalError(ValueError):
    """A refusal whose message tells the user what to do; callers pass it on unchanged."""


class Relaxing(Messenger):
    """Replace the distributions of chosen sites, and check that their values fit.

    Args:
        sites: Their names; None for all that can be relaxed.
        options: Of the relaxed distributions: method, temperature, number of Gumbels.
    """

    def __init__(self, sites: tuple[str, ...] | None, options: dict[str, Any]) -> None:
        super().__init__()
        self.sites, self.options = sites, options
        self.met: set[str] = set()
        self.codes: set[str] = set()  # sites whose integers become vectors
        self.vectors: dict[str, int] = {}  # those that have a value, over so many codes
        self.draws: dict[str, Any] = {}  # of all sites, and parameters
        self.relaxed: set[str] = set()
        self.vectored: dict[str, Any] = {}  # distributions of those that are vectors over codes

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if is_subsample(msg) or (self.sites is not None and name not in self.sites):
            return
        self.met.add(name)
        site = Site.of(msg)
        if isinstance(site.base, CertainCategorical):
            raise RefusalError(_certain(name))
        fn = None if site.is_observed else relaxed(site.fn, self.options)
        if fn is not None:
            if isinstance(site.base, torch.distributions.Categorical):
                self.codes.add(name)
            msg["fn"] = fn
            self.relaxed.add(name)
        elif self.sites is not None:
            raise RefusalError(_refused(site))

    def _pyro_post_param(self, msg: Any) -> None:
        self.draws[msg["name"]] = msg["value"]

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            return
        self.draws[msg["name"]] = msg["value"]
        if is_subsample(msg):
            return
        site = Site.of(msg)
        name, value, event = site.name, site.value, tuple(site.fn.event_shape)
        is_vector = isinstance(site.base, PathwiseCategorical)
        if name in self.relaxed and is_vector and not site.is_auxiliary:
            self.vectored[name] = site.fn
        fits = tuple(value.shape[value.dim() - len(event) :]) == event
        if msg.get("is_quantised"):
            if name in self.codes:
                raise RefusalError(_certain(name))
        elif name in self.codes:
            if not (fits and value.is_floating_point()):
                raise RefusalError(_half_relaxed(name, "relaxed", "not"))
            self.vectors[name] = event[-1]
        elif not fits and getattr(site.fn.support, "is_discrete", False):
            raise RefusalError(_half_relaxed(name, f"{site.family}, not relaxed", "relaxed"))

    def expect_twin(self) -> None:
        """Let Pyro's losses say so where a draw of a guide meets a model that is not relaxed.

        Pyro's one-hot densities look up where the largest entry is, and hand the vector no
        gradient. Losses of Pyro ask the guide's distributions for the parts of a score once the
        model has been run.
        """
        for name, fn in self.vectored.items():
            value = self.draws[name]
            if hasattr(value, "_met"):  # of a guide's run before this one, the model's
                value._met.append(name)
            else:
                value._met = []
                fn.score_parts = partial(_parts_of_twin, fn, name)


def _parts_of_twin(fn: Any, name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
    if value.requires_grad and not getattr(value, "_met", True):
        raise RefusalError(_alone(name))
    return type(fn).score_parts(fn, value, *args, **kwargs)


def relaxed(fn: Any, options: dict[str, Any]) -> Any:
    """The relaxed form of a distribution, its wrappers kept; None if it has none."""
    if isinstance(fn, torch.distributions.Independent):
        base = relaxed(fn.base_dist, options)
        return base if base is None else base.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        base = relaxed(fn.base_dist, options)
        return base if base is None else base.mask(fn._mask)
    if isinstance(fn, dist.ExpandedDistribution):
        base = relaxed(fn.base_dist, options)
        return base if base is None else base.expand(fn.batch_shape)
    if isinstance(fn, torch.distributions.Bernoulli):
        return PathwiseBernoulli(fn.logits, **options)
    if isinstance(fn, torch.distributions.Categorical | torch.distributions.OneHotCategorical):
        return PathwiseCategorical(fn.logits, **options)
    return None


def _refused(site: Site) -> str:
    found = "observed" if site.is_observed else f"of the family {site.family}"
    return (
        f"`sites`: '{site.name}' cannot be relaxed, it is {found}. Only latent Bernoulli, "
        "Categorical and OneHotCategorical sites can; leave it out and use a loss for discrete "
        "latents."
    )


def _certain(name: str) -> str:
    return (
        f"site '{name}' is quantised: its guide has one state, and no relaxation gives that a "
        "gradient. Train the pair as it is with VQ_ELBO, or relax a guide that draws codes, as "
        "IndependentGuide."
    )


def _alone(name: str) -> str:
    return (
        f"site '{name}' is relaxed in the guide, but not in the model, whose density of it hands "
        "no gradient on: what the prior says of the site would not train the guide. Relax both, "
        "relax(model) and relax(guide), with the same `sites`, or neither."
    )


def _half_relaxed(name: str, fn: str, value: str) -> str:
    return (
        f"site '{name}': its distribution here is {fn}, but its value, from the guide or given, is "
        f"{value}. Relax both model and guide, with the same `sites`, or neither. Sites of other "
        "families than Bernoulli, Categorical and OneHotCategorical, as an AutoregressiveGuide's, "
        "cannot be relaxed: use a loss for discrete latents, as DAPS_ELBO."
    )


def not_taken(vectors: dict[str, int], error: Exception) -> ValueError:
    """What to say of a program that failed with vectors in place of codes.

    Args:
        vectors: Sites whose values were vectors, over so many codes.
        error: How it failed.
    """
    name, num_codes = list(vectors.items())[-1]
    return ValueError(
        f"site '{name}' is Categorical: relaxed, its value is a vector over {num_codes} codes, "
        f"(*batch, {num_codes}), in place of an integer, and the program failed with it: "
        f"{type(error).__name__}: {error} Let the program take vectors (z @ table for table[z], "
        "nets.MLPDecoder), or make the site OneHotCategorical, or leave it out of `sites`."
    )


def not_followed(lost: LostSlope) -> RefusalError:
    """What to say of a program whose results do not follow the gradient of a draw.

    Args:
        lost: Which one, and where it loses it.
    """
    return RefusalError(
        f"site '{lost.name}' is relaxed, and {lost.to} is computed from it by way of `{lost.by}`, "
        "which has no gradient: what that says of the site would not train it. Compute with the "
        "value itself: a + z * (b - a) in place of torch.where(z == 1, b, a) or table[z.long()], "
        "z @ table for a vector over codes; detach() the result, or what Python asks for, if none "
        "is wanted; or leave the site out of `sites`, and train it by a loss for discrete latents, "
        "as Reinforce_ELBO."
    )
