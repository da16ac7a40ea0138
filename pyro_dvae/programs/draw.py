"""Draw the latents of a program for all particles at once, or take values that are given.

`Draw` is the handler that every run has, `run_pair` what runs a pair under it. `moved` gives a site
other values than those that it has drawn, for trials of what depends on them.
"""

import copy
import functools
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import broadcast_shape
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from pyro_dvae.programs.handlers.in_place import Unchanged
from pyro_dvae.programs.handlers.without_rows import RowsChecked
from pyro_dvae.programs.messages import is_among, is_computed, is_drawn, is_subsample
from pyro_dvae.programs.processes import drawing, hidden
from pyro_dvae.programs.sites import (
    Layout,
    Pair,
    Run,
    Site,
    base_distribution,
    is_flow,
    no_one_list,
)
from pyro_dvae.programs.summing.enumerating import Enumerate, sum_out

__all__ = [
    "AnyValue",
    "Draw",
    "Sampler",
    "Unconditioned",
    "bounds_of",
    "moved",
    "run_pair",
    "run_program",
    "run_traces",
    "run_with_draws",
]


@runtime_checkable
class Sampler(Protocol):
    """A way to draw some sites that is an algorithm's own."""

    def draws(self, name: str) -> bool:
        """Whether it draws this site."""
        ...

    def __call__(self, site: Site, shape: tuple[int, ...], particle: int | None) -> Tensor:
        """Values of a site, each of `shape`: of all particles, which lead, or of one."""
        ...


class Draw(Messenger):
    """Draw each unobserved site once for all particles, or take the value that is given.

    Args:
        layout: How the sites lie.
        num_draws: K; None to let the program draw, one particle at a time.
        values: Values of sites, in place of draws.
        sampler: Draws some sites in its own way.
        particle: Which of the particles this run is for; None if it is for all.
        pathwise: Whether reparameterised draws of a datum keep their gradient.
        expand: Whether values that are given take the sizes of all plates.
    """

    def __init__(
        self,
        layout: Layout,
        num_draws: int | None,
        values: Mapping[str, Tensor] | None = None,
        *,
        sampler: Sampler | None = None,
        particle: int | None = None,
        pathwise: bool = True,
        expand: bool = False,
    ) -> None:
        super().__init__()
        self.layout, self.num_draws, self.values = layout, num_draws, values or {}
        self.sampler, self.particle, self.pathwise = sampler, particle, pathwise
        self.expand = expand
        self._seed, self._entered = 0, torch.empty(0)
        self._state: Tensor | None = None  # of Torch's generator, before a draw
        self._moved: Site | None = None  # whose draw was the first to move it

    def __enter__(self) -> Any:
        self._seed, self._entered = torch.initial_seed(), torch.get_rng_state()
        self._state = self._moved = None
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        left = super().__exit__(*error)
        if error[0] is None and self._moved is not None and _is_at(self._entered):
            raise _seeded(self._moved)  # by the seed that it had
        return left

    def _pyro_sample(self, msg: Any) -> None:
        known = self.layout.bounded
        follows = msg["is_observed"] and (known is None or msg["name"] in known)
        if follows or (msg["name"] in self.values and is_drawn(msg)):
            msg["fn"] = _at_any_value(msg["fn"])
        if msg["done"] or not is_drawn(msg):
            return
        msg["fn"] = _without_path(msg["fn"])
        by_sampler = self.sampler is not None and self.sampler.draws(msg["name"])
        if by_sampler:
            msg["infer"] = {**msg["infer"], "_by_sampler": True}
        site = Site.of(msg)
        if site.name in self.values:
            msg["value"], msg["done"] = self._given(site), True
            return
        if torch.initial_seed() != self._seed:
            raise _seeded(site)
        if self._moved is None:
            self._state = torch.get_rng_state()
        if self.sampler is not None and by_sampler:
            with drawing(site):
                msg["value"] = self.sampler(site, self._shape(site.fn), self.particle)
            msg["done"] = True
        elif self.num_draws is not None or is_flow(site.fn):
            with drawing(site):
                msg["value"], msg["done"] = self._draw(msg), True
            if is_flow(site.fn):  # which may have no density of any other value
                density = msg["fn"], msg["fn"].log_prob(msg["value"])
                msg["infer"] = {**msg["infer"], "_density": density}

    def _pyro_post_sample(self, msg: Any) -> None:
        if self._state is not None and is_drawn(msg):
            self._moved, self._state = None if _is_at(self._state) else Site.of(msg), None
        if not self.pathwise and is_drawn(msg) and self.layout.owns(Site.of(msg)):
            msg["value"] = msg["value"].detach()
            msg["infer"].pop("_density", None)

    def _given(self, site: Site) -> Tensor:
        value = self.values[site.name]
        shape = (*site.fn.batch_shape, *site.fn.event_shape)  # as the program would draw it
        if self.num_draws is not None:
            return value.expand(broadcast_shape(value.shape, shape)) if self.expand else value
        value = value.reshape(value.shape[value.dim() - len(shape) :])
        if any(size not in (1, wanted) for size, wanted in zip(value.shape, shape, strict=True)):
            raise no_one_list(f"'{site.name}' has other values or sizes in some runs", self.values)
        return value.expand(shape).clone()  # a program that changes it changes no other run

    def _draw(self, msg: Any) -> Tensor:
        fn, num_draws = msg["fn"], self.num_draws
        if num_draws is None:
            return fn()
        batch = fn.batch_shape
        missing = self.layout.nesting + 1 - len(batch)
        if missing > 0:
            return fn(torch.Size((num_draws, *[1] * (missing - 1))))
        if batch[0] == 1 < num_draws:  # an axis the program made, not yet the particles'
            fn = msg["fn"] = fn.expand((num_draws, *batch[1:]))
        return fn()

    def _shape(self, fn: Any) -> tuple[int, ...]:
        """Of one particle's value, as it lies right of the particles."""
        shape = (*fn.batch_shape, *fn.event_shape)
        if self.num_draws is None:
            return shape
        missing = self.layout.nesting + 1 - len(fn.batch_shape)
        return (*[1] * (missing - 1), *shape) if missing > 0 else shape[1:]


def _is_at(state: Tensor) -> bool:
    """Whether Torch's generator is; handlers of functions see nothing of it."""
    with torch._C.DisableTorchFunction():
        return torch.equal(torch.get_rng_state(), state)


def _seeded(site: Site) -> ValueError:
    return ValueError(
        f"site '{site.name}' is drawn after the program has seeded Torch's generator, or put it "
        "back, so that each run would draw the same. Hand the program over without poutine.seed, "
        "and call pyro.set_rng_seed or torch.manual_seed before training, outside of it."
    )


class _AtAnyValue:
    """A distribution that has a density at all values: 0 out of its bounds, often other draws."""

    support: Any

    def log_prob(self, value: Tensor) -> Tensor:
        low, possible = getattr(self.support, "lower_bound", None), self.support.check(value)
        for bound in bounds_of(self):  # a NaN is none, and is handed on
            possible = possible | bound.isnan()
        inside = value if low is None else torch.where(possible, value, low)
        if _is_boolean(self):  # Torch takes no integers there
            inside = inside.to(torch.get_default_dtype())
        log_prob = super().log_prob(inside)  # type: ignore[misc]
        return torch.where(possible, log_prob, -torch.inf)


class _WithoutPath:
    """A discrete distribution whose draws have no gradient, where the host would hand one on."""

    has_rsample = False


@functools.cache
def _of_family(kind: type, family: type) -> type:
    return type(family)(family.__name__, (kind, family), {})


def _made(kind: type, fn: Any) -> Any:
    """A distribution of its family and of a kind, in the same wrappers."""
    if isinstance(fn, dist.MaskedDistribution):
        return _made(kind, fn.base_dist).mask(fn._mask)
    if isinstance(fn, dist.Independent):
        return _made(kind, fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.ExpandedDistribution):
        return _made(kind, fn.base_dist).expand(fn.batch_shape)
    found = copy.copy(fn)
    found.__class__ = _of_family(kind, fn.__class__)
    return found


def _at_any_value(fn: Any, *, always: bool = False) -> Any:
    base = base_distribution(fn)
    if not (always or bounds_of(fn)) or isinstance(base, _AtAnyValue):
        return fn
    found = _made(_AtAnyValue, fn)
    base_distribution(found)._validate_args = False
    return found


def _without_path(fn: Any) -> Any:
    base = base_distribution(fn)
    has_both = getattr(base, "has_enumerate_support", False) and getattr(base, "has_rsample", False)
    return _made(_WithoutPath, fn) if has_both else fn


def _is_boolean(fn: Any) -> bool:
    return type(fn.support) is type(constraints.boolean)


class AnyValue(Messenger):
    """Lets discrete latents have values out of their support, at a density of 0.

    As a guide of fewer codes has them, where the values are the model's. For runs at given values.
    """

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if is_drawn(msg) and msg["done"] and fn.support.is_discrete:
            is_of_kind = msg["value"].is_floating_point() or not _is_boolean(base_distribution(fn))
            if not (is_of_kind and bool(fn.support.check(msg["value"]).all())):
                msg["fn"] = _at_any_value(fn, always=True)


def bounds_of(fn: Any) -> list[Tensor]:
    """The arrays between which a distribution's values lie; none if its bounds are numbers."""
    support = getattr(base_distribution(fn), "support", None)
    bounds = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    return [bound for bound in bounds if isinstance(bound, Tensor)]


def run_program(program: Any, args: tuple, kwargs: dict) -> poutine.Trace:
    """Run one program and keep its trace.

    A guide that is a handler of its model (`pyro.poutine.guide.GuideMessenger`) is asked for it: a
    plain trace would hold the model's observations, too.
    """
    handler = poutine.unwrap(program)
    with RowsChecked(), Unchanged():
        if isinstance(handler, GuideMessenger):
            program(*args, **kwargs)
            return handler.get_traces()[1]
        return poutine.trace(program).get_trace(*args, **kwargs)


def run_pair(pair: Pair, draw: Draw) -> Run:
    """Run guide and model once; the model takes the guide's draws, and marked sites are summed."""
    guide_trace, model, layout = poutine.Trace(), pair.model, pair.layout
    with draw, pair.watch:
        if pair.guide is not None:
            guide_trace = run_program(pair.guide, pair.args, pair.kwargs)
        if layout.summed:
            model = Enumerate(layout, guide_trace.nodes.keys() | draw.values.keys())(model)
        replayed = poutine.replay(model, trace=guide_trace)
        run = Run.of(guide_trace, run_program(replayed, pair.args, pair.kwargs))
    return run._replace(model=sum_out(run.model, layout)) if layout.summed else run


def run_with_draws(program: Any, drawn: poutine.Trace, args: tuple, kwargs: dict) -> poutine.Trace:
    """One run of a program with these draws; handlers around see the rows that it draws."""

    def hide(msg: Any) -> bool:
        return not is_subsample(msg) or is_among(msg, drawn.nodes)

    with torch.no_grad(), hidden(hide), poutine.replay(trace=drawn):
        return run_program(program, args, kwargs)


def run_traces(model: Any, guide: Any, args: tuple, kwargs: dict) -> tuple[Any, Any]:
    """Traces of the model, replayed with the guide's draws, and of the guide, as Pyro has them."""
    guide_trace = run_program(guide, args, kwargs)
    return run_program(poutine.replay(model, trace=guide_trace), args, kwargs), guide_trace


class Unconditioned(UnconditionMessenger):
    """Draws what is observed, and marks it; what is computed, which Pyro has as observed, stays."""

    def _pyro_sample(self, msg: Any) -> None:
        if not is_computed(msg):
            super()._pyro_sample(msg)


def moved(site: Site, value: Tensor, by: int | Tensor) -> Tensor | None:
    """Other values of a discrete site: `by` places on in the circle of all but the one it has.

    Args:
        site: Whose support it is.
        value: Of the site.
        by: From 1 on, so that all others are met; it broadcasts over batch dims and cells.

    Returns:
        Values that differ from `value` wherever the site has two; None of a continuous site.
    """
    support = site.fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, type(constraints.boolean)):
        return 1 - value
    if isinstance(support, constraints.integer_interval):
        low, size = support.lower_bound, support.upper_bound - support.lower_bound + 1
        return (low + (value - low + _steps(by, size)) % size).to(value)
    if isinstance(support, type(constraints.one_hot)):
        size = value.shape[-1]
        codes = (value.argmax(-1) + _steps(by, size)) % size
        return torch.nn.functional.one_hot(codes, size).to(value)
    if isinstance(support, type(constraints.nonnegative_integer)):
        return value + by
    return None


def _steps(by: int | Tensor, size: int | Tensor) -> Tensor:
    others = torch.as_tensor(size - 1).clamp(min=1)
    return 1 + (torch.as_tensor(by, device=others.device) - 1) % others
