"""What is known of a site that is summed out, given draws and data: how probable, and one draw."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_dvae.programs.sites import Site
from numpyro_dvae.programs.supports import listed_values

__all__ = ["draws_of_summed", "is_scanned", "joint_latents", "probs_of_summed"]


def joint_latents(sites: Mapping[str, Site]) -> dict[str, tuple[str, ...]]:
    """Find the factors that are one density of several latents, others summed out, and name these.

    Args:
        sites: Of the model, marked ones summed.
    """
    joint = [name for name, site in sites.items() if site.is_joint]
    factors = {n: s.infer["_members"] for n, s in sites.items() if s.infer.get("_of_latents")}
    found = {name: tuple(n for n in joint if n in of) for name, of in factors.items()}
    return {name: latents for name, latents in found.items() if latents}


def probs_of_summed(sites: Mapping[str, Site]) -> dict[str, tuple[Site, Array]]:
    """Give each site that `sum_out` has summed, and the probabilities of its values given all else.

    Args:
        sites: Of the model, marked ones summed.

    Returns:
        The site, and ``(*batch, V)``: the probabilities of the values 0, ..., V - 1, of which a
        vector is its code, given the draws and the data; NaN of what is impossible. Steps of a
        `scan` are in front of V.
    """
    read = [site.infer["_probs"] for site in sites.values() if "_probs" in site.infer]
    found: dict[str, list[tuple[Site, Array]]] = {}
    for site, probs in (each for look in read for each in look()):
        found.setdefault(site.own_name, []).append((site, _by_code(site, probs)))
    return {name: _joined(parts) for name, parts in found.items()}


def draws_of_summed(rng_key: Array, sites: Mapping[str, Site]) -> dict[str, Array]:
    """Draw some of the sites that `sum_out` has summed, given the draws and the data.

    One of each group, of the fewest plates, whose cells no other is between. Those left are drawn
    in the next run, that has these as given.

    Args:
        rng_key: Key of the draws.
        sites: Of the model, marked ones summed, none of them the steps of a `scan`.

    Returns:
        ``(*batch, *event)`` by name; nothing if no site is summed. Of what is impossible, any.
    """
    read = [site.infer["_probs"]() for site in sites.values() if "_probs" in site.infer]
    outermost = [min(group, key=lambda each: len(each[0].plates)) for group in read if group]
    keys = jax.random.split(rng_key, 1 + len(outermost))
    found = zip(keys[1:], outermost, strict=True)
    return {site.name: _draw(key, site, probs) for key, (site, probs) in found}


def is_scanned(sites: Mapping[str, Site]) -> bool:
    """Whether one of the sites that are summed is one of the steps of a `scan`."""
    members = [m for site in sites.values() for m in site.infer.get("_members", {}).values()]
    return any(member.is_scanned for member in members)


def _draw(rng_key: Array, site: Site, probs: Array) -> Array:
    codes = jax.random.categorical(rng_key, jnp.log(jnp.nan_to_num(probs, nan=1.0)))
    return jnp.asarray(listed_values(site))[codes]


def _by_code(site: Site, probs: Array) -> Array:
    """In order of the codes."""
    values = listed_values(site)
    codes = (values.argmax(-1) if site.base.event_shape else values).astype(int)
    if codes.min() < 0:
        raise ValueError(
            f"site '{site.name}' has the value {codes.min()}, but values are numbers from 0 "
            "on. Leave it out of `sites`, or look its values up in a table."
        )
    return probs @ np.eye(codes.max() + 1)[codes]


def _joined(parts: Sequence[tuple[Site, Array]]) -> tuple[Site, Array]:
    """The steps of a `scan` one after the other: the first ones are sites of their own."""
    site, probs = parts[0]
    if not any(each.is_scanned for each, _ in parts):
        return site, probs
    parts = sorted(parts, key=lambda part: -part[0].name.count("_PREV_"))
    steps = [p if s.has_steps else jnp.expand_dims(p, -2) for s, p in parts]
    return replace(parts[-1][0], name=site.own_name), jnp.concatenate(steps, -2)
