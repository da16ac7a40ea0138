"""Random programs whose sites are in the body of a `scan`, written out in NumPyro."""

import contextlib
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.contrib.control_flow import scan
from random_specs import STEPS
from random_watching_numpyro import Held

__all__ = ["Scanned"]


class Scanned:
    """Of a program: what its sites in a `scan` are."""

    def _scan(self, side, sites, data, values, plates):
        """Values of the sites, the steps in front; also what they were in the last step."""
        spec, needed = self.spec, self._carried()
        keys = [key for key in self.params if key.split(".")[:2] in [[side, s.name] for s in sites]]
        params = {key: numpyro.param(key) for key in keys}  # a `scan` keeps them to itself
        if spec.scan.plates == "before":
            for name in {name for site in sites for name in site.plates[1:]}:
                self._plate(name, plates, data)
        given = {key: data[key] for key in data if spec.is_by_step(side, sites, key)}
        names = {site.name for site in sites}
        noise = {k: v for k, v in (self.noise or {}).items() if k in names and side == "guide"}
        start = {site.name: self._start(site) for site in sites if site.name in needed}

        def step(carry, now):
            given, noise = now
            known = {**data, **given, "params": params, "carry": carry}
            inside = dict(plates) if spec.scan.plates == "before" else {}
            found = dict(values)
            with Held(noise) if noise else contextlib.nullcontext():
                for site in sites:
                    here = replace(site, plates=site.plates[1:])
                    found[site.name] = self._sample(side, here, known, found, inside)
            carry = {key: jnp.reshape(found[key], carry[key].shape) for key in carry}
            return carry, {key: found[key] for key in names if found[key] is not None}

        length, turned = spec.plate(STEPS).size, spec.scan.reverse
        last, found = scan(step, start, (given, noise), length=length, reverse=turned)
        return {**found, **{f"last.{key}": value for key, value in last.items()}}

    def _at_once(self, sites, data, values, plates):
        """The same of a guide that draws all steps under a plate."""
        found, place = {}, 0 if self.spec.scan.reverse else -1
        for site in sites:
            known = {**values, **found}
            found[site.name] = self._sample("guide", site, data, known, plates)
        return {**found, **{f"last.{name}": value[place] for name, value in found.items()}}

    def _carried(self):
        """Sites whose last value another site takes."""
        parts = [part for site in self.spec.sites for part in (site.model, site.guide) if part]
        links = [link for part in parts for link in part.links]
        return {link.parent for link in links if link.earlier or link.how == "last"}

    def _start(self, site):
        """A carry of zeros."""
        sizes = {self.spec.plate(n).dim: self.spec.plate(n).size for n in site.plates[1:]}
        shape = [sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0)]
        return jnp.zeros([*shape, *[2] * site.event], int if site.is_discrete else float)

    @staticmethod
    def _over_steps(value, how):
        """What a site after the scan takes of all steps."""
        return value.max(0) if how == "max" else value.sum(0, keepdims=how == "kept")

    @staticmethod
    def sites_of(names):
        """Of the spec, by the names that they have in the program."""
        return names

    @staticmethod
    def _is_site(key, value):
        return value is not None and not key.startswith("last.")

    def _own(self, key, value):
        """From the dims of the framework to ``[rows, *plates, event]``."""
        site = self.spec[key]
        if site.in_scan:
            here = replace(site, plates=site.plates[1:])
            return np.stack([self._of_site(here, row) for row in np.moveaxis(value, 1, 0)], 1)
        return self._of_site(site, value)

    def _of_site(self, site, value):
        shape = tuple(self.spec.plate(n).size for n in site.plates)
        inner = int(site.event)
        batch = value.ndim - 1 - inner
        depth = max((-self.spec.plate(n).dim for n in site.plates), default=0)
        value = value.reshape((len(value), *[1] * (depth - batch), *value.shape[1:]))
        batch = value.ndim - 1 - inner
        axes = [0] + [1 + batch + self.spec.plate(n).dim for n in site.plates]
        others = [a for a in range(1 + batch) if a not in axes]
        value = value.transpose(axes + others + list(range(1 + batch, value.ndim)))
        event = value.shape[len(axes) + len(others) :]
        value = value.reshape(*value.shape[: len(axes)], *event)
        return np.broadcast_to(value, (len(value), *shape, *event))
