"""Every shipped config: complete, JSON, and `:debug` of those that need no download trains."""

import pathlib
import subprocess
import sys

import pytest

from lmx import spec
from lmx.run.config import load

CONFIGS = sorted(path.name for path in (pathlib.Path(__file__).parent.parent / 'configs').glob('*.py'))
NEEDS_DATA = {'gpt_shakespeare_char.py', 'gpt_wikitext2.py'}


@pytest.mark.parametrize('name', CONFIGS)
def test_config_is_json_and_finished(root, name):
    config = load(root / 'configs' / name)
    assert spec.from_json(spec.to_json(config)) == config
    assert load(f'{root}/configs/{name}:debug').steps == 2


@pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.real_data) if name in NEEDS_DATA else name for name in CONFIGS])
def test_debug_trains(root, tmp_path, request, name):
    if name in NEEDS_DATA:
        request.getfixturevalue('raw_data')
    args = [sys.executable, '-m', 'lmx.cli', 'train', f'--config=configs/{name}:debug', f'--workdir={tmp_path / "run"}']
    done = subprocess.run(args, cwd=root, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'run' / 'report.html').exists()
