"""Looks at a pair with some rows of its data, to find which arguments are cut: see `cutting`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_dvae.diagnostics.cutting import Looks, RowsCut, Seen, find_rows
from numpyro_dvae.diagnostics.readings import Pair, run_given
from numpyro_dvae.diagnostics.trained import Trained
from numpyro_dvae.fit.compiled import Compiled
from numpyro_dvae.fit.data import Batch
from numpyro_dvae.fit.templates import Template, split
from numpyro_dvae.programs.densities import has_inverse, steps_of
from numpyro_dvae.programs.record import make_record
from numpyro_dvae.programs.sites import Run

__all__ = ["rows_of"]

_KINDS = "log_likelihood", "log_prior", "log_q"


def rows_of(rng_key: Array, trained: Trained, args: tuple, batch_size: int | None) -> RowsCut:
    """Find which arguments have a row for each datum; at the parameters of the pair.

    Raises:
        ValueError: If none can be cut.
    """

    def prepare(some: tuple) -> _Look:
        return _Look(trained, trained.pair(rng_key, some))

    def run(look: _Look, some: tuple, number: int, values: Mapping[str, np.ndarray]) -> Seen:
        return look(jax.random.fold_in(rng_key, number), some, values)

    return find_rows(Looks(trained.model, prepare, run), args, batch_size)


class _Look:
    """Runs a pair with a number of rows, compiled once."""

    def __init__(self, trained: Trained, pair: Pair) -> None:
        self.trained, self.pair = trained, pair
        self._axes: dict[str, dict[str, int]] = {}
        self._subsampled: set[str] = set()
        self._run = Compiled(self._look, static=(3,))

    def __call__(self, rng_key: Array, args: tuple, values: Mapping[str, np.ndarray]) -> Seen:
        arrays, template = split(Batch(args, {}))
        found = self._run(rng_key, self.trained.params, arrays, template, dict(values))
        densities, drawn = jax.device_get(found)
        return Seen(self.pair.layout.plates, densities, drawn, self._axes, self._subsampled)

    def _look(
        self, rng_key: Array, params: Any, arrays: tuple, template: Template, given: Any
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        pair = self.trained.at(self.pair, params, template.join(arrays))
        run = run_given(rng_key, pair, given)
        record = make_record(run, pair.layout, 1)
        self._axes |= _axes(run)
        frames = [frame for site in run.model.values() for frame in site.plates.values()]
        self._subsampled |= {frame.name for frame in frames if frame.size < frame.full_size}
        found = {kind: getattr(record, kind) for kind in _KINDS}
        return found | {"scale": jnp.asarray(record.scale)}, _values(run)


def _values(run: Run) -> dict[str, Any]:
    """Those of the guide's latents, and how flows drew them."""
    sites = [site for site in run.guide.values() if not site.is_observed]
    found = {site.name: site.value for site in sites}
    for site in sites:
        found |= {} if has_inverse(site) else steps_of(site)
    return found


def _axes(run: Run) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for site in run.guide.values():
        num_dims = site.value.ndim - site.fn.event_dim
        axes = {plate: num_dims + frame.dim for plate, frame in site.plates.items()}
        names = {} if has_inverse(site) else steps_of(site)
        found |= {name: axes for name in (site.name, *names)}
    return found
