"""Splits of series, generated series, and windows to train on."""

import numpy as np
import pytest

from anode import InputError
from train_flows.forecasting import windows
from train_flows.forecasting.generated import generate
from train_flows.forecasting.series_data import TimeSeries
from train_flows.forecasting.splitting import Split, split_series
from train_flows.forecasting.time_axis import TimeAxis


def made(count=1, length=100, step=1.0, first=0.0):
    rng = np.random.default_rng(0)
    times = first + step * np.arange(length)
    return [TimeSeries(f"s{i}", times, rng.normal(size=(length, 1))) for i in range(count)]


def split(series, **options):
    return split_series("made", TimeAxis(), ["x"], series, Split(**options))


def times(part):
    return part.times.tolist()


class TestEnds:
    def test_the_horizon_tests_and_the_rest_trains(self):
        data = split(made(), horizon=10.0)
        (test,) = data.test
        assert times(test.after) == [*range(90, 100)]
        assert times(test.history) == [*range(79, 90)]
        assert times(test.past) == [*range(90)]
        assert not len(test.inside)
        assert times(data.train[0]) == [*range(80)]  # the next horizon validates
        assert [times(each.after) for each in data.validation] == [[*range(80, 90)]]
        assert data.notes == ()

    def test_a_split_is_at_one_time_in_all_series(self):
        early, late = made(1, 50), made(1, 50, first=20.0)
        data = split([*early, *late], cut=39.0)
        assert [times(each.after) for each in data.test] == [[*range(40, 50)], [*range(40, 70)]]

    def test_short_series_train_without_validation(self):
        data = split(made(1, 52), horizon=32.0)
        assert data.validation == ()
        assert times(data.train[0]) == [*range(20)]
        assert data.notes == ("the training part is too short to validate on: the weights of the last step are kept",)

    def test_a_series_that_is_too_short_to_validate_on_trains_as_a_whole(self):
        data = split([*made(2), *made(1, 25)], horizon=10.0)
        assert [times(one) for one in data.train] == [[*range(80)], [*range(80)], [*range(15)]]
        assert [times(each.after) for each in data.validation] == [[*range(80, 90)]] * 2
        assert [times(each.after)[0] for each in data.test] == [90, 90, 15]

    def test_a_series_without_times_before_the_validation_part_trains_as_a_whole(self):
        data = split([TimeSeries("one", np.append(0.0, np.arange(90, 100)), np.arange(11.0)[:, None])], horizon=3.0)
        assert times(data.train[0]) == [0, *range(90, 97)]
        assert data.validation == ()
        assert "too short to validate on" in data.notes[0]

    def test_series_that_begin_after_the_split_are_left_out(self):
        data = split([*made(2, 100), TimeSeries("late", 95.0 + np.arange(5), np.ones((5, 1)))], cut=95.0)
        assert len(data.test) == 2
        assert "1 of 3 series are left out" in data.notes[0]
        assert "late" in data.notes[0]

    def test_a_fifth_is_held_out_unless_told(self):
        data = split(made(1, 101))
        assert data.horizon == 20
        assert "the last 20 of each series are held out; --horizon or --split" in data.notes[0]

    def test_hidden_observations_test_interpolation(self):
        data = split(made(), horizon=10.0, history=40.0, observed=0.5)
        (test,) = data.test
        assert len(test.history) == 20
        assert test.history.times[0] == 49
        assert sorted(times(test.history) + times(test.inside)) == [*range(49, 90)]
        assert set(times(test.past)).isdisjoint(times(test.inside))  # baselines see no more than the model
        assert data.hidden == 0.5

    def test_two_observations_are_too_few(self):
        with pytest.raises(InputError, match="made lacks a series of 3 observations, two of a history and one to"):
            split(made(3, 2))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"horizon": 99.0}, "--horizon 99 is before the end of the history: made has fewer than 2 observations"),
            ({"cut": 0.5}, "--split 0.5 is before the end of the history"),
            ({"cut": 99.0}, "--split 99 leaves nothing to forecast: the last time of made is 99"),
            ({"test_series": 0.5, "horizon": 10.0}, "made has 1 series, too few for --test-series 0.5"),
        ],
    )
    def test_parts_without_observations_are_refused(self, options, message):
        with pytest.raises(InputError, match=message):
            split(made(), **options)

    @pytest.mark.parametrize(
        ("value", "message"), [(3.0, "x is constant in the training part .3."), (np.nan, "all values of column x are")]
    )
    def test_features_without_values_to_learn_are_refused(self, value, message):
        (one,) = made()
        one.values[:90] = value
        with pytest.raises(InputError, match=message):
            split([one], horizon=10.0)


class TestWholeSeries:
    def test_each_series_is_in_one_part(self):
        data = split(made(20), horizon=10.0, test_series=0.2)
        parts = [data.train, [each.past for each in data.validation], [each.past for each in data.test]]
        names = [one.name for part in parts for one in part]
        assert [len(part) for part in parts] == [14, 2, 4]
        assert len(set(names)) == 20
        assert all(times(one) == [*range(100)] for one in data.train)
        assert all(times(each.after) == [*range(90, 100)] for each in (*data.validation, *data.test))
        assert all(times(each.history) == [*range(90)] for each in data.test)  # all of it

    def test_the_seed_draws_the_series(self):
        names = [{each.past.name for each in split(made(50), test_series=0.2, seed=seed).test} for seed in (0, 0, 1)]
        assert names[0] == names[1] != names[2]


class TestGenerated:
    def test_spirals_turn_both_ways_and_continue(self):
        data = generate("spirals", Split(test_series=0.2, observed=0.3))
        assert len(data.train) + len(data.validation) + len(data.test) == 1000
        assert len(data.test) > 100
        assert {len(one) for one in data.train} == {30}
        ends = [one.times[-1] - one.times[0] for one in data.train]
        assert max(ends) < data.horizon  # nothing of the next 100 points is known
        assert {len(each.after) for each in data.test} == {100}
        assert {(len(each.history), len(each.inside)) for each in data.test} == {(30, 70)}
        for each in data.test[:50]:
            x, y = (each.after.truth + ([5, 0] if each.after.name.startswith("clock") else [-5, 0])).T
            turns = np.diff(np.unwrap(np.arctan2(y, x)))
            assert (turns < 0).all() if each.after.name.startswith("clock") else (turns > 0).all()
        noise = np.concatenate([each.after.values - each.after.truth for each in data.test])
        assert noise.std() == pytest.approx(0.3, rel=0.02)

    def test_sines_have_one_amplitude_and_many_frequencies(self):
        data = generate("sines", Split(test_series=0.2, observed=0.1))
        truth = np.concatenate([one.truth for one in data.train], axis=1)
        assert truth.shape == (100, 720)
        assert {(len(each.history), len(each.inside), len(each.after)) for each in data.test} == {(5, 45, 50)}
        assert np.abs(np.ptp(truth, axis=0) / 2 - 1).max() < 0.15  # some maxima lie between the times
        assert data.hidden == pytest.approx(0.9)

    @pytest.mark.parametrize("name", ["spirals", "sines"])
    def test_the_seed_makes_the_series(self, name):
        digests = [generate(name, Split(test_series=0.2, seed=seed)).digest() for seed in (0, 0, 1)]
        assert digests[0] == digests[1] != digests[2]


class TestWindows:
    def test_windows_have_the_lengths_of_forecasts(self):
        data = split(made(2), horizon=10.0, history=15.0)
        starts = windows.window_starts(data)
        batch = windows.training_windows(data, len(starts), seed=0)(0)
        assert len(starts) == 2 * (80 - 25)
        assert len({(w.target.name, w.target.times[0]) for w in batch}) == len(starts)  # each once an epoch
        for w in batch:
            assert times(w.target) == [*range(int(w.target.times[0]), int(w.target.times[0]) + 26)]
            assert times(w.history) == times(w.target)[:16]
            assert w.target.times[-1] < 80  # nothing that is held out

    def test_windows_of_short_series_begin_in_the_first_half_and_end_their_history_at_random(self):
        data = split(made(5, 20), horizon=10.0, history=10.0)
        starts = windows.window_starts(data)
        drawn = [w for step in range(50) for w in windows.training_windows(data, len(starts), seed=0)(step)]
        assert sorted(map(tuple, starts)) == [(i, first) for i in range(5) for first in range(5)]
        assert {(w.target.times[0], w.target.times[-1]) for w in drawn} == {(first, 9.0) for first in range(5)}
        shares = [(w.history.times[-1] - w.target.times[0]) / w.target.span for w in drawn]
        assert min(shares) >= 0.5 - 1 / 5  # of times at a distance of 1
        assert max(shares) < 1
        assert len({round(share, 2) for share in shares}) > 5
        assert all(times(w.history) == times(w.target)[: len(w.history)] for w in drawn)

    def test_targets_grow_over_the_warm_up(self):
        data = split(made(1), horizon=10.0, history=10.0)
        whole, growing = (windows.training_windows(data, 8, seed=0, warm_up=n) for n in (0, 100))
        for step, length in ((0, 2), (9, 3), (49, 11), (98, 20), (99, 21), (500, 21)):
            for one, other in zip(whole(step), growing(step), strict=True):
                assert times(other.history) == times(one.history)
                assert times(other.target) == times(one.target)[:length]

    def test_a_step_draws_the_same_windows_again(self):
        data = split(made(3), horizon=10.0, observed=0.4)
        first, second = (windows.training_windows(data, 8, seed=3) for _ in range(2))
        for step in (40, 2, 7):
            for one, other in zip(first(step), second(step), strict=True):
                np.testing.assert_array_equal(one.history.times, other.history.times)
                np.testing.assert_array_equal(one.target.values, other.target.values)
        others = windows.training_windows(data, 8, seed=4)(7)
        assert [times(w.history) for w in others] != [times(w.history) for w in first(7)]

    def test_training_hides_a_share_of_the_history_and_learns_it(self):
        data = split(made(1), horizon=10.0, history=20.0, observed=0.5)
        for w in windows.training_windows(data, 16, seed=0)(0):
            assert len(w.history) == 10
            assert w.history.times[0] == w.target.times[0]  # where the state starts
            assert len(w.target) == 31
