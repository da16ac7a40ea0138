"""Runs from different starts side by side: do they agree, once their labels mean the same?

Where a model is the same whatever its codes are called, each run of `fit_restarts` finds names of
its own. They are given those of the best run, by the assignment of codes whose responsibilities
agree best [1]. That the model is symmetric is tried: codes, and axes that go by them, are permuted,
which is to leave the densities of model and guide as they are. The runs are then the chains of one
table, and R-hat [2] says of each quantity whether it differs more between runs than within them.

References:
    [1] Stephens. Dealing with label switching in mixture models. JRSS B, 2000.
    [2] Vehtari et al. Rank-normalization, folding, and localization: an improved R-hat. Bayesian
        Analysis, 2021.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Integer
from scipy.optimize import linear_sum_assignment

from numpyro_dvae.diagnostics.agreement import (
    differences_of,
    evidence_of,
    line_of_params,
    line_of_starts,
    rhats_of,
)
from numpyro_dvae.diagnostics.costs import AT_LEAST
from numpyro_dvae.diagnostics.groups import as_chains
from numpyro_dvae.diagnostics.inference_data import to_arviz
from numpyro_dvae.diagnostics.notes import KINDS, notes_of
from numpyro_dvae.diagnostics.symmetry import Codes, Renaming, Symmetries
from numpyro_dvae.diagnostics.trained import as_trained
from numpyro_dvae.diagnostics.waiting import waited
from numpyro_dvae.diagnostics.words import with_error
from numpyro_dvae.ops.arguments import check_counts, checked

__all__ = ["RestartComparison", "align_codes", "compare_restarts"]

_GROUPS = ("posterior", "sample_stats", "observed_data", "vi_stats")


@dataclass(frozen=True, repr=False)
class RestartComparison:
    """Runs as chains, and how far they agree.

    Attributes:
        elbo: ELBO of all data by run, in nats; the run of the least loss of late first, as in the
            result of `fit_restarts`.
        elbo_error: Its standard error.
        is_settled: Whether that is its error; else it is at least that, few states being drawn.
        rhat: The largest R-hat of the entries of each quantity, "evidence" among them; NaN where
            draws are not finite.
        differs: The quantities in which runs differ by more than the noise of these draws: the
            evidence by the standard errors of its means, and by more than 0.001 nats and the
            rounding of single precision, others by what R-hat is without a difference in one
            comparison of a hundred, and above 1.01.
        permutations: Of each aligned site, by run, the code that each code is called now.
        agreement: Of each aligned site, by run, the share of responsibilities that agree with those
            of the best run.
        unaligned: Of each other discrete site, and of parameters of the guide, why codes keep the
            names that each run gave.
        params: Parameters by name, of the runs in front, with codes called alike; those of the
            guide that are `unaligned` are left out.
        chains: The runs as the chains of ArviZ data: see `to_arviz`.
        undecided: Whether the weights of the draws differ between runs, by the R-hat of the
            evidence, while the errors of the ELBOs are too wide to tell these apart.
        alike: Parameters that began at the same values in all runs: see `FitResult`.
    """

    elbo: Float[np.ndarray, "R"]
    elbo_error: Float[np.ndarray, "R"]
    is_settled: Bool[np.ndarray, "R"]
    rhat: Mapping[str, float]
    differs: tuple[str, ...]
    permutations: Mapping[str, Integer[np.ndarray, "R V"]]
    agreement: Mapping[str, Float[np.ndarray, "R"]]
    unaligned: Mapping[str, str]
    params: Mapping[str, np.ndarray]
    chains: Any
    undecided: bool = False
    alike: tuple[str, ...] = ()

    def _verdict(self) -> str:
        if self.differs:
            named = ", ".join(self.differs)
            return f"Runs differ in {named}, by more than the noise of these draws."
        if self.undecided:
            return (
                "The ELBOs are not told apart by their errors, though the weights of the draws are "
                "distributed otherwise in each run: a larger `num_draws` would tell."
            )
        return "The runs agree, up to the noise of these draws."

    def to_arviz(self) -> Any:
        """The runs as chains: an `arviz.InferenceData`, of ArviZ 1 an `xarray.DataTree`."""
        return self.chains

    def __repr__(self) -> str:
        listed = ", ".join(
            f"{elbo:.2f}{with_error(error, '' if is_settled else AT_LEAST)}"
            for elbo, error, is_settled in zip(
                self.elbo, self.elbo_error, self.is_settled, strict=True
            )
        )
        lines = [f"{len(self.elbo)} runs, the least loss of late first: ELBO {listed} nats."]
        for name, agreement in self.agreement.items():
            shown = ", ".join(f"{100 * each:.0f}%" for each in agreement[1:])
            lines.append(f"{name}: codes are called as in the best run; {shown} agree.")
        lines += [
            f"{name}: codes keep the names of each run: {w}." for name, w in self.unaligned.items()
        ]
        lines.append(
            "R-hat: "
            + ", ".join(f"{name} {value:.3f}" for name, value in self.rhat.items())
            + ". "
            + self._verdict()
        )
        lines += line_of_params(self.params)
        lines += line_of_starts(self.alike)
        noted = {kind: str(self.chains["vi_stats"].attrs.get(kind, "")) for kind in KINDS}
        sites = {kind: tuple(filter(None, names.split(", "))) for kind, names in noted.items()}
        return "\n".join([*lines, *notes_of(sites)])


@checked
def compare_restarts(
    rng_key: Array,
    result: Any,
    *data: Any,
    num_draws: int = 500,
    align: Mapping[str, Collection[str]] | None = None,
    quantities: Sequence[str] | None = None,
    batch_size: int | None = None,
) -> RestartComparison:
    """Put the runs of `fit_restarts` side by side, with their labels aligned where they may be.

    Args:
        rng_key: Key of all draws.
        result: What `fit_restarts` returned.
        *data: What model and guide are called with.
        num_draws: Draws of each run.
        align: What is permuted together with a discrete site of the guide: names of other such
            sites, and of parameters or shared latents with axes of its codes, or that are mirrored
            (1 - v, -v) where two codes change places; which these are is tried. By default what
            each site needs is searched for; ``{}`` aligns none.
        quantities: Names of the posterior's variables whose R-hat is wanted; by default all.
        batch_size: As in `to_arviz`.

    Raises:
        ValueError: If `result` has fewer than two runs, if the model is not symmetric in what
            `align` names, or if a name is of nothing.
    """
    check_counts(num_draws=num_draws, batch_size=batch_size)
    runs = _runs_of(result)
    keys = jax.random.split(rng_key, len(runs))
    tables = [
        to_arviz(key, run, *data, num_draws=num_draws, batch_size=batch_size, groups=_GROUPS)
        for key, run in zip(keys, waited(runs, "runs"), strict=True)
    ]
    trained = [as_trained(run, None) for run in runs]
    symmetries = Symmetries(rng_key, trained[0], trained[0].arguments(data))
    found = _Aligned({}, {}, {}, [dict(each.params) for each in trained])
    for codes in symmetries.groups() if align is None else _asked(symmetries, align):
        _align(codes, tables, found)
    if align is None:
        kept = symmetries.sizes.keys() - found.permutations.keys()
        found.unaligned.update({name: symmetries.why(name) for name in sorted(kept)})
    chains = as_chains(tables)
    evidence, few = evidence_of(chains), chains["vi_stats"]["has_few_states"]
    rhats, limits = rhats_of(chains, evidence, quantities)
    return RestartComparison(
        elbo=evidence.mean(1),
        elbo_error=evidence.std(1, ddof=1) / num_draws**0.5,
        is_settled=np.logical_not(np.asarray(few).reshape(len(runs), -1).any(1)),
        rhat=rhats,
        **differences_of(evidence, rhats, limits),
        **found.told(),
        chains=chains,
        alike=getattr(result, "alike", ()),
    )


def align_codes(
    probs: Float[np.ndarray, "N V"], reference: Float[np.ndarray, "N V"]
) -> tuple[Integer[np.ndarray, "V"], float]:
    """The names of codes under which responsibilities agree best with others.

    Args:
        probs: Of each place, the probabilities of its codes; all 0 where a mask silences it.
        reference: The same of the run whose names are taken.

    Returns:
        The new name of each code, and the share of responsibilities that then agree, the mean over
        places that no mask silences of ``Σ min(p, q)``.

    Example:
        >>> align_codes(np.array([[0.9, 0.1], [0.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]]))
        (array([1, 0]), 0.95)
    """
    rows, names = linear_sum_assignment(probs.T @ reference, maximize=True)
    permutation = names[np.argsort(rows)]
    counted = (probs.sum(1) > 0) & (reference.sum(1) > 0)
    renamed = probs[:, np.argsort(permutation)]
    shares = np.minimum(renamed, reference).sum(1)[counted]
    return permutation, float(shares.mean()) if shares.size else 1.0


class _Aligned(NamedTuple):
    """What has been found so far."""

    permutations: dict[str, np.ndarray]
    agreement: dict[str, np.ndarray]
    unaligned: dict[str, str]
    params: list[dict[str, Any]]  # by run

    def told(self) -> dict[str, Any]:
        """The same as a comparison has it."""
        return self._asdict() | {"params": _stacked(self.params)}


def _asked(symmetries: Symmetries, align: Mapping[str, Collection[str]]) -> list[Codes]:
    found = []
    for name, names in align.items():
        codes = symmetries.asked(name, names)
        if codes is None:
            raise ValueError(
                f"`align`: {symmetries.why(name)}, together with {sorted(names)}. Name all "
                f"parameters and sites that have an axis of the codes of '{name}'; a prior that "
                "tells codes apart cannot be aligned."
            )
        found.append(codes)
    return found


def _runs_of(result: Any) -> Sequence[Any]:
    runs = getattr(result, "runs", ())
    if len(runs) < 2:
        raise ValueError(
            "`result` must be what fit_restarts returned, whose `runs` are at least 2 that did not "
            f"diverge; it has {len(runs)}. Pass num_restarts=4, say; to_arviz takes a single run."
        )
    return runs


def _align(codes: Codes, tables: list[Any], found: _Aligned) -> None:
    """Call the codes of each run as the best run does."""
    reference = _responsibilities(codes, tables[0])
    aligned = [align_codes(_responsibilities(codes, table), reference) for table in tables]
    for place, (permutation, _) in enumerate(aligned):
        renaming, params = Renaming(codes, permutation), found.params[place]
        _rename(renaming, tables[place])
        params |= {
            name: renaming.of_array(name, params[name]) for name in codes.axes if name in params
        }
        for name in codes.lost:
            params.pop(name, None)
    why = "no axes of it are found that leave the guide as it is, and `params` lacks it"
    found.unaligned.update(dict.fromkeys(codes.lost, why))
    for site in codes.sites:
        found.permutations[site] = np.stack([permutation for permutation, _ in aligned])
        found.agreement[site] = np.array([share for _, share in aligned])


def _responsibilities(codes: Codes, table: Any) -> np.ndarray:
    found = []
    for name in codes.sites:
        probs, counted = np.asarray(table["vi_stats"][f"{name}_probs"]), f"{name}_counted"
        if counted in table["vi_stats"]:
            probs = np.where(np.asarray(table["vi_stats"][counted])[..., None], probs, 0.0)
        found.append(probs.reshape(-1, codes.size))
    return np.concatenate(found)


def _rename(renaming: Renaming, table: Any) -> None:
    """Rename codes in the posterior and in the statistics of a run, in place."""
    codes, permutation = renaming
    old = np.argsort(permutation)  # the code that has each name now
    posterior, stats = table["posterior"], table["vi_stats"]
    for name in codes.sites:
        values = np.asarray(posterior[name])
        one_hot = name in codes.one_hot
        _set(posterior, name, values[..., old] if one_hot else permutation[values.astype(int)])
        _set(stats, f"{name}_most_likely", permutation[np.asarray(stats[f"{name}_most_likely"])])
        for each in (f"{name}_probs", f"{name}_code_share"):
            _set(stats, each, np.asarray(stats[each])[..., old])
    for name, axes in codes.axes.items():
        if name in posterior:
            values = np.asarray(posterior[name])
            for axis in axes:
                if axis < 0:
                    values = values.take(old, axis)
                elif permutation[0]:
                    values = axis - values
            _set(posterior, name, values)


def _set(dataset: Any, name: str, values: np.ndarray) -> None:
    before = dataset[name]
    dataset[name] = (before.dims, values.astype(before.dtype), before.attrs)


def _stacked(params: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Those of one array each, of the same shape in all runs."""
    found = {}
    for name in params[0]:
        values: list[Any] = [each.get(name) for each in params]
        if all(hasattr(value, "shape") for value in values):
            arrays = [np.asarray(value) for value in values]
            if len({array.shape for array in arrays}) == 1:
                found[name] = np.stack(arrays)
    return found
