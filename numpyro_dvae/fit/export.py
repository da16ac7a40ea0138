"""The way out of training: codes, reconstructions and samples, one call each.

    codes = encode_data(result, x)                       # by the encoder alone, (N, L)
    save_codes("codes.npz", result, x, labels)           # of a whole data set
    means = reconstruct_data(result, codes)              # by the decoder alone
    images = sample_data(rng_key, result, 64)            # from the prior

Everything runs with the parameters of `result`, which is what `fit` or `load_weights` returned, and
returns NumPy arrays.
"""

import inspect
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Integer, Shaped
from numpyro.handlers import substitute, trace

from numpyro_dvae.distributions import AutoregressiveCategorical, CertainCategorical
from numpyro_dvae.fit.data import as_batch
from numpyro_dvae.fit.files import write_atomically
from numpyro_dvae.fit.result import FitResult, as_result
from numpyro_dvae.nets import decode_codes
from numpyro_dvae.nets.evaluating import Evaluating
from numpyro_dvae.nets.inputs import check_codes
from numpyro_dvae.ops.arguments import check_counts, checked
from numpyro_dvae.programs.draw import seeded
from numpyro_dvae.programs.sites import base_distribution, sample_sites

__all__ = ["encode_data", "reconstruct_data", "sample_data", "save_codes"]


@checked
def encode_data(
    result: Any, x: Shaped[np.ndarray | Array, "N *event"], *, batch_size: int = 256
) -> np.ndarray:
    """The most likely codes of data, ``(N, L)``; of an autoregressive guide, the greedy ones.

    Args:
        result: What `fit` returned; the guide has a `posterior`.
        x: Data, as the guide takes them.
        batch_size: Data that go through the encoder at once.

    Raises:
        ValueError: If the guide has no encoder, or if what it returns is NaN; if `x` is empty or
            one datum without an axis of rows, or `batch_size` below 1.
    """
    result = as_result(result)
    posterior = getattr(result.guide, "posterior", None)
    if posterior is None or not callable(posterior) or hasattr(result.guide, "for_data"):
        raise ValueError(
            "`encode_data` needs a guide with an encoder, as IndependentGuide; got "
            f"{type(result.guide).__name__}. Use diagnostics.discrete_posterior for its states."
        )
    codes = _in_batches(result, lambda rows: _known_codes(posterior(rows)), x, batch_size, "x")
    unknown = np.flatnonzero((codes < 0).reshape(len(codes), -1).any(-1))
    if unknown.size:
        raise ValueError(
            f"`encode_data`: the encoder returned NaN for {unknown.size} data, the first of them "
            f"row {unknown[0]}, so they have no codes. Look for NaN in `x` and in the weights."
        )
    return codes


@checked
def save_codes(
    path: str | os.PathLike[str],
    result: Any,
    x: Shaped[np.ndarray | Array, "N *event"],
    labels: Shaped[np.ndarray, "..."] | None = None,
    *,
    batch_size: int = 256,
) -> np.ndarray:
    """Write the codes of a whole data set to a .npz file, as `codes`, with `labels` if given.

    Args:
        path: Of the file, which is replaced as a whole.
        result: See `encode_data`.
        x: See `encode_data`.
        labels: The class of each datum, for a prior of classes.
        batch_size: See `encode_data`.

    Returns:
        The codes.

    Raises:
        ValueError: As `encode_data`, or if `labels` are not one for each datum.
    """
    if labels is not None:
        labels = _checked_labels(labels, len(x))
    codes = encode_data(result, x, batch_size=batch_size)
    arrays: dict[str, Any] = {"codes": codes} | ({} if labels is None else {"labels": labels})
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(Path(path), lambda file: file.write(content.getvalue()))
    return codes


@checked
def reconstruct_data(
    result: Any, codes: Shaped[np.ndarray | Array, "N *latents"], *, batch_size: int = 256
) -> np.ndarray:
    """The means of p(x | z) of codes, ``(N, *event)``.

    Args:
        result: What `fit` returned.
        codes: As `encode_data` returns them.
        batch_size: Codes that go through the decoder at once.

    Raises:
        ValueError: If the model has no decoder; if some are no codes of the model, or real numbers
            without an axis of the values that they are relaxed over; if there are none, or
            `batch_size` is below 1.
    """
    result = _with_decoder(result, "reconstruct_data")
    codes = _rows_of(codes, batch_size, "codes")
    _check_codes(as_batch((codes,), "`codes`").args[0], getattr(result.model, "num_codes", None))
    return _in_batches(result, result.model.reconstruct, codes, batch_size, "codes")


@checked
def sample_data(
    rng_key: Array,
    result: Any,
    num_data: int,
    *,
    labels: Integer[np.ndarray | Array, "N"] | None = None,
) -> np.ndarray:
    """The means of p(x | z) of codes drawn from the prior, ``(num_data, *event)``.

    Args:
        rng_key: Key of the draws.
        result: What `fit` returned.
        num_data: How many.
        labels: The class of each, for a prior of classes.

    Raises:
        ValueError: If the model has no prior and decoder, if `num_data` is below 1, or `labels`
            are given to a prior that takes none.
    """
    check_counts(num_data=num_data)
    result = _with_decoder(result, "sample_data")
    if labels is not None and not inspect.signature(result.model.prior).parameters:
        raise ValueError(
            "`labels` are for a prior of classes, as AutoregressivePrior(..., num_classes=10); the "
            f"model has a {type(result.model.prior).__name__}. Leave them out."
        )
    labelled = {} if labels is None else {"labels": jnp.broadcast_to(jnp.asarray(labels), num_data)}
    program = seeded(substitute(Evaluating(result.model), data=result.params), rng_key)
    drawn = sample_sites(trace(program).get_trace(num_data=num_data, **labelled))
    return reconstruct_data(result, drawn["z"].value)


def _with_decoder(result: Any, call: str) -> FitResult:
    """A result whose model is as DiscreteVAE."""
    result, names = as_result(result), ("prior", "reconstruct")
    model = result.model
    if not all(callable(getattr(model, name, None)) for name in names):
        raise ValueError(
            f"`{call}` needs a model with `prior` and `reconstruct`, as DiscreteVAE has them; "
            f"the model is a {type(model).__name__}. Of any model, `diagnostics.to_arviz` has "
            "draws of data by the posterior; by the prior they are "
            "numpyro.infer.Predictive(numpyro.handlers.uncondition(model), num_samples=64, "
            "params=result.params)(rng_key, *data)."
        )
    return result


def _check_codes(codes: Array, num_codes: int | None) -> None:
    """Whether codes are those of a model; of real numbers, a table would take each row for one."""
    check_codes(codes, num_codes, "codes")
    if num_codes is not None and jnp.issubdtype(codes.dtype, jnp.floating) and codes.ndim < 3:
        raise ValueError(
            f"`codes` must be integers (N, L), or relaxed codes (N, L, {num_codes}); got real "
            f"numbers of shape {tuple(codes.shape)}. Make integers of them: codes.astype(int)."
        )


def _rows_of(data: Any, batch_size: int, name: str) -> Any:
    """Data that have rows, as an array of whatever kind."""
    check_counts(batch_size=batch_size)
    data = data if hasattr(data, "__array__") else np.asarray(data)
    if not (data.ndim and len(data)):
        raise ValueError(
            f"`{name}` needs at least one row on its first axis; got shape {tuple(data.shape)}."
        )
    return data


def _checked_labels(labels: Any, num_data: int) -> np.ndarray:
    """One label for each datum, in an array that a file can hold without a pickle."""
    labels = np.asarray(labels)
    if labels.shape != (num_data,) or labels.dtype.hasobject:
        raise ValueError(
            f"`labels` must be one for each of the {num_data} data, numbers or strings of shape "
            f"({num_data},); got dtype {labels.dtype} and shape {labels.shape}. Objects become "
            "strings by labels.astype(str)."
        )
    return labels


def _known_codes(posterior: Any) -> Array:
    """The most likely codes; -1 of data for which a network returned NaN."""
    told: Array | None
    if isinstance(posterior, AutoregressiveCategorical):
        (codes, *_), (told, *_) = decode_codes(posterior)
    else:
        codes, base = _most_likely(posterior), base_distribution(posterior)
        told = base.source if isinstance(base, CertainCategorical) else base.probs
    if told is None or not len(codes):
        return codes
    unknown = jnp.isnan(told).reshape(len(codes), -1).any(-1)
    return jnp.where(unknown.reshape(-1, *[1] * (codes.ndim - 1)), -1, codes)


def _most_likely(posterior: Any) -> Array:
    while isinstance(posterior, dist.Independent):
        posterior = posterior.base_dist
    if isinstance(posterior, CertainCategorical):
        return posterior.mode
    if isinstance(posterior, dist.BernoulliLogits | dist.BernoulliProbs):
        return (posterior.probs > 0.5).astype(int)
    return jnp.argmax(posterior.probs, -1)


def _in_batches(
    result: FitResult, function: Callable[[Array], Array], data: Any, batch_size: int, name: str
) -> np.ndarray:
    """A function of rows of data, compiled, some at a time."""
    data = _rows_of(data, batch_size, name)
    run = jax.jit(lambda params, rows: substitute(Evaluating(function), data=params)(rows))
    starts = range(0, len(data), batch_size)
    rows = (as_batch((data[start : start + batch_size],), f"`{name}`").args[0] for start in starts)
    found = (_checked_rows(run(dict(result.params), some), some, name) for some in rows)
    return np.concatenate(list(found))


def _checked_rows(found: Array, rows: Array, name: str) -> np.ndarray:
    """What became of rows, if there is something for each of them."""
    if found.shape[:1] != rows.shape[:1]:
        raise ValueError(
            f"`{name}` must have a datum in each row; {len(rows)} rows, {tuple(rows.shape)}, "
            f"became an array of shape {tuple(found.shape)}. Of one datum, give {name}[None]."
        )
    return np.asarray(found)
