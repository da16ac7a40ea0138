"""Train a discrete VAE on images by a method of your choice; one command line for both packages.

Writes a checkpoint, a log, pictures and metrics to a folder, and ends with one line of JSON.

    python examples/tools/train.py --method daps --data digits
    python examples/tools/train.py --method reinforce --data images.npz --out runs/mine --resume
    torchrun --nproc-per-node=2 examples/tools/train.py --method daps
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from backends import METHODS, QUANTIZERS, Programs
from cli import CommandError, Parser, finish, positive, run_main
from configs import CONFIGS
from data import NAMES
from out_of_memory import memory_explained
from pictures import save_curves, save_reconstructions, save_samples
from quality import check_extractor, epoch_usage, load_extractor, quality
from second_stage import fit_prior
from setups import LIKELIHOODS, Setup, make_setup
from untrusted import GIGABYTES

ARGUMENTS = "arguments.json"
_ONLY_DAPS = "target_ess", "kl_bound", "closed_form_entropy"
_FREE = {  # arguments that may change when a run goes on; `fit` looks at what depends on `steps`
    "resume",
    "json",
    "out",
    "device",
    "data_root",
    "most_gigabytes",
    "steps",
    "eval_every",
    "checkpoint_every",
    "test_images",
    "iwae_particles",
    "fid_features",
    "usage_images",
    "workers",
    "capture",
    "second_stage_steps",
}


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, out=None)
    add = parser.add_argument
    add("--method", choices=list(METHODS), default="daps")
    add("--data", default="digits", metavar="|".join((*NAMES, "PATH.npz", "FOLDER")), help="images")
    add("--image-size", type=positive, help="pixels of a side, of pictures in a folder")
    add("--frames", type=positive, help="of a window, where the data are sequences")
    add("--data-root", type=Path, default=Path("data"), help="where downloads are kept")
    add("--config", choices=list(CONFIGS), help="sizes and settings; default: that of the data")
    add_model_arguments(add)
    add_training_arguments(add)
    add("--test-images", type=positive, help="test on so many of them; default: all")
    add("--fid-features", metavar="NAME|MODULE:FUNCTION", help="torchvision's network, for FID")
    add("--usage-images", type=positive, default=50_000, help="whose codes are counted at most")
    add("--iwae-particles", type=positive, default=64, help="draws for the test metrics")
    add("--eval-every", type=positive, default=1000, help="steps between evaluations")
    add("--checkpoint-every", type=positive, default=1000, help="steps between checkpoints")
    add("--most-gigabytes", type=float, default=GIGABYTES, help="that PATH.npz may unpack to")
    add("--capture", action="store_true", help="pyro: networks compiled by torch.compile")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    return parser


def add_model_arguments(add: Callable[..., Any]) -> None:
    """Latents, prior, guide and likelihood."""
    add("--num-latents", type=positive, help="latents per image")
    add("--num-codes", type=positive, help="values of a latent")
    add("--num-states", type=positive, help="truncated: states that are kept per image")
    add(
        "--prior",
        choices=["uniform", "categorical", "autoregressive", "bernoulli"],
        help="learnt but for uniform; bernoulli: binary latents",
    )
    add("--second-stage-steps", type=positive, help="then fit an autoregressive prior to the codes")
    add("--guide", choices=["independent", "autoregressive"])
    add("--likelihood", choices=LIKELIHOODS, help="bernoulli: binarized data")
    flag = {"action": "store_true", "default": None}
    add("--half", **flag, help="transformers and convolutions in bfloat16; weights in float32")
    add("--recompute", **flag, help="their activations again for gradients: less memory")
    add("--binarize", choices=["threshold", "dynamic"], help="dynamic: drawn anew at every step")
    add("--start", choices=["zero", "mean"], help="outputs of the decoder at first; mean: image")


def add_training_arguments(add: Callable[..., Any]) -> None:
    """Steps, draws, rates, and what one method alone takes."""
    add("--steps", type=positive, help="steps in all")
    add("--flip", action="store_true", help="turn training images left to right at random")
    add("--crop", type=positive, metavar="PIXELS", help="move them at random by at most so many")
    add("--workers", type=positive, help="threads that read a folder's pictures as needed")
    add("--batch-size", type=positive, help="images per step")
    add("--num-particles", type=positive, help="draws of the latents per image, K")
    add("--learning-rate", type=float)
    add("--decay", type=float, help="of the learning rate over all steps, as part of itself")
    add("--schedule", choices=["exponential", "linear", "cosine"], help="how it falls")
    add("--warmup-steps", type=positive, help="in which it grows from 0")
    add("--weight-decay", type=float, help="of AdamW")
    add("--clip-norm", type=float, help="of the whole gradient")
    add(
        "--clip-units", type=float, help="of a unit's gradient, in norms of its weights; 1 is usual"
    )
    add("--accumulate", type=positive, help="steps whose gradients make one update")
    add("--average", type=float, help="decay of averages of the weights, which are tested; 0.999")
    add("--beta-from", type=float, help="weight of the rate at the start")
    add("--beta-to", type=float, help="weight of the rate at the end of the schedule")
    add("--beta-steps", type=positive, help="length of the schedule; default: --steps")
    add("--target-ess", type=float, help="daps: effective sample size to reach, as part of K")
    add(
        "--closed-form-entropy",
        action="store_true",
        default=None,
        help="daps: the entropy beside the weights, not in them; for small beta",
    )
    add("--kl-bound", type=float, help="daps: trust region in nats, instead of --target-ess")
    add("--commitment", type=float, help="vq: how hard the encoder is held to its codes")


def main(arguments: list[str]) -> None:
    """Train, evaluate, draw."""
    args = make_parser().parse_args(arguments)
    extractor = load_extractor(args.fid_features) if args.fid_features else None
    setup = make_setup(args)
    backend = setup.backend
    check_extractor(args.fid_features, extractor, setup.config.frames)
    if args.resume:
        check_arguments(args, setup.out)
    backend.seed(args.seed)
    loss = make_loss(args, setup)
    with memory_explained(setup.config, None):
        model, guide = backend.make_vae(setup.config, setup.data.x_train)
    if not args.resume and backend.is_first:
        with backend.module("fit.files").folder_of_run(setup.out):  # no other run is in it
            save_arguments(args, setup.out)
    start = time.process_time()
    with memory_explained(setup.config, num_draws(setup)):
        result = train(args, setup, model, guide, loss)
    cpu_seconds = time.process_time() - start
    if not backend.goes_on_alone():
        return
    save_arguments(args, setup.out)
    num_particles = 8 if args.smoke else args.iwae_particles
    found = evaluate(setup, model, guide, num_particles)
    if setup.config.frames is None:
        found |= quality(backend, model, guide, setup.data, extractor)
    found |= epoch_usage(setup, guide, args.usage_images)
    if setup.config.second_stage_steps:
        model = fit_prior(setup, model, guide, args)
        second = evaluate(setup, model, guide, num_particles)
        names = ("elbo", "beta_elbo", "iwae", "rate_bits", "bits_per_dim")
        found |= {f"second_stage_{name}": second[name] for name in names if name in second}
    draw(setup, model, guide, result)
    steps_per_second = result.num_steps / result.seconds
    found |= {"seconds": result.seconds, "steps_per_second": steps_per_second}
    found |= {"cpu_seconds": cpu_seconds}  # of this process, with what compiles
    found |= {"steps": result.num_steps, "num_particles": num_draws(setup)}
    found |= {"method": setup.method, "backend": backend.name, "seed": args.seed}
    found |= {"data": setup.data.name, "device": str(backend.device), "out": setup.out}
    finish(found, setup.out, show=True, name="metrics.json")


def train(args: Any, setup: Setup, model: Any, guide: Any, loss: Any) -> Any:
    """What `fit` makes of the training images."""
    config = setup.config
    return train_with(
        args,
        setup,
        (model, guide, loss),
        eval_data=setup.data.x_test[:1000] if config.amortized else None,
        num_steps=config.num_steps,
        folder=setup.out,
        resume=args.resume,
        eval_every=args.eval_every,
        checkpoint_every=args.checkpoint_every,
        capture=args.capture,
        log_every=5 if args.smoke else 50,
    )


def train_with(args: Any, setup: Setup, programs: Programs, **settings: Any) -> Any:
    """Train as the arguments say; `settings` are those of `fit` that they do not decide."""
    backend, config, (model, guide, loss) = setup.backend, setup.config, programs
    data = backend.inputs(guide, setup.data.x_train) if setup.stream is None else (setup.stream,)
    changes = {"flip": args.flip, "crop": args.crop, "binarize": config.binarize == "dynamic"}
    return backend.train(
        *backend.programs(setup.method, model, guide, config.num_steps),
        loss,
        *data,
        learning_rate=config.learning_rate,
        decay=config.decay,
        optimiser=config.optimiser(),
        batch_size=config.batch_size if setup.stream is None else None,
        transform=backend.transform(**changes),
        **settings,
    )


def save_arguments(args: Any, out: Path) -> None:
    """Keep what the run was asked for, with which `diagnose.py` makes it again."""
    plain = {key: str(v) if isinstance(v, Path) else v for key, v in vars(args).items()}
    (out / ARGUMENTS).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def load_arguments(out: Path) -> Any:
    """The arguments of a run, those that came later at their defaults."""
    parser = make_parser()
    try:
        plain = json.loads((out / ARGUMENTS).read_text(encoding="utf-8"))
        args = parser.parse_args(_as_options(parser, plain))
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"{out}: is not a folder of train.py's ({error})") from None
    except CommandError as error:
        raise CommandError(f"{out / ARGUMENTS}: {error}") from None
    args.out = out
    return args


def _as_options(parser: Parser, plain: Any) -> list[str]:
    """Saved arguments as they would stand on a command line, so that they are checked as there."""
    if not isinstance(plain, dict):
        raise CommandError("holds no arguments by name")
    options = {action.dest: action for action in parser._actions if action.option_strings}
    if unknown := sorted(plain.keys() - options.keys()):
        raise CommandError(f"train.py has no argument {unknown[0]!r}")
    found = []
    for name, value in plain.items():
        if options[name].nargs == 0:  # a flag
            if value not in (True, False, None):
                raise CommandError(f"{name} must be true or false, got {value!r}")
            found += [options[name].option_strings[0]] if value else []
        elif isinstance(value, list | dict | bool):
            raise CommandError(f"{name} must be a string or a number, got {value!r}")
        elif value is not None:
            found.append(f"{options[name].option_strings[0]}={value}")
    return found


def check_arguments(args: Any, out: Path) -> None:
    """Whether a run that goes on is asked for what it began with."""
    if not (out / ARGUMENTS).exists():
        return  # `fit` says what is missing
    before = vars(load_arguments(out))
    for name, value in vars(args).items():
        if name not in _FREE and value != before[name]:
            option = f"--{name.replace('_', '-')}"
            raise CommandError(
                f"--resume: {option} is {_given(value)}, but the run in {out} has "
                f"{option} {_given(before[name])}; resume with that, or choose another --out"
            )


def _given(value: Any) -> str:
    return "not given" if value is None else str(value)


def make_loss(args: Any, setup: Setup) -> Any:
    """The loss of the method, with the options that it takes."""
    config, backend = setup.config, setup.backend
    only_daps = {name: getattr(args, name) for name in _ONLY_DAPS}
    if args.method != "daps" and (given := [k for k, v in only_daps.items() if v is not None]):
        raise CommandError(f"--{given[0].replace('_', '-')} is an option of --method daps")
    if args.method not in QUANTIZERS and args.commitment is not None:
        raise CommandError(f"--commitment is an option of --method {', '.join(QUANTIZERS)}")
    if args.commitment is not None and not args.commitment >= 0:
        raise CommandError(f"--commitment must not be negative, got {args.commitment}")
    num_steps = args.beta_steps or config.num_steps
    options = {"beta": backend.schedule(config.beta_from, config.beta_to, num_steps)}
    if args.method not in (*QUANTIZERS, "exact", "truncated"):
        options["num_particles"] = config.num_particles
    if args.method == "daps":
        if args.kl_bound is None and args.target_ess is None:
            only_daps["target_ess"] = config.target_ess
        options |= only_daps
    if args.commitment is not None:
        options["commitment"] = args.commitment
    return backend.make_loss(args.method, **options)


def num_draws(setup: Setup) -> int:
    """Draws of the latents per image and step; a quantising guide has but one state."""
    return 1 if setup.method in QUANTIZERS else setup.config.num_particles


def evaluate(setup: Setup, model: Any, guide: Any, num_particles: int) -> dict[str, float]:
    """Metrics on the test images."""
    data, config = setup.data, setup.config
    found = setup.backend.evaluate(
        model,
        guide,
        data.x_test,
        num_particles=num_particles,
        beta=config.beta_to,
        data_range=1 / data.scale,
    )
    if config.likelihood == "logistic":
        found["bits_per_dim"] = -found["iwae"] / (data.x_test[0].size * np.log(2.0))
    return found


def draw(setup: Setup, model: Any, guide: Any, result: Any) -> None:
    """Reconstructions, samples and curves."""
    backend, shown, to_unit = setup.backend, setup.data.x_test[:32], setup.data.to_unit
    found = backend.reconstruct(model, guide, shown)
    save_reconstructions(setup.out / "reconstructions.png", to_unit(shown), to_unit(found))
    save_samples(setup.out / "samples.png", to_unit(np.asarray(backend.sample(model, 64))))
    per_loss = setup.config.batch_size if setup.config.amortized else len(setup.data.x_train)
    save_curves(setup.out / "curves.png", result.history, per_loss)


if __name__ == "__main__":
    run_main(main)
