"""The page of a sweep: the right answer, honest, whole at any moment, inert whatever the text in it says."""

import html.parser
import re
import shlex

import pytest

from lmx import cli, spec
from lmx.report import page, runs, sweep, sweep_said
from lmx.report.sweep_read import Sweep
from lmx.study import config_of
from lmx.types import BadInput
from tests.report import sweeps
from tests.report.fakes import EVIL, fake

VOID = {'meta', 'br', 'img'}


class Balance(html.parser.HTMLParser):
    """Fails where a tag is closed that was not opened last."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """{kind: the page of a sweep's folder}, each written once."""
    root = tmp_path_factory.mktemp('sweeps')
    sweeps.finished_grid(root / 'grid')
    sweeps.search(root / 'search')
    sweeps.waiting(root / 'waiting')
    return {kind: page.write(root / kind) for kind in ('grid', 'search', 'waiting')}


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """(changes of the study, seeds trained afresh) -> a sweep of two points that have come to their end."""

    def make(fresh=(), of=sweeps.loss, **changes):
        study = sweeps.grid_study(**{'points': ({sweeps.DIM: 32}, {sweeps.DIM: 128}), 'seeds': (0, 1), **changes})
        folder = sweeps.Folder(tmp_path_factory.mktemp('small') / 'a', study)
        folder.record()
        for trial in folder.trials():
            sweeps.trained(folder, trial, of=of)
        for seed in fresh:
            sweeps.trained(folder, sweeps.Trial(1, folder.points[1], seed, fresh=True), of=of)
        return Sweep(folder.path)

    return make


def text_of(path):
    return re.sub(r'<[^>]+>', ' ', path.read_text())


@pytest.mark.parametrize('kind', ['grid', 'search', 'waiting'])
def test_a_page_is_well_formed_and_needs_nothing_else(made, kind):
    text = made[kind].read_text()
    seen = Balance(text).seen
    assert not seen & {'script', 'img', 'link', 'b', 'iframe'}
    assert not re.search(r'(src|href)="?(http|//|\.)', text)
    assert not re.search(r'<[^>]*(#000000|\bblack\b)', text[text.index('</style>') :])


def test_a_grid_shows_its_answer_first(made):
    text = text_of(made['grid'])
    values = [sweeps.loss({sweeps.LR: 2e-3, sweeps.DIM: 128}, seed) for seed in (0, 1, 2)]
    lead = text.index('Best so far: peak 0.002, dim 128 (point 5)')
    assert lead < text.index(f'validation/loss {sum(values) / 3:.4f} (') < text.index('Points')
    assert '33 done, 1 running, 1 failed, 1 diverged' in text
    assert 'dim 128 is the largest value that was tried' in text
    assert 'peak 0.002 is the' not in text


def test_a_grid_is_drawn_in_all_ways(made):
    text = made['grid'].read_text()
    captions = re.findall(r'<figcaption>(.*?)</figcaption>', text)
    assert captions[:4] == [
        'validation/loss over steps',
        'Training loss, smoothed',
        'peak and dim, 95 % intervals over seeds',
        'peak x dim: mean',
    ]
    assert captions[4:6] == ['optim.schedule.peak', 'model.dim']
    assert text.count('<svg') == text.count('<figcaption>')


def test_failed_and_diverged_trainings_are_listed_with_their_reasons(made):
    text = made['grid'].read_text()
    lost = text[text.index('Failed and diverged') : text.index('Curves')]
    assert 'RESOURCE_EXHAUSTED: out of memory &lt;b&gt;while&lt;/b&gt; allocating 1.2 GiB &amp; more' in lost
    assert 'loss nan at step 70' in lost
    assert lost.count('<tr') == 3


def test_lines_are_sorted_best_first_and_many_are_folded(made):
    text = made['search'].read_text()
    points = text[text.index('<h2>Points') : text.index('<h2>Failed')]
    shown, folded = points.split('<details>')
    assert (shown.count('<tr'), folded.count('<tr')) == (51, 11)
    assert 'the other 10 points' in folded
    means = [float(value) for value in re.findall(r'>(\d\.\d{4})</td><td class="number">done', points)]
    assert len(means) == 40
    assert means == sorted(means)
    assert 'pruned at step 60' in points


def test_a_search_is_drawn_as_a_contour_with_importances(made):
    text = made['search'].read_text()
    assert 'interpolated between the points' in text
    assert 'heat' not in text
    assert '40 done, 1 diverged, 19 pruned' in text_of(made['search'])
    assert '0 of 2 fresh seeds of this point are trained' in text
    for state in ('diverged', 'pruned'):
        assert re.search(rf'<text[^>]*>{state}</text>', text)


def test_a_sweep_that_has_only_begun_has_a_page(made):
    text = text_of(made['waiting'])
    assert 'No point has come to its end yet.' in text
    assert '1 running, 35 waiting' in text
    assert 'No step yet.' in text
    assert made['waiting'].read_text().count('<tr class="dim"') == 12


def test_a_metric_that_no_training_has_is_named(small):
    found = small(metric='validation/bleu')
    assert 'no point has a value of validation/bleu' in sweep.page(found)


def test_a_point_without_changes_is_called_by_its_number(small):
    found = small(points=({},))
    assert 'Best: point 0' in sweep.page(found)
    assert '<h2>Hyperparameters' not in sweep.page(found)


def test_results_lie_beside_the_page(made):
    for kind, path in made.items():
        for name in ('results.md', 'results.csv', 'results.tex'):
            assert (path.parent / name).stat().st_size > 0, (kind, name)
    text = (made['grid'].parent / 'results.md').read_text()
    rows = [line.split(' | ') for line in text.splitlines() if line.startswith('| ')]
    assert len(rows) == 14
    assert rows[2][:4] == ['| 1', '5', '0.002', '128']
    assert r'out of memory \<b\>while' in text


def test_the_page_may_lie_elsewhere(made, tmp_path):
    there, here = (
        re.sub(r'as of [\d: -]+', '', path.read_text())
        for path in (page.write(made['waiting'].parent, output=tmp_path / 'x.html'), made['waiting'])
    )
    assert there == here
    assert [path.name for path in tmp_path.iterdir()] == ['x.html']


@pytest.mark.parametrize(
    ('metric', 'fresh_seeds', 'shown', 'kind'),
    [
        ('validation/loss', (), 'The value of the winner is that by which it was chosen', 'dim'),
        ('validation/loss', (7, 8), '', ''),
        ('test/loss', (), 'Chosen on test', 'bad'),
        ('test/loss', (7, 8), 'Chosen on test', 'bad'),
    ],
)
def test_the_note_of_honesty_stands_exactly_where_it_is_due(small, metric, fresh_seeds, shown, kind):
    found = small(metric=metric, fresh_seeds=fresh_seeds, fresh=fresh_seeds)
    for text in (sweep._answer(found), sweep.markdown(found)):
        notes = re.findall(r'Chosen on test|The value of the winner is that by which it was chosen', text)
        assert notes == ([shown] if shown else [])
    assert (f'<p class="{kind}">{shown}' in sweep._answer(found)) == bool(shown)


def test_the_reported_number_is_that_of_the_fresh_seeds(small):
    found = small(fresh_seeds=(7, 8, 9), reported='test/loss', fresh=(7, 8))
    values = [sweeps.loss({sweeps.DIM: 128}, seed) for seed in (7, 8)]
    assert re.search(rf'Reported: test/loss {sum(values) / 2:.4f} \([\d.-]+ to [\d.]+\) over 2 fresh seeds', sweep._answer(found))
    assert '2 of 3 fresh seeds' in sweep._answer(found)


def test_more_is_better_where_the_study_says_so(small):
    found = small(mode='max', seeds=(0,))
    assert found.answer.best.point == {sweeps.DIM: 32}
    assert 'higher is better' in sweep.markdown(found)
    assert Balance(sweep.page(found)).seen >= {'svg', 'table'}


def test_the_first_command_trains_the_very_config_of_the_winner(small):
    found = small()
    (_, command), _ = sweep_said.commands(found)
    program, name, *flags = shlex.split(command)
    given = dict(flag.lstrip('-').split('=', 1) for flag in flags)
    assert (program, name, given['workdir']) == ('lmx', 'train', 'runs/best')
    trial = found.rows_of(found.ranked[0])[0].trial
    assert cli._config(given['config'], []) == config_of(found.study, trial)


@pytest.mark.parametrize(
    'point',
    [
        {sweeps.LR: 3.3e-4, sweeps.DIM: 32},
        {'model.tied': False, 'model.dtype': 'bfloat16', 'optim.decay': "it's (a|b) $x"},
        {'model.mlp_dim': 96, 'optim.schedule.steps': 30},
    ],
)
def test_the_overrides_make_the_config_of_a_training(small, point):
    found = small()
    trial = sweeps.Trial(0, point, 3)
    flags = shlex.split(' '.join(sweep_said.overrides(found, trial)))
    assert len(flags) == len(point) + 1  # the seed
    assert cli.override(found.study.base, flags) == config_of(found.study, trial)


@pytest.mark.parametrize('point', [{'samples': ('a',)}, {'optim.clip_norm': None}, {'model.positions': {'call': 'lmx.nn.positions:Rope'}}])
def test_what_flags_cannot_say_is_not_offered(small, point):
    assert sweep_said.overrides(small(), sweeps.Trial(0, point, 3)) == []


def test_text_of_a_sweep_is_inert(small):
    found = small(points=({'optim.decay': EVIL}, {'optim.decay': 'b'}))
    assert not Balance(sweep.page(found)).seen & {'script', 'img'}
    assert not re.search(r'(?<!\\)<', re.sub(r'```.*?```', '', sweep.markdown(found), flags=re.DOTALL))


def test_a_sweep_is_not_mixed_with_others(made, tmp_path, capsys):
    run = fake(tmp_path / 'run')
    for folders in ([made['grid'].parent, run], [run, made['grid'].parent], [made['grid'].parent, made['search'].parent]):
        with pytest.raises(BadInput, match='one sweep alone, or some runs'):
            page.write(*folders)
    with pytest.raises(SystemExit) as end:
        cli.main(['lmx', 'report', str(run), str(made['grid'].parent)])
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_training_that_failed_before_its_first_file_is_a_run(made):
    assert page.RunFiles(made['grid'].parent / 'trials' / '0001-s2').step == 0


def test_a_sweep_is_one_line_among_the_runs(made, tmp_path):
    root = made['grid'].parent.parent
    trial = root / 'grid' / 'trials' / '0005-s0'
    (trial / 'provenance.json').write_text('{}')
    rows = {row['name']: row for row in runs.find(root)}
    assert set(rows) == {'grid', 'search', 'waiting'}
    assert rows['grid']['state'] == '33/36 done, 1 failed, 1 diverged'
    assert rows['search']['state'] == '40/60 done, 1 diverged, 19 pruned'
    assert rows['grid']['evaluation'].startswith('validation/loss 1.6')
    assert (rows['grid']['step'], rows['grid']['steps']) == (33 * 200 + 110 + 70, 36 * 200)
    assert len(runs.table(list(rows.values())).splitlines()) == 4
    assert [row['name'] for row in runs.find(root / 'grid')] == ['trials/0005-s0']  # within it, its trainings


def test_a_sweep_that_cannot_be_read_does_not_end_the_list(tmp_path):
    fake(tmp_path / 'good')
    for name, text in (('broken', '{"base'), ('other', '{}'), ('list', '[]')):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'study.json').write_text(text)
    assert {row['name']: row['state'] for row in runs.find(tmp_path)} == {
        'good': 'done',
        **dict.fromkeys(('broken', 'other', 'list'), 'sweep that cannot be read'),
    }


def test_the_base_of_the_study_is_there_to_unfold(made):
    text = made['grid'].read_text()
    assert all(html.escape(str(value)) in text for path, value in spec.leaves(sweeps.base()) if path.startswith('model.'))
