"""The functions on states of `ops.sets`, under their first import path."""

from pyro_dvae.ops.sets import (
    Survivors,
    change_hash,
    code_dtype,
    first_occurrences,
    hash_states,
    keep_best,
    merge_best,
    newcomers,
    num_words,
    other_codes,
    pack,
    random_states,
    take_states,
    unpack,
    zobrist_table,
)

__all__ = [
    "Survivors",
    "change_hash",
    "code_dtype",
    "first_occurrences",
    "hash_states",
    "keep_best",
    "merge_best",
    "newcomers",
    "num_words",
    "other_codes",
    "pack",
    "random_states",
    "take_states",
    "unpack",
    "zobrist_table",
]
