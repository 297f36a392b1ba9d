"""Masking: how much, of what, and into what; spans: that nothing is lost but in the other half."""

import numpy as np
import pytest

from lmx import rng
from lmx.data import corrupt
from lmx.types import BadInput

V, MASK = 100, 4
SPECIAL = np.arange(V) < 5
STARTS = np.arange(V) % 3 != 0  # a third of the tokens goes on with a word
RATE = 0.15


def tokens(length: int = 400, seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(5, V, length).astype(np.int32)
    ids[[0, length // 2, -1]] = [2, 3, 3]
    return ids


def masked(ids, index: int = 0, **keywords):
    return corrupt.mask_tokens(ids, rng=rng.numpy_rng(0, 'mask', index), mask_id=MASK, is_special=SPECIAL, rate=RATE, **keywords)


def words(ids) -> list[np.ndarray]:
    """The places of each word, written as a loop."""
    out: list[list[int]] = []
    for place, token in enumerate(ids):
        if SPECIAL[token]:
            continue
        if not out or STARTS[token] or SPECIAL[ids[place - 1]]:
            out.append([])
        out[-1].append(place)
    return [np.array(each) for each in out]


@pytest.mark.parametrize('starts', [None, STARTS])
def test_masking_hides_the_share_it_says_and_no_special_token(starts):
    ids, changed, shown, swapped, total, chosen = tokens(), 0, 0, 0, 0, np.zeros(400)
    for index in range(200):
        out, places = masked(ids, index, starts_word=starts)
        exact = round(RATE * 397)
        assert len(places) == exact if starts is None else exact - 2 <= len(places) <= exact
        assert (np.diff(places) > 0).all()
        assert not SPECIAL[ids[places]].any()
        left = np.setdiff1d(np.arange(400), places)
        np.testing.assert_array_equal(out[left], ids[left])
        chosen[places] += 1
        hidden, same = out[places] == MASK, out[places] == ids[places]
        assert not (SPECIAL[out[places]] & ~hidden).any()
        changed, shown, swapped, total = changed + hidden.sum(), shown + same.sum(), swapped + (~hidden & ~same).sum(), total + len(places)
    # Shares of some 12,000 draws: four standard errors are 4 sqrt(p (1 - p) / n), at most 0.015. A random token is the old one 1 time in 95.
    np.testing.assert_allclose([changed, swapped, shown], np.array([0.8, 0.1 * 94 / 95, 0.1 + 0.1 / 95]) * total, atol=0.015 * total)
    # Every place is chosen about 30 times in 200; six standard errors of sqrt(200 p (1 - p)) = 5 are 30.
    plain = chosen[~SPECIAL[ids]]
    assert plain.min() > 5
    assert plain.max() < 62


def test_whole_words_are_hidden_whole():
    ids = tokens()
    _, places = masked(ids, starts_word=STARTS)
    taken = [np.isin(word, places) for word in words(ids)]
    assert all(each.all() or not each.any() for each in taken)
    assert sum(each.all() and len(each) > 1 for each in taken) > 3  # such words exist, and are not passed over
    assert sum(each.sum() for each in taken) == len(places)


def test_masks_follow_from_the_stream_alone():
    ids = tokens()
    np.testing.assert_array_equal(masked(ids, 3)[0], masked(ids, 3)[0])
    assert (masked(ids, 3)[0] != masked(ids, 4)[0]).any()


def test_short_texts_hide_one_token_and_specials_none():
    assert len(masked(np.array([2, 9, 3]))[1]) == 1
    assert len(masked(np.array([2, 3]))[1]) == 0
    assert len(masked(np.array([2, 3]), starts_word=STARTS)[1]) == 0


@pytest.mark.parametrize(('length', 'rate', 'mean'), [(2, 0.15, 3.0), (7, 0.5, 1.0), (64, 0.15, 3.0), (200, 0.5, 8.0), (9, 0.95, 1.0)])
def test_spans_are_lost_from_one_half_and_found_in_the_other(length, rate, mean):
    ids, sentinels = np.arange(1000, 1000 + length), list(range(99, -1, -1))
    lost, spans = corrupt.span_counts(length, rate, mean)
    assert lost == min(max(round(rate * length), 1), length - 1)
    for index in range(20):
        left, gone = corrupt.lose_spans(ids, rng=rng.numpy_rng(0, 'span', index), sentinel_ids=sentinels, rate=rate, mean_length=mean)
        assert (len(left), len(gone)) == (length - lost + spans, lost + spans)
        assert left[left < 100].tolist() == gone[gone < 100].tolist() == sentinels[:spans]
        assert left[0] >= 1000  # begins with something kept
        # Put back: every sentinel of what is left becomes the span behind it in what is lost.
        found = {part[0]: part[1:] for part in np.split(gone, np.flatnonzero(gone < 100)) if len(part)}
        assert all(len(span) for span in found.values())
        back = [token for item in left.tolist() for token in (found[item].tolist() if item < 100 else [item])]
        assert back == ids.tolist()


def test_every_cut_into_spans_is_equally_likely():
    cuts = [tuple(corrupt._parts(5, 3, rng.numpy_rng(0, 'parts', index))) for index in range(3000)]
    kinds, counts = np.unique(cuts, axis=0, return_counts=True)
    assert len(kinds) == 6  # compositions of 5 into 3: 4 choose 2
    np.testing.assert_allclose(counts, 500, atol=85)  # four standard errors, sqrt(3000 / 6 * 5 / 6) = 20.4


@pytest.mark.parametrize(
    ('call', 'says'),
    [
        (lambda: corrupt.span_counts(1), 'needs at least 2'),
        (lambda: corrupt.lose_spans(tokens(), rng=rng.numpy_rng(0, 'x'), sentinel_ids=[1]), 'loses? 20 spans, the tokenizer has 1'),
    ],
)
def test_refusals(call, says):
    with pytest.raises(BadInput, match=says):
        call()
