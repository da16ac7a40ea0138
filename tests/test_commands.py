"""Every command that documents and scripts show is there, and takes the options that are shown."""

import argparse
import re
import runpy
import shlex
import sys

import pytest
from documents import PAGES, ROOT

pytest.importorskip("torch")
pytest.importorskip("jax")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

WRITTEN = [
    *PAGES,
    *(ROOT / "docs/tutorials").glob("*.md"),
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
]
SCRIPTS = sorted((ROOT / "examples").rglob("*.py"))
SHOWN = r"(?:python3?|torchrun(?: --\S+)*) ((?:examples|tests)/[\w/]+\.py)((?:\\\n|[^`\n|#])*)"
TAKE_NONE = ("examples/pyro/", "examples/numpyro/", "tests/sizes.py")
UNPARSED = ("examples/tools/lightning_loop.py",)  # the number of devices
STANDS_FOR = {"PACKAGE": "pyro", "SCENARIO": "truncated"}


def commands_of(text):
    """Script and arguments of each command in a text; what ends in dots is open."""
    for script, rest in re.findall(SHOWN, text):
        words = shlex.split(re.sub(r"\\\n|[\[\]]", " ", rest).partition(" ...")[0])
        yield script, tuple(STANDS_FOR.get(word, word) for word in words)


COMMANDS = sorted(
    {command for path in [*WRITTEN, *SCRIPTS] for command in commands_of(path.read_text("utf-8"))}
)


class UnderstoodError(Exception):
    """The arguments were parsed."""


def parse(script, arguments, monkeypatch):
    """Run a script up to where it has parsed its arguments."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        parse_args(self, args, namespace)
        raise UnderstoodError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(str(ROOT / "examples/tools"))
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.mark.parametrize(("script", "arguments"), COMMANDS, ids=lambda part: str(part)[-60:])
def test_it_takes_what_is_shown(script, arguments, monkeypatch):
    assert (ROOT / script).is_file()
    if script.startswith(TAKE_NONE):
        assert arguments == ()
    elif script not in UNPARSED:
        with pytest.raises(UnderstoodError):
            parse(script, arguments, monkeypatch)


def test_what_is_not_taken_is_seen(monkeypatch):
    """Negative control."""
    text = "    python examples/tools/train.py --seed 3 \\\n        --no-such-option 3 | tee log\n"
    ((script, arguments),) = commands_of(text)
    assert arguments == ("--seed", "3", "--no-such-option", "3")
    with pytest.raises(SystemExit):
        parse(script, arguments, monkeypatch)
    assert len(COMMANDS) > 40


def test_the_targets_that_are_shown_are_there():
    targets = set(
        re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    )
    texts = [path.read_text("utf-8") for path in WRITTEN]
    shown = {
        name for text in texts for name in re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.M)
    }
    assert {"demo", "docs", "test"} <= shown
    assert shown <= targets
