"""What is known of a site that is summed out: how probable its values are, given draws and data."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_dvae.programs.sites import Site

__all__ = ["probs_of_summed"]


def probs_of_summed(sites: Mapping[str, Site]) -> dict[str, tuple[Site, Tensor]]:
    """Of each site that `sum_out` has summed, itself, and what all others say of its values.

    Args:
        sites: Of the model, marked ones summed.

    Returns:
        The site, and ``(K, *batch, V)``: the probabilities of the values 0, ..., V - 1, of which a
        vector is its code, given the draws and the data; NaN of what is impossible.
    """
    read = [site.infer["_probs"] for site in sites.values() if "_probs" in site.infer]
    found = [each for look in read for each in look()]
    return {site.name: (site, _by_code(site, probs)) for site, probs in found}


def _by_code(site: Site, probs: Tensor) -> Tensor:
    """In order of the codes."""
    values = site.base.enumerate_support(expand=False)
    values = values.reshape(len(values), *site.base.event_shape)
    codes = values.argmax(-1) if site.base.event_shape else values.long()
    if int(codes.min()) < 0:
        raise ValueError(
            f"site '{site.name}' has the value {int(codes.min())}, but values are numbers from 0 "
            "on. Leave it out of `sites`, or look its values up in a table."
        )
    return probs @ torch.nn.functional.one_hot(codes).to(probs)
