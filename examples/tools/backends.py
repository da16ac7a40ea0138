"""The two packages behind one interface: all that an example says differently in each.

A backend reaches its package by name, so that an example breaks when the siblings drift.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from cli import CommandError
from configs import Config
from networks import costs_of, make_decoder, make_encoder, make_patches

__all__ = [
    "METHODS",
    "QUANTIZERS",
    "RELAXATIONS",
    "WIDTHS",
    "Backend",
    "Programs",
    "get_backend",
    "rows_of",
]

# Method -> class of `infer`; a method is a loss, and the model need not know it.
METHODS = {
    "daps": "DAPS_ELBO",
    "reinforce": "Reinforce_ELBO",
    "vimco": "VIMCO_ELBO",
    "disarm": "DisARM_ELBO",
    "wake_sleep": "WakeSleep_ELBO",
    "exact": "Exact_ELBO",
    "truncated": "Truncated_ELBO",
}
Programs = tuple[Any, Any, Any]  # model, guide, loss
# Method of `relax` -> temperature at the end, from 1 at the start. The loss is a plain ELBO: no
# site is left that needs a score function.
RELAXATIONS = {
    "gumbel": 0.1,
    "straight_through_gumbel": 0.1,
    "gr_mck": 0.1,
    "straight_through": 1.0,
    "reinmax": 1.0,
}
METHODS |= dict.fromkeys(RELAXATIONS, METHODS["reinforce"])
# Methods that bring a guide of their own, `Config.guide`: codes are the nearest of a table's
# vectors, moved by averages or by gradient, or finite scalars.
QUANTIZERS = ("vq", "vq_gradient", "fsq")
METHODS |= dict.fromkeys(QUANTIZERS, "VQ_ELBO")
WIDTHS = 32, 64  # channels of the convolutions around a grid of codes
_DECAY = 0.99  # of a codebook's moving averages
_MOST_LEVELS = 8  # of a finite scalar
_BATCH_VALUES = 2**23  # values of x that go through the programs at once
_METRICS = {  # name in metrics.json -> field of `Evaluation`
    "elbo": "elbo",
    "beta_elbo": "beta_elbo",
    "iwae": "importance_weighted_bound",
    "iwae_particles": "num_particles",
    "rate_bits": "rate",
    "mse": "mse",
    "psnr": "psnr",
    "ess": "ess",
    "code_usage": "usage",
    "table_usage": "table_usage",
    "table_perplexity": "table_perplexity",
    "beta": "beta",
}


def get_backend(name: str, device: str = "auto") -> "Backend":
    """Return a backend by name, with its device chosen."""
    try:
        importlib.import_module(f"{name}_dvae.infer")
    except ImportError as error:
        raise CommandError(
            f"--backend {name}: {error}; install it by pip install 'pyro-dvae[{name}]'"
        ) from None
    kind: type[Backend] = importlib.import_module(f"backend_{name}").Backend
    return kind(device)


def rows_of(data: Sequence[Any], rows: slice) -> list[Any]:
    """Some rows of arrays; numbers as they are."""
    return [value[rows] if isinstance(value, np.ndarray) else value for value in data]


def batch_size_of(images: np.ndarray) -> int:
    """Images that go through the programs at once."""
    return max(1, _BATCH_VALUES // images[0].size)


class Backend(ABC):
    """What both packages do alike."""

    name: str
    device: Any
    channels_first: bool  # whether convolutions have the width before the grid
    is_first: bool = True  # of the processes that train together
    _params: Any = None  # of the last training, where the programs do not hold them

    def module(self, path: str) -> ModuleType:
        """Return a module of the package."""
        return importlib.import_module(f"{self.name}_dvae.{path}")

    def first_of_all(self, do: Callable[[], Any]) -> Any:
        """What `do` returns; the first of several processes does it before the others."""
        return do()

    def goes_on_alone(self) -> bool:
        """Whether this process does what is left to do after a training: the first one does."""
        return True

    def make_loss(self, method: str, **options: Any) -> Any:
        """Make the loss of a method; options that are None keep their default."""
        loss = getattr(self.module("infer"), METHODS[method])
        return loss(**{key: value for key, value in options.items() if value is not None})

    def programs(self, method: str, model: Any, guide: Any, num_steps: int) -> tuple[Any, Any]:
        """Model and guide as a method trains them: relaxed, or as they are."""
        if method not in RELAXATIONS:
            return model, guide
        relax, end = self.module("infer").relax, RELAXATIONS[method]
        temperature = 1.0 if end == 1.0 else self.schedule(1.0, end, num_steps)
        soft = relax(guide, method, sites=["z"], temperature=temperature)
        return relax(model, method, sites=["z"]), soft

    def plain_elbo(self) -> Any:
        """The framework's own loss, for a model without discrete latents."""
        return importlib.import_module(f"{self.name}.infer").Trace_ELBO()

    def checkpoint(self) -> str:
        """Name of what `fit` keeps in its folder: a file, or a folder of Orbax's."""
        return {"pyro": "checkpoint.pt", "numpyro": "checkpoint"}[self.name]

    def has_checkpoint(self, folder: Path) -> bool:
        """Whether there is one, not the beginnings of one alone."""
        path = folder / self.checkpoint()
        return path.is_file() or any(step.name.isdigit() for step in path.glob("*"))

    def diagnose(self, name: str, result: Any, *data: Any, **options: Any) -> Any:
        """Call one of the diagnostics."""
        return getattr(self.module("diagnostics"), name)(result, *data, **options)

    def evaluate(
        self, model: Any, guide: Any, images: np.ndarray, **options: Any
    ) -> dict[str, float]:
        """Means per image, in nats; `options` are those of the package's `evaluate`.

        `elbo` and `beta_elbo` average over the draws, `iwae` is the importance-weighted bound of
        all K, `ess` the effective sample size of these weights as a fraction of K, `psnr` the mean
        over images of each one's, of one draw, `code_usage` the fraction of codes that occur, in
        the mean over latents, and `table_usage` that of the table that all latents share.
        """
        guide = self.guide_for(guide, images)
        found = self.diagnose(
            "evaluate",
            (model, guide),
            *self.inputs(guide, images),
            params=self._params,
            batch_size=batch_size_of(images),
            **options,
        )
        return {name: getattr(found, field) for name, field in _METRICS.items()}

    def codes(self, guide: Any, images: np.ndarray) -> np.ndarray:
        """One z ~ q for each image, ``(N, L)``."""
        guide = self.guide_for(guide, images)
        data, size = self.inputs(guide, images), batch_size_of(images)
        starts = range(0, len(images), size)
        rows = (rows_of(data, slice(start, start + size)) for start in starts)
        return np.concatenate([self._draw(guide, *some) for some in rows])

    def reconstruct(self, model: Any, guide: Any, images: np.ndarray) -> np.ndarray:
        """The mean of p(x | z) at one z ~ q for each image."""
        return self.decode(model, self.codes(guide, images))

    def make_optimiser(
        self,
        learning_rate: float,
        decay: float,
        num_steps: int,
        *,
        schedule: str = "exponential",
        warmup_steps: int = 0,
        **settings: Any,
    ) -> Any:
        """AdamW whose rate falls to `decay` of itself over so many steps; `settings` are its own.

        Schedules count updates, of which there are fewer where gradients are accumulated.
        """
        fit, every = self.module("fit"), settings.get("accumulate", 1)
        num_updates = max(1, num_steps // every)
        make = getattr(fit, f"{schedule}_schedule")
        rate = make(learning_rate, decay * learning_rate, num_updates)
        if warmup_steps:
            rate = fit.warmup_schedule(rate, max(1, warmup_steps // every))
        return fit.adamw(rate, **settings)

    @abstractmethod
    def guide_for(self, guide: Any, images: np.ndarray) -> Any:
        """The guide of other images: of a truncated one, with states of theirs."""

    @abstractmethod
    def decode(self, model: Any, codes: np.ndarray) -> np.ndarray:
        """The mean of p(x | z) at given codes."""

    @abstractmethod
    def _draw(self, guide: Any, *data: Any) -> np.ndarray:
        """What the guide draws of "z", called with such data."""

    def schedule(self, start: float, end: float, num_steps: int) -> Callable[[Any], Any]:
        """Exponential schedule."""
        return self.module("fit").exponential_schedule(start, end, num_steps)

    def ahead(self, images: np.ndarray) -> Any:
        """A batch on its way to the device, from the thread that has read it."""
        return images

    @abstractmethod
    def transform(self, *, flip: bool, crop: int | None, binarize: bool) -> Any:
        """A `transform` of `fit`, in this order; None if nothing is to be done.

        Images are turned left to right with probability one half; moved by up to `crop` pixels
        each way, what they leave filled with their edges; and their pixels drawn, with gray values
        for probabilities.
        """

    def array(self, values: np.ndarray) -> Any:
        """As the package takes it."""
        return values

    def inputs(self, guide: Any, images: np.ndarray) -> tuple[Any, ...]:
        """What model and guide are called with; a truncated guide asks for the rows of the data."""
        if not hasattr(guide, "for_data"):
            return (images,)
        return images, np.arange(len(images)), len(images)

    def make_vae(self, config: Config, images: np.ndarray) -> tuple[Any, Any]:
        """Make the model and the guide that a config describes, for such images."""
        models, guides, nets = (self.module(name) for name in ("models", "guides", "nets"))
        shape = images.shape[1:]
        binary, size = config.prior == "bernoulli", config.num_latents
        num_codes = None if binary else config.num_codes
        likelihood, prior = self.make_likelihood(config), self.make_prior(config)
        start = None
        if config.start == "mean":
            start = likelihood.link(self.array(images.mean(0)))
        if config.guide in QUANTIZERS:
            decoder, guide = self._make_quantized(config, shape, start)
            return models.DiscreteVAE(decoder, prior, likelihood), guide
        decoder = make_decoder(nets, config, shape, num_codes, start)
        model = models.DiscreteVAE(decoder, prior, likelihood)
        if config.guide == "truncated":
            guide = self.module("infer").TruncatedGuide(model, config.num_states)
        elif config.guide == "autoregressive":
            sizes = {"embed_dim": config.embed_dim, "num_layers": config.num_layers}
            sizes |= costs_of(nets, config)
            transformer = nets.CausalTransformer(size, config.num_codes, **sizes)
            patches = self._sees(make_patches(nets, config, shape), config)
            guide = guides.AutoregressiveGuide(patches, transformer)
        else:
            encoder = self._sees(make_encoder(nets, config, shape, num_codes), config)
            guide = guides.IndependentGuide(encoder, binary=binary)
        return model, guide

    def make_likelihood(self, config: Config) -> Any:
        """Make p(x | z) of a decoder's outputs."""
        models = self.module("models")
        if config.likelihood == "bernoulli":
            return models.BernoulliLikelihood()
        if config.likelihood == "gaussian_heads":
            return models.GaussianHeads(bounds=config.variance_bounds)
        if config.likelihood == "logistic":
            return models.LogisticHeads()
        # A learnt variance lags behind, and vectors are held to their codes in its units.
        learn = "closed_form" if config.guide in QUANTIZERS else True
        learn, bounds = learn if config.learn_variance else False, config.variance_bounds
        return models.GaussianLikelihood(variance=config.variance, bounds=bounds, learn=learn)

    def make_prior(self, config: Config) -> Any:
        """Make p(z)."""
        models, nets = self.module("models"), self.module("nets")
        size, num_codes = config.num_latents, config.num_codes
        if config.prior == "bernoulli":
            return models.BernoulliPrior(size, learn=True)
        if config.prior == "categorical":
            return models.CategoricalPrior(size, num_codes)
        if config.prior == "autoregressive":
            options = {"embed_dim": config.embed_dim, **costs_of(nets, config)}
            return models.AutoregressivePrior(
                nets.CausalTransformer(size, num_codes, cross_attention=False, **options)
            )
        return models.UniformPrior(size, num_codes)

    def _make_quantized(
        self, config: Config, shape: tuple[int, ...], start: Any
    ) -> tuple[Any, Any]:
        """A decoder, with outputs that begin at `start`, and a guide that share one codebook."""
        nets = self.module("nets")
        if config.guide == "fsq":
            codebook = nets.FiniteScalars(levels_of(config.num_codes))
        else:
            decay = _DECAY if config.guide == "vq" else None
            codebook = nets.Codebook(config.num_codes, config.embed_dim, decay=decay)
        width = codebook.embed_dim
        layout: dict[str, Any] = {}
        if config.grid is not None:
            encoder, network = self.make_convolutions(shape, width, start)
            layout = {"grid": config.grid, "channels_first": self.channels_first}
        else:
            encoder = make_encoder(nets, config._replace(encoder_scale=1.0), shape, width)
            network = make_decoder(nets, config, shape, None, start, width)
        encoder = self._sees(encoder, config)
        guide = self.module("guides").VectorQuantizedGuide(encoder, codebook, **layout)
        return nets.CodebookDecoder(codebook, network, **layout), guide

    def _sees(self, encoder: Any, config: Config) -> Any:
        """An encoder that gets numbers of order one, where data are bytes."""
        return self.centred(encoder) if config.likelihood == "logistic" else encoder

    @abstractmethod
    def centred(self, encoder: Any) -> Any:
        """An encoder of bytes, which it gets in [-1, 1]."""

    @abstractmethod
    def make_convolutions(self, shape: tuple[int, ...], width: int, start: Any) -> tuple[Any, Any]:
        """An encoder of images ``(H, W)`` or ``(H, W, C)`` to a grid of vectors, and a decoder.

        The grid has a place for each 4 x 4 pixels; the outputs begin at `start`.
        """


def levels_of(num_codes: int) -> tuple[int, ...]:
    """Levels of finite scalars that make so many codes: its divisors up to 8, large ones first."""
    levels: list[int] = []
    for level in range(_MOST_LEVELS, 1, -1):
        while num_codes % level == 0:
            levels.append(level)
            num_codes //= level
    return tuple(levels + [num_codes] * (num_codes > 1))
