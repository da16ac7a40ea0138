"""`pyro_dvae` as a backend of the examples."""

from collections.abc import Callable, Iterator
from typing import Any

import backends
import numpy as np
from backends import Programs
from cli import CommandError
from configs import Config
from metrics import Draws

__all__ = ["Backend"]


class Backend(backends.Backend):
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

    def array(self, values: np.ndarray) -> Any:
        """As a tensor, not yet on the device."""
        import torch

        return torch.as_tensor(values)

    def make_vae(self, config: Config, images: np.ndarray) -> tuple[Any, Any]:
        """As for both, on the device."""
        model, guide = super().make_vae(config, images)
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
        size = max(1, backends.BATCH_VALUES // (num_particles * images[0].size))
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
