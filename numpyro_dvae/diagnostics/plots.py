"""Pictures of what the diagnostics found, each a Matplotlib figure.

For pictures of draws (`arviz.plot_ppc`, `arviz.plot_posterior` and so on) hand ArviZ the result of
`to_arviz`. NumPy and Matplotlib alone, so this file is the same in both packages.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from numpyro_dvae.ops.bounds import NATS_PER_BIT

__all__ = [
    "plot_calibration",
    "plot_codes",
    "plot_gradients",
    "plot_history",
    "plot_images",
    "plot_importance",
    "plot_rates",
]

# Told apart by all eyes, and by their brightness on paper (Okabe & Ito, 2008).
_GOOD, _BAD, _GRAY = "#0072B2", "#8C2D04", "0.6"
_COLOURS = {"close": "#0072B2", "off": "#E69F00", "unreliable": "#8C2D04", "one state": "#CC79A7"}
_COLOURS |= {"restricted": "#56B4E9", "point": "#999999", "broken": "k"}
_LABELS = {
    "mean_loss": "loss of a step, nats",
    "eval_loss": "loss on held-out data, per datum",
    "ess": "effective sample size / K",
    "rate": "rate, bits per datum",
    "elbo": "ELBO, nats per datum",
}
_OF_SETS = {"ess": "effective number of states", "replaced": "share of a set replaced"}
_TIMES = {"step", "loss", "seconds", "steps_per_second"}  # not worth a curve
_LOGARITHMIC = {"beta", "temperature"}
_NO_TAIL = (
    "not applicable: all tails have\nfewer than 5 distinct weights,\nor weights within 0.001 nats"
)
_EXACT = 1e4  # signal-to-noise ratio above which noise is rounding
_ROUNDING = 1e-6  # bits of an error that is none
_DIGITS = 6  # behind the point, of nats: less is of rounding
_MOST_IMAGES = 16  # in a row
_WIDTH_OF_LETTER = 0.1  # inches
_LEAST_BARS = 4  # for which there is room, so that one bar is no wall


def plot_history(history: Sequence[Mapping[str, Any]], keys: Sequence[str] | None = None) -> Any:
    """Curves over the steps of a training: losses, and all else that its log has.

    Args:
        history: Rows of the log, as `FitResult.history`.
        keys: Which entries to draw; all but times by default.
    """
    if not history:
        raise ValueError("`history` is empty: the training wrote no row of the log.")
    entries = dict.fromkeys(key for row in history for key in row if key not in _TIMES)
    names = list(keys or filter(partial(_tells_something, history), entries))
    known = {key for row in history for key in row}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"`keys` must be entries of the log, {sorted(known)}; got {unknown}.")
    figure, axes = _axes(len(names))
    for axis, name in zip(axes, names, strict=True):
        rows = [(row["step"], row[name]) for row in history if name in row]
        axis.plot(*zip(*rows, strict=True), ".-" if len(rows) < 30 else "-", color=_GOOD)
        labels = _LABELS | (_OF_SETS if "replaced" in known else {})
        axis.set(xlabel="step", title=labels.get(name, name.replace("_", " ")))
        _count_on(axis, "x")
        values = [value for _, value in rows]
        if name in _LOGARITHMIC and min(values) > 0 and max(values) > 3 * min(values):
            axis.set_yscale("log")
    return figure


def _tells_something(history: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether a curve has more than one value, and another one than the ELBO's."""
    values = [row.get(key) for row in history]
    same = key == "beta_elbo" and values == [row.get("elbo") for row in history]
    there = np.isfinite([np.nan if value is None else value for value in values]).any()
    return bool(there and not same and (len(history) == 1 or len(set(values)) > 1))


def plot_importance(report: Any) -> Any:
    """Effective sample size, k̂ and the gap of the bounds of each datum, by verdict."""
    figure, (ess, khat, gap) = _axes(3)
    verdicts, fraction = np.ravel(report.verdicts), np.ravel(report.ess) / report.num_particles
    fraction = np.minimum(fraction, 1.0)  # but for rounding it is
    shown = [word for word in _COLOURS if (verdicts == word).any()]
    finite = [word for word in shown if np.isfinite(fraction[verdicts == word]).any()]
    parts = [fraction[(verdicts == word) & np.isfinite(fraction)] for word in finite]
    if parts:
        colours = [_COLOURS[word] for word in finite]
        ess.hist(parts, np.linspace(0, 1, 21), stacked=True, color=colours, label=finite)
        ess.margins(y=0.3)  # room for the legend
        ess.legend(frameon=False, loc="upper center", ncols=3, fontsize="small", columnspacing=1.0)
    ess.set(xlabel="effective sample size / K", ylabel="data")
    ess.set_title(f"draws worth exact ones{_left_out(fraction)}")
    applies = np.isfinite(np.ravel(report.khat))
    have = f"\n{applies.sum()} of {applies.size} data have one" if applies.size > 1 else ""
    khat.set_title(f"$\\hat{{k}}$ of the weights' tail{have}")
    if applies.any():
        for word in shown:
            some = (verdicts == word) & applies
            khat.plot(np.flatnonzero(some), np.ravel(report.khat)[some], ".", color=_COLOURS[word])
        khat.axhline(report.khat_threshold, color=_GRAY, linestyle="--")
        khat.set(xlabel="datum", ylabel="$\\hat{k}$", xlim=(-1, applies.size))
    else:
        khat.text(0.5, 0.5, _NO_TAIL, ha="center", va="center", transform=khat.transAxes)
        khat.axis("off")
    with np.errstate(invalid="ignore"):
        missed = np.round(np.ravel(report.gap), _DIGITS) + 0.0
    finite = [word for word in shown if np.isfinite(missed[verdicts == word]).any()]
    parts = [missed[(verdicts == word) & np.isfinite(missed)] for word in finite]
    if parts:
        gap.hist(parts, 30, stacked=True, color=[_COLOURS[word] for word in finite])
    gap.set(xlabel="importance-weighted bound - ELBO, nats", ylabel="data")
    gap.set_title(f"what the guide misses, at least{_left_out(missed)}")
    for axis, which in ((ess, "y"), (khat, "x"), (gap, "y")):
        _count_on(axis, which)
    return figure


def _left_out(numbers: np.ndarray) -> str:
    """How many data have no number to show."""
    count = (~np.isfinite(numbers)).sum()
    return f"\nwithout {count} of {numbers.size} data, which have none" if count else ""


def plot_codes(usage: Mapping[str, Any]) -> Any:
    """Share of each code, latent by latent, codes sorted by their share."""
    figure, axes = _axes(len(usage), width=5.0)
    for axis, (name, each) in zip(axes, usage.items(), strict=True):
        counts = each.counts.reshape(-1, each.counts.shape[-1])
        totals = np.maximum(counts.sum(-1, keepdims=True), 1)  # 0 of a latent that is masked
        shares = np.sort(counts / totals, axis=-1)[:, ::-1]
        top = float(shares.max()) or 1.0
        image = axis.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=top)
        image.axes.figure.colorbar(image, ax=axis, label="share of draws")
        axis.set(xlabel="code, most frequent first", ylabel="latent")
        _count_on(axis, "x")
        _count_on(axis, "y")
        used = "values without a largest one"
        if not each.is_open:
            used = f"{each.mean_share_used:.0%} of the codes occur"
        axis.set_title(f"{name}: {used if counts.any() else 'no latent counts'}")
        axis.spines[["top", "right"]].set_visible(True)
    return figure


def plot_rates(rates: Mapping[str, Any]) -> Any:
    """Bits that each latent carries: collapsed ones in red, in gray where noise leaves it open."""
    figure, axes = _axes(len(rates))
    for axis, (name, each) in zip(axes, rates.items(), strict=True):
        bits = np.ravel(each.rate).astype(float) / NATS_PER_BIT
        places = np.arange(bits.size)
        errors = np.broadcast_to(np.ravel(each.error).astype(float), bits.shape) / NATS_PER_BIT
        collapsed, unclear = np.ravel(each.collapsed), np.ravel(each.undecided)
        colours = np.select([collapsed, unclear], [_BAD, _GRAY], _GOOD)
        finite = np.isfinite(bits)
        axis.bar(places[finite], bits[finite], color=colours[finite], width=0.8)
        for place in places[~finite]:
            axis.text(place, 0, "∞", ha="center", va="bottom")
        if (errors > _ROUNDING).any():
            axis.errorbar(places, bits, 2 * errors, fmt="none", ecolor="k", elinewidth=1.0)
        room = max(bits.size, _LEAST_BARS) / 2 + 0.2
        middle = (bits.size - 1) / 2
        axis.set(xlabel="latent", ylabel="bits", xlim=(middle - room, middle + room))
        if not bits[finite].any():
            axis.set(ylim=(0, 1), yticks=(0,) if finite.any() else ())
        _count_on(axis, "x")
        if bits.size < _LEAST_BARS:
            axis.set_xticks(places)
        left = f", {unclear.sum()} undecided" if unclear.any() else ""
        told = f"{collapsed.sum()} of {bits.size} collapsed{left}"
        axis.set_title(f"{name}: {'parts of a sum alone' if each.reordered else told}")
    return figure


def plot_gradients(quality: Any) -> Any:
    """Bars of noise and signal-to-noise ratio of losses, and the cosines between their means."""
    figure, (noise, ratio, angle) = _axes(3)
    places = np.arange(len(quality.losses))
    noise.barh(places, quality.noise, color=_GRAY, label="noise")
    noise.plot(quality.signal, places, "|", color=_GOOD, markersize=18, label="signal")
    least = min(quality.signal[quality.signal > 0], default=1.0)
    noise.set(xlabel="length", title="noise of one gradient, and its mean")
    noise.set(xscale="log", xlim=(least / 100, None))
    noise.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    finite = quality.snr < _EXACT
    ratio.barh(places[finite], quality.snr[finite], color=_GOOD)
    for place in places[~finite]:
        ratio.text(0, place, " no noise" if quality.signal[place] > 0 else " no signal")
    ratio.set(title="signal-to-noise ratio of one gradient")
    image = angle.imshow(quality.cosine, cmap="RdBu", vmin=-1, vmax=1)
    for (i, j), value in np.ndenumerate(quality.cosine):
        dark = abs(value) > 0.6
        angle.text(j, i, f"{value:.2f}", ha="center", va="center", color="w" if dark else "k")
    image.axes.set(title="cosine between mean gradients")
    image.axes.set_xticks(places, quality.losses, rotation=30, ha="right")
    for axis in (noise, ratio, angle):
        axis.set_yticks(places, quality.losses)
        axis.set_ylim(len(places) - 0.5, -0.5)
    return figure


def plot_calibration(calibration: Any) -> Any:
    """Histograms of ranks, a line for each latent, in the band where 99 % of their bins should be.

    Where the data share latents, ranks vary together, and the band is wider than of so many alone.
    """
    names = list(calibration.ranks)
    figure, axes = _axes(len(names))
    for axis, name in zip(axes, names, strict=True):
        spreads = calibration.spreads[name]
        size = spreads.shape[-1]
        counts = calibration.counts(name).reshape(-1, size)
        totals = np.maximum(counts.sum(-1, keepdims=True), 1)  # 0 of a latent that is masked
        widest = (spreads.reshape(-1, size) / totals * size).max(0)
        edges = np.linspace(0, 1, size + 1)
        limits = [1 + side * 2.58 * np.append(widest, widest[-1]) for side in (-1, 1)]
        axis.fill_between(edges, *limits, step="post", color="0.9", linewidth=0)
        for line in counts / totals * size:
            axis.stairs(line, edges, alpha=max(0.25, 1 / len(counts)), color=_GOOD, baseline=None)
        axis.set(xlabel="rank / K", ylabel="frequency / expected", ylim=(0, None))
        wrong = name in calibration.miscalibrated
        axis.set_title(f"{name}: {'NOT calibrated' if wrong else 'no fault found'}")
        axis.title.set_color(_BAD if wrong else "k")
    return figure


def plot_images(rows: Mapping[str, np.ndarray], value_range: tuple[float, float] = (0, 1)) -> Any:
    """Rows of images, each with a label: data, reconstructions, samples, traversals.

    Args:
        rows: Label -> images (N, H, W) or (N, H, W, C); the first 16 are shown.
        value_range: What is black and what is white.
    """
    from matplotlib.figure import Figure

    shapes = {label: np.shape(images) for label, images in rows.items()}
    if not shapes or not all(map(_are_images, shapes.values())):
        raise ValueError(
            "`rows` must have images (N, H, W) or (N, H, W, C), at least one, of 1, 3 or 4 "
            f"channels; got {shapes}."
        )
    num_columns = min(_MOST_IMAGES, max(shape[0] for shape in shapes.values()))
    room = max(1.6, _WIDTH_OF_LETTER * max(map(len, rows)))
    figure = Figure(figsize=(room + 0.7 * num_columns, 0.75 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), num_columns, squeeze=False)
    low, high = value_range
    for axes, (label, images) in zip(grid, rows.items(), strict=True):
        for axis in axes:
            axis.axis("off")
        for axis, image in zip(axes, images, strict=False):
            image = np.clip((image - low) / (high - low), 0, 1)
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
        axes[0].axis("on")
        axes[0].set(xticks=[], yticks=[])
        axes[0].set_ylabel(label, rotation=0, ha="right", va="center")
        axes[0].spines[:].set_visible(False)
    return figure


def _are_images(shape: tuple[int, ...]) -> bool:
    return 0 not in shape and (len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 3, 4)))


def _count_on(axis: Any, which: str) -> None:
    """Label whole numbers alone on an axis."""
    from matplotlib.ticker import MaxNLocator

    getattr(axis, f"{which}axis").set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _axes(count: int, width: float = 4.0) -> tuple[Any, list[Any]]:
    """A figure with panels in rows of four; made without pyplot, so nothing stays open."""
    from matplotlib.figure import Figure

    num_columns = max(1, min(count, 4))
    num_rows = max(1, -(-count // num_columns))
    size = (width * num_columns, 3.0 * num_rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[count:]:
        axis.axis("off")
    return figure, list(axes[:count])
