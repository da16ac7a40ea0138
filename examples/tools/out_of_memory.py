"""What to say when the memory does not suffice."""

from collections.abc import Iterator
from contextlib import contextmanager

from cli import CommandError
from configs import Config

__all__ = ["memory_explained"]

_WORDS = "out of memory", "can't allocate memory", "resource_exhausted", "not enough memory"


@contextmanager
def memory_explained(config: Config, num_particles: int | None) -> Iterator[None]:
    """Run a block; where it runs out of memory, say in one line what takes it.

    Args:
        config: Of the run.
        num_particles: Of a step; None of a block that makes the networks.

    Raises:
        CommandError: If Torch, JAX or NumPy finds no more memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = str(error).lower()
        if not isinstance(error, MemoryError) and not any(word in words for word in _WORDS):
            raise
        if num_particles is None:
            raise CommandError(
                f"out of memory for networks of --num-latents {config.num_latents} and --num-codes "
                f"{config.num_codes}: they grow with their product. Take fewer of either"
            ) from None
        unused = [] if config.recompute else ["--recompute (activations are not kept)"]
        unused += [] if config.half else ["--half (bfloat16)"]
        more = f", {', '.join(unused)}" if unused else ""
        states, grows = f"K = {num_particles} particles", "their product"
        if not config.amortized:
            states, grows = f"--num-states {config.num_states}", "each"
        raise CommandError(
            f"out of memory with --batch-size {config.batch_size} and {states}: memory grows with "
            f"{grows}. Take fewer of either, with --accumulate for as large a batch{more}"
        ) from None
