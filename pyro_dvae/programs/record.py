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

import torch
from jaxtyping import Float, Integer
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from pyro_dvae.programs.densities import entropy_of, fast_log_prob, without_mask
from pyro_dvae.programs.processes import current_sharding
from pyro_dvae.programs.sites import Layout, Run, Site, StructureError, same_scale

__all__ = [
    "Ledger",
    "Particles",
    "Reader",
    "concatenate",
    "in_batch_dims",
    "make_record",
    "make_records",
    "read_codes",
    "read_silenced",
    "silenced_of",
]

_NO_SIZE = -1  # of a plate that takes what it is given

# What an algorithm wants of a run beside its log-densities: from (run, layout, K) to arrays, or
# tuples and dicts of arrays, that have the K particles in front; or None.
Reader = Callable[[Run, Layout, int], Any]


class Particles(NamedTuple):
    """Log-densities of K particles, in nats: of each datum, and of what the data share."""

    log_likelihood: Float[Tensor, "K *plates"]  # observed sites of the model
    log_prior: Float[Tensor, "K *plates"]  # latent sites of the model
    log_q_discrete: Float[Tensor, "K *plates"]  # guide sites that need the score function
    log_q_pathwise: Float[Tensor, "K *plates"]  # reparameterised and observed guide sites
    log_draw: Float[Tensor, "K *plates"]  # as log_q_discrete, but never scaled or masked: its
    # gradient is the score function of the draws
    entropy: Float[Tensor, "K *plates"] | None  # closed form, where asked for and offered
    shared_likelihood: Float[Tensor, "K"]
    shared_prior: Float[Tensor, "K"]
    shared_q: Float[Tensor, "K"]
    scale: float | Tensor  # weight of a datum in the loss
    extras: Mapping[str, Any] = MappingProxyType({})  # what the algorithm's readers made

    @property
    def log_p(self) -> Float[Tensor, "*K_plates"]:
        """Log joint density of each datum."""
        return self.log_likelihood + self.log_prior

    @property
    def log_q(self) -> Float[Tensor, "*K_plates"]:
        """Log density of each datum's latents under the guide."""
        return self.log_q_discrete + self.log_q_pathwise


class Ledger:
    """Sums of log-densities by kind: of each datum, and of what the data share.

    Args:
        layout: Which plates make a datum.
        num_particles: K.
        sites: All that are going to be added, which tell the weight of a datum.
    """

    def __init__(self, layout: Layout, num_particles: int, sites: Iterable[Site]) -> None:
        self.layout, self.num_particles = layout, num_particles
        self.owned: dict[str, Tensor] = {}
        self.shared: dict[str, Tensor] = {}
        self.nothing: dict[tuple[int, ...], Tensor] = {}
        owned = [site for site in sites if layout.owns(site)]
        always = [s for s in owned if s.name in layout.credited[:1]] if layout.asked else owned
        self.common, self.is_common = _common_scale(always, layout)
        self.is_common = self.is_common and len(always) == len(owned)

    def add(self, kind: str, site: Site, values: Tensor) -> None:
        """Scale, mask and sum the values of a site into its datum, or into the shared part."""
        scale = site.scale
        if self.layout.owns(site):
            scale = 1.0 if self.is_common else scale / self.common
        self.add_bare(kind, site, site.scaled(values, scale))

    def add_bare(self, kind: str, site: Site, values: Tensor) -> None:
        """Sum the values of a site as they are: of draws, which no mask or scale changes."""
        dims, book = tuple(range(-self.layout.nesting, 0)), self.shared
        if self.layout.owns(site):
            dims, book = tuple(set(dims) - set(self.layout.dims)), self.owned
        values = in_batch_dims(site, values, self.layout.nesting, self.num_particles)
        values = values.sum(dims, keepdim=True) if dims else values
        book[kind] = book[kind] + values if kind in book else values

    def total(self, kind: str) -> Float[Tensor, "K *plates"]:
        """The sum of a kind for each datum."""
        shapes = (values.shape for values in self.owned.values())
        shape = broadcast_shape((self.num_particles, *[1] * self.layout.nesting), *shapes)
        by_datum = (shape[0], *(shape[dim] for dim in self.layout.dims))
        values = self.owned.get(kind)
        return self._zeros(by_datum) if values is None else values.expand(shape).reshape(by_datum)

    def scale(self) -> float | Float[Tensor, "*plates"]:
        """Weight of each datum in the loss."""
        if not isinstance(self.common, Tensor) or self.common.dim() == 0:
            return self.common
        shape = (1,) * (self.layout.nesting - self.common.dim()) + tuple(self.common.shape)
        return self.common.reshape([shape[dim] for dim in self.layout.dims])

    def total_shared(self, kind: str) -> Float[Tensor, "K"]:
        """The sum of a kind over what the data share."""
        values, shape = self.shared.get(kind), (self.num_particles,)
        return self._zeros(shape) if values is None else values.reshape(-1).expand(shape)

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Of kinds that no site has, made once."""
        if shape not in self.nothing:
            anything = next(iter((self.owned | self.shared).values()), torch.zeros(()))
            self.nothing[shape] = anything.new_zeros(()).expand(shape)
        return self.nothing[shape]


def _common_scale(sites: Sequence[Site], layout: Layout) -> tuple[float | Tensor, bool]:
    """The weight of a datum, that of all its sites, or else of its subsampled plates alone; which.

    Importance weights want the datum's own nats. A site that is weighed otherwise than the others
    of its datum, by an annealed likelihood say, is so within the datum. Where sites come and go
    with the draws, those are given that are always there, so that no draw changes the weight.
    """
    scales = [site.scale for site in sites]
    if scales and all(same_scale(scale, scales[0]) for scale in scales):
        if not isinstance(scales[0], Tensor) or _varies_by_datum(scales[0], layout):
            return scales[0], True
    return (_plates_scale(sites[0], layout) if sites else 1.0), False


def _varies_by_datum(scale: Tensor, layout: Layout) -> bool:
    """Whether a scale is one number for each datum, in the batch dims of its plates."""
    sizes = {dim - scale.dim(): size for dim, size in enumerate(scale.shape)}
    return all(size == 1 or dim in layout.dims for dim, size in sizes.items())


def _plates_scale(site: Site, layout: Layout) -> float | Tensor:
    """Full size over subsample size, of all plates that make a datum."""
    sharding = current_sharding()
    scale = 1.0 if sharding is None else sharding.weight(site.plates)
    for plate in (site.plates[name] for name in layout.plates):
        scale = scale * (plate.size if plate.full_size is None else plate.full_size) / plate.size
    return scale


def make_record(
    run: Run,
    layout: Layout,
    num_particles: int,
    *,
    reads: Mapping[str, Reader] = MappingProxyType({}),
    with_entropy: bool = False,
) -> Particles:
    """The record of a run, whose sites have K particles in front or broadcast over them."""
    ledger = Ledger(layout, num_particles, _sites([run]))
    return _record(run, ledger, reads, with_entropy)


def make_records(
    runs: Sequence[Run],
    layout: Layout,
    *,
    reads: Mapping[str, Reader] = MappingProxyType({}),
    with_entropy: bool = False,
) -> Particles:
    """The record of particles that were run one by one.

    They may have other sites each; the weight of a datum is the same for all.
    """
    sites = _sites(runs)
    ledgers = (Ledger(layout, 1, sites) for _ in runs)
    pairs = zip(runs, ledgers, strict=True)
    return concatenate([_record(run, ledger, reads, with_entropy) for run, ledger in pairs])


def _sites(runs: Sequence[Run]) -> list[Site]:
    return [site for run in runs for site in (*run.guide.values(), *run.model.values())]


def _record(run: Run, ledger: Ledger, reads: Mapping[str, Reader], with_entropy: bool) -> Particles:
    layout, num_particles, entropies_known = ledger.layout, ledger.num_particles, with_entropy
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
        extras={name: read(run, layout, num_particles) for name, read in reads.items()},
    )


def read_silenced(run: Run, layout: Layout, num_particles: int) -> Float[Tensor, "K *plates"]:
    """Log-density that masks silence of the model's discrete latents; a reader of records.

    A mask silences a density, never a draw: this is that of the draw, for whoever sums over it.
    """
    latent = [s for s in run.model.values() if s.needs_credit and not s.is_observed]
    return silenced_of(latent, layout, num_particles)


def silenced_of(
    sites: Sequence[Site], layout: Layout, num_particles: int
) -> Float[Tensor, "K *plates"]:
    """Log-density that masks silence of some sites."""
    ledger = Ledger(layout, num_particles, sites)
    for site in sites:
        values = site.log_prob()
        bare, kept = draw_log_prob(site, values), site.scaled(values, 1.0)
        ledger.add_bare("silenced", site, torch.where(torch.isneginf(kept), 0.0, bare - kept))
    return ledger.total("silenced")


def draw_log_prob(site: Site, values: Tensor) -> Tensor:
    """Log-density of a draw whatever its mask; `values` if there is none."""
    bare = without_mask(site.fn)
    return values if bare is site.fn else bare.log_prob(site.value)


def concatenate(records: list[Particles]) -> Particles:
    """Put records one after the other on the axis of particles."""
    if len(records) == 1:
        return records[0]
    scale = records[0].scale  # the same for all
    return _joined([record._replace(scale=1.0) for record in records])._replace(scale=scale)


def _joined(parts: list[Any]) -> Any:
    """Arrays one after the other; what holds arrays, entry by entry."""
    first = parts[0]
    if any(part is None for part in parts):
        return None
    if isinstance(first, Tensor):
        alike = all(part.shape[1:] == first.shape[1:] for part in parts)
        return torch.cat(parts) if alike else None  # of runs with other sites
    if isinstance(first, Mapping):
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: _joined([_entry(part, name, parts) for part in parts]) for name in names}
    if isinstance(first, tuple):
        columns = [_joined(list(column)) for column in zip(*parts, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)
    return first


def _entry(part: Mapping[str, Any], name: str, parts: Sequence[Mapping[str, Any]]) -> Any:
    """What a run tells of a site; where it has no such site, a flag is False."""
    if name in part:
        return part[name]
    other = next(each[name] for each in parts if name in each)
    if not isinstance(other, Tensor) or other.dtype != torch.bool:
        raise StructureError(f"site '{name}' is not in each run")
    return torch.zeros_like(other)


def in_batch_dims(site: Site, values: Tensor, nesting: int, num_particles: int) -> Tensor:
    """View numbers of a site with ``nesting + 1`` batch dims, particles first.

    Raises:
        ValueError: If a size above 1 is neither a plate's nor K.
    """
    shape = tuple(values.shape)
    sizes = {-nesting - 1: num_particles} | {f.dim: f.size for f in site.plates.values()}
    for dim in range(-1, -len(shape) - 1, -1):
        if shape[dim] not in (1, sizes.get(dim, 1)) and sizes.get(dim) != _NO_SIZE:
            raise ValueError(
                f"site '{site.name}': its log-density has shape {shape}, but batch dim {dim} is "
                f"{_meaning(dim, nesting, num_particles, site)}. Either declare the dim with "
                ".to_event(1), or put the site under a plate with "
                f"dim={dim}, or write the program so that it broadcasts over a particle axis left "
                "of all plates (x[..., i], sum(-1), no bare reshape)."
            )
    shape = shape[-nesting - 1 :]  # without the dim of a marked site of one value
    return values.reshape((1,) * (nesting + 1 - len(shape)) + shape)


def _meaning(dim: int, nesting: int, num_particles: int, site: Site) -> str:
    if dim == -nesting - 1 and num_particles > 1:
        return f"the particles', of size {num_particles}"
    for frame in site.plates.values():
        if frame.dim == dim:
            return f"that of plate '{frame.name}', of size {frame.size}"
    return "under no plate"


def read_codes(
    run: Run, layout: Layout, num_particles: int
) -> Integer[Tensor, "K *plates H"] | None:
    """Values of the discrete guide sites, one row per datum; a reader of records.

    None beside reparameterised latents of a datum or infinite support, where no two draws are
    equal.
    """
    rows: list[Tensor] = []
    for site in run.guide.values():
        if not site.needs_credit:
            if layout.owns(site):
                return None
            continue
        if site.is_observed or not site.has_finite_support:
            return None
        missing = layout.nesting + 1 - site.num_batch_dims
        value = site.value.reshape((1,) * missing + site.value.shape)
        kept = [0, *(dim - site.fn.event_dim for dim in layout.dims)]
        value = value.movedim(kept, tuple(range(len(kept))))
        rows.append(
            value.reshape(*value.shape[: len(kept)], math.prod(value.shape[len(kept) :])).long()
        )
    leading = torch.broadcast_shapes(*(row.shape[:-1] for row in rows))  # 1 where all data have it
    rows = [row.expand(*leading, -1) for row in rows]
    return torch.cat(rows, -1) if rows else None
