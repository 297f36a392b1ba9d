"""docs/change_one_thing.md, as a reader would follow it: every file written, every command run, in an empty folder."""

import pathlib
import re
import shlex
import subprocess
import sys

LMX = [str(pathlib.Path(sys.executable).with_name('lmx'))]


def test_change_one_thing(root: pathlib.Path, tmp_path: pathlib.Path):
    page = (root / 'docs' / 'change_one_thing.md').read_text()
    blocks = re.findall(r'```(python|console)\n(.*?)```', page, flags=re.DOTALL)
    for kind, text in blocks:  # all files first: the page's config imports the data set that the next section explains
        if kind == 'python':
            (tmp_path / text.split('\n', 1)[0].removeprefix('# ')).write_text(text)
    commands = [line.removeprefix('$ lmx ') for kind, text in blocks if kind == 'console' for line in text.strip().splitlines()]
    assert len(commands) >= 7
    for command in commands:
        done = subprocess.run([*LMX, *shlex.split(command)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f'lmx {command}\n{done.stdout}{done.stderr}'
    assert 'digit_accuracy' in done.stdout
