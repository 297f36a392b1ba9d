"""The watchdog: silent while there is progress, and then it names who is behind and shows the stack."""

import json
import threading
import time

from lmx.train.watchdog import Watchdog, behind


def test_silence_is_reported_once_with_the_stack(tmp_path):
    with open(tmp_path / 'told', 'w+') as stream, Watchdog(tmp_path, 0.4, stream=stream) as dog:
        for step in range(5):
            dog.beat(step)
            time.sleep(0.05)
        stream.flush()
        assert (tmp_path / 'told').read_text() == ''
        time.sleep(1.2)
        told = (tmp_path / 'told').read_text()
        assert told.startswith('lmx: process 0 has stood at step 4 for 0 s') or 'for 1 s' in told
        assert told.count('has stood') == 1
        assert 'test_silence_is_reported_once_with_the_stack' in told


def test_it_can_be_off(tmp_path):
    before = threading.active_count()
    with Watchdog(tmp_path, 0):
        assert threading.active_count() == before


def test_who_is_behind_is_named(tmp_path):
    for index, (step, age) in enumerate(((7, 0), (6, 0), (7, 60))):
        (tmp_path / f'process-{index}.json').write_text(json.dumps({'step': step, 'time': time.time() - age}))
    assert behind(tmp_path, 3, 20) == 'no sign of life from process 2, behind: process 1'
    assert behind(tmp_path, 4, 90) == 'no sign of life from process 3, behind: process 1'
    assert behind(tmp_path, 1, 20) == 'no process is behind the others'


def test_processes_sign(tmp_path):
    with Watchdog(tmp_path, 0.4, process=1, processes=2) as dog:
        dog.beat(3)
        time.sleep(0.4)
    assert json.loads((tmp_path / 'process-1.json').read_text())['step'] == 3
