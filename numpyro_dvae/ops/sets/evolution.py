"""Operators that propose new states for truncated posteriors: select parents, change them.

An operator maps a key and a `Population`, the current states of each datum and their scores, to
another (a selector: `select`) or to the codes of children (`flip`, `sparse_flip`, `cross`, or any
function of one's own). `chain` and `union` compose them:

    chain(select(10), flip(9))                  # the published E-step: 90 children
    union(chain(select(5), cross()), flip(1))   # both kinds

Children may repeat each other or their parents: who scores them removes duplicates first.

Shapes: S states, P parents or C children lead, B data follow, as in ``(S, B, H)``; scores are
log joints in nats.

References:
    [1] Drefs, Guiraud & Lücke. Evolutionary variational optimization of generative models.
        JMLR, 2022.
    [2] Guiraud, Drefs & Lücke. Direct evolutionary optimization of variational autoencoders
        with binary latents. ECML PKDD, 2022.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt32

from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.sets.hashing import change_hash, hash_states, zobrist_table
from numpyro_dvae.ops.sets.ranking import take_states
from numpyro_dvae.ops.sets.states import distinct_latents, other_codes, perturb

__all__ = [
    "Population",
    "chain",
    "cross",
    "flip",
    "flip_probs",
    "propose",
    "select",
    "sparse_flip",
    "union",
]


class Population(NamedTuple):
    """What an operator sees."""

    codes: Integer[Array, "S B H"]
    scores: Float[Array, "S B"]
    """Log joints in nats; NaN for states that are not scored yet."""
    cardinalities: tuple[int, ...]
    """Codes of each latent."""
    hashes: UInt32[Array, "S B"] | None = None
    """Hashes by `hash_states`, if known: `flip` then makes those of its children from them."""
    context: Any = None
    """What an operator may ask for more than states and scores; every operator passes it on. In an
    E-step of `Truncated_ELBO` it scores states under the model; None outside."""


Operator = Callable[[Array, Population], Population | Array]


@checked
def select(num_parents: int, temperature: float = 1.0) -> Operator:
    """Select parents without replacement, with chances ``∝ exp(scores / temperature)``.

    Args:
        num_parents: P, at most the number of states.
        temperature: The selection pressure, in nats: 1 goes by the posterior weights, inf picks
            all alike, 0 the best. A state of score -inf or NaN comes last, but at inf.

    Raises:
        ValueError: If `num_parents` is not positive or `temperature` is negative.
    """
    _check_positive("num_parents", num_parents)
    if not temperature >= 0.0:
        raise ValueError(f"`temperature` must be from 0 to inf; got {temperature}.")

    def operator(rng_key: Array, population: Population) -> Population:
        codes, scores, cardinalities, hashes, context = population
        if num_parents > len(codes):
            raise ValueError(
                f"`num_parents` must be at most the number of states, {len(codes)}; got "
                f"{num_parents}."
            )
        index = jax.lax.top_k(perturb(rng_key, scores, temperature).T, num_parents)[1].T
        scores = jnp.take_along_axis(scores, index, axis=0)
        hashes = None if hashes is None else jnp.take_along_axis(hashes, index, axis=0)
        return Population(take_states(codes, index), scores, cardinalities, hashes, context)

    return operator


@checked
def flip(num_children: int) -> Operator:
    """Give each parent children that differ from it in one latent each.

    The changed latents of one parent's children are distinct, up to H of them; every set of
    latents is equally probable. A binary latent flips; another takes any of its other codes.

    Raises:
        ValueError: If `num_children` is not positive.
    """
    _check_positive("num_children", num_children)

    def operator(rng_key: Array, population: Population) -> Population:
        codes, _, cardinalities, hashes, _ = population
        shape = num_children * len(codes), *codes.shape[1:]
        free = [h for h, v in enumerate(cardinalities) if v > 1]
        if not free:
            return unscored(jnp.tile(codes, (num_children, 1, 1)), population)
        latent_key, code_key = jax.random.split(rng_key)
        latents = distinct_latents(latent_key, num_children, free, codes.shape[:2])
        old = jnp.take_along_axis(codes[None], latents[..., None], axis=-1)[..., 0]
        new = other_codes(code_key, old, latents, cardinalities)
        changes = jnp.arange(codes.shape[-1]) == latents[..., None]
        children = jnp.where(changes, new[..., None], codes).reshape(shape)
        if hashes is not None:
            table = zobrist_table(cardinalities)
            hashes = change_hash(hashes, table, latents, old, new).reshape(shape[:2])
        return unscored(children, population, hashes)

    return operator


@checked
def sparse_flip(num_children: int, rate: float, num_active: float | Array) -> Operator:
    """Flip every latent of each child at random, so that children stay sparse ([2], binary only).

    A child differs from its parent in ``H rate`` latents on average, and has `num_active` latents
    on if its parent has about as many; otherwise it comes as near as these flips allow.

    Args:
        num_children: Children of each parent.
        rate: Mean share of the latents that flip, in (0, 1].
        num_active: Wanted number of latents on; `infer.prior_flip` takes that of the prior.

    Raises:
        ValueError: If an argument is out of range, or a latent is not binary.
    """
    _check_positive("num_children", num_children)
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"`rate` is a share of the latents, in (0, 1]; got {rate}.")

    def operator(rng_key: Array, population: Population) -> Population:
        codes, cardinalities = population.codes, population.cardinalities
        if set(cardinalities) != {2}:
            raise ValueError(
                f"`sparse_flip` needs latents of 2 codes each; got cardinalities {cardinalities}. "
                "Use flip(), which moves a latent to any other code."
            )
        active = jnp.sum(codes, axis=-1, dtype=jnp.int32)
        up, down = flip_probs(active, codes.shape[-1], rate, num_active)
        probs = jnp.where(codes == 1, down[..., None], up[..., None])
        flips = jax.random.uniform(rng_key, (num_children, *codes.shape), jnp.float32) < probs
        children = (codes ^ flips.astype(codes.dtype)).reshape(-1, *codes.shape[1:])
        return unscored(children, population)

    return operator


@checked
def flip_probs(
    active: Integer[Array, "*batch"], num_latents: int, rate: float, num_active: float | Array
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Chances of `sparse_flip` to turn a latent on that is off, and off one that is on.

    With s of H latents active, target c and flip rate p, they solve ``(H - s) up + s down = H p``
    and ``(H - s) up - s down = c - s``, where the step c - s is cut to the H p flips there are.

    Args:
        active: s, the latents that are on.
        num_latents: H.
        rate: p.
        num_active: c.
    """
    flips = num_latents * rate
    step = jnp.clip(num_active - active.astype(float), -flips, flips)
    up = (flips + step) / (2.0 * (num_latents - active))
    down = (flips - step) / (2.0 * active)
    # All latents on, or none: there is nothing to divide by, and no use for the other chance.
    up, down = jnp.where(active == num_latents, 0.0, up), jnp.where(active == 0, 0.0, down)
    return jnp.minimum(up, 1.0), jnp.minimum(down, 1.0)


def cross() -> Operator:
    """Cut every pair of parents at one random place and swap their tails: P (P - 1) children."""

    def operator(rng_key: Array, population: Population) -> Population:
        codes = population.codes
        num_parents, num_data, num_latents = codes.shape
        if num_parents < 2:
            raise ValueError(f"`cross` needs 2 parents or more; got {num_parents}.")
        first, second = np.triu_indices(num_parents, 1)
        shape = (len(first), num_data, 1)
        cuts = jax.random.randint(rng_key, shape, 0, max(num_latents - 1, 1))
        head = jnp.arange(num_latents) <= cuts
        ours, theirs = codes[first], codes[second]
        children = [jnp.where(head, ours, theirs), jnp.where(head, theirs, ours)]
        return unscored(jnp.concatenate(children), population)

    return operator


def chain(*operators: Operator) -> Operator:
    """Apply operators one after the other; children go on as parents without scores.

    Raises:
        ValueError: If there is no operator.
    """
    _check_operators(operators)

    def operator(rng_key: Array, population: Population) -> Population:
        for key, step in zip(jax.random.split(rng_key, len(operators)), operators, strict=True):
            population = _as_population(step(key, population), population)
        return population

    return operator


def union(*operators: Operator) -> Operator:
    """The children of several operators, each applied to the same population.

    Raises:
        ValueError: If there is no operator.
    """
    _check_operators(operators)

    def operator(rng_key: Array, population: Population) -> Population:
        steps = zip(jax.random.split(rng_key, len(operators)), operators, strict=True)
        parts = [propose(key, step, population) for key, step in steps]
        return Population(
            jnp.concatenate([part.codes for part in parts]),
            jnp.concatenate([part.scores for part in parts]),
            population.cardinalities,
            jnp.concatenate([part.hashes for part in parts if part.hashes is not None]),
            population.context,
        )

    return operator


@checked
def propose(rng_key: Array, operator: Operator, population: Population) -> Population:
    """What an operator makes of a population, with the hashes that it leaves out.

    Raises:
        ValueError: If it makes anything but codes for the same data and latents.
    """
    children = _as_population(operator(rng_key, population), population)
    if children.hashes is not None:
        return children
    table = zobrist_table(population.cardinalities)
    return children._replace(hashes=hash_states(children.codes, table))


def _as_population(proposed: Population | Array, population: Population) -> Population:
    if isinstance(proposed, Population):
        return proposed._replace(context=population.context)
    shape, dtype = population.codes.shape, population.codes.dtype
    if proposed.shape[1:] != shape[1:] or jnp.issubdtype(proposed.dtype, jnp.floating):
        raise ValueError(
            f"an operator must return integer codes of shape (children, {shape[1]} data, {shape[2]}"
            f" latents); got {proposed.dtype} of shape {proposed.shape}."
        )
    return unscored(proposed.astype(dtype), population)


def unscored(
    codes: Integer[Array, "C B H"],
    parents: Population,
    hashes: UInt32[Array, "C B"] | None = None,
) -> Population:
    """Children, and their hashes if they are known."""
    scores = jnp.full(codes.shape[:2], jnp.nan)
    return Population(codes, scores, parents.cardinalities, hashes, parents.context)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{name}` must be 1 or more; got {value}.")


def _check_operators(operators: tuple[Operator, ...]) -> None:
    if not operators:
        raise ValueError("`operators` must be one or more; got none.")
    for operator in operators:
        if not callable(operator):
            raise ValueError(f"`operators` must be functions, as `flip` makes; got {operator!r}.")
