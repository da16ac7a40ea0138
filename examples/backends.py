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

    def checkpoint(self) -> str:
        """Name of the file that `fit` keeps in its folder."""
        return {"pyro": "checkpoint.pt", "numpyro": "checkpoint.npz"}[self.name]

    def diagnose(self, name: str, result: Any, *data: Any, **options: Any) -> Any:
        """Call one of the diagnostics."""
        return getattr(self.module("diagnostics"), name)(result, *data, **options)

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

    def seed_draws(self, seed: int) -> None:
        """Seed what is drawn, and keep the parameters."""
        import pyro

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
        **settings: Any,
    ) -> Any:
        """Train by Adam, its rate falling to `decay` of itself; `settings` are those of `fit`."""
        import pyro

        svi = self._make_svi((model, guide, loss), learning_rate, decay, num_steps)
        # Pyro's validation waits for the device at every site; `fit` looks for NaN itself.
        with pyro.validation_enabled(False):
            settings = self._on_device(settings)
            return self.module("fit").fit(
                svi, *self._tensors(data), num_steps=num_steps, **settings
            )

    def train_best(
        self,
        make: Callable[[], Programs],
        *data: Any,
        learning_rate: float,
        num_steps: int,
        decay: float = 1.0,
        **settings: Any,
    ) -> Any:
        """Train from several starts in turn; `settings` are those of `fit_restarts`."""
        import pyro

        with pyro.validation_enabled(False):
            return self.module("fit").fit_restarts(
                lambda: self._make_svi(make(), learning_rate, decay, num_steps),
                *self._tensors(data),
                num_steps=num_steps,
                **self._on_device(settings),
            )

    def _make_svi(
        self, programs: Programs, learning_rate: float, decay: float, num_steps: int
    ) -> Any:
        import pyro
        import torch

        model, guide, loss = programs
        optim = pyro.optim.LambdaLR(
            {
                "optimizer": torch.optim.Adam,
                "optim_args": {"lr": learning_rate},
                "lr_lambda": self.schedule(1.0, decay, num_steps),
            }
        )
        return pyro.infer.SVI(model, guide, optim, loss=loss)

    def _tensors(self, data: tuple[Any, ...]) -> list[Any]:
        """Arrays as tensors on the device; numbers and None as they are."""
        import torch

        arrays = (isinstance(value, np.ndarray) for value in data)
        return [
            torch.as_tensor(value, device=self.device) if is_array else value
            for value, is_array in zip(data, arrays, strict=True)
        ]

    def _on_device(self, settings: dict[str, Any]) -> dict[str, Any]:
        if settings.get("eval_data") is None:
            return settings
        return {**settings, "eval_data": self._tensors((settings["eval_data"],))[0]}

    def posterior(self, guide: Any, *data: Any) -> tuple[np.ndarray, np.ndarray]:
        """States "z" of a truncated guide ``(S, B, H)`` and their probabilities ``(S, B)``."""
        found = guide.posterior(*self._tensors(data))
        return found.values["z"].cpu().numpy(), found.weights.cpu().numpy()

    def conditional(self, model: Any, codes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of p(x | z) at given codes ``(N, H)``: the mean and variance; of p(z): the mean."""
        import torch
        from pyro import poutine

        (z,) = self._tensors((codes,))
        with torch.no_grad():
            program = poutine.condition(model, {"z": z})
            sites = poutine.trace(program).get_trace(num_data=len(codes)).nodes
            found = (sites["x"]["fn"].mean, sites["x"]["fn"].variance, sites["z"]["fn"].mean)
        return tuple(value.cpu().numpy() for value in found)

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

    def decode(self, model: Any, codes: np.ndarray) -> np.ndarray:
        """The mean of p(x | z) at given codes."""
        import torch

        with torch.no_grad():
            return model.reconstruct(torch.as_tensor(codes, device=self.device)).cpu().numpy()


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

    def seed_draws(self, seed: int) -> None:
        """Seed what is drawn, and keep the parameters."""
        import jax

        self._key = jax.random.key(seed)

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

        svi = self._make_svi((model, guide, loss), learning_rate, decay, num_steps)
        with jax.default_device(self.device):
            result = self.module("fit").fit(
                self._next_key(), svi, *data, num_steps=num_steps, **settings
            )
        self._params = result.params
        return result

    def train_best(
        self,
        make: Callable[[], Programs],
        *data: Any,
        learning_rate: float,
        num_steps: int,
        decay: float = 1.0,
        **settings: Any,
    ) -> Any:
        """Train from several starts side by side; `settings` are those of `fit_restarts`."""
        import jax

        with jax.default_device(self.device):
            result = self.module("fit").fit_restarts(
                self._next_key(),
                lambda: self._make_svi(make(), learning_rate, decay, num_steps),
                *data,
                num_steps=num_steps,
                **settings,
            )
        self._params = result.params
        return result

    def _make_svi(
        self, programs: Programs, learning_rate: float, decay: float, num_steps: int
    ) -> Any:
        import numpyro

        rate = self.schedule(learning_rate, decay * learning_rate, num_steps)
        model, guide, loss = programs
        return self.module("infer").SVI(model, guide, numpyro.optim.Adam(rate), loss=loss)

    def posterior(self, guide: Any, *data: Any) -> tuple[np.ndarray, np.ndarray]:
        """States "z" of a truncated guide ``(S, B, H)`` and their probabilities ``(S, B)``."""
        from numpyro.handlers import substitute

        found = substitute(guide.posterior, data=self._params)(*data)
        return np.asarray(found.values["z"]), np.asarray(found.weights)

    def conditional(self, model: Any, codes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of p(x | z) at given codes ``(N, H)``: the mean and variance; of p(z): the mean."""
        from numpyro.handlers import condition, seed, substitute, trace

        program = condition(substitute(model, data=self._params), {"z": codes})
        sites = trace(seed(program, self._next_key())).get_trace(num_data=len(codes))
        found = (sites["x"]["fn"].mean, sites["x"]["fn"].variance, sites["z"]["fn"].mean)
        return tuple(np.asarray(value) for value in found)

    def diagnose(self, name: str, result: Any, *data: Any, **options: Any) -> Any:
        """Call one of the diagnostics."""
        function = getattr(self.module("diagnostics"), name)
        return function(self._next_key(), result, *data, **options)

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
        _, sites = _run_pair(model, guide, self._params, self._next_key(), images)
        return np.asarray(sites["x"]["fn"].mean)

    def sample(self, model: Any, num_images: int) -> np.ndarray:
        """The mean of p(x | z) at z ~ p."""
        from numpyro.handlers import seed, substitute, trace

        program = seed(substitute(model, data=self._params), self._next_key())
        return np.asarray(trace(program).get_trace(num_data=num_images)["x"]["fn"].mean)

    def decode(self, model: Any, codes: np.ndarray) -> np.ndarray:
        """The mean of p(x | z) at given codes."""
        from numpyro.handlers import substitute

        return np.asarray(substitute(model.reconstruct, data=self._params)(codes))


def _run_pair(model: Any, guide: Any, params: Any, rng_key: Any, x: Any) -> tuple[dict, dict]:
    """Sites of a NumPyro guide, and of the model at its draws."""
    from numpyro.handlers import replay, seed, substitute, trace

    guide_sites = trace(seed(substitute(guide, data=params), rng_key)).get_trace(x)
    replayed = replay(substitute(model, data=params), trace=guide_sites)
    return guide_sites, trace(seed(replayed, rng_key)).get_trace(x)
