"""Every score equals that of its reference implementation, and the bootstrap says how sure it is."""

import collections
import random

import numpy as np
import pytest

from lmx import metrics, rng
from lmx.metrics import answers, scores
from lmx.types import BadInput

WORDS = ['the', 'a', 'cat', 'dog', 'sat', 'on', 'mat', '.', ',', 'quickly-running', 'U.S.', 'dogs', 'sit']


def texts(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """(predictions, references): a share of the words differs."""
    draw = random.Random(seed)
    references = [' '.join(draw.choices(WORDS, k=draw.randint(4, 14))) for _ in range(count)]
    noisy = [' '.join(w if draw.random() < 0.7 else draw.choice(WORDS) for w in text.split()) for text in references]
    return noisy, references


def test_bleu_and_chrf_are_sacrebleus():
    sacrebleu = pytest.importorskip('sacrebleu')
    made, given = texts(40)
    found = metrics.bleu_and_chrf(made, given)
    expected = {'bleu': sacrebleu.corpus_bleu(made, [given]).score, 'chrf': sacrebleu.corpus_chrf(made, [given]).score}
    assert found.values() == pytest.approx(expected, abs=1e-9)
    assert 'tok:13a' in found.notes['bleu']
    several = [(a, b) for a, b in zip(given, texts(40, seed=1)[1])]
    streams = [list(stream) for stream in zip(*several)]
    assert metrics.bleu(made, several).values()['bleu'] == pytest.approx(sacrebleu.corpus_bleu(made, streams).score, abs=1e-9)
    assert metrics.chrf(made, several, word_order=2).values()['chrf'] == pytest.approx(
        sacrebleu.corpus_chrf(made, streams, word_order=2).score, abs=1e-9
    )


def test_a_resampled_corpus_scores_what_sacrebleu_gives_it():
    sacrebleu = pytest.importorskip('sacrebleu')
    made, given = texts(12)
    drawn = rng.numpy_rng(0, 'bootstrap', 2).integers(0, 12, 12)
    expected = sacrebleu.corpus_bleu([made[i] for i in drawn], [[given[i] for i in drawn]]).score
    assert metrics.bleu(made, given).resampled(3)['bleu'][2] == pytest.approx(expected, abs=1e-9)


def test_rouge_is_googles():
    rouge_scorer = pytest.importorskip('rouge_score.rouge_scorer')
    made, given = texts(10)
    scorer = rouge_scorer.RougeScorer(['rouge1', 'rouge2', 'rougeL', 'rougeLsum'], use_stemmer=True)
    expected = collections.defaultdict(float)
    for a, b in zip(made, given):
        for name, score in scorer.score(b, a).items():
            expected[name] += 10 * score.fmeasure
    assert metrics.rouge(made, given).values() == pytest.approx(dict(expected), abs=1e-9)
    assert metrics.rouge(['the dogs sit'], [['nothing', 'the dog sits']]).values()['rouge1'] == pytest.approx(100)


def test_classification_is_scikit_learns():
    sklearn = pytest.importorskip('sklearn.metrics')
    draw = np.random.default_rng(0)
    given = draw.choice(['x', 'y', 'z', 'rare'], 60, p=[0.5, 0.3, 0.18, 0.02]).tolist()
    made = [label if draw.random() < 0.6 else draw.choice(['x', 'y', 'z']).item() for label in given]
    expected = {
        'accuracy': sklearn.accuracy_score(given, made),
        'macro_f1': sklearn.f1_score(given, made, average='macro'),
        'matthews': sklearn.matthews_corrcoef(given, made),
    }
    assert metrics.classification(made, given).values() == pytest.approx(expected, abs=1e-12)
    assert metrics.classification(['x', 'x'], ['x', 'y']).values()['matthews'] == 0


def test_correlation_is_scipys():
    from scipy import stats

    draw = np.random.default_rng(0)
    given = draw.integers(0, 6, 50).astype(float)  # with ties
    made = given + draw.normal(size=50).round(1)
    expected = {'pearson': stats.pearsonr(made, given).statistic, 'spearman': stats.spearmanr(made, given).statistic}
    assert metrics.correlation(made, given).values() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(BadInput, match='no correlation'):
        metrics.correlation([1, 1], [1, 2])


def test_retrieval_is_trec_evals():
    ir_measures = pytest.importorskip('ir_measures')
    draw = np.random.default_rng(0)
    names = [f'd{i}' for i in range(30)]
    ranked = [draw.permutation(names)[:25].tolist() for _ in range(8)]
    relevant = [{str(name): int(draw.integers(0, 3)) for name in draw.choice(names, 6, replace=False)} for _ in range(8)]
    run = {str(q): {name: -float(place) for place, name in enumerate(order)} for q, order in enumerate(ranked)}
    kinds = {'mrr': 'RR', 'map': 'AP', 'ndcg@10': 'nDCG@10', 'recall@1': 'R@1', 'recall@10': 'R@10', 'recall@100': 'R@100'}
    measures = {name: ir_measures.parse_measure(kind) for name, kind in kinds.items()}
    found = ir_measures.calc_aggregate(list(measures.values()), {str(q): given for q, given in enumerate(relevant)}, run)
    expected = {name: found[measure] for name, measure in measures.items()}
    assert metrics.retrieval(ranked, relevant).values() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ('made', 'given', 'exact', 'f1'),
    [
        ('The  Cat!', 'a cat', 100, 100),
        ('cat dog', ['dog', 'cat'], 0, 200 / 3),
        ('', [], 100, 100),
        ('cat', [], 0, 0),
        ('', 'cat', 0, 0),
        ('the', '', 100, 100),  # nothing is left of either
        ('cat cat dog', 'cat dog dog', 0, 200 / 3),
    ],
)
def test_squads_rules(made, given, exact, f1):
    assert metrics.squad([made], [given]).values() == pytest.approx({'exact_match': exact, 'f1': f1})


@pytest.mark.parametrize(
    ('text', 'number'),
    [('so 1,250 - no: $3,000.50.', 3000.5), ('#### -42', -42.0), ('none', None), ('it is .5', 0.5), ('5-3 is 2', 2.0), ('72.', 72.0)],
)
def test_last_numbers(text, number):
    assert answers.last_number(text) == number


def test_final_numbers_and_exact_texts():
    assert metrics.final_number(['it is 4', 'no', '5.0'], ['#### 4', '#### 4', '5']).values() == pytest.approx({'exact_match': 2 / 3})
    assert metrics.exact([' a ', 'b'], ['a', 'c']).values() == {'exact_match': 0.5}


def test_entities_by_hand():
    given = [['B-PER', 'I-PER', 'O', 'B-LOC'], ['I-ORG', 'O', 'B-PER', 'B-PER']]
    made = [['B-PER', 'I-PER', 'O', 'B-PER'], ['B-ORG', 'I-ORG', 'B-PER', 'I-LOC']]
    # Right: the first person and one of the two at the end; 5 are predicted, and 5 true.
    assert metrics.entities(made, given).values() == pytest.approx({'precision': 2 / 5, 'recall': 2 / 5, 'f1': 2 / 5})
    with pytest.raises(BadInput, match='text 1 has 2 predicted tags and 1 true'):
        metrics.entities([['O', 'O']], [['O']])


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(150):
        low, high = scores.interval(scores.mean_of({'x': draw.normal(2, 1, 50)}).resampled(200)['x'], 0.9)
        hits += low <= 2 <= high
    # 150 draws of a share of 0.9 have a standard deviation of 0.025; the percentile interval is a little narrow at 50 examples.
    assert 0.8 < hits / 150 < 0.97


def test_pairs_see_what_separate_intervals_do_not():
    draw = np.random.default_rng(0)
    hard = draw.normal(size=200)
    a, b = (scores.mean_of({'x': hard + shift + 0.1 * draw.normal(size=200)}).resampled()['x'] for shift in (0.05, 0.0))
    (low, high), found = scores.interval(a), scores.paired(a, b)
    assert low < b.mean() < high  # alone, the two are not told apart
    assert found['low'] > 0
    assert found['p'] < 0.01
    assert scores.paired(a, a) == {'difference': 0.0, 'low': 0.0, 'high': 0.0, 'p': 1.0}


@pytest.mark.parametrize('metric', [metrics.bleu, metrics.rouge, metrics.squad, metrics.classification, metrics.retrieval, metrics.exact])
def test_refusals(metric):
    for made, given in (([], []), (['a'], [])):
        with pytest.raises(BadInput, match='predictions and'):
            metric(made, given)
