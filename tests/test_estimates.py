"""Estimates against simulated machines whose truth is known; every bound is a binomial quantile."""

import math
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, ttest_ind

from attnbench.estimates import (
    Interval,
    apart,
    beyond,
    block_value,
    crossings,
    curve,
    geometric_mean,
    half_of,
    half_width,
    holm,
    location,
    mad,
    mean,
    percentile,
    ratio,
    slope,
    welch,
    widened,
)

RUNS = 1000
MISTAKE = 1e-3
"""How often a bound may fail a sound procedure, were the seed not fixed."""
SAMPLES = 15


def machine_noise(rng: np.random.Generator, blocks: int, steepest: float = 0.05) -> NDArray[np.float64]:
    """Log noise of `RUNS` machines, [RUNS, blocks, SAMPLES] in the order of time.

    AR(1) of 0.5 % that forgets in about ten samples, a drift of up to `steepest` over the run that bends once, and
    spikes of 20 to 200 % in 3 % of the samples.
    """
    steps = blocks * SAMPLES
    shocks = rng.normal(0, 0.005 * math.sqrt(1 - 0.9**2), (steps, RUNS))
    state, walk = rng.normal(0, 0.005, RUNS), np.empty((steps, RUNS))
    for step in range(steps):
        state = 0.9 * state + shocks[step]
        walk[step] = state
    time = np.linspace(0, 1, steps)[:, None]
    drift = rng.uniform(-steepest, steepest, RUNS) * time + rng.uniform(-0.02, 0.02, RUNS) * np.sin(
        math.pi * time
    )
    spikes = (rng.random((steps, RUNS)) < 0.03) * np.log(rng.uniform(1.2, 3.0, (steps, RUNS)))
    return (walk + drift + spikes).T.reshape(RUNS, blocks, SAMPLES)


def interleaved(rng: np.random.Generator, rounds: int, steepest: float = 0.05) -> NDArray[np.float64]:
    """Log block medians of two equal implementations, a block of each a round in random order: [2, RUNS, rounds]."""
    medians = np.median(machine_noise(rng, 2 * rounds, steepest), axis=2).reshape(RUNS, rounds, 2)
    swapped = rng.random((RUNS, rounds, 1)) < 0.5
    return np.where(swapped, medians[..., ::-1], medians).transpose(2, 0, 1)


def alarms(ours: NDArray[np.float64], theirs: NDArray[np.float64], truth: float = 1.0) -> int:
    """In how many runs the interval of the ratio leaves out `truth`."""
    intervals = [ratio([a.tolist()], [b.tolist()]) for a, b in zip(ours, theirs, strict=True)]
    return sum(not holds(interval, truth) for interval in intervals)


def holds(interval: Interval, truth: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


def most(share: float) -> int:
    return int(binom.ppf(1 - MISTAKE, RUNS, share))


def least(share: float) -> int:
    return int(binom.ppf(MISTAKE, RUNS, share))


@pytest.mark.parametrize("rounds", [7, 20])
def test_equal_implementations_in_interleaved_blocks_differ_in_five_percent_of_runs(rounds: int) -> None:
    ours, theirs = interleaved(np.random.default_rng(rounds), rounds)

    assert least(0.05) <= alarms(ours, theirs) <= most(0.05)


def test_the_same_noise_one_implementation_after_the_other_does_raise_alarms() -> None:
    medians = np.median(machine_noise(np.random.default_rng(3), 40), axis=2)

    assert alarms(medians[:, :20], medians[:, 20:]) > most(0.05)


def test_a_slowdown_of_two_percent_is_found_and_measured() -> None:
    ours, theirs = interleaved(np.random.default_rng(2), 20)
    slower = ours + math.log(1.02)

    assert alarms(slower, theirs) >= least(0.99)
    assert alarms(slower, theirs, truth=1.02) <= most(0.05)


@pytest.mark.parametrize("steepest", [0.1, 0.3])
def test_however_steep_the_drift_verdicts_on_interleaved_blocks_hold(steepest: float) -> None:
    ours, theirs = interleaved(np.random.default_rng(8), 20, steepest)

    assert alarms(ours, theirs) <= most(0.05)
    assert alarms(ours + math.log(1.02), theirs, truth=1.02) <= most(0.05)
    assert alarms(ours + math.log(1.02), theirs) >= least(0.95)


def test_a_slowdown_of_a_fifth_of_a_percent_is_never_called_more_than_one() -> None:
    ours, theirs = interleaved(np.random.default_rng(9), 20)
    intervals = [
        ratio([(a + math.log(1.002)).tolist()], [b.tolist()]) for a, b in zip(ours, theirs, strict=True)
    ]

    assert not any((interval.low or 0.0) > 1.01 for interval in intervals)


@pytest.mark.parametrize("rounds", [5, 10, 23])
def test_the_interval_of_a_location_holds_the_truth(rounds: int) -> None:
    blocks = np.random.default_rng(rounds).normal(math.log(2e-3), 0.01, (RUNS, rounds))

    assert sum(holds(location([run.tolist()]), 2e-3) for run in blocks) >= least(0.95)


def test_blocks_astray_to_both_sides_do_not_spoil_the_coverage() -> None:
    rng = np.random.default_rng(4)
    astray = rng.random((RUNS, 20)) < 0.3
    blocks = rng.normal(0, np.where(astray, 0.1, 0.005))

    assert sum(holds(location([run.tolist()]), 1.0) for run in blocks) >= least(0.95)


def test_what_differs_between_processes_is_covered_from_three_launches_on() -> None:
    rng = np.random.default_rng(5)
    launches = rng.normal(0, 0.005, (RUNS, 3, 1)) + rng.normal(0, 0.002, (RUNS, 3, 10))

    covered = sum(holds(location(run.tolist()), 1.0) for run in launches)
    pooled = sum(holds(location([run.ravel().tolist()]), 1.0) for run in launches)

    assert covered >= least(0.95)
    assert pooled < least(0.95)  # the rounds alone are too sure: this is what the launches are for


def test_two_launches_say_nothing_about_their_spread() -> None:
    apart = [[0.0, 0.001, 0.002], [1.0, 1.001, 1.002]]

    assert location(apart) == location([[*apart[0], *apart[1]]])


def test_yuens_interval_is_what_the_formula_gives_by_hand() -> None:
    # 5 values, one cut at each end: kept 2 3 4, winsorised 2 2 3 4 4 with squares 4, so the standard error
    # is sqrt(4 / (3 * 2)); t at 97.5 % with 2 degrees of freedom is 4.302653
    interval = location([[0.05, 0.02, 0.03, 0.04, 0.01]])
    half = 4.302652729749 * math.sqrt(4 / 6) / 100

    assert interval.location == pytest.approx(math.exp(0.03), rel=1e-12)
    assert interval.low == pytest.approx(math.exp(0.03 - half), rel=1e-11)
    assert half_width(interval) == pytest.approx(half, rel=1e-11)


def test_the_location_lies_inside_however_odd_the_blocks() -> None:
    rng = np.random.default_rng(6)
    for _ in range(300):
        values = [rng.standard_cauchy(rng.integers(2, 9)).tolist() for _ in range(rng.integers(3, 5))]
        values = [[math.copysign(min(abs(value), 50.0), value) for value in launch] for launch in values]
        interval = location(values)

        assert holds(interval, interval.location)


def test_equal_blocks_have_an_interval_without_width() -> None:
    interval = location([[math.log(0.1)] * 7] * 3)

    assert interval.location == pytest.approx(0.1)
    assert half_width(interval) == pytest.approx(0, abs=1e-15)
    assert holds(interval, interval.location)


@pytest.mark.parametrize("values", [[[0.3]], [[0.1, 0.3], [0.2, 9.0]], [[0.1], [0.2], [0.3], [9.0]]])
def test_fewer_than_five_blocks_give_a_median_and_no_interval(values: list[list[float]]) -> None:
    interval = location(values)

    assert interval.location == pytest.approx(math.exp(np.median(np.concatenate(values))))
    assert (interval.low, interval.high, half_width(interval)) == (None, None, None)


def test_a_launch_without_rounds_is_no_launch() -> None:
    assert location([[0.1, 0.2, 0.3], [0.4, 0.5], []]) == location([[0.1, 0.2, 0.3], [0.4, 0.5]])


def test_no_blocks_are_an_error() -> None:
    with pytest.raises(ValueError, match="empty data"):
        location([[], []])
    with pytest.raises(ValueError, match="empty data"):
        ratio([[1.0]], [[]])


def test_a_ratio_pairs_by_launch_and_round_and_leaves_out_what_one_side_lacks() -> None:
    baseline = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0, 6.0], [7.0]]
    ours = [[value + math.log(3) for value in launch] for launch in baseline[:2]]
    ours[1] = ours[1][:3]

    interval = ratio(ours, baseline)

    assert interval.location == pytest.approx(3)
    assert half_width(interval) == pytest.approx(0, abs=1e-12)


def test_a_block_is_the_median_of_its_unflagged_samples() -> None:
    assert block_value([1.0, 2.0, 900.0, 3.0], (2,)) == pytest.approx(math.log(2.0))
    assert block_value([1.0, 2.0, 900.0], (0, 1, 2)) == pytest.approx(math.log(2.0))


# ---------------------------------------------------------------- several runs a side


def test_welchs_interval_is_scipys() -> None:
    ours, theirs = [0.11, 0.13, 0.12, 0.20], [0.02, 0.01, 0.06]
    interval = welch(ours, theirs)
    test = ttest_ind(ours, theirs, equal_var=False)
    low, high = test.confidence_interval()

    assert interval.location == pytest.approx(math.exp(np.mean(ours) - np.mean(theirs)))
    assert interval.degrees == pytest.approx(test.df)
    assert (math.log(interval.low or 0), math.log(interval.high or 0)) == pytest.approx((low, high))
    assert beyond(interval, 0) == pytest.approx(test.pvalue)


def test_welchs_interval_holds_the_truth_however_different_the_spreads() -> None:
    rng = np.random.default_rng(10)
    ours, theirs = rng.normal(0.1, 0.02, (RUNS, 4)), rng.normal(0, 0.005, (RUNS, 6))
    covered = sum(
        holds(welch(a.tolist(), b.tolist()), math.exp(0.1)) for a, b in zip(ours, theirs, strict=True)
    )

    assert least(0.95) <= covered <= most(0.95)


def test_runs_without_any_spread_have_an_interval_without_width() -> None:
    interval = welch([0.5] * 3, [0.25] * 3)

    assert half_width(interval) == pytest.approx(0, abs=1e-12)
    assert (beyond(interval, 0.03), beyond(interval, 0.5)) == (0.0, 1.0)


def test_a_mean_of_logs_has_students_interval() -> None:
    values = np.random.default_rng(11).normal(0.03, 0.02, (RUNS, 6))

    assert least(0.95) <= sum(holds(mean(run.tolist()), math.exp(0.03)) for run in values) <= most(0.95)
    assert mean([math.log(2)]) == Interval(location=pytest.approx(2), low=None, high=None)
    with pytest.raises(ValueError, match="nothing"):
        mean([])


def test_a_known_spread_widens_an_interval_in_quadrature() -> None:
    interval = widened(math.log(1.1), [0.03, 0.04], 7)

    assert interval.location == pytest.approx(1.1)
    assert half_width(interval) == pytest.approx(0.05)
    assert half_of(0.01, 4) == pytest.approx(0.02776445)  # the table of Student's t


def test_what_lies_within_the_margin_or_has_no_interval_is_not_beyond_it() -> None:
    assert beyond(widened(math.log(1.02), [0.001], 9), 0.03) == 1.0
    assert beyond(widened(math.log(1 / 1.02), [0.001], 9), 0.03) == 1.0
    assert beyond(Interval(location=2.0, low=None, high=None), 0.03) == 1.0


def test_the_interval_and_the_p_value_agree() -> None:
    at_the_edge = widened(math.log(1.03) + 0.02, [0.02], 9)

    assert at_the_edge.low == pytest.approx(1.03)
    assert beyond(at_the_edge, 0.03) == pytest.approx(0.05)


def test_what_lies_apart_beyond_its_intervals_is_dersimonian_and_lairds() -> None:
    alike = [widened(0.1, [half_of(0.02, 9)], 9)] * 5
    assert apart(alike) == 0
    assert apart([*alike[:1], widened(0.5, [0.0], 9)]) == 0  # a point has no weight

    rng = np.random.default_rng(12)
    true, errors = 0.05, rng.uniform(0.01, 0.04, (400, 30))
    shifts = rng.normal(0, np.hypot(true, errors))
    found = [
        apart([widened(shift, [half_of(error, 15)], 15) for shift, error in zip(*row, strict=True)])
        for row in zip(shifts.tolist(), errors.tolist(), strict=True)
    ]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(true, rel=0.05)


def test_holms_correction_is_what_the_paper_does() -> None:
    # smallest first: 4 x 0.005, 3 x 0.01, 2 x 0.03, then 0.04, which may not be less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holms_correction_holds_for_the_family() -> None:
    families = np.random.default_rng(12).uniform(size=(RUNS, 50))

    assert sum(min(holm(family.tolist())) <= 0.05 for family in families) <= most(0.05)
    assert sum(min(family) <= 0.05 for family in families) >= least(0.9)  # what it is for


def test_percentiles_are_numpys_in_any_order() -> None:
    values = np.random.default_rng(7).exponential(size=38).tolist()
    for percent in (0, 20, 50, 80, 100):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-12)
    assert percentile([5.0], 80) == 5.0


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 101), ([1.0], -1)])
def test_a_percentile_that_does_not_exist_is_an_error(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, percent)


def test_the_median_deviation_ignores_an_outlier() -> None:
    assert mad([1.0, 2.0, 3.0, 4.0, 1e9]) == 1.0


def test_ratios_are_averaged_so_that_twice_and_half_cancel() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)


def test_importing_estimates_does_not_import_scipy() -> None:
    code = "import sys, attnbench.estimates; sys.exit('scipy' in sys.modules or 'torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- growth over a length

LENGTHS = (128.0, 256.0, 512.0, 1024.0, 2048.0)


def exact(value: float) -> Interval:
    return Interval(location=value, low=None, high=None)


def within(value: float, half: float) -> Interval:
    """An interval of `half` to each side on the log scale."""
    return Interval(location=value, low=value * math.exp(-half), high=value * math.exp(half))


def measured(rng: np.random.Generator, truths: list[float], sd: float) -> list[Interval]:
    """Each truth with normal noise on the log scale, and the 95 % interval that an honest measurement would state."""
    return [within(truth * math.exp(rng.normal(0, sd)), 1.96 * sd) for truth in truths]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 2.5])
def test_the_slope_of_a_power_is_its_exponent(exponent: float) -> None:
    found = slope(LENGTHS, [within(3e-9 * n**exponent, 0.01) for n in LENGTHS])

    assert found.location == pytest.approx(exponent, abs=1e-12)
    assert holds(found, exponent)


def test_the_interval_of_a_slope_holds_the_exponent_in_95_percent_of_measurements() -> None:
    rng = np.random.default_rng(11)
    truths = [2e-9 * n**1.7 for n in LENGTHS]
    found = [slope(LENGTHS, measured(rng, truths, 0.02)) for _ in range(RUNS)]

    assert sum(holds(one, 1.7) for one in found) >= least(0.95)


def test_two_lengths_without_intervals_have_a_slope_and_no_interval() -> None:
    found = slope([512, 1024], [exact(1.0), exact(4.0)])

    assert found == Interval(location=pytest.approx(2.0, rel=1e-12), low=None, high=None)


def test_a_bend_widens_the_interval_of_a_slope() -> None:
    straight = slope(LENGTHS, [within(n**1.5, 0.001) for n in LENGTHS])
    bent = slope(LENGTHS, [within(n + n**2 / 512, 0.001) for n in LENGTHS])

    assert (bent.high or 0) - (bent.low or 0) > 10 * ((straight.high or 0) - (straight.low or 0))


@pytest.mark.parametrize("lengths", [[512], [512, 512]])
def test_one_length_has_neither_slope_nor_curve(lengths: list[float]) -> None:
    for fit in (slope, curve):
        with pytest.raises(ValueError, match="two different lengths"):
            fit(lengths, [within(1.0, 0.01)] * len(lengths))


def test_a_curve_finds_the_parts_it_is_made_of() -> None:
    parts = (2e-5, 3e-8, 1e-10)
    found = curve(LENGTHS, [within(sum(p * n**k for k, p in enumerate(parts)), 0.001) for n in LENGTHS])

    assert found.parts == pytest.approx(parts, rel=1e-6)
    total = sum(p * 2048.0**k for k, p in enumerate(parts))
    for power, part in enumerate(parts):
        assert found.share(power, 2048).location == pytest.approx(part * 2048.0**power / total, rel=1e-6)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_a_curve_of_one_part_has_no_other(power: int) -> None:
    found = curve(LENGTHS, [exact(7.0 * n**power) for n in LENGTHS])

    assert found.share(power, 2048).location == pytest.approx(1.0)


def test_no_part_of_a_curve_is_negative_even_where_the_values_grow_faster_than_quadratic() -> None:
    found = curve(LENGTHS, [within(n**3, 0.05) for n in LENGTHS])

    assert all(part >= 0 for parts in (found.parts, *found.alike) for part in parts)


def test_the_interval_of_a_curve_holds_the_truth_at_a_length_that_was_not_measured() -> None:
    rng = np.random.default_rng(12)
    truths, runs = [1e-5 + 2e-8 * n + 1e-10 * n**2 for n in LENGTHS], 200
    there = 1e-5 + 2e-8 * 8192 + 1e-10 * 8192**2
    found = [curve(LENGTHS, measured(rng, truths, 0.02)).at(8192) for _ in range(runs)]

    assert sum(holds(one, there) for one in found) >= int(binom.ppf(MISTAKE, runs, 0.95))


def test_a_ratio_crosses_where_its_line_on_log_scales_does() -> None:
    (found,) = crossings([100, 400], [within(0.5, 0.1), within(2.0, 0.1)])

    assert found.length == pytest.approx(200)
    assert found.low < 200 < found.high
    assert found.low * found.high == pytest.approx(200**2)
    assert (found.between, found.rising) == ((100, 400), True)


def test_what_is_not_certain_on_both_sides_is_no_crossing() -> None:
    sure, tied = within(0.5, 0.1), within(1.02, 0.1)

    assert crossings([100, 400], [sure, tied]) == []
    assert crossings([100, 400], [sure, exact(2.0)]) == []
    assert crossings([100, 400], [sure, sure]) == []


def test_a_tie_between_two_certain_lengths_widens_the_crossing() -> None:
    (found,) = crossings([100, 200, 400], [within(2.0, 0.1), within(1.0, 0.2), within(0.5, 0.1)])

    assert found.length == pytest.approx(200)
    assert 100 < found.low < 200 < found.high < 400
    assert (found.between, found.rising) == ((100, 400), False)


def test_a_ratio_may_cross_there_and_back() -> None:
    found = crossings([1, 2, 4], [within(0.5, 0.1), within(2.0, 0.1), within(0.5, 0.1)])

    assert [one.rising for one in found] == [True, False]


def test_the_interval_of_a_crossing_holds_the_true_one_in_95_percent_of_measurements() -> None:
    rng = np.random.default_rng(13)
    lengths = [128.0, 256.0, 512.0]
    truths = [(n / 230) ** 0.8 for n in lengths]
    found = [crossings(lengths, measured(rng, truths, 0.03)) for _ in range(RUNS)]

    assert all(len(several) == 1 for several in found)
    assert sum(one.low <= 230 <= one.high for (one,) in found) >= least(0.95)
