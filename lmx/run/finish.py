"""How a run ends: the last evaluation beside its baselines, text that the model wrote, and the report's path."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from lmx import spec
from lmx.metrics.scores import shown
from lmx.run.parts import Parts
from lmx.run.predict import predictions
from lmx.run.restore import restore


def finish(config: Any, workdir: pathlib.Path, evaluations: Mapping[str, Mapping[str, float]]) -> str:
    """Draws samples, writes `samples.jsonl` and `report.html`, and returns what `lmx train` prints last.

    At the end of a job of several processes the first of them calls it, without samples: the parameters lie in all of them.
    """
    from lmx.report import page

    config = spec.finish(config)
    together = jax.process_count() > 1
    parts, params, step = (Parts(config), None, config.steps) if together else restore(workdir, config=config, allow=tuple(modules(config)))
    baselines = parts.builder('baselines') if config.baselines is not None else {}
    _record_baselines(workdir, step, config.evaluate, baselines)
    text = [table(evaluations, baselines)]
    if config.samples and together:
        text.append(f'samples: lmx predict --workdir={workdir} --input={config.samples[0]!r}')
    elif config.samples:
        for prompt, made in zip(config.samples, _samples(parts, params, workdir, step)):
            text += [f'--- a continuation of {prompt!r}', prompt + made['continuation'], '']
    text.append(f'report: {page.write(workdir)}')
    return '\n'.join(text)


def modules(config: Mapping[str, Any]) -> set[str]:
    """The modules that a config calls. A config that this process was given to train is its user's own."""
    names = [value for path, value in spec.leaves(spec.to_plain(config)) if isinstance(value, str) and ':' in value]
    return {name.strip('${}').partition(':')[0] for name in names}


def _samples(parts: Parts, params: Any, workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
    made = predictions(parts, params, parts.config.samples, seed=parts.config.seed)
    lines = [{'step': step, 'prompt': prompt, **sample} for prompt, sample in zip(parts.config.samples, made)]
    (workdir / 'samples.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return made


def _record_baselines(workdir: pathlib.Path, step: int, splits: Any, baselines: Mapping[str, float]) -> None:
    if baselines:
        line = {'step': step, 'split': splits[0], **{f'baseline/{name}': value for name, value in baselines.items()}}
        known = (workdir / 'eval.jsonl').read_text() if (workdir / 'eval.jsonl').exists() else ''
        if json.dumps(line) not in known:
            with open(workdir / 'eval.jsonl', 'a') as file:
                file.write(json.dumps(line) + '\n')


SHOWN = ('loss', 'perplexity', 'word_perplexity', 'bits_per_byte', 'accuracy')


def _shown(values: Mapping[str, float], name: str) -> str:
    low, high = (values.get(f'{name}/{end}') for end in ('low', 'high'))
    return f'{name} {shown(values[name])}' + ('' if low is None or high is None else f' ({shown(low)} to {shown(high)})')


def table(evaluations: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, float] | None = None) -> str:
    """The evaluation as a person reads it: a line per split, then the baselines, and what scorers say of themselves."""
    rows, signed = [], {}
    for split, values in evaluations.items():
        signed.update({name: text for name, text in values.items() if isinstance(text, str)})
        values = {name: value for name, value in values.items() if name not in signed}
        first = [name for name in SHOWN if name in values]
        ends = {f'{name}/{end}' for name in values for end in ('low', 'high')}
        rest = [name for name in values if name not in first and name not in ends and not name.startswith('loss/')]
        rows.append(f'{split}: ' + ', '.join(_shown(values, name) for name in (*first, *rest)))
    if baselines:
        rows.append('beside: ' + ', '.join(f'{name} {shown(value)}' for name, value in baselines.items()))
    return '\n'.join([*rows, *(f'{name.removesuffix("/signature")}: {text}' for name, text in signed.items())])
