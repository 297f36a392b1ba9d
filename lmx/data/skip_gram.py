"""Words and the words around them: the examples of skip-gram with negative sampling (Mikolov et al. 2013, arXiv:1310.4546)."""

from __future__ import annotations

import numpy as np

from lmx import rng
from lmx.data.cache import TokenCache
from lmx.data.packing import Windows
from lmx.types import BadInput

CHUNK = 1 << 22  # positions that are decided at once


class Pairs(Windows):
    """Example i: 'center' [] int32, 'context' [2 window] int32, 'weights' [2 window] float32 (0 = no context), 'negatives' [2 window, K]
    int32. Random access; the arguments are those of `lmx.tasks.word_vectors`. Every pass has windows and negatives of its own.

    Raises:
      BadInput: fewer than two words in the text.
    """

    def __init__(
        self,
        cache: TokenCache,
        allowed_V: np.ndarray,
        *,
        window: int,
        negatives: int,
        subsample: float | None,
        power: float,
        draws: int,
        seed: int,
    ):
        super().__init__(f'skip_gram/anew/{cache.fingerprint}/{window}/{negatives}/{subsample}/{power}/{draws}/{seed}')
        self.cache, self.window, self.negatives, self.seed = cache, window, negatives, seed
        counts_V = np.bincount(cache.tokens, minlength=len(allowed_V)) * allowed_V
        if np.count_nonzero(counts_V) < 2:
            raise BadInput(f'the data holds {np.count_nonzero(counts_V)} different words of the vocabulary; at least 2 are needed')
        stays_V = allowed_V.astype(np.float64)
        if subsample is not None:
            stays_V *= np.minimum(1, np.sqrt(subsample * counts_V.sum() / np.maximum(counts_V, 1)))
        smoothed = np.cumsum(np.where(counts_V > 0, np.maximum(counts_V, 1.0) ** power, 0))
        self.cumulated_V = smoothed / smoothed[-1]
        kept = [self._kept(draw, stays_V) for draw in range(draws)]
        self.places = np.concatenate(kept)  # in the tokens, one draw after the other
        self.bounds = np.cumsum([0, *map(len, kept)])
        if not len(self.places):
            raise BadInput(f'subsample {subsample} leaves none of {int(counts_V.sum())} words; give a larger share')

    def _kept(self, draw: int, stays_V: np.ndarray) -> np.ndarray:
        """The places of the words that stay."""
        total, out = len(self.cache.tokens), []
        for start in range(0, total, CHUNK):
            places = np.arange(start, min(start + CHUNK, total))
            out.append(places[uniform(self.seed, 'subsample', places + draw * total) < stays_V[self.cache.tokens[places]]])
        return np.concatenate(out)

    def __len__(self) -> int:
        return len(self.places)

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        indices = np.asarray(indices, np.int64)
        place_B = indices % len(self)
        reach_B = 1 + (uniform(self.seed, 'window', indices) * self.window).astype(np.int64)
        offsets_C = np.concatenate([np.arange(-self.window, 0), np.arange(1, self.window + 1)])
        near_BC = place_B[:, None] + offsets_C
        draw_B = np.searchsorted(self.bounds, place_B, side='right') - 1
        inside_BC = (near_BC >= self.bounds[draw_B][:, None]) & (near_BC < self.bounds[draw_B + 1][:, None])
        inside_BC &= np.abs(offsets_C) <= reach_B[:, None]
        center_B, near_BC = self.places[place_B], self.places[np.clip(near_BC, 0, len(self.places) - 1)]
        inside_BC &= self._document(near_BC) == self._document(center_B)[:, None]
        each = np.arange(near_BC.shape[1] * self.negatives).reshape(-1, self.negatives)
        drawn_BCK = uniform(self.seed, 'negatives', indices[:, None, None] * each.size + each)
        return {
            'center': self.cache.tokens[center_B].astype(np.int32),
            'context': np.where(inside_BC, self.cache.tokens[near_BC], 0).astype(np.int32),
            'weights': inside_BC.astype(np.float32),
            'negatives': np.searchsorted(self.cumulated_V, drawn_BCK, side='right').astype(np.int32),
        }

    def _document(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.cache.offsets, places, side='right')


def uniform(seed: int, stream: str, numbers: np.ndarray) -> np.ndarray:
    """A float64 in [0, 1) for each of `numbers` (int64), a function of seed, stream and number alone: the finaliser of splitmix64
    (Steele et al. 2014) over a Weyl sequence. A generator for each example would take a hundred times as long."""
    x = np.asarray(numbers).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x += rng.numpy_rng(seed, stream).integers(0, 1 << 64, dtype=np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
