"""Every family with the weights of its transformers counterpart: outputs, hidden states, gradients and generated tokens are the same.

One row per family; sizes are small, and every path is taken: grouped heads, windows shorter than the text, tied and untied weights.
The weights go through the rules that `lmx import` uses, and so do the gradients, since the rules only move numbers.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import spec
from lmx.decode import beam, rules, sample
from lmx.interop import families, huggingface

pytest.importorskip('torch')
pytest.importorskip('transformers')
import torch
import transformers

pytestmark = pytest.mark.parity
V, T, S = 53, 16, 11
EOS = {'pad_token_id': 0, 'eos_token_id': None, 'bos_token_id': None}
SIZES = {'vocab_size': V, 'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 4}
DECODER = {**SIZES, 'num_key_value_heads': 2, 'max_position_embeddings': 64, **EOS}
ENCODER = {**SIZES, 'max_position_embeddings': 64}
MODERN = {**ENCODER, 'num_hidden_layers': 4, 'local_attention': 6, 'pad_token_id': 0, 'cls_token_id': 1, 'sep_token_id': 1}
MODERN |= {'bos_token_id': 1, 'eos_token_id': 1}
ROPE = {'rope_theta': 500.0, 'factor': 4.0, 'original_max_position_embeddings': 8}
LLAMA3 = {**ROPE, 'rope_type': 'llama3', 'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
T5 = {'vocab_size': V, 'd_model': 32, 'd_ff': 48, 'num_layers': 2, 'num_heads': 4, 'd_kv': 12, 'eos_token_id': None}
T5 |= {'decoder_start_token_id': 0, 'relative_attention_num_buckets': 8, 'relative_attention_max_distance': 12}
BART = {'vocab_size': V, 'd_model': 32, 'encoder_layers': 2, 'decoder_layers': 3, 'encoder_attention_heads': 4, 'scale_embedding': True}
BART |= {'decoder_attention_heads': 4, 'encoder_ffn_dim': 48, 'decoder_ffn_dim': 48, 'max_position_embeddings': 64, **EOS}
BART |= {'forced_eos_token_id': None, 'decoder_start_token_id': 2}

ROWS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    'gpt2': ('GPT2', 'LMHeadModel', {'vocab_size': V, 'n_embd': 32, 'n_layer': 2, 'n_head': 4, 'n_positions': 64, **EOS}),
    'llama': ('Llama', 'ForCausalLM', {**DECODER, 'attention_bias': True}),
    'llama_linear': ('Llama', 'ForCausalLM', {**DECODER, 'rope_parameters': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 500.0}}),
    'llama3': ('Llama', 'ForCausalLM', {**DECODER, 'rope_parameters': LLAMA3, 'tie_word_embeddings': True}),
    'llama_yarn': ('Llama', 'ForCausalLM', {**DECODER, 'rope_parameters': {**ROPE, 'rope_type': 'yarn'}}),
    'mistral': ('Mistral', 'ForCausalLM', {**DECODER, 'sliding_window': 5}),
    'qwen3': ('Qwen3', 'ForCausalLM', {**DECODER, 'head_dim': 12}),
    'gemma2': (
        'Gemma2',
        'ForCausalLM',
        {**DECODER, 'head_dim': 12, 'sliding_window': 5, 'query_pre_attn_scalar': 10, 'num_hidden_layers': 3},
    ),
    'mixtral': ('Mixtral', 'ForCausalLM', {**DECODER, 'num_local_experts': 4, 'num_experts_per_tok': 2, 'sliding_window': 5}),
    'bert_lm': ('Bert', 'ForMaskedLM', ENCODER),
    'bert_classes': ('Bert', 'ForSequenceClassification', {**ENCODER, 'num_labels': 3}),
    'bert_tokens': ('Bert', 'ForTokenClassification', {**ENCODER, 'num_labels': 3}),
    'bert_span': ('Bert', 'ForQuestionAnswering', ENCODER),
    'roberta_lm': ('Roberta', 'ForMaskedLM', {**ENCODER, 'type_vocab_size': 1}),
    'roberta_classes': ('Roberta', 'ForSequenceClassification', {**ENCODER, 'num_labels': 3}),
    'distilbert_lm': ('DistilBert', 'ForMaskedLM', {'vocab_size': V, 'dim': 32, 'hidden_dim': 48, 'n_layers': 2, 'n_heads': 4}),
    'distilbert_classes': (
        'DistilBert',
        'ForSequenceClassification',
        {'vocab_size': V, 'dim': 32, 'hidden_dim': 48, 'n_layers': 2, 'n_heads': 4, 'num_labels': 3},
    ),
    'modernbert_lm': ('ModernBert', 'ForMaskedLM', MODERN),
    'modernbert_classes': ('ModernBert', 'ForSequenceClassification', {**MODERN, 'classifier_pooling': 'mean', 'num_labels': 3}),
    'modernbert_tokens': ('ModernBert', 'ForTokenClassification', {**MODERN, 'num_labels': 3}),
    't5': ('T5', 'ForConditionalGeneration', {**T5, 'num_decoder_layers': 3}),
    't5_1_1': ('T5', 'ForConditionalGeneration', {**T5, 'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False}),
    'bart': ('Bart', 'ForConditionalGeneration', BART),
}
GENERATORS = [name for name, (_, head, _) in ROWS.items() if ('LM' in head and 'Masked' not in head) or 'Generation' in head]


class Tensors(dict):
    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self[name].shape)


def on_disk(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mixtral's experts lie one by one in its files and stacked in transformers' memory."""
    out = {}
    for name, tensor in tensors.items():
        name = name.replace('.mlp.gate.', '.block_sparse_moe.gate.')
        stem, _, kind = name.rpartition('.mlp.experts.')
        if not stem:
            out[name] = tensor
            continue
        for expert, matrix in enumerate(tensor):
            parts = {'w2': matrix} if kind == 'down_proj' else dict(zip(('w1', 'w3'), np.split(matrix, 2)))
            out |= {f'{stem}.block_sparse_moe.experts.{expert}.{part}.weight': array for part, array in parts.items()}
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """The same weights twice."""

    theirs: Any
    ours: Any
    params: Any
    convert: Any  # (a function of their parameters) -> our tree of its values


@cache
def pair(name: str) -> Pair:
    family_name, head, settings = ROWS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f'{family_name}Config')(**settings)
    theirs = getattr(transformers, f'{family_name}{head}')(config).eval()
    theirs.set_attn_implementation('eager')
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases and norms away from 0 and 1, so that a swap would show
            parameter += 0.1 * torch.randn_like(parameter)
    own = dict(theirs.named_parameters())
    known = {**config.to_dict(), 'architectures': [type(theirs).__name__]}
    family = families.family_of(known)
    call = family.to_ours(known, own)
    ours = spec.build({'model': call}, 'model')
    shapes = huggingface.shapes_of(ours)

    def convert(pick):
        tensors = Tensors(on_disk({key: pick(parameter).detach().numpy() for key, parameter in own.items()}))
        found = huggingface.mapped(family, spec.to_plain(call), shapes, tensors)
        return huggingface.nested({path: found.leaf(path) for path in shapes})

    return Pair(theirs, ours, convert(lambda parameter: parameter), convert)


def tokens(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, V, shape)


def padded(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Two rows with 3 of padding, left in the first and right in the second: ids (1 = padding, as RoBERTa wants it) and segments."""
    segments = np.ones((2, length), np.int32)
    segments[0, :3] = segments[1, -3:] = 0
    return np.where(segments, tokens(1, 2, length), 1), segments


def run_theirs(model: Any, ids: np.ndarray, segments: np.ndarray, **extra: Any) -> Any:
    """With positions that begin at each row's first token, where the model takes positions."""
    positions = {}
    if 'position_ids' in inspect.signature(model.forward).parameters and type(model).__name__[:7] != 'Roberta':
        positions = {'position_ids': torch.tensor(np.maximum(np.cumsum(segments, 1) - 1, 0))}
    return model(torch.tensor(ids), attention_mask=torch.tensor(segments), output_hidden_states=True, **positions, **extra)


def scores(output: Any) -> torch.Tensor:
    return output.logits if hasattr(output, 'logits') else torch.stack([output.start_logits, output.end_logits], dim=-1)


def close(got: Any, want: Any, real: np.ndarray, tolerance: float) -> None:
    """Relative to the largest number that counts; float32 sums in another order differ by 1e-6."""
    got, want = np.asarray(got)[real], np.asarray(want.detach())[real]
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def blocks(sown: Any, side: str) -> list[np.ndarray]:
    """What goes into the first layer and comes out of every layer."""
    stack = sown['intermediates'][side]
    first = [stack['first_block']['hidden'][0]] if 'first_block' in stack else []
    return [stack['embedded'][0], *first, *stack['blocks']['hidden'][0]]


@pytest.mark.parametrize('name', ROWS)
def test_outputs_hidden_states_and_gradients(name):
    both = pair(name)
    seq2seq = hasattr(both.ours, 'encode')
    ids, segments = padded(S if seq2seq else T)
    target = tokens(2, 2, T) if seq2seq else None
    if seq2seq and 'bart' in name:  # BART counts positions from the row's start, so its padding stands on the right alone
        segments = np.ones_like(segments)
        segments[1, -3:] = 0
    if 'classes' in name:  # they pool the row's first token, be it padding
        segments[0] = 1
        ids = np.where(segments, tokens(1, *ids.shape), 1)
    extra = {'decoder_input_ids': torch.tensor(target)} if seq2seq else {}
    theirs = run_theirs(both.theirs, ids, segments, **extra)
    want = scores(theirs)
    pooled = want.ndim == 2
    real = np.ones(want.shape[: 1 if pooled else 2], bool) if pooled or seq2seq else segments > 0
    direction = np.random.default_rng(3).normal(size=want.shape).astype(np.float32) * real.reshape(
        *real.shape, *[1] * (want.ndim - real.ndim)
    )
    both.theirs.zero_grad()
    (want * torch.tensor(direction)).mean().backward()

    @partial(jax.jit)
    @partial(jax.value_and_grad, has_aux=True)
    def ours(params):
        args = (ids, target) if seq2seq else (ids,)
        keywords = {'source_segments': segments} if seq2seq else {'segments': segments}
        out, sown = both.ours.apply({'params': params}, *args, **keywords, mutable=['intermediates'])
        out = out[0] if isinstance(out, tuple) else out
        return jnp.mean(out * direction), (out, sown)

    (_, (got, sown)), gradients = ours(both.params)
    close(got, want, real, 1e-5)
    if seq2seq:
        sides = [('encoder', theirs.encoder_hidden_states, segments > 0), ('decoder', theirs.decoder_hidden_states, real)]
    else:
        decoder = 'decoder' in sown['intermediates']
        sides = [('decoder' if decoder else 'encoder', theirs.hidden_states, segments > 0)]
    for side, hidden, counted in sides:
        mine = blocks(sown, side)
        assert len(mine) == len(hidden)
        normed = getattr(getattr(both.ours, f'{side}_stack', None) or both.ours.stack, 'keywords', {}).get('norm') is not None
        for a, b in list(zip(mine, hidden))[: -1 if normed else None]:  # where there is a last norm, theirs[-1] is behind it
            close(a, b, counted, 1e-5)
    wanted = both.convert(lambda p: torch.zeros_like(p) if p.grad is None else p.grad)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))

    # Relative to the parameter's largest gradient. Some have none but rounding (softmax ignores a key's bias): a hundredth of the largest.
    def near(path, got, want):
        assert np.abs(got - want).max() <= 1e-4 * max(np.abs(want).max(), largest / 100), jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(near, gradients, wanted)


@pytest.mark.full  # `tests/models/properties_test.py` has it of every family
@pytest.mark.parametrize('name', [name for name in ROWS if 'classes' not in name])
def test_packed_segments_equal_separate_runs(name):
    both = pair(name)
    seq2seq = hasattr(both.ours, 'encode')
    ids, target = tokens(4, 1, T), tokens(5, 1, T)
    segments = np.array([[1] * 7 + [2] * 6 + [0] * (T - 13)])
    if seq2seq:
        packed = both.ours.apply({'params': both.params}, ids, target, source_segments=segments, segments=segments)
    else:
        packed = both.ours.apply({'params': both.params}, ids, segments=segments)
        packed = packed[0] if isinstance(packed, tuple) else packed
    for start, end in ((0, 7), (7, 13)):
        piece = torch.tensor(ids[:, start:end])
        extra = {'decoder_input_ids': torch.tensor(target[:, start:end])} if seq2seq else {}
        want = scores(both.theirs(piece, **extra))
        close(packed[:, start:end], want, np.ones(want.shape[:2], bool), 1e-5)


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Two prompts of a generator for both sides; transformers wants padding on the left, ours stands on the right."""

    theirs: dict[str, Any]
    start_BT: Any
    lengths_B: Any
    step: Any  # (params, copies of each row) -> a step callback


def prompts(name: str) -> Prompts:
    both = pair(name)
    _, segments = padded(S)
    if hasattr(both.ours, 'encode'):
        segments[0], segments[1, -3:] = 1, 0
        ids = np.where(segments, tokens(1, 2, S), 0)
        start, lengths = np.full((2, 1), both.theirs.config.decoder_start_token_id), np.array([1, 1])

        def step(params, copies):
            memory = both.ours.apply(params, ids, segments=segments, method='encode').take(jnp.repeat(jnp.arange(2), copies))

            def one(x, cache, segments):
                hidden, cache = both.ours.apply(params, x, memory, segments=segments, cache=cache, method='hidden')
                return both.ours.apply(params, hidden, method='unembed'), cache

            return one
    else:
        segments[1] = 1
        ids = np.where(segments, tokens(1, 2, S), 0)
        start, lengths = np.array([[*row[row != 0], *row[row == 0]] for row in ids]), segments.sum(1)

        def step(params, copies):
            return lambda x, cache, segments: both.ours.apply(params, x, segments=segments, cache=cache)

    theirs = {'inputs': torch.tensor(ids), 'attention_mask': torch.tensor(segments), 'pad_token_id': 0, 'use_cache': False}
    return Prompts({**theirs, 'do_sample': False, 'return_dict_in_generate': True}, jnp.asarray(start), jnp.asarray(lengths), step)


NEW = 10


@pytest.mark.parametrize('name', GENERATORS)
def test_greedy_tokens(name):
    both, given = pair(name), prompts(name)
    result = both.theirs.generate(**given.theirs, max_new_tokens=NEW, output_logits=True)
    best = np.sort(np.stack([logits.numpy() for logits in result.logits]), axis=-1)
    assert (best[..., -1] - best[..., -2]).min() > 1e-3  # no near tie: rounding of 1e-5 cannot change a token

    @jax.jit
    def ours(params):
        cache = both.ours.init_cache(2, given.start_BT.shape[1] + NEW)
        greedy = sample.Sampling(temperature=0)
        key = jax.random.key(0)
        return sample.generate(given.step(params, 1), cache, given.start_BT, given.lengths_B, key, max_tokens=NEW, sampling=greedy)

    np.testing.assert_array_equal(ours({'params': both.params})['tokens'], result.sequences[:, -NEW:])


@pytest.mark.parametrize('name', GENERATORS)
def test_beam_tokens(name):
    """Three hypotheses, an end token that is reached at times, and another way of stopping for every third family."""
    both, given, number = pair(name), prompts(name), GENERATORS.index(name)
    stopping = {'length_penalty': (1.0, 0.6, 2.0)[number % 3], 'early_stopping': (False, True, 'never')[number // 3 % 3]}
    eos = 5
    settings = {'num_beams': 3, 'num_return_sequences': 3, 'max_new_tokens': NEW, 'eos_token_id': eos, 'output_scores': True}
    result = both.theirs.generate(**given.theirs, **settings, **stopping)
    want, scores = result.sequences.reshape(2, 3, -1).numpy(), result.sequences_scores.reshape(2, 3).numpy()
    want = want[..., 1 if hasattr(both.ours, 'encode') else S :]

    @jax.jit
    def ours(params):
        cache = both.ours.init_cache(6, given.start_BT.shape[1] + NEW)
        options = {'beam_size': 3, 'num_return': 3, 'max_tokens': NEW, 'eos_id': eos, **stopping}
        return beam.beam_search(given.step(params, 3), cache, given.start_BT, given.lengths_B, **options)

    found = ours({'params': both.params})
    assert np.abs(np.diff(scores)).min() > 1e-4  # no near tie among what is returned; scores agree to 1e-5
    np.testing.assert_allclose(found['scores'], scores, rtol=1e-5, atol=2e-5)
    for text, length, reference in zip(found['tokens'].reshape(6, -1), found['lengths'].reshape(6), want.reshape(6, -1)):
        ended = reference.tolist().index(eos) if eos in reference else len(reference)
        assert text[:length].tolist() == reference[:ended].tolist()


@pytest.mark.parametrize('beams', [1, 3])
@pytest.mark.parametrize('name', ['gpt2', 't5'])
def test_tokens_under_rules(name, beams):
    """Banned words, a least length, a forced end and, where transformers does not look at the prompt for it, a forced beginning and no pair of
    tokens twice."""
    both, given, eos = pair(name), prompts(name), 5
    seq2seq = hasattr(both.ours, 'encode')
    free = both.theirs.generate(**given.theirs, max_new_tokens=NEW, num_beams=beams).sequences[:, -NEW:].tolist()
    words = [[free[0][0]], free[1][1:3], [0]]  # 0 also begins a text, which transformers counts as the first of a pair
    settings = {
        'max_new_tokens': NEW,
        'num_beams': beams,
        'eos_token_id': eos,
        'bad_words_ids': words,
        'min_new_tokens': 4,
        'forced_eos_token_id': eos,
    }
    result = both.theirs.generate(**given.theirs, **settings, **({'no_repeat_ngram_size': 2, 'forced_bos_token_id': 7} if seq2seq else {}))
    want = result.sequences[:, 1 if seq2seq else S :].tolist()
    assert [7] not in words
    assert seq2seq is False or {row[0] for row in want} == {7} != {row[0] for row in free}
    made = [rules.banned(words=words), rules.min_tokens(count=4, eos_id=eos), rules.forced_end(eos_id=eos)]
    made += [rules.no_repeat(size=2), rules.forced(tokens=[7])] if seq2seq else []
    options = {'max_tokens': NEW, 'eos_id': eos, 'rules': made}

    @jax.jit
    def ours(params):
        cache = both.ours.init_cache(2 * beams, given.start_BT.shape[1] + NEW)
        step = given.step(params, beams)
        if beams == 1:
            key, greedy = jax.random.key(0), sample.Sampling(temperature=0)
            return sample.generate(step, cache, given.start_BT, given.lengths_B, key, sampling=greedy, **options)
        found = beam.beam_search(step, cache, given.start_BT, given.lengths_B, beam_size=beams, **options)
        return {name: found[name][:, 0] for name in ('tokens', 'lengths')}

    found = ours({'params': both.params})
    for text, length, reference, unruled in zip(found['tokens'], found['lengths'], want, free):
        assert text[: length + 1].tolist() == reference[: reference.index(eos) + 1]
        assert text[:NEW].tolist() != unruled


@pytest.mark.parametrize('name', ROWS)
def test_files_go_in_and_out_bitwise(name, tmp_path):
    """Their directory -> our parameters -> our directory: the same tensors, and transformers misses nothing in it."""
    both = pair(name)
    both.theirs.save_pretrained(tmp_path / 'theirs', max_shard_size='20kB')
    config = huggingface.read_config(tmp_path / 'theirs')
    tensors = huggingface.Tensors(tmp_path / 'theirs')
    family = families.family_of(config)
    call = spec.to_plain(family.to_ours(config, tensors))
    shapes = huggingface.shapes_of(both.ours)
    found = huggingface.mapped(family, call, shapes, tensors)
    params, unused = {path: found.leaf(path) for path in shapes}, found.unused
    jax.tree.map(np.testing.assert_array_equal, huggingface.nested(params), both.params)
    written = huggingface.save(family, call, params, tmp_path / 'ours')
    mine = huggingface.Tensors(tmp_path / 'ours')
    assert sorted(written) == sorted(set(tensors) - set(unused))
    for key in mine:
        np.testing.assert_array_equal(mine[key], tensors[key])
    kind = {'model_type': config['model_type'], **family.to_theirs(call)}
    huggingface.write_json(tmp_path / 'ours' / 'config.json', {**config, **kind})
    loaded, info = type(both.theirs).from_pretrained(tmp_path / 'ours', output_loading_info=True)
    assert not [info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys') if info[key]]
    for parameter, same in zip(both.theirs.parameters(), loaded.parameters(), strict=True):
        np.testing.assert_array_equal(parameter.detach(), same.detach())
    # A config that lmx writes alone describes the same model.
    own = type(both.theirs.config)(**family.to_theirs(call))
    call_again = spec.to_plain(family.to_ours({**own.to_dict(), 'architectures': [type(both.theirs).__name__]}, tensors))
    assert {k: v for k, v in call_again.items() if 'dropout' not in k} == {k: v for k, v in call.items() if 'dropout' not in k}
