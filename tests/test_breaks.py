"""The list of deliberate breaks still fits the sources; `python tests/mutants.py` makes them."""

from pathlib import Path

import pytest
from breaks import LOSSES
from breaks_of_programs import PROGRAMS
from more_breaks import REST

ROOT = Path(__file__).parents[1]
ALL = [*LOSSES, *REST, *PROGRAMS]


def test_there_are_enough():
    assert len({each.name for each in ALL}) > 100


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.name)
def test_the_text_to_break_stands_there_once(each):
    text = (ROOT / f"{each.package}_dvae" / each.file).read_text()
    assert text.count(each.old) == 1


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.name)
def test_its_tests_are_there(each):
    for test in each.tests:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text()
        assert not name or f"def {name.partition('[')[0]}(" in text
