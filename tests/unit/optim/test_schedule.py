"""The learning rate of each step, against values worked out by hand."""

from __future__ import annotations

import pytest

from dlrm.optim.schedule import DECAYS, Schedule, scaled_steps

# base 24, W = 4, D = 6, K = 8: the decay is 24 * ((14 - s) / 8)^2, all exact in binary.
SMALL = Schedule(24.0, 4, 6, 8)
BY_HAND = {
    0: 0.0,
    1: 6.0,
    2: 12.0,
    3: 18.0,
    4: 24.0,
    5: 24.0,
    6: 24.0,
    7: 18.375,
    8: 13.5,
    9: 9.375,
    10: 6.0,
    11: 3.375,
    12: 1.5,
    13: 0.375,
    14: 0.0,
}


@pytest.mark.parametrize(("step", "expected"), BY_HAND.items())
def test_values_by_hand(step: int, expected: float) -> None:
    assert SMALL.learning_rate(step) == expected


def test_stays_at_the_end_value_for_good() -> None:
    # An unclamped parabola would be back at the plateau 2 * K steps after D, and above it later.
    end = SMALL.decay_start_step + SMALL.decay_steps
    assert {SMALL.learning_rate(step) for step in range(end, end + 100)} == {0.0}
    assert SMALL.learning_rate(10**9) == 0.0


def test_rises_once_and_never_again() -> None:
    rates = [SMALL.learning_rate(step) for step in range(40)]
    rises = [step for step in range(1, 40) if rates[step] > rates[step - 1]]
    assert rises == [1, 2, 3, 4]


def test_reference_schedule_at_its_corners() -> None:
    schedule = Schedule(24.0, 2750, 49315, 27772)
    assert schedule.learning_rate(1375) == 12.0
    assert schedule.learning_rate(2749) == pytest.approx(24 * 2749 / 2750, rel=1e-15)
    assert schedule.learning_rate(2750) == schedule.learning_rate(49314) == 24.0
    assert schedule.learning_rate(49315 + 27772 // 2) == 6.0
    assert schedule.learning_rate(77086) == pytest.approx(24 / 27772**2, rel=1e-15)
    assert schedule.learning_rate(77087) == 0.0


def test_parts_may_be_empty() -> None:
    assert [Schedule(2.0, 0, 3, 0).learning_rate(step) for step in range(5)] == [2, 2, 2, 0, 0]
    assert [Schedule(2.0, 2, 2, 0).learning_rate(step) for step in range(4)] == [0, 1, 0, 0]
    assert [Schedule(4.0, 0, 0, 2).learning_rate(step) for step in range(4)] == [4, 1, 0, 0]
    assert Schedule(2.0, 0, 0, 0).learning_rate(0) == 0.0


@pytest.mark.parametrize("factor", [0, 1, 3])
@pytest.mark.parametrize(("power", "end"), [(2, 0.0), (1, 0.0), (3, 0.5), (2, 24.0)])
def test_all_parts_against_the_formulas_of_the_pytorch_dlrm(
    factor: int, power: int, end: float
) -> None:
    """Its factor of the rate, as its documentation gives it."""
    schedule = Schedule(24.0, 4, 6, 8, warmup_factor=factor, decay_power=power, end=end)
    for step in range(20):
        if step < 4:
            expected = 24 * (1 - (4 - step) / (4 * 2**factor))
        elif step <= 6:
            expected = 24.0
        elif step < 14:
            expected = max(24 * ((14 - step) / 8) ** power, end)
        else:
            expected = end
        assert schedule.learning_rate(step) == pytest.approx(expected, rel=1e-14), step
    assert schedule.learning_rate(0) == [0.0, 12.0, None, 21.0][factor]


def test_constant_stays_after_the_warm_up() -> None:
    schedule = Schedule(24.0, 4, 4, 8, decay="constant")
    assert [schedule.learning_rate(step) for step in range(6)] == [0, 6, 12, 18, 24, 24]
    assert schedule.learning_rate(10**9) == 24.0


def test_cosine_is_half_a_wave_from_the_plateau_to_the_end() -> None:
    schedule = Schedule(24.0, 4, 6, 8, end=4.0, decay="cosine")
    rates = [schedule.learning_rate(step) for step in range(20)]
    assert rates[:7] == [0, 6, 12, 18, 24, 24, 24]
    # cos(pi / 4) = sqrt(1 / 2), and the middle is the mean of both.
    assert rates[8] == pytest.approx(4 + 20 * (1 + 0.5**0.5) / 2, rel=1e-14)
    assert rates[10] == pytest.approx(14.0, rel=1e-14)
    assert rates[12] == pytest.approx(4 + 20 * (1 - 0.5**0.5) / 2, rel=1e-14)
    assert rates[14:] == [4.0] * 6
    assert schedule.learning_rate(10**9) == 4.0


def test_step_falls_at_once_and_again() -> None:
    schedule = Schedule(24.0, 2, 4, 3, end=2.0, decay="step", decay_ratio=0.5)
    rates = [schedule.learning_rate(step) for step in range(16)]
    assert rates == [0, 12, 24, 24, 12, 12, 12, 6, 6, 6, 3, 3, 3, 2, 2, 2]
    assert schedule.learning_rate(10**9) == 2.0


@pytest.mark.parametrize("decay", DECAYS)
def test_no_schedule_rises_after_its_warm_up(decay: str) -> None:
    schedule = Schedule(24.0, 4, 6, 8, end=0.5, decay=decay)
    rates = [schedule.learning_rate(step) for step in range(4, 60)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("batch", "steps"),
    [
        (55296, (2750, 49315, 27772)),
        (65536, (2320, 41609, 23432)),  # times 27/32: 2320.3, 41609.5, 23432.6
        (110592, (1375, 24657, 13886)),  # halved
        (8192, (18562, 332876, 187461)),  # times 27/4
        (2**31, (0, 1, 0)),
    ],
)
def test_defaults_scale_with_the_batch(batch: int, steps: tuple[int, int, int]) -> None:
    assert tuple(scaled_steps(batch)[part] for part in ("warmup", "decay_start", "decay")) == steps


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 1000, 2048, 16384, 55295, 55297, 10**6])
def test_defaults_equal_integer_arithmetic(batch: int) -> None:
    assert scaled_steps(batch) == {
        "warmup": 2750 * 55296 // batch,
        "decay_start": 49315 * 55296 // batch,
        "decay": 27772 * 55296 // batch,
    }


@pytest.mark.parametrize(
    ("warmup", "decay_start", "decay", "named"),
    [
        (-1, 5, 5, "--warmup_steps"),
        (6, 5, 5, "--decay_start_step"),
        (-3, -2, 5, "--warmup_steps"),
        (0, 5, -1, "--decay_steps"),
    ],
)
def test_refused(warmup: int, decay_start: int, decay: int, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        Schedule(24.0, warmup, decay_start, decay)
    assert "\n" not in str(caught.value)
