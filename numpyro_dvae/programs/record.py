"""What a run of guide and model says of each datum: the record that every algorithm takes.

Everything a datum owns counts: a log-density under the datum's plates is summed over every further
plate into it. What is outside of them, a global continuous latent say, is kept apart in the
``shared_*`` fields. The scale of the shared plates (full size / subsample size) is kept apart as
well, since importance weights want the datum's own nats.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from numpyro_dvae.programs.densities import entropy_of, fast_log_prob, without_mask
from numpyro_dvae.programs.sites import Layout, Run, Site, same_scale

__all__ = [
    "Ledger",
    "Particles",
    "Reader",
    "in_batch_dims",
    "make_record",
    "read_codes",
    "read_silenced",
    "silenced_of",
]

# What an algorithm wants of a run beside its log-densities: from (run of one particle, layout, K)
# to arrays, or tuples and dicts of arrays, which get the K particles in front; or None.
Reader = Callable[[Run, Layout, int], Any]


class Particles(NamedTuple):
    """Log-densities of K particles, in nats: of each datum, and of what the data share."""

    log_likelihood: Float[Array, "K *plates"]  # observed sites of the model
    log_prior: Float[Array, "K *plates"]  # latent sites of the model
    log_q_discrete: Float[Array, "K *plates"]  # guide sites that need the score function
    log_q_pathwise: Float[Array, "K *plates"]  # reparameterised and observed guide sites
    log_draw: Float[Array, "K *plates"]  # as log_q_discrete, but never scaled or masked: its
    # gradient is the score function of the draws
    entropy: Float[Array, "K *plates"] | None  # closed form, where asked for and offered
    shared_likelihood: Float[Array, "K"]
    shared_prior: Float[Array, "K"]
    shared_q: Float[Array, "K"]
    scale: float | Array  # weight of a datum in the loss
    extras: Mapping[str, Any] = MappingProxyType({})  # what the algorithm's readers made

    @property
    def log_p(self) -> Float[Array, "*K_plates"]:
        """Log joint density of each datum."""
        return self.log_likelihood + self.log_prior

    @property
    def log_q(self) -> Float[Array, "*K_plates"]:
        """Log density of each datum's latents under the guide."""
        return self.log_q_discrete + self.log_q_pathwise


class Ledger:
    """Sums of one particle's log-densities by kind: of each datum, and of what the data share.

    Args:
        layout: Which plates make a datum.
        sites: All that are going to be added, which tell the weight of a datum.
    """

    def __init__(self, layout: Layout, sites: Iterable[Site]) -> None:
        self.layout = layout
        self.owned: dict[str, Array] = {}
        self.shared: dict[str, Array] = {}
        self.common, self.is_common = _common_scale([s for s in sites if layout.owns(s)], layout)

    def add(self, kind: str, site: Site, values: Array) -> None:
        """Scale and sum the values of a site into its datum, or into the shared part."""
        scale = site.scale
        if self.layout.owns(site):
            scale = 1.0 if self.is_common else scale / self.common
        self.add_bare(kind, site, site.scaled(values, scale))

    def add_bare(self, kind: str, site: Site, values: Array) -> None:
        """Sum the values of a site as they are: of draws, which no mask or scale changes."""
        dims, book = tuple(range(-self.layout.nesting, 0)), self.shared
        if self.layout.owns(site):
            dims, book = tuple(set(dims) - set(self.layout.dims)), self.owned
        values = in_batch_dims(site, values, self.layout.nesting).sum(dims, keepdims=True)
        book[kind] = book[kind] + values if kind in book else values

    def total(self, kind: str) -> Float[Array, "*plates"]:
        """The sum of a kind for each datum."""
        shapes = (values.shape for values in self.owned.values())
        shape = jnp.broadcast_shapes((1,) * self.layout.nesting, *shapes)
        by_datum = [shape[dim] for dim in self.layout.dims]
        return jnp.broadcast_to(self._values(self.owned, kind), shape).reshape(by_datum)

    def scale(self) -> Float[Array, "*plates"]:
        """Weight of each datum in the loss."""
        scale = jnp.asarray(self.common, self._anything().dtype)
        if scale.ndim == 0:
            return scale
        shape = (1,) * (self.layout.nesting - scale.ndim) + scale.shape
        return scale.reshape([shape[dim] for dim in self.layout.dims])

    def total_shared(self, kind: str) -> Float[Array, ""]:
        """The sum of a kind over what the data share."""
        return self._values(self.shared, kind).reshape(())

    def _values(self, book: Mapping[str, Array], kind: str) -> Array:
        """Zeros of a kind that no site has."""
        return book.get(kind, jnp.zeros((1,) * self.layout.nesting, self._anything().dtype))

    def _anything(self) -> Array:
        return next(iter((self.owned | self.shared).values()), jnp.zeros(()))


def _common_scale(sites: Sequence[Site], layout: Layout) -> tuple[float | Array, bool]:
    """The weight of a datum, that of all its sites, or else of its subsampled plates alone; which.

    Importance weights want the datum's own nats. A site that is weighed otherwise than the others
    of its datum, by an annealed likelihood say, is so within the datum.
    """
    scales = [site.scale for site in sites]
    alike = layout.one_scale or all(same_scale(scale, scales[0]) for scale in scales)
    if scales and alike and (jnp.ndim(scales[0]) == 0 or _varies_by_datum(scales[0], layout)):
        return scales[0], True
    return (_plates_scale(sites[0], layout) if sites else 1.0), False


def _varies_by_datum(scale: Array, layout: Layout) -> bool:
    """Whether a scale is one number for each datum, in the batch dims of its plates."""
    sizes = {dim - scale.ndim: size for dim, size in enumerate(scale.shape)}
    return all(size == 1 or dim in layout.dims for dim, size in sizes.items())


def _plates_scale(site: Site, layout: Layout) -> float:
    """Full size over subsample size, of all plates that make a datum."""
    scale = 1.0
    for plate in (site.plates[name] for name in layout.plates):
        scale *= plate.full_size / plate.size
    return scale


def make_record(
    run: Run,
    layout: Layout,
    num_particles: int,
    *,
    reads: Mapping[str, Reader] = MappingProxyType({}),
    with_entropy: bool = False,
) -> Particles:
    """The record of a run of one particle of K, without the axis K."""
    sites = [*run.guide.values(), *run.model.values()]
    ledger, entropies_known = Ledger(layout, sites), with_entropy
    extras = {name: read(run, layout, num_particles) for name, read in reads.items()}
    for site in run.guide.values():
        values = site.log_prob()
        drawn = site.is_credited  # a factor is no draw, but counts
        ledger.add("q_discrete" if drawn else "q_pathwise", site, values)
        if drawn:
            ledger.add_bare("draw", site, draw_log_prob(site, values))
            entropy = entropy_of(site.fn, site.value) if entropies_known else None
            entropies_known = entropy is not None
            if entropy is not None:
                ledger.add("entropy", site, entropy)
    for site in run.model.values():
        ledger.add(site.kind, site, fast_log_prob(site))
    return Particles(
        log_likelihood=ledger.total("likelihood"),
        log_prior=ledger.total("prior"),
        log_q_discrete=ledger.total("q_discrete"),
        log_q_pathwise=ledger.total("q_pathwise"),
        log_draw=ledger.total("draw"),
        entropy=ledger.total("entropy") if entropies_known else None,
        shared_likelihood=ledger.total_shared("likelihood"),
        shared_prior=ledger.total_shared("prior"),
        shared_q=ledger.total_shared("q_discrete") + ledger.total_shared("q_pathwise"),
        scale=ledger.scale(),
        extras=extras,
    )


def read_silenced(run: Run, layout: Layout, num_particles: int) -> Float[Array, "*plates"]:
    """Log-density that masks silence of the model's discrete latents; a reader of records.

    A mask silences a density, never a draw: this is that of the draw, for whoever sums over it.
    """
    latent = [s for s in run.model.values() if s.needs_credit and not s.is_observed]
    return silenced_of(latent, layout)


def silenced_of(sites: Sequence[Site], layout: Layout) -> Float[Array, "*plates"]:
    """Log-density that masks silence of some sites."""
    ledger = Ledger(layout, sites)
    for site in sites:
        kept = site.log_prob()
        bare = draw_log_prob(site, kept)
        ledger.add_bare("silenced", site, jnp.where(jnp.isneginf(kept), 0.0, bare - kept))
    return ledger.total("silenced")


def draw_log_prob(site: Site, values: Array) -> Array:
    """Log-density of a draw whatever its mask; `values` if there is none."""
    bare = without_mask(site.fn)
    return values if bare is site.fn else site.log_prob_under(bare)


def in_batch_dims(site: Site, values: Array, nesting: int) -> Array:
    """View numbers of a site with ``nesting`` batch dims.

    Those of a `scan` are summed over its steps; those of an autoguide's joint latent, which is
    under no plate, over all its batch dims; and all over batch dims under no plate, as in NumPyro.

    Raises:
        ValueError: If a size above 1 is not that of the plate of its dim.
    """
    if site.is_auxiliary and not site.plates and not site.needs_credit:
        values = jnp.sum(values)
    elif site.has_steps:
        values = jnp.sum(values, 0)
    shape = jnp.shape(values)
    sizes = {frame.dim: frame.size for frame in site.plates.values()}
    for dim, size in sizes.items():
        if -dim <= len(shape) and shape[dim] not in (1, size):
            raise ValueError(
                f"site '{site.name}': its log-density has shape {shape}, but batch dim {dim} is "
                f"{_meaning(dim, site)}. Either declare the dim with .to_event(1), or put the "
                f"site under a plate with dim={dim}."
            )
    undeclared = tuple(dim for dim in range(-len(shape), 0) if dim not in sizes and shape[dim] > 1)
    if undeclared:
        values = jnp.sum(values, undeclared, keepdims=True)
        shape = jnp.shape(values)
    missing, extra = max(nesting - len(shape), 0), max(len(shape) - nesting, 0)
    return jnp.reshape(values, (1,) * missing + shape[extra:])


def _meaning(dim: int, site: Site) -> str:
    frame = next(frame for frame in site.plates.values() if frame.dim == dim)
    return f"that of plate '{frame.name}', of size {frame.size}"


def read_codes(run: Run, layout: Layout, num_particles: int) -> Integer[Array, "*plates H"] | None:
    """Values of the discrete guide sites, one row per datum; a reader of records.

    None beside reparameterised latents of a datum or infinite support, where no two draws are
    equal.
    """
    rows: list[Array] = []
    for site in run.guide.values():
        if not site.needs_credit:
            if layout.owns(site):
                return None
            continue
        if site.is_observed or not site.has_finite_support:
            return None
        missing = layout.nesting - site.num_batch_dims
        value = site.value.reshape((1,) * missing + site.value.shape)
        kept = [dim - site.fn.event_dim for dim in layout.dims]
        value = jnp.moveaxis(value, kept, range(len(kept)))
        rows.append(
            value.reshape(*value.shape[: len(kept)], math.prod(value.shape[len(kept) :])).astype(
                int
            )
        )
    leading = jnp.broadcast_shapes(*(row.shape[:-1] for row in rows))  # 1 where all data have it
    rows = [jnp.broadcast_to(row, (*leading, row.shape[-1])) for row in rows]
    return jnp.concatenate(rows, -1) if rows else None
