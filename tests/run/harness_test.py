"""lm-evaluation-harness gives the same numbers for a run as for the Hugging Face model that the run was made of."""

import functools
import json

import pytest
import yaml

from lmx import run
from lmx.types import BadInput
from tests.run.cli_test import call, refused

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning', 'ignore::ResourceWarning', 'ignore::UserWarning'),
]

QUESTIONS = [
    {'question': 'two and two make', 'choices': ['four', 'five of them', 'a'], 'answer': 0, 'number': '4'},
    {'question': 'red and blue make', 'choices': ['green', 'violet', 'no colour at all'], 'answer': 1, 'number': '7'},
    {
        'question': 'a long, long question about nothing in particular, and then some ',
        'choices': ['yes', 'no', 'é'],
        'answer': 2,
        'number': '0',
    },
    {'question': 'one', 'choices': ['two', 'three', 'four and five and six and seven'], 'answer': 0, 'number': '1'},
] * 2


@pytest.fixture(scope='module', autouse=True)
def one_index():
    """Of the harness's thousands of task files, which take seconds to read."""
    from lmx.run import harness

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, 'TaskManager', functools.cache(harness.TaskManager))
        yield


@pytest.fixture(scope='module')
def included(tmp_path_factory):
    """A folder with three tasks, one for each thing that the harness asks of a model."""
    folder = tmp_path_factory.mktemp('tasks')
    (folder / 'questions.jsonl').write_text(''.join(json.dumps(each) + '\n' for each in QUESTIONS))
    texts = [each['question'] + ' ' + ' '.join(each['choices']) * 3 for each in QUESTIONS[:4]]
    (folder / 'texts.jsonl').write_text(''.join(json.dumps({'text': each}) + '\n' for each in texts))

    def data(name):
        return {'dataset_path': 'json', 'dataset_kwargs': {'data_files': {'test': str(folder / name)}}, 'test_split': 'test'}

    mean = {'aggregation': 'mean', 'higher_is_better': True}
    chosen = {'doc_to_text': '{{question}}', 'doc_to_choice': '{{choices}}', 'doc_to_target': '{{answer}}', 'fewshot_split': 'test'}
    tasks = {
        'mini_choice': {
            **data('questions.jsonl'),
            **chosen,
            'output_type': 'multiple_choice',
            'metric_list': [{'metric': name, **mean} for name in ('acc', 'acc_norm')],
        },
        'mini_rolling': {
            **data('texts.jsonl'),
            'output_type': 'loglikelihood_rolling',
            'doc_to_text': '',
            'doc_to_target': '{{text}}',
            'metric_list': [{'metric': name} for name in ('word_perplexity', 'bits_per_byte')],
        },
        'mini_text': {
            **data('questions.jsonl'),
            'output_type': 'generate_until',
            'doc_to_text': '{{question}}',
            'doc_to_target': '{{number}}',
            'fewshot_split': 'test',
            'generation_kwargs': {'until': ['e'], 'max_gen_toks': 12, 'do_sample': False},
            'metric_list': [{'metric': 'exact_match', **mean}],
        },
    }
    for name, task in tasks.items():
        (folder / f'{name}.yaml').write_text(yaml.safe_dump({'task': name, **task}))
    return folder


def _tokenizer(folder, *, bos):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {piece: index for index, piece in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), '<s>', '</s>'])}
    inner = Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if bos:
        inner.post_processor = processors.TemplateProcessing(single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', vocab['<s>'])])
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token='</s>', **({'bos_token': '<s>'} if bos else {})).save_pretrained(folder)
    return len(vocab)


@pytest.fixture(scope='module', params=[pytest.param('gpt2', marks=pytest.mark.full), 'llama'])
def both(request, tmp_path_factory):
    """(a Hugging Face directory, the run made of it); llama's tokenizer begins every text with a special token, gpt2's does not."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    folder = tmp_path_factory.mktemp('theirs') / request.param
    vocab = _tokenizer(folder, bos=request.param == 'llama')
    torch.manual_seed(0)
    wide = {'vocab_size': vocab, 'bos_token_id': vocab - 2, 'eos_token_id': vocab - 1, 'initializer_range': 0.3}
    if request.param == 'gpt2':
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=48, **wide))
    else:
        sizes = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 24}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, max_position_embeddings=48, **wide))
    model.save_pretrained(folder)
    workdir = tmp_path_factory.mktemp('runs') / request.param
    run.import_model(folder, workdir)
    return folder, workdir


def their_own(folder, names, included, **options):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(folder), device='cpu', dtype='float32', batch_size=4)
    seeds = dict.fromkeys(('random_seed', 'numpy_random_seed', 'torch_random_seed', 'fewshot_random_seed'), 0)
    return lm_eval.simple_evaluate(
        model, tasks=names, task_manager=TaskManager(include_path=str(included), include_defaults=False), **seeds, **options
    )


@pytest.mark.parametrize(('names', 'shots'), [(['mini_choice', 'mini_text'], 2), (['mini_rolling'], 0)])
def test_scores_are_the_harness_own(both, included, names, shots):
    from lmx.run.harness import harness

    folder, workdir = both
    theirs = their_own(folder, names, included, num_fewshot=shots)['results']
    ours = harness(workdir, names, shots=shots, include=str(included))
    for name in names:
        values = {key.removesuffix(',none'): value for key, value in theirs[name].items() if key.endswith(',none') and 'stderr' not in key}
        assert values
        for metric, value in values.items():  # float32 sums in another order
            assert ours[name][metric] == pytest.approx(value, rel=1e-5), (name, metric)
    assert json.loads((workdir / 'harness' / f'{names[0]}-0.json').read_text())['n-shot'] == shots


def test_every_answer_is_the_same(both, included):
    """Not the scores alone: each log-likelihood, and each text."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from lmx.run.harness import Model
    from lmx.run.restore import restore

    folder, workdir = both
    parts, params, _ = restore(workdir)
    ours, theirs = Model(parts, params, batch_size=3), HFLM(pretrained=str(folder), device='cpu', dtype='float32', batch_size=1)

    def asked(kind, arguments):
        requests = [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]
        return getattr(ours, kind)(requests), getattr(theirs, kind)(requests)

    contexts = ['', 'two and', 'ends in blanks  ', 'x' * 90]
    for one, other in zip(*asked('loglikelihood', [(context, text) for context in contexts for text in (' two', 'abc', ' é')])):
        assert one == (pytest.approx(other[0], rel=1e-5), other[1])
    for one, other in zip(*asked('loglikelihood_rolling', [('a',), ('the text is ' * 12,), ('',), ('x' * 48,)])):
        assert one == pytest.approx(other, rel=1e-5)
    limits = [{'until': ['\n'], 'max_gen_toks': 10}, {'until': [], 'max_gen_toks': 20, 'do_sample': False}]
    assert len(set(map(tuple, zip(*asked('generate_until', [(c, limit) for c in ('one', 'x' * 60) for limit in limits]))))) > 1
    for one, other in zip(*asked('generate_until', [(context, limit) for context in contexts[1:] for limit in limits])):
        assert one == other


def test_what_is_wrong_is_said(both, included, capsys):
    _, workdir = both
    assert 'no task' in refused(capsys, 'harness', f'--workdir={workdir}', '--tasks=mini_choise', f'--include={included}')
    assert 'mini_choice' in refused(capsys, 'harness', f'--workdir={workdir}', '--tasks=mini_choise', f'--include={included}')
    assert '--tasks' in refused(capsys, 'harness', f'--workdir={workdir}')
    code, out, _ = call(capsys, 'harness', f'--workdir={workdir}', '--tasks=mini_choice', f'--include={included}', '--limit=2')
    assert code == 0
    assert 'mini_choice: ' in out


def test_generation_that_cannot_be_is_refused(both):
    from lmx.run.harness import Model
    from lmx.run.restore import restore

    parts, params, _ = restore(both[1])
    model = Model(parts, params)
    with pytest.raises(BadInput, match='max_gen_toks 99'):
        model._generation({'max_gen_toks': 99})
    with pytest.raises(BadInput, match="'num_beams' is unknown"):
        model._generation({'max_gen_toks': 9, 'num_beams': 2})
