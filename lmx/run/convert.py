"""`lmx import` and `lmx export`: a Hugging Face directory as a run, and a run as a Hugging Face directory or its word vectors as a text file."""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmx import models, optim, spec, tasks, text
from lmx.interop import families, huggingface
from lmx.nn import heads
from lmx.nn.positions import Rotary
from lmx.run.config import base, load
from lmx.text import vectors
from lmx.train import weights
from lmx.train.init import flat, read_params
from lmx.train.workdir import Workdir, read_config
from lmx.types import BadInput

ORIGIN = 'huggingface.json'
"""In an imported workdir: the config.json that it came with, its tensors' dtype, and the names of what was left out."""

TASKS: Mapping[str | None, str] = {
    'decoder': 'language_modelling',
    'seq2seq': 'text_to_text',
    'masked_lm': 'masked_language_modelling',
    'classifier': 'text_classification',
    'per_token': 'token_classification',
    'span': 'question_answering',
    'embedding': 'semantic_search',
    None: 'semantic_search',
}
"""What a model is imported for, by its head."""

VECTORS = ('.txt', '.txt.gz', '.vec', '.vec.gz')
"""How the name of a file of word vectors ends."""

OF_TRAINING = ('call', 'remat', 'dtype', 'implementation', 'path', 'balance', 'z_coefficient', 'balance_coefficient')
"""Keywords that change how a model is trained or computed, and not what it says."""


def import_model(
    source: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    task: str | None = None,
    config: str | None = None,
    dtype: str = 'float32',
) -> str:
    """Makes a run of a Hugging Face directory; returns what was mapped, a line per parameter.

    Args:
      source: a folder with config.json, *.safetensors (or shards and their index) and a tokenizer; or a name on the hub.
      workdir: the run to make; `evaluate`, `predict` and `search` take it, and `init.run` of a new config starts from it.
      task: a name in `lmx.tasks`; None = what the architecture is for.
      config: FILE.py[:ARG] with the data and the task of the run; its model and tokenizer are replaced.
      dtype: what the model computes in; parameters are float32.

    Raises:
      BadInput: a model that lmx does not have, a pickle, missing, extra or misshapen tensors (a table), a damaged file, a workdir in use.
    """
    folder = _folder(source)
    theirs = huggingface.read_config(folder)
    family = families.family_of(theirs)
    tensors = huggingface.Tensors(folder)
    ours = family.to_ours(theirs, tensors)
    if 'head' in ours and ours.head is None:
        ours.head = spec.spec(heads.embedding)
    ours.dtype = dtype
    tokenizer = text.pretrained(folder=str(folder))
    made = _config(config, folder, ours, tokenizer, task, theirs)
    model = spec.build({'model': ours}, 'model')
    shapes = {path: leaf.shape for path, leaf in huggingface.shapes_of(model).items()}
    found = huggingface.mapped(family, spec.to_plain(ours), huggingface.shapes_of(model), tensors)
    run = Workdir(workdir, made)
    try:
        if (run.path / weights.FILE).exists() or (run.path / 'checkpoints').exists():
            raise BadInput(f'{run.path} holds a run already; give a new --workdir')
        run.record(made)
        tokenizer.save(run.path / 'tokenizer.json')
        kinds = sorted({tensors.dtype(name) for name in tensors})
        huggingface.write_json(
            run.path / ORIGIN,
            {'config': huggingface.plain(theirs), 'dtype': kinds[0] if len(kinds) == 1 else 'F32', 'unused': found.unused},
        )
        weights.write(run.path / weights.FILE, shapes, found.leaf, _bar)
    finally:
        run.close()
    lines = [f'{path} {list(shape)} <- {_what(found.rules[path])}' for path, shape in shapes.items()]
    left = [f'not used: {", ".join(found.unused)}'] if found.unused else []
    count = sum(math.prod(shape) for shape in shapes.values())
    return '\n'.join([*lines, *left, f'{len(lines)} parameters, {count:,} numbers, for {made.task.call} in {run.path}'])


def _folder(source: str | os.PathLike[str]) -> pathlib.Path:
    folder = pathlib.Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file() or str(source).count('/') > 1 or str(source).startswith(('.', '/', '~')):
        raise BadInput(f'--from={source} is no folder; give the folder of a Hugging Face model, or its name on the hub')
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise BadInput(f"--from={source} is no folder, and a name on the hub needs huggingface_hub; `pip install 'lmx[hub]'`") from None
    from lmx.data.catalogue import online

    url = os.environ.get('HF_ENDPOINT', 'https://huggingface.co')
    if not online(url):
        raise BadInput(f'--from={source} is no folder, and {url} cannot be reached; download the model where there is a network')
    return pathlib.Path(snapshot_download(str(source), allow_patterns=['*.json', '*.safetensors', '*.txt', '*.model']))


def _config(path: str | None, folder: pathlib.Path, ours: Any, tokenizer: Any, task: str | None, theirs: Mapping[str, Any]) -> Any:
    """The run's config: the given one, or one with the architecture's own task and no data."""
    made = load(path) if path is not None else base()
    with made.unlocked(), made.ignore_type():
        if path is None:
            made.steps, made.evaluate, made.data = 0, (), {}
            made.optim = spec.spec(optim.optimizer, rule=spec.spec(optim.adam), schedule=0.0)
        made.model = ours
        made.tokenizer = spec.spec(text.pretrained, folder=str(folder.absolute()))
        if task is not None or path is None:
            made.task = _task(task, ours, tokenizer, theirs)
        made.init = None
    return spec.finish(made)


def _task(name: str | None, ours: Any, tokenizer: Any, theirs: Mapping[str, Any]) -> Any:
    import inspect

    if name is None:
        name = TASKS[families.head_kind(ours) if 'head' in ours else 'seq2seq' if theirs.get('is_encoder_decoder') else 'decoder']
    known = [task for task in tasks.__all__ if not task.startswith('_')]
    if name not in known:
        raise BadInput(f'there is no task {name!r}; there are {", ".join(known)}{spec.nearest(name, known)}; give --task')
    function = getattr(tasks, name)
    takes = inspect.signature(function).parameters
    limit = (
        theirs.get(huggingface.MAX_LENGTH)
        or ours.get('max_length')
        or theirs.get('max_position_embeddings')
        or theirs.get('n_positions')
        or 512
    )
    offered: dict[str, Any] = {
        'tokenizer': spec.ref('tokenizer'),
        'max_length': min(limit, 1024),
        'labels': _labels(theirs),
        'text': 'text' if name == 'semantic_search' else None,
        'other': 'other' if name == 'semantic_search' else None,
        'max_source_length': min(limit, 512),
        'max_target_length': min(limit, 128),
        'start_id': theirs.get('decoder_start_token_id'),
    }
    return spec.spec(function, **{key: value for key, value in offered.items() if key in takes and value is not None})


def _labels(theirs: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = theirs.get('id2label')
    return tuple(names[key] for key in sorted(names, key=int)) if names else None


def _bar(paths: Any) -> Any:
    from tqdm import tqdm

    return tqdm(paths, desc='import', unit='parameter', leave=False, file=sys.stderr, delay=1)


def _what(rule: Any) -> str:
    part = f', part {rule.part + 1} of {rule.parts}' if rule.parts > 1 else ''
    return f'{rule.theirs}{part}{", transposed" if rule.transposed else ""}'


def export_model(
    workdir: str | os.PathLike[str], folder: str | os.PathLike[str], *, checkpoint: str = 'last', dtype: str | None = None
) -> str:
    """Writes a run's model and tokenizer as transformers reads them; returns the folder and how to load it.

    Args:
      folder: to write; a name that ends as a text file does (`VECTORS`) takes the word vectors alone, see `export_vectors`.
      checkpoint: 'last', 'best', a step or 'average:K'. The parameters are the averaged ones (EMA) where the run kept them.
      dtype: of the tensors; None = what an imported model came with, else float32.

    Raises:
      BadInput: a model, or a setting of it, that transformers does not have; a folder that is not empty.
    """
    if str(folder).endswith(VECTORS):
        if dtype is not None:
            raise BadInput(f'a text file has no dtype {dtype}; leave it out')
        return export_vectors(workdir, folder, checkpoint=checkpoint)
    target = pathlib.Path(folder)
    if target.exists() and any(target.iterdir()):
        raise BadInput(f'{folder} is not empty; give a new --to')
    config = read_config(workdir)
    ours = resolved(config, pathlib.Path(workdir))
    kind, family = families.family_of_model(ours['call'])
    origin_path = pathlib.Path(workdir) / ORIGIN
    origin = json.loads(origin_path.read_text()) if origin_path.exists() else {}
    theirs = {'model_type': kind, **family.to_theirs(ours)}
    _check_same(family, ours, theirs)
    dtype = dtype or {'BF16': 'bfloat16', 'F16': 'float16'}.get(origin.get('dtype', 'F32'), 'float32')
    params = flat(read_params(str(workdir), checkpoint))
    names = huggingface.save(family, ours, params, target, dtype)
    tokenizer_path = pathlib.Path(workdir) / 'tokenizer.json'
    tokenizer = text.load(path=str(tokenizer_path)) if tokenizer_path.exists() else None
    kept = origin.get('config', {}) if origin.get('config', {}).get('model_type') == kind else _special_ids(tokenizer, config)
    huggingface.write_json(target / 'config.json', {**kept, **theirs, 'dtype': dtype})
    if families.head_kind(ours) == 'embedding':
        huggingface.write_embedding(target, ours['head'], ours['dim'], config.task.get('max_length', ours['max_length']))
    if tokenizer is not None:
        text.save_pretrained(tokenizer, str(target))
    count = sum(np.size(leaf) for leaf in params.values())
    return f'{count:,} numbers in {len(names)} tensors, {dtype}, in {target}; transformers.{theirs["architectures"][0]}.from_pretrained reads it'


def export_vectors(
    workdir: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    checkpoint: str = 'last',
    table: str = 'embed/embedding',
    style: str = 'word2vec',
) -> str:
    """Writes the vectors of a run's tokens as a text file, and says how many.

    Special tokens and tokens with a blank in them are left out, for which the format has no place.

    Args:
      path: the file, compressed if its name ends in .gz; see `lmx.text.vectors.save`.
      checkpoint: see `export_model`.
      table: the path of the parameter [V, D]; that of the input vectors in every model of lmx.
      style: 'word2vec' or 'glove'.

    Raises:
      BadInput: no such run, checkpoint or parameter; a file that is there already.
    """
    if pathlib.Path(path).exists():
        raise BadInput(f'{path} is there already; give a new --to')
    params = flat(read_params(str(workdir), checkpoint))
    if table not in params:
        raise BadInput(f'{workdir} has no parameter {table!r}{spec.nearest(table, list(params))}')
    tokenizer = text.load(path=str(workdir))
    vocab = [tokenizer.inner.id_to_token(index) or '' for index in range(tokenizer.vocab_size)]
    kept = [index for index, word in enumerate(vocab) if word and not tokenizer.is_special[index] and not any(c.isspace() for c in word)]
    matrix = np.asarray(params[table])[kept]
    vectors.save(path, [vocab[index] for index in kept], matrix, style=style)
    return f'{len(kept):,} vectors of {matrix.shape[1]} numbers, in the format of {style}, in {path}'


def resolved(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """The model's spec as plain values: references followed, nested calls kept as calls."""
    path = workdir / 'tokenizer.json'
    given = {'tokenizer': text.load(path=str(path))} if path.exists() else {}
    builder = spec.Builder(config, given)

    def value(node: Any, path: str) -> Any:
        if isinstance(node, Mapping):
            return {key: value(item, f'{path}.{key}') for key, item in node.items()}
        return builder(path) if isinstance(node, str) and node.startswith('${') and ':' not in node else node

    return value(spec.to_plain(config.model), 'model')


def _check_same(family: families.Family, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """What transformers would make of the exported config is the model that was trained, or the export is refused."""
    names = ('lm_head.weight',) if not ours.get('tied', True) else ()
    mine, its = _explicit(ours), _explicit(spec.to_plain(family.to_ours(theirs, names)))
    for path, here, there in spec.diff(mine, its):
        if path.split('.')[0] not in OF_TRAINING and 'dropout' not in path:
            raise BadInput(f'model.{path} is {here!r}, which {theirs["model_type"]} of transformers does not have ({there!r} there)')


def _explicit(ours: Mapping[str, Any]) -> dict[str, Any]:
    """None written out where it stands for a number."""
    out = dict(ours)
    if families.head_kind(out) == 'embedding':  # it has no parameters, and is written beside the model
        out['head'] = None
    layers, heads = out['num_layers'], out['num_heads']
    numbers = {'num_kv_heads': heads, 'head_dim': out['dim'] // heads, 'num_decoder_layers': layers, 'mlp_dim': 4 * out['dim']}
    numbers['query_scale'] = (out.get('head_dim') or numbers['head_dim']) ** -0.5
    for name, value in numbers.items():
        if name in out and out[name] is None:
            out[name] = value
    if isinstance(out.get('windows'), int):
        out['windows'] = tuple(None if layer % 2 else out['windows'] for layer in range(layers))
    if out.get('positions') == spec.to_plain(spec.spec(Rotary)) and out['call'] != spec.name_of(models.gpt):
        out['positions'] = None
    return out


def _special_ids(tokenizer: Any, config: Any) -> dict[str, Any]:
    """Ids of special tokens, and the longest text, of a model that was made here."""
    names = ('eos', 'bos', 'pad', 'cls', 'sep')
    ids = {f'{name}_token_id': getattr(tokenizer, f'{name}_id', None) for name in names}
    length = config.task.get('max_length')
    return {**ids, **({'max_position_embeddings': length} if length else {})}
