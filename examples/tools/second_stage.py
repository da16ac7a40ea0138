"""The second stage of a VQ-VAE: a prior for the codes that a trained guide finds.

Model and guide stay as they are; a causal transformer learns the codes of the training images,
and takes the place of the prior that they were trained with. It works after any method whose
latents are codes.
"""

from typing import Any

from data import draw_pixels

__all__ = ["fit_prior"]


def fit_prior(setup: Any, model: Any, guide: Any, args: Any) -> Any:
    """Fit an autoregressive prior to one draw of the codes of each training image.

    Args:
        setup: `Setup` of train.py.
        model: The trained model.
        guide: The trained guide.
        args: The arguments of train.py.

    Returns:
        The model with that prior.
    """
    backend, config, images = setup.backend, setup.config, setup.data.x_train
    if config.binarize == "dynamic":
        images = draw_pixels(images, args.seed)
    codes = backend.codes(guide, images)
    models = backend.module("models")
    prior = backend.make_prior(config._replace(prior="autoregressive"))
    folder = setup.out / "second_stage"
    backend.train(
        models.CodeModel(prior),
        _no_latents,
        backend.plain_elbo(),
        codes,
        learning_rate=config.learning_rate,
        num_steps=12 if args.smoke else config.second_stage_steps,
        batch_size=config.batch_size,
        folder=folder,
        resume=args.resume and backend.has_checkpoint(folder),
    )
    return models.DiscreteVAE(model.decoder, prior, model.likelihood)


def _no_latents(codes: Any) -> None:
    """The guide of a model whose codes are data."""
