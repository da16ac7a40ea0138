"""Draw the latents of a program, or take values that are given.

`Draw` is the handler that every run has, `run_pair` what runs a pair under it. `moved` gives a site
other values than those that it has drawn, for trials of what depends on them.
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints
from numpyro.handlers import replay, seed, substitute, trace, uncondition
from numpyro.primitives import Messenger

from numpyro_dvae.distributions import CertainCategorical, UniformCategorical, sample_codes
from numpyro_dvae.distributions.codes import OneHotCategorical
from numpyro_dvae.programs.densities import given_steps, has_inverse
from numpyro_dvae.programs.handlers.steps import StepsChecked, share_rows, turned
from numpyro_dvae.programs.messages import (
    is_drawn,
    is_observed,
    mutable_values,
)
from numpyro_dvae.programs.sites import (
    Layout,
    Pair,
    Run,
    Site,
    base_distribution,
    no_draws,
)
from numpyro_dvae.programs.summing.enumerating import enumerate_marked, sum_out

__all__ = [
    "Draw",
    "FixedKeys",
    "Sampler",
    "Unconditioned",
    "moved",
    "run_pair",
    "run_program",
    "seeded",
]


@runtime_checkable
class Sampler(Protocol):
    """A way to draw some sites that is an algorithm's own."""

    def draws(self, name: str) -> bool:
        """Whether it draws this site."""
        ...

    def __call__(self, site: Site, shape: tuple[int, ...], particle: Array) -> Array:
        """The value of a site, of `shape`, in one of the particles, whose number is traced."""
        ...


class Draw(Messenger):
    """Draw each unobserved site, or take the value that is given; no gradient into drawn codes.

    Entered around a seeded program, so it meets a site last, after its plates and its key.

    Args:
        rng_key: Key of the subsamples, so that all particles see one minibatch.
        layout: How the sites lie.
        values: Values of sites, in place of draws.
        sampler: Draws some sites in its own way.
        particle: Which of the particles this run is for.
        pathwise: Whether reparameterised draws of a datum keep their gradient.
        expand: Whether values that are given take the shape in which the program would draw them.
    """

    def __init__(
        self,
        rng_key: Array,
        layout: Layout,
        values: Mapping[str, Array] | None = None,
        *,
        sampler: Sampler | None = None,
        particle: Array | None = None,
        pathwise: bool = True,
        expand: bool = False,
    ) -> None:
        super().__init__()
        self.rng_key, self.layout, self.values = rng_key, layout, values or {}
        self.sampler, self.particle, self.pathwise = sampler, particle, pathwise
        self.expand = expand

    def process_message(self, msg: Any) -> None:
        """Set the value of a latent site, or the key of a plate."""
        share_rows(msg, self.rng_key)
        if msg["type"] == "control_flow":
            stack = msg["kwargs"]["substitute_stack"]
            if self.values:
                stack.append(turned(msg, ("substitute", self._given_steps)))
            stack.append(("substitute", self._drawn_in_step))
        if not is_drawn(msg) or msg["value"] is not None:
            self._check_path(msg)
            return
        by_sampler = self.sampler is not None and self.sampler.draws(msg["name"])
        if by_sampler:
            msg["infer"] = {**msg["infer"], "_by_sampler": True}
        site = Site.of(msg)
        if site.name in self.values:
            msg["value"], msg["intermediates"] = self._given(site), given_steps(site, self.values)
            return
        if self.sampler is not None and self.particle is not None and by_sampler:
            msg["value"] = self.sampler(site, site.fn.shape(), self.particle)
        else:
            self._draw(msg)
        if site.needs_credit or (not self.pathwise and self.layout.owns(site)):
            msg["value"], msg["intermediates"] = jax.lax.stop_gradient(msg["value"]), []

    def _check_path(self, msg: Any) -> None:
        """What a `scan` has drawn keeps its gradient, where its density needs all of the draw."""
        if self.pathwise or not is_drawn(msg):
            return
        site = Site.of(msg)
        has_path = self.layout.owns(site) and not site.needs_credit
        if site.is_scanned and has_path and not has_inverse(site):
            raise ValueError(
                f"site '{site.name}' ({site.family}) is drawn in a `scan`, with a gradient that "
                "this loss cannot stop. Write the steps as a Python loop, with a site for each, or "
                "use Reinforce_ELBO, VIMCO_ELBO or DAPS_ELBO."
            )

    def _given(self, site: Site) -> Array:
        value, shape = self.values[site.name], site.fn.shape()
        value = value.reshape(value.shape[value.ndim - len(shape) :])
        return jnp.broadcast_to(value, shape) if self.expand else value

    def _given_steps(self, msg: Any) -> Array | None:
        """Of a step of a `scan`, the values of all steps, in the shape that its carry has."""
        if msg["name"] not in self.values:
            return None
        value, shape = self.values[msg["name"]], Site.of(msg).fn.shape()
        inner = value.shape[max(1, value.ndim - len(shape)) :]
        value = value.reshape(value.shape[0], *[1] * (len(shape) - len(inner)), *inner)
        return jnp.broadcast_to(value, (len(value), *shape))

    def _drawn_in_step(self, msg: Any) -> Array | None:
        """A draw of a step of a `scan` without its gradient, where it is to have none."""
        if msg["value"] is not None or not is_drawn(msg):
            return None
        site, value = Site.of(msg), msg["fn"](**msg["kwargs"])
        stops = not self.pathwise and self.layout.owns(site)
        if not site.needs_credit and not (stops and has_inverse(replace(site, value=value))):
            return None
        return jax.lax.stop_gradient(value)

    def _draw(self, msg: Any) -> None:
        fn, options = msg["fn"], msg["kwargs"]
        base = base_distribution(fn)
        is_known = isinstance(base, CertainCategorical | UniformCategorical)  # without logits
        if isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs) and not is_known:
            shape = options["sample_shape"] + fn.batch_shape + fn.event_shape
            msg["value"] = _draw_codes(options["rng_key"], base.logits, shape)
        else:
            try:
                drawn = fn(sample_intermediates=True, **options)
            except NotImplementedError as error:
                raise no_draws(Site.of(msg), error) from error
            value, msg["intermediates"] = drawn
            msg["value"] = jnp.asarray(value)  # a Delta has what it was given, such as a float


def _draw_codes(rng_key: Array, logits: Array, shape: tuple[int, ...]) -> Array:
    """Codes of a shape to which the batch shape of the logits broadcasts."""
    inner = shape[len(shape) - logits.ndim + 1 :]
    outer = math.prod(shape[: len(shape) - len(inner)])
    uniforms = jax.random.uniform(rng_key, (outer, *inner))
    codes = sample_codes(jnp.broadcast_to(logits, (*inner, logits.shape[-1])), uniforms)
    return codes.reshape(shape)


class _Unkeyed(Messenger):
    """Takes away keys that a program brings, whose draws would be the same in all runs."""

    def process_message(self, msg: Any) -> None:
        """Before a handler around gives a key."""
        if "rng_key" in msg.get("kwargs", {}) and msg["value"] is None:
            msg["kwargs"]["rng_key"] = None


def seeded(program: Any, rng_key: Array) -> Any:
    """A program whose draws are of this key, whatever key its user has seeded it with."""
    return seed(_Unkeyed(program), rng_key)


def run_program(rng_key: Array, program: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Run one program and keep its trace."""
    with StepsChecked():
        return trace(seeded(program, rng_key)).get_trace(*args, **kwargs)


def run_pair(rng_key: Array, pair: Pair, draw: Draw) -> Run:
    """Run guide and model once; the model takes the guide's draws, and its mutable state.

    Marked sites of the model are summed out.
    """
    guide_key, model_key = jax.random.split(rng_key)
    summed = pair.layout.summed
    guide_trace: dict[str, Any] = {}
    with draw:
        if pair.guide is not None:
            guide_trace = run_program(guide_key, pair.guide, pair.args, pair.kwargs)
        model = substitute(pair.model, data=mutable_values(guide_trace))
        replayed = replay(seeded(model, model_key), trace=guide_trace)
        known = guide_trace.keys() | draw.values.keys()
        with enumerate_marked(pair.layout, known) if summed else nullcontext():
            with StepsChecked(weighs=not summed):
                model_trace = trace(replayed).get_trace(*pair.args, **pair.kwargs)
            run = Run.of(guide_trace, model_trace)
    return run._replace(model=sum_out(run.model, pair.layout)) if summed else run


class FixedKeys(Messenger):
    """Keys of their own for draws that do not matter: vmapped callers then share one run."""

    def process_message(self, msg: Any) -> None:
        """Give a latent site its key."""
        if msg["type"] == "sample" and msg["value"] is None and msg["kwargs"]["rng_key"] is None:
            msg["kwargs"]["rng_key"] = jax.random.key(0)


class Unconditioned(uncondition):
    """Draws what is observed, and marks it."""

    def process_message(self, msg: Any) -> None:
        """Take the observation away."""
        observed = is_observed(msg)
        super().process_message(msg)
        if observed:
            msg["infer"] = {**msg["infer"], "was_observed": True}


def moved(site: Site, value: Array, by: int | Array) -> Array | None:
    """Other values of a discrete site: `by` places on in the circle of all but the one it has.

    Args:
        site: Whose support it is.
        value: Of the site.
        by: From 1 on, so that all others are met; it broadcasts over batch dims and cells.

    Returns:
        Values that differ from `value` wherever the site has two; None of a continuous site.
    """
    support = site.fn.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.boolean:
        return 1 - value
    if isinstance(support, constraints.integer_interval):
        low, size = support.lower_bound, support.upper_bound - support.lower_bound + 1
        return jnp.asarray(low + (value - low + _steps(by, size)) % size, value.dtype)
    if isinstance(site.base, OneHotCategorical):
        size = value.shape[-1]
        codes = (value.argmax(-1) + _steps(by, size)) % size
        return jax.nn.one_hot(codes, size, dtype=value.dtype)
    if support is constraints.nonnegative_integer:
        return value + by
    return None


def _steps(by: int | Array, size: int | np.ndarray | Array) -> Array:
    return 1 + (jnp.asarray(by) - 1) % jnp.maximum(size - 1, 1)
