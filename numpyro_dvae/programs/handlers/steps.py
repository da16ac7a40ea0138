"""What NumPyro's `scan` and `cond` keep from all handlers around them, and the order of steps."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.primitives import Messenger

from numpyro_dvae.programs.handlers.without_rows import RowsChecked
from numpyro_dvae.programs.messages import is_drawn, is_subsample, with_values
from numpyro_dvae.programs.sites import Site, deterministic_sites, sample_sites

__all__ = ["InShape", "SharedRows", "StepsChecked", "share_rows", "turned"]


class StepsChecked(RowsChecked):
    """Refuses what NumPyro's `scan` and `cond` keep from all handlers around them.

    A parameter in a step has its first value for ever, and no gradient; mutable state is lost; the
    guide's draws do not get into the branches of a `cond`. The steps of a backward `scan` take the
    values that they are given in their own order.

    Args:
        fn: The program.
        weighs: Whether to look at weights around a `scan`, which sites that are summed out change.
    """

    def __init__(self, fn: Any = None, *, weighs: bool = True) -> None:
        super().__init__(fn)
        self.weighs = weighs
        self.operator, self.backward, self.full_sizes = "", False, dict[str, int]()

    def process_message(self, msg: Any) -> None:
        """Run each step, or branch, under a handler that sees its sites."""
        if msg["type"] == "sample":
            msg["infer"] = self._with_steps(msg)
            if msg["infer"].get("_in_scan") and self.weighs and msg["value"] is not None:
                _check_weights(Site.of(msg))
        if msg["type"] != "control_flow":
            return
        operator = self.operator = msg["fn"].__name__.removesuffix("_wrapper")
        steps = (0,) if operator == "scan" else (1, 2)
        msg["args"] = tuple(
            _Inside(program, self.full_sizes, operator=operator) if place in steps else program
            for place, program in enumerate(msg["args"])
        )
        self.backward = operator == "scan" and bool(msg["args"][-1])
        stack = msg["kwargs"].get("substitute_stack", [])
        stack[:] = [turned(msg, given) for given in stack]

    def _with_steps(self, msg: Any) -> dict[str, Any]:
        """What the site says of its steps, whatever the other program has handed on."""
        infer = {key: each for key, each in msg["infer"].items() if key != "_in_scan"}
        if not msg.get("_control_flow_done"):
            return infer
        of_scan = {"_in_scan": True} if self.operator == "scan" else {}
        return infer | of_scan | {"_backward": self.backward, "_full_sizes": self.full_sizes}


def _check_weights(site: Site) -> None:
    """Weights around a `scan` have all dims of the steps, or they meet others than they are for.

    Raises:
        ValueError: If the log-density would be larger by them.
    """
    value = jnp.shape(site.value)
    drawn = value[: len(value) - site.fn.event_dim]
    batch = jnp.broadcast_shapes(site.fn.batch_shape, drawn)
    is_masked_more = not site.is_observed and batch != drawn
    found = jnp.shape(site.scale)
    if is_masked_more or jnp.broadcast_shapes(found, batch) != batch:
        kind = "mask" if is_masked_more else f"scale of shape {found}"
        raise ValueError(
            f"site '{site.name}' of a `scan` is under a {kind}, but has shape {drawn}, the steps "
            "first: its cells would count several times. Give weights of the steps one dim for "
            f"each of these, as shape {(*drawn[:1], *[1] * (len(drawn) - 1))}."
        )


class InShape(Messenger):
    """Gives values that another program has drawn the dims of the site: they lack some of size 1.

    As where one program draws at once what are the steps of a `scan` in the other.
    """

    def process_message(self, msg: Any) -> None:
        """Once the value is replayed."""
        if msg["type"] != "sample" or msg["value"] is None or msg["is_observed"]:
            return
        shape, found = tuple(msg["fn"].shape()), tuple(jnp.shape(msg["value"]))
        if found != shape and _without_ones(found) == _without_ones(shape):
            msg["value"] = jnp.reshape(msg["value"], shape)


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size > 1]


def turned(msg: Any, given: tuple[str, Any]) -> tuple[str, Any]:
    """Values for a `scan`; for one from the last step to the first, which counts these from 0."""
    kind, values = given
    if not msg["fn"].__name__.startswith("scan") or not msg["args"][-1]:
        return given
    _, _, inputs, length, _ = msg["args"]
    length = jax.tree.leaves(inputs)[0].shape[0] if length is None else length

    def in_order(value: Array, num_dims: int | None = None) -> Array:
        has_steps = jnp.ndim(value) and jnp.shape(value)[0] == length
        of_all = num_dims is None or jnp.ndim(value) > num_dims
        return jnp.flip(value, 0) if has_steps and of_all else value

    def substitute(msg: Any) -> Array | None:
        value = values(msg) if callable(values) else values.get(msg["name"])
        num_dims = len(Site.of(msg).fn.shape())
        return None if value is None else in_order(value, num_dims)

    if kind != "replay":
        return kind, substitute
    sites = sample_sites(values) | deterministic_sites(values)
    return kind, with_values(values, {name: in_order(site.value) for name, site in sites.items()})


class _Inside(Messenger):
    """See `StepsChecked`."""

    def __init__(self, fn: Any, full_sizes: dict[str, int], *, operator: str) -> None:
        super().__init__(fn)
        self.full_sizes, self.operator = full_sizes, operator

    def process_message(self, msg: Any) -> None:
        """Note the plates, of which a loop of JAX tells nothing."""
        if is_subsample(msg):
            self.full_sizes[msg["name"]] = msg["args"][0]

    def postprocess_message(self, msg: Any) -> None:
        """Once handlers around have observed what they do."""
        if msg["type"] in ("param", "mutable"):
            raise ValueError(
                f"'{msg['name']}' ({msg['type']}) is declared in a `{self.operator}`, which keeps "
                "its value from NumPyro's handlers: it would never be trained, or be lost. Declare "
                "it, or the module that it is of, before the "
                f"`{self.operator}`, and use its value inside."
            )
        step = (msg.get("infer") or {}).get("_scan_current_index")
        if msg["type"] == "sample" and _is_of_trace(msg["scale"], step):
            raise ValueError(
                f"site '{msg['name']}' is weighed in a step of a `scan`, by an array of that step, "
                "which NumPyro loses. Put handlers.scale(scale=weights) around the `scan`, with "
                "weights of all steps in their first dim, before the dims of a step; or, of what "
                "is observed, add the weighed log-density as numpyro.factor(name, weight * "
                "fn.log_prob(x))."
            )
        if self.operator == "cond" and msg["type"] == "sample" and is_drawn(msg):
            raise ValueError(
                f"site '{msg['name']}' is drawn in a branch of `cond`, to which the guide's draws "
                "do not get. Draw it outside, with parameters that jnp.where chooses, and let the "
                "branches compute or observe."
            )


def _is_of_trace(one: Any, other: Any) -> bool:
    """Whether two arrays are of one trace, and so of no other."""
    both = isinstance(one, jax.core.Tracer) and isinstance(other, jax.core.Tracer)
    return both and one._trace is other._trace


# --------------------------------------------------------------------------- rows of a minibatch


def share_rows(msg: Any, rng_key: Array) -> None:
    """One minibatch for both programs, all particles and all steps of a `scan`.

    Args:
        msg: A message, of a plate or a loop of JAX if it is to be changed.
        rng_key: Key of all rows.
    """
    if is_subsample(msg) and msg["value"] is None:
        msg["kwargs"]["rng_key"] = _key_of(msg, rng_key)
    if msg["type"] == "control_flow" and msg["fn"].__name__.startswith("scan"):
        msg["args"] = (_RowsOfStep(msg["args"][0], rng_key), *msg["args"][1:])


class SharedRows(Messenger):
    """See `share_rows`."""

    def __init__(self, rng_key: Array) -> None:
        super().__init__()
        self.rng_key = rng_key

    def process_message(self, msg: Any) -> None:
        """Once the program has a key of its own."""
        share_rows(msg, self.rng_key)


class _RowsOfStep(Messenger):
    """Draws rows within a step, whose key NumPyro makes anew."""

    def __init__(self, fn: Any, rng_key: Array) -> None:
        super().__init__(fn)
        self.rng_key = rng_key

    def process_message(self, msg: Any) -> None:
        if is_subsample(msg) and msg["value"] is None:
            msg["value"] = msg["fn"](*msg["args"], rng_key=_key_of(msg, self.rng_key))


def _key_of(msg: Any, rng_key: Array) -> Array:
    """A key of a plate's own, by its name."""
    return jax.random.fold_in(rng_key, zlib.crc32(msg["name"].encode()))
