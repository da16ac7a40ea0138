"""Networks: arrays in, logits out; any number of leading particle and batch dims.

All but codebooks are flax (linen) modules. `mlp` holds the multi-layer perceptrons, `transformer`
the patch encoder and the causal transformer over codes, `attention` their blocks, `codebooks` what
quantises vectors, `registration` the tie to NumPyro's parameters.
"""

from numpyro_dvae.nets.codebooks import Codebook, CodebookDecoder, FiniteScalars
from numpyro_dvae.nets.decoding import decode_codes
from numpyro_dvae.nets.mlp import MLPDecoder, MLPEncoder
from numpyro_dvae.nets.registration import register
from numpyro_dvae.nets.transformer import CausalTransformer, PatchEncoder

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
