"""Hand a model the vectors of its codes, so that their gradient goes straight through the codes.

A guide that quantises vectors publishes them as deterministic sites, "z.inputs" (before) and
"z.vectors" (after) beside its site "z" of codes. While the link is open, the model gets the vectors
where it samples the codes; their log-density is of the codes. Their gradient is that of the site
"z.path" if there is one, a value of the same vectors; else that of the vectors before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped
from numpyro.primitives import Messenger

from numpyro_dvae.distributions import precise
from numpyro_dvae.ops.relaxing import with_slope
from numpyro_dvae.programs.densities import entry_mask, is_masked
from numpyro_dvae.programs.messages import is_computed
from numpyro_dvae.programs.sites import Layout, Run, Site, same_programs

__all__ = ["QuantizedSite", "VectorLink", "read_drawn", "read_vectors"]


class CodesOfTable(NamedTuple):
    """The codes of one table, and which of them no mask silences; None is all."""

    codes: Integer[Array, "*plates l 1"]
    mask: Bool[Array, "*plates l 1"] | None


class QuantizedSite(NamedTuple):
    """What a guide publishes of the latents of a datum; 0 where a mask silences them."""

    inputs: Float[Array, "*plates L D"]  # before
    vectors: Float[Array, "*plates L D"]  # after
    penalty: Float[Array, "*plates #L 1"] | None  # the guide's own, if it has one
    mask: Bool[Array, "*#plates #L 1"] | None  # which latents no mask silences; None is all
    tables: tuple[CodesOfTable, ...]  # of each table of a codebook
    num_codes: Float[Array, ""]  # values of a code, V


class VectorLink:
    """A model and a guide that hands it vectors; `model` and `guide` are to be run in their place.

    Entered around a run, it forgets the vectors when the run is over.

    Args:
        model: Takes vectors ``(*batch, L, D)`` where it samples the codes ``(*batch, L)``.
        guide: Publishes the vectors.
    """

    def __init__(self, model: Callable, guide: Callable) -> None:
        self._programs, self._giver = (model, guide), _Giver()
        self.model = _Under(model, self._giver)
        self.guide = _Under(guide, _Noter(self._giver.vectors))

    def joins(self, model: Callable, guide: Callable) -> bool:
        """Whether it is of these programs."""
        return same_programs(self._programs, (model, guide))

    def __enter__(self) -> "VectorLink":
        return self

    def __exit__(self, *error: object) -> None:
        self._giver.vectors.clear()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Let the model see the codes themselves for a while."""
        self._giver.is_open = False
        try:
            yield
        finally:
            self._giver.is_open = True


class _Noter(Messenger):
    """Notes the vectors that a guide publishes."""

    def __init__(self, vectors: dict[str, Array]) -> None:
        super().__init__()
        self.vectors = vectors

    def postprocess_message(self, msg: Any) -> None:
        """Keep the value of a deterministic site."""
        if is_computed(msg):
            self.vectors[msg["name"]] = msg["value"]


class _Giver(Messenger):
    """Gives a model vectors where it samples their codes.

    Innermost around the program: a trace has recorded the codes by then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vectors: dict[str, Array] = {}
        self.is_open = True

    @property
    def gives_vectors(self) -> bool:
        """Whether the program gets vectors in place of codes; `nets.registration` asks."""
        return self.is_open and bool(self.vectors)

    def __exit__(self, *error: Any) -> None:
        """Let go of the vectors: they belong to the particle whose run is over."""
        super().__exit__(*error)
        self.vectors.clear()

    def postprocess_message(self, msg: Any) -> None:
        """Replace the value of a sampled site."""
        if msg["type"] != "sample":
            return
        inputs, vectors, path = (
            self.vectors.get(f"{msg['name']}.{kind}") for kind in ("inputs", "vectors", "path")
        )
        if self.is_open and inputs is not None and vectors is not None:
            msg["value"] = with_slope(vectors, inputs) if path is None else path
            msg["is_quantised"] = True  # for handlers further in, as of `relax`


class _Under:
    """A program under a handler, compared by its identity."""

    def __init__(self, program: Callable, handler: Messenger) -> None:
        self.program, self.handler = program, handler

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.handler:
            return self.program(*args, **kwargs)


def read_vectors(run: Run, layout: Layout, num_particles: int) -> dict[str, QuantizedSite] | None:
    """What the guide publishes of quantised latents, by the site of their codes; a reader."""
    computed = run.computed()
    pairs = {}
    for name in run.guide:
        inputs, vectors = computed.get(f"{name}.inputs"), computed.get(f"{name}.vectors")
        if inputs is not None and vectors is not None:
            _check_masks(run, name)
            site = run.guide[name]
            mask = entry_mask(site, site.fn.event_dim)[..., None] if is_masked(site) else None
            mask = None if mask is None else _by_datum(mask, layout)
            stated = computed.get(f"{name}.penalty")
            penalty = None if stated is None else _unmasked(stated.value[..., None], mask, layout)
            before, after = (_unmasked(each.value, mask, layout) for each in (inputs, vectors))
            num_codes = jnp.full((), _num_codes_of(site.base), float)
            pairs[name] = QuantizedSite(
                before, after, penalty, mask, _by_table(site, layout), num_codes
            )
    return pairs or None


def _by_table(site: Site, layout: Layout) -> tuple[CodesOfTable, ...]:
    sizes = getattr(site.base, "tables", None)
    sizes = site.value.shape[-1:] if sizes is None else sizes

    def apart(values: Array) -> list[Array]:
        return [
            _by_datum(part[..., None], layout)
            for part in jnp.split(values, np.cumsum(sizes)[:-1], -1)
        ]

    codes = apart(site.value)
    if not is_masked(site):
        return tuple(CodesOfTable(part, None) for part in codes)
    mask = jnp.broadcast_to(entry_mask(site, site.fn.event_dim), site.value.shape)
    return tuple(map(CodesOfTable, codes, apart(mask)))


def read_drawn(run: Run, layout: Layout, num_particles: int) -> dict[str, Float[Array, ""]]:
    """Log-densities of what else the guide draws without a gradient, by site; a reader."""
    computed = run.computed()
    drawn = (site for name, site in run.guide.items() if f"{name}.vectors" not in computed)
    return {site.name: site.log_prob().sum() for site in drawn if site.is_credited}


def _unmasked(value: Array, mask: Array | None, layout: Layout) -> Array:
    """What a guide publishes of each datum, 0 where a mask silences it."""
    value = precise(_by_datum(value, layout))
    return value if mask is None else jnp.where(mask, value, 0.0)


def _num_codes_of(fn: Any) -> float:
    """The values of a categorical distribution's codes; those that know them list none."""
    known = getattr(fn, "num_codes", None)
    return float(len(fn.enumerate_support(expand=False)) if known is None else known)


def _check_masks(run: Run, name: str) -> None:
    """Whether the guide masks the codes that the model masks: else padding would train it."""
    model, guide = run.model.get(name), run.guide[name]
    if model is not None and is_masked(model) and not is_masked(guide):
        raise ValueError(
            f"site '{name}' is masked in the model but not in the guide, whose vectors and "
            "codebook would learn what is masked. Run both programs under the mask."
        )


def _by_datum(value: Array, layout: Layout) -> Shaped[Array, "*plates L D"]:
    """From ``(*batch, L, D)``, plates first."""
    missing = layout.nesting - (value.ndim - 2)
    value = value.reshape((1,) * missing + value.shape)
    ahead = [dim - 2 for dim in layout.dims]
    value = jnp.moveaxis(value, ahead, range(len(ahead)))
    return value.reshape(*value.shape[: len(ahead)], -1, value.shape[-1])
