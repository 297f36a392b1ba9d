"""What is written for TensorBoard is what TensorBoard reads."""

import math

import pytest

from lmx.train import tensorboard

reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator', reason='needs lmx[test]')


def scalars(folder, tag):
    return [(event.step, event.value) for event in reader.EventAccumulator(str(folder)).Reload().Scalars(tag)]


def test_the_checksum_is_castagnolis():
    assert tensorboard.crc32c(b'123456789') == 0xE3069283  # RFC 3720's


def test_numbers_come_back(tmp_path):
    values = [(1, 0.5), (200, -3), (2**40, 1e300), (2**40 + 1, math.nan)]
    events = tensorboard.Events(tmp_path)
    for step, value in values:
        events.add_scalar('train/' + 'ö' * 100, value, step)
    events.close()
    found = scalars(tmp_path, 'train/' + 'ö' * 100)
    assert found[:3] == [(1, 0.5), (200, -3.0), (2**40, math.inf)]
    assert found[3][0] == 2**40 + 1
    assert math.isnan(found[3][1])


def test_a_start_over_takes_back_what_came_after_it(tmp_path):
    for first, purge in ((1, None), (3, 3)):
        events = tensorboard.Events(tmp_path, purge)
        for step in range(first, 6):
            events.add_scalar('loss', first, step)
        events.close()
    assert scalars(tmp_path, 'loss') == [(1, 1.0), (2, 1.0), (3, 3.0), (4, 3.0), (5, 3.0)]
