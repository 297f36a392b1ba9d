"""Many trainings in one program: each equals the same config trained alone, whatever the slots, the waves and the interruptions."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from lmx import run, spec, study
from lmx.data import sources
from lmx.run import groups
from lmx.run import sweep as sweeps
from lmx.run.train import Preempted
from lmx.study import Study, grid
from lmx.sweep import packed
from lmx.sweep.folder import Folder
from lmx.sweep.population import Population
from lmx.types import BadInput

pytestmark = pytest.mark.usefixtures('two_devices')


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the eight of the tests, so that slots need not be many."""
    both = jax.devices()[:2]
    monkeypatch.setattr(jax, 'devices', lambda *_: both)
    monkeypatch.setattr(jax, 'device_count', lambda: 2)


def gpt(**changes):
    config = run.load('tests/tiny.py:steps=12')
    with config.unlocked():
        config.model.num_layers, config.model.dim = 1, 8
        config.every = {'log': 1, 'evaluate': 4, 'checkpoint': 4}
        for path, value in changes.items():
            config[path] = value
    return spec.finish(config)


def seq2seq():
    from lmx import models, optim, tasks, text
    from lmx.optim import schedules
    from lmx.run.config import base
    from lmx.spec import ref

    c = base()
    c.steps, c.batch_size = 8, 4
    pairs = [{'source': f'{n}', 'target': f'{n + 1}'} for n in range(40)]
    c.data = {split: spec.spec(sources.in_memory, records=pairs) for split in ('train', 'validation')}
    c.tokenizer = spec.spec(text.characters, source=spec.spec(sources.in_memory, records=[{'text': '0123456789'}]), eos=True)
    c.task = spec.spec(tasks.translation, tokenizer=ref('tokenizer'), max_source_length=6, max_target_length=6, label_smoothing=0.1)
    c.model = spec.spec(models.transformer, vocab_size=ref('tokenizer.vocab_size'), dim=8, num_layers=1, num_heads=2, mlp_dim=8)
    c.optim = spec.spec(optim.optimizer, rule=spec.spec(optim.lion), schedule=spec.spec(schedules.constant, peak=1e-3))
    c.every = {'log': 1, 'evaluate': 4, 'checkpoint': 0}
    return spec.finish(c)


def classifier():
    from lmx import models, optim, tasks, text
    from lmx.nn import heads
    from lmx.optim import schedules
    from lmx.run.config import base
    from lmx.spec import ref

    c = base()
    c.steps, c.batch_size = 8, 4
    records = [{'text': f'{n} {"even" if n % 2 else "odd"}', 'label': str(n % 2)} for n in range(40)]
    c.data = {split: spec.spec(sources.in_memory, records=records) for split in ('train', 'validation')}
    c.tokenizer = spec.spec(text.characters, source=ref('data.train'))
    c.task = spec.spec(tasks.text_classification, tokenizer=ref('tokenizer'), labels=('0', '1'), max_length=12)
    c.model = spec.spec(
        models.bert,
        vocab_size=ref('tokenizer.vocab_size'),
        dim=8,
        num_layers=1,
        num_heads=2,
        head=spec.spec(heads.classifier, num_classes=2),
    )
    c.optim = spec.spec(optim.optimizer, rule=spec.spec(optim.adam), schedule=spec.spec(schedules.constant, peak=1e-3))
    c.every = {'log': 1, 'evaluate': 4, 'checkpoint': 0}
    return spec.finish(c)


RATES = {'optim.schedule.peak': (1e-3, 1e-2)}
STUDIES = {
    'gpt': lambda: Study(gpt(), grid({**RATES, 'model.dropout_rate': (0.1, 0.3)}), seeds=(0, 5)),
    'seq2seq': lambda: Study(seq2seq(), grid({**RATES, 'task.label_smoothing': (0.05, 0.2)})),
    'classifier': lambda: Study(classifier(), grid({'optim.rule.b1': (0.5, 0.9)}), seeds=(1, 2)),
}


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def compared(ours: pathlib.Path, alone: pathlib.Path, **tolerance: float) -> None:
    """The log of a training of a sweep beside that of a run."""
    for name in ('metrics.jsonl', 'eval.jsonl'):
        left, right = lines(ours / name), lines(alone / name)
        assert [(line['step'], line.get('batch_hash')) for line in left] == [(line['step'], line.get('batch_hash')) for line in right]
        for a, b in zip(left, right):
            for key in (key for key in b if key not in ('split', 'batch_hash', 'tokens_per_second', 'step_seconds', 'goodput')):
                np.testing.assert_allclose(a[key], b[key], **tolerance, err_msg=f'{name} {b["step"]} {key}')


@pytest.mark.parametrize('name', ['gpt', *(pytest.param(name, marks=pytest.mark.full) for name in ('seq2seq', 'classifier'))])
def test_every_training_equals_the_same_config_alone(name, tmp_path):
    of = STUDIES[name]()
    sweeps.sweep(of, tmp_path / 'all')
    folder = Folder(tmp_path / 'all')
    assert [row.state for row in folder.rows()] == ['done'] * len(of.points) * len(of.seeds)
    for trial in folder.trials()[2::5]:
        run.train(study.config_of(of, trial), tmp_path / trial.name)
        # Float32 products are added up in another order under a leading axis; a dozen updates let that grow.
        compared(folder.folder(trial), tmp_path / trial.name, rtol=2e-4, atol=1e-5)


def test_waves_in_one_compilation_and_one_that_diverges(tmp_path, monkeypatch):
    """Five trainings in two slots are as in four; the one whose loss is not finite is frozen, and its slot is taken by the next."""
    traced, step = [], Population._step
    monkeypatch.setattr(Population, '_step', lambda self, *args: traced.append(self.size) or step(self, *args))
    of = Study(gpt(), grid({'optim.schedule.peak': (1e-3, 1e30, 4e-3, 8e-3, 1.6e-2)}))
    sweeps.sweep(of, tmp_path / 'two', slots=2)
    sweeps.sweep(of, tmp_path / 'four', slots=4)
    assert traced == [2, 4]
    rows = Folder(tmp_path / 'two').rows()
    assert [row.state for row in rows] == ['done', 'diverged', 'done', 'done', 'done']
    assert re.fullmatch(r'loss or gradient is not finite at step \d+; the update was not made', rows[1].why)
    for row in rows:
        compared(row.path, Folder(tmp_path / 'four').folder(row.trial), rtol=1e-5, atol=0)
    run.train(study.config_of(of, rows[4].trial), tmp_path / 'alone')
    compared(rows[4].path, tmp_path / 'alone', rtol=2e-4, atol=1e-5)


def test_devices_keep_to_their_own_slots():
    of = STUDIES['gpt']()
    config, own, _ = groups.grouped(of, study.trials(of), groups.own_paths(of, study.trials(of)))[0]
    group = groups.group(of, config, own)
    population = Population(group.program, 4)
    values = {path: np.ones(4, np.float32) for path in own}
    batch = {name: np.stack([array] * 4) for name, array in group.batches(0)(0).items()}
    text = population.step.lower(population.abstract(values), population.put(batch), population.put(values)).compile().as_text()
    assert not re.findall(r' (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)', text)
    assert (
        population.bytes_of_slot(batch, values)
        > 3 * 4 * sum(leaf.size for leaf in jax.tree.leaves(population.abstract(values).state.params)) / 4
    )


class Stop(Exception):
    pass


@pytest.mark.optimized
def test_a_sweep_that_is_stopped_anywhere_ends_in_the_same_bits(tmp_path, monkeypatch):
    of = Study(gpt(), grid({'optim.schedule.peak': (1e-3, 4e-3, 1.6e-2)}), fresh_seeds=(9,), reported='validation/perplexity')
    sweeps.sweep(of, tmp_path / 'whole', slots=2)
    place, made = tmp_path / 'often', Population.fill
    for after in (3, 8, 2):  # looks at the signal, between any two updates
        with pytest.raises(Preempted):
            _stopped(of, place, after=after, slots=2)
    with monkeypatch.context() as patch:  # a crash: what was not saved is made again
        count = iter(range(100))

        def crash(self, *args):
            if next(count) == 1:
                raise Stop
            return made(self, *args)

        patch.setattr(Population, 'fill', crash)
        with pytest.raises(Stop):
            sweeps.sweep(of, place, slots=2)
    sweeps.sweep(of, place, slots=2)
    whole, often = Folder(tmp_path / 'whole'), Folder(place)
    assert [row.state for row in often.rows()] == ['done'] * 4
    for row in whole.rows():
        theirs = often.folder(row.trial)
        compared(theirs, row.path, rtol=0, atol=0)
        mine, other = (run.restore.restore(path)[1] for path in (row.path, theirs))
        jax.tree.map(np.testing.assert_array_equal, mine, other)
    assert not (place / 'population').exists()


def test_a_training_goes_on_as_a_run_of_its_own(tmp_path):
    """The end of one, and the midst of another from a population's checkpoint."""
    of = Study(gpt(), grid(RATES))
    with pytest.raises(Preempted):
        _stopped(of, tmp_path / 'a', after=7)
    sweeps.take(tmp_path / 'a', '0001-s0', tmp_path / 'midst')
    assert len(lines(tmp_path / 'midst' / 'metrics.jsonl')) == 6
    sweeps.sweep(of, tmp_path / 'a')
    sweeps.take(tmp_path / 'a', '0001-s0', tmp_path / 'end')
    config = study.config_of(of, Folder(tmp_path / 'a').trials()[1])
    run.train(config, tmp_path / 'alone')
    run.train(config, tmp_path / 'midst')
    for name in ('midst', 'end'):
        assert not (tmp_path / name / 'trial.json').exists()
        compared(tmp_path / name, tmp_path / 'alone', rtol=2e-4, atol=1e-5)
    with pytest.raises(BadInput, match='exists; give another --to'):
        sweeps.take(tmp_path / 'a', '0001-s0', tmp_path / 'end')
    with pytest.raises(BadInput, match="no training '0001-s1'; did you mean '0001-s0'"):
        sweeps.take(tmp_path / 'a', '0001-s1', tmp_path / 'other')


def _stopped(of: Study, place: pathlib.Path, after: int, **options: int) -> None:
    """The sweep, asked to stop when it looks for the time `after`."""
    steps = iter(range(10**6))
    step = packed.Packed._advance
    with pytest.MonkeyPatch.context() as patch:

        def advance(self):
            self.stop = lambda: next(steps) >= after
            return step(self)

        patch.setattr(packed.Packed, '_advance', advance)
        sweeps.sweep(of, place, **options)


def test_points_are_grouped_by_what_a_program_can_take():
    axes = {'model.dim': (8, 16), 'optim.schedule.peak': (1e-3, 2e-3), 'model.dropout_rate': (0.0, 0.1, 0.2)}
    of = Study(gpt(), grid(axes))
    own = groups.own_paths(of, study.trials(of))
    assert own == ['optim.schedule.peak', 'model.dropout_rate']
    found = groups.grouped(of, study.trials(of), own)
    # A width is a shape, and a rate of 0 leaves no trace in a program, which an argument would.
    assert [(config.model.dim, mine, len(members)) for config, mine, members in found] == [
        (8, ['optim.schedule.peak'], 2),
        (8, own, 4),
        (16, ['optim.schedule.peak'], 2),
        (16, own, 4),
    ]


def test_what_the_data_depends_on_is_no_argument():
    of = Study(gpt(), grid({'task.max_length': (16, 24)}))
    assert groups.own_paths(of, study.trials(of)) == []


@pytest.mark.parametrize(
    ('change', 'point', 'message'),
    [
        ({}, {'mesh.data': 2}, 'mesh.data cannot vary .* use --executor=local'),
        ({'parallel': 'pmap'}, {}, "config.parallel 'pmap' .* use --executor=local"),
        ({}, {'model.dropout_rate': 1.5}, 'dropout_rate 1.5 is not in'),
    ],
)
def test_what_one_program_cannot_do_is_refused_by_name(change, point, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        sweeps.sweep(Study(gpt(**change), (point, {'optim.schedule.peak': 1e-3})), tmp_path / 'a')
