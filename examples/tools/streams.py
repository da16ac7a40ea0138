"""Pictures of a folder in batches, read ahead by threads, where they do not fit into memory.

Neither package's loader: batches are NumPy arrays, which `fit` of both takes. Pillow decodes and
scales without Python's lock, so that threads are enough.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from data import Dataset
from folders import check_shape, find_pictures, read_picture_of

__all__ = ["PictureBatches", "load_stream"]

_SAMPLE = 4096  # training images in memory, for means, starts and the codes that are counted
_TESTS = 2048  # test images in memory
_AHEAD = 2  # batches that are read before they are asked for


class PictureBatches:
    """Batches of pictures in a new order in each epoch; what fills no batch is left out.

    Iterated again it begins an epoch, in an order drawn from Python's global generator: `fit`
    resumes in the middle of one.

    Args:
        paths: Of the pictures.
        size: Pixels of a side.
        batch_size: Pictures of a batch.
        workers: Threads that read.
        gigabytes: What one picture may unpack to.
        units: From pictures in [0, 1] to what the model is given.
        prepare: Called with a batch as it is read, to bring it on its way to a device.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: int | None,
        batch_size: int,
        *,
        workers: int,
        gigabytes: float,
        units: Callable[[np.ndarray], np.ndarray] = lambda images: images,
        prepare: Callable[[np.ndarray], Any] = lambda images: images,
    ) -> None:
        self.paths, self.size, self.batch_size = list(paths), size, batch_size
        self.workers, self.gigabytes = workers, gigabytes
        self._units, self._prepare = units, prepare

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.paths) // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        """Read a batch while those before it are used."""
        order = list(range(len(self.paths)))
        random.shuffle(order)
        starts = iter(range(0, len(self) * self.batch_size, self.batch_size))
        pool = ThreadPoolExecutor(self.workers)
        waiting: deque[list[Future[np.ndarray]]] = deque()
        try:
            while True:
                while len(waiting) < _AHEAD + 1 and (start := next(starts, None)) is not None:
                    rows = order[start : start + self.batch_size]
                    waiting.append([pool.submit(self._read, self.paths[row]) for row in rows])
                if not waiting:
                    return
                images = np.stack([picture.result() for picture in waiting.popleft()])
                yield self._prepare(self._units(images))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, path: Path) -> np.ndarray:
        image = read_picture_of(path, self.size, self.gigabytes)
        check_shape(image, path, self.size)
        return image


def load_stream(
    root: Path, size: int, *, seed: int, gigabytes: float
) -> tuple[Dataset, list[Path]]:
    """A sample of a folder's pictures in memory, and the paths of all that train.

    A tenth of the pictures is for testing, of which at most 2048 are read.

    Raises:
        ValueError: If there are too few, or one of the sample cannot be read.
    """
    paths = find_pictures(root)
    order = np.random.default_rng(seed).permutation(len(paths))
    num_test = max(1, round(0.1 * len(paths)))
    test, train = [paths[i] for i in order[:num_test]], [paths[i] for i in order[num_test:]]
    read = [
        np.stack([read_picture_of(path, size, gigabytes) for path in part])
        for part in (train[:_SAMPLE], test[:_TESTS])
    ]
    return Dataset(root.name, *read), train
