"""Weights of Hugging Face directories, in and out, tensor by tensor, with every tensor accounted for."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmx import trees
from lmx.interop.families import EMBEDDING, Family
from lmx.interop.rules import Rule, to_theirs
from lmx.nn import heads
from lmx.spec import name_of, spec
from lmx.types import BadInput

MAX_LENGTH = 'lmx_max_length'
"""In a config: the longest text that a sentence-transformers model was made for."""
POOLS = {'pooling_mode_cls_token': heads.first, 'pooling_mode_mean_tokens': heads.mean, 'pooling_mode_lasttoken': heads.last}
SHARD_BYTES = 5_000_000_000
PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt', '*.pkl')


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a Hugging Face directory.

    Raises:
      BadInput: there is none, or it is no JSON.
    """
    path = pathlib.Path(folder) / 'config.json'
    if not path.is_file():
        raise BadInput(f'{folder} holds no config.json; give the folder of a Hugging Face model')
    config = _json(path)
    modules = pathlib.Path(folder) / 'modules.json'
    if not modules.is_file():
        return config
    limits = modules.parent / 'sentence_bert_config.json'
    longest = _json(limits).get('max_seq_length') if limits.is_file() else None
    return {**config, EMBEDDING: _embedding(modules), MAX_LENGTH: longest}


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f'{path} cannot be read ({error}); fetch it again') from None


def _embedding(modules: pathlib.Path) -> Any:
    """The head that a sentence-transformers directory describes: how vectors of tokens become one."""
    steps = {step['type'].rpartition('.')[2]: modules.parent / step['path'] for step in _json(modules)}
    unknown = sorted(set(steps) - {'Transformer', 'Pooling', 'Normalize'})
    if unknown or 'Pooling' not in steps:
        raise BadInput(f'{modules} has {unknown[0] if unknown else "no Pooling"}; lmx has Transformer, Pooling and Normalize')
    given = _json(steps['Pooling'] / 'config.json')
    modes = [mode for mode, on in given.items() if mode.startswith('pooling_mode_') and on is True]
    modes = [f'pooling_mode_{given["pooling_mode"]}'] if 'pooling_mode' in given else modes
    if len(modes) != 1 or modes[0] not in POOLS:
        raise BadInput(f'{steps["Pooling"]}/config.json has {", ".join(modes) or "no mode"}; lmx has one of {", ".join(POOLS)}')
    return spec(heads.embedding, pool=POOLS[modes[0]], normalize='Normalize' in steps)


def write_embedding(folder: pathlib.Path, head: Mapping[str, Any], dim: int, max_length: int) -> None:
    """Writes what `read_config` reads of a sentence-transformers directory."""
    mode = next(mode for mode, pool in POOLS.items() if name_of(pool) in head['pool'])
    names = ['Transformer', 'Pooling', *(['Normalize'] if head['normalize'] else [])]
    paths = ['', '1_Pooling', '2_Normalize']
    (folder / '1_Pooling').mkdir(exist_ok=True)
    kind = 'sentence_transformers.models'
    steps = [{'idx': i, 'name': str(i), 'path': path, 'type': f'{kind}.{name}'} for i, (name, path) in enumerate(zip(names, paths))]
    write_json(folder / '1_Pooling' / 'config.json', {'word_embedding_dimension': dim, **{known: known == mode for known in POOLS}})
    write_json(folder / 'sentence_bert_config.json', {'max_seq_length': max_length, 'do_lower_case': False})
    write_json(folder / 'modules.json', steps)


class Tensors:
    """The tensors of a directory by name, read from the file when asked for; one file, or shards with an index.

    Raises:
      BadInput: no safetensors (pickles are refused), a damaged file, a shard that is missing.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        folder = pathlib.Path(folder)
        index = folder / 'model.safetensors.index.json'
        if index.is_file():
            files = sorted(set(json.loads(index.read_text())['weight_map'].values()))
            missing = [name for name in files if not (folder / name).is_file()]
            if missing:
                raise BadInput(f'{folder} lacks {len(missing)} of the {len(files)} files of its index ({missing[0]}); fetch them')
        else:
            files = sorted(path.name for path in folder.glob('*.safetensors'))
        if not files:
            pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
            if pickles:
                raise BadInput(f'{folder} has only {pickles[0]}, a pickle, which runs code when it is read; convert it to safetensors')
            raise BadInput(f'{folder} holds no *.safetensors; give the folder of a Hugging Face model')
        self._where: dict[str, pathlib.Path] = {}
        self._facts: dict[str, tuple[tuple[int, ...], str]] = {}
        for file in files:
            with _open(folder / file) as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    facts = opened.get_slice(name)
                    self._where[name], self._facts[name] = folder / file, (tuple(facts.get_shape()), facts.get_dtype())

    def __iter__(self) -> Any:
        return iter(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        return self._facts[name][0]

    def dtype(self, name: str) -> str:
        """As safetensors writes it: 'F32', 'BF16', 'F16', ..."""
        return self._facts[name][1]

    def __getitem__(self, name: str) -> np.ndarray:
        # Opened anew: a file that stays mapped would stay in memory, tensor by tensor, until all of it is there.
        with _open(self._where[name]) as opened:
            return opened.get_tensor(name)


def _open(path: pathlib.Path) -> Any:
    import ml_dtypes  # noqa: F401 - lets numpy hold bfloat16
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework='numpy')
    except SafetensorError as error:
        raise BadInput(f'{path} is damaged or cut off ({error}); fetch it again') from None


def shapes_of(model: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Our parameters by path, as shapes; nothing is computed."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    args = (tokens, tokens) if hasattr(model, 'encode') else (tokens,)
    tree = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), *args)['params']
    return {trees.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{'a/b': leaf} -> {'a': {'b': leaf}}."""
    out: dict[str, Any] = {}
    for path, leaf in flat.items():
        *above, last = path.split('/')
        node = out
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return out


def rules_for(family: Family, ours: Mapping[str, Any], names: Iterable[str]) -> list[Rule]:
    """The family's rules as a checkpoint with these names has them: that of a bare model lacks the prefix."""
    rules = family.rules(ours)
    if family.prefix and not any(name.startswith(family.prefix) for name in names):
        rules = [rule._replace(theirs=rule.theirs.removeprefix(family.prefix)) for rule in rules]
    return rules


class Mapped(NamedTuple):
    """Our parameters as a checkpoint has them.

    Attributes:
      leaf: our path -> the float32 array, filled tensor by tensor.
      rules: by our path.
      unused: names of tensors that carry nothing of ours.
    """

    leaf: Callable[[str], np.ndarray]
    rules: Mapping[str, Rule]
    unused: list[str]


def mapped(family: Family, ours: Mapping[str, Any], shapes: Mapping[str, Any], tensors: Any) -> Mapped:
    """Accounts for every tensor; nothing is read yet.

    Args:
      ours: the spec of our model, references resolved.
      shapes: see `shapes_of`.
      tensors: their names, `tensors[name]` and `tensors.shape(name)`.

    Raises:
      BadInput: missing, extra or misshapen tensors, as a table.
    """
    canonical = {_today(name): name for name in tensors}
    rules = {rule.ours: rule for rule in rules_for(family, ours, canonical)}
    used, wrong = set(), []
    for path, leaf in shapes.items():
        if path not in rules:
            wrong.append((f'(none for {path})', str(leaf.shape), 'no rule'))
            continue
        want = rules[path].their_shape(leaf.shape)
        for _, name in rules[path].names(leaf.shape):
            used.add(name)
            found = tensors.shape(canonical[name]) if name in canonical else None
            if found != want:
                wrong.append((name, str(want), 'missing' if found is None else str(found)))
    rest = [name for name in canonical if name not in used]
    wrong += [(name, 'nothing', str(tensors.shape(canonical[name]))) for name in rest if not re.search(family.unused, name)]
    if wrong:
        raise BadInput(_table(wrong))

    def leaf(path: str) -> np.ndarray:
        out = np.empty(shapes[path].shape, np.float32)
        for index, name in rules[path].names(out.shape):
            out[index] = rules[path].to_ours(tensors[canonical[name]])
        return out

    return Mapped(leaf, rules, rest)


def _today(name: str) -> str:
    """Names that TensorFlow's checkpoints brought along, as they are called today."""
    return name.replace('LayerNorm.gamma', 'LayerNorm.weight').replace('LayerNorm.beta', 'LayerNorm.bias')


def _table(rows: list[tuple[str, str, str]], limit: int = 20) -> str:
    rows = sorted(set(rows))
    width = [max(len(row[column]) for row in [*rows[:limit], ('tensor', 'expected', 'found')]) for column in range(2)]
    lines = [f'  {name:{width[0]}}  {want:{width[1]}}  {found}' for name, want, found in [('tensor', 'expected', 'found'), *rows[:limit]]]
    more = [f'  ... and {len(rows) - limit} more'] if len(rows) > limit else []
    return '\n'.join([f'{len(rows)} tensors do not fit the model that config.json describes:', *lines, *more])


def save(
    family: Family, ours: Mapping[str, Any], params: Mapping[str, Any], folder: str | os.PathLike[str], dtype: str = 'float32'
) -> list[str]:
    """Writes our parameters (by path) as safetensors that transformers loads, in shards of at most 5 GB; returns the tensors' names.

    Every file appears whole or not at all; the folder has to be empty of models.

    Args:
      dtype: of the tensors: 'float32', 'bfloat16' or 'float16'.
    """
    from safetensors.numpy import save_file

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = jnp.dtype(dtype)
    shards: list[dict[str, np.ndarray]] = [{}]
    parts: list[pathlib.Path] = []
    size, total, where = 0, 0, {}

    def flush() -> None:
        parts.append(folder / f'model-{len(parts)}.part')
        save_file(shards[-1], parts[-1], metadata={'format': 'pt'})
        shards[-1] = {}

    for name, tensor in to_theirs(family.rules(ours), params):
        tensor = np.ascontiguousarray(tensor.astype(kind))
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            flush()
            size = 0
        shards[-1][name], where[name] = tensor, len(parts)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    count = len(parts)
    names = ['model.safetensors'] if count == 1 else [f'model-{n + 1:05}-of-{count:05}.safetensors' for n in range(count)]
    for part, name in zip(parts, names):
        part.replace(folder / name)
    if count > 1:
        index = {'metadata': {'total_size': total}, 'weight_map': {name: names[shard] for name, shard in where.items()}}
        write_json(folder / 'model.safetensors.index.json', index)
    return list(where)


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of `read_config` as its config.json had it."""
    return {key: value for key, value in config.items() if key not in (EMBEDDING, MAX_LENGTH)}


def write_json(path: pathlib.Path, value: Any) -> None:
    part = path.with_name(path.name + '.part')
    part.write_text(json.dumps(value, indent=2) + '\n')
    part.replace(path)
