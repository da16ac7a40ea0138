"""The two packages behind one interface: all that an example says differently in each.

A backend reaches its package by name, so that an example breaks when the siblings drift.
"""

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
from cli import CommandError
from configs import Config
from metrics import Draws

__all__ = ["METHODS", "RELAXATIONS", "Backend", "get_backend"]

# Method -> module of `infer` and class; a method is a loss, and the model need not know it.
METHODS = {
    "daps": ("daps", "DAPS_ELBO"),
    "reinforce": ("reinforce", "Reinforce_ELBO"),
    "vimco": ("vimco", "VIMCO_ELBO"),
    "disarm": ("disarm", "DisARM_ELBO"),
    "wake_sleep": ("wake_sleep", "WakeSleep_ELBO"),
    "exact": ("exact", "Exact_ELBO"),
}
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
_BATCH_VALUES = 2**23  # values of x times particles that are scored at once


def get_backend(name: str, device: str = "auto") -> "Backend":
    """Return a backend by name, with its device chosen."""
    try:
        importlib.import_module(f"{name}_dvae.infer")
    except ImportError as error:
        raise CommandError(
            f"--backend {name}: {error}; install it by pip install 'pyro-dvae[{name}]'"
        ) from None
    return PyroBackend(device) if name == "pyro" else NumpyroBackend(device)


class Backend:
    """What both packages do alike."""

    name: str
    device: Any

    def module(self, path: str) -> ModuleType:
        """Return a module of the package."""
        return importlib.import_module(f"{self.name}_dvae.{path}")

    def make_loss(self, method: str, **options: Any) -> Any:
        """Make the loss of a method; options that are None keep their default."""
        module, name = METHODS[method]
        loss = getattr(self.module(f"infer.{module}"), name)
        return loss(**{key: value for key, value in options.items() if value is not None})

    def programs(self, method: str, model: Any, guide: Any, num_steps: int) -> tuple[Any, Any]:
        """Model and guide as a method trains them: relaxed, or as they are."""
        if method not in RELAXATIONS:
            return model, guide
        relax, end = self.module("infer").relax, RELAXATIONS[method]
        temperature = 1.0 if end == 1.0 else self.schedule(1.0, end, num_steps)
        soft = relax(guide, method, sites=["z"], temperature=temperature)
        return relax(model, method, sites=["z"]), soft

    def schedule(self, start: float, end: float, num_steps: int) -> Callable[[Any], Any]:
        """Exponential schedule."""
        return self.module("fit").exponential_schedule(start, end, num_steps)

    def make_vae(self, config: Config, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """Make the model and the guide that a config describes, for images of a shape."""
        models, guides, nets = (self.module(name) for name in ("models", "guides", "nets"))
        binary, size = config.prior == "bernoulli", config.num_latents
        num_codes = None if binary else config.num_codes
        prior = models.BernoulliPrior(size, learn=True) if binary else None
        if config.likelihood == "bernoulli":
            likelihood = models.BernoulliLikelihood()
        else:
            likelihood = models.GaussianLikelihood(variance=0.1)
        decoder = nets.MLPDecoder(
            size, num_codes, shape, embed_dim=config.embed_dim, hidden=config.decoder_hidden
        )
        prior = prior or models.UniformPrior(size, config.num_codes)
        model = models.DiscreteVAE(decoder, prior, likelihood)
        if config.guide == "autoregressive":
            patches = nets.PatchEncoder(shape, config.num_patches, embed_dim=config.embed_dim)
            transformer = nets.CausalTransformer(size, config.num_codes, embed_dim=config.embed_dim)
            guide = guides.AutoregressiveGuide(patches, transformer)
        else:
            encoder = nets.MLPEncoder(shape, size, num_codes, hidden=config.encoder_hidden)
            guide = guides.IndependentGuide(encoder, binary=binary)
        return model, guide


class PyroBackend(Backend):
    """`pyro_dvae`, with Torch on the chosen device."""

    name = "pyro"

    def __init__(self, device: str) -> None:
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise CommandError("--device cuda: no CUDA device was found; use --device cpu")
        self.device = torch.device(device)

    def seed(self, seed: int) -> None:
        """Forget parameters and seed all that is random."""
        import pyro

        pyro.clear_param_store()
        pyro.set_rng_seed(seed)

    def make_vae(self, config: Config, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """As for both, on the device."""
        model, guide = super().make_vae(config, shape)
        return model.to(self.device), guide.to(self.device)

    def train(
        self,
        model: Any,
        guide: Any,
        loss: Any,
        *data: np.ndarray,
        learning_rate: float,
        num_steps: int,
        decay: float = 1.0,
        eval_data: np.ndarray | None = None,
        **settings: Any,
    ) -> Any:
        """Train by Adam, its rate falling to `decay` of itself; `settings` are those of `fit`."""
        import pyro
        import torch

        optim = pyro.optim.LambdaLR(
            {
                "optimizer": torch.optim.Adam,
                "optim_args": {"lr": learning_rate},
                "lr_lambda": self.schedule(1.0, decay, num_steps),
            }
        )
        svi = pyro.infer.SVI(model, guide, optim, loss=loss)
        tensors = [torch.as_tensor(value, device=self.device) for value in data]
        if eval_data is not None:
            settings["eval_data"] = torch.as_tensor(eval_data, device=self.device)
        # Pyro's validation waits for the device at every site; `fit` looks for NaN itself.
        with pyro.validation_enabled(False):
            return self.module("fit").fit(svi, *tensors, num_steps=num_steps, **settings)

    def draws(
        self,
        model: Any,
        guide: Any,
        images: np.ndarray,
        num_particles: int,
    ) -> Iterator[Draws]:
        """Draw codes for test images and score them, in batches of bounded memory."""
        import torch
        from pyro import poutine

        model.eval(), guide.eval()
        size = max(1, _BATCH_VALUES // (num_particles * images[0].size))
        for start in range(0, len(images), size):
            x = torch.as_tensor(images[start : start + size], device=self.device)
            with torch.no_grad():
                posterior = guide.posterior(x)
                z = posterior.sample((num_particles,))
                log_q = posterior.log_prob(z)
                trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
                trace.compute_log_prob()
                errors = (model.reconstruct(z[0]) - x).square().flatten(1).mean(1)
            likelihood, prior = (trace.nodes[site]["log_prob"] for site in ("x", "z"))
            found = (likelihood, prior, log_q, z[0], errors)
            yield Draws(*(value.cpu().numpy() for value in found))

    def reconstruct(self, model: Any, guide: Any, images: np.ndarray) -> np.ndarray:
        """The mean of p(x | z) at one z ~ q for each image."""
        import torch

        with torch.no_grad():
            z = guide.posterior(torch.as_tensor(images, device=self.device)).sample()
            return model.reconstruct(z).cpu().numpy()

    def sample(self, model: Any, num_images: int) -> np.ndarray:
        """The mean of p(x | z) at z ~ p."""
        import torch

        with torch.no_grad():
            return model.reconstruct(model.prior().sample((num_images,))).cpu().numpy()


class NumpyroBackend(Backend):
    """`numpyro_dvae`, with JAX on the chosen device; keeps the parameters of the last training."""

    name = "numpyro"

    def __init__(self, device: str) -> None:
        import jax

        kind = {"auto": None, "cpu": "cpu", "cuda": "cuda"}[device]
        try:
            self.device = jax.devices(kind)[0]
        except RuntimeError:
            raise CommandError(f"--device {device}: JAX finds none; use --device cpu") from None
        self._key, self._params = jax.random.key(0), None

    def seed(self, seed: int) -> None:
        """Forget parameters and seed all that is random."""
        import jax

        self._key, self._params = jax.random.key(seed), None

    def _next_key(self) -> Any:
        import jax

        self._key, key = jax.random.split(self._key)
        return key

    def train(
        self,
        model: Any,
        guide: Any,
        loss: Any,
        *data: np.ndarray,
        learning_rate: float,
        num_steps: int,
        decay: float = 1.0,
        **settings: Any,
    ) -> Any:
        """Train by Adam, its rate falling to `decay` of itself; `settings` are those of `fit`."""
        import jax
        import numpyro

        rate = self.schedule(learning_rate, decay * learning_rate, num_steps)
        svi = self.module("infer").SVI(model, guide, numpyro.optim.Adam(rate), loss=loss)
        with jax.default_device(self.device):
            result = self.module("fit").fit(
                self._next_key(), svi, *data, num_steps=num_steps, **settings
            )
        self._params = result.params
        return result

    def draws(
        self, model: Any, guide: Any, images: np.ndarray, num_particles: int
    ) -> Iterator[Draws]:
        """Draw codes for test images and score them, in batches of bounded memory."""
        import jax

        @jax.jit
        def score(params: dict, rng_key: Any, x: Any) -> tuple:
            def particle(key: Any) -> tuple:
                guide_sites, sites = _run_pair(model, guide, params, key, x)
                errors = ((sites["x"]["fn"].mean - x) ** 2).reshape(len(x), -1).mean(1)
                scored = (sites["x"], sites["z"], guide_sites["z"])
                log_probs = (site["fn"].log_prob(site["value"]) for site in scored)
                return (*log_probs, sites["z"]["value"], errors)

            found = jax.vmap(particle)(jax.random.split(rng_key, num_particles))
            return (*found[:3], found[3][0], found[4][0])

        size = max(1, _BATCH_VALUES // (num_particles * images[0].size))
        for start in range(0, len(images), size):
            found = score(self._params, self._next_key(), images[start : start + size])
            yield Draws(*(np.asarray(value) for value in found))

    def reconstruct(self, model: Any, guide: Any, images: np.ndarray) -> np.ndarray:
        """The mean of p(x | z) at one z ~ q for each image."""
        import jax

        @jax.jit
        def means(params: dict, rng_key: Any, x: Any) -> Any:
            return _run_pair(model, guide, params, rng_key, x)[1]["x"]["fn"].mean

        return np.asarray(means(self._params, self._next_key(), images))

    def sample(self, model: Any, num_images: int) -> np.ndarray:
        """The mean of p(x | z) at z ~ p."""
        import jax
        from numpyro.handlers import seed, substitute, trace

        @jax.jit
        def means(params: dict, rng_key: Any) -> Any:
            program = seed(substitute(model, data=params), rng_key)
            return trace(program).get_trace(num_data=num_images)["x"]["fn"].mean

        return np.asarray(means(self._params, self._next_key()))


def _run_pair(model: Any, guide: Any, params: Any, rng_key: Any, x: Any) -> tuple[dict, dict]:
    """Sites of a NumPyro guide, and of the model at its draws."""
    from numpyro.handlers import replay, seed, substitute, trace

    guide_sites = trace(seed(substitute(guide, data=params), rng_key)).get_trace(x)
    replayed = replay(substitute(model, data=params), trace=guide_sites)
    return guide_sites, trace(seed(replayed, rng_key)).get_trace(x)
