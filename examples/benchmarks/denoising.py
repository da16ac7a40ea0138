"""How much noise a restored picture has left, beside non-local means and BM3D on the same noise.

The tool `examples/tools/denoise.py` finds the noise level itself; the others are told it. Prints a
row of a table for each level: PSNR in dB and SSIM of the first stage alone, of both, and of the
others, and seconds of CPU time. What is not installed is left out: `pip install bm3d`, best
elsewhere than with the packages, as it brings its own versions of theirs.

    python examples/benchmarks/denoising.py house.png --half 1 --backend numpyro

References:
    Dabov, Foi, Katkovnik & Egiazarian. Image denoising by sparse 3-D transform-domain collaborative
    filtering. IEEE Transactions on Image Processing 16(8), 2007.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import denoise
from backends import get_backend
from cli import run_main
from patches import psnr, similarity
from restoring import Task, restore


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = denoise.make_parser()
    parser.add_argument("--sigmas", type=float, nargs="+", default=[15.0, 25.0, 50.0])
    args = parser.parse_args(arguments)
    denoise.check(args)
    if args.smoke:
        args.latents, args.states, args.epochs, args.half = 8, 8, 1, args.half + 3
    backend = get_backend(args.backend, args.device)
    picture = denoise.halved(denoise.read_image(args.image, args.most_gigabytes), args.half)
    print("| noise | method | PSNR, dB | SSIM | CPU s |\n|---:|---|---:|---:|---:|")
    for sigma in args.sigmas:
        args.sigma = sigma
        task = denoise.make_task(picture, args)
        backend.seed(args.seed)
        for name, image, seconds in images(backend, task, args):
            alike = similarity(image, task.clean)
            print(
                f"| {args.sigma:g} | {name} | {psnr(image, task.clean):.2f} | "
                f"{'-' if alike is None else f'{alike:.3f}'} | {seconds:.1f} |",
                flush=True,
            )


def images(backend: Any, task: Task, args: Any) -> Iterator[tuple[str, np.ndarray, float]]:
    """What each method makes of the task, and in what time."""
    yield "noisy", task.given, 0.0
    restored, seconds = timed(lambda: restore(backend, task, args))
    yield "first stage", restored.pilot, seconds
    yield f"both, noise found {restored.sigma:.1f}", restored.image, seconds
    for name, method in (("non-local means", non_local_means), ("BM3D", block_matching)):
        try:
            found, seconds = timed(lambda method=method: method(task.given, args.sigma))
        except ImportError:
            continue
        yield name, found.reshape(task.given.shape), seconds


def timed(method: Callable[[], Any]) -> tuple[Any, float]:
    """A result and its CPU time."""
    start = time.process_time()
    return method(), time.process_time() - start


def non_local_means(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """scikit-image's, with its recommended strength."""
    from skimage.restoration import denoise_nl_means

    settings = {"patch_size": 5, "patch_distance": 6, "h": 0.8 * sigma, "sigma": sigma}
    return denoise_nl_means(noisy, **settings, fast_mode=False, channel_axis=-1)


def block_matching(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """The authors' package."""
    import bm3d

    if noisy.shape[-1] == 3:
        return bm3d.bm3d_rgb(noisy, sigma)
    return bm3d.bm3d(noisy[..., 0], sigma)


if __name__ == "__main__":
    run_main(main)
