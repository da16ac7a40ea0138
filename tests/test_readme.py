"""The README's programs run as they stand, but for a few steps instead of hundreds."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("places", [[0], [1], [0, 2]], ids=str)
def test_the_programs_of_the_readme_run(places):
    """The third goes on where the first ends."""
    assert len(PROGRAMS) == 3
    names = {}
    for place in places:
        short, replaced = re.subn(r"num_steps=\d+", "num_steps=20, progress=False", PROGRAMS[place])
        assert replaced
        exec(compile(short, "README.md", "exec"), names)
        assert len(names["result"].losses) == 20
