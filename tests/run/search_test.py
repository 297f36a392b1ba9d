"""Search from the command line: a corpus is embedded once, and every hit is the nearest by the model's own vectors."""

import importlib
import io

import numpy as np
import pytest

from lmx import models, optim, run, tasks, text
from lmx.data import sources
from lmx.nn import heads
from lmx.run.config import base
from lmx.spec import ref, spec
from lmx.types import BadInput
from tests.run.cli_test import call, refused

search = importlib.import_module('lmx.run.search')  # `lmx.run.search` is the function of this name
TEXTS = ['a cat sat on a mat', 'dogs ran over green hills', 'the cat sat', 'blue skies over the hills while dogs sat on green mats']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    c = base()
    c.steps, c.batch_size = 1, 8
    pairs = [{'query': words[:9], 'document': words} for words in TEXTS * 2]
    c.data = {split: spec(sources.in_memory, records=pairs) for split in ('train', 'validation')}
    c.tokenizer = spec(text.wordpiece, source=spec(sources.in_memory, records=[{'text': words} for words in TEXTS]), vocab_size=60)
    c.task = spec(tasks.semantic_search, tokenizer=ref('tokenizer'), max_length=12)
    c.model = spec(models.bert, vocab_size=60, dim=16, num_layers=1, num_heads=2, max_length=12, head=spec(heads.embedding))
    c.optim = spec(optim.optimizer, rule=spec(optim.adam), schedule=1e-3)
    path = tmp_path_factory.mktemp('runs') / 'run'
    run.train(c, path)
    return path


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / 'corpus.txt'
    path.write_text('\n'.join([TEXTS[0], '', ' ', *TEXTS[1:]]) + '\n')
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(search, 'cache_dir', lambda: tmp_path / 'cache')


def test_hits_are_the_nearest_and_say_where_they_stand(trained, corpus):
    query = 'a cat sat'
    (found,) = run.search(trained, corpus, query, top=9)
    vectors = np.array([each['embedding'] for each in run.predict(trained, [query, *TEXTS])])
    scores = vectors[1:] @ vectors[0]
    order = np.argsort(-scores)
    assert [hit['text'] for hit in found] == [TEXTS[place] for place in order]
    assert [hit['line'] for hit in found] == [(1, 4, 5, 6)[place] for place in order]
    np.testing.assert_allclose([hit['score'] for hit in found], scores[order], atol=1e-6)


def test_the_corpus_is_embedded_once_and_anew_when_it_changes(trained, corpus, monkeypatch):
    counts = []
    real = search.predictions
    monkeypatch.setattr(
        search, 'predictions', lambda parts, params, records, **o: counts.append(len(records)) or real(parts, params, records, **o)
    )
    run.search(trained, corpus, 'hills')
    run.search(trained, corpus, ['skies', 'cats'])
    assert counts == [4, 1, 2]
    corpus.write_text(corpus.read_text() + 'another\n')
    run.search(trained, corpus, 'hills')
    assert counts == [4, 1, 2, 5, 1]


def test_a_large_corpus_is_searched_approximately_unless_exactness_is_asked_for(trained, corpus, monkeypatch):
    monkeypatch.setattr(search, 'EXACT', 3)
    found = [run.Searcher(trained, corpus, exact=exact) for exact in (False, True)]
    assert [each.exact for each in found] == [False, True]
    programs = [search._nearest.lower(each.vectors[:1], each.vectors, 2, each.exact).as_text() for each in found]
    assert ['ApproxTopK' in program or 'approx_top_k' in program for program in programs] == [True, False]
    assert found[0](['hills'], 2) == found[1](['hills'], 2)  # of so few texts none can be missed


def test_queries_come_from_the_input_and_are_answered_one_by_one(trained, corpus, capsys, monkeypatch):
    monkeypatch.setattr('sys.stdin', io.StringIO('blue skies\n\n猫 cat\n'))
    code, out, _ = call(capsys, 'search', f'--workdir={trained}', f'--corpus={corpus}', '--top=1')
    assert code == 0
    lines = out.splitlines()
    assert lines[::2] == ['blue skies', '猫 cat']
    assert all(line.split()[1] in '1456' for line in lines[1::2])


def test_a_text_that_was_cut_is_said_to_be_from_the_cache_too(trained, corpus, capsys):
    for _ in range(2):
        _, _, err = call(capsys, 'search', f'--workdir={trained}', f'--corpus={corpus}', '--query=cat', '--config.task.too_long=cut')
        assert '1 of 4 texts were cut' in err
    assert 'cut' not in call(capsys, 'search', f'--workdir={trained}', f'--corpus={corpus}', '--query=cat')[2]


@pytest.mark.parametrize(
    ('content', 'args', 'says'),
    [
        ('', ('--query=cat',), 'is empty'),
        ('\n \n', ('--query=cat',), 'holds no text'),
        ('cat\n', ('--query= ',), 'a query is empty'),
        ('cat\n', ('--query=cat', '--top=0'), 'top 0 is below 1'),
        ('cat\n', ('--query=猫 кошка',), "'猫 кошка' is nothing but unknown tokens"),
    ],
)
def test_refusals(trained, tmp_path, capsys, content, args, says):
    (tmp_path / 'corpus.txt').write_text(content)
    assert says in refused(capsys, 'search', f'--workdir={trained}', f'--corpus={tmp_path / "corpus.txt"}', *args)


def test_another_alphabet_within_the_corpus_is_no_obstacle(trained, tmp_path):
    (tmp_path / 'corpus.txt').write_text('猫\ncat\n')
    assert {hit['line'] for hit in run.search(trained, tmp_path / 'corpus.txt', 'cat')[0]} == {1, 2}


@pytest.mark.parametrize('given', ['', ' ', '猫猫', '猫 😀'])
def test_a_text_that_says_nothing_is_refused_or_gets_its_error(trained, given):
    says = 'unknown tokens' if given.strip() else 'the text is empty'
    with pytest.raises(BadInput, match=f'input 2: .*{says}'):
        run.predict(trained, ['cat', given])
    made = run.predict(trained, ['cat', given, 'a mat'], skip_bad=True)
    assert ['embedding' in each for each in made] == [True, False, True]
    assert says in made[1]['error']


def test_lines_that_are_no_texts_are_named(trained, tmp_path):
    path = tmp_path / 'corpus.jsonl'
    for line, says in (('{"txet": "a"}', 'line 2 of the corpus has no field "text"'), ('{', 'corpus.jsonl:2 is neither')):
        path.write_text(f'"cat"\n{line}\n')
        with pytest.raises(BadInput, match=says):
            run.search(trained, path, 'cat')
