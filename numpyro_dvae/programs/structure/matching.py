"""Whether guide and model are of one another: the same latents, plates, families and dims."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from numpyro_dvae.distributions import OneHotCategorical, PathwiseBernoulli, PathwiseCategorical
from numpyro_dvae.programs.messages import rows_of_plates
from numpyro_dvae.programs.sites import Run, Site

__all__ = ["check_match"]

# With a gradient through their draws, or at a point, but with log-probabilities, not densities.
_RELAXED = PathwiseBernoulli, PathwiseCategorical
_OF_PROBABILITIES = dist.Delta, *_RELAXED


def check_match(run: Run) -> None:
    """See that guide and model have the same latents, under the same plates, in the same dims.

    Raises:
        ValueError: If a site differs, by its name.
    """
    _check_full_sizes(run)
    latent = {name for name, site in run.model.items() if not site.is_observed}
    for name, site in run.guide.items():
        if site.is_observed or site.is_auxiliary:
            continue
        if name not in latent:
            raise ValueError(
                f"site '{name}' of the guide is not a latent site of the model, which has "
                f"{sorted(latent)}. Rename it, or mark it infer={{'is_auxiliary': True}}."
            )
        _check_plates(name, site.plates, run.model[name].plates)
        _check_families(site, run.model[name])
        _check_relaxed(site, run.model[name])
        _check_shapes(site, run.model[name])
    if missing := sorted(latent - run.guide.keys()):
        raise ValueError(
            f"sites {missing} of the model are neither observed nor sampled by the guide, which "
            f"has {sorted(run.guide)}. Sample them in the guide, observe or marginalise them, or "
            "mark discrete ones infer={'enumerate': 'parallel'}, to have them summed out."
        )


def _check_plates(name: str, guide: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    def described(frames: Mapping[str, Any]) -> list[str]:
        return [f"'{f.name}' (dim {f.dim}, size {f.size})" for f in frames.values()] or ["no plate"]

    if {(f.name, f.dim, f.size) for f in guide.values()} != {
        (f.name, f.dim, f.size) for f in model.values()
    }:
        raise ValueError(
            f"site '{name}' is under {', '.join(described(guide))} in the guide, but under "
            f"{', '.join(described(model))} in the model. Give both the same plates and sizes."
        )


def _check_full_sizes(run: Run) -> None:
    """A plate of the model takes the guide's rows: other sizes would not show in those."""
    guide, model = rows_of_plates(run.guide_trace), rows_of_plates(run.model_trace)
    for name in guide.keys() & model.keys():
        sizes = guide[name].full_size, model[name].full_size
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"plate '{name}' has {sizes[0]} rows in the guide, but {sizes[1]} in the model. "
                "Give both the same size."
            )


def _check_families(guide: Site, model: Site) -> None:
    has_path = not guide.needs_credit and not isinstance(guide.base, _OF_PROBABILITIES)
    if has_path and model.has_finite_support:
        raise ValueError(
            f"site '{guide.name}' is discrete in the model ({model.family}), but continuous in the "
            f"guide ({guide.family}): its draws have a gradient, and its values cannot be listed. "
            "Write a family with has_enumerate_support there, too; for a gradient through its "
            "draws, relax(model) and relax(guide), with Trace_ELBO."
        )


def _check_relaxed(guide: Site, model: Site) -> None:
    if not isinstance(guide.base, _RELAXED) or not model.has_finite_support:
        return
    is_linear = isinstance(model.base, OneHotCategorical)  # as the relaxed densities are
    is_between = guide.base.method == "gumbel" and not is_linear
    if is_between or guide.fn.event_shape != model.fn.event_shape:
        raise ValueError(
            f"site '{guide.name}' is relaxed in the guide and not in the model, whose family, "
            f"{model.family}, takes codes alone. Relax both, with the same `sites`, or neither."
        )


def _check_shapes(guide: Site, model: Site) -> None:
    shapes = [tuple(getattr(site.fn, "event_shape", ())) for site in (guide, model)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"site '{guide.name}' has event shape {shapes[0]} in the guide, but {shapes[1]} in the "
            "model. Give both the same shape, with the same number of dims in .to_event(...)."
        )
    _check_batches(guide, model)
    sizes = [site.num_values for site in (guide, model)]
    if None not in sizes and sizes[0] > sizes[1]:  # type: ignore[operator]
        raise ValueError(
            f"site '{guide.name}' has {sizes[0]} values in the guide, but {sizes[1]} in the model, "
            "which gives the others no probability. Give both the same number."
        )


def _check_batches(guide: Site, model: Site) -> None:
    """Dims that no plate declares, and steps: else one draw would count for several latents."""
    given, taken = (tuple(getattr(site.fn, "batch_shape", ())) for site in (guide, model))
    drawn, scored = map(_batch_of_value, (guide, model))
    if guide.in_scan != model.in_scan:  # which of the dims are steps nothing but the place tells
        fits = given == taken and drawn == scored
    else:
        num_steps = int(guide.in_scan)
        fits = _is_one(given, taken, num_steps) and _is_one(drawn, scored, num_steps)
    if not fits:
        raise ValueError(
            f"site '{guide.name}' has batch shape {given} in the guide, but {taken} in the model. "
            "Give both the same; the steps of a `scan` are the first dim, before those of a step."
        )


def _batch_of_value(site: Site) -> tuple[int, ...]:
    shape = tuple(jnp.shape(site.value))
    return shape[: len(shape) - site.fn.event_dim]


def _is_one(one: tuple[int, ...], other: tuple[int, ...], num_steps: int) -> bool:
    """Whether shapes are one, but for dims of size 1 after those of steps that both have."""
    steps, (one, other) = (one[:num_steps], other[:num_steps]), (one[num_steps:], other[num_steps:])
    width = max(len(one), len(other))
    padded = [(1,) * (width - len(shape)) + shape for shape in (one, other)]
    return steps[0] == steps[1] and padded[0] == padded[1]
