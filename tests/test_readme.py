"""The README's programs run as they stand, but for a few steps instead of hundreds."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_of_the_readme_runs(program):
    short, replaced = re.subn(r"num_steps=\d+", "num_steps=20, progress=False", program)
    assert replaced
    names = {}
    exec(compile(short, "README.md", "exec"), names)
    assert len(names["result"].losses) == 20
