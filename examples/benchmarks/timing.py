"""Measure steps side by side: CPU seconds, alternating, so that a noisy machine disturbs all alike.

A ratio is the median over rounds of the ratio within a round; its spread is the middle half.
"""

import statistics
import time
from collections.abc import Callable


def side_by_side(
    steps: dict[str, Callable[[], object]],
    *,
    rounds: int = 15,
    repeats: int = 3,
    warmup: int = 3,
    per_call: dict[str, int] | None = None,
) -> dict[str, list[float]]:
    """CPU seconds per step, one entry a round; a call takes one step, or `per_call` of them."""
    for step in steps.values():
        for _ in range(warmup):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            for _ in range(repeats):
                step()
            num_steps = repeats * (per_call or {}).get(name, 1)
            seconds[name].append((time.process_time() - start) / num_steps)
    return seconds


def summary(seconds: dict[str, list[float]], reference: str) -> list[dict]:
    """Median milliseconds of each step and its ratio to the reference's, with quartiles."""
    rows = []
    for name, column in seconds.items():
        ratios = [a / b for a, b in zip(column, seconds[reference], strict=True)]
        low, middle, high = statistics.quantiles(ratios if len(ratios) > 1 else 2 * ratios, n=4)
        rows.append(
            {
                "step": name,
                "milliseconds": round(1e3 * statistics.median(column), 2),
                "ratio": round(middle, 3),
                "quartiles": [round(low, 3), round(high, 3)],
            }
        )
    return rows


def against(seconds: dict[str, list[float]], name: str, ours: str = "E-step") -> str:
    """How many times the CPU time of our step another takes, as text."""
    (row,) = (row for row in summary(seconds, ours) if row["step"] == name)
    low, high = row["quartiles"]
    return f"{name}: {row['ratio']:.2f} times the CPU time of our {ours} ({low:.2f}-{high:.2f})"


def table(rows: list[dict], reference: str) -> str:
    """The rows as text."""
    lines = [f"{'step':<32}{'CPU ms':>9}{'ratio':>8}   quartiles   (ratio to {reference})"]
    for row in rows:
        low, high = row["quartiles"]
        lines.append(
            f"{row['step']:<32}{row['milliseconds']:>9.1f}{row['ratio']:>8.2f}"
            f"   {low:.2f}-{high:.2f}"
        )
    return "\n".join(lines)
