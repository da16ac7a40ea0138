"""Named settings: sizes of the networks, of the latent space and of the training."""

from typing import Any, NamedTuple

__all__ = ["CONFIGS", "Config"]


class Config(NamedTuple):
    """One model and how it is trained; the defaults suit small gray images."""

    num_latents: int = 8
    num_codes: int = 64
    embed_dim: int = 32
    encoder_hidden: tuple[int, ...] = (128,)
    encoder_scale: float = 1.0  # of its first outputs; less: no code is ahead from the start
    decoder_hidden: tuple[int, ...] = (128,)
    # Or "conv": residual convolutions from a grid of codes; "sequence": transformers of sequences
    decoder: str = "mlp"
    conv_width: int = 64  # channels of convolutions on the coarse grid
    conv_groups: int | None = 8  # of channels that are normalised together
    per_place: int = 1  # latents at each place of the grid
    frames: int | None = None  # of a sequence
    num_patches: int = 8  # of the autoregressive guide
    num_layers: int = 1  # blocks of its encoder, and of its transformer over codes
    encoder_layers: int | None = None  # of a transformer without one over codes
    half: bool = False  # whether these and convolutions compute in bfloat16
    recompute: bool = False  # whether their activations are computed again, not kept
    grid: tuple[int, int] | None = None  # of a quantising method's latents, between convolutions
    # Or "bernoulli" (images are binarized); "gaussian", of one variance; "gaussian_heads", of one
    # for each entry; "logistic", discretised, of bytes
    likelihood: str = "auto"
    variance: float = 0.1  # of "gaussian", as it starts
    learn_variance: bool = True
    variance_bounds: tuple[float, float] | None = None
    standardize: bool = False  # images to mean 0 and variance 1 over all entries of a channel
    binarize: str = "threshold"  # or "dynamic": training images are drawn anew at every step
    prior: str = "uniform"  # or, learnt, "categorical", "autoregressive", "bernoulli": binary
    # Or "autoregressive"; "truncated": states, no encoder; that of a quantising method, by its name
    start: str = "zero"  # of the decoder's outputs, or "mean": at the mean of the images
    guide: str = "independent"
    num_states: int = 64  # per image, of the truncated guide
    num_particles: int = 8
    target_ess: float | None = None  # of DAPS, as part of K; None: its default
    beta_from: float = 0.5
    beta_to: float = 0.05
    learning_rate: float = 1e-3
    decay: float = 1.0  # of the learning rate, over the training
    schedule: str = "exponential"  # or "linear", "cosine": how it falls
    warmup_steps: int = 0  # in which it grows from 0
    weight_decay: float = 0.0
    clip_norm: float | None = None  # of the whole gradient
    clip_units: float | None = None  # of that of a unit, in units of the norm of its weights
    accumulate: int = 1  # steps whose gradients make one update
    average: float | None = None  # decay of moving averages of the weights, which are tested
    batch_size: int = 128
    num_steps: int = 5000
    second_stage_steps: int = 0  # of an autoregressive prior for the codes, after that

    def optimiser(self) -> dict[str, Any]:
        """What the optimiser is asked for beside Adam at a rate that falls."""
        names = ("schedule", "warmup_steps", "weight_decay", "clip_norm", "clip_units")
        found = {name: getattr(self, name) for name in (*names, "accumulate", "average")}
        return {k: value for k, value in found.items() if value != self._field_defaults[k]}

    @property
    def amortized(self) -> bool:
        """Whether the guide reads the image; a truncated one keeps states of each instead."""
        return self.guide != "truncated"

    def has_second_stage(self, method: str) -> bool:
        """Whether a prior can be fitted to the codes that a method's guide finds."""
        return method != "truncated" and self.prior not in ("bernoulli", "autoregressive")

    def on_grid(self, shape: tuple[int, ...]) -> "Config":
        """For images to be quantised: a latent for each 4 x 4 pixels, if their sides divide."""
        height, width = shape[:2]
        if min(height, width) < 16 or height % 4 or width % 4:
            return self
        grid = (height // 4, width // 4)
        sizes = {"num_latents": grid[0] * grid[1], "num_codes": 256, "embed_dim": 16}
        return self._replace(grid=grid, batch_size=64, **sizes)

    def trained_by(self, method: str) -> "Config":
        """The config with the guide that a method needs."""
        return self._replace(guide="truncated") if method == "truncated" else self


CONFIGS = {
    "digits": Config(likelihood="bernoulli"),
    # Small enough to enumerate: 6 ** 3 states.
    "compare": Config(
        num_latents=3,
        num_codes=6,
        num_states=32,
        encoder_hidden=(128,),
        decoder_hidden=(128,),
        likelihood="gaussian",
        start="mean",
        beta_from=1.0,
        beta_to=1.0,
        learning_rate=5e-3,
        decay=0.2,
        batch_size=64,
        num_steps=800,
    ),
    # Published: Drolet et al., ICLR 2026, table of settings; images binarized at 127.
    "mnist": Config(
        num_latents=8,
        num_codes=256,
        embed_dim=64,
        encoder_hidden=(256,),
        encoder_scale=0.1,
        decoder_hidden=(64, 256),
        likelihood="bernoulli",
        guide="autoregressive",
        beta_from=0.5,
        beta_to=0.01,
        learning_rate=3e-4,
        batch_size=256,
        num_steps=250_000,
    ),
    # Published, as above. Encoders and decoders have its numbers of parameters, 1.06M + .26M and
    # 1.21M + .33M; their norms are of groups of channels, not of the batch.
    "cifar10": Config(
        num_latents=64,
        num_codes=512,
        embed_dim=128,
        decoder="conv",
        num_patches=64,
        num_layers=2,
        likelihood="gaussian_heads",
        variance_bounds=(1e-4, 1e2),
        standardize=True,
        guide="autoregressive",
        target_ess=0.33,
        beta_from=6.0,
        beta_to=0.01,
        learning_rate=3e-4,
        weight_decay=1e-4,
        clip_units=1.0,
        batch_size=256,
        num_steps=250_000,
    ),
    "imagenet256": Config(
        num_latents=1024,
        num_codes=1024,
        embed_dim=128,
        decoder="conv",
        num_patches=1024,
        num_layers=2,
        likelihood="gaussian_heads",
        variance_bounds=(0.01, 1.0),
        standardize=True,
        guide="autoregressive",
        target_ess=0.25,
        beta_from=50.0,
        beta_to=1.0,
        learning_rate=3e-4,
        weight_decay=1e-4,
        clip_units=1.0,
        batch_size=64,
        num_steps=300_000,
    ),
    # Published, as above, for motion capture (LaFAN1): windows of 32 frames, each channel
    # standardised, a variance of 1/4 that is not learnt, transformers on both sides.
    "motion": Config(
        num_latents=64,
        num_codes=1024,
        embed_dim=128,
        decoder="sequence",
        frames=32,
        num_patches=64,
        num_layers=2,
        encoder_layers=6,
        likelihood="gaussian",
        variance=0.25,
        learn_variance=False,
        guide="autoregressive",
        target_ess=0.33,
        beta_from=3.0,
        beta_to=0.01,
        learning_rate=3e-4,
        weight_decay=1e-4,
        clip_units=1.0,
        batch_size=256,
        num_steps=250_000,
    ),
    # Published: van den Oord et al., NeurIPS 2017, for CIFAR-10, 4.67 bits per dimension: 8 x 8 x
    # 10 codes of 512, convolutions of 256 channels without norms, a prior that is learnt after
    # them. The width of a vector is not given there; their prior is a PixelCNN.
    "vqvae_cifar10": Config(
        num_latents=640,
        num_codes=512,
        embed_dim=64,
        decoder="conv",
        conv_width=256,
        conv_groups=None,
        per_place=10,
        likelihood="logistic",
        beta_from=1.0,
        beta_to=1.0,
        learning_rate=2e-4,
        batch_size=128,
        num_steps=250_000,
        second_stage_steps=100_000,
    ),
    # The field's comparison of estimators for binary latents (Dong et al., NeurIPS 2020, with
    # leaky ReLU and 1M steps at rate 1e-4): 200 latents, one layer, images binarized dynamically.
    "mnist200": Config(
        num_latents=200,
        encoder_hidden=(200, 200),
        decoder_hidden=(200, 200),
        likelihood="bernoulli",
        binarize="dynamic",
        prior="bernoulli",
        num_particles=4,
        beta_from=1.0,
        beta_to=1.0,
        learning_rate=1e-3,
        decay=0.1,
        batch_size=100,
        num_steps=20_000,
    ),
}
