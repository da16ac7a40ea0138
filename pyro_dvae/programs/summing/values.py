"""What is known of a site that is summed out, given draws and data: how probable, and one draw."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_dvae.programs.sites import Site
from pyro_dvae.programs.supports import listed_values

__all__ = ["draws_of_summed", "joint_latents", "probs_of_summed"]


def joint_latents(sites: Mapping[str, Site]) -> dict[str, tuple[str, ...]]:
    """Find the factors that are one density of several latents, others summed out, and name these.

    Args:
        sites: Of the model, marked ones summed.
    """
    joint = [name for name, site in sites.items() if site.is_joint]
    factors = {n: s.infer["_members"] for n, s in sites.items() if s.infer.get("_of_latents")}
    found = {name: tuple(n for n in joint if n in of) for name, of in factors.items()}
    return {name: latents for name, latents in found.items() if latents}


def probs_of_summed(sites: Mapping[str, Site]) -> dict[str, tuple[Site, Tensor]]:
    """Give each site that `sum_out` has summed, and the probabilities of its values given all else.

    Args:
        sites: Of the model, marked ones summed.

    Returns:
        The site, and ``(K, *batch, V)``: the probabilities of the values 0, ..., V - 1, of which a
        vector is its code, given the draws and the data; NaN of what is impossible.
    """
    read = [site.infer["_probs"] for site in sites.values() if "_probs" in site.infer]
    found = [each for look in read for each in look()]
    return {site.name: (site, _by_code(site, probs)) for site, probs in found}


def draws_of_summed(sites: Mapping[str, Site], num_draws: int) -> dict[str, Tensor]:
    """Draw some of the sites that `sum_out` has summed, given the draws and the data.

    One of each group, of the fewest plates, whose cells no other is between. Those left are drawn
    in the next run, that has these as given.

    Args:
        sites: Of the model, marked ones summed.
        num_draws: K.

    Returns:
        ``(K, *batch, *event)`` by name; nothing if no site is summed. Of what is impossible, any.
    """
    read = [site.infer["_probs"]() for site in sites.values() if "_probs" in site.infer]
    outermost = [min(group, key=lambda each: len(each[0].plates)) for group in read if group]
    return {site.name: _draw(site, probs, num_draws) for site, probs in outermost}


def _draw(site: Site, probs: Tensor, num_draws: int) -> Tensor:
    probs = torch.nan_to_num(probs, nan=1.0).clamp(min=0.0).expand(num_draws, *probs.shape[1:])
    codes = torch.multinomial(probs.flatten(0, -2), 1).reshape(probs.shape[:-1])
    return listed_values(site)[codes]


def _by_code(site: Site, probs: Tensor) -> Tensor:
    """In order of the codes."""
    values = listed_values(site)
    codes = values.argmax(-1) if site.base.event_shape else values.long()
    if int(codes.min()) < 0:
        raise ValueError(
            f"site '{site.name}' has the value {int(codes.min())}, but values are numbers from 0 "
            "on. Leave it out of `sites`, or look its values up in a table."
        )
    return probs @ torch.nn.functional.one_hot(codes).to(probs)
