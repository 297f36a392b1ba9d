"""Batches: a function of the step, the same on any number of processes; evaluation counts every example once."""

import hashlib
import time

import numpy as np
import pytest

from lmx.data import packing, pipeline, sources
from lmx.types import BadInput
from tests.data.packing_test import cache


def features(count=37):
    return packing.concatenated(cache([count * 8 + 1]), length=8, eos_id=None)


def test_every_epoch_is_another_permutation():
    batches = pipeline.train_batches(features(40), batch_size=8, seed=0)
    epochs = [np.concatenate([batches.indices(step) for step in range(5 * epoch, 5 * epoch + 5)]) for epoch in range(3)]
    for number, epoch in enumerate(epochs):
        assert sorted(epoch.tolist()) == list(range(40 * number, 40 * number + 40))
    assert not np.array_equal(epochs[0], epochs[1] - 40)
    other = pipeline.train_batches(features(40), batch_size=8, seed=1)
    assert not np.array_equal(other.indices(0), batches.indices(0))


def test_batches_run_across_epochs_and_drop_nothing():
    batches = pipeline.train_batches(features(37), batch_size=8, seed=0)
    seen = np.concatenate([batches.indices(step) for step in range(37)])
    assert np.sort(seen).tolist() == list(range(37 * 8))


def test_any_step_can_be_had_without_the_ones_before():
    one, other = (pipeline.train_batches(features(), batch_size=8, seed=0) for _ in range(2))
    run = [one(step) for step in range(20)]
    for step in (19, 3, 11):
        for name, array in other(step).items():
            np.testing.assert_array_equal(array, run[step][name])
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_processes_share_the_same_global_batch(processes):
    whole = pipeline.train_batches(features(), batch_size=8, seed=0)(5)
    rows = np.arange(8).reshape(-1, processes).T  # interleaved, the hardest layout
    parts = [pipeline.train_batches(features(), batch_size=8, seed=0, rows=held)(5) for held in rows]
    for part, held in zip(parts, rows):
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][held])
    total = sum(int(pipeline.batch_hash(part, held), 16) for part, held in zip(parts, rows)) % (1 << 64)
    assert f'{total:016x}' == pipeline.batch_hash(whole)


def test_the_hash_is_that_of_the_bytes():
    batch = {'b': np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::2], 'a': np.array([True, False]), 'empty': np.zeros((2, 0))}
    total = 0
    for row in range(2):
        data = b'a' + batch['a'][row].tobytes() + b'b' + batch['b'][row].tobytes() + b'empty'
        digest = hashlib.blake2b(data, digest_size=8, salt=row.to_bytes(8, 'little')).digest()
        total += int.from_bytes(digest, 'little')
    assert pipeline.batch_hash(batch) == f'{total % (1 << 64):016x}'


def test_the_hash_sees_every_change():
    batch = pipeline.train_batches(features(), batch_size=8, seed=0)(0)
    swapped = {name: array[[1, 0, *range(2, 8)]] for name, array in batch.items()}
    flipped = {**batch, 'weights': batch['weights'].copy()}
    flipped['weights'][3, 3] = 0.5
    assert len({pipeline.batch_hash(b) for b in (batch, swapped, flipped)}) == 3


@pytest.mark.parametrize('count', [1, 7, 8, 9, 37])
def test_evaluation_counts_every_example_once(count):
    data = features(count)
    batches = pipeline.eval_batches(data, batch_size=8)
    weights = np.concatenate([batch['weights'].sum(axis=1) for batch in batches])
    assert len(weights) == 8 * len(batches)
    assert (weights[:count] == 8).all()
    assert (weights[count:] == 0).all()
    targets = np.concatenate([batch['targets'][batch['weights'] > 0] for batch in batches])
    assert len(set(targets.tolist())) == len(targets) == 8 * count


def test_plain_datasets_work_as_well():
    data = sources.in_memory(records=[{'x': np.float32(i), 'weights': np.float32(1)} for i in range(5)])
    assert sorted(pipeline.train_batches(data, batch_size=5, seed=0)(0)['x'].tolist()) == [0, 1, 2, 3, 4]
    assert [b['weights'].tolist() for b in pipeline.eval_batches(data, batch_size=3)] == [[1, 1, 1], [1, 1, 0]]


def test_no_examples_is_an_error():
    with pytest.raises(BadInput):
        pipeline.train_batches([], batch_size=2, seed=0)


def test_prefetch_keeps_order_passes_errors_on_and_ends():
    def get(index):
        if index == 7:
            raise OSError('the disk is gone')
        return index

    with pipeline.prefetch(get, 3, 6) as items:
        assert list(items) == [3, 4, 5]
    with pipeline.prefetch(get, 5, 9) as items:
        assert [next(items), next(items)] == [5, 6]
        with pytest.raises(OSError, match='gone'):
            next(items)
    with pipeline.prefetch(get, 0, 7) as items:
        next(items)
        time.sleep(0.05)
    assert not items._thread.is_alive()
    assert list(items) == []
