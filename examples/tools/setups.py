"""What the arguments of train.py decide: data, sizes and settings, checked against each other."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from backends import QUANTIZERS, RELAXATIONS, Backend, get_backend
from cli import CommandError, open_folder
from configs import CONFIGS, Config
from data import NAMES, Dataset, load
from networks import HEADS
from sequences import load_sequences
from streams import PictureBatches, load_stream

__all__ = ["LIKELIHOODS", "Setup", "make_setup"]

LIKELIHOODS = ("auto", "bernoulli", "gaussian", *HEADS)
_SMOKE = {"num_steps": 12, "batch_size": 16}
_OVERRIDES = {  # argument -> field of the config
    "steps": "num_steps",
    "batch_size": "batch_size",
    "num_particles": "num_particles",
    "num_latents": "num_latents",
    "num_codes": "num_codes",
    "num_states": "num_states",
    "prior": "prior",
    "guide": "guide",
    "likelihood": "likelihood",
    "binarize": "binarize",
    "start": "start",
    "beta_from": "beta_from",
    "beta_to": "beta_to",
    "learning_rate": "learning_rate",
    "decay": "decay",
    "schedule": "schedule",
    "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
    "clip_norm": "clip_norm",
    "clip_units": "clip_units",
    "accumulate": "accumulate",
    "average": "average",
    "frames": "frames",
    "half": "half",
    "recompute": "recompute",
    "second_stage_steps": "second_stage_steps",
}


class Setup(NamedTuple):
    """Everything that the arguments decide."""

    backend: Backend
    config: Config
    data: Dataset
    method: str
    out: Path
    stream: PictureBatches | None = None  # of the training images, of which `data` is a sample


def make_setup(args: Any) -> Setup:
    """Check the arguments and load the data."""
    if not 0 <= args.seed < 2**32:
        raise CommandError(f"--seed must lie between 0 and {2**32 - 1}, got {args.seed}")
    backend = get_backend(args.backend, args.device)
    data, paths = backend.first_of_all(lambda: load_data(args))
    if args.test_images:
        data = data.fewer_tests(args.test_images)
    name = args.config or (data.name if data.name in CONFIGS else None)
    if args.config is None and name and CONFIGS[name].frames:
        name = None  # images in a file of that name
    config = CONFIGS[name] if name else Config()
    if args.method in QUANTIZERS and not name and args.num_latents is None:
        config = config.on_grid(data.x_train.shape[1:])
    given = {field: getattr(args, argument) for argument, field in _OVERRIDES.items()}
    config = config._replace(**{key: value for key, value in given.items() if value is not None})
    config = config.trained_by(args.method)
    if args.second_stage_steps is None and not config.has_second_stage(args.method):
        config = config._replace(second_stage_steps=0)
    if args.smoke:
        paths = paths and paths[:64]
        data, config = data.head(64, 32), config._replace(**_SMOKE)
    if config.likelihood == "auto":
        is_binary = data.binary or config.binarize == "dynamic"
        config = config._replace(likelihood="bernoulli" if is_binary else "gaussian")
    if config.frames is None:
        data = in_units(data, config)
    if config.likelihood in HEADS:
        data = data.with_channels()
    if args.method in QUANTIZERS:
        config = config._replace(guide=args.method)
    num_train = len(paths or data.x_train)
    if config.batch_size > num_train:
        raise CommandError(
            f"--batch-size {config.batch_size}: there are only {num_train} training images"
        )
    check_method(args, config)
    stream = make_stream(args, config, data, paths, backend) if paths else None
    out = args.out or Path("runs") / f"{data.name}-{args.method}-{args.seed}"
    return Setup(backend, config, data, args.method, open_folder(out), stream)


def make_stream(
    args: Any, config: Config, data: Dataset, paths: list[Path], backend: Backend
) -> PictureBatches:
    """Batches of the pictures, as the likelihood takes them."""
    if config.likelihood == "bernoulli":
        raise CommandError("--workers: pixels are binarized in memory alone; choose --likelihood")
    if args.method == "truncated":
        raise CommandError("--workers: --method truncated keeps states of images in memory")
    reading = {"workers": args.workers, "gigabytes": args.most_gigabytes}
    units = partial(to_units, likelihood=config.likelihood, offset=data.offset, scale=data.scale)
    return PictureBatches(
        paths, args.image_size, config.batch_size, units=units, prepare=backend.ahead, **reading
    )


def to_units(images: np.ndarray, *, likelihood: str, offset: Any, scale: float) -> np.ndarray:
    """Images in [0, 1] in the units of a `Dataset`."""
    images = np.round(255 * images) if likelihood == "logistic" else (images - offset) / scale
    return images.astype(np.float32)


def _check_folder(data: str, option: str) -> None:
    if not Path(data).is_dir():
        found = "is none" if data in NAMES or Path(data).exists() else "does not exist"
        raise CommandError(f"{option} is an option of a folder of pictures; --data {data} {found}")


def load_data(args: Any) -> tuple[Dataset, list[Path] | None]:
    """Images, or sequences where the config is one of them; paths of those read as needed."""
    frames = CONFIGS[args.config].frames if args.config else None
    if frames is None:
        if args.frames:
            raise CommandError("--frames is an option of sequences, as of --config motion")
        found = {"gigabytes": args.most_gigabytes, "seed": args.seed}
        if args.image_size:
            _check_folder(args.data, "--image-size")
        if args.workers is None:
            return load(args.data, args.data_root, size=args.image_size, **found), None
        _check_folder(args.data, "--workers")
        if args.image_size is None:
            raise CommandError("--workers needs --image-size: all pictures of one size")
        return load_stream(Path(args.data), args.image_size, **found)
    if args.likelihood in ("bernoulli", "logistic") or args.binarize:
        raise CommandError("--likelihood must be gaussian or gaussian_heads: sequences are real")
    if args.workers or args.flip or args.crop:
        raise CommandError("--workers, --flip and --crop are options of images")
    found = {"gigabytes": args.most_gigabytes, "seed": args.seed}
    return load_sequences(args.data, args.frames or frames, **found), None


def in_units(data: Dataset, config: Config) -> Dataset:
    """Images as the likelihood takes them."""
    if config.likelihood == "bernoulli":
        return data.drawn() if config.binarize == "dynamic" else data.binarized()
    if config.likelihood == "logistic":
        return data.in_bytes()
    return data.standardized() if config.standardize else data


def check_method(args: Any, config: Config) -> None:
    """Whether method, networks, guide, prior and likelihood go together."""
    method, binary = args.method, config.prior == "bernoulli"
    has_layers = config.decoder in ("conv", "sequence")
    if not has_layers and "autoregressive" not in (config.guide, config.prior):
        for name in ("half", "recompute"):
            if getattr(config, name):
                raise CommandError(f"--{name} is an option of transformers and convolutions")
    if method in RELAXATIONS and config.guide == "autoregressive":
        raise CommandError(f"--method {method} needs --guide independent: one draw per code")
    if method in RELAXATIONS and config.prior == "autoregressive":
        raise CommandError(f"--method {method} needs another --prior: this one is of whole codes")
    if method == "truncated":
        if args.guide is not None:
            raise CommandError(f"--guide {args.guide}: --method truncated has no encoder")
        if config.second_stage_steps:
            raise CommandError("--second-stage-steps needs an encoder; --method truncated has none")
        if config.binarize == "dynamic":
            raise CommandError(
                "--binarize dynamic: --method truncated keeps states of fixed images"
            )
    elif args.num_states:
        raise CommandError("--num-states is an option of --method truncated")
    if binary and config.decoder == "sequence":
        raise CommandError("--prior bernoulli: the latents of sequences are codes")
    if binary and config.guide == "autoregressive":
        raise CommandError("--prior bernoulli needs --guide independent: its latents are binary")
    if method == "disarm" and not binary:
        raise CommandError("--method disarm needs --prior bernoulli: its latents are binary")
    if method in QUANTIZERS and args.guide:
        raise CommandError(f"--method {method} has a guide of its own: leave out --guide")
    if method in QUANTIZERS and binary:
        raise CommandError(f"--method {method} needs another --prior: its latents are codes")
    if config.second_stage_steps and config.prior in ("bernoulli", "autoregressive"):
        raise CommandError("--second-stage-steps needs --prior uniform or categorical")
    if config.binarize == "dynamic" and config.likelihood != "bernoulli":
        raise CommandError("--binarize dynamic needs --likelihood bernoulli")
    for name in ("learning_rate", "beta_from", "beta_to", "decay", "clip_norm", "clip_units"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise CommandError(
                f"--{name.replace('_', '-')} must be positive, got {getattr(config, name)}"
            )
