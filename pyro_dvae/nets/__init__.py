"""Networks: arrays in, logits out; any number of leading particle and batch dims.

`mlp` holds the multi-layer perceptrons, `transformer` the patch encoder and the causal
transformer over codes, `attention` their blocks, `codebooks` what quantises vectors,
`registration` the tie to Pyro's store.
"""

from pyro_dvae.nets.codebooks import Codebook, CodebookDecoder, FiniteScalars
from pyro_dvae.nets.decoding import decode_codes
from pyro_dvae.nets.mlp import MLPDecoder, MLPEncoder
from pyro_dvae.nets.registration import register
from pyro_dvae.nets.transformer import CausalTransformer, PatchEncoder

__all__ = [
    "CausalTransformer",
    "Codebook",
    "CodebookDecoder",
    "FiniteScalars",
    "MLPDecoder",
    "MLPEncoder",
    "PatchEncoder",
    "decode_codes",
    "register",
]
