"""`pyro_dvae` as a backend of the examples."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import backends
import numpy as np
from backends import WIDTHS, Programs
from cli import CommandError
from configs import Config

__all__ = ["Backend"]


class Backend(backends.Backend):
    """`pyro_dvae`, with Torch on the chosen device."""

    name = "pyro"
    channels_first = True

    def __init__(self, device: str) -> None:
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise CommandError("--device cuda: no CUDA device was found; use --device cpu")
        self.device = torch.device(device)
        if "TORCHELASTIC_RUN_ID" in os.environ:  # set by torchrun
            self._meet(int(os.environ["LOCAL_RANK"]))

    def _meet(self, local: int) -> None:
        """Join the other processes, with a device of one's own."""
        import torch
        from torch import distributed

        if self.device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise CommandError(
                    f"--device cuda: {torch.cuda.device_count()} device(s) were found; start as "
                    "many processes, torchrun --nproc-per-node=..."
                )
            self.device = torch.device("cuda", local)
            torch.cuda.set_device(self.device)
        distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.is_first = distributed.get_rank() == 0

    def first_of_all(self, do: Callable[[], Any]) -> Any:
        """The first process may download what the others then find."""
        found = []
        self.module("ops.processes").first_says(lambda: found.append(do()))
        return found[0] if found else do()

    def goes_on_alone(self) -> bool:
        """Leave the other processes."""
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        return self.is_first

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

    def make_prior(self, config: Config) -> Any:
        """As for both, on the device."""
        return super().make_prior(config).to(self.device)

    def ahead(self, images: np.ndarray) -> Any:
        """In memory that a GPU reads from without a wait, where there is one."""
        import torch

        tensor = torch.as_tensor(images)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def transform(self, *, flip: bool, crop: int | None, binarize: bool) -> Any:
        """As for both."""
        import torch

        def change(x: Any) -> Any:
            if flip:
                turned = torch.rand(len(x), device=x.device) < 0.5
                x = torch.where(turned.reshape(-1, *[1] * (x.dim() - 1)), x.flip(2), x)
            if crop:
                x = _moved(x, torch.randint(2 * crop + 1, (2, len(x)), device=x.device) - crop)
            return self.binarized(x) if binarize else x

        if binarize and not flip and not crop:
            return self.binarized
        return change if flip or crop else None

    @staticmethod
    def binarized(x: Any) -> Any:
        """A `transform` of `fit`: pixels drawn, with gray values for probabilities."""
        import torch

        return torch.bernoulli(x)

    def train(
        self,
        model: Any,
        guide: Any,
        loss: Any,
        *data: np.ndarray,
        learning_rate: float,
        num_steps: int,
        decay: float = 1.0,
        decay_steps: int | None = None,
        optimiser: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Any:
        """Train by Adam, its rate falling to `decay` of itself; `settings` are those of `fit`.

        It falls over all steps, or over `decay_steps`. With `optimiser` by AdamW, see
        `make_optimiser`; where this keeps averages of the weights, they take their place in the
        end.
        """
        import pyro

        programs, fit, more = (model, guide, loss), self.module("fit"), optimiser or {}
        svi = self._make_svi(programs, learning_rate, decay, decay_steps or num_steps, more)
        # Pyro's validation waits for the device at every site; `fit` looks for NaN itself.
        with pyro.validation_enabled(False):
            settings = self._on_device(settings)
            result = fit.fit(svi, *self._tensors(data), num_steps=num_steps, **settings)
        return fit.averaged(svi, result) if "average" in more else result

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
        self,
        programs: Programs,
        learning_rate: float,
        decay: float,
        num_steps: int,
        optimiser: dict[str, Any] | None = None,
    ) -> Any:
        import pyro
        import torch

        model, guide, loss = programs
        if optimiser:
            optim = self.make_optimiser(learning_rate, decay, num_steps, **optimiser)
            return pyro.infer.SVI(model, guide, optim, loss=loss)
        optim = pyro.optim.LambdaLR(
            {
                "optimizer": torch.optim.Adam,
                "optim_args": {"lr": learning_rate},
                "lr_lambda": self.schedule(1.0, decay, num_steps),
            }
        )
        return pyro.infer.SVI(model, guide, optim, loss=loss)

    def _tensors(self, data: Sequence[Any]) -> list[Any]:
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

    def centred(self, encoder: Any) -> Any:
        """An encoder of bytes, which it gets in [-1, 1]."""
        from torch import nn

        class Centred(nn.Sequential):
            def forward(self, x: Any) -> Any:
                return super().forward(x / 127.5 - 1.0)

        return Centred(encoder)

    def make_convolutions(self, shape: tuple[int, ...], width: int, start: Any) -> tuple[Any, Any]:
        """Two convolutions of stride 2, a residual block about the codes, and back."""
        import torch
        from torch import nn

        small, large, colours = *WIDTHS, shape[2] if len(shape) == 3 else 1

        class Residual(nn.Sequential):
            def forward(self, x: Any) -> Any:
                return x + super().forward(x)

        def block() -> nn.Module:
            layers = nn.Conv2d(large, large, 3, padding=1), nn.ReLU(), nn.Conv2d(large, large, 1)
            return Residual(nn.ReLU(), *layers)

        class ToGrid(nn.Sequential):
            def forward(self, x: Any) -> Any:
                return super().forward(x.reshape(*x.shape[:3], colours).permute(0, 3, 1, 2))

        class FromGrid(nn.Sequential):
            def forward(self, x: Any) -> Any:
                pixels = super().forward(x).permute(0, 2, 3, 1).reshape(len(x), *shape)
                return pixels if self.start is None else pixels + self.start

        encoder = ToGrid(
            *(nn.Conv2d(colours, small, 4, 2, 1), nn.ReLU()),
            *(nn.Conv2d(small, large, 4, 2, 1), block(), nn.ReLU(), nn.Conv2d(large, width, 1)),
        )
        decoder = FromGrid(
            *(nn.Conv2d(width, large, 3, padding=1), block(), nn.ReLU()),
            *(nn.ConvTranspose2d(large, small, 4, 2, 1), nn.ReLU()),
            nn.ConvTranspose2d(small, colours, 4, 2, 1),
        )
        decoder.register_buffer("start", None if start is None else torch.as_tensor(start))
        return encoder, decoder

    def make_dictionary(self, atoms: np.ndarray) -> Any:
        """A decoder to the sum of atoms ``(H, *shape)``, one per latent, learned from these on."""
        import torch

        class Dictionary(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.atoms = torch.nn.Parameter(torch.as_tensor(atoms))
                self.offset = torch.nn.Parameter(torch.zeros(atoms.shape[1:]))

            def forward(self, z: Any) -> Any:
                return torch.tensordot(z, self.atoms, 1) + self.offset

        return Dictionary()

    def posteriors(
        self, guide: Any, data: Sequence[Any], size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A truncated guide's states "z" ``(S, B, H)`` and their weights, `size` data at a time."""
        for start in range(0, len(data[0]), size):
            rows = backends.rows_of(data, slice(start, start + size))
            found = guide.posterior(*self._tensors(rows))
            yield found.values["z"].cpu().numpy(), found.weights.cpu().numpy()

    def conditional(self, model: Any, codes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of p(x | z) at given codes ``(N, H)``: the mean and variance; of p(z): the mean."""
        import torch
        from pyro import poutine

        (z,) = self._tensors((codes,))
        with torch.no_grad():
            program = poutine.condition(model, {"z": z})
            sites = poutine.trace(program).get_trace(num_data=len(codes)).nodes
            found = (sites["x"]["fn"].mean, sites["x"]["fn"].variance, sites["z"]["fn"].mean)
        return tuple(value.detach().cpu().numpy() for value in found)

    def gradients(
        self, model: Any, guide: Any, loss: Any, images: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Draw gradients of the guide's parameters, each as one vector, without end."""
        import pyro
        import torch

        (x,) = self._tensors((images,))
        while True:
            for parameter in (*model.parameters(), *guide.parameters()):
                parameter.grad = None
            with pyro.validation_enabled(False):
                loss.loss_and_grads(model, guide, x)
            found = [parameter.grad.flatten() for parameter in guide.parameters()]
            yield torch.cat(found).cpu().numpy()

    def guide_for(self, guide: Any, images: np.ndarray) -> Any:
        """The guide of other images: of a truncated one, with states of theirs."""
        return guide.for_data(*self._tensors((images,))) if hasattr(guide, "for_data") else guide

    def _draw(self, guide: Any, *data: Any) -> np.ndarray:
        import torch
        from pyro import poutine

        if isinstance(guide, torch.nn.Module):
            guide.eval()  # a codebook moves when it is trained
        with torch.no_grad():
            trace = poutine.trace(guide).get_trace(*self._tensors(data))
        return trace.nodes["z"]["value"].cpu().numpy()

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


def _moved(x: Any, shifts: Any) -> Any:
    """Images moved by whole pixels, `shifts` (2, N), with their edges repeated."""
    import torch

    images, (height, width) = torch.arange(len(x), device=x.device), x.shape[1:3]
    rows = torch.arange(height, device=x.device) + shifts[0, :, None]
    columns = torch.arange(width, device=x.device) + shifts[1, :, None]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    return x[images[:, None, None], rows[:, :, None], columns[:, None, :]]
