"""The README's programs run as they stand, but for a few steps instead of hundreds."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
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
