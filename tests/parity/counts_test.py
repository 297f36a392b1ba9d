"""As many parameters as the published models have, by shape alone: transformers on the meta device beside ours through `jax.eval_shape`."""

import math

import pytest

from lmx import spec
from lmx.interop import families, huggingface

pytest.importorskip('torch')
pytest.importorskip('transformers')
import torch
import transformers

pytestmark = pytest.mark.parity


def gpt2(dim: int, layers: int, heads: int) -> tuple:
    return 'GPT2', 'LMHeadModel', {'n_embd': dim, 'n_layer': layers, 'n_head': heads}


def bert(dim: int, layers: int, heads: int) -> tuple:
    return 'Bert', 'Model', {'hidden_size': dim, 'num_hidden_layers': layers, 'num_attention_heads': heads, 'intermediate_size': 4 * dim}


def t5(dim: int, hidden: int, layers: int, heads: int, head_dim: int = 64) -> tuple:
    return 'T5', 'ForConditionalGeneration', {'d_model': dim, 'd_ff': hidden, 'num_layers': layers, 'num_heads': heads, 'd_kv': head_dim}


def bart(dim: int, layers: int, heads: int) -> tuple:
    sides = {f'{side}_{what}': value for side in ('encoder', 'decoder') for what, value in (('layers', layers), ('attention_heads', heads))}
    return 'Bart', 'ForConditionalGeneration', {'d_model': dim, **sides, 'encoder_ffn_dim': 4 * dim, 'decoder_ffn_dim': 4 * dim}


def llama(dim: int, hidden: int, layers: int, heads: int, family: str = 'Llama', **more: int) -> tuple:
    sizes = {'hidden_size': dim, 'intermediate_size': hidden, 'num_hidden_layers': layers, 'num_attention_heads': heads}
    return family, 'ForCausalLM', {**sizes, **more}


# Sizes from the papers' tables and the released configurations; the counts come from transformers.
MODELS = {
    'gpt2': gpt2(768, 12, 12),
    'gpt2-medium': gpt2(1024, 24, 16),
    'gpt2-large': gpt2(1280, 36, 20),
    'gpt2-xl': gpt2(1600, 48, 25),
    'bert-base': bert(768, 12, 12),
    'bert-large': bert(1024, 24, 16),
    'roberta-base': ('Roberta', 'ForMaskedLM', {'vocab_size': 50_265, 'max_position_embeddings': 514, 'type_vocab_size': 1}),
    'distilbert': ('DistilBert', 'ForMaskedLM', {}),
    'modernbert-base': ('ModernBert', 'ForMaskedLM', {}),
    't5-small': t5(512, 2048, 6, 8),
    't5-base': t5(768, 3072, 12, 12),
    't5-large': t5(1024, 4096, 24, 16),
    't5-3b': t5(1024, 16_384, 24, 32, 128),
    't5-11b': t5(1024, 65_536, 24, 128, 128),
    'bart-base': bart(768, 6, 12),
    'bart-large': bart(1024, 12, 16),
    'llama-7b': llama(4096, 11_008, 32, 32),
    'llama-13b': llama(5120, 13_824, 40, 40),
    'llama-33b': llama(6656, 17_920, 60, 52),
    'llama-65b': llama(8192, 22_016, 80, 64),
    'llama-3-8b': llama(4096, 14_336, 32, 32, num_key_value_heads=8, vocab_size=128_256),
    'llama-3-70b': llama(8192, 28_672, 80, 64, num_key_value_heads=8, vocab_size=128_256),
    'mistral-7b': llama(4096, 14_336, 32, 32, 'Mistral', num_key_value_heads=8),
    'qwen3-8b': llama(4096, 12_288, 36, 32, 'Qwen3', num_key_value_heads=8, head_dim=128),
    'gemma-2-9b': llama(3584, 14_336, 42, 16, 'Gemma2', num_key_value_heads=8, head_dim=256),
    'mixtral-8x7b': ('Mixtral', 'ForCausalLM', {}),
}
PUBLISHED = {  # where a paper, or its code, gives the number to the last digit
    'gpt2': 124_439_808,
    'gpt2-medium': 354_823_168,
    'gpt2-large': 774_030_080,
    'gpt2-xl': 1_557_611_200,
    't5-small': 60_506_624,
    't5-base': 222_903_552,
    'llama-7b': 6_738_415_616,
    'llama-3-8b': 8_030_261_248,
    'mixtral-8x7b': 46_702_792_704,
}


@pytest.mark.parametrize('name', MODELS)
def test_as_many_parameters_as_the_published_model(name):
    kind, head, settings = MODELS[name]
    config = getattr(transformers, f'{kind}Config')(**settings)
    with torch.device('meta'):
        theirs = getattr(transformers, f'{kind}{head}')(config)
    known = {key: parameter.numel() for key, parameter in theirs.named_parameters()}
    if name == 'bert-base' or name == 'bert-large':
        known = {key: count for key, count in known.items() if 'pooler' not in key}  # it belongs to our classifier
    call = families.family_of(config.to_dict()).to_ours({**config.to_dict(), 'architectures': [kind + head]}, known)
    model = spec.build({'model': call}, 'model')
    ours = sum(math.prod(leaf.shape) for leaf in huggingface.shapes_of(model).values())
    assert ours == sum(known.values())
    assert ours == PUBLISHED.get(name, ours)
