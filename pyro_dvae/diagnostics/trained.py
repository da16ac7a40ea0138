"""Run what a training brought at its trained parameters, and leave everything as it was.

Generators, the parameter store, values and modes of modules are restored. What is run at once is
bounded: draws come in pieces, and rows of the data in batches if asked for.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, distributed, nn
from torch.distributions import transform_to

from pyro_dvae.diagnostics.draws import (
    PRIOR_NAMES,
    RECORD,
    Piece,
    Store,
    Variable,
    batches,
    check_data,
    count_values,
    pieces,
)
from pyro_dvae.diagnostics.readings import (
    Pair,
    Readings,
    enumerate_states,
    posterior_sites,
    prepare_pair,
    prior_sites,
    score_states,
)
from pyro_dvae.fit.data import as_batch, to_device
from pyro_dvae.fit import rng
from pyro_dvae.programs.run import Particles


class Trained(NamedTuple):
    """A model and guide, and the values of their parameters."""

    model: Callable
    guide: Callable
    params: Mapping[str, Tensor]


def trained(result: Any, params: Mapping[str, Tensor] | None) -> Trained:
    """Take a `FitResult`, or a (model, guide) pair with or without parameters."""
    if isinstance(result, tuple) and len(result) == 2 and all(map(callable, result)):
        return Trained(*result, {} if params is None else params)
    if not (hasattr(result, "model") and hasattr(result, "guide")):
        raise ValueError(
            f"`result` must be a FitResult, or a pair (model, guide); got {type(result).__name__}."
        )
    return Trained(result.model, result.guide, result.params if params is None else params)


@contextmanager
def at_parameters(programs: Trained) -> Iterator[None]:
    """Run a block in evaluation mode at these parameters; restore all that it changes."""
    store = pyro.get_param_store()
    state = store.get_state()
    with ExitStack() as stack:
        stack.enter_context(rng.preserved())
        stack.callback(store.set_state, state)
        stack.callback(store.clear)
        for root in _modules(programs):
            for module in root.modules():
                stack.callback(setattr, module, "training", module.training)
        for root in _modules(programs):
            root.eval()
        stack.enter_context(_AtParameters(programs.params))
        yield


class _AtParameters(Messenger):
    """Gives each `pyro.param` its value; a network that computes with its own tensors as well."""

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.params = params
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __exit__(self, *exc: Any) -> None:
        for own, before in self._kept.values():
            own.data.copy_(before)
        self._kept.clear()
        super().__exit__(*exc)

    def _pyro_post_param(self, msg: Any) -> None:
        wanted, value = self.params.get(msg["name"]), msg["value"]
        if wanted is None or torch.equal(value, wanted.to(value.device)):
            return
        own, store = value.unconstrained(), pyro.get_param_store()
        if id(own) not in self._kept:
            self._kept[id(own)] = own, own.detach().clone()
            constraint = store.get_state()["constraints"][msg["name"]]
            own.data.copy_(transform_to(constraint).inv(wanted))
            msg["value"] = store[msg["name"]]


def collect(
    result: Any,
    data: tuple,
    num_draws: int,
    wanted: Collection[str],
    *,
    params: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    prior: bool = False,
) -> Store:
    """Draw from the guide and read the sites, piece by piece.

    With `prior`, also draw from the model alone: readings "prior" and "prior_predictive".
    """
    if num_draws < 1:
        raise ValueError(f"`num_draws` must be at least 1; got {num_draws}.")
    programs = trained(result, params)
    args, _ = to_device(as_batch(data), device_of(programs))
    num_rows = check_data(args, batch_size)
    store = Store(num_draws, num_rows)
    with at_parameters(programs):
        pair: Pair | None = None
        for rows in batches(num_rows, batch_size):
            cut = args if rows is None else tuple(_cut(value, rows) for value in args)
            pair = pair and pair._replace(args=cut)
            pair = pair or prepare_pair(programs.model, programs.guide, cut, {})
            for draws, size in pieces(num_draws, count_values(cut)):
                piece = Piece(draws, rows)
                _put(store, piece, pair, *posterior_sites(pair, size, wanted))
                if prior:
                    _put_readings(store, piece, prior_sites(pair, size), PRIOR_NAMES)
    return store


def collect_states(
    result: Any,
    data: tuple,
    max_states: int,
    *,
    params: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
) -> Store:
    """Score every joint state of a datum's latents, in place of draws."""
    programs = trained(result, params)
    args, _ = to_device(as_batch(data), device_of(programs))
    num_rows = check_data(args, batch_size)
    store: Store | None = None
    with at_parameters(programs):
        pair: Pair | None = None
        for rows in batches(num_rows, batch_size):
            cut = args if rows is None else tuple(_cut(value, rows) for value in args)
            pair = pair and pair._replace(args=cut)
            pair = pair or prepare_pair(programs.model, programs.guide, cut, {})
            states = enumerate_states(pair, max_states)
            num_states = len(next(iter(states.values())))
            store = store or Store(num_states, num_rows)
            for part, _ in pieces(num_states, count_values(cut)):
                some = {name: values[part] for name, values in states.items()}
                scores = score_states(pair, some)
                _put(store, Piece(part, rows), pair, scores, {}, (*RECORD, "log_draw"))
    assert store is not None
    return store


def summed_over_processes(counts: np.ndarray) -> np.ndarray:
    """Counts of all processes of a distributed run; of this one, if it is alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return counts
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.from_numpy(counts).to(device)
    distributed.all_reduce(total)
    return total.cpu().numpy()


def device_of(programs: Trained) -> torch.device | None:
    """Where the parameters are; None if there are none yet."""
    for module in _modules(programs):
        for value in module.parameters():
            return value.device
    return next((value.device for value in programs.params.values()), None)


def _modules(programs: Trained) -> list[nn.Module]:
    """The modules behind model and guide, be they modules or methods of one."""
    values = (programs.model, programs.guide)
    owners = (v if isinstance(v, nn.Module) else getattr(v, "__self__", None) for v in values)
    return [owner for owner in owners if isinstance(owner, nn.Module)]


def _cut(value: Any, rows: slice) -> Any:
    return value[rows] if isinstance(value, Tensor) and value.dim() else value


def _put(
    store: Store,
    piece: Piece,
    pair: Pair,
    record: Particles,
    readings: Readings,
    names: tuple[str, ...] = RECORD,
) -> None:
    values = {name: getattr(record, name) for name in names}
    arrays = {name: None if value is None else _numpy(value) for name, value in values.items()}
    store.put_record(piece, pair.layout.plates, arrays)
    _put_readings(store, piece, readings, {})


def _put_readings(store: Store, piece: Piece, readings: Readings, names: Mapping[str, str]) -> None:
    for reading, sites in readings.items():
        for name, found in sites.items():
            values = _numpy(found.values)
            variable = Variable(found.dims, values, found.discrete, found.num_codes)
            store.put(piece, names.get(reading, reading), name, variable)


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
