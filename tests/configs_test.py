"""Every shipped config: complete, JSON, and `:debug` builds with each of the models it offers; the first of a kind, and under `full` all, train and report."""

import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from lmx import run, spec
from lmx.run.config import load
from lmx.run.parts import Parts
from lmx.run.restore import restore

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted(path.name for path in (ROOT / 'configs').glob('*.py'))
NEEDS_DATA = {
    'gpt_shakespeare_char.py',
    'gpt_wikitext2.py',
    'choose_sst2.py',
    'classify_sst2.py',
    'classify_trec.py',
    'search_stsb.py',
    'search_cranfield.py',
    'translation_multi30k.py',
    'answer_xquad.py',
    'instruct_gsm8k.py',
    'summarize_aeslc.py',
}


CATALOGUE = {
    'answer_squad.py',
    'bert_wikipedia.py',
    'choose_hellaswag.py',
    'classify_ag_news.py',
    'classify_glue.py',
    'classify_imdb.py',
    'gpt_lm1b.py',
    'search_msmarco.py',
    'summarize_cnn_dailymail.py',
    't5_c4.py',
    'tag_conll2003.py',
    'translation_wmt14.py',
}
"""Need a download; `tests/catalogue_test.py` trains them on stand-ins."""


@pytest.mark.parametrize('name', CONFIGS)
def test_config_is_json_and_finished(root, name):
    config = load(root / 'configs' / name)
    assert spec.from_json(spec.to_json(config)) == config
    assert load(f'{root}/configs/{name}:debug').steps == 2


def models(name: str) -> list[str]:
    """The choices of a config's argument `model`, which it keeps in MODELS; '' where it has none."""
    found = importlib.util.spec_from_file_location('config', ROOT / 'configs' / name)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return list(getattr(module, 'MODELS', ('',)))


def pairs() -> Iterator[tuple[str, str, bool]]:
    """(config, model, whether it is trained by default: the first of a task, best one that needs no data)."""
    seen: set[str] = set()
    for name in sorted(CONFIGS, key=lambda name: name in NEEDS_DATA):
        if name not in CATALOGUE:
            for model in models(name):
                config = debug(name, model)
                yield name, model, config.task.call not in seen
                seen.add(config.task.call)


def debug(name: str, model: str) -> Any:
    return load(f'{ROOT}/configs/{name}:debug' + (f',model={model}' if model else ''))


def marks(name: str, *more: pytest.MarkDecorator) -> list[pytest.MarkDecorator]:
    return [*([pytest.mark.real_data] if name in NEEDS_DATA else []), *more]


TRAINED = {name for name, _, default in pairs() if default}


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize(
    ('name', 'model'),
    [
        pytest.param(name, model, marks=marks(name, *([] if default else [pytest.mark.full])), id=f'{name}:{model}')
        for name, model, default in pairs()
    ],
)
def test_debug_trains(root, tmp_path, request, monkeypatch, name, model):
    if name in NEEDS_DATA:
        request.getfixturevalue('raw_data')
    monkeypatch.chdir(root)
    config = debug(name, model)
    evaluations = run.train(config, tmp_path / 'run')
    assert 'loss' in run.finish(config, tmp_path / 'run', evaluations)
    assert (tmp_path / 'run' / 'report.html').exists()
    restore(tmp_path / 'run')  # from what was recorded, and with no module allowed


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize(
    ('name', 'model'),
    [
        pytest.param(name, model, marks=marks(name, *([pytest.mark.full] if name in TRAINED else [])), id=f'{name}:{model}')
        for name, model, default in pairs()
        if not default
    ],
)
def test_debug_is_a_run_that_can_work(root, request, monkeypatch, name, model):
    """Short of training it, which `full` does."""
    if name in NEEDS_DATA:
        request.getfixturevalue('raw_data')
    monkeypatch.chdir(root)
    config = debug(name, model)
    parts = Parts(config)
    parts.check()
    for split in config.evaluate:
        assert len(parts.eval_batches(split)) > 0
