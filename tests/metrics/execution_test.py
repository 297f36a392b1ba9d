"""Programs that loop, fork, allocate, write outside and open sockets, run for real; and pass@k against its definition."""

import itertools
import os
import pathlib
import signal
import sys
import time

import numpy as np
import pytest

from lmx.metrics import code, execution, pass_at_k, sandbox
from lmx.types import BadInput

confined = pytest.mark.skipif(bool(sandbox.supported()), reason=sandbox.supported() or 'supported')

PASSES = [
    'x = 1',
    'import collections, hashlib, math, random, re, typing; assert math.sqrt(4) == 2; hashlib.md5(b"x").hexdigest()',
    'open("a", "w").write("x"); assert open("a").read() == "x"; import os; os.mkdir("b"); os.rename("a", "b/a"); os.remove("b/a")',
    'import os; assert os.listdir(".") == []',
    'import threading; t = threading.Thread(target=print); t.start(); t.join()',
    'print("x" * 10_000_000)',
    'import os; assert not os.environ.get("HOME")',
    'if __name__ == "__main__": y = 2\nassert y == 2',
]
FAILS = {
    'assert 1 == 2': 'AssertionError',
    'x = ': 'SyntaxError',
    'def f(): f()\nf()': 'RecursionError',
    'import os; os._exit(0)': 'exit status 0',
    'import sys; sys.exit(0)': 'exit status 0',
    'x = bytearray(3 << 30)': 'MemoryError',
    'import os\nwhile True: os.fork()': 'PermissionError',
    'import subprocess; subprocess.run(["true"])': 'PermissionError',
    'import os; os.execv("/bin/true", ["true"])': 'PermissionError',
    'import os; os.posix_spawn("/bin/true", ["true"], {})': 'PermissionError',
    'import socket; socket.socket()': 'PermissionError',
    'import socket; socket.socket(socket.AF_UNIX)': 'PermissionError',
    'import urllib.request; urllib.request.urlopen("http://127.0.0.1:9")': 'Operation not permitted',
    'import os, signal; os.kill(os.getppid(), signal.SIGTERM)': 'PermissionError',
    'import os, signal; os.kill(-1, signal.SIGTERM)': 'PermissionError',
    'import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))': 'not allowed to raise maximum limit',
    'open("a", "wb").write(b"x" * (2 << 20))': 'File too large',
    'held = [open("/dev/null") for _ in range(99)]': 'Too many open files',
    'import ctypes; ctypes.string_at(0)': 'exit status -11',
}


@confined
@pytest.mark.parametrize('program', PASSES)
def test_programs_that_pass(program):
    assert execution.run(program) == (True, '')


@confined
@pytest.mark.parametrize('program', FAILS)
def test_programs_that_do_not(program):
    passed, reason = execution.run(program)
    assert not passed
    assert FAILS[program] in reason


@confined
@pytest.mark.parametrize('endless', ['while True: pass', 'import time; time.sleep(99)', 'import signal; signal.pause()'])
def test_time_ends(endless):
    start = time.monotonic()
    assert execution.run(endless, seconds=1.0) == (False, 'over 1 s')
    assert time.monotonic() - start < 20


@confined
def test_a_folder_does_not_fill_the_disk():
    many = 'for i in range(10**9):\n    with open(str(i), "wb") as file: file.write(b"x" * (1 << 19))'
    below = 'import os\nos.mkdir("d")\nfor i in range(10**9): open(f"d/{i}", "w").close()'
    for program in (many, below):
        passed, reason = execution.run(program, seconds=60.0)
        assert not passed
        assert reason == f'over {16 << 20} bytes of files'


@confined
@pytest.mark.parametrize(
    'attack',
    [
        'open(PATH, "w")',
        'open(PATH, "a")',
        'import os; os.remove(PATH)',
        'import os; os.rename(PATH, "here")',
        'import os; os.truncate(PATH, 0)',
        'import os; os.open(PATH, os.O_RDONLY | os.O_TRUNC)',
        'import os; os.chmod(PATH, 0o777)',
        'import os; os.utime(PATH, (0, 0))',
        'import os; os.chown(PATH, 1, 1)',
        'import os; os.setxattr(PATH, "user.x", b"1")',
        'import os; os.link(PATH, "here"); open("here", "w")',
        'import os; os.symlink(PATH, "here"); open("here", "w")',
        'import os; os.symlink("x", PATH + "2")',
        'import os; os.mkdir(PATH + "2")',
        'import shutil; shutil.rmtree(PATH.rpartition("/")[0])',
    ],
)
def test_nothing_outside_changes(attack, tmp_path):
    path = tmp_path / 'precious'
    path.write_text('kept')
    before = path.stat()
    passed, reason = execution.run(f'PATH = {str(path)!r}\n{attack}')
    assert not passed
    assert 'Error' in reason
    after = path.stat()
    assert path.read_text() == 'kept'
    assert [p.name for p in tmp_path.iterdir()] == ['precious']
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)


@confined
def test_nothing_stays_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(execution.tempfile, 'tempdir', str(tmp_path))
    programs = ['x = 1', 'while True: pass', 'open("a", "w")', 'import os; os.makedirs("a/b/c")', 'assert False'] * 2
    made = execution.run_all(programs, workers=3, seconds=1.0)
    assert [each.passed for each in made] == [True, False, True, True, False] * 2
    assert list(tmp_path.iterdir()) == []
    children = pathlib.Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text().split()
    assert not any(b'sandbox.py' in pathlib.Path(f'/proc/{child}/cmdline').read_bytes() for child in children)


@confined
def test_a_signal_of_its_own_is_no_success():
    assert execution.run(f'import os; os.kill(os.getpid(), {int(signal.SIGKILL)})') == (False, 'exit status -9')


def test_machines_that_cannot_confine_are_named(monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'darwin')
    with pytest.raises(BadInput, match='programs cannot be confined here'):
        execution.run('x = 1')


def test_pass_at_k_is_the_chance_over_all_choices():
    for samples, k in [(1, 1), (5, 1), (5, 3), (6, 6)]:
        for passed in range(samples + 1):
            drawn = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
            assert code.estimate(samples, passed, k) == pytest.approx(np.mean([any(each) for each in drawn]))
    scored = pass_at_k([[True, False], [False, False]], (1, 2))
    assert scored.values() == {'pass@1': 0.25, 'pass@2': 0.5}
    with pytest.raises(BadInput, match='pass@3 of 2 samples'):
        pass_at_k([[True, False]], (3,))
