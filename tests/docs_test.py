"""Pages of docs/, as a reader would follow them: every file written, every command run, in an empty folder."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

LMX = [str(pathlib.Path(sys.executable).with_name('lmx'))]


@pytest.mark.parametrize(('name', 'least', 'last'), [('change_one_thing.md', 7, 'digit_accuracy'), ('finetune_with_lora.md', 3, '42=')])
def test_page(root: pathlib.Path, tmp_path: pathlib.Path, name: str, least: int, last: str):
    page = (root / 'docs' / name).read_text()
    blocks = re.findall(r'```(python|console)\n(.*?)```', page, flags=re.DOTALL)
    for kind, text in blocks:  # all files first: the page's config imports the data set that the next section explains
        if kind == 'python':
            (tmp_path / text.split('\n', 1)[0].removeprefix('# ')).write_text(text)
    commands = [line.removeprefix('$ lmx ') for kind, text in blocks if kind == 'console' for line in text.strip().splitlines()]
    assert len(commands) >= least
    for command in commands:
        done = subprocess.run([*LMX, *shlex.split(command)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f'lmx {command}\n{done.stdout}{done.stderr}'
    assert last in done.stdout
