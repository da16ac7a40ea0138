"""What the authors of the methods published, to be timed beside ours.

Neither is installed with the packages. For `tvo`, the TVAE authors' library, get
https://github.com/tvlearn/tvo and, in its folder, `pip install cython && python setup.py build_ext
--inplace`; for `jadex`, that of the DAPS authors, the branch daps-iclr2026 of
https://github.com/mdrolet01/jadex and what its pyproject.toml asks for. Then put the folder on
PYTHONPATH.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BATCH = 32  # as in the experiments of its authors


def tvo_step(
    x: Any,
    num_latents: int,
    *,
    num_states: int,
    parents: int,
    children: int,
    generations: int,
    threads: int = 1,
) -> Callable[[], object]:
    """One pass of E-steps over all data, ``(N, D)``, by a decoder H-H-D with one ReLU layer.

    Float32 as ours (its own default is float64); fitness-proportional parents, one flip a child;
    the compiled removal of repeated children.
    """
    try:
        import torch
        from tvo.models.tvae import GaussianTVAE
        from tvo.variational import EVOVariationalStates
    except ImportError as error:
        raise _missing("tvo", error) from None
    torch.set_num_threads(threads)
    data = torch.as_tensor(np.array(x, np.float32))
    num_data, num_pixels = data.shape
    model = GaussianTVAE(
        (num_pixels, num_latents, num_latents),
        precision=data.dtype,
        pi_init=torch.full((num_latents,), 0.12),  # the mean of our model's prior
        sigma2_init=1.0,
    )
    sets = EVOVariationalStates(
        num_data,
        num_latents,
        num_states,
        data.dtype,
        "batch_fitparents",
        "randflip",
        n_parents=parents,
        n_children=children,
        n_generations=generations,
    )

    def step() -> None:
        with torch.no_grad():
            for rows in torch.arange(num_data).split(BATCH):
                sets.update(rows, data[rows], model)

    return step


def tvo_bars(
    model: str, images: Any, seed: int, *, num_latents: int, num_states: int, epochs: int
) -> tuple[Any, ...]:
    """What it learns of images of bars ``(N, D)`` by the settings of its authors' bars test.

    2 generations of 5 parents and 3 children of each, from atoms at the mean of the images; the
    parameters as `bars_beside.py` has them.
    """
    try:
        import torch
        from tvo.models import BSC, SSSC, NoisyOR
        from tvo.trainer import Trainer
        from tvo.utils.data import TVODataLoader
        from tvo.utils.param_init import init_sigma2_default, init_W_data_mean
        from tvo.variational import EVOVariationalStates
    except ImportError as error:
        raise _missing("tvo", error) from None
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    data, is_network = torch.as_tensor(np.array(images, np.float32)), model == "noisy-OR"
    (num_data, num_pixels), precision, cpu = data.shape, data.dtype, torch.device("cpu")
    atoms = init_W_data_mean(data, num_latents, dtype=precision, device=cpu).contiguous()
    sizes = {"H": num_latents, "D": num_pixels, "precision": precision}
    prior = torch.full((num_latents,), 1 / num_latents)
    if is_network:
        program = NoisyOR(W_init=atoms.clamp(0.01, 0.99), pi_init=prior, **sizes)
        data = data.to(torch.uint8)
    else:
        noise = init_sigma2_default(data, precision, cpu)
        which = SSSC if model == "spike and slab" else BSC
        program = which(W_init=atoms, sigma2_init=noise, pies_init=prior, **sizes)
    sets = EVOVariationalStates(
        num_data,
        num_latents,
        num_states,
        precision,
        "batch_fitparents",
        "randflip",
        n_parents=5,
        n_children=3,
        n_generations=2,
    )
    trainer = Trainer(program, TVODataLoader(data, batch_size=BATCH, shuffle=True), sets)
    for _ in range(epochs):
        trainer.em_step()
    found = {name: value.double().numpy() for name, value in program.theta.items()}
    if is_network:
        certain = 1e-7  # as far from 0 and 1 as it keeps all probabilities
        weight = found["W"].T.clip(0.0, 1 - certain)
        return found["pies"], np.full(num_pixels, certain), weight
    of_slabs = (found["mus"], found["Psi"]) if model == "spike and slab" else (0.0,)
    return found["W"].T, *of_slabs, float(found["sigma2"][0]), found["pies"]


class Daps(NamedTuple):
    """DAPS as its authors have it: what is jitted is pure, and takes the state first."""

    init: Callable[[Any], Any]  # key -> state
    update: Callable[[Any, Any], tuple[Any, Any]]  # state, images -> state, metrics
    predict: Callable[[Any, Any, Any], Any]  # state, images, key -> metrics, as they validate
    config: Any


def jadex_daps(data: str, num_data: int, *settings: str) -> Daps:
    """DAPS of their library as configured for "mnist" or "cifar", with an autoregressive guide.

    `settings` are theirs, as in "train.batch_size=8"; sampling is part of the update.
    """
    try:
        import jadex
        import jax
        from hydra import compose, initialize_config_dir
        from jadex.algorithms.vae.models.daps import DAPSModel
        from jadex.distributions import register_distributions
        from jadex.networks import register_networks
        from jadex.networks.variational.variational_network import merge_nn_cfg
        from omegaconf import OmegaConf, open_dict
    except ImportError as error:
        raise _missing("jadex", error) from None
    register_distributions()
    register_networks()
    configs = Path(jadex.__path__[0]) / "algorithms" / "vae" / "configs"
    with initialize_config_dir(str(configs.resolve()), version_base=None):
        config = compose("vae_config", overrides=["model=daps", f"dataset={data}", *settings])
    with open_dict(config):
        config.dataset.num_train, config.dataset.in_memory = num_data, True
        config.pop("hydra", None)
    OmegaConf.set_struct(config, False)
    merge_nn_cfg(config)
    model = DAPSModel.create(config)

    def update(state: Any, images: Any) -> tuple[Any, Any]:
        rng_key, key, update_key = jax.random.split(state.rng_key, 3)
        arguments = model.get_loss_args(state, {"x": images}, key)
        state, metrics = state.perform_gradient_update(arguments, update_key)
        return state.replace(rng_key=rng_key), metrics

    def predict(state: Any, images: Any, rng_key: Any) -> Any:
        return model.get_predictions(state, {"x": images}, rng_key)

    return Daps(model.init, jax.jit(update), jax.jit(predict), config)


def jadex_step(x: Any) -> Callable[[], object]:
    """One step of DAPS on images ``(N, 28, 28)``: 8 codes of 256 values, as many draws as there."""
    import jax

    daps = jadex_daps("mnist", 60_000)
    images = jax.numpy.asarray(np.asarray(x)[..., None], jax.numpy.int32)
    carry = [daps.init(jax.random.PRNGKey(0))]

    def step() -> None:
        carry[0], _ = jax.block_until_ready(daps.update(carry[0], images))

    return step


def _missing(library: str, error: ImportError) -> SystemExit:
    return SystemExit(
        f"error: --beside {library}: cannot import the library, {error}; examples/benchmarks/"
        "beside.py tells where it is from"
    )
