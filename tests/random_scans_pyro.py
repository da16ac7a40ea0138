"""Random programs whose sites are in the body of a `scan`, written out in Pyro as a loop."""

from dataclasses import replace

import numpy as np
import torch
from random_specs import STEPS

__all__ = ["Looped"]


class Looped:
    """Of a program: what its sites in a `scan` are, one for each step."""

    def _loop(self, side, sites, data, values, plates):
        """Values of the sites, the steps in front; also what they were in the last step."""
        own = [key for key in data if self.spec.is_by_step(side, sites, key)]
        length, carry, found = self.spec.plate(STEPS).size, {}, {site.name: {} for site in sites}
        for t in reversed(range(length)) if self.spec.scan.reverse else range(length):
            known = dict(values)
            now = {**data, **{key: data[key][t] for key in own}, "carry": carry}
            for site in sites:
                here, label = self._in_step(site), f"{site.name}_{t}"
                known[site.name] = self._sample(side, here, now, known, plates, label)
                found[site.name][t] = known[site.name]
            carry = {site.name: known[site.name] for site in sites if site.kind != "factor"}
        result = {f"last.{name}": value for name, value in carry.items()}
        for name in carry:
            steps = torch.broadcast_tensors(*[found[name][t] for t in range(length)])
            result[name] = torch.stack(steps)
        return result

    @staticmethod
    def _in_step(site):
        return replace(site, plates=site.plates[1:])

    def _before(self, parent, carry):
        """A value of the step before, of zeros in the first."""
        if parent.name in carry:
            return carry[parent.name]
        sizes = {self.spec.plate(n).dim: self.spec.plate(n).size for n in parent.plates[1:]}
        shape = [sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0)]
        zeros = torch.zeros([*shape, *[2] * parent.event], dtype=torch.float64)
        if parent.kind == "onehot":
            return torch.nn.functional.one_hot(zeros.long(), 3).double()
        return zeros

    @staticmethod
    def _over_steps(value, how):
        """What a site after the loop takes of all steps."""
        return value.amax(0) if how == "max" else value.sum(0)

    def sites_of(self, names):
        """Of the spec, by the names that they have in the program; None if not in all steps."""
        labels = {name: s.name for s in self.spec.sites for name, _ in self._labels(s.name)}
        found = tuple(dict.fromkeys(labels[name] for name in names))
        of_all = {label for name in found for label, _ in self._labels(name)}
        return found if of_all == set(names) else None

    def _labels(self, key):
        """Names of a site in the program, and which steps they are of."""
        if not self.spec[key].in_scan:
            return [(key, None)]
        return [(f"{key}_{t}", t) for t in range(self.spec.plate(STEPS).size)]

    def _own(self, key, row, num_rows):
        """Draws of a site in one row of all draws."""
        site = self.spec[key]
        here = self._in_step(site) if site.in_scan else site
        found = [self._of_site(here, row.get(name), num_rows) for name, _ in self._labels(key)]
        return np.stack(found, 1) if site.in_scan else found[0]

    def _of_site(self, site, value, num_rows):
        """From the dims of the framework to ``[rows, *plates, event]``."""
        shape = tuple(self.spec.plate(n).size for n in site.plates)
        event = (2,) if site.event else ()
        if value is None:
            return np.zeros((num_rows, *shape, *event))
        if site.kind == "onehot":
            value = value.argmax(-1)
        inner = len(event)
        sizes = value.shape[value.ndim - inner :]
        dims = [self.spec.plate(n).dim for n in site.plates]
        batch = value.shape[: value.ndim - inner]
        depth = max((-dim for dim in dims), default=0)
        rows = batch[0] if len(batch) > depth else 1
        batch = batch[1:] if len(batch) > depth else batch
        batch = batch[len(batch) - depth :] if depth else ()  # dims of other plates are 1
        value = value.reshape((rows, *(1,) * (depth - len(batch)), *batch, *sizes))
        axes = [0] + [1 + depth + dim for dim in dims]
        others = [a for a in range(1 + depth) if a not in axes]
        value = value.transpose(axes + others + list(range(1 + depth, value.ndim)))
        value = value.reshape(*value.shape[: len(axes)], *sizes)
        return np.broadcast_to(value, (num_rows, *shape, *event))

    def set_draws(self, draws, rows):
        """Let the guide draw these rows of states, one in each run of a loss; None: at random."""
        if draws is None:
            self.given = None
            return
        self.given = {}
        for key, value in draws.codes.items():
            placed = [self._in_place(key, value[row]) for row in rows]
            for name, _ in self._labels(key):
                self.given[name] = [self._as_drawn(key, row[name]) for row in placed]

    def _as_drawn(self, key, value):
        kind = self.spec[key].kind
        if kind == "onehot":
            return torch.nn.functional.one_hot(value, 3).double()
        return value if kind == "categorical" else value.double()
