"""Sets of distinct states of discrete latents, and how they evolve.

A truncated posterior keeps S states for every datum; what is done to such sets is here, on arrays
alone: no model, no site. Imports: the array library, and the other files of this folder in the
order `packing`, `hashing`, `ranking`, `states`, `evolution`. Start with `evolution`, whose
operators are what a user composes; `infer.truncated` scores what they propose.

- `packing`: states as words of 32 bits, and back;
- `hashing`: hashes of states, and which states of a set are there already;
- `ranking`: the S best of members and children;
- `states`: random states, and random changes of them;
- `evolution`: populations, and the operators that propose children.

Glossary:
    state: One code for each of H latents.
    codes: States unpacked, ``(*batch, H)``: an integer below ``cardinalities[h]`` for each latent.
    words: States packed, ``(*batch, W)``; never anything else.
    hash: One integer that stands for a state: two states are equal if their hashes are.
    set: S distinct states of one datum; those of B data are one array, ``(S, B, ...)``.
    member: A state of a set.
    parent, child: A state that an operator starts from, and one that it makes of it.
    population: What an operator sees: states, their scores (log joints in nats), their hashes.
    operator: A function from a population to children, or to the parents among its states.
"""

from pyro_dvae.ops.sets.evolution import Operator as Operator
from pyro_dvae.ops.sets.evolution import (
    Population,
    chain,
    cross,
    flip,
    flip_probs,
    propose,
    select,
    sparse_flip,
    union,
)
from pyro_dvae.ops.sets.hashing import (
    change_hash,
    first_occurrences,
    hash_states,
    newcomers,
    zobrist_table,
)
from pyro_dvae.ops.sets.packing import code_dtype, num_words, pack, unpack
from pyro_dvae.ops.sets.ranking import Survivors, keep_best, merge_best, take_states
from pyro_dvae.ops.sets.states import other_codes, random_states

__all__ = [
    "Population",
    "Survivors",
    "chain",
    "change_hash",
    "code_dtype",
    "cross",
    "first_occurrences",
    "flip",
    "flip_probs",
    "hash_states",
    "keep_best",
    "merge_best",
    "newcomers",
    "num_words",
    "other_codes",
    "pack",
    "propose",
    "random_states",
    "select",
    "sparse_flip",
    "take_states",
    "union",
    "unpack",
    "zobrist_table",
]
