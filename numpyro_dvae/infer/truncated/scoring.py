"""Log joints of states of data under a model, many of them at once.

States are scored in pieces, so few at a time that a cache, or a device's memory, holds the largest
array that they make on their way.

Where nothing outside of a mask depends on the masked latents of a datum (padding), sets keep one
state for all that differ in these alone. Where something does (an animal before it is marked), they
are latents like others, `with_drawn`: a mask silences a density, never a draw, so the log joint of
a state holds the log-density of its masked latents, as `TraceEnum_ELBO` counts those that it sums
over. The guide then has a factor that takes this density out of its log q, as no model's log joint
has it.
"""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Num
from numpyro.handlers import block

from numpyro_dvae.infer.truncated.minibatch import Minibatch
from numpyro_dvae.ops.sets.packing import code_dtype
from numpyro_dvae.programs.codes import Space, a_few, decode, latents_of
from numpyro_dvae.programs.densities import changed
from numpyro_dvae.programs.plans import looks
from numpyro_dvae.programs.record import Particles, Reader, read_silenced
from numpyro_dvae.programs.run import run_particles
from numpyro_dvae.programs.sites import Pair
from numpyro_dvae.programs.structure.cells import check_cells

__all__ = [
    "ModelCall",
    "Scorer",
    "check_apart",
    "log_weights",
    "masked_matter",
    "run_states",
    "score_silenced",
    "with_drawn",
]

_TOGETHER = "use Exact_ELBO with a guide that draws them: it lists the states of all data together"
_CACHE_BYTES, _DEVICE_BYTES = 2**21, 2**30  # of the largest temporary that scoring makes at once


class ModelCall(NamedTuple):
    """One call of a model whose states are scored: what is run, and what data it is about."""

    rng_key: Array
    params: dict[str, Any]
    model: Callable  # with parameters and rows of plates
    rest: Callable  # a guide for the latents that are no states, with the same
    args: tuple
    kwargs: dict
    space: Space
    batch: Minibatch
    vectorize: bool | Callable  # as `run_particles` takes it
    state_bytes: int = 1  # of the largest temporary that one state makes

    def measured(self) -> "ModelCall":
        """The same, knowing the bytes of the largest temporary that one state makes."""
        shape = 1, len(self.batch.rows), len(self.space.cardinalities)
        one = jax.ShapeDtypeStruct(shape, code_dtype(self.space.cardinalities))
        program = jax.make_jaxpr(lambda codes: log_weights(run_states(self, codes)[0]))(one)
        return self._replace(state_bytes=_largest_bytes(program.jaxpr))

    def in_pieces(self, count: int) -> "ModelCall":
        """The same, to run so many states few at a time, and again for the gradient.

        Half the time of keeping all for it, where a cache does not hold that.
        """
        size = self.piece(count)
        if not self.vectorize or size == count:
            return self
        return self._replace(vectorize=functools.partial(_run_in_pieces, size=size))

    def piece(self, count: int) -> int:
        """How many of so many states to run at once: few temporaries, and few states twice."""
        limit = _CACHE_BYTES if jax.default_backend() == "cpu" else _DEVICE_BYTES
        most = min(max(limit // self.state_bytes, 1), count)
        return min(range(most, most // 2, -1), key=lambda size: -count % size)


class Scorer:
    """Log joints of states at fixed parameters, without gradient but in the states.

    In an E-step it is the `context` of the populations that operators see: no array to JAX, so
    that a population may be an argument of what is transformed.

    Args:
        call: What the states are of; no gradient may flow into its parameters.
        beta: Weight of the rate.
    """

    def __init__(self, call: ModelCall, beta: float | Array = 1.0) -> None:
        self.call, self.beta = call, beta

    def of_codes(self, codes: Num[Array, "S B H"]) -> Float[Array, "S B"]:
        """Scores of codes, real ones too, in pieces that a cache holds."""
        count, size = len(codes), self.call.piece(len(codes))
        if size == count:
            return self._piece(codes)
        filled = jnp.concatenate([codes, codes[: -count % size]])
        pieces = filled.reshape(-1, size, *codes.shape[1:])
        return jax.lax.map(self._piece, pieces).reshape(-1, codes.shape[1])[:count]

    def _piece(self, codes: Num[Array, "S B H"]) -> Float[Array, "S B"]:
        """One run of the model."""
        return log_weights(run_states(self.call, codes)[0], self.beta).reshape(len(codes), -1)


jax.tree_util.register_pytree_node(Scorer, lambda scorer: ((), scorer), lambda scorer, _: scorer)


def run_states(
    call: ModelCall,
    codes: Num[Array, "S B H"],
    reads: Mapping[str, Reader] = MappingProxyType({}),
) -> tuple[Particles, dict[str, Any]]:
    """The record of given states, all with the same draws of the other latents.

    Args:
        call: What the states are of.
        codes: The states.
        reads: What to read of the run beside the log-densities.

    Returns:
        The record, and the mutable state that the programs leave.
    """
    layout = call.space.layout
    pair = Pair(call.model, call.rest, call.args, call.kwargs, layout, call.vectorize)
    values = decode(call.space, codes, call.batch.sizes)
    if call.batch.drawn is not None:
        reads = {**reads, "silenced": read_silenced}
    with block():
        found = run_particles(call.rng_key, pair, len(codes), reads=reads, values=values)
    if call.batch.drawn is None:
        return found
    return _with_silenced(found[0], call.batch.drawn), found[1]


def _with_silenced(particles: Particles, drawn: Bool[Array, "B"]) -> Particles:
    """Masked latents of some data as the model draws them."""
    log_prior = particles.log_prior
    drawn = drawn.reshape(log_prior.shape[1:])
    silenced = jnp.where(drawn, particles.extras["silenced"], 0.0)
    return particles._replace(log_prior=log_prior + silenced)


def score_silenced(call: ModelCall, states: Integer[Array, "S B H"]) -> Float[Array, "S B"]:
    """The log-density that masks silence in states of data whose masked latents are drawn."""
    assert call.batch.drawn is not None
    particles, _ = run_states(call, states, {"silenced": read_silenced})
    silenced = particles.extras["silenced"].reshape(len(states), -1)
    return jnp.where(call.batch.drawn, jax.lax.stop_gradient(silenced), 0.0)


def log_weights(particles: Particles, beta: float | Array = 1.0) -> Float[Array, "S *plates"]:
    """Unnormalised ``log q``: the beta-ELBO's best weights of given states."""
    if isinstance(beta, jax.Array):
        beta = beta.astype(particles.log_likelihood.dtype)
    return particles.log_likelihood / beta + particles.log_prior - particles.log_q_pathwise


def _run_in_pieces(run: Callable, particles: Any, *, size: int) -> Any:
    return jax.lax.map(jax.checkpoint(run), particles, batch_size=size)


def _largest_bytes(jaxpr: Any) -> int:
    """Of all arrays that a program makes on its way."""
    sizes = [1]
    for equation in jaxpr.eqns:
        sizes += [_bytes(variable.aval) for variable in equation.outvars]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                sizes.append(_largest_bytes(getattr(inner, "jaxpr", inner)))
    return max(sizes)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 4)


_NUM_STATES = 8  # that are tried: the last codes of all latents, and others at random
_BY_CHANCE = 1e-5  # in single precision; what differs by chance only costs states


def with_drawn(call: ModelCall) -> ModelCall:
    """The call, knowing of which data the masked latents are drawn like others."""
    kept = call.batch.unmasked
    if kept is None:
        return call
    drawn = masked_matter(call, kept)
    return call._replace(batch=call.batch._replace(unmasked=kept | drawn[:, None], drawn=drawn))


def masked_matter(call: ModelCall, kept: Bool[Array, "B H"]) -> Bool[Array, "B"]:
    """Whether a datum's log joint changes with codes that a mask takes out, in states tried."""
    states = _states(call, kept)
    scores = Scorer(call).of_codes(jnp.concatenate([states, jnp.where(kept, states, 0)]))
    some, others = jnp.split(scores, 2)
    return changed(some, others, _BY_CHANCE).any(0)


def _states(call: ModelCall, kept: Bool[Array, "B H"]) -> Num[Array, "S B H"]:
    """The same at each call."""
    sizes = jnp.array(call.space.cardinalities)
    shape = _NUM_STATES - 1, 1, len(sizes)
    codes = jax.random.randint(jax.random.key(0), shape, 0, 2**30) % sizes
    codes = jnp.concatenate([jnp.broadcast_to(sizes - 1, (1, *shape[1:])), codes])
    return jnp.broadcast_to(codes, (_NUM_STATES, *kept.shape))


def check_apart(call: ModelCall, known: set[Any]) -> None:
    """Refuse a model whose data do not keep apart, in each trace.

    Data of another shape, or a flag, may make a call of another program. Where nothing is traced,
    in each step, it is done once for calls that look alike.

    Args:
        call: The call.
        known: How calls look whose data keep apart; this one's is added.

    Raises:
        ValueError: If no datum has a posterior of its own.
    """
    traced = jax.tree.leaves((call.args, call.kwargs, call.params))
    key = looks((call.args, call.kwargs))
    if key in known and not any(isinstance(leaf, jax.core.Tracer) for leaf in traced):
        return
    program = latents_of(call.model, call.rest)
    pair = Pair(call.model, program, call.args, call.kwargs, call.space.layout)
    with block():
        check_cells(jax.random.key(0), pair, a_few(call.space), _TOGETHER)
    known.add(key)
