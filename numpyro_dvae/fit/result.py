"""What `fit` hands back, and how it stops when it cannot go on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import jax
import numpy as np
from numpyro.infer.svi import SVIState

__all__ = ["DivergenceError", "FitInterrupt", "FitResult", "as_result", "is_pair"]


@dataclass(frozen=True, repr=False)
class FitResult:
    """A trained model and guide, and how they came to be.

    Attributes:
        model: The model, as given to the `SVI`.
        guide: The guide, as given to the `SVI`.
        params: Trained values by site name, constrained, and the mutable state of the programs,
            in which is what is learnt without a gradient, by a closed form, an E-step or a moving
            average: what `Predictive(..., params=result.params)` takes.
        losses: Loss of every step, in nats, as the `SVI`'s loss scales it.
        history: One dict per log row: `step`, `loss`, `mean_loss` since the row before, the
            scalars of the loss's `info`, `eval_loss` at some, `seconds`, `steps_per_second`.
        num_steps: Steps taken in all, those before a resume included.
        seconds: Wall-clock seconds in all, those before a resume included.
        folder: Where the checkpoint and the log are, if anywhere.
        runs: Of `fit_restarts`, the result of each run that did not diverge, the best first; for
            `compare_restarts`.
        alike: Of `fit_restarts`, names of parameters that began at the same values in all runs, as
            far as it is known.
        svi_state: The state after the last step; `fit(..., init_state=...)` goes on from it.
    """

    model: Any
    guide: Any
    params: dict[str, Any]
    losses: np.ndarray
    history: list[dict[str, Any]] = field(default_factory=list)
    num_steps: int = 0
    seconds: float = 0.0
    folder: Path | None = None
    runs: tuple["FitResult", ...] = ()
    alike: tuple[str, ...] = ()
    svi_state: SVIState | None = None

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The rows of `history` that hold an `eval_loss`."""
        return [row for row in self.history if "eval_loss" in row]

    def __repr__(self) -> str:
        parts = [f"{self.num_steps} steps in {self.seconds:.1f} s", self._sizes()]
        if self.history:
            parts.append(f"mean loss {self.history[-1]['mean_loss']:.4g}")
        if self.evaluations:
            parts.append(f"eval loss per datum {self.evaluations[-1]['eval_loss']:.4g}")
        if self.folder is not None:
            parts.append(f"folder {str(self.folder)!r}")
        return f"FitResult({', '.join(parts)})"

    def _sizes(self) -> str:
        state = (self.svi_state and self.svi_state.mutable_state) or {}
        sizes: dict[bool, list[int]] = {True: [], False: []}
        for name, tree in self.params.items():
            sizes[name in state] += [np.size(value) for value in jax.tree.leaves(tree)]
        held = f" and {len(sizes[True])} of mutable state ({sum(sizes[True])} values)"
        found = f"{len(sizes[False])} parameters ({sum(sizes[False])} values)"
        return found + held if sizes[True] else found


def as_result(result: Any) -> FitResult:
    """Take what has a model and a guide, or a pair of them.

    Raises:
        ValueError: If it is neither.
    """
    return FitResult(*result, {}, np.zeros(0)) if is_pair(result) else result


def is_pair(result: Any) -> TypeGuard[tuple[Any, Any]]:
    """Whether it is a pair (model, guide); else it has both.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(result, tuple) and len(result) == 2 and all(map(callable, result)):
        return True
    if not (hasattr(result, "model") and hasattr(result, "guide")):
        raise ValueError(
            f"`result` must be a FitResult, or a pair (model, guide); got {type(result).__name__}."
        )
    return False


class DivergenceError(FloatingPointError):
    """The loss or a parameter is no longer finite; the last good checkpoint is untouched.

    Attributes:
        step: The first step whose loss was not finite, or at which a parameter was found so.
        last_loss: The last finite loss, None if there was none.
        checkpoint: Path of the last good checkpoint, None if there is none.
        culprits: Names of what is not finite: parameters, mutable state, the batch.
    """

    def __init__(
        self, step: int, last_loss: float | None, checkpoint: Path | None, culprits: list[str]
    ) -> None:
        self.step, self.last_loss = step, last_loss
        self.checkpoint, self.culprits = checkpoint, culprits
        shown = ", ".join(culprits[:5]) + (", ..." if len(culprits) > 5 else "")
        super().__init__(
            f"Training diverged at step {step}: "
            + (f"not finite: {shown}. " if culprits else "the loss is not finite. ")
            + ("No loss was finite. " if last_loss is None else f"Last loss {last_loss:.6g}. ")
            + f"Last good checkpoint: {checkpoint or 'none (pass `folder` to have one)'}. "
            f"{_likely_fixes(step)} "
            "`log_every=1` stops at the very step and shows what goes first."
        )

    def __reduce__(self) -> tuple:
        return type(self), (self.step, self.last_loss, self.checkpoint, self.culprits)


def _likely_fixes(step: int) -> str:
    if step <= 2:  # a step that is too long takes longer to show
        return (
            "So early the program is the likelier cause: a gradient of 0 / 0 or 0 * inf, as at a "
            "rate or a scale of exactly 0, or within the branch that `jnp.where` leaves out. "
            "Where a state cannot be, as counts of what is absent, say so by a factor of -inf, and "
            "mask the density there, `mask(mask=is_there)`: a small rate instead is learnt from, "
            "as a state of some 60 nats. Elsewhere keep the argument away on both branches; else "
            "lower the learning rate."
        )
    return (
        "Likely fixes: a lower learning rate, gradient clipping (`numpyro.optim.ClippedAdam`), "
        "a bound on scales that the model can drive to 0."
    )


class FitInterrupt(KeyboardInterrupt):
    """SIGINT or SIGTERM ended the training between two steps; `result` is what there is.

    It is a `KeyboardInterrupt`, by which `multiprocessing.Pool` loses a task and waits for ever: in
    a pool catch it in the task, or take `concurrent.futures`, which hands it on.

    Attributes:
        signal: Number of the signal; a script's exit status is 128 more.
        result: The training so far.
    """

    def __init__(self, signal: int, result: FitResult) -> None:
        self.signal, self.result = signal, result
        saved = (
            f"the checkpoint in {str(result.folder)!r} goes on from there with `resume=True`"
            if result.folder is not None
            else "nothing was saved (pass `folder`)"
        )
        super().__init__(f"Interrupted after step {result.num_steps}; {saved}.")

    def __reduce__(self) -> tuple:
        return type(self), (self.signal, self.result)
