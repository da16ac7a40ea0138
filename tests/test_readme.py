"""The README's programs run as they stand, but for a few steps instead of hundreds."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("places", [[0, 2, 3], [1]], ids=str)
def test_the_programs_of_the_readme_run(places, tmp_path, monkeypatch, capsys):
    """The third and fourth go on where the first ends; the third looks at it, trains nothing."""
    assert len(PROGRAMS) == 4
    monkeypatch.chdir(tmp_path)
    names = {}
    for place in places:
        short, replaced = re.subn(r"num_steps=\d+", "num_steps=20, progress=False", PROGRAMS[place])
        assert replaced == (place != 2)
        short = short.replace("test = images[1500:]", "test = images[1740:]")
        exec(compile(short, "README.md", "exec"), names)
        assert len(names["result"].losses) == 20
    if 2 in places:
        assert "Verdict: " in capsys.readouterr().out
        assert {path.name for path in tmp_path.iterdir()} == {"importance.png", "digits.nc"}


@pytest.mark.parametrize("name", ["README.md", "Makefile"])
def test_the_examples_that_are_named_are_there(name):
    paths = re.findall(r"examples/[\w/]+\.\w+", (ROOT / name).read_text())
    assert paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_the_table_names_every_teaching_script():
    table = README.partition("### Start here")[2].partition("## ")[0]
    named = sorted(re.findall(r"^\| `(\w+\.py)`", table, flags=re.MULTILINE))
    for package in ("pyro", "numpyro"):
        assert sorted(path.name for path in (ROOT / "examples" / package).glob("*.py")) == named


def test_the_changelog_says_where_examples_went():
    """Every path that it gives is there, or is the old one in a pair ``old -> new``."""
    changed = (ROOT / "CHANGELOG.md").read_text().partition("### Changed")[2]
    paths = set(re.findall(r"examples/[\w/]+\.py", changed))
    gone = {path for path in paths if not (ROOT / path).is_file()}
    assert gone == {"examples/train.py", "examples/own_model.py"}
    assert all(re.search(rf"`{path}`\s+->\s+`examples/", changed) for path in gone)
