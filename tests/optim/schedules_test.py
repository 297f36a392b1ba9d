"""Schedules: their values, PyTorch's where it has the same one, and every number traced."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.optim import schedules

SCHEDULES = {
    schedules.constant: {'peak': 1.0, 'warmup_steps': 4.0},
    schedules.cosine: {'peak': 1.0, 'steps': 20.0, 'warmup_steps': 4.0, 'end': 0.1},
    schedules.linear: {'peak': 1.0, 'steps': 20.0, 'warmup_steps': 4.0, 'end': 0.1},
    schedules.wsd: {'peak': 1.0, 'steps': 20.0, 'decay_steps': 5.0, 'warmup_steps': 4.0, 'end': 0.1},
    schedules.noam: {'dim': 64.0, 'warmup_steps': 4.0, 'factor': 1.0},
    schedules.inverse_sqrt: {'peak': 1.0, 'warmup_steps': 4.0},
}


def test_no_number_is_left_out():
    here = {f for name, f in inspect.getmembers(schedules, inspect.isfunction) if f.__module__ == schedules.__name__ and name[0] != '_'}
    assert here == set(SCHEDULES)
    assert {schedule: set(inspect.signature(schedule).parameters) for schedule in here} == {s: set(v) for s, v in SCHEDULES.items()}


@pytest.mark.parametrize('schedule', SCHEDULES, ids=lambda schedule: schedule.__name__)
def test_every_number_of_a_schedule_may_be_traced(schedule):
    numbers = {name: jnp.float32([value, 0.8 * value]) for name, value in SCHEDULES[schedule].items()}
    both = jax.vmap(lambda values: jnp.stack([schedule(**values)(step) for step in range(25)]))(numbers)
    for index in range(2):
        alone = [schedule(**{name: float(value[index]) for name, value in numbers.items()})(step) for step in range(25)]
        np.testing.assert_allclose(both[index], alone, rtol=1e-5, atol=1e-6)


def test_schedules_have_the_shape_they_say():
    at = lambda name, **changes: [float(name(**{**SCHEDULES[name], **changes})(step)) for step in range(25)]  # noqa: E731
    for name in (schedules.constant, schedules.cosine, schedules.linear, schedules.wsd, schedules.inverse_sqrt):
        values = at(name)
        assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
        assert max(values) == pytest.approx(1.0)
    for name in (schedules.cosine, schedules.linear, schedules.wsd):
        assert at(name)[20:] == pytest.approx([0.1] * 5)
    assert at(schedules.cosine)[12] == pytest.approx(0.55)
    assert at(schedules.wsd)[4:16] == pytest.approx([1.0] * 12)
    assert at(schedules.inverse_sqrt)[15] == pytest.approx(0.5)
    assert int(np.argmax(at(schedules.noam))) == 3
    assert at(schedules.noam)[3] == pytest.approx((64 * 4) ** -0.5)


@pytest.mark.parametrize('schedule', SCHEDULES, ids=lambda schedule: schedule.__name__)
def test_a_schedule_gives_one_float32_and_never_starts_at_0(schedule):
    for warmup_steps in (0, 1, 4):
        at = schedule(
            **{**SCHEDULES[schedule], 'warmup_steps': warmup_steps}
            if warmup_steps or schedule is not schedules.noam
            else SCHEDULES[schedule]
        )
        for step in (0, np.int64(3), jnp.int32(3)):
            rate = at(step)
            assert (rate.dtype, rate.shape) == (jnp.float32, ())
            assert rate > 0


@pytest.mark.parity
@pytest.mark.parametrize(
    ('ours', 'name', 'options'),
    [
        (schedules.cosine(peak=0.3, steps=20), 'CosineAnnealingLR', {'T_max': 20}),
        (schedules.cosine(peak=0.3, steps=20, end=0.1), 'CosineAnnealingLR', {'T_max': 20, 'eta_min': 0.03}),
        (schedules.linear(peak=0.3, steps=20, end=0.1), 'LinearLR', {'start_factor': 1.0, 'end_factor': 0.1, 'total_iters': 20}),
        (schedules.constant(peak=0.3, warmup_steps=4), 'LinearLR', {'start_factor': 0.25, 'total_iters': 3}),
        (
            schedules.noam(dim=64, warmup_steps=4),
            'LambdaLR',
            {'lr_lambda': lambda s: 64**-0.5 * min((s + 1) ** -0.5, (s + 1) * 4**-1.5) / 0.3},
        ),
    ],
)
def test_schedules_equal_pytorch(ours, name, options):
    torch = pytest.importorskip('torch', reason='needs lmx[test]')
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
    for step in range(20):
        # float32 against float64; the cosine's end is a difference of nearly equal numbers
        assert float(ours(step)) == pytest.approx(reference.get_last_lr()[0], rel=1e-5, abs=1e-8)
        optimizer.step()
        reference.step()
