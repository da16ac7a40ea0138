"""Latents that a mask takes out: their codes must not matter to the rest of the model.

Sets keep one state for all that differ in masked latents alone. That is right of padding. Where a
site outside of the mask depends on them it is not, and their codes would have to be summed over.
"""

import torch
from jaxtyping import Bool, Num
from torch import Tensor

from pyro_dvae.infer.truncated.scoring import ModelCall, Scorer

__all__ = ["check_masked"]

_NUM_STATES = 4  # that are tried
_TOLERANCE = 1e-4  # sums may be in another order


def check_masked(call: ModelCall) -> None:
    """Refuse masked latents that sites outside of the mask depend on.

    Raises:
        ValueError: If the log joint of a datum changes with the codes of its masked latents.
    """
    kept = call.batch.unmasked
    if kept is None or not bool(masked_matter(call, kept).any()):
        return
    widths = [site.num_latents for site in call.space.sites]
    parts = zip(call.space.sites, kept.split(widths, -1), strict=True)
    raise ValueError(
        f"latents of sites {[site.name for site, part in parts if not part.all()]} are masked, but "
        "sites outside of the mask depend on them, so a truncated posterior cannot leave them out. "
        "Mask all that depends on them too, or drop the mask and give what is known as `obs`; or "
        "use a loss with an encoder, such as Reinforce_ELBO."
    )


def masked_matter(call: ModelCall, kept: Bool[Tensor, "B H"]) -> Bool[Tensor, "B"]:
    """Whether a datum's log joint changes with codes that a mask takes out, in states tried."""
    states = _states(call, kept)
    with torch.no_grad():
        scores = Scorer(call).of_codes(torch.cat([states, torch.where(kept, states, 0)]))
    some, others = scores.chunk(2)
    return ~torch.isclose(some, others, _TOLERANCE, _TOLERANCE, equal_nan=True).all(0)


def _states(call: ModelCall, kept: Bool[Tensor, "B H"]) -> Num[Tensor, "S B H"]:
    """The same at each call, so that no random numbers are used up."""
    sizes = torch.tensor(call.space.cardinalities)
    draws = torch.Generator().manual_seed(0)
    codes = torch.randint(2**30, (_NUM_STATES, 1, len(sizes)), generator=draws) % sizes
    return codes.to(kept.device).expand(-1, len(kept), -1)
