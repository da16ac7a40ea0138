"""The site: its programs run, its pages of methods have one shape, and what they say is there.

Tutorials run when the site is built (`make docs`).
"""

import inspect
import re
import sys
import warnings
from pathlib import Path

import pytest
from documents import METHODS, PAGES, programs, run_blocks, table

ROOT = Path(__file__).parents[1]
SHAPE = [
    "What it is for",
    "Advantages",
    "Limits",
    "The formula",
    "Symbols",
    "Guarantees",
    "Cost",
    "Options",
    "In use",
    "Reference",
]
OF = {
    "daps": "infer.DAPS_ELBO",
    "reinforce": "infer.Reinforce_ELBO",
    "vimco": "infer.VIMCO_ELBO",
    "disarm": "infer.DisARM_ELBO",
    "wake_sleep": "infer.WakeSleep_ELBO",
    "exact": "infer.Exact_ELBO",
    "truncated": "infer.Truncated_ELBO",
    "quantisation": "infer.VQ_ELBO",
    "relaxations": "infer.relax",
    "automatic": "guides.AutoDiscrete",
}
by_page = pytest.mark.parametrize("page", METHODS, ids=lambda path: path.stem)


def text_of(page):
    return page.read_text(encoding="utf-8")


def source(package):
    return "\n".join(text_of(path) for path in sorted((ROOT / package).rglob("*.py")))


# Pages of methods


def test_every_algorithm_has_a_page():
    from_init = re.findall(r'"(\w+_ELBO|relax)"', text_of(ROOT / "pyro_dvae/infer/__init__.py"))
    wanted = {f"infer.{name}" for name in from_init} - {"infer.ParticleELBO"}
    assert set(OF.values()) == wanted | {"guides.AutoDiscrete"}
    assert {page.stem for page in METHODS} == set(OF)


@by_page
def test_a_page_has_the_shape_of_all(page):
    assert re.findall(r"^## (.*)$", text_of(page), re.MULTILINE) == SHAPE


@by_page
def test_its_options_are_those_of_the_signature(page, backend):
    target = backend.module(OF[page.stem].partition(".")[0])
    signature = inspect.signature(getattr(target, OF[page.stem].partition(".")[2]))
    told = {row[0].strip("`"): row[1].strip("`") for row in table(text_of(page), "## Options")}
    assert list(told) == [name for name in signature.parameters if name != "rng_key"]
    for name, default in told.items():
        found = signature.parameters[name].default
        assert default == ("" if found is inspect.Parameter.empty else repr(found)), name


@by_page
def test_its_symbols_are_in_the_code_of_both(page):
    sources = [source("pyro_dvae"), source("numpyro_dvae")]
    rows = table(text_of(page), "## Symbols")
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row[2])]
    assert len(rows) >= 3
    for name in names:
        assert all(re.search(rf"\b{name}\b", text) for text in sources), name


@by_page
def test_its_guarantees_are_tests(page):
    rows = table(text_of(page), "## Guarantees")
    tests = [row[1].strip("`") for row in rows]
    assert len(tests) >= 3
    for test in tests:
        path, _, name = test.partition("::")
        assert f"def {name}(" in text_of(ROOT / path), test


def test_a_guarantee_without_a_test_is_seen():
    """Negative control: of the parser of tables."""
    found = table(
        "\n## Guarantees\n\n| a | b |\n|---|---|\n| x \\| y | `z` |\n\n## Next\n", "## Guarantees"
    )
    assert found == [["x \\| y", "`z`"]]


# Programs


PYRO_PAGES = [page for page in PAGES if programs(page)["pyro"]]
NUMPYRO_PAGES = [page for page in PAGES if programs(page)["numpyro"]]
GOES_ON = [*METHODS, ROOT / "docs/training.md"]  # from the first program of the start page


def prelude(package):
    """The first program of the start page, which some pages go on from."""
    return run_blocks(programs(ROOT / "docs/start.md")[package][:1], "start.md", {})


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The inplace keyword")  # ArviZ's, of pandas
        yield


@pytest.mark.parametrize("page", PYRO_PAGES, ids=lambda path: path.stem)
def test_programs_run_in_pyro(page, quiet):
    pyro = pytest.importorskip("pyro")
    pytest.importorskip("sklearn")
    pyro.clear_param_store()
    names = prelude("pyro") if page in GOES_ON else {}
    run_blocks(programs(page)["pyro"], page.name, names)


@pytest.mark.slow
@pytest.mark.parametrize("page", NUMPYRO_PAGES, ids=lambda path: path.stem)
def test_programs_run_in_numpyro(page, quiet):
    pytest.importorskip("numpyro")
    pytest.importorskip("sklearn")
    names = prelude("numpyro") if page in GOES_ON else {}
    run_blocks(programs(page)["numpyro"], page.name, names)


def test_programs_are_in_both_packages():
    """What stands in a tab of the one has a tab of the other."""
    for page in PAGES:
        text = text_of(page)
        assert text.count(":sync: pyro") == text.count(":sync: numpyro"), page
    assert len(PYRO_PAGES) >= 10
    assert len(NUMPYRO_PAGES) >= 10


# Links


def test_links_of_the_sources_lead_somewhere():
    for page in [*PAGES, *(ROOT / "docs/tutorials").glob("*.md"), ROOT / "README.md"]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text_of(page)):
            if "://" not in link:
                assert (page.parent / link).resolve().exists(), f"{page.name}: {link}"


def test_the_check_of_the_built_site_finds_what_is_wrong(tmp_path):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import check
    finally:
        sys.path.pop(0)
    (tmp_path / "a.html").write_text('<a href="b.html#there">b</a><p id="here">')
    (tmp_path / "b.html").write_text('<a href="a.html#here">a</a><p id="there">')
    assert check.main(str(tmp_path)) == 0
    (tmp_path / "b.html").write_text('<a href="c.html"></a> object at 0x7f0123456789')
    pages = {path: check.Page(path) for path in tmp_path.glob("*.html")}
    assert len(check.broken_links(pages)) == 2
    assert len(check.words_of_machines(tmp_path)) == 1
