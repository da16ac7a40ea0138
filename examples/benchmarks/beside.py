"""The E-step of the TVAE authors' library, `tvo`, to be timed beside ours.

It is not installed with the packages: get https://github.com/tvlearn/tvo and, in its folder,
`pip install cython && python setup.py build_ext --inplace`, then put the folder on PYTHONPATH.
"""

from collections.abc import Callable
from typing import Any

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
        raise SystemExit(
            f"error: --beside tvo: cannot import the library, {error}; examples/benchmarks/"
            "beside.py tells where it is from"
        ) from None
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
