"""The report: whole from any subset of files, inert whatever the run's text says; the list of runs."""

import json
import os
import pathlib
import re

import pytest

from lmx.report import page, plots, read, runs
from lmx.types import BadInput

EVIL = '</pre><script>alert(1)</script><img src=x onerror=alert(2)> $x$ _a'


def fake(folder: pathlib.Path, steps: int = 50, lr: float = 0.1, **extra: object) -> pathlib.Path:
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps({'steps': steps, 'optim': {'call': 'a:b', 'lr': lr}, 'note': EVIL, **extra}))
    (folder / 'provenance.json').write_text(json.dumps({'command': ['lmx', EVIL], 'devices': ['cpu'], 'time': 'now'}))
    line = {'split': 'train', 'learning_rate': lr, 'grad_norm': 1.0, 'tokens_per_second': 1e4}
    text = ''.join(json.dumps({'step': s, 'loss': 3 - s / steps, **line}) + '\n' for s in range(1, steps + 1))
    (folder / 'metrics.jsonl').write_text(text + '{"step": 51, "lo')  # cut off by a kill
    evaluations = [
        {'step': 25, 'split': 'validation', 'loss': 2.7, 'bits_per_byte': 1.5},
        {'step': 50, 'split': 'validation', 'loss': 2.8, 'bits_per_byte': 1.6},
    ]
    evaluations.append({'step': 50, 'split': 'validation', 'baseline/xz': 1.65})
    (folder / 'eval.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in evaluations))
    (folder / 'samples.jsonl').write_text(json.dumps({'step': 50, 'prompt': 'def ', 'continuation': EVIL, 'tokens': 3}) + '\n')
    return folder


def test_the_page_holds_results_curves_samples_config_environment(tmp_path):
    text = page.write(fake(tmp_path / 'a')).read_text()
    for part in (
        '2.7000 at step 25',
        '1.5000 at step 25',
        'xz 1.6500',
        'Bits per byte',
        'Learning rate',
        'Gradient norm',
        'Tokens per second',
        'Samples',
        'Environment',
    ):
        assert part in text, part
    assert text.count('<svg') == 5


def test_text_of_a_run_is_inert(tmp_path):
    for text in (
        page.write(fake(tmp_path / '<b>x')).read_text(),
        page.page([page.RunFiles(tmp_path / '<b>x'), page.RunFiles(fake(tmp_path / 'y'))]),
    ):
        assert '<script' not in text
        assert '<img' not in text
        assert '<b>x' not in text
        assert not re.search(r'(src|href)="?(http|//)', text)


def test_two_runs_are_laid_side_by_side(tmp_path):
    text = page.page([page.RunFiles(fake(tmp_path / 'a')), page.RunFiles(fake(tmp_path / 'b', lr=0.2))])
    assert 'What differs' in text
    assert '<td class="number">optim.lr</td><td class="number">0.1</td><td class="number">0.2</td>' in text


@pytest.mark.parametrize('missing', ['provenance.json', 'metrics.jsonl', 'eval.jsonl', 'samples.jsonl'])
def test_any_file_may_be_missing(tmp_path, missing):
    folder = fake(tmp_path / 'a')
    (folder / missing).unlink()
    assert page.write(folder).exists()


def test_long_curves_are_thinned_and_gaps_left_out():
    lines = [{'step': s, 'loss': None if s % 7 == 0 else float(s)} for s in range(5000)]
    assert len(read.column(lines, 'loss')[0]) == 5000 - 715
    steps, values = plots.thin(*read.column(lines, 'loss'))
    assert len(steps) == plots.POINTS
    assert (steps[0], steps[-1]) == (1.0, 4999.0)
    assert steps == values


def test_smoothing_is_a_running_mean():
    assert plots.smooth([1.0] * 100) == pytest.approx([1.0] * 100)
    assert plots.smooth([0.0, 2.0, 4.0, 6.0], share=0.5) == pytest.approx([0.0, 1.0, 3.0, 5.0])


def test_runs_are_listed_newest_first(tmp_path):
    for name in ('old', 'new'):
        fake(tmp_path / 'sub' / name, steps=50)
    for path in (tmp_path / 'sub' / 'old').iterdir():
        os.utime(path, (1, 1))
    rows = runs.find(tmp_path)
    assert [row['name'] for row in rows] == ['sub/new', 'sub/old']
    assert rows[0]['state'] == 'done'
    assert 'validation 2.8000' in runs.table(rows)
    assert runs.table([]) == 'no runs here'


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match='holds no run'):
        page.write(tmp_path)
    with pytest.raises(BadInput, match='no folder'):
        runs.find(tmp_path / 'none')
