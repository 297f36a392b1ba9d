"""The report: whole from any subset of files, inert whatever the run's text says."""

import html
import re

import pytest

from lmx.report import page, read
from lmx.types import BadInput
from tests.report.fakes import fake, write


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


@pytest.mark.parametrize('missing', ['config.json', 'provenance.json', 'metrics.jsonl', 'eval.jsonl', 'samples.jsonl'])
def test_any_file_may_be_missing(tmp_path, missing):
    folder = fake(tmp_path / 'a')
    (folder / missing).unlink()
    assert page.write(folder).exists()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match='holds no run'):
        page.write(tmp_path)
    with pytest.raises(BadInput, match='no run to report on'):
        page.write()


ODD = [
    {'config': {'steps': None, 'model': 'gpt'}},
    {'config': [1]},
    {'config': b'\xff\xfe{'},
    {'provenance': {'devices': {'kind': 'cpu', 'count': 2}, 'time': None}},
    {'provenance': {'devices': 'cpu'}},
    {'provenance': {'devices': [{'kind': 'cpu'}] * 2}},
    {'metrics': [{'step': 'x', 'loss': 1.0}, {'step': None, 'loss': 2.0}, {'loss': 3.0}, {'step': 1, 'loss': 'y'}]},
    {'metrics': [{'step': 1, 'loss': 1.0, 'grad_norm': 0.0}, {'step': 2, 'loss': True, 'grad_norm': -1.0}]},
    {'eval': [{'step': 1, 'split': None, 'loss': 1.0}, {'step': 2, 'split': 3, 'loss': None, 'baseline/xz': 'much'}]},
    {'samples': [{'prompt': None, 'continuation': ['a'], 'score': float('nan')}, {'prompt': '\ud800'}]},
]


@pytest.mark.parametrize('odd', ODD, ids=lambda odd: next(iter(odd)))
def test_odd_values_are_shown_or_left_out(tmp_path, odd):
    """Warnings are errors here, matplotlib's among them."""
    assert page.write(write(fake(tmp_path / 'a'), **odd)).read_text('utf-8').endswith('</html>\n')


def test_devices_are_counted_by_kind(tmp_path):
    assert '7 x H200, 1 x cpu' in page.write(write(fake(tmp_path / 'a'), provenance={'devices': ['H200'] * 7 + ['cpu']})).read_text()


def test_best_is_taken_over_all_evaluations_and_last_is_last(tmp_path):
    lines = [{'step': step, 'split': 'test', 'loss': abs(step - 777) + 1.0, 'accuracy': -abs(step - 555.0)} for step in range(2000)]
    text = page.write(write(fake(tmp_path / 'a'), eval=lines)).read_text()
    assert '>1223.0000<' in text
    assert '>1.0000 at step 777<' in text
    assert '>0.0000 at step 555<' in text.replace('>-0', '>0')  # accuracy is better when higher


def test_values_beyond_measure_are_short(tmp_path):
    text = page.write(write(fake(tmp_path / 'a'), eval=[{'step': 1, 'split': 'test', 'loss': 11.25, 'perplexity': 3.1e21}])).read_text()
    assert '>11.2500<' in text
    assert '>3.100e+21<' in text


def test_an_evaluation_without_a_split_counts(tmp_path):
    assert (
        'evaluation</td><td class="number">loss</td><td class="number">1.5000'
        in page.write(write(fake(tmp_path / 'a'), eval=[{'step': 1, 'loss': 1.5}])).read_text()
    )


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    folders = [fake(tmp_path / parent / 'same') for parent in 'ab']
    text = page.write(*folders, output=tmp_path / 'report.html').read_text()
    assert '<h1>a/same · b/same</h1>' in text
    assert [run.name for run in read.several([folders[0], folders[0]])] == ['same', 'same']  # one folder twice: nothing to tell apart


def test_baselines_of_several_runs_are_drawn_once(tmp_path):
    text = page.page([page.RunFiles(fake(tmp_path / name)) for name in 'abc'])
    assert len(re.findall(r'<text[^>]*>xz</text>', text)) == 1


@pytest.mark.parametrize('name', ['a black hole', '$x_{$', '_hidden', '运行🙂', '#000000', 'a&b'])
def test_a_run_keeps_its_name_in_the_legend(tmp_path, name):
    text = page.page([page.RunFiles(fake(tmp_path / each)) for each in (name, 'other')])
    shown = {html.unescape(label) for label in re.findall(r'<text[^>]*>([^<]*)</text>', text)}
    assert name.lstrip('_') in shown


def test_plots_take_their_colours_from_the_page(tmp_path):
    """Else they are black on black where the page is dark."""
    text = page.write(fake(tmp_path / 'a')).read_text()
    assert 'svg text { fill: currentColor; }' in text
    assert not re.search(r'<[^>]*(#000000|\bblack\b)', text[text.index('<svg') :])
