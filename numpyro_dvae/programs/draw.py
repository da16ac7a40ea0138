"""Draw the sites of a program, or take values that are given."""

import math
import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.primitives import Messenger

from numpyro_dvae.distributions import sample_codes
from numpyro_dvae.ops.multisample import antithetic_draw
from numpyro_dvae.programs.sites import (
    Layout,
    Site,
    Trace,
    base_distribution,
    mutable_values,
    needs_score,
    plates_of,
)

__all__ = ["Draw", "trace_pair"]


class Draw(Messenger):
    """Draw each unobserved site, or take the value that is given; no gradient into drawn codes.

    Entered around a seeded program, so it meets a site last, after its plates and its key.
    Subsamples have a key of their own, so all particles see one minibatch; so has the pair of which
    this particle is a `half`, mirrored or not.
    """

    def __init__(
        self,
        subsample_key: Array,
        values: Mapping[str, Array],
        layout: Layout | None = None,
        half: tuple[Array, Array] | None = None,
        *,
        expand: bool = False,
    ) -> None:
        super().__init__()
        self.subsample_key, self.values, self.expand = subsample_key, values, expand
        self.layout, self.half = layout or Layout(0, (), (), ()), half

    def process_message(self, msg: Site) -> None:
        """Set the value of a latent site, or the key of a plate."""
        if msg["type"] == "plate" and msg["value"] is None:
            name = zlib.crc32(msg["name"].encode())
            msg["kwargs"]["rng_key"] = jax.random.fold_in(self.subsample_key, name)
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        if msg["name"] in self.values:
            msg["value"] = self._given(msg)
            return
        if self.half is not None and msg["name"] in self.layout.paired:
            self._draw_half(msg, *self.half)
        else:
            self._draw(msg)
        of_datum = plates_of(msg).keys() >= frozenset(self.layout.plates)
        if needs_score(msg) or (of_datum and not self.layout.pathwise):
            msg["value"], msg["intermediates"] = jax.lax.stop_gradient(msg["value"]), []

    def _given(self, msg: Site) -> Array:
        value, shape = self.values[msg["name"]], msg["fn"].shape()
        value = value.reshape(value.shape[value.ndim - len(shape) :])
        return jnp.broadcast_to(value, shape) if self.expand else value

    def _draw(self, msg: Site) -> None:
        fn, options = msg["fn"], msg["kwargs"]
        base = base_distribution(fn)
        if isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs):
            shape = options["sample_shape"] + fn.batch_shape + fn.event_shape
            msg["value"] = _draw_codes(options["rng_key"], base.logits, shape)
        else:
            drawn = fn(sample_intermediates=True, **options)
            msg["value"], msg["intermediates"] = drawn

    def _draw_half(self, msg: Site, pair_key: Array, mirrored: Array) -> None:
        probs = msg["fn"].mean
        key = jax.random.fold_in(pair_key, zlib.crc32(msg["name"].encode()))
        shape = msg["fn"].shape(msg["kwargs"]["sample_shape"])
        uniforms = jax.random.uniform(key, shape, probs.dtype)
        msg["value"] = antithetic_draw(probs, uniforms, mirrored).astype(int)


def _draw_codes(rng_key: Array, logits: Array, shape: tuple[int, ...]) -> Array:
    """Codes of a shape to which the batch shape of the logits broadcasts."""
    batch = logits.shape[:-1]
    own = shape[len(shape) - len(batch) :]
    uniforms = jax.random.uniform(rng_key, (math.prod(shape[: len(shape) - len(own)]), *own))
    codes = sample_codes(jnp.broadcast_to(logits, (*own, logits.shape[-1])), uniforms)
    return codes.reshape(shape)


def trace_pair(
    rng_key: Array,
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    draw: Draw,
    *,
    settled: bool = False,
) -> tuple[Trace, Trace]:
    """One plain run of guide and model; the model sees the guide's draws and mutable state.

    `settled` keeps the model at its own state: what a guide learns by running is not for it.
    """
    guide_key, model_key = jax.random.split(rng_key)
    with draw:
        guide_trace = trace(seed(guide, guide_key)).get_trace(*args, **kwargs)
        if not settled:
            model = substitute(model, data=mutable_values(guide_trace))
        replayed = replay(seed(model, model_key), trace=guide_trace)
        model_trace = trace(replayed).get_trace(*args, **kwargs)
    return guide_trace, model_trace
