"""The tie of a network to NumPyro's parameters, so that `SVI` trains the network it runs.

This is no network; models and guides call it when they run.

Flax keeps parameters apart from the module, NumPyro hands them to the program through its
handlers. `register` joins the two: what it returns is called like the module, has the
module's other methods and attributes, and is a JAX pytree whose leaves are the parameters, so
a distribution that holds it passes through `jit`, `grad` and `vmap`.

NumPyro's own `flax_module` was not enough: it refuses a module without parameters (a uniform
prior), returns a function without the module's other methods (`sample`), builds unseeded
programs from a fixed key without a word, and runs all of a network, eagerly, to initialise it.

Two parts of one kind in a program have parameters of their own, as in flax: `own_name` numbers the
second.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from flax import linen as nn
from flax.errors import FlaxError, InvalidRngError
from jaxtyping import Array, Bool, Float
from numpyro.handlers import scope, substitute, trace

from numpyro_dvae.nets.evaluating import in_mode_of_run
from numpyro_dvae.nets.inputs import not_encoded
from numpyro_dvae.ops.arguments import checked

__all__ = ["gets_vectors", "mask_of_latents", "register", "run_encoder"]

_NUMBERED = "_numpyro_dvae_names"  # attribute of a part: the numbered names that it has been given
_OWNERS = "_numpyro_dvae_owners"  # attribute of a handler: which part has which name in its run


def mask_of_latents() -> Bool[Array, "#B 1"] | None:
    """Which latents of the program that runs a mask leaves in; None without one."""
    mask = numpyro.get_mask()
    return None if mask is None else jnp.asarray(mask, bool)[..., None]


@checked
def register(name: str, net: Any, *inputs: Any) -> Any:
    """Declare the parameters of `net` to NumPyro as ``name$params``, and join them to it.

    Args:
        name: What the network is called in the program, such as "guide.encoder"; `own_name` makes
            it the network's own.
        net: A flax module (linen or nnx), or any callable, which is returned as it is.
        inputs: What the module will be called with; their values do not matter. Flax finds
            the shapes of the parameters by them.

    Returns:
        The network joined to its parameters.

    Raises:
        ValueError: If the program has neither parameters nor a key to make them from, if the
            given ones have other shapes than those of `net`, or if `net` has other variables.
    """
    if not isinstance(net, nn.Module):
        return _register_other(name, net)
    init = functools.partial(_init, net, inputs)
    shapes = jax.eval_shape(init, jax.random.key(0))
    if set(shapes) - {"params"}:
        raise ValueError(
            f"`{name}` has variables besides its parameters, {sorted(set(shapes) - {'params'})}; "
            "linen modules are run with parameters alone. Write the network with flax.nnx, whose "
            "BatchNorm keeps its statistics in NumPyro's mutable state (net.train() and net.eval() "
            "say which are used), or normalise by LayerNorm or GroupNorm."
        )
    if not shapes:
        return _Network(net, {})
    name = own_name(net, name)
    # Compiled, the pass through the network that shows the shapes is never run.
    params = declare(f"{name}$params", jax.jit(lambda rng_key: init(rng_key)["params"]))
    _check_shapes(name, params, shapes["params"])
    return _Network(net, params)


def run_encoder(encoder: Any, x: jax.Array) -> jax.Array:
    """What the encoder of a guide makes of data.

    Raises:
        ValueError: If it fails, with what data it was given.
    """
    try:
        return register("guide.encoder", encoder, x)(x)
    except (FlaxError, TypeError) as error:
        raise not_encoded(x, error) from error
    except ValueError as error:
        if "feature dimension" not in str(error):  # of a convolution
            raise
        raise not_encoded(x, error) from error


def own_name(part: Any, name: str) -> str:
    """The name of a part's parameters and state in the program that runs.

    A part whose attribute `name` is set is called after it, as "guide.encoder.top". Of several
    others in one program, the first to run has `name` itself, the next ``name_1``, and so on; a
    part keeps its number, so that a guide and a model agree.

    Args:
        part: What owns parameters or state; other parts are those that are not the same object.
        name: What a part of this kind is called.

    Raises:
        ValueError: If the values that a program is given have numbered names, but no program of
            this process has handed them out: it could only guess which part has which.
    """
    holder = getattr(part, "holder", None)
    if holder is not None:  # of a codebook that is put together of several
        return f"{own_name(holder[0], name)}.{holder[1]}"
    stated = getattr(part, "name", None)
    if isinstance(stated, str):
        _check_given(part, f"{name}.{stated}")
        return f"{name}.{stated}"
    numbered = getattr(part, _NUMBERED, {})
    if name in numbered:
        return numbered[name]
    _check_numbers(name, numpyro.primitives._PYRO_STACK)
    owners = _owners()
    if owners is None:
        return name
    number, unique = 0, name
    while owners.setdefault(unique, part) is not part:
        number, unique = number + 1, f"{name}_{number + 1}"
    if number:  # the first is the first from now on, too
        for owner, its_name in ((owners[name], name), (part, unique)):
            its_names = {**getattr(owner, _NUMBERED, {}), name: its_name}
            object.__setattr__(owner, _NUMBERED, its_names)  # flax modules are frozen
    return unique


def gets_vectors() -> bool:
    """Whether the program that runs is handed vectors where it samples their codes."""
    stack = numpyro.primitives._PYRO_STACK
    return any(getattr(handler, "gives_vectors", False) for handler in stack)


def given_numbers(dtype: Any) -> Float[Array, "N"]:
    """One number of each array that the program that runs was given, parameters among them."""
    stack = numpyro.primitives._PYRO_STACK
    leaves = jax.tree.leaves([h.data for h in stack if isinstance(h, substitute) and h.data])
    arrays = (
        jnp.asarray(leaf)
        for leaf in leaves
        if not jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
    )
    firsts = [
        array.reshape(-1)[0].astype(dtype)
        for array in arrays
        if jnp.issubdtype(array.dtype, jnp.floating) and array.size
    ]
    return jnp.stack(firsts) if firsts else jnp.zeros(0, dtype)


def find_state(name: str) -> Any:
    """The mutable state `name`, where the program that runs has it already; else None."""
    stack = numpyro.primitives._PYRO_STACK
    full_name = _scopes("mutable") + name
    for handler in stack:
        if isinstance(handler, substitute) and full_name in (handler.data or ()):
            return numpyro.primitives.mutable(name)
    return _recorded(full_name)


def declare(name: str, create: Callable[[Any], Any], *, needs_key: bool = True) -> Any:
    """The parameter `name` of the program that runs, made by ``create(rng_key)`` if it is new.

    One that the run has made already is not made anew.

    Raises:
        ValueError: If it is new but the program has no key, or if no program runs.
    """
    made = _recorded(_scopes("param") + name)

    def create_from(rng_key: jax.Array | None) -> Any:
        if made is not None:
            return made
        if rng_key is None and needs_key:
            raise _missing(name)
        return create(rng_key)

    if not numpyro.primitives._PYRO_STACK:  # then `numpyro.param` only asserts
        raise _missing(name)
    return numpyro.param(name, create_from)


def _recorded(full_name: str) -> Any:
    """The value of a site that the run has had already; else None."""
    for handler in numpyro.primitives._PYRO_STACK:
        if isinstance(handler, trace) and full_name in handler.trace:
            return handler.trace[full_name]["value"]
    return None


@jax.tree_util.register_pytree_node_class
class _Network:
    """A flax module joined to its parameters; the parameters are the pytree's leaves."""

    def __init__(self, module: nn.Module, params: dict[str, Any]) -> None:
        self.module, self.params = module, params

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the module, compiled as a whole where an unjitted program calls it."""
        arrays = [isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(args)]
        try:
            if arrays and all(arrays) and not kwargs:
                return _apply(_Static(self.module), self.params, *args)
            return self.module.apply({"params": self.params}, *args, **kwargs)
        except InvalidRngError as error:
            raise ValueError(
                f"{type(self.module).__name__} draws random numbers as it runs, as dropout does: "
                "linen modules are run without any. Write the network with flax.nnx, whose Dropout "
                "has a state of its own (net.eval() switches it off), or set deterministic=True."
            ) from error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("module", "params"):  # while being copied
            raise AttributeError(name)
        if inspect.isfunction(getattr(type(self.module), name, None)):
            return functools.partial(self.module.apply, {"params": self.params}, method=name)
        return getattr(self.module.bind({"params": self.params}), name)

    def tree_flatten(self) -> tuple[tuple[dict[str, Any]], "_Static"]:
        """Parameters as the child, the module as static data."""
        return (self.params,), _Static(self.module)

    @classmethod
    def tree_unflatten(cls, static: "_Static", children: tuple[dict[str, Any]]) -> "_Network":
        """Join a module and parameters again."""
        return cls(static.module, *children)


class _Static:
    """A module that can be hashed even if it holds a list, as `nn.Sequential` does."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __hash__(self) -> int:
        return hash(type(self.module))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.module == other.module


@functools.partial(jax.jit, static_argnums=0)
def _apply(static: _Static, params: dict[str, Any], *args: Any) -> Any:
    with nn.intercept_methods(_check_images):
        return static.module.apply({"params": params}, *args)


def _check_numbers(name: str, stack: list) -> None:
    """Whether a part that has no number meets values that do."""
    for handler in stack:
        if isinstance(handler, substitute) and any(
            key.startswith(f"{name}_1$") for key in handler.data or ()
        ):
            raise ValueError(
                f'The program is given values of several parts named "{name}", by their numbers, '
                "which no program of this process has handed out. Give each part a name of its "
                'own before training: flax modules by `name="..."`, codebooks by their attribute '
                "`name`."
            )


def _check_given(part: Any, name: str) -> None:
    """Whether no other part of the program has the name that a part was given."""
    owners = _owners()
    if owners is not None and owners.setdefault(name, part) is not part:
        raise ValueError(
            f'Two parts of the program are named "{name}", and would share what they learn. Give '
            "them different names, or use one part twice."
        )


def _owners() -> dict[str, Any] | None:
    """Which part has which name in the run that is recorded, in its scope; None if none is."""
    stack = numpyro.primitives._PYRO_STACK
    recorder = next((handler for handler in stack if isinstance(handler, trace)), None)
    if recorder is None:
        return None
    noted = vars(recorder).get(_OWNERS)
    if noted is None or noted[0] is not recorder.trace:
        noted = recorder.trace, {}
        setattr(recorder, _OWNERS, noted)
    return noted[1].setdefault(_scopes("param"), {})


def _scopes(kind: str) -> str:
    """What the handlers of the program put before a name."""
    stack = numpyro.primitives._PYRO_STACK
    scopes = (h for h in stack if isinstance(h, scope) and kind not in h.hide_types)
    return "".join(f"{handler.prefix}{handler.divider}" for handler in scopes)


def _register_other(name: str, net: Any) -> Any:
    """An nnx module, with parameters of its own making, or a plain callable."""
    if any(base.__module__.startswith("flax.nnx") for base in type(net).__mro__):
        from numpyro.contrib.module import nnx_module  # needs nnx, which is slow to import

        return nnx_module(own_name(net, name), in_mode_of_run(net))
    return net


def _init(net: nn.Module, inputs: tuple, rng_key: jax.Array) -> dict[str, Any]:
    with nn.intercept_methods(_check_images):
        return dict(net.init(rng_key, *inputs))


def _check_images(
    method: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext
) -> Any:
    """Whether the images that enter a convolution are numbers, and not bytes up to 255."""
    if isinstance(context.module, nn.Conv | nn.ConvTranspose) and args:
        if getattr(args[0], "dtype", None) == jnp.uint8:
            name = context.module.name
            raise TypeError(f"the convolution '{name}' takes floating-point numbers, not uint8.")
    return method(*args, **kwargs)


def _missing(name: str) -> ValueError:
    return ValueError(
        f"The program needs the parameter `{name}`, or a key to make it from. Run it with SVI, as "
        "numpyro.handlers.substitute(program, data=params) with trained parameters, or as "
        "numpyro.handlers.seed(program, rng_key) with fresh ones."
    )


def _check_shapes(name: str, params: Any, wanted: Any) -> None:
    """Whether parameters from elsewhere are those of this network."""
    found, wanted = (
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (params, wanted))
    )
    for path in sorted(found.keys() | wanted.keys()):
        if found.get(path) != wanted.get(path):
            raise ValueError(
                f"The parameters `{name}$params` hold {path} with shape {found.get(path)}, but "
                f"the network's has {wanted.get(path)}. Build the network with the sizes that "
                "they were trained with."
            )
