"""Run guide and model with K particles and return plain arrays, for any Pyro program.

Every algorithm gets the same record, `Particles`, so that none of them meets a trace:
log-densities per particle and per datum. A datum is one cell of the plates that all guide sites
without a pathwise gradient share: usually the data plate; no plate at all if such a site is global,
and then the whole batch carries one weight per particle.

A log-density under these plates is summed over every further plate into its datum. What is outside
of them, a global continuous latent say, is kept apart in the ``shared_*`` fields: it does not
depend on the draws of a datum, which `find_layout` verifies. The scale of the
shared plates (full size / subsample size) is kept apart as well, since importance weights want the
datum's own nats: ``loss = -scale * per_datum.sum() - shared``.

Shapes: particles lead, left of all plates. Each site is drawn once for all K particles from the
distribution that the plates left, so its parameters are never copied K times. Values in nats.

References:
    [1] Schulman, Heess, Weber & Abbeel. Gradient estimation using stochastic computation graphs.
        NeurIPS, 2015.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from pyro_dvae.programs.draw import DrawTogether, trace_pair
from pyro_dvae.programs.record import Ledger, Particles, concatenate, drawn_subsamples, make_record
from pyro_dvae.programs.sites import Layout, log_prob, sample_sites

__all__ = ["Particles", "broadcasts", "dream", "run_particles", "takes_particles"]

_TRIAL_PARTICLES = 3  # unlikely to be some other dim's size, and cheap


def run_particles(
    model: Callable,
    guide: Callable | None,
    args: tuple,
    kwargs: dict,
    layout: Layout,
    num_particles: int,
    *,
    vectorize: bool = True,
    with_entropy: bool = False,
    with_codes: bool = False,
    values: Mapping[str, Tensor] | None = None,
    closed_forms: Mapping[str, Any] | None = None,
) -> Particles:
    """Draw K particles from the guide and score them under guide and model.

    Args:
        model: Any Pyro model.
        guide: A guide for it, called with the same arguments; None if all latents are given.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        layout: What `find_layout` found for this pair.
        num_particles: K.
        vectorize: Run the programs once with a particle axis, or K times without (same result).
        with_entropy: Also collect closed-form entropies; None if a site offers none.
        with_codes: Also return the discrete latents; None beside reparameterised latents of a
            datum or infinite support, where no two particles are equal.
        values: Values of latent sites in place of draws, ``(K, *batch, *event)`` with singleton
            batch dims where they broadcast, or one for all K as ``(1, *batch, *event)``; every
            other site is then drawn once for all K. The guide may lack sites that are given.
        closed_forms: Of some of the model's sites, the `models.ClosedForm`.

    Raises:
        ValueError: If the shape of a site's log-density is not explained by its plates.
    """
    given, forms = values or {}, closed_forms or {}
    if vectorize:
        draw = DrawTogether(1 if given else num_particles, layout, given)
        traces = trace_pair(model, guide, args, kwargs, draw)
        return make_record(*traces, num_particles, layout, with_entropy, with_codes, forms)
    records, minibatch = [], poutine.Trace()
    uniforms: list[dict[str, Tensor]] = [{} for _ in range(num_particles)]
    for k in range(num_particles):
        own = {name: value[k if len(value) > 1 else 0] for name, value in given.items()}
        first = k % (num_particles // 2) if layout.paired else k
        draw = DrawTogether(None, layout, own, uniforms[first])
        with poutine.replay(trace=minibatch):  # every particle sees the same subsample
            traces = trace_pair(model, guide, args, kwargs, draw)
        minibatch = drawn_subsamples(traces)
        records.append(make_record(*traces, 1, layout, with_entropy, with_codes, forms))
    return concatenate(records)


def broadcasts(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, layout: Layout, num_particles: int
) -> bool:
    """Whether a run with a particle axis scores its last particle as a plain run does.

    A program that indexes from the left may run with a particle axis, on wrong shapes that happen
    to fit. One that disagrees with itself (dropout) cannot be judged and passes.

    Raises:
        Whatever the program raises on meeting a particle axis.
    """
    layout = layout._replace(paired=())  # any draws will do
    with torch.no_grad():
        draw = DrawTogether(num_particles, layout, {})
        traces = trace_pair(model, guide, args, kwargs, draw)
        together = make_record(*traces, num_particles, layout)
        drawn = [(n, site) for n, site in sample_sites(traces[0]) if not site["is_observed"]]
        last = DrawTogether(None, layout, {name: site["value"][-1] for name, site in drawn})
        with poutine.replay(trace=drawn_subsamples(traces)):
            pairs = [trace_pair(model, guide, args, kwargs, last) for _ in range(2)]
        alone = [make_record(*pair, 1, layout) for pair in pairs]
    if not _agree(alone[0].log_p[-1], alone[1].log_p[-1]):
        return True
    return all(
        _agree(getattr(together, field)[-1], getattr(alone[0], field)[-1])
        for field in ("log_likelihood", "log_prior", "log_q_discrete", "log_q_rest")
    )


def dream(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    layout: Layout,
    replace_data: Callable[[dict[str, Any], tuple, dict], tuple[tuple, dict]],
) -> Float[Tensor, "*plates"]:
    """Log q of latents that the model draws, given the data that it makes of them.

    Args:
        model: Any Pyro model; its observed sites are drawn as well.
        guide: A guide for it.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        layout: What `find_layout` found for this pair.
        replace_data: Maps (made data by site, args, kwargs) to the guide's (args, kwargs).
    """
    with torch.no_grad():
        model_trace = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
    sites = dict(sample_sites(model_trace))
    made = {n: s["value"] for n, s in sites.items() if s["infer"].get("was_observed")}
    args, kwargs = replace_data(made, args, kwargs)
    replayed = poutine.replay(guide, trace=model_trace)
    ledger = Ledger(layout, 1)
    for name, site in sample_sites(poutine.trace(replayed).get_trace(*args, **kwargs)):
        if name in sites:
            ledger.add("q", site, log_prob(site))
    return ledger.total("q")[0]


def _agree(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)


def takes_particles(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, layout: Layout
) -> bool:
    """Once per pair: does it broadcast over a particle axis? If not, say so and what to do."""
    try:
        if broadcasts(model, guide, args, kwargs, layout, _TRIAL_PARTICLES):
            return True
        trouble = "its log-densities change with a particle axis"
    except (RuntimeError, ValueError, IndexError) as error:
        trouble = str(error).splitlines()[0]
    warnings.warn(
        "model or guide does not broadcast over a particle axis left of all plates: "
        f"{trouble}. It will run once per particle, with the right result but slower. Index "
        "from the right (x[..., i], sum(-1)) to have particles vectorised, or pass "
        "vectorize_particles=False to silence this.",
        stacklevel=6,
    )
    return False
