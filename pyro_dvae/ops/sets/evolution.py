"""Operators that propose new states for truncated posteriors: select parents, change them.

An operator maps a `Population`, the current states of each datum and their scores, to another
(a selector: `select`) or to the codes of children (`flip`, `sparse_flip`, `cross`, or any
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

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64, Integer
from torch import Tensor

from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.noise import drawn_for_rows
from pyro_dvae.ops.sets.hashing import hash_words
from pyro_dvae.ops.sets.packing import pack, unpack
from pyro_dvae.ops.sets.ranking import rows_at, take_flat_rows, top_indices
from pyro_dvae.ops.sets.states import change_latents, distinct_latents, perturb

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


class Population:
    """What an operator sees.

    States are packed, or unpacked, when they are asked for; packed, they move for an eighth of the
    memory.

    Attributes:
        codes: The states, ``(S, B, H)``.
        words: The same, as `ops.sets.pack` packs them, ``(S, B, W)``.
        scores: Log joints in nats, ``(S, B)``; NaN for states that are not scored yet.
        cardinalities: Codes of each latent.
        hashes: By `hash_states`, ``(S, B)``, if known: `flip` then makes those of its children
            from them.
        context: What an operator may ask for more than states and scores; every operator passes
            it on. In an E-step of `Truncated_ELBO` it scores states under the model; None outside.
    """

    def __init__(
        self,
        codes: Integer[Tensor, "S B H"],
        scores: Float[Tensor, "S B"],
        cardinalities: tuple[int, ...],
        hashes: Int64[Tensor, "S B"] | None = None,
        context: Any = None,
    ) -> None:
        self._codes: Tensor | None = codes
        self._words: Tensor | None = None
        self.scores, self.cardinalities, self.hashes = scores, cardinalities, hashes
        self.context = context

    @classmethod
    def packed(
        cls,
        words: Int32[Tensor, "S B W"],
        scores: Float[Tensor, "S B"],
        cardinalities: tuple[int, ...],
        hashes: Int64[Tensor, "S B"] | None = None,
        context: Any = None,
    ) -> "Population":
        """A population of packed states."""
        population = cls.__new__(cls)
        population._codes, population._words = None, words
        population.scores, population.cardinalities = scores, cardinalities
        population.hashes, population.context = hashes, context
        return population

    @property
    def codes(self) -> Integer[Tensor, "S B H"]:
        """The states, unpacked."""
        if self._codes is None:
            self._codes = unpack(self.words, self.cardinalities)
        return self._codes

    @property
    def words(self) -> Int32[Tensor, "S B W"]:
        """The states, packed."""
        if self._words is None:
            self._words = pack(self.codes, self.cardinalities)
        return self._words


Operator = Callable[[Population], Population | Tensor]


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

    def operator(population: Population) -> Population:
        scores, hashes = population.scores, population.hashes
        if num_parents > len(scores):
            raise ValueError(
                f"`num_parents` must be at most the number of states, {len(scores)}; got "
                f"{num_parents}."
            )
        rows = rows_at(top_indices(perturb(scores, temperature), num_parents))
        words, scores = take_flat_rows(population.words, rows), take_flat_rows(scores, rows)
        hashes = None if hashes is None else take_flat_rows(hashes, rows)
        cardinalities, context = population.cardinalities, population.context
        return Population.packed(words, scores, cardinalities, hashes, context)

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

    def operator(population: Population) -> Population:
        words, cardinalities = population.words, population.cardinalities
        children, hashes = words.repeat(num_children, 1, 1), population.hashes
        free = [h for h, v in enumerate(cardinalities) if v > 1]
        if not free:
            return unscored(children, population)
        latents = distinct_latents(num_children, free, words.shape[:2], words.device).flatten()
        before = None if hashes is None else hashes.repeat(num_children, 1).flatten()
        hashes = change_latents(children.flatten(0, 1), before, latents, cardinalities)
        return unscored(children, population, hashes)

    return operator


@checked
def sparse_flip(num_children: int, rate: float, num_active: float | Tensor) -> Operator:
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

    def operator(population: Population) -> Population:
        codes, cardinalities = population.codes, population.cardinalities
        if set(cardinalities) != {2}:
            raise ValueError(
                f"`sparse_flip` needs latents of 2 codes each; got cardinalities {cardinalities}. "
                "Use flip(), which moves a latent to any other code."
            )
        up, down = flip_probs(codes.sum(-1), codes.shape[-1], rate, num_active)
        probs = torch.where(codes == 1, down[..., None], up[..., None])
        shape = num_children, *codes.shape
        uniforms = drawn_for_rows(lambda s: torch.rand(s, device=codes.device), shape, -2)
        flips = uniforms < probs
        children = population.words ^ pack(flips.to(torch.uint8), cardinalities)
        return unscored(children.flatten(0, 1), population)

    return operator


@checked
def flip_probs(
    active: Integer[Tensor, "*batch"], num_latents: int, rate: float, num_active: float | Tensor
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
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
    step = (num_active - active.to(torch.get_default_dtype())).clamp(-flips, flips)
    up = (flips + step) / (2.0 * (num_latents - active))
    down = (flips - step) / (2.0 * active)
    # All latents on, or none: there is nothing to divide by, and no use for the other chance.
    up, down = torch.where(active == num_latents, 0.0, up), torch.where(active == 0, 0.0, down)
    return up.clamp(max=1.0), down.clamp(max=1.0)


def cross() -> Operator:
    """Cut every pair of parents at one random place and swap their tails: P (P - 1) children."""

    def operator(population: Population) -> Population:
        codes, cardinalities = population.codes, population.cardinalities
        num_parents, num_data, num_latents = codes.shape
        if num_parents < 2:
            raise ValueError(f"`cross` needs 2 parents or more; got {num_parents}.")
        first, second = torch.triu_indices(num_parents, num_parents, 1, device=codes.device)
        shape = len(first), num_data, 1
        cuts = drawn_for_rows(lambda s: torch.rand(s, device=codes.device), shape, 1)
        cuts = cuts * (num_latents - 1)
        head = torch.arange(num_latents, device=codes.device) <= cuts.long()
        ours, theirs = codes[first], codes[second]
        children = [torch.where(head, ours, theirs), torch.where(head, theirs, ours)]
        return unscored(pack(torch.cat(children), cardinalities), population)

    return operator


def chain(*operators: Operator) -> Operator:
    """Apply operators one after the other; children go on as parents without scores.

    Raises:
        ValueError: If there is no operator.
    """
    _check_operators(operators)

    def operator(population: Population) -> Population:
        for step in operators:
            population = _as_population(step(population), population)
        return population

    return operator


def union(*operators: Operator) -> Operator:
    """The children of several operators, each applied to the same population.

    Raises:
        ValueError: If there is no operator.
    """
    _check_operators(operators)

    def operator(population: Population) -> Population:
        parts = [propose(step, population) for step in operators]
        return Population.packed(
            torch.cat([part.words for part in parts]),
            torch.cat([part.scores for part in parts]),
            population.cardinalities,
            torch.cat([part.hashes for part in parts if part.hashes is not None]),
            population.context,
        )

    return operator


@checked
def propose(operator: Operator, population: Population) -> Population:
    """What an operator makes of a population, with the hashes that it leaves out.

    Raises:
        ValueError: If it makes anything but codes for the same data and latents.
    """
    children = _as_population(operator(population), population)
    if children.hashes is None:
        children.hashes = hash_words(children.words, children.cardinalities)
    return children


def _as_population(proposed: Population | Tensor, population: Population) -> Population:
    if isinstance(proposed, Population):
        proposed.context = population.context
        return proposed
    num_data, num_latents = population.scores.shape[1], len(population.cardinalities)
    if proposed.shape[1:] != (num_data, num_latents) or proposed.is_floating_point():
        raise ValueError(
            f"an operator must return integer codes of shape (children, {num_data} data, "
            f"{num_latents} latents); got {proposed.dtype} of shape {tuple(proposed.shape)}."
        )
    return unscored(pack(proposed, population.cardinalities), population)


def unscored(
    words: Int32[Tensor, "C B W"],
    parents: Population,
    hashes: Int64[Tensor, "..."] | None = None,
) -> Population:
    """Children, and their hashes if they are known."""
    scores = torch.full(words.shape[:2], math.nan, device=words.device)
    hashes = None if hashes is None else hashes.view(scores.shape)
    return Population.packed(words, scores, parents.cardinalities, hashes, parents.context)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{name}` must be 1 or more; got {value}.")


def _check_operators(operators: tuple[Operator, ...]) -> None:
    if not operators:
        raise ValueError("`operators` must be one or more; got none.")
    for operator in operators:
        if not callable(operator):
            raise ValueError(f"`operators` must be functions, as `flip` makes; got {operator!r}.")
