"""LoRA: the arithmetic against its definition and PyTorch's peft; runs that train, save, resume and hand on an adapter alone."""

import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lmx import models, objectives, optim, run, trees
from lmx.run.config import load
from lmx.run.parts import Parts
from lmx.spec import spec
from lmx.train import init, lora, shard
from lmx.train.init import flat
from lmx.train.state import init_params, init_state
from lmx.train.step import train_step
from lmx.types import BadInput

V, T, B = 17, 12, 8
TARGETS = r'attention/(query|value)/kernel$'


def make(values):
    model = models.gpt(vocab_size=V, dim=16, num_layers=2, num_heads=2, max_length=T)
    rule = optim.optimizer(rule=optim.adam(), schedule=1e-2, weight_decay=0.1, clip_norm=1.0, ema_decay=0.9)
    return model, objectives.next_token, rule


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (B, T + 1), np.int32)
    return {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:], 'weights': (rng.random((B, T)) < 0.7).astype(np.float32)}


@pytest.fixture(scope='module')
def params():
    model, objective, _ = make({})
    return jax.jit(lambda key: init_params(model, objective, batch(), key))(jax.random.key(7))


def adapted(params, adapter: lora.Lora, seed: int = 0, b: float = 0.0):
    """(base, trained parameters), b away from 0 if asked, so that a has a gradient and the sum differs from the base."""
    base = flat(params)
    trained = adapter.init(params, base, jax.random.key(seed))
    noise = iter(jax.random.split(jax.random.key(seed + 1), 100))
    return base, {**trained, 'b': jax.tree.map(lambda leaf: leaf + b * jax.random.normal(next(noise), leaf.shape), trained['b'])}


def equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, rtol: float, atol: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


# -- the arithmetic


def test_it_begins_as_the_base_and_a_as_pytorch_begins_a_linear(params):
    adapter = lora.lora(rank=4, targets=TARGETS)
    base, trained = adapted(params, adapter)
    equal(adapter.merge(base, trained), params)
    kernel = trained['a']['decoder']['blocks']['attention']['query']['kernel']
    assert kernel.shape == (2, 16, 4)
    assert trained['b']['decoder']['blocks']['attention']['query']['kernel'].shape == (2, 4, 16)
    # U(-1/4, 1/4) of 128 draws: |largest| within a tenth of the bound but for odds of 0.9^128, and the layers are not alike.
    assert 0.9 * 16**-0.5 < jnp.max(jnp.abs(kernel)) <= 16**-0.5
    assert not np.array_equal(kernel[0], kernel[1])
    assert trees.size(trained) == 2 * 2 * (16 * 4 + 4 * 16)


def test_stacked_experts_have_an_adapter_each():
    weights = {'blocks': {'mlp': {'gate': jax.random.normal(jax.random.key(0), (2, 3, 6, 10))}}}
    base, trained = adapted(weights, lora.lora(rank=2, alpha=5, targets='gate', scaling=lora.by_root_of_rank), b=1.0)
    merged = lora.lora(rank=2, alpha=5, targets='gate', scaling=lora.by_root_of_rank).merge(base, trained)['blocks']['mlp']['gate']
    (a,), (b,) = jax.tree.leaves(trained['a']), jax.tree.leaves(trained['b'])
    assert (a.shape, b.shape) == ((2, 3, 6, 2), (2, 3, 2, 10))
    for layer in range(2):
        for expert in range(3):
            expected = weights['blocks']['mlp']['gate'][layer, expert] + 5 / 2**0.5 * np.outer(a[layer, expert, :, 0], b[layer, expert, 0])
            expected += 5 / 2**0.5 * np.outer(a[layer, expert, :, 1], b[layer, expert, 1])
            np.testing.assert_allclose(merged[layer, expert], expected, rtol=1e-5, atol=1e-6)  # float32 sums in another order


def test_merged_equals_beside():
    """x (W + s a b) == x W + s (x a) b."""
    key = jax.random.key(0)
    x, w = jax.random.normal(key, (5, 16)), jax.random.normal(jax.random.fold_in(key, 1), (16, 8)) / 4
    adapter = lora.lora(rank=4, alpha=8, targets='w')
    base, trained = adapted({'w': w}, adapter, b=0.1)
    beside = x @ w + 2.0 * ((x @ trained['a']['w']) @ trained['b']['w'])
    assert np.abs(beside - x @ w).max() > 0.1
    np.testing.assert_allclose(x @ adapter.merge(base, trained)['w'], beside, rtol=0, atol=2e-6)  # rounding of sums of size 1


def test_whole_parameters_replace_the_base_and_may_be_new(params):
    adapter = lora.lora(rank=2, targets=TARGETS, also_train='norm/|^head/')
    base = flat(params)
    trained = adapter.init({**params, 'head': {'kernel': jnp.ones((3, 3))}}, base, jax.random.key(0))
    equal(adapter.merge(base, trained), {**params, 'head': {'kernel': jnp.ones((3, 3))}})
    assert set(flat(trained['whole'])) == {name for name in base if 'norm/' in name} | {'head/kernel'}
    both = lora.lora(rank=2, targets='kernel$', also_train='query/kernel$').init(params, base, jax.random.key(0))
    assert not any('query' in name for name in flat(both['a']))


def test_a_base_in_bfloat16_takes_half_and_merges_in_float32(params):
    adapter = lora.lora(rank=2, targets=TARGETS, also_train='norm/', base_dtype='bfloat16')
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), params)
    base = adapter.freeze(lambda fresh: init.graft(fresh, flat(params)), shapes).params
    assert {str(leaf.dtype) for name, leaf in base.items() if 'norm/' not in name} == {'bfloat16'}
    merged = adapter.merge(base, adapter.init(params, base, jax.random.key(0)))
    expected = {n: w if 'norm/' in n else w.astype(jnp.bfloat16).astype(jnp.float32) for n, w in flat(params).items()}
    equal(flat(merged), expected)


def test_misfits_are_errors(params):
    for keywords, message in (
        ({'rank': 0, 'targets': 'x'}, 'at least 1'),
        ({'rank': 2, 'targets': '('}, 'no regular expression'),
        ({'rank': 2, 'targets': 'attn'}, 'matches no parameter'),
        ({'rank': 2, 'targets': 'kernel', 'also_train': 'nothing'}, 'matches no parameter'),
        ({'rank': 2, 'targets': 'query/bias'}, 'no matrix'),
    ):
        with pytest.raises(BadInput, match=message):
            lora.lora(**keywords).init(params, flat(params), jax.random.key(0))
    less = {name: leaf for name, leaf in flat(params).items() if 'up' not in name}
    with pytest.raises(BadInput, match='frozen at random'):
        lora.lora(rank=2, targets=TARGETS).freeze(lambda fresh: init.graft(fresh, less), params)
    loaded = lora.lora(rank=2, targets=TARGETS, also_train='/up/').freeze(lambda fresh: init.graft(fresh, less), params)
    assert set(loaded.params) == set(less)


def test_the_fingerprint_sees_a_bit_a_name_and_an_order_and_no_layout(params):
    base = flat(params)
    same = lora.fingerprint(base)
    name = 'decoder/blocks/mlp/up/kernel'
    one_bit = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(base[name], jnp.uint32).at[1, 2, 3].add(1), jnp.float32)
    others = [one_bit, base[name][:, ::-1], base[name].reshape(2, 64, 16), base[name].astype(jnp.bfloat16)]
    assert len({same, *(lora.fingerprint({**base, name: other}) for other in others)}) == 5
    assert lora.fingerprint({('x' + n if n == name else n): leaf for n, leaf in base.items()}) != same
    mesh = shard.make_mesh({'fsdp': 8})
    spread = jax.device_put(params, shard.param_shardings(params, ((r'kernel$', ('fsdp', None)), ('.*', ())), mesh))
    assert lora.fingerprint(flat(spread)) == same


# -- the step


def test_only_the_adapter_is_trained_in_any_number_of_microbatches_on_any_mesh(params):
    adapter = lora.lora(rank=4, targets=TARGETS, also_train='final_norm/')
    base = flat(params)
    adapt = lambda fresh, key: adapter.init(fresh, base, key)  # noqa: E731

    def step(state, batch, base, accumulate):
        return train_step(state, batch, {}, make=make, accumulate=accumulate, merge=functools.partial(adapter.merge, base))

    def after(accumulate, mesh, rules):
        layout = shard.make_mesh(mesh, jax.devices()[: math.prod(mesh.values())])
        state = jax.jit(lambda: init_state(make, {}, batch(), 0, adapt))()
        begun = jax.device_get(state.params)
        state = jax.device_put(state, shard.state_shardings(state, rules, layout))
        spread = jax.device_put(base, shard.param_shardings(base, rules, layout))
        compiled, sums = jax.jit(step, static_argnums=3), {}
        for index in range(3):
            state, sums = compiled(state, shard.put_batch(batch(index), layout), spread, accumulate)
        return begun, state, sums

    begun, state, sums = after(1, {'data': 1}, ((r'.*', ()),))
    assert set(state.params) == {'a', 'b', 'whole'}
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), state.params, begun)
    assert min(jax.tree.leaves(moved)) > 1e-3, 'three steps of Adam at 1e-2 move everything'
    # Two moments and the average, each the size of what is trained; counters beside.
    assert trees.size(state.opt_state) < 3 * trees.size(state.params) + 10
    _, other, other_sums = after(2, {'data': 2, 'fsdp': 2}, ((r'kernel$', ('fsdp', None)), (r'.*', ())))
    # Sums in another order: float32 rounding, which Adam magnifies to about 1e-5 of a parameter in a few steps.
    close(state.params, other.params, rtol=1e-4, atol=2e-5)
    close(sums, other_sums, rtol=1e-4, atol=1e-4)


# -- runs


def config(base, **changes):
    made = load('tests/tiny.py:steps=12,dropout=0.1')
    with made.unlocked(), made.ignore_type():
        made.init = spec(init.run, workdir=str(base))
        made.adapter = spec(lora.lora, rank=4, alpha=8, targets=TARGETS)
        made.every.checkpoint = 4
        made.evaluate = ('validation',)
        for name, value in changes.items():
            made[name] = value
    return made


@pytest.fixture(scope='module')
def base(tmp_path_factory: pytest.TempPathFactory):
    workdir = tmp_path_factory.mktemp('runs') / 'base'
    run.train(load('tests/tiny.py:steps=10'), workdir)
    return workdir


@pytest.fixture(scope='module')
def tuned(base):
    workdir = base.with_name('tuned')
    return workdir, run.train(config(base), workdir)


def saved(workdir, step: int):
    """What lies on disk, read without the model."""
    import orbax.checkpoint as ocp

    folder = workdir / 'checkpoints' / str(step) / 'state'
    with ocp.PyTreeCheckpointer() as reader:
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder).item_metadata.tree)
        return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=kinds))


def metrics(workdir) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ('tokens_per_second', 'step_seconds', 'goodput')} for line in lines]


def test_a_checkpoint_holds_the_adapter_alone(base, tuned):
    workdir, _ = tuned
    state = saved(workdir, 12)
    names = trees.names(state)
    assert [name for name in names if name.startswith('params/')] == [
        f'params/{part}/decoder/blocks/attention/{which}/kernel' for part in 'ab' for which in ('query', 'value')
    ]
    shapes = {leaf.shape for leaf in jax.tree.leaves(state) if np.ndim(leaf) > 1}
    assert shapes == {(2, 16, 4), (2, 4, 16)}, 'nothing else in the optimizer either'
    adapters = 4 * trees.bytes_of(state['params'])  # parameters, two moments, their average
    assert trees.bytes_of(state) < adapters + 100
    assert trees.bytes_of(init.read_params(base)) > 2 * trees.bytes_of(state['params'])
    assert set(json.loads((workdir / 'base.json').read_text())['parameters']) == set(flat(init.read_params(base)))


def test_a_run_that_was_killed_ends_with_the_same_bits(base, tuned, tmp_path):
    workdir, values = tuned
    killed = tmp_path / 'killed'  # as a kill right after checkpoint 4 leaves it, but for lines that the resumed run cuts off
    shutil.copytree(workdir, killed, ignore=lambda _, names: {'8', '12', '8.json', '12.json'} & set(names))
    assert run.train(config(base), killed) == values
    equal(saved(killed, 12), saved(workdir, 12))
    assert metrics(killed) == metrics(workdir)


def test_its_parameters_are_the_sum_and_go_on_to_evaluation_and_other_runs(base, tuned, tmp_path, capsys):
    workdir, values = tuned
    under, state = flat(init.read_params(base)), saved(workdir, 12)
    ema = init._find(state['opt_state'], 'ema')
    for which, trained in (('raw', state['params']), ('eval', init._at(state['opt_state'], ema))):
        a, b = flat(trained['a']), flat(trained['b'])
        for name, leaf in flat(init.read_params(workdir, which=which)).items():
            # one rounding of a sum of 4 products, and one of the whole
            expected = under[name] + 2.0 * np.einsum('lir,lro->lio', a[name], b[name]) if name in a else under[name]
            np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-7)
            assert np.array_equal(leaf, under[name]) == (name not in a)
    assert run.evaluate(workdir, allow=('tests',))['validation']['loss'] == pytest.approx(values['validation']['loss'], rel=1e-6)
    warm = config(workdir, adapter=None, steps=1)
    with warm.unlocked(), warm.ignore_type():
        warm.optim.schedule = 0.0
    found = run.train(warm, tmp_path / 'warm')
    assert 'loaded, 0 fresh, 0 of the source unused' in capsys.readouterr().err
    assert found['validation']['loss'] == pytest.approx(values['validation']['loss'], rel=1e-5)  # another program


def test_another_base_is_refused(base, tuned, tmp_path):
    workdir = tmp_path / 'tuned'
    shutil.copytree(tuned[0], workdir)
    ten, hidden = base / 'checkpoints' / '10', tmp_path / '10'
    ten.rename(hidden)  # the last checkpoint is step 5 now
    try:
        for use in (
            lambda: run.train(config(base, steps=13), workdir),
            lambda: run.evaluate(workdir, allow=('tests',)),
            lambda: init.read_params(workdir),
        ):
            with pytest.raises(BadInput, match='on top of other parameters'):
                use()
    finally:
        hidden.rename(ten)
    named = config(base, init=spec(init.run, workdir=str(base), checkpoint='10'), steps=13)
    assert set(run.train(named, workdir)) == {'validation'}  # the same base, called otherwise
    assert init.read_params(workdir)
    (workdir / 'base.json').unlink()
    with pytest.raises(BadInput, match=r'base\.json is missing'):
        init.read_params(workdir)
    with pytest.raises(BadInput, match='has nothing to add to'):
        run.train(config(base, init=None), tmp_path / 'none')
    assert not (tmp_path / 'none' / 'config.json').exists()


def test_the_base_is_an_argument_of_the_step_and_survives_it(base):
    parts = Parts(config(base, adapter=spec(lora.lora, rank=2, targets=TARGETS, also_train='norm/')))
    before = jax.device_get(parts.frozen)
    state = parts.jitted_init()(parts.values)
    whole = jax.eval_shape(lambda: state)
    program = jax.make_jaxpr(parts._train_step)(whole, parts.batch_shapes, parts.values, parts.frozen)
    assert sum(np.size(const) for const in program.consts) < 1000 < trees.size(before)
    step = parts.jitted_train_step()
    for index in range(2):  # the state's buffers are given away, the base's are not
        state, _ = step(state, shard.put_batch(parts.train_batches()(index), parts.mesh), parts.values)
    equal(before, jax.device_get(parts.frozen))


# -- peft


PLACES = {
    'attention/query': 'self_attn.q_proj',
    'attention/key': 'self_attn.k_proj',
    'attention/value': 'self_attn.v_proj',
    'attention/out': 'self_attn.o_proj',
    'mlp/gate': 'mlp.gate_proj',
    'mlp/up': 'mlp.up_proj',
    'mlp/down': 'mlp.down_proj',
}
NORMS = {'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}


def llama_params(theirs) -> dict:
    """transformers' LLaMA as our parameter tree."""
    body, array = theirs.model, lambda module: module.weight.detach().numpy().copy()
    stack = lambda place: np.stack([array(layer.get_submodule(place)) for layer in body.layers])  # noqa: E731
    leaves = {f'decoder/blocks/{ours}/kernel': stack(place).swapaxes(1, 2) for ours, place in PLACES.items()}
    leaves |= {f'decoder/blocks/{ours}/scale': stack(place) for ours, place in NORMS.items()}
    leaves |= {'embed/embedding': array(body.embed_tokens), 'decoder/final_norm/scale': array(body.norm)}
    return traverse_util.unflatten_dict({**leaves, 'head/embedding': array(theirs.lm_head)}, sep='/')


@pytest.mark.parity
@pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing`:FutureWarning')  # peft asks transformers by its old name
@pytest.mark.parametrize(('scaling', 'root'), [(lora.by_rank, False), (lora.by_root_of_rank, True)])
def test_it_is_the_adapter_of_peft(scaling, root):
    """The same adapters on the same LLaMA: logits, gradients of the adapters, and logits after merging."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    peft = pytest.importorskip('peft')
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    theirs = transformers.LlamaForCausalLM(settings).eval()
    ours = models.llama(vocab_size=V, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=48, eps=settings.rms_norm_eps)
    params = llama_params(theirs)

    chosen = peft.LoraConfig(r=4, lora_alpha=8, target_modules=['q_proj', 'v_proj', 'down_proj'], use_rslora=root)
    theirs = peft.get_peft_model(theirs, chosen).eval()
    layers = theirs.base_model.model.model.layers
    places = {ours: PLACES[ours] for ours in ('attention/query', 'attention/value', 'mlp/down')}
    find = lambda layer, place, part: getattr(layer.get_submodule(place), f'lora_{part}')['default'].weight  # noqa: E731

    def collect(value):
        stack = lambda place, part: np.stack([value(find(layer, place, part)).numpy().T for layer in layers])  # noqa: E731
        return {part.lower(): {place: stack(module, part) for place, module in places.items()} for part in 'AB'}

    for layer in layers:
        for place in places.values():
            torch.nn.init.normal_(find(layer, place, 'B'), std=0.2)
    adapter = lora.lora(rank=4, alpha=8, targets=r'(query|value|mlp/down)/kernel$', scaling=scaling)
    base, trained = adapted(params, adapter)
    for part, places_of in collect(lambda weight: weight.detach()).items():
        begun = flat(trained[part])
        weights = {name: next(leaf for place, leaf in places_of.items() if place in name) for name in begun}
        assert {name: leaf.shape for name, leaf in begun.items()} == {name: leaf.shape for name, leaf in weights.items()}
        trained[part] = traverse_util.unflatten_dict(weights, sep='/')

    tokens, pull = np.random.default_rng(0).integers(0, V, (2, T)), np.random.default_rng(1).normal(size=(2, T, V)).astype(np.float32)
    logits = theirs(torch.from_numpy(tokens)).logits
    (logits * torch.from_numpy(pull)).sum().backward()

    def pulled(trained):
        out = ours.apply({'params': adapter.merge(base, trained)}, tokens)[0]
        return jnp.sum(out * pull), out

    gradients, own = jax.jit(jax.grad(pulled, has_aux=True))(trained)
    plain = ours.apply({'params': params}, tokens)[0]
    assert np.abs(plain - own).max() > 0.05, 'the adapters matter'
    logits = logits.detach().numpy()
    np.testing.assert_allclose(own, logits, rtol=0, atol=1e-5)  # float32 through two layers, logits of size 1
    for part, places_of in collect(lambda weight: weight.grad).items():
        for name, leaf in flat(gradients[part]).items():
            expected = next(leaf for place, leaf in places_of.items() if place in name)
            assert np.abs(leaf - expected).max() < 1e-4 * np.abs(expected).max(), name
    merged = theirs.merge_and_unload()(torch.from_numpy(tokens)).logits.detach().numpy()
    np.testing.assert_allclose(own, merged, rtol=0, atol=1e-5)
