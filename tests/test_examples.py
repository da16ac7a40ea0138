"""Examples beside the training script run and end with JSON; what they print is right."""

import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

sys.path[:0] = [str(EXAMPLES / "tools"), str(EXAMPLES / "benchmarks")]

from data import load  # noqa: E402
from quiet import arviz, call_all, group_names  # noqa: E402
from run_examples import BOTH, output_of, result_of, run  # noqa: E402
from scipy.stats import norm  # noqa: E402

__all__ = ["output_of", "result_of"]  # fixtures


def states_of(num_latents):
    return np.array(list(itertools.product([0.0, 1.0], repeat=num_latents)))


def log_mean(densities, weights):
    """Log-likelihood per datum of a mixture: densities ``(N, states)``."""
    return np.log(densities @ weights).mean()


def bars_of_truth(num_data):
    """Log-likelihood per image of the parameters that made the data, state by state."""
    import bars

    shapes, states = bars.make_bars(8), states_of(8)
    images = bars.draw_images(shapes, num_data, 0.1, seed=0)
    means = np.einsum("sh,hij->sij", states, shapes)
    densities = norm.pdf(images[:, None], means, 0.1).prod((2, 3))
    return log_mean(densities, np.where(states, 0.25, 0.75).prod(1))


@pytest.mark.parametrize("backend", BOTH)
def test_bars(result_of, tmp_path, backend):
    settings = ("--backend", backend, "--json", "--out", tmp_path)
    result = result_of("bars.py", "--smoke", *settings)
    truth = bars_of_truth(50)
    assert result["log_likelihood"] - result["gap"] == pytest.approx(truth, abs=1e-3)
    assert -30.0 < result["gap"] < 0.0  # four epochs; one Gaussian for all pixels has -24.8
    assert Path(result["picture"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_bars_are_found(result_of, tmp_path, backend):
    """All of them, and noise and chances fitted to the images: the truth is a little behind."""
    result = result_of("bars.py", "--backend", backend, "--json", "--out", tmp_path)
    assert 0.1 < result["gap"] < 0.3
    assert result["sigma"] == pytest.approx(0.1, abs=0.005)


def noisy_or_of_truth(num_causes, num_patients):
    """Log-likelihood per patient of the network that made the symptoms, in plain products."""
    import noisy_or

    rng = np.random.default_rng(0)
    truth = noisy_or.make_network(rng, num_causes, 24)
    symptoms, causes = noisy_or.simulate(rng, truth, num_patients), states_of(num_causes)
    absent = (1 - truth.leak) * np.prod(1 - causes[:, :, None] * truth.weight, axis=1)
    densities = np.where(symptoms[:, None], 1 - absent, absent).prod(-1)
    return log_mean(densities, np.where(causes, truth.prior, 1 - truth.prior).prod(1))


@pytest.mark.parametrize("backend", BOTH)
def test_noisy_or(result_of, tmp_path, backend):
    settings = ("--backend", backend, "--json", "--out", tmp_path)
    result = result_of("noisy_or.py", "--smoke", *settings)
    truth = noisy_or_of_truth(3, 2000)
    assert result["log_likelihood"] - result["gap"] == pytest.approx(truth, abs=1e-3)
    assert -2.7 < result["gap"] < 0.0  # ten steps, from -3.0 or less
    assert Path(result["picture"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_noisy_or_learns_the_network(result_of, tmp_path, backend):
    result = result_of("noisy_or.py", "--backend", backend, "--json", "--out", tmp_path)
    assert -0.15 < result["gap"] < 0.1
    bounds = {"prior": 0.03, "leak": 0.03, "weight": 0.05}
    assert all(result["mean_error"][name] < bound for name, bound in bounds.items())


@pytest.mark.parametrize(
    ("backend", "sigma"), [("pyro", "0"), pytest.param("numpyro", "20", marks=pytest.mark.slow)]
)
def test_denoise(result_of, tmp_path, backend, sigma):
    from skimage import io

    gray = np.kron(np.eye(4, dtype=np.uint8), np.full((6, 6), 200, np.uint8))
    io.imsave(tmp_path / "mine.png", np.stack([gray, gray // 2, 0 * gray], -1))
    settings = ("--missing", "0.3", "--sigma", sigma, "--epochs", "2", "--latents", "8")
    settings = (*settings, "--states", "8", "--backend", backend, "--json", "--out", tmp_path)
    result = result_of("denoise.py", tmp_path / "mine.png", *settings)
    assert 15.0 < result["psnr_noisy"] < result["psnr_pilot"] - 5.0 < result["psnr"] - 5.0
    assert 0.0 < result["ssim_noisy"] < result["ssim_pilot"] < result["ssim"] < 1.0
    assert (result["sigma_found"] == 0.0) == (sigma == "0")  # holes alone: no noise to be found
    assert Path(result["picture"]).exists()
    restored = io.imread(result["restored"])
    assert (restored.shape, restored.dtype) == ((24, 24, 3), np.uint8)


def test_denoise_takes_a_noisy_picture_as_it_is(result_of, tmp_path):
    """Of 16 bits, in tiles, with a stride, and a noise level that is known."""
    from skimage import io

    rng = np.random.default_rng(0)
    clean = np.kron(np.eye(4), np.full((10, 10), 30000.0)) + 10000
    noisy = clean + 2570 * rng.standard_normal(clean.shape)  # 10 on the scale to 255
    io.imsave(tmp_path / "photo.png", noisy.astype(np.uint16), check_contrast=False)
    settings = ("--tile", "32", "--stride", "2", "--sigma-known", "10", "--epochs", "2")
    settings = (*settings, "--latents", "8", "--states", "8", "--json", "--out", tmp_path)
    result = result_of("denoise.py", tmp_path / "photo.png", "--noisy", *settings)
    restored = io.imread(result["restored"])
    assert (restored.shape, restored.dtype) == ((40, 40), np.uint16)
    errors = [np.square(image - clean).mean() for image in (restored.astype(float), noisy)]
    assert errors[0] < 0.5 * errors[1]
    assert result["sigma_found"] == 10.0


def test_denoise_says_what_it_cannot_read(tmp_path):
    (tmp_path / "mine.png").write_text("no image")
    done = run("denoise.py", tmp_path / "mine.png", "--out", tmp_path)
    assert done.returncode == 2
    assert "mine.png: cannot be read as an image" in done.stderr
    assert len(done.stderr.splitlines()) == 1


ON_DEMAND = {"straight_through_gumbel", "vq_gradient"}
RELAXED = {"gumbel", "straight_through", "reinmax", "gr_mck"}
METHODS = {"daps", "reinforce", "vimco", "wake_sleep", "vq", "fsq", "exact", "truncated"} | RELAXED


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(
            ["--methods", "daps", "exact", "gumbel", "truncated"],
            {"daps", "exact", "gumbel", "truncated"},
            marks=pytest.mark.slow,
            id="one of a kind",
        ),
        pytest.param([], METHODS, marks=pytest.mark.slow, id="all"),
        pytest.param(
            ["--methods", *sorted(ON_DEMAND)], ON_DEMAND, marks=pytest.mark.slow, id="on demand"
        ),
    ],
)
def test_compare(result_of, tmp_path, options, expected):
    result = result_of("compare.py", "--smoke", "--json", "--out", tmp_path, *options)
    assert set(result["methods"]) == expected
    assert Path(result["picture"]).exists()
    for method in result["methods"]:
        idata = arviz.from_netcdf(str(tmp_path / f"{method}.nc"))
        assert {"posterior", "posterior_predictive", "log_likelihood"} <= group_names(idata)
    call_all(idata, observed="x", latent="z", some={"data": [0, 1]})
    check_codes(result["methods"])


def check_codes(methods):
    """After forty steps codes explain test images better than their mean, near which all start.

    VIMCO and wake-sleep, which ascend another bound, come later to it.
    """
    data = load("digits", seed=0).head(128, 32)
    start = norm.logpdf(data.x_test, data.x_train.mean(0), np.sqrt(0.1)).sum((1, 2)).mean()
    for method, row in methods.items():
        assert row["elbo"] <= row["iwae"] + 1e-4
        late = 3.0 if method in ("vimco", "wake_sleep") else 0.0
        assert row["elbo"] + row["rate_bits"] * np.log(2) > start - late, method


@pytest.mark.slow
def test_compare_on_the_sibling(result_of, tmp_path):
    settings = ("--backend", "numpyro", "--methods", "daps", "--out", tmp_path)
    result = result_of("compare.py", "--smoke", "--json", *settings)
    assert result["backend"] == "numpyro"
    check_codes(result["methods"])


@pytest.mark.parametrize("backend", BOTH)
def test_gradient_quality(result_of, tmp_path, backend):
    settings = ("--backend", backend, "--data", "digits", "--estimators", "disarm", "gumbel")
    settings = (*settings, "--json", "--out", tmp_path)
    result = result_of("gradient_quality.py", "--smoke", *settings)
    disarm, gumbel = result["estimators"]["disarm"], result["estimators"]["gumbel"]
    assert abs(disarm["squared_bias"]) < 6 * disarm["squared_bias_error"]
    assert 0 < disarm["cosine_of_one"] < gumbel["cosine_of_mean"] < 1.1
    assert (tmp_path / "gradient_quality.png").exists()


def test_squared_lengths_are_unbiased():
    from gradient_quality import squared_length

    rng, mean = np.random.default_rng(0), np.array([0.3, -0.1, 0.0])
    found = np.array([squared_length(mean + rng.normal(size=(10, 3))) for _ in range(2000)])
    lengths, errors = found.T
    spread = lengths.std()
    assert abs(lengths.mean() - mean @ mean) < 5 * spread / np.sqrt(2000)
    assert 1.0 < np.sqrt((errors**2).mean()) / spread < np.sqrt(2)
    naive = mean @ mean + 3 / 10  # negative control: of the mean of ten
    assert abs(lengths.mean() - naive) > 5 * spread / np.sqrt(2000)


def test_a_library_to_run_beside_that_is_missing_is_named(monkeypatch):
    from beside import tvo_step

    monkeypatch.setitem(sys.modules, "tvo", None)
    sizes = {"num_states": 4, "parents": 2, "children": 1, "generations": 1}
    with pytest.raises(SystemExit, match=r"^error: --beside tvo: cannot import .*\btvo\b.*from$"):
        tvo_step(np.zeros((3, 2)), 4, **sizes)


@pytest.mark.slow
def test_league(output_of, tmp_path):
    settings = ("--smoke", "--data", "digits", "--json", "--out", tmp_path)
    settings = (*settings, "--methods", "vq", "disarm", "reinforce", "--backend", "pyro")
    first = output_of("league.py", *settings)
    result = json.loads(first.splitlines()[-1])["boards"]
    assert {name: set(rows) for name, rows in result.items()} == {
        "binary": {"disarm", "reinforce"},
        "codes": {"vq", "reinforce"},
    }
    assert "| `vq` | 1 |" in first
    again = output_of("league.py", *settings)
    assert json.loads(again.splitlines()[-1])["boards"] == result
    assert len(again.splitlines()) < len(first.splitlines())  # nothing was run


@pytest.mark.parametrize(
    "backend_name", ["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)]
)
def test_diagnose(result_of, tmp_path, backend_name):
    settings = ("--num-latents", "2", "--num-codes", "3", "--backend", backend_name)
    result_of("train.py", "--smoke", "--out", tmp_path / "run", *settings)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    result = result_of("diagnose.py", tmp_path / "run", "--smoke", "--json")
    assert (result["backend"], result["method"]) == (backend_name, "daps")
    assert result["elbo"] < result["iwae"]
    assert abs(result["log_evidence"] - result["gap"] - result["elbo"]) < 2.0
    out = tmp_path / "run" / "diagnosis"
    page = (out / "index.html").read_text()
    pictures = re.findall(r'<img src="([\w.]+)"', page)
    assert len(pictures) == 9
    assert all((out / picture).stat().st_size > 5000 for picture in pictures)
    assert (out / "idata.nc").exists()
    assert (tmp_path / "run" / "log.jsonl").read_text() == log


@pytest.mark.slow
@pytest.mark.parametrize("backend_name", ["pyro", "numpyro"])
def test_diagnose_a_truncated_posterior(result_of, tmp_path, backend_name):
    settings = ("--num-latents", "2", "--num-codes", "3", "--num-states", "9")
    settings = (*settings, "--method", "truncated", "--backend", backend_name)
    result_of("train.py", "--smoke", "--out", tmp_path / "run", *settings)
    result = result_of("diagnose.py", tmp_path / "run", "--smoke", "--json")
    assert result["gap"] == pytest.approx(0.0, abs=1e-4)  # all states are kept
    assert result["elbo"] == pytest.approx(result["log_evidence"], rel=1e-5)
    assert (tmp_path / "run" / "diagnosis" / "idata.nc").exists()
