"""Looks at a pair with some rows of its data, to find which arguments are cut: see `cutting`."""

from collections.abc import Mapping

import numpy as np
import torch

from pyro_dvae.diagnostics.cutting import Looks, RowsCut, Seen, find_rows
from pyro_dvae.diagnostics.readings import Pair, prepare_pair, run_given
from pyro_dvae.diagnostics.trained import Trained
from pyro_dvae.fit.svi import device_of
from pyro_dvae.programs.record import make_record
from pyro_dvae.programs.structure.looking import only_looking

__all__ = ["rows_of"]

_KINDS = "log_likelihood", "log_prior", "log_q"


def rows_of(trained: Trained, args: tuple, batch_size: int | None) -> RowsCut:
    """Find which arguments have a row for each datum; at the parameters of the pair.

    Raises:
        ValueError: If none can be cut.
    """
    device = device_of(trained, trained.params.values())

    def run(pair: Pair, some: tuple, _: int, values: Mapping[str, np.ndarray]) -> Seen:
        given = {name: torch.from_numpy(value).to(device) for name, value in values.items()}
        return _seen(pair._replace(args=some), given)

    def prepare(some: tuple) -> Pair:
        return prepare_pair(trained.model, trained.guide, some, {})

    looks = Looks(trained.model, prepare, run)
    return only_looking(lambda: find_rows(looks, args, batch_size))


def _seen(pair: Pair, values: Mapping[str, torch.Tensor]) -> Seen:
    run = run_given(pair, values)
    record = make_record(run, pair.layout, 1)
    found = {kind: getattr(record, kind)[0].cpu().numpy() for kind in _KINDS}
    scale = np.asarray(torch.as_tensor(record.scale).cpu())
    latents = {n: s for n, s in run.guide.items() if not s.is_observed}
    axes = {
        name: {plate: site.num_batch_dims + frame.dim for plate, frame in site.plates.items()}
        for name, site in latents.items()
    }
    drawn = {name: site.value.cpu().numpy() for name, site in latents.items()}
    frames = [frame for site in run.model.values() for frame in site.plates.values()]
    fewer = {frame.name for frame in frames if frame.size < (frame.full_size or 0)}
    return Seen(pair.layout.plates, found | {"scale": scale}, drawn, axes, fewer)
