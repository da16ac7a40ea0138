"""Whether a program takes a particle axis: decided by values that would show if it mixes particles.

A program that indexes from the left, reduces over all dims or normalises by a mean may run with a
particle axis, on shapes that happen to fit, and give each particle what others have drawn. So five
particles are run together, of which one has the highest code in each latent, one the lowest, and
three some of each, so that no two latents of a few are alike in all of them; each particle is then
compared with a run of its own. Where a dim has size five, there are more: a program that reads the
size of a dim does not find by chance what it looks for. Where a program is noisy by itself
(dropout), one particle is changed while the others and the noise stay: they must not notice. Nor
may they where it is changed in one place alone, as a parity of all would. And no operation may lead
from one to another (`owners`), as a count of a code in the middle does, which none of them has; nor
may Python ask for a number that is of draws, and go one way for all.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from pyro_dvae.programs.densities import has_inverse
from pyro_dvae.programs.draw import Draw, run_pair
from pyro_dvae.programs.handlers.subsamples import drawn_subsamples
from pyro_dvae.programs.record import Particles, draw_log_prob, in_batch_dims, make_record
from pyro_dvae.programs.sites import Layout, Pair, Run, Site, deterministic_sites, is_flow
from pyro_dvae.programs.structure.looking import only_looking, raise_slip, same_but_rounding
from pyro_dvae.programs.structure.owners import Owners
from pyro_dvae.programs.structure.plain import keeps_draws_apart
from pyro_dvae.programs.structure.tracking import Exits, TrackDraws

__all__ = ["takes_particles", "takes_singletons", "telling_values"]

_NUM_MIXED = 3  # of the particles, which have low and high codes
_NUM_PARTICLES = 2 + _NUM_MIXED
_COMPARED = (
    "log_likelihood",
    "log_prior",
    "log_q_discrete",
    "log_q_pathwise",
    "shared_likelihood",
    "shared_prior",
    "shared_q",
)


Reads = dict[str, Callable[[Run, Layout, int], list[Tensor]]]  # what else is compared


class _NoInverseError(Exception):
    """A flow has no density of the values that would be compared, and the user no other way."""


class _AsksError(Exception):
    """Python asks for values, so that it may go a way that is right for some of the particles."""


def takes_particles(
    pair: Pair, *, warn: bool = True, computed: Mapping[str, int] | None = None
) -> bool:
    """Decide whether one run of the programs takes all particles; if not, say why and what to do.

    Args:
        pair: The programs, with their layout.
        warn: Whether to say so.
        computed: Where deterministic sites of the model have the particles, by name; they are then
            compared as well: of those not named, each particle has the value of all.
    """
    reads: Reads = _READ
    if computed is None and keeps_draws_apart(pair):
        return True
    if computed is not None:
        reads = {"sites": partial(_read_all_sites, computed)}
    trouble = _trouble(pair, reads)
    if trouble and warn:
        warnings.warn(
            "model or guide does not broadcast over a particle axis left of all plates: "
            f"{trouble}. It will run once per particle, with the right result but slower. Index "
            "from the right (x[..., i], sum(-1)), add no dims to a draw that data share "
            "(z[..., None]) and write torch.where for `if` to have particles vectorised, or pass "
            "vectorize_particles=False to silence this.",
            stacklevel=7,
        )
    return trouble is None


def _trouble(pair: Pair, reads: Reads) -> str | None:
    """Why the programs cannot run with a particle axis; None if they can."""
    try:
        if only_looking(lambda: _keeps_apart(pair, reads)):
            return None
    except _NoInverseError:
        return ""
    except _AsksError:
        return "Python asks for the values of draws (`if`, .item(), NumPy), of all at once"
    except Exception as error:  # whatever a program says of an axis that it does not know
        raise_slip(error)
        return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return "its log-densities change with a particle axis"


def takes_singletons(pair: Pair, values: Mapping[str, Tensor]) -> bool:
    """Whether values that all data share may have size 1 in the plates of these.

    A program that reads the size of a latent (``torch.arange(z.shape[-1])``), or joins latents and
    data, must see them in full. A few states are run in both ways.

    Args:
        pair: The programs, with their layout.
        values: Of all discrete latents, S states in front.
    """
    if not values:
        return True
    count = len(next(iter(values.values())))
    states = torch.tensor(sorted({0, count - 1, count // 2, count // 3, 2 * count // 3}))
    few = {name: value[states] for name, value in values.items()}

    def look() -> bool:
        narrow, wide = (_record_given(pair._replace(expand=e), few) for e in (False, True))
        return all(_agree(narrow, wide, k, k) for k in range(len(states)))

    try:
        return only_looking(look)
    except Exception as error:  # whatever a program says of sizes that do not fit
        raise_slip(error)
        return False


def _record_given(pair: Pair, values: Mapping[str, Tensor]) -> Particles:
    """The first time and the second with the same noise and subsample."""
    state = pyro.util.get_rng_state()
    run = run_pair(pair, Draw(pair.layout, 1, values, expand=pair.expand))
    pyro.util.set_rng_state(state)
    return make_record(run, pair.layout, len(next(iter(values.values()))), reads=_READ)


def _keeps_apart(pair: Pair, reads: Reads) -> bool:
    """Whether each particle has together with others what it has alone."""
    first = run_pair(pair, Draw(pair.layout, _NUM_PARTICLES))
    drawn = {name: site for name, site in first.guide.items() if not site.is_observed}
    if any(site.value.shape[:1] != (_NUM_PARTICLES,) for site in drawn.values()):
        return False
    if any(is_flow(site.fn) and not has_inverse(site) for site in drawn.values()):
        raise _NoInverseError
    count = _num_particles(first, pair.layout)
    told = {name: telling_values(site) for name, site in drawn.items()}
    values = {name: _of_size(value, count) for name, value in told.items() if value is not None}
    with poutine.replay(trace=drawn_subsamples(first)):
        try:
            for name in [name for name, value in told.items() if value is None]:
                rest = run_pair(pair, Draw(pair.layout, count, values)).guide
                if drawn.keys() - rest.keys():  # which sites there are depends on the draws
                    return False
                value = telling_values(rest[name], given=True)
                assert value is not None
                values[name] = _of_size(value, count)
            return _agree_on(pair, values, drawn, reads)
        except _AsksError:
            raise
        except Exception as error:  # of values that the program never draws
            raise_slip(error)
            values = {name: _of_size(site.value, count) for name, site in drawn.items()}
            return _agree_on(pair, values, drawn, reads)


def _num_particles(run: Run, layout: Layout) -> int:
    """More than are compared, if a dim has that size: it may be what a program takes it for."""
    taken = set[int]()
    for site in (*run.guide.values(), *run.model.values()):
        shape = tuple(getattr(site.value, "shape", ()))
        taken.update(shape[max(0, len(shape) - layout.nesting - site.fn.event_dim) :])
        taken.update(frame.size for frame in site.plates.values())
    return next(n for n in itertools.count(_NUM_PARTICLES) if n not in taken)


def _of_size(value: Tensor, count: int) -> Tensor:
    """Values of so many particles, some of them twice."""
    more = torch.arange(count - len(value), device=value.device) % _NUM_MIXED
    return torch.cat([value, value[_NUM_PARTICLES - _NUM_MIXED + more]])


def _agree_on(
    pair: Pair, values: dict[str, Tensor], sites: Mapping[str, Site], reads: Reads
) -> bool:
    if _asks(pair, values):
        raise _AsksError
    with Owners(max(map(len, values.values()), default=_NUM_PARTICLES)) as owners:
        for name, value in values.items():
            values[name] = value.clone()  # one of its own
            owners.give(values[name], 0)
        together, noise = _record(pair, values, None, reads), _noise()
        read = [*(getattr(together, name) for name in _COMPARED), *together.extras["sites"]]
        if any(owners.has_others(value, 0) for value in read):
            return False
    alone = [_record(pair, values, k, reads) for k in range(_NUM_PARTICLES)]
    if any(len(one.extras["sites"]) != len(together.extras["sites"]) for one in alone):
        return False  # which sites there are depends on the draws
    if all(map(torch.equal, noise, _noise())):  # nothing else is drawn
        if not all(_agree(together, one, k, 0) for k, one in enumerate(alone)):
            return False
        moved = {name: _with_one_moved(sites[name], value) for name, value in values.items()}
    else:
        state = pyro.util.get_rng_state()
        together = _record(pair, values, None, reads)
        pyro.util.set_rng_state(state)
        moved = {name: torch.cat([value[1:2], value[1:]]) for name, value in values.items()}
    moved_together = _record(pair, moved, None, reads)
    return all(_agree(together, moved_together, k, k) for k in range(1, _NUM_PARTICLES))


def _asks(pair: Pair, values: dict[str, Tensor]) -> bool:
    """Whether Python asks for numbers of the particles, which are of all then, and go unseen."""
    if not (pair.layout.asks and values):
        return False
    draw = Draw(pair.layout, max(map(len, values.values())), values)
    with pyro.validation_enabled(False), TrackDraws(), Exits() as exits:
        run_pair(pair, draw)
    return bool(exits.names)


def _with_one_moved(site: Site, value: Tensor) -> Tensor:
    """The values; of the first particle, one place is as the second has it: parities differ."""
    size = value[0, ...].numel() // max(1, math.prod(site.base.event_shape))
    places = torch.arange(max(1, size), device=value.device) == 0
    inner = len(site.base.event_shape)
    shape = value.shape[1 : value.dim() - inner]
    places = places[:size].reshape((*shape, *[1] * inner))  # of a scalar site: no dims at all
    return torch.cat([torch.where(places, value[1], value[0])[None], value[1:]])


def _noise() -> list[Tensor]:
    """Where the generators stand."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return states


def _record(pair: Pair, values: dict[str, Tensor], particle: int | None, reads: Reads) -> Particles:
    """Of all particles together, or of one alone."""
    if particle is not None:
        one = {name: value[particle] for name, value in values.items()}
        run = run_pair(pair, Draw(pair.layout, None, one))
        return make_record(run, pair.layout, 1, reads=reads)
    count = max(map(len, values.values()), default=_NUM_PARTICLES)
    run = run_pair(pair, Draw(pair.layout, count, values))
    return make_record(run, pair.layout, count, reads=reads)


def _read_sites(run: Run, layout: Layout, num_particles: int) -> list[Tensor]:
    """Log-densities of all draws, whatever their masks, and of the model's sites; a reader.

    Cell by cell, as what is moved from one to another may leave their sum as it was.
    """
    drawn = [site for site in run.guide.values() if not site.is_observed]
    values = [(site, draw_log_prob(site, site.log_prob())) for site in drawn]
    values += [(site, site.term()) for site in run.model.values()]
    return [in_batch_dims(site, v, layout.nesting, num_particles) for site, v in values]


_READ: Reads = {"sites": _read_sites}


def _read_all_sites(
    axes: Mapping[str, int], run: Run, layout: Layout, num_particles: int
) -> list[Tensor]:
    """As `_read_sites`, and what is computed, with the particles at its `axes`; a reader."""
    found = []
    for name, site in deterministic_sites(run.model_trace).items():
        value = torch.as_tensor(site.value)
        value = value if value.is_floating_point() else value.double()  # bools have no distance
        is_in_front = name in axes and num_particles > 1
        value = value.movedim(axes[name], 0) if is_in_front else value[None]
        found.append(value.flatten(1) if value.dim() > 1 else value[:, None])
    return _read_sites(run, layout, num_particles) + found


def _agree(first: Particles, second: Particles, place: int, other: int) -> bool:
    pairs = [(getattr(first, n)[place], getattr(second, n)[other]) for n in _COMPARED]
    sites = first.extras["sites"], second.extras["sites"]
    if len(sites[0]) != len(sites[1]):
        return False
    for one, two in zip(*sites, strict=True):
        pairs.append((one[min(place, len(one) - 1)], two[min(other, len(two) - 1)]))
    return all(one.shape == two.shape and same_but_rounding(one, two) for one, two in pairs)


def telling_values(site: Site, *, given: bool = False) -> Tensor | None:
    """Values like those drawn, in which particles differ as much as the support lets them.

    None where other draws say what the largest is, unless these are `given`: each particle's then
    has the largest of its own.
    """
    support = site.fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    value, kind = site.value, type(support)
    if support is constraints.boolean or kind is type(constraints.boolean):
        return _spread(torch.zeros_like(value), torch.ones_like(value))
    if kind is type(constraints.nonnegative_integer):  # there is no largest one
        low = torch.full_like(value, support.lower_bound)
        return _spread(low, torch.maximum(value.amax(0, keepdim=True), low + 1))
    if kind is constraints.integer_interval:
        ends = support.lower_bound, support.upper_bound
        low, high = (torch.as_tensor(end).to(value).expand(value.shape) for end in ends)
        are_one = all(bool((end == end[:1]).all()) for end in (low, high))
        return _spread(low, high) if given or are_one else None
    if kind is type(constraints.one_hot):
        codes = value.argmax(-1)
        size = value.shape[-1]
        codes = _spread(torch.zeros_like(codes), torch.full_like(codes, size - 1))
        return torch.nn.functional.one_hot(codes, size).to(value)
    return value


def _spread(low: Tensor, high: Tensor) -> Tensor:
    """The highest values, the lowest, and some of each: which, tells the places of a few apart.

    A program that reads the first particle finds more than nothing.
    """
    shape = low.shape[1:]
    places = torch.arange(shape.numel(), device=low.device).reshape(shape)
    if shape.numel() > 2**_NUM_MIXED:
        places = torch.randint_like(places, 2**_NUM_MIXED)
    # One of them the other way round: no count that some particles have is that of all.
    mixed = [(places >> bit) % 2 == int(bit != 1) for bit in range(_NUM_MIXED)]
    are_high = torch.stack([places >= 0, places < 0, *mixed])
    return torch.where(are_high, high[:_NUM_PARTICLES], low[:_NUM_PARTICLES])
