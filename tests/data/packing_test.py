"""Windows: every token is a target exactly once, contexts are what they should be, segments never mix."""

from collections import Counter

import numpy as np
import pytest

from lmx.data import packing
from lmx.data.cache import TokenCache
from lmx.types import BadInput

EOS = 999


def cache(lengths, seed=0) -> TokenCache:
    """Documents of distinct tokens, so that a token tells where it is from."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenCache(np.arange(1000, 1000 + offsets[-1], dtype=np.uint16), offsets, f'{lengths}{seed}')


def everything(dataset) -> list[dict[str, np.ndarray]]:
    return [dataset[index] for index in range(len(dataset))]


CASES = [[5], [1, 1, 1], [7, 0, 3, 12], [16, 16], [33, 2, 8, 1, 40]]


@pytest.mark.parametrize('eos', [EOS, None])
@pytest.mark.parametrize('stride', [None, 1, 3, 8])
@pytest.mark.parametrize('lengths', CASES)
def test_concatenated_is_the_stream(lengths, stride, eos):
    c = cache(lengths)
    stream = []
    for document in range(len(lengths)):
        stream += ([EOS] if eos else []) + c.tokens[c.offsets[document] : c.offsets[document + 1]].tolist()
    targets = []
    for window in everything(packing.concatenated(c, length=8, eos_id=eos, stride=stride)):
        real = window['weights'] > 0
        targets += window['targets'][real].tolist()
        for place in np.flatnonzero(real):  # the input is the token before, and so on back to the window's start
            at = len(targets) - real.sum() + place - np.flatnonzero(real)[0] + 1
            back = min(place + 1, at)
            assert window['inputs'][place - back + 1 : place + 1].tolist() == stream[at - back : at]
        if stride == 1:
            assert real.sum() == 1
    assert targets == stream[1:]


@pytest.mark.parametrize('eos', [EOS, None])
@pytest.mark.parametrize('lengths', CASES)
def test_each_pass_cuts_the_stream_elsewhere_and_predicts_every_token_once(lengths, eos):
    windows = packing.concatenated(cache(lengths), length=8, eos_id=eos).lmx_windows
    passes = [windows.rows(np.arange(len(windows)) + number * len(windows)) for number in range(40)]
    stream = [int(passes[0]['inputs'][0, 0]), *passes[0]['targets'][passes[0]['weights'] > 0].tolist()]
    before = dict(zip(stream[1:], stream)) if eos is None else {}
    for rows in passes:
        real = rows['weights'] > 0
        assert Counter(rows['targets'][real].tolist()) == Counter(stream[1:])
        for target, source in zip(rows['targets'][real].tolist(), rows['inputs'][real].tolist()):
            assert before.get(target, source) == source
    starts = {rows['targets'][-1].tobytes() for rows in passes}
    assert len(starts) == 8  # 40 draws miss one of 8 cuts in 1 of 27 seeds, and this one is fixed
    single = windows[len(windows) * 7 + len(windows) - 1]
    np.testing.assert_array_equal(single['targets'], passes[7]['targets'][-1])


@pytest.mark.parametrize('eos', [EOS, None])
@pytest.mark.parametrize('lengths', CASES)
def test_packed_predicts_every_token_once_and_never_mixes(lengths, eos):
    c = cache(lengths)
    if eos is None and max(lengths) < 2:
        with pytest.raises(BadInput):
            packing.packed(c, length=8, eos_id=None)
        return
    targets, document_of = Counter(), np.repeat(np.arange(len(lengths)), lengths)
    for window in everything(packing.packed(c, length=8, eos_id=eos)):
        np.testing.assert_array_equal(window['weights'] > 0, window['segments'] > 0)
        for segment in range(1, window['segments'].max() + 1):
            here = window['segments'] == segment
            assert window['positions'][here].tolist() == list(range(here.sum()))
            seen = np.concatenate([window['inputs'][here], window['targets'][here]])
            assert len({document_of[token - 1000] for token in seen if token != EOS}) <= 1
            np.testing.assert_array_equal(window['inputs'][here][1:], window['targets'][here][:-1])
            targets.update(window['targets'][here].tolist())
    expected = Counter()
    for document, count in enumerate(lengths):
        tokens = c.tokens[c.offsets[document] : c.offsets[document] + count].tolist()
        expected.update([*tokens, EOS] if eos else tokens[1:])
    assert targets == expected


@pytest.mark.parametrize('eos', [EOS, None])
def test_packed_rows_are_the_same_alone_and_together_in_any_order(eos):
    windows = packing.packed(cache([33, 2, 8, 1, 40, 0, 5, 3]), length=8, eos_id=eos)
    order = np.random.default_rng(0).permutation(len(windows))
    together = windows.lmx_windows.rows(order)
    for row, index in enumerate(order):
        for name, array in windows[index].items():
            np.testing.assert_array_equal(together[name][row], array)
            assert array.dtype == (np.float32 if name == 'weights' else np.int32)


def test_best_fit_wastes_little_and_overfills_nothing():
    sizes = np.random.default_rng(0).integers(1, 65, 2000)
    bins = packing.best_fit(sizes, 64)
    loads = np.bincount(bins, weights=sizes)
    assert loads.max() <= 64
    assert len(loads) <= 1.03 * sizes.sum() / 64 + 1
    np.testing.assert_array_equal(bins, packing.best_fit(sizes, 64))


def test_best_fit_takes_the_tightest_window():
    assert packing.best_fit([7, 5, 3, 1], 8).tolist() == [0, 1, 1, 0]
    assert packing.best_fit([6, 5, 2, 2], 8).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize('stride', [0, 9])
def test_a_stride_outside_the_window_is_refused(stride):
    with pytest.raises(BadInput, match='stride'):
        packing.concatenated(cache([20]), length=8, eos_id=None, stride=stride)
