"""A guide made from the model: parameters of its own for each discrete latent of each datum.

    guide = AutoDiscrete(model)
    svi = SVI(model, guide, Adam({"lr": 0.01}), loss=Reinforce_ELBO(8))

The posterior is a product over the latents [1], or follows their dependence: each given the one
before it, or those that it is drawn from in the model. It starts at the prior, without
what the data rule out (`ruling`).

Called, the guide runs the model up to its last discrete latent, and draws these from distributions
of its own. So the model says at each call which rows a minibatch holds, what is masked and what a
latent cannot be. Other latents are hidden: for them there are the autoguides of Pyro, which an
`AutoGuideList` puts together.

References:
    [1] Jordan, Ghahramani, Jaakkola & Saul. An introduction to variational methods for graphical
        models. Machine Learning, 1999.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoGuide
from pyro.nn.module import PyroModule, PyroParam
from torch import Tensor

from pyro_dvae.guides.families import (
    Latent,
    check_levels,
    count_values,
    draw_instead,
    is_ordered,
    of_call,
    of_trials,
    posterior,
    probs_of_values,
    quantile,
    value_of,
    why_unread,
    with_ruled,
)
from pyro_dvae.guides.places import check_site, full_sizes, reaches
from pyro_dvae.guides.tables import (
    check_known,
    check_table,
    given_parents,
    num_features,
    of_rows,
    start_at_prior,
)
from pyro_dvae.ops.arguments import checked, is_count
from pyro_dvae.programs.handlers.rows import check_rows
from pyro_dvae.programs.handlers.swapping import (
    Found,
    is_discrete,
    latents_and_parents,
    swap_sites,
)
from pyro_dvae.programs.sites import Site

__all__ = ["AutoDiscrete"]

_STRUCTURES = ("mean_field", "chain", "model")
_MUCH = 0.01  # of the prior that `num_values` cuts off


class AutoDiscrete(AutoGuide):
    """A guide for all discrete latents of any model, with parameters of each datum.

    Args:
        model: The model. Its continuous latents are left to other guides: put them together by
            an `AutoGuideList`, ``guides.append(AutoDiscrete(model))``.
        structure: "mean_field": each latent by itself. "chain": each given the one before it, of
            the same plates or of some of them. "model": each given the discrete latents that its
            distribution is computed from in the model, of such plates.
            Parents of at most 64 joint states have a table, others a linear layer.
        num_values: V by site: the numbers 0, ..., V - 1 that the guide holds of a site whose
            numbers have no bound, or one that depends on other latents.
        noise: Standard deviation of what is added to the logits at the start, in nats: the prior
            of a mixture, say, is the same for all of its components, and so a saddle.

    As all modules of Pyro, it takes parameters that the store holds under its names, of a guide
    before it: call `pyro.clear_param_store()` to start at the prior.

    Attributes:
        cut_off: By site of `num_values`, the share of the prior beyond the V numbers, in the mean
            over draws; the largest of places and of states of parents. At the first call.

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
        self._sound = set[str]()  # plates of some rows, whose data are those of these rows

    def __getstate__(self) -> dict[str, Any]:
        """All but the list that it is in, which links its parts itself."""
        return {**self.__dict__, "master": None}

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every discrete latent; returns their values by name."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        tables = {name: self._table(latent) for name, latent in self._latents.items()}
        thin = set[str]()

        def choose(site: Site, values: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Any:
            latent = self._latents.get(site.name)
            thin.update(check_site(latent, site, rows, list(self._latents)))
            assert latent is not None
            table = of_rows(latent, tables[site.name], rows)
            return posterior(latent, site, given_parents(latent, table, self._latents, values))

        always = all(latent.always for latent in self._latents.values())
        last = next(reversed(self._latents)) if always else None
        known = self._known_rows()
        values = swap_sites(self.model, args, kwargs, choose, until=last, rows=known)
        if thin - self._sound:
            check_rows(self.model, args, kwargs, thin - self._sound, "AutoDiscrete")
            self._sound |= thin
        return values

    def _table(self, latent: Latent) -> Tensor:
        return check_table(latent, f"logits.{latent.name}", _get(self.logits, latent.name))

    # -------------------------------------------------------------------------------- summaries

    @torch.no_grad()
    def mode(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The most likely value of each latent, given those of its parents; of all rows of plates.

        Without parents, these are the most likely values of all together, too.

        Raises:
            NotImplementedError: If the model rules out values of a latent given others.
        """
        values: dict[str, Tensor] = {}
        for name, latent in self._known(args, kwargs).items():
            logits = given_parents(latent, self._table(latent), self._latents, values)
            values[name] = value_of(latent, probs_of_values(latent, logits).argmax(-1))
        return values

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The medians of latents whose values are numbers; of all rows of plates.

        Raises:
            NotImplementedError: See `quantiles`.
        """
        return {name: values[0] for name, values in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The smallest values whose distribution functions are at least these numbers.

        Of latents whose values are numbers, and of all rows of plates; a Categorical has none.

        Args:
            quantiles: Q numbers from 0 to 1.
            *args: What the model is called with.
            **kwargs: The same.

        Returns:
            By site ``(Q, *batch, *event)``.

        Raises:
            NotImplementedError: If latents have parents, or the model rules values out.
            ValueError: If `quantiles` are none, or the guide has not run its model, and cannot.
        """
        found, levels = {}, check_levels(quantiles)
        for name, latent in self._known(args, kwargs).items():
            if latent.parents:
                raise NotImplementedError(draw_instead(name, "depends on other latents"))
            if is_ordered(latent):
                probs = probs_of_values(latent, self._table(latent))
                found[name] = torch.stack([quantile(latent, probs, level) for level in levels])
        return found

    def _known(self, args: tuple, kwargs: dict) -> dict[str, Latent]:
        if self.prototype_trace is None:
            try:
                self._setup_prototype(*args, **kwargs)
            except TypeError as error:
                check_known(self._latents, error)
        for name, latent in self._latents.items():
            if reason := why_unread(latent):
                raise NotImplementedError(draw_instead(name, reason))
        if not (args or kwargs) or all(each.possible is None for each in self._latents.values()):
            return self._latents
        found = latents_and_parents(self.model, args, kwargs, _bound_of)
        return {name: of_call(latent, found[name].site) for name, latent in self._latents.items()}

    # ------------------------------------------------------------------------------------ set-up

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        try:
            # Pyro's guides know no loops over plates; one without rows is refused below
            with suppress(NotImplementedError, ZeroDivisionError):
                super()._setup_prototype(*args, **kwargs)
            self._set_up(args, kwargs)
        except BaseException:  # the next call begins anew
            self.prototype_trace, self._latents = None, {}
            raise

    def _set_up(self, args: tuple, kwargs: dict) -> None:
        found = latents_and_parents(self.model, args, kwargs, _bound_of)
        sites = {name: latent for name, latent in found.items() if is_discrete(latent.site)}
        self._check_sites(sites, found)
        for name, latent in sites.items():
            self._latents[name] = self._latent(latent)
        depends = any(latent.parents for latent in sites.values())
        reached = {n: latent.reached for n, latent in sites.items() if latent.reached is not None}
        starts = start_at_prior(
            self.model, args, kwargs, self._latents, depends=depends, reached=reached
        )
        self.logits = PyroModule()
        for name, (table, prior) in starts.items():
            table = table + self.noise * torch.randn_like(table) if self.noise else table
            _set(self.logits, name, PyroParam(table.detach(), constraints.real))
            self._latents[name] = with_ruled(self._latents[name], prior)
            if name in self.num_values:
                self._note_cut_off(name, float(prior.cut_off.max()))

    def _check_sites(self, sites: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        if not sites:
            raise ValueError(
                f"the model has no discrete latent for AutoDiscrete: {sorted(found) or 'none'}. "
                "For continuous ones use Pyro's autoguides, for other families your own."
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
        cells = event[: len(event) - len(site.base.event_shape)]
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
            always=found.reached is None,
        )
        names = [plate.name for plate in plates]
        before = [other for name, other in self._latents.items() if name in found.before]
        held = [other for other in before if reaches(other, names)]
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

    def _known_rows(self) -> dict[str, Tensor]:
        """Rows of the plates that an `AutoGuideList` has made for all of its parts."""
        if self.master is None:
            return {}
        plates = getattr(self.master(), "plates", {})
        return {name: plate._indices for name, plate in plates.items()}


def _bound_of(site: Site) -> Any:
    """What the number of values of a site is computed from."""
    return getattr(site.base, "total_count", None)


def _get(module: Any, name: str) -> Tensor:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def _set(module: Any, name: str, value: Any) -> None:
    *folders, last = name.split(".")
    for part in folders:
        if getattr(module, part, None) is None:
            setattr(module, part, PyroModule())
        module = getattr(module, part)
    setattr(module, last, value)
