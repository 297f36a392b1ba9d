"""The readers give what is whole and leave out what is not."""

import json

import pytest

from lmx.report import read


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    """Wherever it was cut, between the two bytes of é too."""
    whole, last = [{'step': 1}, {'step': 2, 'text': 'é'}], json.dumps({'step': 3, 'text': 'é'}, ensure_ascii=False).encode()
    path = tmp_path / 'metrics.jsonl'
    for cut in range(len(last)):
        path.write_bytes(''.join(json.dumps(line) + '\n' for line in whole).encode() + last[:cut])
        assert read.lines(path) == whole
    path.write_bytes(last)  # whole, and only its newline is missing
    assert read.lines(path) == [{'step': 3, 'text': 'é'}]


@pytest.mark.parametrize('mark', ['\u2028', '\u2029', '\x85', '\x0c', '\x1c'])
def test_only_a_newline_ends_a_line(tmp_path, mark):
    path = tmp_path / 'samples.jsonl'
    path.write_text(json.dumps({'text': f'a{mark}b'}, ensure_ascii=False) + '\n', 'utf-8')
    assert read.lines(path) == [{'text': f'a{mark}b'}]


def test_lines_that_are_no_objects_are_left_out(tmp_path):
    (tmp_path / 'x.jsonl').write_text('1\n[]\nnull\n\n{"a": 1}\n')
    assert read.lines(tmp_path / 'x.jsonl') == [{'a': 1}]
    assert read.lines(tmp_path / 'missing.jsonl') == []


@pytest.mark.parametrize('value', [None, True, 'x', float('nan'), float('inf'), [1.0]])
def test_what_is_no_finite_number_is_none(value):
    assert read.number(value) is None


def test_the_last_line_of_a_step_counts():
    assert read.column([{'step': 2, 'a': 1}, {'step': 1, 'a': 5}, {'step': 2, 'a': 3}, {'step': 3, 'a': None}], 'a') == ([1, 2], [5, 3])
