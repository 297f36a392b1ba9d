"""Weights of `torch.nn.Transformer`: `lmx.models.transformer(last_norm=True)` has the same parameters under other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmx.interop.rules import Rule, linear, norm


def rules() -> list[Rule]:
    """All but the embeddings and the output weights, which `torch.nn.Transformer` leaves to its user."""
    out = []
    for side in ('encoder', 'decoder'):
        block, layer = f'{side}/blocks', f'{side}.layers.{{}}'
        out += _attention({name: f'{block}/attention/{name}' for name in ('query', 'key', 'value', 'out')}, f'{layer}.self_attn')
        out += linear(f'{block}/mlp/up', f'{layer}.linear1') + linear(f'{block}/mlp/down', f'{layer}.linear2')
        norms = ['attention_norm', 'mlp_norm'] if side == 'encoder' else ['attention_norm', 'cross_attention_norm', 'mlp_norm']
        for number, name in enumerate(norms, 1):
            out += norm(f'{block}/{name}', f'{layer}.norm{number}')
        out += norm(f'{side}/final_norm', f'{side}.norm')
    cross = 'decoder/blocks/cross_attention'
    places = {'query': f'{cross}/query', 'key': 'memory/key', 'value': 'memory/value', 'out': f'{cross}/out'}
    return out + _attention(places, 'decoder.layers.{}.multihead_attn')


def _attention(places: Mapping[str, str], theirs: str) -> list[Rule]:
    out = linear(places['out'], f'{theirs}.out_proj')
    for part, name in enumerate(('query', 'key', 'value')):
        out.append(Rule(f'{places[name]}/kernel', f'{theirs}.in_proj_weight', transposed=True, part=part, parts=3))
        out.append(Rule(f'{places[name]}/bias', f'{theirs}.in_proj_bias', part=part, parts=3))
    return out


def to_ours(tensors: Mapping[str, Any], num_layers: int, num_decoder_layers: int) -> dict[str, np.ndarray]:
    """{path: array} of a `state_dict()` as numpy arrays; the paths are those of `lmx.models.transformer`."""
    out = {}
    for rule in rules():
        layers = 1 if '{}' not in rule.theirs else num_layers if rule.theirs.startswith('encoder') else num_decoder_layers
        pieces = [rule.to_ours(tensors[rule.theirs.format(layer)]) for layer in range(layers)]
        out[rule.ours] = np.stack(pieces) if '{}' in rule.theirs else pieces[0]
    return out
