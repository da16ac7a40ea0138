"""A model run as a guide: its discrete latents drawn from other distributions, all else hidden.

The model itself says which plates a latent is under, which rows a minibatch holds, what is masked,
and what a latent's own distribution is, given the draws before it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dvae.programs.draw import run_program
from pyro_dvae.programs.messages import Rows, is_among, is_drawn, is_subsample
from pyro_dvae.programs.processes import hidden
from pyro_dvae.programs.sites import Site, sample_sites
from pyro_dvae.programs.structure.layout import Exits
from pyro_dvae.programs.structure.looking import only_looking
from pyro_dvae.programs.structure.ways import ways_through

__all__ = [
    "Choose",
    "Found",
    "given_run",
    "is_discrete",
    "latents_and_parents",
    "swap_sites",
    "terms_and_draws",
]

# From a site, as the model has it, the draws so far, and the rows of its plates that were chosen,
# to the distribution to draw from.
Choose = Callable[[Site, Mapping[str, Tensor], Mapping[str, Tensor]], Any]


def is_discrete(site: Site) -> bool:
    """Whether a site's values are discrete."""
    return bool(getattr(site.base.support, "is_discrete", False))


class _Reached(BaseException):
    """The last latent of interest has been drawn."""


class _Swap(Messenger):
    """Draws discrete latents from what `choose` says, and keeps their values and the rows."""

    def __init__(self, choose: Choose, until: str | None, rows: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.choose, self.until, self.given_rows = choose, until, rows
        self.values: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if is_subsample(msg):
            self._take_rows(msg)
        elif is_drawn(msg) and is_discrete(site := Site.of(msg)):
            msg["fn"] = self.choose(site, self.values, self.rows)
            msg["infer"] = {k: v for k, v in site.infer.items() if k != "enumerate"}
            self.values[site.name] = site.value

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_subsample(msg):
            if msg["infer"].get("_chosen") or not Rows.of(msg).are_all:
                self.rows[msg["name"]] = msg["value"]
        elif msg["name"] in self.values:
            self.values[msg["name"]] = msg["value"]
            if msg["name"] == self.until:
                raise _Reached

    def _take_rows(self, msg: Any) -> None:
        rows, found = self.given_rows.get(msg["name"]), msg["value"]
        msg["infer"] = {**(msg["infer"] or {}), "_chosen": found is not None}
        if rows is None:
            return
        if found is not None and not torch.equal(torch.as_tensor(found), rows):
            raise ValueError(
                f"plate '{msg['name']}' holds the rows that the model has chosen, but the plates "
                "of the AutoGuideList others. Pass create_plates to the AutoGuideList, a function "
                "that makes the plate with the model's `subsample`."
            )
        msg["value"], msg["done"] = rows, True
        msg["infer"]["_chosen"] = True


def swap_sites(
    model: Callable,
    args: tuple,
    kwargs: dict,
    choose: Choose,
    *,
    until: str | None = None,
    rows: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Run a model as a guide of its discrete latents, and return their draws by name.

    Handlers around see these sites, and the subsamples of the model's plates, alone.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        choose: From what to draw a site.
        until: The last site to be drawn: the model is left there. None runs all of it.
        rows: Rows of plates that are known already; these subsamples are hidden, too.

    Raises:
        ValueError: If the model has chosen other rows than those that are known.
    """
    swap, known = _Swap(choose, until, rows or {}), (rows or {}).keys()

    def hide(msg: Any) -> bool:
        return is_among(msg, known) if is_subsample(msg) else not is_among(msg, swap.values)

    with hidden(hide):
        try:
            with swap:
                model(*args, **kwargs)
        except _Reached:
            pass
    return dict(swap.values)


class _Direct(Messenger):
    """Marks each draw of a latent with its own name alone."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_drawn(msg):
            bare = detach_provenance(msg["value"])
            msg["value"] = track_provenance(bare, frozenset({msg["name"]}))


class _Asked(Messenger):
    """Notes which draws Python had asked for before each site."""

    def __init__(self, exits: Exits) -> None:
        super().__init__()
        self.exits, self.before = exits, dict[str, set[str]]()

    def _pyro_sample(self, msg: Any) -> None:
        self.before[msg["name"]] = set(self.exits.names)


class Found(NamedTuple):
    """A latent site of a model."""

    site: Site
    parents: frozenset[str]  # draws that it depends on
    looked: frozenset[str]  # draws that a part of it depends on
    before: frozenset[str]  # draws that come before it in each run that has it
    reached: Mapping[str, Tensor] | None = (
        None  # where not all runs have it, values that lead to it
    )


def latents_and_parents(
    model: Callable, args: tuple, kwargs: dict, look: Callable[[Site], Any]
) -> dict[str, Found]:
    """Latent sites of a model, and the draws that each depends on, in whatever run it is.

    A site depends on the latents that its distribution is computed from without another draw in
    between; where Python has asked for the value of a draw, all later sites depend on it.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        look: A part of a site's distribution, whose own dependence is wanted.

    Raises:
        ValueError: If a site is another in some runs: of another family, other sizes or plates.
    """

    def run(values: Mapping[str, Tensor]) -> tuple[dict[str, Site], set[str], dict[str, Found]]:
        sites, exits, asked = _direct_run(model, args, kwargs, values)
        return sites, exits, _latents_of(sites, asked, look)

    ways = ways_through(run)
    found: dict[str, Found] = {}
    for way in ways:
        for name, latent in way.found.items():
            known = found.get(name, latent)
            _check_alike(known.site, latent.site)
            found[name] = Found(
                known.site,
                known.parents | latent.parents,
                known.looked | latent.looked,
                known.before & latent.before,
                known.reached if name in found else way.values,
            )
    always = set.intersection(*(set(way.found) for way in ways))
    return {n: f._replace(reached=None) if n in always else f for n, f in found.items()}


def _latents_of(
    sites: Mapping[str, Site], asked: Mapping[str, set[str]], look: Callable[[Site], Any]
) -> dict[str, Found]:
    """The latents of one run; of each site, the draws that Python had asked for before."""
    found: dict[str, Found] = {}
    for name, site in sites.items():
        if site.is_observed:
            continue
        known, before = asked[name] & found.keys(), frozenset(found)
        parents = (get_provenance(site.log_prob()) | known) - {name}
        looked = get_provenance(look(site)) | known
        found[name] = Found(site, frozenset(parents), frozenset(looked), before)
    return found


def _check_alike(one: Site, other: Site) -> None:
    """Whether a site is the same in two runs."""
    families, plates = [], []
    for site in (one, other):
        count = "" if site.num_values is None else f" of {site.num_values} values"
        families.append(f"a {site.family}{count}, of shape {tuple(site.fn.event_shape)}")
        frames = site.plates.values()
        plates.append(sorted(f"'{f.name}' (dim {f.dim}, size {f.size})" for f in frames))
    if families[0] != families[1] or plates[0] != plates[1]:
        kinds = [
            f"{family}, under {', '.join(each) or 'no plate'}"
            for family, each in zip(families, plates, strict=True)
        ]
        raise ValueError(
            f"site '{one.name}' is {kinds[0]}, but {kinds[1]} where other draws lead to it, and an "
            "automatic guide has one table for it. Give the two names of their own, or draw one "
            "site of one size in each run, under a mask where it does not count."
        )


def terms_and_draws(model: Callable, args: tuple, kwargs: dict) -> dict[str, frozenset[str]]:
    """For each site, names of the draws that what it adds to the objective depends on; its own too.

    Without another draw in between, as in `latents_and_parents`; of observed sites, too. None is
    known where Python asks for draws, as others then tell what a site is computed from.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    sites, exits, _ = _direct_run(model, args, kwargs, {})
    return {} if exits else {n: get_provenance(site.term()) for n, site in sites.items()}


def _direct_run(
    model: Callable, args: tuple, kwargs: dict, values: Mapping[str, Tensor]
) -> tuple[dict[str, Site], set[str], dict[str, set[str]]]:
    """A run with these values: draws are marked; the draws that Python has asked for.

    In all, and before each site.
    """

    def run() -> tuple[dict[str, Site], set[str], dict[str, set[str]]]:
        asked = _Asked(exits := Exits())
        with pyro.validation_enabled(False), hidden(), _Give(values), _Direct(), asked, exits:
            return sample_sites(run_program(model, args, kwargs)), exits.names, asked.before

    return only_looking(run)


def given_run(
    model: Callable,
    args: tuple,
    kwargs: dict,
    values: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
) -> tuple[dict[str, Site], dict[str, Tensor]]:
    """Sites of a run in which some latents have these values, and plates some of these rows.

    The run only looks; what is not given is drawn from the model.

    Returns:
        The sites, and the rows of the plates.
    """
    swap = _Swap(lambda site, drawn, rows: site.fn, None, rows)
    with torch.no_grad(), pyro.validation_enabled(False), hidden():
        with poutine.trace() as tracer, _Give(values), swap:
            model(*args, **kwargs)
    return sample_sites(tracer.trace), swap.rows


class _Give(Messenger):
    """Sets the values of some sites."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and is_drawn(msg):
            value = self.values[msg["name"]]
            msg["value"] = value.expand((*msg["fn"].batch_shape, *msg["fn"].event_shape))
            msg["done"] = True
