"""Run a pair once, plainly, and read its structure: plates, and sites that need the score function.

The run is abstract and computes nothing. Its draws' provenance is tracked [1], which tells which
plates the discrete latents share: each cell of these is a datum with importance weights of its own.

References:
    [1] Wingate, Goodman, Stuhlmüller & Siskind. Nonstandard interpretations of probabilistic
        programs for efficient inference. NeurIPS, 2011.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array
from numpyro.ops.provenance import eval_provenance

from numpyro_dvae.programs.draw import Draw, run_pair, run_program
from numpyro_dvae.programs.handlers.rows import check_guide
from numpyro_dvae.programs.record import in_batch_dims
from numpyro_dvae.programs.sites import Layout, Pair, Run, Site, sample_sites
from numpyro_dvae.programs.structure.matching import check_match
from numpyro_dvae.programs.summing.agreeing import check_agreement
from numpyro_dvae.programs.summing.enumerating import is_marked

__all__ = [
    "are_one",
    "find_layout",
    "independent_sites",
]

# Of values of some sites, a run in which they are given: what depends on them shows in it.
_Rerun = Callable[[Mapping[str, Array]], Run]


def find_layout(rng_key: Array, pair: Pair, max_plate_nesting: float = math.inf) -> Layout:
    """Run the pair once, abstractly and without particles, and read its structure.

    The shared plates are those of all guide sites that need the score function (if there are none,
    of all latent sites under plates), less any plate that a site depending on one of them is not
    under (the sum of a datum's latents observed outside of the data plate, say): their draws then
    share one weight. So do the draws of sites that share no plate, and those under a plate whose
    continuous latents the guide draws all at once, under none, as many autoguides do.

    Raises:
        ValueError: If guide and model do not match (a latent site in one only, different plates,
            sizes or event shapes), if the plates nest deeper than `max_plate_nesting`, or if a
            guide keeps something by rows that the data are not of.
    """
    layouts: list[Layout] = []

    def run_with(pair: Pair, values: Mapping[str, Array]) -> Run:
        return run_pair(rng_key, pair, Draw(rng_key, Layout(), values))

    def inspect() -> list[Any]:
        plain = run_with(pair, {})
        check_guide(rng_key, pair, plain)
        marked = _with_summed(plain, pair, max_plate_nesting)
        if marked.layout.summed:
            check_agreement(rng_key, marked, plain)

        def rerun(values: Mapping[str, Array]) -> Run:
            return run_with(marked, values)

        run = rerun({}) if marked.layout.summed else plain
        found = _layout(run, rerun, max_plate_nesting)
        computed = _nesting_of_computed([run], max_plate_nesting)
        nesting = max(found.nesting, marked.layout.nesting, computed)
        layouts.append(found._replace(nesting=nesting, summed=marked.layout.summed))
        sites = [*run.guide.values(), *run.model.values()]
        return [site.scale for site in sites if layouts[0].owns(site)]

    program = jax.make_jaxpr(inspect)()
    return layouts[0]._replace(one_scale=are_one(program))


def _with_summed(run: Run, pair: Pair, max_plate_nesting: float) -> Pair:
    """With the marked sites of the model that the guide does not draw, if there are any."""
    summed = tuple(n for n, s in run.model.items() if is_marked(s) and n not in run.guide)
    if not summed:
        return pair
    for name in summed:
        _check_declared(run.model[name])
    sites = [*run.guide.values(), *run.model.values()]
    frames = {name: frame for site in sites for name, frame in site.plates.items()}
    return pair._replace(layout=Layout(_nesting(frames, max_plate_nesting), summed=summed))


def _check_declared(site: Site) -> None:
    if site.has_undeclared_dims:
        raise ValueError(
            f"site '{site.name}' is marked infer={{'enumerate': 'parallel'}}, but of batch shape "
            f"{tuple(site.fn.batch_shape)}, with a dim that is under no plate. Put its entries "
            "under a plate, or sample it in the guide."
        )


def _layout(run: Run, rerun: _Rerun, max_plate_nesting: float) -> Layout:
    check_match(run)
    credited = {n: s for n, s in run.guide.items() if s.is_credited}
    sites = [*run.guide.values(), *run.model.values()]
    frames = {name: frame for site in sites for name, frame in site.plates.items()}
    nesting = _nesting(frames, max_plate_nesting)
    for site in sites:
        in_batch_dims(site, site.log_prob(), nesting)
    shared = _shared_plates(credited or _plated(run.guide), sites, rerun) - run.joint_plates()
    plates = sorted(shared, key=lambda name: frames[name].dim)
    dims = tuple(frames[name].dim for name in plates)
    return Layout(nesting, tuple(plates), dims, tuple(credited))


def _nesting(frames: Mapping[str, Any], max_plate_nesting: float) -> int:
    deepest = max((-frame.dim for frame in frames.values()), default=0)
    if deepest > max_plate_nesting:
        raise ValueError(
            f"`max_plate_nesting` must cover all plates of model and guide: got "
            f"{max_plate_nesting}, but plates reach batch dim {-deepest}. Raise it or leave it out."
        )
    return deepest if math.isinf(max_plate_nesting) else int(max_plate_nesting)


def _nesting_of_computed(runs: Sequence[Run], max_plate_nesting: float) -> int:
    """Of what the guides compute, a prediction say, under plates that no site may be under."""
    sites = [site for run in runs for site in run.computed().values()]
    frames = {name: frame for site in sites for name, frame in site.plates.items()}
    return _nesting(frames, max_plate_nesting)


def _plated(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Latent sites of the data, if none needs the score function."""
    return {name: site for name, site in sites.items() if site.plates and not site.is_observed}


def _shared_plates(latent: dict[str, Site], sites: list[Site], rerun: _Rerun) -> set[str]:
    if not latent:
        return set()
    shared = set.intersection(*(set(site.plates) for site in latent.values()))
    if not shared and all(site.plates for site in latent.values()):
        _warn_of_no_shared_plate(latent)
    if any(not shared <= site.plates.keys() for site in sites):
        draws = {name: site.value for name, site in latent.items() if not site.is_observed}
        for site, depends in zip(sites, _depend_on(draws, rerun), strict=True):
            if depends and not shared <= site.plates.keys():
                shared &= site.plates.keys()
    return shared


def _warn_of_no_shared_plate(latent: Mapping[str, Site]) -> None:
    if any(site.needs_credit for site in latent.values()):
        listed = ", ".join(f"'{name}' under {sorted(s.plates)}" for name, s in latent.items())
        warnings.warn(
            f"the discrete sites share no plate ({listed}), so all their draws have one weight: "
            "values and gradients are right, but noisier the more data there are. Put the sites "
            "under one plate, or marginalise one, where the model allows.",
            stacklevel=9,
        )


def _depend_on(draws: dict[str, Array], rerun: _Rerun) -> list[bool]:
    """Of each site, guide's first: whether its log-density depends on any of the draws."""

    def log_probs(draws: Mapping[str, Array]) -> list[Array]:
        run = rerun(draws)
        return [site.term() for site in (*run.guide.values(), *run.model.values())]

    return [bool(names) for names in eval_provenance(log_probs, draws=draws)]


def independent_sites(
    rng_key: Array, pair: Pair, parameter: Callable[[Site], Array]
) -> tuple[str, ...]:
    """Guide sites that need the score function and whose parameter depends on no other draw.

    Args:
        rng_key: Key of a run that computes nothing.
        pair: The programs.
        parameter: What to look at of each such site.
    """
    assert pair.guide is not None
    names: list[str] = []

    def latents(draws: Mapping[str, Array]) -> dict[str, Site]:
        with Draw(rng_key, Layout(), draws):
            sites = sample_sites(run_program(rng_key, pair.guide, pair.args, pair.kwargs))
        return {name: site for name, site in sites.items() if not site.is_observed}

    def parameters(draws: Mapping[str, Array]) -> dict[str, Array]:
        return {name: parameter(s) for name, s in latents(draws).items() if s.needs_credit}

    def inspect() -> None:
        draws = {name: site.value for name, site in latents({}).items()}
        depends = eval_provenance(parameters, draws=draws)
        names.extend(name for name, others in depends.items() if not others)

    jax.eval_shape(inspect)
    return tuple(names)


def are_one(program: Any) -> bool:
    """Whether all results of a program are computed by the same operations on the same inputs.

    Args:
        program: What `jax.make_jaxpr` returns. Operations with effects are all different, and
            numbers that are known without a computation are left to those who see them.
    """
    known: dict[Any, Any] = {variable: variable for variable in program.jaxpr.constvars}
    numbers: dict[Any, int] = {}
    for step in program.jaxpr.eqns:
        inputs = tuple(_key(variable, known) for variable in step.invars)
        recipe = step.primitive, _of_params(step.params), inputs, id(step) if step.effects else 0
        number = numbers.setdefault(recipe, len(numbers))
        known.update({variable: (number, place) for place, variable in enumerate(step.outvars)})
    results = program.jaxpr.outvars
    if not results or any(_is_literal(variable) for variable in results):
        return False
    return len({known[variable] for variable in results}) == 1


def _is_literal(variable: Any) -> bool:
    return hasattr(variable, "val")


def _key(variable: Any, known: dict[Any, Any]) -> Any:
    if _is_literal(variable):
        return type(variable.val), str(variable.aval), repr(variable.val)
    return known[variable]


def _of_params(params: dict[str, Any]) -> Any:
    return tuple((name, _hashable(params[name])) for name in sorted(params))


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
