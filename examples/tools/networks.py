"""The networks that a config describes, of either package."""

import importlib
from types import ModuleType
from typing import Any

from configs import Config

__all__ = ["HEADS", "costs_of", "make_decoder", "make_encoder", "make_patches", "outputs_of"]

HEADS = "gaussian_heads", "logistic"  # likelihoods of two numbers for each entry


def make_encoder(nets: ModuleType, config: Config, shape: tuple[int, ...], size: int | None) -> Any:
    """From data of a shape to `size` numbers for each latent: its logits, or a vector.

    None is for binary latents.
    """
    latents, scale = config.num_latents, config.encoder_scale
    if config.decoder == "sequence":
        layers = config.encoder_layers or config.num_layers
        return nets.SequenceEncoder(
            shape, latents, size, **_blocks(config, layers), **costs_of(nets, config)
        )
    if config.decoder == "conv":
        options = _convolutions(config) | costs_of(nets, config)
        return nets.ConvEncoder(shape, latents, size, output_scale=scale, **options)
    return nets.MLPEncoder(shape, latents, size, config.encoder_hidden, scale)


def make_patches(nets: ModuleType, config: Config, shape: tuple[int, ...]) -> Any:
    """From data of a shape to the context of a transformer over codes."""
    options = _blocks(config, config.num_layers) | costs_of(nets, config)
    if config.decoder == "sequence":
        return nets.SequenceEncoder(shape, config.num_patches, **options)
    return nets.PatchEncoder(shape, config.num_patches, **options)


def make_decoder(
    nets: ModuleType,
    config: Config,
    shape: tuple[int, ...],
    num_codes: int | None,
    start: Any,
    width: int | None = None,
) -> Any:
    """From codes, or with `num_codes` None from `width` numbers for each latent, to outputs.

    Outputs are of data of this shape, and begin at `start`.
    """
    outputs, latents = outputs_of(config, shape), config.num_latents
    embed_dim = config.embed_dim if num_codes else width or 1
    if config.decoder == "sequence":
        options = _blocks(config, config.num_layers)
        options = {"width": options.pop("embed_dim"), **options, **costs_of(nets, config)}
        return nets.SequenceDecoder(
            latents, num_codes, outputs, embed_dim=embed_dim, start=start, **options
        )
    if config.decoder == "conv":
        options = {"embed_dim": embed_dim, "start": start, **_convolutions(config)}
        options |= costs_of(nets, config)
        return nets.ConvDecoder(latents, num_codes, outputs, **options)
    inputs, hidden = latents if num_codes else latents * embed_dim, config.decoder_hidden
    return nets.MLPDecoder(inputs, num_codes, outputs, config.embed_dim, hidden, start)


def outputs_of(config: Config, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a decoder's outputs for data of this shape."""
    return (*shape[:-1], 2 * shape[-1]) if config.likelihood in HEADS else shape


def costs_of(nets: ModuleType, config: Config) -> dict[str, Any]:
    """What transformers and convolutions compute in, and whether they keep activations."""
    if not config.half:
        return {"recompute": config.recompute}
    is_jax = nets.__name__.startswith("numpyro")
    library = importlib.import_module("jax.numpy" if is_jax else "torch")
    return {"dtype": library.bfloat16, "recompute": config.recompute}


def _blocks(config: Config, num_layers: int) -> dict[str, Any]:
    return {"embed_dim": config.embed_dim, "num_layers": num_layers}


def _convolutions(config: Config) -> dict[str, Any]:
    return {
        "width": config.conv_width,
        "num_groups": config.conv_groups,
        "per_place": config.per_place,
    }
