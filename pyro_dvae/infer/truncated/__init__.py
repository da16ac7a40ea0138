"""Truncated posteriors optimised by evolution: a guide that keeps states, and its loss.

Every datum owns a set of distinct states of its discrete latents, and its posterior is the exact
one on that set. Imports: `ops`, `distributions`, `programs`, the base class of `infer.elbo`; no
other algorithm. Start with `guide`, which says what a truncated posterior is.

One E-step (`Truncated_ELBO.e_step`, or each step of an `SVI`) goes through the files in this order:

1. `loss`: how often to evolve, at which beta;
2. `guide`: a plain run of the model, the members of the data that it is about, and in the end the
   place where the new ones are kept;
3. `minibatch`: from the plain run, which of all data these are, and what a mask takes out;
4. `estep`: the first time alone, sets drawn from the prior; children are proposed, scored, and
   merged with the members;
5. `proposals`: operators that ask the model, beside those of `ops.sets`;
6. `scoring`: log joints of states under the model, many at a time;
7. `replay`: one pass over them, repeated without its Python.

The M-step is `loss` alone: the members are run once more, with gradient; `infer.closed_forms` keeps
what these need. `sampling` is how the guide, called as a program, draws members; `parts` cuts the
data of `for_data`.

Glossary:
    state: One code for each of the H latents of a datum.
    words, codes: States packed in 32-bit words, and unpacked. Sets are kept as words, and given to
        the model as codes. The E-step moves words.
    set: The S distinct states of a datum. member: One of them.
    child: A state that an operator makes of members; it becomes a member if it scores higher.
    call: One call of a model with its arguments, `ModelCall`: the data that its states are of.
    rows: Which of all N data a call is about, as its plates subsample them.
    rest: A guide for the latents that are no states, continuous or global ones.
    piece: As many states as are scored in one run of the model.
    pool: Sets of other data, whose states are proposed for new data.
"""

from pyro_dvae.infer.truncated.guide import TruncatedGuide, TruncatedPosterior
from pyro_dvae.infer.truncated.loss import Truncated_ELBO, TruncatedInfo
from pyro_dvae.infer.truncated.proposals import draws_of, informed_flip, prior_flip

__all__ = [
    "TruncatedGuide",
    "TruncatedInfo",
    "TruncatedPosterior",
    "Truncated_ELBO",
    "draws_of",
    "informed_flip",
    "prior_flip",
]
