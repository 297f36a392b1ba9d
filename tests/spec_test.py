"""The config language: build, references, defaults, errors, JSON."""

import collections

import pytest
from ml_collections import ConfigDict

from lmx import spec as s
from lmx.types import BadInput


class Thing:
    def __init__(self, *, size: int = 3, of: object = None, name: str = 'x'):
        self.size, self.of, self.name, self.double = size, of, name, 2 * size


def config() -> ConfigDict:
    c = ConfigDict()
    c.dim = 4
    c.data = {'train': s.spec(Thing, name='train')}
    c.tokenizer = s.spec(Thing, of=s.ref('data.train'), size=s.ref('dim'))
    c.model = s.spec(Thing, of=(s.ref('tokenizer.double'), s.spec(Thing, size=s.ref('tokenizer.size')), collections.Counter))
    return s.finish(c)


def test_build_resolves_references_inside_calls_and_tuples():
    model = s.build(config(), 'model')
    double, inner, function = model.of
    assert (double, inner.size, function) == (8, 4, collections.Counter)


def test_each_path_is_built_once():
    builder = s.Builder(config())
    assert builder('tokenizer').of is builder('data.train')


def test_given_values_replace_what_the_config_says():
    assert s.build(config(), 'model', {'dim': 5}).of[1].size == 5
    assert s.build(config(), 'tokenizer', {'tokenizer.size': 7}).size == 7


def test_every_default_is_recorded():
    assert config().tokenizer.name == 'x'


def test_json_round_trip_is_exact_and_locked():
    c = config()
    again = s.from_json(s.to_json(c))
    assert s.to_plain(again) == s.to_plain(c)
    assert again.is_locked


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda: s.spec(Thing, siez=1), "did you mean 'size'"),
        (lambda: s.spec(collections.namedtuple), 'needs typename, field_names'),
        (lambda: s.spec(Thing, of=object()), 'neither a plain value nor a function'),
        (lambda: s.spec(lambda: 0), 'cannot be imported by name'),
        (lambda: s.spec('lmx.nothing:f'), "no module named 'lmx.nothing'"),
        (lambda: s.spec('collections:Conter'), "did you mean 'Counter'"),
        (lambda: s.get(config(), 'modle.size'), "did you mean 'model'"),
        (lambda: s.build(ConfigDict({'a': '${b}', 'b': '${a}'}), 'a'), 'go in a circle: a -> b -> a'),
        (lambda: s.build(ConfigDict({'a': '${nowhere}'}), 'a'), 'leads nowhere'),
        (lambda: s.build(ConfigDict({**config(), 'x': '${tokenizer.dubble}'}), 'x'), "did you mean 'double'"),
        (lambda: s.Builder(config(), allow=('lmx',))('model'), '--allow_import='),
    ],
)
def test_bad_input_names_the_value_and_the_fix(make, says):
    with pytest.raises(BadInput) as error:
        make()
    assert says in str(error.value)
    assert '\n' not in str(error.value)


def test_loading_foreign_json_calls_only_what_is_allowed():
    c = s.from_json(s.to_json(config()))
    assert s.Builder(c, allow=(__name__.split('.')[0], 'collections'))('model').size == 3


def test_parse_arg():
    a = s.parse_arg('debug,model=rnn,layers=3,rate=0.5', debug=False, model='gpt', layers=2, rate=0.1, wide=False)
    assert vars(a) == {'debug': True, 'model': 'rnn', 'layers': 3, 'rate': 0.5, 'wide': False}


@pytest.mark.parametrize('arg', ['debgu', 'model', 'layers=x', 'debug=maybe'])
def test_parse_arg_refuses(arg):
    with pytest.raises(BadInput):
        s.parse_arg(arg, debug=False, model='gpt', layers=2)


def test_diff_lists_every_change_and_nothing_else():
    a, b = config(), s.to_plain(config())
    b['model']['size'], b['new'] = 9, 1
    assert s.diff(a, b) == [('model.size', 3, 9), ('new', '-', 1)]
    assert s.diff(a, a) == []


def test_functions_of_jax_are_named_as_users_import_them():
    import jax

    assert s.name_of(jax.nn.relu) == 'jax.nn:relu'
    assert s.name_of(jax.numpy.tanh) == 'jax.numpy:tanh'
