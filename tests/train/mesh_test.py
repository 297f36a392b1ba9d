"""Every family on every mesh: the loss and the gradients of one device."""

import functools
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from lmx import models, objectives, optim, run, spec, trees
from lmx.cli import main
from lmx.nn import heads, pipeline
from lmx.run import dry_run
from lmx.run.config import load
from lmx.run.parts import Parts
from lmx.train import layouts, pmap, shard
from lmx.train.state import bind, init_params, init_state
from lmx.train.step import train_step
from lmx.types import BadInput, Task
from tests.families import DECODERS, ENCODERS, ONE_PAIR_A_ROW, RECURRENT, SEQ2SEQ

B, T, V = 8, 8, 24  # V: a multiple of every axis
FAMILIES = {**DECODERS, **ENCODERS, **SEQ2SEQ, **RECURRENT, **ONE_PAIR_A_ROW}
MESHES = {
    'data': {'data': 8},
    'fsdp': {'data': 2, 'fsdp': 4},
    'tensor': {'data': 4, 'tensor': 2},
    'product': {'data': 2, 'fsdp': 2, 'tensor': 2},
    'expert': {'fsdp': 2, 'tensor': 2, 'expert': 2},
    'context': {'data': 2, 'tensor': 2, 'context': 2},
}
ATTENTION = {**DECODERS, **ENCODERS, **SEQ2SEQ}


ALIKE = (
    *('gpt_alibi', 'llama3', 'yarn', 'mistral', 'qwen3', 'roberta', 'distilbert', 'pre_norm', 't5_1_1', 'bart'),
    *('rnn_multiplicative', 'elman', 'gru'),
)
"""Families whose parameters lie as those of another one."""


def pairs():
    """All pairs under `-m full`; by default families that differ take turns with the meshes, and mixtures of experts also their own."""
    turns = [name for name in FAMILIES if name not in ALIKE]
    for name in FAMILIES:
        for column, mesh in enumerate(MESHES):
            chosen = (name in turns and column == turns.index(name) % len(MESHES)) or (name, mesh) == ('mixtral', 'expert')
            yield pytest.param(name, mesh, marks=() if chosen else pytest.mark.full)


def built(name, **changes):
    make = functools.partial(FAMILIES[name], **changes)
    targets = {'target_vocab_size': V} if 'target_vocab_size' in make.keywords else {}
    headed = {'head': heads.masked_lm()} if name in ENCODERS else {}
    return make(vocab_size=V, **targets, **headed)


def data(name) -> tuple:
    """(objective, batch), with padding, so that no two rows count the same, and two packed segments where a family can tell them apart."""
    draw = np.random.default_rng(0)
    tokens, lengths = draw.integers(1, V, (B, T + 1), np.int32), draw.integers(2, T + 1, B)
    real = (np.arange(T) < lengths[:, None]).astype(np.int32)
    weights = real.astype(np.float32)
    segments = real + real * (np.arange(T) >= lengths[:, None] // 2) * (name in ATTENTION)
    packed = {'segments': segments} if name in ATTENTION else {}
    if name in ENCODERS:
        places = np.sort(draw.permuted(np.tile(np.arange(2), (B, 1)), axis=1), axis=1).astype(np.int32)
        batch = {'tokens': tokens[:, :T], 'segments': segments, 'places': places, 'targets': tokens[:, :2], 'weights': weights[:, :2]}
        return objectives.masked_token, batch
    batch = {'inputs': tokens[:, :T], 'targets': tokens[:, 1:], 'weights': weights, **packed}
    if name in SEQ2SEQ or name in ONE_PAIR_A_ROW:
        return objectives.seq2seq, {**batch, 'source': tokens[:, ::-1][:, :T], 'source_segments': segments}
    return objectives.next_token, batch


@functools.cache
def first_params(name, **changes):
    objective, batch = data(name)
    return jax.jit(lambda: init_params(built(name, **changes), objective, batch, jax.random.key(0)))()


def gradients(name, params, batch, **changes):
    """(sums, gradients) of the objective, compiled."""
    objective, _ = data(name)

    def loss(params, batch):
        sums = objective(bind(built(name, **changes), params), batch)
        return sum(mean.total / mean.count for key, mean in sums.items() if key.startswith('loss/')), sums

    return jax.jit(jax.grad(loss, has_aux=True))(params, batch)


@functools.cache
def alone(name, **changes):
    return gradients(name, first_params(name, **changes), data(name)[1], **changes)


def assert_alike(found, alone):
    """(gradients, sums) of a mesh and of one device."""
    (grads, sums), (theirs, expected) = found, alone
    # Float32 sums over devices come in another order; gradients are of order 1 and below.
    for path, leaf in jax.tree_util.tree_leaves_with_path(theirs):
        ours = functools.reduce(lambda tree, key: tree[key.key], path, grads)
        np.testing.assert_allclose(ours, leaf, rtol=1e-4, atol=1e-5, err_msg=trees.path_name(path))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), sums, expected)


@pytest.mark.parametrize(('name', 'mesh'), list(pairs()))
def test_a_mesh_equals_one_device(name, mesh):
    layout = shard.make_mesh(MESHES[mesh])
    where = shard.param_shardings(first_params(name), layouts.standard(), layout)
    split = [leaf.spec for leaf in jax.tree.leaves(where) if any(leaf.spec)]
    assert bool(split) == (mesh != 'data')  # else there would be nothing to compare
    with jax.set_mesh(layout):
        found = gradients(name, jax.device_put(first_params(name), where), shard.put_batch(data(name)[1], layout))
    assert_alike(found, alone(name))


GPIPE, DEEP = {'microbatches': None, 'rounds': 1}, {'data': 2, 'stage': 4}
WIDE, PRODUCT, LONG = {'data': 4, 'stage': 2}, {'fsdp': 2, 'tensor': 2, 'stage': 2}, {'data': 2, 'context': 2, 'stage': 2}
STAGES = {
    'two': ('llama', WIDE, GPIPE, {}),
    'four': ('gpt', DEEP, GPIPE, {'num_layers': 4}),
    'circular': ('llama', WIDE, {'microbatches': None, 'rounds': 2}, {'num_layers': 4, 'remat': 'full'}),
    'memory': ('transformer', WIDE, GPIPE, {'remat': 'dots'}),
    'experts': ('mixtral', WIDE, GPIPE, {}),
    'product': ('llama', PRODUCT, {'microbatches': 4, 'rounds': 1}, {}),
    'ring': ('llama', LONG, GPIPE, {}),
    **{f'{name} in two': (name, WIDE, GPIPE, {}) for name in ATTENTION},
    **{f'{name} in circles': (name, WIDE, {'microbatches': 2, 'rounds': 2}, {'num_layers': 4}) for name in ATTENTION},
}
UNEVEN = ('modernbert', 'pre_norm', 't5_1_1')  # three layers in one of their stacks


SOONEST = ('circular', 'memory', 'experts', 'ring')


@pytest.mark.parametrize(
    'case', [pytest.param(case, marks=() if case in SOONEST else pytest.mark.full) for case in STAGES if not case.startswith(UNEVEN)]
)
def test_stages_equal_one_device(case):
    name, sizes, asked, changes = STAGES[case]
    layout, params = shard.make_mesh(sizes), first_params(name, **changes)
    where = shard.param_shardings(params, layouts.standard(), layout)
    blocks = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(where) if 'blocks' in trees.path_name(path)]
    assert all(leaf.spec[0] == 'stage' for leaf in blocks)
    with jax.set_mesh(layout), pipeline.asking(**asked):
        found = gradients(name, jax.device_put(params, where), shard.put_batch(data(name)[1], layout), **changes)
    assert_alike(found, alone(name, **{key: value for key, value in changes.items() if key != 'remat'}))


def make(values, num_layers=2):
    model = models.llama(vocab_size=V, dim=16, num_layers=num_layers, num_heads=4, num_kv_heads=4, mlp_dim=32)
    return model, objectives.next_token, optim.optimizer(rule=optim.adam(), schedule=1e-2, clip_norm=1.0)


def collectives(sizes, repeat=1, make=make) -> set[tuple[str, tuple[int, ...]]]:
    """(operation, shape) of every collective of numbers in the compiled train step, on rows of `repeat` times T tokens; not of ids, masks and
    positions, which are small."""
    layout, batch = shard.make_mesh(sizes), {name: np.tile(array, (1, repeat)) for name, array in data('llama')[1].items()}
    state = jax.eval_shape(lambda: init_state(make, {}, batch, 0))
    where = shard.state_shardings(state, layouts.standard(), layout)
    state = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, where)
    place = shard.batch_sharding(layout)
    batch = {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place) for name, array in batch.items()}
    with jax.set_mesh(layout):
        step = jax.jit(functools.partial(train_step, make=make), out_shardings=(where, shard.replicated(layout)))
        text = step.lower(state, batch, {}).compile().as_text()
    found = re.findall(r'= \(?f32\[([\d,]*)\].* (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(', text)
    return {(what, tuple(int(size) for size in shape.split(',') if size)) for shape, what in found}


@pytest.fixture
def warnings_of_xla(capfd):
    """() -> what the compiler has said; nothing is kept in the compilation cache, out of which a program comes without its warnings."""
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1e9)
    yield lambda: capfd.readouterr().err
    jax.config.update('jax_persistent_cache_min_compile_time_secs', before)


@pytest.mark.optimized
def test_a_rematerialization_would_be_seen(warnings_of_xla):
    def moved(x):
        one = jax.lax.with_sharding_constraint(jax.numpy.sin(x), jax.sharding.PartitionSpec(('data', 'tensor')))
        return jax.lax.with_sharding_constraint(jax.numpy.sin(one), jax.sharding.PartitionSpec(None, None, 'data'))

    with jax.set_mesh(shard.make_mesh({'data': 4, 'tensor': 2})):
        jax.jit(moved).lower(jax.ShapeDtypeStruct((8, 8, 8), np.float32)).compile()
    assert 'Involuntary full rematerialization' in warnings_of_xla()


@pytest.mark.optimized
def test_collectives_are_those_of_the_layout(warnings_of_xla):
    weights = {(16, 16), (16, 32), (32, 16), (V, 16)}
    assert {what for what, _ in collectives({'data': 8})} == {'all-reduce'}
    sharded = collectives({'fsdp': 8})
    assert {what for what, _ in sharded} == {'all-reduce', 'all-gather'}
    assert {shape for what, shape in sharded if what == 'all-gather'} == weights  # ZeRO-3: no activation and no score is gathered
    megatron = collectives({'data': 2, 'tensor': 4})
    assert {what for what, _ in megatron} == {'all-reduce', 'all-gather'}
    gathered = {shape for what, shape in megatron if what == 'all-gather'}
    assert gathered == {(4, T, 16), (4, T, 4)}  # the residual stream; and the best of each quarter of the vocabulary
    assert not any(V in shape or V // 4 in shape for _, shape in megatron)
    assert not {what for what, _ in collectives({'data': 2, 'fsdp': 2, 'tensor': 2})} - {'all-reduce', 'all-gather'}
    context = collectives({'data': 2, 'context': 4}, repeat=5)
    assert {what for what, _ in context} == {'all-reduce', 'collective-permute'}  # keys travel; gradients and sums are added up
    assert not any({5 * T, V} & {*shape} for what, shape in context if what == 'collective-permute')
    assert 'rematerialization' not in warnings_of_xla()


@pytest.mark.optimized
def test_collectives_of_stages(warnings_of_xla):
    microbatch = (1, T, 16)  # on one device
    gpipe = collectives(WIDE)
    assert {what for what, _ in gpipe} == {'all-reduce', 'collective-permute'}  # no parameter leaves its stage
    assert {shape for what, shape in gpipe if what == 'collective-permute'} == {microbatch}
    with pipeline.asking(rounds=2):
        circular = collectives(WIDE, make=functools.partial(make, num_layers=4))
    # Layers lie in the order of the stack; those of the rounds change places, once a step, and no stage gets more than it computes.
    assert {what for what, _ in circular} == {'all-reduce', 'collective-permute', 'all-to-all'}
    assert {shape for what, shape in circular if what == 'collective-permute'} == {microbatch}
    assert 'rematerialization' not in warnings_of_xla()


def test_an_axis_that_the_mesh_lacks_splits_nothing():
    layout = shard.make_mesh({'data': 8})
    found = shard.param_shardings(first_params('llama'), layouts.standard(), layout)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ('sizes', 'rules', 'says'),
    [
        ({'fsdp': 8}, ((r'.*', ('model',)),), "axis 'model' in config.rules is unknown; there are trial, stage, data"),
        ({'data': 2, 'tensor': 4}, ((r'norm/scale$', (None, None, 'tensor')), (r'.*', ())), 'has more axes than parameter'),
        ({'tensor': 8}, ((r'up/kernel$', ('tensor', None)), (r'down/kernel$', (None, 'tensor')), (r'.*', ())), None),
        ({'tensor': 8}, ((r'gate/kernel$', (None, 'tensor')), (r'embedding$', ('data',)), (r'kernel$', ())), 'no sharding rule'),
        ({'fsdp': 8}, ((r'.*', ('fsdp',)),), None),
    ],
)
def test_rules_that_cannot_be(sizes, rules, says):
    layout = shard.make_mesh(sizes)
    if says is None:
        shard.param_shardings(first_params('llama'), rules, layout)
        return
    with pytest.raises(BadInput, match=says):
        shard.param_shardings(first_params('llama'), rules, layout)


def test_a_dimension_that_does_not_divide_is_named_with_one_that_does():
    params = {'embed': {'embedding': jax.ShapeDtypeStruct((259, 16), np.float32)}}
    with pytest.raises(BadInput, match=r"'embed/embedding' of shape \(259, 16\): 259 is not divisible by the 8 devices.*give 264"):
        shard.param_shardings(params, layouts.standard(), shard.make_mesh({'tensor': 8}))


@pytest.mark.parametrize(
    ('sizes', 'says'),
    [
        ({'data': 3}, r"\{'data': 3\} does not multiply to 8 devices; take data=8"),
        ({'data': 4, 'tensor': 3}, 'does not multiply to 8 devices; take tensor=2'),
        ({'data': -1, 'fsdp': 3}, 'does not multiply to 8 devices; take fsdp=8'),
        ({'data': -1, 'fsdp': -1}, 'give one axis -1'),
        ({'model': 8}, "mesh axis 'model' is unknown"),
    ],
)
def test_meshes_that_cannot_be(sizes, says):
    with pytest.raises(BadInput, match=says):
        shard.make_mesh(sizes)


def test_a_rule_that_matches_nothing_is_refused():
    state = jax.eval_shape(lambda: init_state(make, {}, data('llama')[1], 0))
    rules = ((r'blok/.*kernel$', ('fsdp', None)), *layouts.standard())
    with pytest.raises(BadInput, match=r'sharding rule .blok.* matches no parameter; there are decoder/'):
        shard.state_shardings(state, rules, shard.make_mesh({'fsdp': 8}))


def test_an_axis_that_would_split_nothing_is_refused():
    layout = shard.make_mesh({'data': 4, 'expert': 2})
    state = jax.eval_shape(lambda: init_state(make, {}, data('llama')[1], 0))
    with pytest.raises(BadInput, match="mesh axis 'expert' of size 2 splits no parameter"):
        shard.state_shardings(state, layouts.standard(), layout)


def tiny(**mesh):
    config = load('tests/tiny.py:steps=4,dropout=0.0')
    with config.ignore_type():
        config.model.vocab_size = 16  # more than the tokenizer has, so that it divides
    config.mesh.update(mesh)
    return config


def test_runs_on_other_meshes_end_alike(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    one, other = (run.train(tiny(**mesh), tmp_path / name)['validation'] for name, mesh in (('a', {}), ('b', {'fsdp': 2, 'context': 2})))
    assert one['loss'] == pytest.approx(other['loss'], rel=1e-5)  # four updates of Adam in float32
    assert 'fsdp' in spec.from_json((tmp_path / 'b' / 'config.json').read_text()).mesh


def test_a_run_in_stages_ends_alike_and_goes_on_without(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    whole = tiny()
    run.train(whole, tmp_path / 'whole')
    staged = tiny(stage=2)
    staged.steps, staged.batch_size, staged.pipeline.rounds = 2, 8, 1
    run.train(staged, tmp_path / 'staged')
    staged.steps, staged.mesh.stage = 4, 1
    run.train(staged, tmp_path / 'staged')
    one, other = (
        [json.loads(line)['loss'] for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()] for name in ('whole', 'staged')
    )
    np.testing.assert_allclose(other, one, rtol=1e-5)  # four updates of Adam in float32


@pytest.mark.parametrize(
    ('mesh', 'change', 'says'),
    [
        ({'stage': 4}, {}, 'of shape .*: 2 is not divisible by the 4 devices of mesh axis stage; give 4'),
        ({'stage': 2}, {'pipeline.rounds': 2}, '2 layers are not divisible by 2 stages x 2 rounds; take 4 layers'),
        ({'stage': 2}, {'pipeline.microbatches': 3}, 'batch_size 8 is not divisible by 4 devices x 3 microbatches of the pipeline; try 12'),
        ({'stage': 2}, {'pipeline.microbatches': 1}, 'pipeline.microbatches 1 are fewer than the 2 stages'),
    ],
)
def test_pipelines_that_cannot_be(root, monkeypatch, mesh, change, says):
    monkeypatch.chdir(root)
    config = tiny(**mesh)
    with config.ignore_type():
        config.update_from_flattened_dict(change)
    with pytest.raises(BadInput, match=says):
        Parts(spec.finish(config)).check()


def test_dry_run_shows_layouts_and_collectives(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(root)
    args = ['--config.mesh.fsdp=2', '--config.mesh.tensor=2', '--config.model.vocab_size=16', '--dry_run', f'--workdir={tmp_path}/none']
    with pytest.raises(SystemExit, match='0'):
        main(['lmx', 'train', '--config=tests/tiny.py', *args])
    told = capsys.readouterr().out
    assert told.startswith('mesh data 2 x fsdp 2 x tensor 2: 8 cpu device(s)')
    assert re.search(r'decoder/blocks/attention/query/kernel +\(2, 16, 16\) +- fsdp tensor +512 B', told)
    assert re.search(r'decoder/final_norm/scale +\(16,\) +everywhere +64 B', told)
    assert re.search(r'a step has \d+ all-gather, .* kB in all', told)
    assert not (tmp_path / 'none').exists()


def test_the_devices_that_a_config_asks_for_are_there_without_a_workdir(root):
    lmx = [
        sys.executable,
        '-m',
        'lmx.cli',
        'train',
        '--config=tests/tiny.py',
        '--dry_run',
        '--config.cpu_devices=4',
        '--config.mesh.stage=4',
    ]
    said = subprocess.run(lmx, cwd=root, capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (2, '')
    assert '2 is not divisible by the 4 devices of mesh axis stage' in said.stderr


@pytest.mark.optimized
def test_collectives_in_loops_count_as_often():
    layout = shard.make_mesh({'data': 8})
    whole, split = shard.replicated(layout), shard.batch_sharding(layout)

    def looped(x):
        return jax.lax.scan(lambda total, _: (jax.lax.with_sharding_constraint(total + x.sum(0) * total.sum(), whole), None), x[0], None, 5)

    text = jax.jit(looped, in_shardings=split, out_shardings=whole).lower(jax.ShapeDtypeStruct((8, 4), np.float32)).compile().as_text()
    outside = dry_run.collectives(text)
    assert sum(count for count, _ in outside.values()) >= 1
    body = text.replace('"known_trip_count":{"n":"5"}', '"known_trip_count":{"n":"50"}')
    inside = {name: dry_run.collectives(body)[name][0] - count for name, (count, _) in outside.items()}
    assert all(extra % 45 == 0 for extra in inside.values())


def test_context_is_refused_where_nothing_attends(root, monkeypatch):
    monkeypatch.chdir(root)
    config = tiny(data=4, context=2)
    config.model = spec.spec(models.rnn_lm, vocab_size=16, dim=16, num_layers=1)
    with pytest.raises(BadInput, match=r'mesh axis context=2 splits attention, and .*rnn_lm has none that it can'):
        Parts(spec.finish(config)).check()


def test_context_is_refused_for_lengths_that_it_does_not_divide(root, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(BadInput, match="'ring' splits a sequence into 16 pieces, and 24 is no multiple of it"):
        Parts(spec.finish(tiny(context=8))).check()


@pytest.mark.parametrize('accumulate', [pytest.param(1, marks=pytest.mark.full), 2])
def test_pmap_equals_the_mesh(root, tmp_path, monkeypatch, accumulate):
    monkeypatch.chdir(root)
    found = []
    for parallel in ('mesh', 'pmap'):
        config = tiny()
        config.parallel, config.accumulate, config.batch_size = parallel, accumulate, 16
        run.train(config, tmp_path / parallel)
        lines = map(json.loads, (tmp_path / parallel / 'metrics.jsonl').read_text().splitlines())
        found.append([[line[name] for name in ('loss', 'grad_norm', 'accuracy')] for line in lines])
    np.testing.assert_allclose(*found, rtol=1e-5)  # float32 sums in another order, over four updates


def test_a_run_goes_on_from_mesh_to_pmap(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    whole = run.train(tiny(), tmp_path / 'whole')
    config = tiny()
    config.steps = 2
    run.train(config, tmp_path / 'parts')
    config.steps, config.parallel = 4, 'pmap'
    assert run.train(config, tmp_path / 'parts')['validation']['loss'] == pytest.approx(whole['validation']['loss'], rel=1e-5)


@pytest.mark.parametrize(
    ('mesh', 'change', 'says'),
    [
        ({'data': 4, 'fsdp': 2}, {}, 'pmap holds every parameter on every device, and the mesh has fsdp=2'),
        ({'data': 8}, {'carries': True}, 'pmap keeps no recurrent state'),
        ({'data': 8}, {'additive': False}, 'this task couples the rows of a batch'),
    ],
)
def test_pmap_says_what_it_cannot_do(mesh, change, says):
    task = Task(inputs=('text',), features=lambda records: records, objective=objectives.next_token, additive=change.get('additive', True))
    with pytest.raises(BadInput, match=says):
        pmap.check(shard.make_mesh(mesh), task, change.get('carries', False))
