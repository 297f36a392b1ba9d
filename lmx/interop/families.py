"""The Hugging Face families that lmx has: their config keys, their tensors' names, and what we insist on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any

from lmx import models
from lmx.interop.rules import Rule, linear, norm, table
from lmx.nn import heads, positions
from lmx.spec import nearest, spec
from lmx.types import BadInput

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type`.

    Attributes:
      model: our function.
      keys: our keyword -> (their key, their default).
      rules: our keywords -> the tensors.
      prefix: of all names but the heads'; checkpoints of the bare model lack it.
      heads: their class -> our head, or None for the bare model; empty for models that have just one.
      demands: their key -> the values that our function implements; absent keys are taken to have the first.
      read: their config, their tensors' names -> further keywords of ours.
      write: our keywords -> further keys of theirs.
      unused: regular expression of tensors that carry nothing of ours: buffers, copies of tied weights, other heads.
    """

    model: Callable[..., Any]
    keys: Mapping[str, tuple[str, Any]]
    rules: Callable[[Config], list[Rule]]
    architecture: str
    prefix: str = ''
    heads: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    demands: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    read: Callable[[Config, Container[str]], dict[str, Any]] = lambda config, names: {}
    write: Callable[[Config], dict[str, Any]] = lambda ours: {}
    unused: str = r'$^'

    def to_ours(self, config: Config, names: Container[str] = ()) -> Any:
        """Their config.json -> the spec of our model; `names` are those of the tensors.

        Raises:
          BadInput: an architecture or a setting that we do not have.
        """
        for key, allowed in self.demands.items():
            if config.get(key, allowed[0]) not in allowed:
                raise BadInput(f'config.json has {key}={config[key]!r}; lmx has {" or ".join(map(repr, allowed))}')
        keywords = {ours: config.get(theirs, default) for ours, (theirs, default) in self.keys.items()} | self.read(config, names)
        if self.heads:
            keywords['head'] = self._head(config)
        return spec(self.model, **keywords)

    def _head(self, config: Config) -> Any:
        name = (config.get('architectures') or [next(iter(self.heads))])[0]
        if name not in self.heads:
            raise BadInput(f'architecture {name!r} is not known; there are {", ".join(self.heads)}{nearest(name, list(self.heads))}')
        kind = self.heads[name]
        if kind is None:
            return config.get(EMBEDDING)
        if kind in ('masked_lm', 'span'):
            return spec(getattr(heads, kind))
        pool = {'pool': heads.mean} if config.get('classifier_pooling') == 'mean' else {}
        classes = config.get('num_labels') or len(config.get('id2label') or (0, 1))
        return spec(getattr(heads, kind), num_classes=classes, **(pool if kind == 'classifier' else {}))

    def to_theirs(self, ours: Config) -> dict[str, Any]:
        """Our model's spec, built values in place of references -> their config.json."""
        out: dict[str, Any] = {theirs: ours[name] for name, (theirs, _) in self.keys.items()}
        out |= {key: allowed[0] for key, allowed in self.demands.items()} | self.write(ours)
        if self.heads:
            kind = None if head_kind(ours) == 'embedding' else head_kind(ours)
            name = next((name for name, known in self.heads.items() if known == kind), None)
            if name is None:
                raise BadInput(f'the head {kind!r} has no class in transformers; export with model.head=None')
            out['architectures'] = [name]
            if kind in ('classifier', 'per_token'):
                classes = ours['head']['num_classes']
                out |= {'id2label': {str(n): f'LABEL_{n}' for n in range(classes)}, 'label2id': {f'LABEL_{n}': n for n in range(classes)}}
        else:
            out['architectures'] = [self.architecture]
        return out


EMBEDDING = 'lmx_embedding'
"""In a config: the spec of the head that a sentence-transformers directory describes beside it."""


def head_kind(ours: Config) -> str | None:
    """'masked_lm', 'classifier', ... of a model's spec."""
    return None if not ours.get('head') else ours['head']['call'].rpartition(':')[2]


# -- decoders


def _gpt2(ours: Config) -> list[Rule]:
    block, out = 'decoder/blocks', []
    for part, name in enumerate(('query', 'key', 'value')):
        for leaf, theirs in (('kernel', 'weight'), ('bias', 'bias')):
            out.append(Rule(f'{block}/attention/{name}/{leaf}', f'transformer.h.{{}}.attn.c_attn.{theirs}', part=part, parts=3, axis=-1))
    for name, theirs in (('attention/out', 'attn.c_proj'), ('mlp/up', 'mlp.c_fc'), ('mlp/down', 'mlp.c_proj')):  # Conv1D is [in, out]
        out += [Rule(f'{block}/{name}/kernel', f'transformer.h.{{}}.{theirs}.weight')]
        out += [Rule(f'{block}/{name}/bias', f'transformer.h.{{}}.{theirs}.bias')]
    out += norm(f'{block}/attention_norm', 'transformer.h.{}.ln_1') + norm(f'{block}/mlp_norm', 'transformer.h.{}.ln_2')
    out += table('embed', 'transformer.wte') + table('decoder/position_embed', 'transformer.wpe')
    return out + norm('decoder/final_norm', 'transformer.ln_f') + _head(ours)


def _head(ours: Config) -> list[Rule]:
    return [] if ours['tied'] else table('head', 'lm_head')


def _llama(ours: Config) -> list[Rule]:
    return _frame(ours) + _gated(ours) + norm('decoder/blocks/mlp_norm', 'model.layers.{}.post_attention_layernorm', bias=False)


def _frame(ours: Config) -> list[Rule]:
    """What LLaMA and its successors have in common: everything but the feed-forward layers and their norms."""
    block, theirs = 'decoder/blocks/attention', 'model.layers.{}.self_attn'
    out = table('embed', 'model.embed_tokens') + norm('decoder/final_norm', 'model.norm', bias=False) + _head(ours)
    for name, letter in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'o')):
        out += linear(f'{block}/{name}', f'{theirs}.{letter}_proj', bias=ours.get('use_bias', False))
    return out + norm('decoder/blocks/attention_norm', 'model.layers.{}.input_layernorm', bias=False)


def _gated(ours: Config) -> list[Rule]:
    return [
        rule
        for name in ('gate', 'up', 'down')
        for rule in linear(f'decoder/blocks/mlp/{name}', f'model.layers.{{}}.mlp.{name}_proj', bias=False)
    ]


def _mixtral(ours: Config) -> list[Rule]:
    experts = 'model.layers.{}.block_sparse_moe'
    out = _frame(ours) + norm('decoder/blocks/mlp_norm', 'model.layers.{}.post_attention_layernorm', bias=False)
    out += linear('decoder/blocks/mlp/router', f'{experts}.gate', bias=False)
    for name, theirs in (('gate', 'w1'), ('up', 'w3'), ('down', 'w2')):
        out.append(Rule(f'decoder/blocks/mlp/{name}', f'{experts}.experts.{{}}.{theirs}.weight', transposed=True))
    return out


def _qwen3(ours: Config) -> list[Rule]:
    attention = 'model.layers.{}.self_attn'
    extra = norm('decoder/blocks/attention/query_norm', f'{attention}.q_norm', bias=False)
    return _llama(ours) + extra + norm('decoder/blocks/attention/key_norm', f'{attention}.k_norm', bias=False)


def _gemma2(ours: Config) -> list[Rule]:
    out = _frame(ours) + _gated(ours)
    for name, theirs in (
        ('attention_post_norm', 'post_attention'),
        ('mlp_norm', 'pre_feedforward'),
        ('mlp_post_norm', 'post_feedforward'),
    ):
        out += norm(f'decoder/blocks/{name}', f'model.layers.{{}}.{theirs}_layernorm', bias=False)
    return out


def _rope(config: Config, base: float = 10_000.0) -> Any:
    """`rope_parameters` of today, or `rope_theta` and `rope_scaling` of before."""
    given = config.get('rope_parameters') or {'rope_theta': config.get('rope_theta', base), **(config.get('rope_scaling') or {})}
    kind = given.get('rope_type', given.get('type', 'default'))
    original = given.get('original_max_position_embeddings', config.get('original_max_position_embeddings'))
    if kind == 'default':
        scaling = None
    elif kind == 'linear':
        scaling = spec(positions.LinearScaling, factor=float(given['factor']))
    elif kind == 'llama3':
        low, high = float(given['low_freq_factor']), float(given['high_freq_factor'])
        scaling = spec(positions.Llama3Scaling, factor=float(given['factor']), original_length=original, low=low, high=high)
    elif kind == 'yarn' and not given.get('mscale'):
        ends = {'fast': float(given.get('beta_fast') or 32), 'slow': float(given.get('beta_slow') or 1)}
        rest = {'amplitude': given.get('attention_factor'), 'whole': given.get('truncate', True)}
        length = original or config['max_position_embeddings']
        factor = given.get('factor') or config['max_position_embeddings'] / length
        scaling = spec(positions.YarnScaling, factor=float(factor), original_length=length, **ends, **rest)
    else:
        raise BadInput(f'config.json has rope_type {kind!r}; lmx has default, linear, llama3 and yarn (without mscale)')
    if given.get('partial_rotary_factor', 1.0) != 1.0:
        raise BadInput(f'config.json has partial_rotary_factor {given["partial_rotary_factor"]}; lmx rotates whole heads')
    return spec(positions.Rotary, base=float(given.get('rope_theta', base)), scaling=scaling)


def _their_rope(ours: Config) -> dict[str, Any]:
    rotary = ours['positions'] or {'base': 10_000.0, 'scaling': None}
    scaling = rotary['scaling']
    out = {'rope_theta': rotary['base'], 'rope_type': 'default'}
    if scaling is not None:
        name = scaling['call'].rpartition(':')[2]
        out |= {
            'rope_type': {'LinearScaling': 'linear', 'Llama3Scaling': 'llama3', 'YarnScaling': 'yarn'}[name],
            'factor': scaling['factor'],
        }
        if name != 'LinearScaling':
            out['original_max_position_embeddings'] = scaling['original_length']
        if name == 'Llama3Scaling':
            out |= {'low_freq_factor': scaling['low'], 'high_freq_factor': scaling['high']}
        if name == 'YarnScaling':
            out |= {'beta_fast': scaling['fast'], 'beta_slow': scaling['slow'], 'truncate': scaling['whole']}
            out |= {} if scaling['amplitude'] is None else {'attention_factor': scaling['amplitude']}
    return {'rope_parameters': out}


LLAMA_KEYS: Mapping[str, tuple[str, Any]] = {
    'vocab_size': ('vocab_size', 32_000),
    'dim': ('hidden_size', 4096),
    'num_layers': ('num_hidden_layers', 32),
    'num_heads': ('num_attention_heads', 32),
    'num_kv_heads': ('num_key_value_heads', None),
    'head_dim': ('head_dim', None),
    'mlp_dim': ('intermediate_size', 11_008),
    'eps': ('rms_norm_eps', 1e-6),
    'use_bias': ('attention_bias', False),
    'tied': ('tie_word_embeddings', False),
}
COPIES = r'^lm_head\.weight$|rotary_emb\.inv_freq$'
SILU = {'hidden_act': ('silu', 'swish')}


def _llama_read(config: Config, names: Container[str]) -> dict[str, Any]:
    return {'positions': _rope(config)}


def _without(keys: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in keys.items() if name not in names}


def _qwen3_read(config: Config, names: Container[str]) -> dict[str, Any]:
    if config.get('use_sliding_window') or 'sliding_attention' in (config.get('layer_types') or ()):
        raise BadInput('config.json has sliding windows in Qwen3 (use_sliding_window, layer_types); lmx has full attention there')
    return {'positions': _rope(config)}


def _gemma2_read(config: Config, names: Container[str]) -> dict[str, Any]:
    kinds = config.get('layer_types') or [
        'full_attention' if layer % 2 else 'sliding_attention' for layer in range(config['num_hidden_layers'])
    ]
    window = config.get('sliding_window', 4096)
    return {
        'positions': _rope(config),
        'windows': tuple(window if kind == 'sliding_attention' else None for kind in kinds),
        'query_scale': config.get('query_pre_attn_scalar', 256) ** -0.5,
    }


def _gemma2_write(ours: Config) -> dict[str, Any]:
    windows = ours['windows']
    if isinstance(windows, int):
        windows = tuple(None if layer % 2 else windows for layer in range(ours['num_layers']))
    scale = ours['head_dim'] ** -0.5 if ours['query_scale'] is None else ours['query_scale']
    return {
        **_their_rope(ours),
        'layer_types': ['sliding_attention' if window else 'full_attention' for window in windows],
        'sliding_window': next((window for window in windows if window), 4096),
        'query_pre_attn_scalar': round(scale**-2),
    }


# -- encoders


def _bert(ours: Config) -> list[Rule]:
    layer, block = 'bert.encoder.layer.{}', 'encoder/blocks'
    out = table('embed', 'bert.embeddings.word_embeddings') + table('encoder/position_embed', 'bert.embeddings.position_embeddings')
    if ours.get('num_types', 1):
        out += table('encoder/type_embed', 'bert.embeddings.token_type_embeddings')
    out += norm('encoder/embed_norm', 'bert.embeddings.LayerNorm')
    for name in ('query', 'key', 'value'):
        out += linear(f'{block}/attention/{name}', f'{layer}.attention.self.{name}')
    out += linear(f'{block}/attention/out', f'{layer}.attention.output.dense')
    out += norm(f'{block}/attention_norm', f'{layer}.attention.output.LayerNorm') + linear(f'{block}/mlp/up', f'{layer}.intermediate.dense')
    out += linear(f'{block}/mlp/down', f'{layer}.output.dense') + norm(f'{block}/mlp_norm', f'{layer}.output.LayerNorm')
    transform, pooler = 'cls.predictions.transform', 'bert.pooler.dense'
    return out + _encoder_head(ours, (f'{transform}.dense', f'{transform}.LayerNorm', 'cls.predictions.bias'), (pooler, 'classifier'))


def _encoder_head(ours: Config, lm: tuple[str, str, str], classes: tuple[str, str], norms: bool = True) -> list[Rule]:
    kind = head_kind(ours)
    if kind == 'masked_lm':
        dense, after, bias = lm
        out = linear('output/transform/dense', dense, bias=norms) + norm('output/transform/norm', after, bias=norms)
        return [*out, Rule('output/bias', bias)]
    if kind == 'classifier':
        return linear('output/transform/dense', classes[0]) + linear('output/out', classes[1])
    if kind in ('per_token', 'span'):
        return linear('output/out', 'classifier' if kind == 'per_token' else 'qa_outputs')
    return []


def _roberta(ours: Config) -> list[Rule]:
    body = [rule._replace(theirs=rule.theirs.replace('bert.', 'roberta.', 1)) for rule in _bert({**ours, 'head': None})]
    return body + _encoder_head(ours, ('lm_head.dense', 'lm_head.layer_norm', 'lm_head.bias'), ('classifier.dense', 'classifier.out_proj'))


def _distilbert(ours: Config) -> list[Rule]:
    layer, block = 'distilbert.transformer.layer.{}', 'encoder/blocks'
    out = table('embed', 'distilbert.embeddings.word_embeddings')
    out += table('encoder/position_embed', 'distilbert.embeddings.position_embeddings')
    out += norm('encoder/embed_norm', 'distilbert.embeddings.LayerNorm')
    for name, theirs in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'out')):
        out += linear(f'{block}/attention/{name}', f'{layer}.attention.{theirs}_lin')
    out += norm(f'{block}/attention_norm', f'{layer}.sa_layer_norm') + linear(f'{block}/mlp/up', f'{layer}.ffn.lin1')
    out += linear(f'{block}/mlp/down', f'{layer}.ffn.lin2') + norm(f'{block}/mlp_norm', f'{layer}.output_layer_norm')
    return out + _encoder_head(ours, ('vocab_transform', 'vocab_layer_norm', 'vocab_projector.bias'), ('pre_classifier', 'classifier'))


def _modernbert(ours: Config) -> list[Rule]:
    out = table('embed', 'model.embeddings.tok_embeddings') + norm('encoder/embed_norm', 'model.embeddings.norm', bias=False)
    out += norm('encoder/final_norm', 'model.final_norm', bias=False)
    for block, layer, first in (('encoder/first_block', 'model.layers.0', 0), ('encoder/blocks', 'model.layers.{}', 1)):
        if first and ours['num_layers'] == 1:
            continue
        for part, name in enumerate(('query', 'key', 'value')):
            out += linear(f'{block}/attention/{name}', f'{layer}.attn.Wqkv', bias=False, part=part, parts=3, first=first)
        for part, name in enumerate(('gate', 'up')):
            out += linear(f'{block}/mlp/{name}', f'{layer}.mlp.Wi', bias=False, part=part, parts=2, first=first)
        out += linear(f'{block}/attention/out', f'{layer}.attn.Wo', bias=False, first=first)
        out += linear(f'{block}/mlp/down', f'{layer}.mlp.Wo', bias=False, first=first)
        out += norm(f'{block}/mlp_norm', f'{layer}.mlp_norm', bias=False, first=first)
        if first:
            out += norm(f'{block}/attention_norm', f'{layer}.attn_norm', bias=False, first=first)
    if head_kind(ours) is not None and head_kind(ours) != 'masked_lm':
        out += linear('output/transform/dense', 'head.dense', bias=False) + norm('output/transform/norm', 'head.norm', bias=False)
        return out + linear('output/out', 'classifier')
    return out + _encoder_head(ours, ('head.dense', 'head.norm', 'decoder.bias'), ('', ''), norms=False)


def _modernbert_read(config: Config, names: Container[str]) -> dict[str, Any]:
    kinds, every = config.get('layer_types'), config.get('global_attn_every_n_layers', 3)
    if kinds is not None:
        wide = [layer for layer, kind in enumerate(kinds) if kind == 'full_attention']
        every = wide[1] if len(wide) > 1 else len(kinds)
        if wide != list(range(0, len(kinds), every)):
            raise BadInput(f'config.json has full attention in layers {wide}; lmx has it in every n-th, from layer 0 on')
    rope = config.get('rope_parameters') or {}
    bases = {}
    for ours, kind, old, default in (
        ('global_base', 'full_attention', 'global_rope_theta', 160_000.0),
        ('local_base', 'sliding_attention', 'local_rope_theta', 10_000.0),
    ):
        given = rope.get(kind) or {}
        if given.get('rope_type', 'default') != 'default':
            raise BadInput(f'config.json has rope_type {given["rope_type"]!r} in {kind}; lmx has default there')
        bases[ours] = float(given.get('rope_theta', config.get(old) or default))
    return {'global_every': every, **bases}


def _modernbert_write(ours: Config) -> dict[str, Any]:
    every, layers = ours['global_every'], ours['num_layers']
    rope = {'full_attention': ours['global_base'], 'sliding_attention': ours['local_base']}
    return {
        'layer_types': ['sliding_attention' if layer % every else 'full_attention' for layer in range(layers)],
        'rope_parameters': {kind: {'rope_type': 'default', 'rope_theta': base} for kind, base in rope.items()},
        'classifier_pooling': 'mean' if ours.get('head') and 'mean' in str(ours['head'].get('pool')) else 'cls',
    }


def _bert_keys(**others: tuple[str, Any]) -> dict[str, tuple[str, Any]]:
    return {
        'vocab_size': ('vocab_size', 30_522),
        'dim': ('hidden_size', 768),
        'num_layers': ('num_hidden_layers', 12),
        'num_heads': ('num_attention_heads', 12),
        'mlp_dim': ('intermediate_size', 3072),
        'eps': ('layer_norm_eps', 1e-12),
        'dropout_rate': ('hidden_dropout_prob', 0.1),
        **others,
    }


def _heads(name: str) -> dict[str, str | None]:
    kinds = {
        'MaskedLM': 'masked_lm',
        'SequenceClassification': 'classifier',
        'TokenClassification': 'per_token',
        'QuestionAnswering': 'span',
    }
    return {f'{name}Model': None, **{f'{name}For{theirs}': ours for theirs, ours in kinds.items()}}


BERT_DEMANDS = {'hidden_act': ('gelu',), 'position_embedding_type': ('absolute',), 'is_decoder': (False,)}
BERT_UNUSED = r'position_ids$|^cls\.predictions\.decoder\.|^cls\.seq_relationship\.|^lm_head\.decoder\.|pooler\.dense\.'


# -- encoder-decoders


def _t5(ours: Config) -> list[Rule]:
    out = table('embed', 'shared') + _head(ours)
    for side, last in (('encoder', 1), ('decoder', 2)):
        block, layer = f'{side}/blocks', f'{side}.block.{{}}.layer'
        out += norm(f'{side}/final_norm', f'{side}.final_layer_norm', bias=False)
        out += table(f'{side}/relative_bias', f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias')
        for name, letter in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'o')):
            out += linear(f'{block}/attention/{name}', f'{layer}.0.SelfAttention.{letter}', bias=False)
            if side == 'decoder':
                place = 'memory' if name in ('key', 'value') else f'{block}/cross_attention'
                out += linear(f'{place}/{name}', f'{layer}.1.EncDecAttention.{letter}', bias=False)
        out += norm(f'{block}/attention_norm', f'{layer}.0.layer_norm', bias=False)
        if side == 'decoder':
            out += norm(f'{block}/cross_attention_norm', f'{layer}.1.layer_norm', bias=False)
        names = (('up', 'wi'), ('down', 'wo'))
        if ours['call'].endswith('t5_1_1'):
            names = (('gate', 'wi_0'), ('up', 'wi_1'), ('down', 'wo'))
        for name, theirs in names:
            out += linear(f'{block}/mlp/{name}', f'{layer}.{last}.DenseReluDense.{theirs}', bias=False)
        out += norm(f'{block}/mlp_norm', f'{layer}.{last}.layer_norm', bias=False)
    return out


def _bart(ours: Config) -> list[Rule]:
    out = table('embed', 'model.shared') + _head(ours)
    for side in ('encoder', 'decoder'):
        block, layer = f'{side}/blocks', f'model.{side}.layers.{{}}'
        out += table(f'{side}/position_embed', f'model.{side}.embed_positions') + norm(
            f'{side}/embed_norm', f'model.{side}.layernorm_embedding'
        )
        for name, theirs in (('query', 'q_proj'), ('key', 'k_proj'), ('value', 'v_proj'), ('out', 'out_proj')):
            out += linear(f'{block}/attention/{name}', f'{layer}.self_attn.{theirs}')
            if side == 'decoder':
                place = 'memory' if name in ('key', 'value') else f'{block}/cross_attention'
                out += linear(f'{place}/{name}', f'{layer}.encoder_attn.{theirs}')
        out += norm(f'{block}/attention_norm', f'{layer}.self_attn_layer_norm') + norm(f'{block}/mlp_norm', f'{layer}.final_layer_norm')
        if side == 'decoder':
            out += norm(f'{block}/cross_attention_norm', f'{layer}.encoder_attn_layer_norm')
        out += linear(f'{block}/mlp/up', f'{layer}.fc1') + linear(f'{block}/mlp/down', f'{layer}.fc2')
    return out


def _bart_read(config: Config, names: Container[str]) -> dict[str, Any]:
    for what, default in (('attention_heads', 16), ('ffn_dim', 4096)):
        sides = [config.get(f'{side}_{what}', default) for side in ('encoder', 'decoder')]
        if sides[0] != sides[1]:
            raise BadInput(f'config.json has {what} {sides[0]} in the encoder and {sides[1]} in the decoder; lmx has the same in both')
    return {'embed_scale': config.get('d_model', 1024) ** 0.5 if config.get('scale_embedding') else 1.0}


def _bart_write(ours: Config) -> dict[str, Any]:
    heads_, hidden = ours['num_heads'], ours['mlp_dim']
    decoder = ours['num_layers'] if ours['num_decoder_layers'] is None else ours['num_decoder_layers']
    return {
        'decoder_attention_heads': heads_,
        'decoder_ffn_dim': hidden,
        'decoder_layers': decoder,
        'num_hidden_layers': ours['num_layers'],
        'scale_embedding': ours['embed_scale'] != 1.0,
    }


def _t5_read(config: Config, names: Container[str]) -> dict[str, Any]:
    """transformers 5 ties all T5s in its config and tells those of 1.1 by `scale_decoder_outputs` and by their tensors."""
    gated = str(config.get('feed_forward_proj', 'relu')).startswith('gated')
    tied = config.get('tie_word_embeddings', True)
    scaled = config.get('scale_decoder_outputs', tied)
    if scaled == gated:
        raise BadInput(f'config.json has {"scaled" if scaled else "unscaled"} output scores in T5{".1.1" if gated else ""}; lmx has not')
    return {'tied': tied and 'lm_head.weight' not in names}


def _t5_write(ours: Config) -> dict[str, Any]:
    decoder = ours['num_layers'] if ours['num_decoder_layers'] is None else ours['num_decoder_layers']
    return {'num_decoder_layers': decoder, 'tie_word_embeddings': not ours['call'].endswith('t5_1_1')}


_T5 = Family(
    model=models.t5,
    keys={
        'vocab_size': ('vocab_size', 32_128),
        'dim': ('d_model', 512),
        'num_layers': ('num_layers', 6),
        'num_decoder_layers': ('num_decoder_layers', None),
        'num_heads': ('num_heads', 8),
        'head_dim': ('d_kv', 64),
        'mlp_dim': ('d_ff', 2048),
        'num_buckets': ('relative_attention_num_buckets', 32),
        'max_distance': ('relative_attention_max_distance', 128),
        'eps': ('layer_norm_epsilon', 1e-6),
        'dropout_rate': ('dropout_rate', 0.1),
    },
    rules=_t5,
    architecture='T5ForConditionalGeneration',
    demands={'feed_forward_proj': ('relu',)},
    read=_t5_read,
    write=_t5_write,
    unused=r'^lm_head\.weight$|embed_tokens\.weight$|^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias',
)

FAMILIES: Mapping[str, Family] = {
    'gpt2': Family(
        model=models.gpt,
        keys={
            'vocab_size': ('vocab_size', 50_257),
            'dim': ('n_embd', 768),
            'num_layers': ('n_layer', 12),
            'num_heads': ('n_head', 12),
            'mlp_dim': ('n_inner', None),
            'max_length': ('n_positions', 1024),
            'dropout_rate': ('resid_pdrop', 0.1),
            'tied': ('tie_word_embeddings', True),
        },
        rules=_gpt2,
        architecture='GPT2LMHeadModel',
        prefix='transformer.',
        demands={
            'activation_function': ('gelu_new', 'gelu_pytorch_tanh'),
            'layer_norm_epsilon': (1e-5,),
            'scale_attn_weights': (True,),
            'scale_attn_by_inverse_layer_idx': (False,),
            'add_cross_attention': (False,),
        },
        write=lambda ours: {'embd_pdrop': ours['dropout_rate'], 'attn_pdrop': ours['dropout_rate']},
        unused=r'\.attn\.(masked_)?bias$|^lm_head\.weight$',
    ),
    'llama': Family(
        model=models.llama,
        keys=LLAMA_KEYS,
        rules=_llama,
        architecture='LlamaForCausalLM',
        prefix='model.',
        demands={**SILU, 'mlp_bias': (False,)},
        read=_llama_read,
        write=_their_rope,
        unused=COPIES,
    ),
    'mistral': Family(
        model=models.mistral,
        keys={**_without(LLAMA_KEYS, 'use_bias'), 'num_kv_heads': ('num_key_value_heads', 8), 'window': ('sliding_window', 4096)},
        rules=_llama,
        architecture='MistralForCausalLM',
        prefix='model.',
        demands=SILU,
        read=_llama_read,
        write=_their_rope,
        unused=COPIES,
    ),
    'mixtral': Family(
        model=models.mixtral,
        keys={
            **_without(LLAMA_KEYS, 'use_bias'),
            'num_kv_heads': ('num_key_value_heads', 8),
            'mlp_dim': ('intermediate_size', 14_336),
            'eps': ('rms_norm_eps', 1e-5),
            'window': ('sliding_window', None),
            'num_experts': ('num_local_experts', 8),
            'num_selected': ('num_experts_per_tok', 2),
            'balance_coefficient': ('router_aux_loss_coef', 0.001),
        },
        rules=_mixtral,
        architecture='MixtralForCausalLM',
        prefix='model.',
        demands={**SILU, 'router_jitter_noise': (0.0,)},
        read=lambda config, names: {'positions': _rope(config, 1_000_000.0)},
        write=_their_rope,
        unused=COPIES,
    ),
    'qwen3': Family(
        model=models.qwen3,
        keys={**LLAMA_KEYS, 'vocab_size': ('vocab_size', 151_936), 'head_dim': ('head_dim', 128)},
        rules=_qwen3,
        architecture='Qwen3ForCausalLM',
        prefix='model.',
        demands=SILU,
        read=_qwen3_read,
        write=_their_rope,
        unused=COPIES,
    ),
    'gemma2': Family(
        model=models.gemma2,
        keys={
            **_without(LLAMA_KEYS, 'use_bias'),
            'vocab_size': ('vocab_size', 256_000),
            'head_dim': ('head_dim', 256),
            'score_cap': ('attn_logit_softcapping', 50.0),
            'logit_cap': ('final_logit_softcapping', 30.0),
            'tied': ('tie_word_embeddings', True),
        },
        rules=_gemma2,
        architecture='Gemma2ForCausalLM',
        prefix='model.',
        demands={
            'hidden_activation': ('gelu_pytorch_tanh',),
            'attention_bias': (False,),
            'use_bidirectional_attention': (None, False),
        },
        read=_gemma2_read,
        write=_gemma2_write,
        unused=COPIES,
    ),
    'bert': Family(
        model=models.bert,
        keys=_bert_keys(num_types=('type_vocab_size', 2), max_length=('max_position_embeddings', 512)),
        rules=_bert,
        architecture='BertModel',
        prefix='bert.',
        heads={**_heads('Bert'), 'BertForPreTraining': 'masked_lm'},
        demands=BERT_DEMANDS,
        unused=BERT_UNUSED,
    ),
    'roberta': Family(
        model=models.roberta,
        keys=_bert_keys(num_types=('type_vocab_size', 2)),
        rules=_roberta,
        architecture='RobertaModel',
        prefix='roberta.',
        heads=_heads('Roberta'),
        demands={**BERT_DEMANDS, 'pad_token_id': (1,)},
        read=lambda config, names: {'max_length': config.get('max_position_embeddings', 512) - 2},
        write=lambda ours: {'max_position_embeddings': ours['max_length'] + 2, 'pad_token_id': 1},
        unused=BERT_UNUSED,
    ),
    'distilbert': Family(
        model=models.distilbert,
        keys={
            'vocab_size': ('vocab_size', 30_522),
            'dim': ('dim', 768),
            'num_layers': ('n_layers', 6),
            'num_heads': ('n_heads', 12),
            'mlp_dim': ('hidden_dim', 3072),
            'max_length': ('max_position_embeddings', 512),
            'dropout_rate': ('dropout', 0.1),
        },
        rules=_distilbert,
        architecture='DistilBertModel',
        prefix='distilbert.',
        heads=_heads('DistilBert'),
        demands={'activation': ('gelu',)},
        unused=r'position_ids$|^vocab_projector\.weight$',
    ),
    'modernbert': Family(
        model=models.modernbert,
        keys={
            'vocab_size': ('vocab_size', 50_368),
            'dim': ('hidden_size', 768),
            'num_layers': ('num_hidden_layers', 22),
            'num_heads': ('num_attention_heads', 12),
            'mlp_dim': ('intermediate_size', 1152),
            'window': ('local_attention', 128),
            'eps': ('norm_eps', 1e-5),
        },
        rules=_modernbert,
        architecture='ModernBertModel',
        prefix='model.',
        heads=_heads('ModernBert'),
        demands={
            'hidden_activation': ('gelu',),
            'classifier_activation': ('gelu',),
            'norm_bias': (False,),
            'attention_bias': (False,),
            'mlp_bias': (False,),
            'classifier_bias': (False,),
            'decoder_bias': (True,),
            'tie_word_embeddings': (True,),
        },
        read=_modernbert_read,
        write=_modernbert_write,
        unused=r'^decoder\.weight$',
    ),
    't5': _T5,
    't5_1_1': dataclasses.replace(_T5, model=models.t5_1_1, demands={'feed_forward_proj': ('gated-gelu',)}),
    'bart': Family(
        model=models.bart,
        keys={
            'vocab_size': ('vocab_size', 50_265),
            'dim': ('d_model', 1024),
            'num_layers': ('encoder_layers', 12),
            'num_decoder_layers': ('decoder_layers', 12),
            'num_heads': ('encoder_attention_heads', 16),
            'mlp_dim': ('encoder_ffn_dim', 4096),
            'max_length': ('max_position_embeddings', 1024),
            'dropout_rate': ('dropout', 0.1),
            'attention_dropout_rate': ('attention_dropout', 0.0),
            'mlp_dropout_rate': ('activation_dropout', 0.0),
            'tied': ('tie_word_embeddings', True),
        },
        rules=_bart,
        architecture='BartForConditionalGeneration',
        prefix='model.',
        demands={'activation_function': ('gelu',)},
        read=_bart_read,
        write=_bart_write,
        unused=r'^lm_head\.weight$|embed_tokens\.weight$|^final_logits_bias$',
    ),
}


def family_of(config: Config) -> Family:
    """The family of a config.json.

    Raises:
      BadInput: a `model_type` that lmx does not have; the supported ones are listed.
    """
    kind = config.get('model_type')
    if kind == 't5' and str(config.get('feed_forward_proj', 'relu')).startswith('gated'):
        return FAMILIES['t5_1_1']
    if kind not in FAMILIES:
        known = [name for name in FAMILIES if name != 't5_1_1']
        raise BadInput(f'model_type {kind!r} is not supported; there are {", ".join(known)}{nearest(str(kind), known)}')
    return FAMILIES[kind]


def family_of_model(call: str) -> tuple[str, Family]:
    """(model_type, family) of one of our functions, 'module:qualname'.

    Raises:
      BadInput: a model that transformers does not have.
    """
    from lmx.spec import name_of

    for kind, family in FAMILIES.items():
        if name_of(family.model) == call:
            return ('t5' if kind == 't5_1_1' else kind), family
    raise BadInput(
        f'{call} has no counterpart in transformers; there are {", ".join(name_of(family.model) for family in FAMILIES.values())};'
        ' `lmx export --to=FILE.txt` writes word vectors alone'
    )
