"""Is what is handed out whole? Wheel and sdist, in empty environments with one extra alone.

    python tests/package.py                  # all extras; some minutes and gigabytes
    python tests/package.py --extras numpyro

Builds both, has one installed into an environment of its own for each extra, and uses it there:
imports are silent (`-W error`, but for what the libraries warn of themselves), a model trains, a
type checker finds the types from outside, and a package whose extra is missing says which.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
BACKENDS = ("pyro", "numpyro")
EXTRAS = (*BACKENDS, "vision", "examples")
# What Torch, Pyro and JAX warn of when they are imported is theirs to mend.
THEIRS = "DeprecationWarning", "FutureWarning", "UserWarning"

USE = {
    "pyro": """
import pyro, torch
from pyro.infer import SVI
from pyro.optim import Adam
from pyro_dvae.diagnostics import posterior_gap
from pyro_dvae.fit import fit
from pyro_dvae.guides import IndependentGuide
from pyro_dvae.infer import DAPS_ELBO
from pyro_dvae.models import BernoulliLikelihood, BernoulliPrior, DiscreteVAE
from pyro_dvae.nets import MLPDecoder, MLPEncoder
x = torch.ones(20, 3)
model = DiscreteVAE(MLPDecoder(2, None, (3,)), BernoulliPrior(2), BernoulliLikelihood())
guide = IndependentGuide(MLPEncoder((3,), 2), binary=True)
svi = SVI(model, guide, Adam({"lr": 0.01}), loss=DAPS_ELBO())
print(posterior_gap(fit(svi, x, num_steps=3, progress=False), x))
""",
    "numpyro": """
import jax
from numpyro.optim import Adam
from numpyro_dvae.diagnostics import posterior_gap
from numpyro_dvae.fit import fit
from numpyro_dvae.guides import IndependentGuide
from numpyro_dvae.infer import DAPS_ELBO, SVI
from numpyro_dvae.models import BernoulliLikelihood, BernoulliPrior, DiscreteVAE
from numpyro_dvae.nets import MLPDecoder, MLPEncoder
x = jax.numpy.ones((20, 3))
model = DiscreteVAE(MLPDecoder(2, None, (3,)), BernoulliPrior(2), BernoulliLikelihood())
guide = IndependentGuide(MLPEncoder((3,), 2), binary=True)
svi = SVI(model, guide, Adam(0.01), loss=DAPS_ELBO())
key = jax.random.key(0)
print(posterior_gap(key, fit(key, svi, x, num_steps=3, progress=False), x))
""",
}
# Only our own types are looked at.
MYPY = """
[mypy]
ignore_missing_imports = True
[mypy-torch.*,pyro.*,jax.*,numpyro.*,flax.*,optax.*,orbax.*,arviz.*,numpy.*]
follow_imports = skip
"""
TYPED = """
from {package}.fit import exponential_schedule
schedule = exponential_schedule(1.0, 0.01, num_steps=100)
wrong: int = exponential_schedule(1.0, 0.01, num_steps=100)
"""


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command, and end with what it said if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(words)}\n{done.stdout}{done.stderr}")
    return done


def build(folder: Path) -> list[Path]:
    """Wheel and sdist; the wheel is made of the sdist."""
    if importlib.util.find_spec("build") is None:
        run(sys.executable, "-m", "pip", "install", "--quiet", "build", cwd=folder)
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return sorted(folder.iterdir())


def try_extra(extra: str, archive: Path, folder: Path) -> None:
    """Install an archive with one extra into an empty environment, and use it."""
    place = folder / f"with-{extra}"  # a folder `pyro` would be found as a package
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{archive}[{extra}]", cwd=folder)
    for backend in BACKENDS:
        if backend == extra:
            use(backend, python, folder)
        else:
            done = subprocess.run(
                [python, "-c", f"import {backend}_dvae"],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            line = (done.stderr.splitlines() or [""])[-1]
            assert f"pip install 'pyro-dvae[{backend}]'" in line, done.stderr
    print(f"{archive.name} with [{extra}]: whole")


def use(backend: str, python: Path, folder: Path) -> None:
    """Import quietly, train, check types from outside."""
    package = f"{backend}_dvae"
    quiet = ["-W", "error", *(w for kind in THEIRS for w in ("-W", f"default::{kind}"))]
    code = f"import {package}, {package}.diagnostics, {package}.infer; print({package}.__version__)"
    done = run(python, *quiet, "-c", code, cwd=folder)
    assert package not in done.stderr, done.stderr
    run(python, "-c", USE[backend], cwd=folder)
    run(python, "-m", "pip", "install", "--quiet", "mypy>=1.13", cwd=folder)
    program = folder / f"typed_{backend}.py"
    program.write_text(TYPED.format(package=package), encoding="utf-8")
    (folder / "mypy.ini").write_text(MYPY, encoding="utf-8")
    checked = subprocess.run(
        [python, "-m", "mypy", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in checked.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1, checked.stdout + checked.stderr
    assert "[assignment]" in errors[0], checked.stdout


def main() -> None:
    """Build, and try each extra: the sdist with the first, the wheel with the others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--extras", nargs="+", choices=EXTRAS, default=list(EXTRAS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dist").mkdir()
        wheel, sdist = build(folder / "dist")[::-1]
        if wheel.suffix != ".whl":
            wheel, sdist = sdist, wheel
        for place, extra in enumerate(options.extras):
            try_extra(extra, wheel if place else sdist, folder)


if __name__ == "__main__":
    main()
