"""The discrete latents of a datum as one row of codes, for any NumPyro program.

A truncated or enumerated posterior works on states: H codes, one per discrete latent of a datum,
whatever sites these are in. `find_space` reads off the model which sites there are; `decode` turns
codes into the values of these sites, `encode` the other way. A space holds no traced array, so it
may be kept from one trace of a jitted function to the next.

Shapes: codes ``(S, B, H)``, S states of each of B data, the cells of the plates that the discrete
sites share; values of a site ``(S, *batch, *event)``, as `run_particles` takes them.
"""

import math
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, Num
from numpyro.handlers import block, replay, trace

from numpyro_dvae.ops.arguments import shown_count
from numpyro_dvae.programs.draw import Draw, run_program
from numpyro_dvae.programs.messages import is_among, is_observed
from numpyro_dvae.programs.sites import Layout, Pair, Site, sample_sites
from numpyro_dvae.programs.structure.layout import find_layout
from numpyro_dvae.programs.supports import listed_values, no_end

__all__ = [
    "CodedSite",
    "Space",
    "a_few",
    "by_datum",
    "decode",
    "encode",
    "enumerate_draws",
    "find_space",
    "latents_of",
    "shape_in_datum",
]


class CodedSite(NamedTuple):
    """A discrete site of a datum: how its value is made of codes."""

    name: str
    support: np.ndarray  # (num_codes, *event of one latent)
    batch_shape: tuple[int, ...]  # within a datum, those of shared plates as singletons; the steps
    # of a `scan` in front
    event_shape: tuple[int, ...]
    is_range: bool  # the support is 0, 1, ..., so that a code is its value
    is_scanned: bool = False

    @property
    def num_latents(self) -> int:
        """Latents per datum."""
        return math.prod(self.batch_shape) * math.prod(self.cells)

    @property
    def infer(self) -> dict[str, Any]:
        """What marks the site of a guide as of all steps of a `scan`, as the host does."""
        return {"_scan_current_index": None} if self.is_scanned else {}

    @property
    def cells(self) -> tuple[int, ...]:
        """The event dims that hold one latent each."""
        return self.event_shape[: len(self.event_shape) - self.support.ndim + 1]


class Space(NamedTuple):
    """The states of a datum."""

    layout: Layout
    sites: tuple[CodedSite, ...]

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each of the H latents."""
        sizes = [(len(site.support),) * site.num_latents for site in self.sites]
        return tuple(chain(*sizes))


# ------------------------------------------------------------------------------- the model's space


def find_space(
    rng_key: Array, model: Callable, rest: Callable | None, args: tuple, kwargs: dict
) -> Space:
    """The states of a datum of `model`, whose other latents `rest` samples; computes nothing.

    Raises:
        ValueError: If a site that `rest` does not sample has no finite support, if one that it
            does has no pathwise gradient, or if discrete sites share no plate.
    """
    spaces: list[Space] = []
    program = latents_of(model, rest)

    def inspect() -> None:
        with Draw(rng_key, Layout()):
            rest_trace = run_program(rng_key, rest, args, kwargs) if rest else {}
            latents = sample_sites(run_program(rng_key, program, args, kwargs))
        _check_latents(latents, set(sample_sites(rest_trace)))
        layout = find_layout(rng_key, Pair(model, program, args, kwargs))
        sites = {name: site for name, site in latents.items() if name not in rest_trace}
        _check_plates(layout, sites)
        spaces.append(Space(layout, tuple(_code_site(site, layout) for site in sites.values())))

    with block():
        jax.eval_shape(inspect)
    return spaces[0]


def latents_of(model: Callable, rest: Callable | None) -> Callable:
    """A program that samples the latents of `model`: `rest`, then the other sites' priors."""

    def program(*args: Any, **kwargs: Any) -> None:
        with trace() as nodes:
            if rest is not None:
                rest(*args, **kwargs)
        with (
            block(hide_fn=lambda msg: is_among(msg, nodes) or is_observed(msg)),
            replay(trace=nodes),
        ):
            model(*args, **kwargs)

    return program


def _check_latents(latents: Mapping[str, Site], rest: set[str]) -> None:
    for name, site in latents.items():
        if name in rest:
            if site.needs_credit and not site.is_auxiliary:
                raise ValueError(
                    f"site '{name}' ({site.family}) of `rest` has no pathwise gradient. Leave a "
                    "discrete site of a datum to the states, and give `rest` reparameterised sites "
                    "only."
                )
            continue
        _check_dims(site)
        if not site.has_finite_support:
            raise ValueError(
                f"site '{name}' ({site.family}) has no finite support, so no states of it can be "
                "listed. Sample it in `rest`, a guide with reparameterised sites, or marginalise "
                "it; a count can be cut off, as a Categorical."
            )


def _check_dims(site: Site) -> None:
    if site.has_undeclared_dims:
        shape = site.fn.batch_shape[1:] if site.is_scanned else site.fn.batch_shape
        raise ValueError(
            f"site '{site.name}' has batch shape {tuple(shape)} with a dim that is under no plate, "
            "so its states are not listed. Declare the dim with .to_event(1), a `sample_shape` by "
            ".expand(...).to_event(1) in its place, or put the site under a plate; losses that "
            "sample, such as Reinforce_ELBO, take it as it is."
        )


def _check_plates(layout: Layout, sites: Mapping[str, Site]) -> None:
    if all(0 in site.value.shape for site in sites.values()):
        raise ValueError(
            "the model has no discrete latent in this call, so there are no states to keep. "
            "Use a loss that samples, such as Reinforce_ELBO, with a guide for its other latents."
        )
    if not layout.plates:
        listed = ", ".join(f"'{name}' under {sorted(s.plates)}" for name, s in sites.items())
        raise ValueError(
            "the discrete sites of a datum must be under a plate that they share, and no site "
            f"outside of it may depend on them; got {listed}. Put them under the data plate, or "
            "marginalise those that are global."
        )


def _code_site(site: Site, layout: Layout) -> CodedSite:
    support = listed_values(site)
    is_range = np.array_equal(support, np.arange(len(support)))
    event_shape = tuple(site.fn.event_shape)
    shape = shape_in_datum(site, layout)
    return CodedSite(site.name, support, shape, event_shape, is_range, site.is_scanned)


def shape_in_datum(site: Site, layout: Layout) -> tuple[int, ...]:
    """Batch shape of a site within one datum, shared plates as singletons; its steps in front."""
    num_steps = site.fn.batch_shape[:1] if site.is_scanned else ()
    inner = tuple(site.fn.batch_shape[len(num_steps) :])
    batch = (1,) * (layout.nesting - len(inner)) + inner
    inner = tuple(1 if dim - len(batch) in layout.dims else n for dim, n in enumerate(batch))
    return (*num_steps, *inner)


# ------------------------------------------------------------------------------- codes and values


def decode(space: Space, codes: Num[Array, "S B H"], sizes: tuple[int, ...]) -> dict[str, Array]:
    """Values of the discrete sites, ``(S, *batch, *event)``; `sizes` are those of the plates.

    Real numbers stay what they are, for slopes in the codes 0, 1, ... of a site.
    """
    ends = np.cumsum([site.num_latents for site in space.sites])[:-1]
    values, parts = {}, jnp.split(codes, ends, axis=-1)
    for site, part in zip(space.sites, parts, strict=True):
        dtype = part.dtype if _is_real(part) else site.support.dtype
        value = part.astype(dtype) if site.is_range else jnp.asarray(site.support)[part]
        value = value.reshape(len(codes), *sizes, *site.batch_shape, *site.event_shape)
        values[site.name] = _into_dims(value, space.layout, len(site.batch_shape))
    return values


def a_few(space: Space) -> dict[str, Array]:
    """Three assignments of all discrete sites of a datum, to try a program with.

    Dims of plates that data share have size 1.
    """
    largest = np.array(space.cardinalities) - 1
    codes = np.stack([0 * largest, largest, np.arange(len(largest)) % (largest + 1)])
    with jax.ensure_compile_time_eval():  # they are known, whatever is traced
        return decode(space, jnp.asarray(codes)[:, None], (1,) * len(space.layout.plates))


def encode(
    space: Space, values: Mapping[str, Array], sizes: tuple[int, ...]
) -> Integer[Array, "S B H"]:
    """Codes of the values of the discrete sites."""
    parts = []
    for site in space.sites:
        cells = by_datum(values[site.name], site, space.layout, sizes, site.support.ndim - 1)
        if not site.is_range:
            same = jnp.expand_dims(cells, 3) == site.support
            cells = same.reshape(*same.shape[:4], -1).all(-1).argmax(-1)
        parts.append(cells.astype(int))
    return jnp.concatenate(parts, -1)


def _is_real(codes: Array) -> bool:
    return jnp.issubdtype(codes.dtype, jnp.floating)


def _into_dims(value: Array, layout: Layout, num_batch: int) -> Array:
    """From ``(S, *plates, *batch of a datum, *event)``, swap the plates into their batch dims."""
    leading = 1 + len(layout.dims)
    for axis, dim in enumerate(layout.dims, 1):
        value = jnp.swapaxes(value, axis, leading + num_batch + dim)
    return value.reshape(value.shape[0], *value.shape[leading:])


def by_datum(
    value: Array, site: CodedSite, layout: Layout, sizes: tuple[int, ...], event_dim: int
) -> Array:
    """``(S, *batch, *cells, *event)`` as ``(S, B, latents, *event)``, batch dims broadcast."""
    batch, num_batch = list(site.batch_shape), len(site.batch_shape)
    for dim, size in zip(layout.dims, sizes, strict=True):
        batch[dim] = size
    event = value.shape[value.ndim - event_dim :]
    missing, lead = 1 + num_batch + len(site.cells) + event_dim - value.ndim, 1 + site.is_scanned
    value = value.reshape(*value.shape[:lead], *[1] * missing, *value.shape[lead:])
    value = jnp.broadcast_to(value, (value.shape[0], *batch, *site.cells, *event))
    places = range(1, 1 + len(sizes))
    value = jnp.moveaxis(value, [1 + num_batch + dim for dim in layout.dims], places)
    return value.reshape(value.shape[0], math.prod(sizes), site.num_latents, *event)


def enumerate_draws(
    rng_key: Array, program: Callable, args: tuple, kwargs: dict, layout: Layout, max_states: int
) -> dict[str, Array]:
    """All joint values of the discrete sites of a datum, one after another on axis 0.

    Args:
        rng_key: Key of a run that computes nothing.
        program: The guide, or the model, whose sites they are.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        layout: Which of its sites are discrete, and which plates make a datum.
        max_states: The most that are listed.

    Returns:
        For each site ``(S, *batch, *event)``, with singleton batch dims for the shared plates: the
        S states are those of one datum, and all data go through them at once. Nothing where there
        are no discrete sites.

    Raises:
        ValueError: If a site has no finite support, or if S exceeds `max_states`.
    """
    if not layout.credited:
        return {}
    space = _space_of_draws(rng_key, program, args, kwargs, layout)
    if not space.sites:  # as of a model whose guide draws codes that are its own
        return {}
    num_states = math.prod(space.cardinalities)
    if num_states > max_states:
        raise ValueError(_too_many(space, num_states, max_states))
    places = np.cumprod([1, *space.cardinalities[:-1]])
    codes = np.arange(num_states)[:, None] // places % np.array(space.cardinalities)
    return decode(space, jnp.asarray(codes)[:, None], (1,) * len(layout.plates))


def _too_many(space: Space, num_states: int, max_states: int) -> str:
    listed = ", ".join(f"'{s.name}': {len(s.support)}^{s.num_latents}" for s in space.sites)
    whose, marked = "per datum", ""
    if not space.layout.plates:
        whose = "of all data together"
        marked = ', or leave sites of each datum to the model, infer={"enumerate": "parallel"}'
    return (
        f"enumeration needs {shown_count(num_states)} states {whose} ({listed}), but `max_states` "
        f"is {max_states}. {'Raise it, or sample' if num_states <= 2**24 else 'Sample'}: train by "
        f"DAPS_ELBO or Reinforce_ELBO, look by importance_diagnostics{marked}."
    )


def _space_of_draws(
    rng_key: Array, program: Callable, args: tuple, kwargs: dict, layout: Layout
) -> Space:
    """The states of what a program draws."""
    spaces: list[Space] = []

    def inspect() -> None:
        with Draw(rng_key, Layout()):
            sites = sample_sites(run_program(rng_key, program, args, kwargs))
        credited = [site for name, site in sites.items() if name in layout.credited]
        for site in credited:
            _check_dims(site)
            if not site.has_finite_support:
                raise no_end(site)
        spaces.append(Space(layout, tuple(_code_site(site, layout) for site in credited)))

    with block():
        jax.eval_shape(inspect)
    return spaces[0]
