"""Directories that cannot be read are refused with what is wrong in them; sizes and types are kept."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lmx import models, spec
from lmx.interop import families, huggingface
from lmx.interop.rules import Rule, to_theirs
from lmx.types import BadInput

CONFIG = {'model_type': 'gpt2', 'vocab_size': 11, 'n_embd': 8, 'n_layer': 2, 'n_head': 2, 'n_positions': 16}
FAMILY = families.FAMILIES['gpt2']


@pytest.fixture
def folder(tmp_path):
    """A GPT-2 of two layers, as one file."""
    call = FAMILY.to_ours(CONFIG)
    model = spec.build({'model': call}, 'model')
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in huggingface.shapes_of(model).items()}
    huggingface.save(FAMILY, spec.to_plain(call), params, tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps(CONFIG))
    return tmp_path


def load(folder):
    config = huggingface.read_config(folder)
    family = families.family_of(config)
    tensors = huggingface.Tensors(folder)
    call = family.to_ours(config, tensors)
    shapes = huggingface.shapes_of(spec.build({'model': call}, 'model'))
    found = huggingface.mapped(family, spec.to_plain(call), shapes, tensors)
    return {path: found.leaf(path) for path in shapes}, found.unused


def tensors_of(folder):
    tensors = huggingface.Tensors(folder)
    return {name: tensors[name] for name in tensors}


def test_missing_extra_and_misshapen_tensors_are_a_table(folder):
    tensors = tensors_of(folder)
    del tensors['transformer.h.1.mlp.c_fc.bias']
    tensors['transformer.wte.weight'] = np.zeros((11, 9), np.float32)
    tensors['lm_tail.weight'] = np.zeros(3, np.float32)
    save_file(tensors, folder / 'model.safetensors')
    with pytest.raises(BadInput) as error:
        load(folder)
    lines = str(error.value).splitlines()
    assert lines[0].startswith('3 tensors do not fit')
    assert [line.split() for line in lines[1:]] == [
        ['tensor', 'expected', 'found'],
        ['lm_tail.weight', 'nothing', '(3,)'],
        ['transformer.h.1.mlp.c_fc.bias', '(32,)', 'missing'],
        ['transformer.wte.weight', '(11,', '8)', '(11,', '9)'],
    ]


def test_a_pickle_is_refused(folder):
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
    with pytest.raises(BadInput, match=r'pytorch_model.bin, a pickle, which runs code'):
        huggingface.Tensors(folder)
    (folder / 'pytorch_model.bin').unlink()
    with pytest.raises(BadInput, match='holds no'):
        huggingface.Tensors(folder)


def test_a_truncated_file_and_a_missing_shard_are_named(folder):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r'model\.safetensors is damaged or cut off'):
        huggingface.Tensors(folder)
    index = {'weight_map': {'a': 'model.safetensors', 'b': 'model-00002-of-00002.safetensors'}}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r'lacks 1 of the 2 files of its index \(model-00002'):
        huggingface.Tensors(folder)


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'model_type': 'gpt3'}, "'gpt3' is not supported; there are gpt2, llama.*did you mean 'gpt2'"),
        ({'activation_function': 'relu'}, "activation_function='relu'; lmx has 'gelu_new'"),
        ({'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx=True'),
    ],
)
def test_settings_that_lmx_does_not_have_are_refused(folder, change, says):
    (folder / 'config.json').write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(BadInput, match=says):
        load(folder)


@pytest.mark.parametrize(
    ('kind', 'config', 'says'),
    [
        (
            'llama',
            {'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}},
            "rope_type 'dynamic'; lmx has default, linear, llama3 and yarn",
        ),
        ('llama', {'rope_parameters': {'rope_type': 'default', 'partial_rotary_factor': 0.5}}, 'partial_rotary_factor 0.5'),
        ('qwen3', {'use_sliding_window': True}, 'sliding windows in Qwen3'),
        ('bert', {'architectures': ['BertForMaskedLMs']}, "did you mean 'BertForMaskedLM'"),
        ('roberta', {'pad_token_id': 0}, 'pad_token_id=0'),
        ('bart', {'encoder_ffn_dim': 8, 'decoder_ffn_dim': 9}, 'ffn_dim 8 in the encoder and 9 in the decoder'),
        ('modernbert', {'layer_types': ['full_attention', 'sliding_attention', 'full_attention', 'full_attention']}, r'layers \[0, 2, 3\]'),
        ('t5', {'tie_word_embeddings': False}, 'unscaled output scores in T5'),
    ],
)
def test_other_families_refuse_what_would_be_silently_wrong(kind, config, says):
    with pytest.raises(BadInput, match=says):
        families.family_of({'model_type': kind}).to_ours({'model_type': kind, **config})


def test_a_bare_model_and_tensorflows_names_are_read(folder):
    expected, _ = load(folder)
    tensors = {name.removeprefix('transformer.'): tensor for name, tensor in tensors_of(folder).items()}
    save_file({**tensors, 'h.0.attn.bias': np.zeros((1, 1, 4, 4), np.float32)}, folder / 'model.safetensors')
    found, unused = load(folder)
    assert unused == ['h.0.attn.bias']
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf)


def test_shards_and_bfloat16(folder, monkeypatch):
    params, _ = load(folder)
    monkeypatch.setattr(huggingface, 'SHARD_BYTES', 2000)
    call = spec.to_plain(FAMILY.to_ours(CONFIG))
    huggingface.save(FAMILY, call, params, folder / 'half', dtype='bfloat16')
    (folder / 'half' / 'config.json').write_text(json.dumps(CONFIG))
    assert len(list((folder / 'half').glob('model-0*-of-0*.safetensors'))) > 2
    tensors = huggingface.Tensors(folder / 'half')
    assert {tensors.dtype(name) for name in tensors} == {'BF16'}
    half, _ = load(folder / 'half')
    for path, leaf in half.items():
        np.testing.assert_array_equal(leaf, params[path].astype(jnp.bfloat16).astype(np.float32))


def test_what_no_rule_knows_is_not_dropped():
    with pytest.raises(BadInput, match=r'1 parameters have no place in the foreign format \(b\)'):
        list(to_theirs([Rule('a', 'x')], {'a': np.zeros(2), 'b': np.zeros(2)}))


def test_models_that_transformers_has_not_are_named():
    with pytest.raises(BadInput, match='has no counterpart in transformers'):
        families.family_of_model(spec.name_of(models.transformer))


def test_an_import_needs_less_memory_than_the_model(tmp_path):
    """Measured as what Python and NumPy allocate, on a model of 15 MB whose largest leaf is a fifth of it; at most 1.3 is promised."""
    import math
    import tracemalloc

    from lmx.train import weights

    config = {**CONFIG, 'vocab_size': 4000, 'n_embd': 192, 'n_layer': 6, 'n_positions': 64, 'n_head': 4}
    call = FAMILY.to_ours(config)
    shapes = huggingface.shapes_of(spec.build({'model': call}, 'model'))
    huggingface.save(FAMILY, spec.to_plain(call), {path: np.ones(leaf.shape, np.float32) for path, leaf in shapes.items()}, tmp_path)
    tracemalloc.start()
    found = huggingface.mapped(FAMILY, spec.to_plain(call), shapes, huggingface.Tensors(tmp_path))
    weights.write(tmp_path / weights.FILE, {path: leaf.shape for path, leaf in shapes.items()}, found.leaf)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = 4 * sum(math.prod(leaf.shape) for leaf in shapes.values())
    assert peak < 0.6 * size
    assert np.all(weights.read(tmp_path / weights.FILE)['embed']['embedding'] == 1)
