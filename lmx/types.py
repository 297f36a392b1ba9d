"""The few types that every room of lmx shares, and the glossary of axis letters.

Axis letters, used as suffixes in function bodies (`q_BTHC`, `logits_BTV`):

    B batch   T query length   S key length   D model   H heads   K key/value heads   C channels per head
    F hidden  V vocabulary     E experts      L layers  N new tokens
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:  # `import lmx` loads neither JAX nor Grain
    import grain

Array = Any  # a jax.Array, a numpy array or a tracer
Record = Mapping[str, Any]  # one example as a person would write it: {'text': '...'}
Features = Mapping[str, Any]  # one example as the model reads it: fixed-shape numpy arrays
Batch = Mapping[str, Array]  # features with a leading axis B; keys are documented by the task


class BadInput(ValueError):
    """Something the user can mend. The message is one line: the value, the limit and the fix. Exit code 2."""


class Diverged(BadInput):
    """A loss or gradient that is not finite ended a training. The message holds `SIGN`, by which other processes know what it was."""

    SIGN = 'is not finite at step'


class Preempted(Exception):
    """Training was asked to stop and has saved a checkpoint. Exit code 75."""


class Mean(NamedTuple):
    """An undivided mean in float32. `count` never depends on parameters, so means add up over microbatches and devices."""

    total: Array
    count: Array


Sums = Mapping[str, Mean]  # 'loss/<name>' are minimised (as total / count, added up); all others are metrics


class Apply(Protocol):
    """A model bound to its parameters: calls a method of it, each call with a random stream of its own.

    Dropout is active exactly when the caller bound a key, so objectives never say whether they train.
    Returns (output, losses that the model's layers sowed, as Sums).
    """

    def __call__(self, *args: Any, method: str | None = None, stream: str = '', **kwargs: Any) -> tuple[Any, Sums]: ...


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learnt and how it is used: a record of functions. The train step and the loop never look inside a batch.

    Attributes:
      inputs: record keys that a person supplies to `predict`; the first is the one that a bare TEXT fills.
      features: records -> fixed-shape numpy features, each with 'weights' (float32; 0 marks padding).
      objective: (apply, batch) -> Sums.
      encode: record with `inputs` -> the features of its windows, for prediction.
      predict: (apply, batch, key, emit) -> arrays with leading axis B. `emit(tokens_B) -> done_B` is None or a host function
        that sees every generated token as it is made and may end a row. One that can speculate also takes `draft`, a smaller
        model's Apply or None.
      decode: (record, [(features, arrays) per window]) -> prediction, a JSON-able dict.
      score: (predictions, records) -> `lmx.metrics.Scores`, or {'bleu': 27.3} where nothing is known about its uncertainty.
      additive: False where examples of a batch couple (contrastive losses): accumulation refuses it.
      describe: features -> the text that they stand for, for `lmx data`.
      question: a record of the data -> the record that `encode` takes of it, for scoring whole splits; None = the record itself.
      stream: (write or None) -> `emit` for one call of predict, or None when there is nothing to watch for. `write(row, text)` gets
        text as it is made; stop strings end a row.
    """

    inputs: tuple[str, ...]
    features: Callable[[grain.MapDataset], grain.MapDataset]
    objective: Callable[[Apply, Batch], Sums]
    encode: Callable[[Record], Sequence[Features]] | None = None
    predict: Callable[..., Mapping[str, Array]] | None = None
    decode: Callable[[Record, Sequence[tuple[Features, Mapping[str, Array]]]], dict[str, Any]] | None = None
    score: Callable[[Sequence[Any], Sequence[Any]], Any] | None = None
    additive: bool = True
    describe: Callable[[Features], str] | None = None
    question: Callable[[Record], Record] | None = None
    stream: Callable[[Callable[[int, str], None] | None], Callable[[Array], Array] | None] | None = None


class Decoder(Protocol):
    """Meeting this protocol, any decoder trains with any language-modelling task.

    `tokens_BT` int32; `segments_BT` int32, 0 = padding, attention stays within equal ids; `positions_BT` int32, default 0..T-1
    (behind the cache's length when there is one); `cache` a `lmx.nn.cache.Cache` or None, handed back one longer.
    """

    def __call__(
        self, tokens_BT: Array, *, segments: Array | None = None, positions: Array | None = None, cache: Any = None
    ) -> tuple[Array, Any]:
        """-> (logits_BTV float32, cache)."""
        ...

    def hidden(
        self, tokens_BT: Array, *, segments: Array | None = None, positions: Array | None = None, cache: Any = None
    ) -> tuple[Array, Any]:
        """-> (hidden_BTD after the last norm, cache)."""
        ...

    def unembed(self, hidden: Array) -> Array:
        """[..., D] -> logits [..., V] float32."""
        ...

    def init_cache(self, batch_size: int, max_length: int) -> Any:
        """-> an empty Cache. Needs no parameters."""
        ...


class EncoderDecoder(Protocol):
    """Meeting this protocol, any sequence-to-sequence model trains with any task that turns text into text.

    Segments and positions mean what they mean for a `Decoder`; a target token sees the source tokens of its own segment.
    """

    def encode(self, tokens_BS: Array, *, segments: Array | None = None, positions: Array | None = None) -> Any:
        """-> memory: a pytree with all that decoding needs of the source, and `take(rows)`, which picks and repeats rows as a cache does."""
        ...

    def hidden(
        self, tokens_BT: Array, memory: Any, *, segments: Array | None = None, positions: Array | None = None, cache: Any = None
    ) -> tuple[Array, Any]:
        """Target inputs, already shifted right -> (hidden_BTD, cache)."""
        ...

    def unembed(self, hidden: Array, memory: Any = None) -> Array:
        """[..., D] -> logits [..., V] float32. `memory` is the one that `hidden` read, for models that copy from it."""
        ...

    def init_cache(self, batch_size: int, max_length: int) -> Any:
        """-> an empty Cache for the target. Needs no parameters; what depends on the source is in the memory."""
        ...


class Encoder(Protocol):
    """Vectors of tokens in their context, and what a head makes of them.

    `types_BT` int32 tells parts of the input apart, such as BERT's sentences A and B; None = all 0.
    """

    def hidden(
        self, tokens_BT: Array, *, segments: Array | None = None, positions: Array | None = None, types: Array | None = None
    ) -> Array:
        """-> hidden_BTD."""
        ...

    def __call__(
        self, tokens_BT: Array, *, segments: Array | None = None, positions: Array | None = None, types: Array | None = None
    ) -> Array:
        """-> the head's output: class scores [B, N] or [B, T, N], an embedding [B, D], logits [B, T, V], or hidden_BTD without a head."""
        ...


Params = Any  # a nested dict of arrays
PRNGKey = 'jax.Array'
