"""The README's programs run as they stand, but for a few steps instead of hundreds."""

import re
from pathlib import Path

import pytest
from documents import programs, run_blocks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", ["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
def test_the_programs_of_the_readme_run(package, tmp_path, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    blocks = programs(ROOT / "README.md")
    assert {name: len(found) for name, found in blocks.items()} == {"pyro": 1, "numpyro": 1}
    assert len(run_blocks(blocks[package], "README.md", {})["result"].losses) == 3


def test_it_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("name", ["README.md", "Makefile"])
def test_the_examples_that_are_named_are_there(name):
    paths = re.findall(r"examples/[\w/]+\.\w+", (ROOT / name).read_text())
    assert paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_the_table_names_every_teaching_script():
    start = (ROOT / "docs/start.md").read_text(encoding="utf-8")
    table = start.partition("## Next")[2].partition("## ")[0]
    named = sorted(re.findall(r"^\| `(\w+\.py)`", table, flags=re.MULTILINE))
    for package in ("pyro", "numpyro"):
        assert sorted(path.name for path in (ROOT / "examples" / package).glob("*.py")) == named


def test_the_changelog_says_where_examples_went():
    """Every path that it gives is there, or is the old one in a pair ``old -> new``."""
    changed = (ROOT / "CHANGELOG.md").read_text().partition("### Changed")[2]
    paths = set(re.findall(r"examples/[\w/]+\.py", changed))
    gone = {path for path in paths if not (ROOT / path).is_file()}
    assert gone == {"examples/train.py", "examples/own_model.py", "examples/tools/own_model.py"}
    assert all(re.search(rf"`{path}`\s+->\s+`examples/", changed) for path in gone)
