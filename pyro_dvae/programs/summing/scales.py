"""The scale of sites that are summed together: it multiplies the logarithm of their sum."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_dvae.programs.sites import Site, same_scale

__all__ = ["common_scale"]


def common_scale(sites: Sequence[Site], plates: Mapping[str, Any]) -> Any:
    """What multiplies the logarithm of the sum: one number for each cell of its plates.

    Raises:
        ValueError: If the sites have several, or one that differs within what is summed.
    """
    scale, dims = sites[0].scale, {frame.dim for frame in plates.values()}
    for site in sites:
        if not same_scale(site.scale, scale):
            raise ValueError(
                f"enumerated sites and those that depend on them must have one scale; got "
                f"{_shown(scale)} at '{sites[0].name}' and {_shown(site.scale)} at '{site.name}'. "
                "Put them under the same plates and the same `poutine.scale`, or sample the "
                "enumerated site in the guide."
            )
    if isinstance(scale, Tensor) and any(
        size > 1 and dim - scale.dim() not in dims for dim, size in enumerate(scale.shape)
    ):
        raise ValueError(
            f"site '{sites[0].name}' is enumerated under a scale of shape {tuple(scale.shape)}, "
            f"which differs within plates that are summed; it must be one number for each cell of "
            f"{sorted(plates)}. Scale the sites that are not enumerated alone, or pass a number."
        )
    return scale


def _shown(scale: Any) -> str:
    return (
        f"{scale:.4g}" if isinstance(scale, float | int) else str(torch.as_tensor(scale).tolist())
    )
