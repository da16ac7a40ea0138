"""A guide made from the model: parameters of its own for each discrete latent of each datum.

    guide = AutoDiscrete(model)
    svi = SVI(model, guide, optax.adam(0.01), loss=Reinforce_ELBO(8))

The posterior is a product over the latents [1], or follows their dependence: each given the one
before it, or those that it is drawn from in the model. It starts at the prior, without
what the data rule out (`ruling`).

Called, the guide runs the model, and draws its discrete latents from distributions of its own. So
the model says at each call which rows a minibatch holds, what is masked and what a latent cannot
be. Other latents are hidden: for them there are the autoguides of NumPyro, which an `AutoGuideList`
puts together.

References:
    [1] Jordan, Ghahramani, Jaakkola & Saul. An introduction to variational methods for graphical
        models. Machine Learning, 1999.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array
from numpyro.infer.autoguide import AutoGuide

from numpyro_dvae.guides.families import (
    Latent,
    check_levels,
    count_values,
    draw_instead,
    is_ordered,
    of_trials,
    posterior,
    probs_of_values,
    quantile,
    value_of,
    why_unread,
    with_ruled,
)
from numpyro_dvae.guides.places import check_site, full_sizes, reaches
from numpyro_dvae.guides.tables import (
    check_known,
    check_table,
    given_parents,
    num_features,
    of_rows,
    start_at_prior,
)
from numpyro_dvae.ops.arguments import checked, is_count
from numpyro_dvae.programs.handlers.rows import check_rows
from numpyro_dvae.programs.handlers.swapping import (
    Found,
    is_discrete,
    latents_and_parents,
    sample_many,
    swap_sites,
)
from numpyro_dvae.programs.plans import explained
from numpyro_dvae.programs.sites import Site

__all__ = ["AutoDiscrete"]

_STRUCTURES = ("mean_field", "chain", "model")
_MUCH = 0.01  # of the prior that `num_values` cuts off


class AutoDiscrete(AutoGuide):
    """A guide for all discrete latents of any model, with parameters of each datum.

    Args:
        model: The model. Its continuous latents are left to other guides: put them together by
            an `AutoGuideList`, ``guides.append(AutoDiscrete(model))``. The list itself is made of
            the model without its discrete latents: ``AutoGuideList(block(model, hide=["z"]))``.
        structure: "mean_field": each latent by itself. "chain": each given the one before it, of
            the same plates or of some of them. "model": each given the discrete latents that its
            distribution is computed from in the model, of such plates.
            Parents of at most 64 joint states have a table, others a linear layer.
        num_values: V by site: the numbers 0, ..., V - 1 that the guide holds of a site whose
            numbers have no bound, or one that depends on other latents.
        noise: Standard deviation of what is added to the logits at the start, in nats: the prior
            of a mixture, say, is the same for all of its components, and so a saddle.

    Attributes:
        cut_off: By site of `num_values`, the share of the prior beyond the V numbers, in the mean
            over draws; the largest of places and of states of parents. Of a call not traced.

    Raises:
        ValueError: If an argument cannot be used. On the first call, if the model has no discrete
            latent, if `num_values` lacks a site that needs it, or if a site is of another family
            than Bernoulli, Categorical, OneHotCategorical, Binomial, Poisson and Geometric. On
            any, if a site is new, or its plates are others than before.
    """

    @checked
    def __init__(
        self,
        model: Callable,
        *,
        structure: str = "mean_field",
        num_values: Mapping[str, int] | None = None,
        noise: float = 0.0,
    ) -> None:
        if structure not in _STRUCTURES:
            raise ValueError(f"`structure` must be one of {_STRUCTURES}; got {structure!r}.")
        if num_values is not None and not isinstance(num_values, Mapping):
            raise ValueError(
                "`num_values` must be a mapping from sites to how many values each has, as in "
                f"{{'z': 16}}; got {num_values!r}."
            )
        for name, count in (num_values or {}).items():
            if not is_count(count) or count < 2:
                raise ValueError(
                    f"`num_values` must be whole numbers of at least 2; got {count!r} for '{name}'."
                )
        if not 0 <= noise < float("inf"):
            raise ValueError(f"`noise` must be finite and not negative; got {noise!r}.")
        super().__init__(model)
        self.structure, self.noise = structure, noise
        self.num_values = {name: int(count) for name, count in (num_values or {}).items()}
        self.cut_off: dict[str, float] = {}
        self._latents: dict[str, Latent] = {}
        self._depends = False  # whether the distribution of a latent depends on a draw

    @explained()
    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Sample every discrete latent; returns their values by name."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        tables, thin = self._tables(args, kwargs), set[str]()

        def choose(site: Site, values: Mapping[str, Array], rows: Mapping[str, Array]) -> Any:
            latent = self._latents.get(site.name)
            thin.update(check_site(latent, site, rows, list(self._latents)))
            assert latent is not None
            table = of_rows(latent, tables[site.name], rows)
            return posterior(latent, site, given_parents(latent, table, self._latents, values))

        values = swap_sites(self.model, args, kwargs, choose)
        if thin:
            check_rows(jax.random.key(0), self.model, args, kwargs, thin, "AutoDiscrete")
        return values

    def _tables(self, args: tuple, kwargs: dict) -> dict[str, Array]:
        """The parameters; where there are none yet, those of the start."""
        starts: dict[str, Array] = {}

        def start(rng_key: Array, name: str) -> Array:
            if not starts:
                starts.update(self._starts(rng_key, args, kwargs))
            return starts[name]

        params = {
            name: numpyro.param(_param(name), lambda rng_key, name=name: start(rng_key, name))
            for name in self._latents
        }
        return {n: check_table(self._latents[n], _param(n), table) for n, table in params.items()}

    def _starts(self, rng_key: Array, args: tuple, kwargs: dict) -> dict[str, Array]:
        run_key, *keys = jax.random.split(rng_key, 1 + len(self._latents))
        found = self._at_prior(run_key, args, kwargs)
        tables = {name: table for name, (table, _) in found.items()}
        if not self.noise:
            return tables
        return {
            name: table + self.noise * jax.random.normal(key, table.shape, table.dtype)
            for (name, table), key in zip(tables.items(), keys, strict=True)
        }

    def _at_prior(self, rng_key: Array, args: tuple, kwargs: dict) -> dict[str, Any]:
        return start_at_prior(
            rng_key, self.model, args, kwargs, self._latents, depends=self._depends
        )

    def sample_posterior(
        self, rng_key: Array, params: Any, *args: Any, sample_shape: tuple = (), **kwargs: Any
    ) -> dict[str, Array]:
        """Draws of the guide by site, ``(*sample_shape, *batch, *event)``.

        Args:
            rng_key: Key of the draws.
            params: Parameters of model and guide, by name.
            *args: What the model is called with.
            sample_shape: Leading dims of what is returned.
            **kwargs: What the model is called with.
        """
        return sample_many(rng_key, self, params, args, kwargs, sample_shape)

    # -------------------------------------------------------------------------------- summaries

    def mode(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """The most likely value of each latent, given those of its parents; of all rows of plates.

        Without parents, these are the most likely values of all together, too.

        Args:
            params: Parameters by name.

        Raises:
            NotImplementedError: If the model rules out values of a latent given others.
        """
        values: dict[str, Array] = {}
        for name, latent in self._known().items():
            logits = given_parents(latent, _held(latent, params), self._latents, values)
            values[name] = value_of(latent, probs_of_values(latent, logits).argmax(-1))
        return values

    def median(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """The medians of latents whose values are numbers; of all rows of plates.

        Args:
            params: Parameters by name.

        Raises:
            NotImplementedError: See `quantiles`.
        """
        return {name: values[0] for name, values in self.quantiles(params, [0.5]).items()}

    def quantiles(self, params: Mapping[str, Array], quantiles: Any) -> dict[str, Array]:
        """The smallest values whose distribution functions are at least these numbers.

        Of latents whose values are numbers, and of all rows of plates; a Categorical has none.

        Args:
            params: Parameters by name.
            quantiles: Q numbers from 0 to 1.

        Returns:
            By site ``(Q, *batch, *event)``.

        Raises:
            NotImplementedError: If latents have parents, or the model rules values out.
            ValueError: If `quantiles` are none, or the guide has not run its model, and cannot.
        """
        found, levels = {}, check_levels(quantiles)
        for name, latent in self._known().items():
            if latent.parents:
                raise NotImplementedError(draw_instead(name, "depends on other latents"))
            if is_ordered(latent):
                probs = probs_of_values(latent, _held(latent, params))
                found[name] = jnp.stack([quantile(latent, probs, level) for level in levels])
        return found

    def _known(self) -> dict[str, Latent]:
        check_known(self._latents)
        for name, latent in self._latents.items():
            if reason := why_unread(latent):
                raise NotImplementedError(draw_instead(name, reason))
        return self._latents

    # ------------------------------------------------------------------------------------ set-up

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        try:
            self._set_up(args, kwargs)
        except BaseException:  # the next call begins anew
            self._latents = {}
            raise
        self.prototype_trace: Any = {}

    def _set_up(self, args: tuple, kwargs: dict) -> None:
        rng_key = numpyro.prng_key()
        rng_key = jax.random.key(0) if rng_key is None else rng_key  # nothing is to be drawn
        found = latents_and_parents(rng_key, self.model, args, kwargs, _bound_of)
        sites = {name: latent for name, latent in found.items() if is_discrete(latent.site)}
        self._check_sites(sites, found)
        for name, latent in sites.items():
            self._latents[name] = self._latent(latent)
        self._depends = any(latent.parents for latent in sites.values())
        for name, (_, prior) in self._at_prior(rng_key, args, kwargs).items():
            self._latents[name] = with_ruled(self._latents[name], prior)
            if name in self.num_values and not isinstance(prior.probs, jax.core.Tracer):
                self._note_cut_off(name, float(prior.cut_off.max()))

    def _check_sites(self, sites: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        for name, latent in sites.items():
            if latent.site.is_scanned:
                raise ValueError(
                    f"site '{name}' is drawn in a `scan`, for which AutoDiscrete is no guide: mark "
                    'it infer={"enumerate": "parallel"}, or give it a `scan` in a guide of yours.'
                )
        if not sites:
            raise ValueError(
                f"the model has no discrete latent for AutoDiscrete: {sorted(found) or 'none'}. "
                "For continuous ones use NumPyro's autoguides, for other families your own."
            )
        if odd := sorted(self.num_values.keys() - sites.keys()):
            raise ValueError(
                f"`num_values` has '{odd[0]}', but the discrete latents of the model are "
                f"{sorted(sites)}. Name one of these."
            )

    def _latent(self, found: Found) -> Latent:
        site, bound = found.site, self.num_values.get(found.site.name)
        num_values = count_values(site, bound, bool(found.looked))
        event = tuple(site.fn.event_shape)
        cells = tuple(event[: len(event) - len(site.base.event_shape)])
        batch, plates = full_sizes(site)
        latent = Latent(
            name=site.name,
            family=type(site.base),
            num_values=num_values,
            is_bounded_here=bound is None,
            plates=plates,
            batch_shape=batch,
            cells=cells,
            dtype=site.value.dtype,
            possible=None if found.looked else of_trials(site, batch, num_values),
        )
        names = [plate.name for plate in plates]
        held = [other for other in self._latents.values() if reaches(other, names)]
        if self.structure == "chain":
            held = held[-1:]
        elif self.structure == "model":
            held = [other for other in held if other.name in found.parents]
        else:
            held = []
        count, is_table = num_features(held)
        parents = tuple(other.name for other in held)
        return latent._replace(parents=parents, table=is_table, num_features=count)

    def _note_cut_off(self, name: str, mass: float) -> None:
        self.cut_off[name] = mass
        if mass > _MUCH:
            warnings.warn(
                f"`num_values`: the {self.num_values[name]} values of site '{name}' leave out "
                f"{mass:.3g} of its prior. The guide cannot have a posterior there: raise it.",
                stacklevel=2,
            )


def _bound_of(site: Site) -> Any:
    return getattr(site.base, "total_count", None)  # what the number of its values is computed of


def _param(name: str) -> str:
    """The name of a site's parameters."""
    return f"{name}_auto_logits"


def _held(latent: Latent, params: Mapping[str, Array]) -> Array:
    if (name := _param(latent.name)) not in params:
        raise ValueError(
            f"`params` has no '{name}', the logits of '{latent.name}': it has {sorted(params)}. "
            "Pass those of svi.get_params(state), or of `fit`'s result."
        )
    return check_table(latent, name, params[name])
