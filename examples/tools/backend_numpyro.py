"""`numpyro_dvae` as a backend of the examples."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import backends
import numpy as np
from backends import WIDTHS, Programs
from cli import CommandError

__all__ = ["Backend"]


class Backend(backends.Backend):
    """`numpyro_dvae`, with JAX on the chosen device; keeps the parameters of the last training."""

    name = "numpyro"
    channels_first = False

    def __init__(self, device: str) -> None:
        import jax

        kind = {"auto": None, "cpu": "cpu", "cuda": "cuda"}[device]
        try:
            self.devices = jax.devices(kind)
            self.device = jax.local_devices(backend=kind)[0]  # of this process, of several
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

    def ahead(self, images: np.ndarray) -> Any:
        """On the device before it is asked for."""
        import jax

        return jax.device_put(images, self.device)

    def transform(self, *, flip: bool, crop: int | None, binarize: bool) -> Any:
        """As for both."""
        import jax

        def change(rng_key: Any, x: Any) -> Any:
            keys = jax.random.split(rng_key, 3)
            if flip:
                turned = jax.random.bernoulli(keys[0], shape=(len(x), *[1] * (x.ndim - 1)))
                x = jax.numpy.where(turned, jax.numpy.flip(x, 2), x)
            if crop:
                x = _moved(x, jax.random.randint(keys[1], (2, len(x)), -crop, crop + 1))
            return self.binarized(keys[2], x) if binarize else x

        if binarize and not flip and not crop:
            return self.binarized
        return change if flip or crop else None

    @staticmethod
    def binarized(rng_key: Any, x: Any) -> Any:
        """A `transform` of `fit`: pixels drawn, with gray values for probabilities."""
        import jax

        return jax.random.bernoulli(rng_key, x).astype(x.dtype)

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
        import jax

        programs, fit, more = (model, guide, loss), self.module("fit"), optimiser or {}
        svi = self._make_svi(programs, learning_rate, decay, decay_steps or num_steps, more)
        settings["devices"] = self.devices if len(self.devices) > 1 else None
        with jax.default_device(self.device):
            result = fit.fit(self._next_key(), svi, *data, num_steps=num_steps, **settings)
        result = fit.averaged(svi, result) if "average" in more else result
        self._params = {**(self._params or {}), **result.params}  # a prior's, after those of a VAE
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
        self,
        programs: Programs,
        learning_rate: float,
        decay: float,
        num_steps: int,
        optimiser: dict[str, Any] | None = None,
    ) -> Any:
        import numpyro

        model, guide, loss = programs
        kind = self.module("infer").SVI
        if optimiser:
            optim = self.make_optimiser(learning_rate, decay, num_steps, **optimiser)
            return kind(model, guide, optim, loss=loss)
        rate = self.schedule(learning_rate, decay * learning_rate, num_steps)
        return kind(model, guide, numpyro.optim.Adam(rate), loss=loss)

    def centred(self, encoder: Any) -> Any:
        """An encoder of bytes, which it gets in [-1, 1]."""
        from flax import linen as nn

        class Centred(nn.Module):
            encoder: Any

            @nn.compact
            def __call__(self, x: Any) -> Any:
                return self.encoder(x / 127.5 - 1.0)

        return Centred(encoder)

    def make_convolutions(self, shape: tuple[int, ...], width: int, start: Any) -> tuple[Any, Any]:
        """Two convolutions of stride 2, a residual block about the codes, and back."""
        from flax import linen as nn

        small, large, colours = *WIDTHS, shape[2] if len(shape) == 3 else 1
        upsampling = self.module("nets").Upsampling

        class Residual(nn.Module):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                hidden = nn.relu(nn.Conv(large, (3, 3))(nn.relu(x)))
                return x + nn.Conv(large, (1, 1))(hidden)

        class ToGrid(nn.Module):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                x = x.reshape(*x.shape[:3], colours)
                x = nn.relu(nn.Conv(small, (4, 4), (2, 2))(x))
                x = Residual()(nn.Conv(large, (4, 4), (2, 2))(x))
                return nn.Conv(width, (1, 1))(nn.relu(x))

        class FromGrid(nn.Module):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                x = nn.relu(Residual()(nn.Conv(large, (3, 3))(x)))
                x = upsampling(colours)(nn.relu(upsampling(small)(x))).reshape(len(x), *shape)
                return x if start is None else x + start

        return ToGrid(), FromGrid()

    def make_dictionary(self, atoms: np.ndarray) -> Any:
        """A decoder to the sum of atoms ``(H, *shape)``, one per latent, learned from these on."""
        from flax import linen

        dense, flat = self.module("nets.layers").dense, atoms.reshape(len(atoms), -1)

        class Dictionary(linen.Module):
            @linen.compact
            def __call__(self, z: Any) -> Any:
                outputs = dense(flat.shape[1], kernel_init=lambda *_: flat)(z)
                return outputs.reshape(*z.shape[:-1], *atoms.shape[1:])

        return Dictionary()

    def posteriors(
        self, guide: Any, data: Sequence[Any], size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A truncated guide's states "z" ``(S, B, H)`` and their weights, `size` data at a time."""
        import jax
        from numpyro.handlers import substitute

        @partial(jax.jit, static_argnums=3)
        def posterior(params: dict, x: Any, index: Any, num_data: int, *observed: Any) -> Any:
            return substitute(guide.posterior, data=params)(x, index, num_data, *observed)

        for start in range(0, len(data[0]), size):
            rows = backends.rows_of(data, slice(start, start + size))
            found = posterior(self._params, *rows)
            yield np.asarray(found.values["z"]), np.asarray(found.weights)

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

    def gradients(
        self, model: Any, guide: Any, loss: Any, images: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Draw gradients of the guide's parameters, each as one vector, without end."""
        import jax
        import jax.numpy as jnp

        params = self._params or {}
        guide_params = {name: params[name] for name in params if name.startswith("guide")}

        @jax.jit
        def gradient(guide_params: dict, params: dict, rng_key: Any, x: Any) -> Any:
            def value(own: dict) -> Any:
                return loss.loss(rng_key, {**params, **own}, model, guide, x)

            found = jax.grad(value)(guide_params)
            return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found)])

        while True:
            yield np.asarray(gradient(guide_params, params, self._next_key(), images))

    def guide_for(self, guide: Any, images: np.ndarray) -> Any:
        """The guide of other images: of a truncated one, with states of theirs."""
        if not hasattr(guide, "for_data"):
            return guide
        return guide.for_data(self._next_key(), self._params, images)

    def _draw(self, guide: Any, *data: Any) -> np.ndarray:
        import jax
        from numpyro.handlers import seed, substitute, trace

        own = jax.tree.map(lambda leaf: leaf, self._params or {})  # a codebook moves
        program = seed(substitute(guide, data=own), self._next_key())
        return np.asarray(trace(program).get_trace(*data)["z"]["value"])

    def sample(self, model: Any, num_images: int) -> np.ndarray:
        """The mean of p(x | z) at z ~ p."""
        import jax
        from numpyro.handlers import seed, substitute, trace

        @jax.jit
        def means(params: dict, rng_key: Any) -> Any:
            program = seed(substitute(model, data=params), rng_key)
            return trace(program).get_trace(num_data=num_images)["x"]["fn"].mean

        return np.asarray(means(self._params, self._next_key()))

    def decode(self, model: Any, codes: np.ndarray) -> np.ndarray:
        """The mean of p(x | z) at given codes."""
        from numpyro.handlers import substitute

        return np.asarray(substitute(model.reconstruct, data=self._params)(codes))


def _moved(x: Any, shifts: Any) -> Any:
    """Images moved by whole pixels, `shifts` (2, N), with their edges repeated."""
    import jax.numpy as jnp

    images, (height, width) = jnp.arange(len(x)), x.shape[1:3]
    rows = jnp.clip(jnp.arange(height) + shifts[0, :, None], 0, height - 1)
    columns = jnp.clip(jnp.arange(width) + shifts[1, :, None], 0, width - 1)
    return x[images[:, None, None], rows[:, :, None], columns[:, None, :]]
