"""What the figures draw, read back from their axes; and arrays of awkward sizes."""

import numpy as np
import pytest

from raydd.report import figures
from raydd.report.theme import DARK, LIGHT, png

NONE = np.zeros(0)
NO_INTEGERS = np.zeros(0, dtype=np.int64)


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_running_median_against_the_definition():
    x, y = np.arange(30.0), np.random.default_rng(0).normal(size=30)
    places, medians = figures.running_median(x, y, window=7)
    assert np.array_equal(places, x)
    assert np.allclose(medians, [np.median(y[max(0, i - 3) : i + 4]) for i in range(30)])


def test_running_median_leaves_out_nan_and_thins_long_series():
    y = np.array([1.0, np.nan, 3.0, np.inf, 5.0])
    places, medians = figures.running_median(np.arange(5.0), y, window=1)
    assert places.tolist() == [0, 2, 4] and medians.tolist() == [1, 3, 5]
    places, medians = figures.running_median(np.arange(5000.0), np.arange(5000.0), window=101)
    assert len(places) == 400 and (places[0], places[-1]) == (0, 4999)
    assert np.allclose(medians[10:-10], places[10:-10])
    assert [len(part) for part in figures.running_median(NONE, NONE)] == [0, 0]


def test_loss_shows_every_step_and_the_median():
    step, loss = np.arange(50), np.linspace(1, 0.5, 50)
    axes = figures.loss(step, loss, np.full(50, 0.01)).axes
    drawn = lines(axes[0])
    assert np.allclose(drawn["each step"], np.stack([step, loss], 1)) and drawn["running median"].shape == (50, 2)
    assert np.allclose(axes[1].get_lines()[0].get_ydata(), 0.01)


def test_accuracy_shows_mean_networks_and_random_images():
    figure = figures.accuracy(
        np.array([10, 20]), np.array([0.4, 0.6]), np.array([0.1, 0.05]), [np.array([0.3, 0.5]), np.array([0.6])], (0.25, 0.02)
    )
    drawn = lines(figure.axes[0])
    assert drawn["synthetic images"].tolist() == [[10, 0.4], [20, 0.6]]
    assert drawn["each network"].tolist() == [[10, 0.3], [10, 0.5], [20, 0.6]]
    assert (drawn["random real images, same number"][:, 1] == 0.25).all()
    bands = [collection.get_paths()[0].get_extents() for collection in figure.axes[0].collections]
    assert any(np.allclose([band.y0, band.y1], [0.3, 0.65]) for band in bands)  # 0.4 - 0.1 to 0.6 + 0.05


def test_borders_of_stages_are_drawn_where_there_is_something_to_part():
    step = np.arange(30)
    left, right = figures.loss(step, np.ones(30), np.ones(30), borders=[10, 20]).axes
    for axes in (left, right):
        assert [line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"] == [10, 20]
    means = np.array([0.4, 0.6])
    axes = figures.accuracy(np.array([15, 30]), means, means / 10, [means, means], borders=[10, 20]).axes[0]
    assert [line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"] == [20]


def test_stages_show_both_kinds_with_error_bars_and_all_data_as_a_line():
    ipc, std = np.array([2, 4]), np.array([0.01, 0.02])
    axes = figures.stages((ipc, np.array([0.6, 0.7]), std), (ipc, np.array([0.3, 0.4]), std), (0.9, "experts")).axes[0]
    bars = {bars.get_label(): bars for bars in axes.containers}
    assert bars["synthetic images"].lines[0].get_xydata().tolist() == [[2, 0.6], [4, 0.7]]
    assert bars["random real images"].lines[0].get_ydata().tolist() == [0.3, 0.4]
    low, high = (line.get_ydata() for line in bars["synthetic images"].lines[1])
    assert np.allclose(low, [0.59, 0.68]) and np.allclose(high, [0.61, 0.72])
    assert (lines(axes)["experts"][:, 1] == 0.9).all()


def test_choices_count_candidates_and_winners():
    expert, epoch = np.array([0, 1, 1, 2]), np.array([3, 0, 3, 3])
    chosen = np.array([True, False, True, False])
    left, right = figures.choices(expert, epoch, chosen, 4, 5, compared=True).axes
    heights = [[bar.get_height() for bar in bars] for axes in (left, right) for bars in axes.containers]
    assert heights == [[1, 2, 1, 0], [1, 1, 0, 0], [1, 0, 0, 3, 0], [0, 0, 0, 2, 0]]
    one, _ = figures.choices(expert, epoch, np.ones(4, bool), 4, 5, compared=False).axes
    assert [[bar.get_height() for bar in bars] for bars in one.containers] == [[1, 2, 1, 0]]


def test_choice_map_is_the_share_won_and_empty_where_never_a_candidate():
    expert, epoch = np.repeat([0, 0, 1], 16), np.repeat([0, 1, 1], 16)
    chosen = np.concatenate([np.ones(16, bool), np.arange(16) < 4, np.zeros(16, bool)])
    assert figures.map_columns(48, 2, 2) == 2
    mesh = figures.choice_map(expert, epoch, chosen, 2, 2, compared=True).axes[0].collections[0]
    assert mesh.get_array().tolist() == [[1.0, None], [0.25, 0.0]]
    mesh = figures.choice_map(expert, epoch, np.ones(48, bool), 2, 2, compared=False).axes[0].collections[0]
    assert mesh.get_array().tolist() == [[16.0, None], [16.0, 16.0]]


def test_choice_map_groups_experts_until_cells_hold_enough():
    generator = np.random.default_rng(0)
    expert, epoch = generator.integers(0, 10, 130), generator.integers(0, 4, 130)
    assert figures.map_columns(130, 10, 4) == 4
    axes = figures.choice_map(expert, epoch, np.zeros(130, bool), 10, 4, compared=True).axes[0]
    assert axes.collections[0].get_array().shape == (4, 4) and "groups of 3" in axes.get_xlabel()
    assert axes.get_xlim() == (-0.5, 9.5)
    assert figures.map_columns(3, 10, 4) == 1


def test_scores_band_and_entropy_bound():
    step, score = np.arange(40), np.stack([np.full(40, 0.2), np.full(40, 0.6), np.full(40, 0.4)], 1)
    score[5] = np.nan
    score[6, 1:] = np.nan
    left, right = figures.scores(step, score, np.full(40, 0.4), np.full(40, 1.0)).axes
    band = left.collections[0].get_paths()[0].get_extents()
    assert np.allclose([band.y0, band.y1], [0.2, 0.6])
    assert np.allclose(lines(right)["uniform (ln 3)"][:, 1], np.log(3))


def test_seconds_stack_to_the_whole():
    axes = figures.seconds(["a", "b", "c"], np.array([1.0, 0.0, 3.0])).axes[0]
    bars = [(bar.get_x(), bar.get_width()) for bars in axes.containers for bar in bars]
    assert bars == [(0, 1), (1, 0), (1, 3)] and axes.get_xlim() == (0, 4)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a 25%", "b 0%", "c 75%"]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_empty_arrays_and_single_points_draw_without_warnings(theme):
    one, place, won = np.ones(1), np.zeros(1, dtype=np.int64), np.ones(1, bool)
    drawn = [
        figures.loss(NONE, NONE, NONE, theme),
        figures.loss(one, one, one, theme),
        figures.accuracy(NONE, NONE, NONE, [], None, theme),
        figures.accuracy(one, one, one, [NONE], (0.1, 0.0), theme),
        figures.stages((one, one, one), None, None, theme),
        figures.choices(NO_INTEGERS, NO_INTEGERS, NO_INTEGERS.astype(bool), 3, 2, True, theme),
        figures.choice_map(NO_INTEGERS, NO_INTEGERS, NO_INTEGERS.astype(bool), 3, 2, True, theme),
        figures.choice_map(place, place, won, 1, 1, False, theme),
        figures.scores(NONE, np.zeros((0, 3)), NONE, NONE, theme),
        figures.scores(one, np.full((1, 2), np.nan), np.full(1, np.nan), one, theme),
        figures.seconds(["a", "b"], np.zeros(2), theme),
    ]
    assert all(png(figure).startswith(b"\x89PNG") for figure in drawn)
