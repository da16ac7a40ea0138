"""Draw the sites of a program, or take values that are given."""

from collections.abc import Callable, Mapping

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_dvae.ops.multisample import antithetic_draw
from pyro_dvae.programs.sites import Layout, Site, plates_of

__all__ = ["DrawTogether", "trace_pair"]


class DrawTogether(Messenger):
    """Draw each unobserved site once for all particles, or take the value that is given.

    Args:
        num_draws: K; None to let the program draw, one particle at a time.
        layout: How the sites are drawn.
        values: Values of sites, in place of draws.
        uniforms: For one particle at a time: the uniforms of its pair; filled by the first of the
            two, mirrored by the second.
    """

    def __init__(
        self,
        num_draws: int | None,
        layout: Layout,
        values: Mapping[str, Tensor],
        uniforms: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.num_draws, self.layout, self.values = num_draws, layout, values
        self.uniforms = {} if uniforms is None else uniforms

    def _pyro_sample(self, msg: Site) -> None:
        if msg["done"] or msg["is_observed"] or site_is_subsample(msg):
            return
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self._given(msg), True
        elif msg["name"] in self.layout.paired:
            msg["value"], msg["done"] = self._draw_pairs(msg), True
        elif self.num_draws is not None:
            msg["value"], msg["done"] = self._draw(msg, self.num_draws), True

    def _pyro_post_sample(self, msg: Site) -> None:
        if self.layout.pathwise or msg["is_observed"] or site_is_subsample(msg):
            return
        if plates_of(msg).keys() >= frozenset(self.layout.plates):
            msg["value"] = msg["value"].detach()

    def _given(self, msg: Site) -> Tensor:
        value = self.values[msg["name"]]
        if self.num_draws is not None:
            return value
        shape = (*msg["fn"].batch_shape, *msg["fn"].event_shape)  # as the program would draw it
        return value.reshape(value.shape[value.dim() - len(shape) :]).expand(shape)

    def _draw(self, msg: Site, num_draws: int) -> Tensor:
        batch = msg["fn"].batch_shape
        missing = self.layout.nesting + 1 - len(batch)
        if missing > 0:
            return msg["fn"](torch.Size((num_draws, *[1] * (missing - 1))))
        if batch[0] == 1 < num_draws:  # an axis the program made, not yet the particles'
            msg["fn"] = msg["fn"].expand((num_draws, *batch[1:]))
        return msg["fn"]()

    def _draw_pairs(self, msg: Site) -> Tensor:
        name, probs = msg["name"], msg["fn"].mean.detach()
        if self.num_draws is None:
            mirrored = name in self.uniforms
            uniforms = self.uniforms.setdefault(name, torch.rand_like(probs))
            return antithetic_draw(probs, uniforms, mirrored).to(probs.dtype)
        missing = self.layout.nesting + 1 - len(msg["fn"].batch_shape)
        own = (*[1] * (missing - 1), *probs.shape) if missing > 0 else probs.shape[1:]
        uniforms = probs.new_empty((self.num_draws // 2, *own)).uniform_()
        halves = [antithetic_draw(probs, uniforms, mirrored) for mirrored in (False, True)]
        return torch.cat(halves).to(probs.dtype)


def trace_pair(
    model: Callable, guide: Callable | None, args: tuple, kwargs: dict, draw: Messenger
) -> tuple[poutine.Trace, poutine.Trace]:
    guide_trace = poutine.Trace()
    with draw:
        if guide is not None:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        return guide_trace, poutine.trace(replayed).get_trace(*args, **kwargs)
