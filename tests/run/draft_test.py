"""Prediction with a smaller run that proposes, and by beam search, through the same door as any other."""

import pytest

from lmx import run, text
from lmx.run.config import load
from lmx.spec import ref, spec
from lmx.train.workdir import read_config
from lmx.types import BadInput
from tests.run.cli_test import call, refused

ALLOW = ('tests',)
PROMPTS = ['1+2=', '55+41', '7']


def trained(path, **changes):
    config = load('tests/tiny.py:steps=20')
    with config.unlocked(), config.ignore_type():
        for key, value in changes.items():
            config.model[key] = value
    run.train(config, path)
    return path


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    return trained(tmp_path_factory.mktemp('runs') / 'large')


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    return trained(tmp_path_factory.mktemp('runs') / 'small', num_layers=1, dim=8)


def predicted(workdir, *, draft=None, **changes):
    config = read_config(workdir)
    with config.unlocked(), config.ignore_type():
        config.task.update({'temperature': 0.0, 'max_tokens': 8, **changes})
    return run.predict(workdir, PROMPTS, config=config, allow=ALLOW, draft=draft)


def test_a_draft_changes_no_word(large, small):
    alone = predicted(large)
    for draft in (large, small):
        found = predicted(large, draft=draft, draft_tokens=3)
        assert [each['continuation'] for each in found] == [each['continuation'] for each in alone]
        assert [each['logprob'] for each in found] == pytest.approx([each['logprob'] for each in alone], abs=1e-3)
        accepted = [each['draft_accepted'] for each in found]
        assert all(0 <= share <= 1 for share in accepted)
        if draft is large:  # all, but for proposals behind the last token
            assert min(accepted) > 0.5


def test_stop_texts_are_cut_with_a_draft_too(large, small):
    (stop,) = {predicted(large)[0]['continuation'][1]}
    made, drafted = predicted(large, stop=(stop,)), predicted(large, stop=(stop,), draft=small)
    assert [each['continuation'] for each in drafted] == [each['continuation'] for each in made]


def test_a_beam_is_at_least_as_likely(large):
    greedy, found = predicted(large), predicted(large, beam_size=4, length_penalty=0.0)
    for one, other in zip(found, greedy):
        assert one['score'] >= other['logprob'] - 1e-3  # the end token counts in both
    assert 'logprob' not in found[0]


@pytest.mark.parametrize('beam_size', [1, 3])
def test_a_continuation_begins_with_what_is_forced(large, beam_size):
    free, made = (predicted(large, beam_size=beam_size, forced=forced) for forced in ('', '9=+'))
    assert not any(each['continuation'].startswith('9=+') for each in free)
    assert all(each['continuation'].startswith('9=+') for each in made)


def test_the_command_line(large, small, capsys):
    arguments = [f'--workdir={large}', '--allow_import=tests', '--input=1+2=', '--temperature=0', '--max_tokens=8']
    code, out, _ = call(capsys, 'predict', *arguments, f'--draft={small}', '--draft_tokens=2')
    assert code == 0
    assert 'draft_accepted' in out
    code, out, _ = call(capsys, 'predict', *arguments, '--beam_size=3')
    assert code == 0
    assert '"score"' in out
    assert 'do not go with a draft' in refused(capsys, 'predict', *arguments, f'--draft={small}', '--no_repeat=2')
    assert 'beam_size 2 does not go' in refused(capsys, 'predict', *arguments, f'--draft={small}', '--beam_size=2')
    assert 'max_tokens 30' in refused(capsys, 'predict', *arguments, '--beam_size=2', '--max_tokens=30')


def test_another_tokenizer_is_refused(large, tmp_path):
    config = load('tests/tiny.py:steps=1')
    with config.unlocked(), config.ignore_type():
        config.tokenizer = spec(text.bpe, source=ref('data.train'), vocab_size=260)
    run.train(config, tmp_path)
    with pytest.raises(BadInput, match='has another tokenizer'):
        predicted(large, draft=tmp_path)
