"""Networks: arrays in, logits out, with any number of leading particle and batch dims.

Start with `mlp`: a perceptron from data to logits, and one from latents to a likelihood's outputs.

All but codebooks are flax (linen) modules, whose parameters live outside.

- `mlp`: multi-layer perceptrons, `MLPEncoder` and `MLPDecoder`;
- `convolutions`: residual ones, `ConvEncoder` and `ConvDecoder`, of images and sequences; `halving`
  has their grids;
- `sequences`: `SequenceEncoder` and `SequenceDecoder`, transformers, as for motion capture;
- `transformer`: `PatchEncoder` of images, and `CausalTransformer` over codes;
- `attention`: the blocks of these two;
- `layers`, `inputs`, `latents`: layers and how they start; checks of what a network is given;
- `quantizers`, `codebooks`, `implicit`, `stacks`, `hierarchical`: what quantises vectors,
  for a guide and its model to share: tables, signs, several in turn, side by side or by scale;
- `stochastic`: `CodebookEncoder`, logits of codes drawn around vectors (SQ-VAE);
- `decoders`: `CodebookDecoder`, which puts the vectors of codes through a network;
- `grids`: codes and vectors that lie on a grid, in a row;
- `upsampling`: `Upsampling`, flax's `ConvTranspose` with gradients that are fast on a CPU.

Four files are no networks: `decoding` searches for the most likely codes of an autoregressive
distribution, `registration` ties a network to NumPyro's parameters, `evaluating` switches dropout
and statistics of a batch off, and `products` multiplies by a matrix so that the gradient is fast.

The room may import `ops` and `distributions`, and nothing of the package that is above it.

Words of this room:

- *latent*: one of the L discrete variables of a datum; *code*: its value, an integer below V;
- *relaxed code*: a real vector over the V values in place of a code;
- *context*: P vectors of width D that the codes of a datum depend on;
- *embedding*: the vector of width D that a network learns for a code;
- *codebook*: a table of V vectors; to *quantise* a vector is to find the code of the nearest one;
- *table*: the vectors of all codes, ``(V, D)``;
- *start*: what a parameter or an output is before the first step of training;
- *cache*: keys and values of earlier codes, which a sampler need not compute again;
- *beam*: the W best beginnings of a sequence of codes.
"""

from numpyro_dvae.nets.codebooks import Codebook, FiniteScalars
from numpyro_dvae.nets.convolutions import ConvDecoder, ConvEncoder
from numpyro_dvae.nets.decoders import CodebookDecoder
from numpyro_dvae.nets.decoding import DecodedCodes, decode_codes
from numpyro_dvae.nets.hierarchical import HierarchicalCodebook, HierarchicalDecoder
from numpyro_dvae.nets.implicit import BinaryCodes, LinearCodebook
from numpyro_dvae.nets.mlp import MLPDecoder, MLPEncoder
from numpyro_dvae.nets.quantizers import Quantized, Quantizer
from numpyro_dvae.nets.registration import register
from numpyro_dvae.nets.sequences import SequenceDecoder, SequenceEncoder
from numpyro_dvae.nets.stacks import GroupedCodebook, ResidualCodebook
from numpyro_dvae.nets.stochastic import CodebookEncoder
from numpyro_dvae.nets.transformer import CausalTransformer, PatchEncoder
from numpyro_dvae.nets.upsampling import Upsampling

__all__ = [
    "BinaryCodes",
    "CausalTransformer",
    "Codebook",
    "CodebookDecoder",
    "CodebookEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "DecodedCodes",
    "FiniteScalars",
    "GroupedCodebook",
    "HierarchicalCodebook",
    "HierarchicalDecoder",
    "LinearCodebook",
    "MLPDecoder",
    "MLPEncoder",
    "PatchEncoder",
    "Quantized",
    "Quantizer",
    "ResidualCodebook",
    "SequenceDecoder",
    "SequenceEncoder",
    "Upsampling",
    "decode_codes",
    "register",
]
