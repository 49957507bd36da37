import math
import random

import pytest
import torch

from metrics.backbones.inception import FIDInception
from metrics.backbones.random_cnn import RandomCNN
from metrics.frechet import ExtrapolatedFrechet
from metrics.pareto import (
    DIVERSITY,
    QUALITY,
    Candidate,
    choose,
    direction,
    first_key,
    pareto_front,
)


def trajectory(epochs=20, knee=8):
    """Quality falls steeply up to the knee and hardly after it, diversity falls hardly before and steeply after it."""
    points = []
    for epoch in range(epochs):
        before, after = min(epoch, knee), max(0, epoch - knee)
        points.append(Candidate(f"epoch {epoch}", 1.0 - 0.1 * before - 0.005 * after, 0.6 - 0.003 * before - 0.04 * after))
    return points


@pytest.mark.parametrize("knee", [3, 8, 15])
def test_the_knee_of_a_training_is_found(knee):
    choice = choose(trajectory(knee=knee))
    assert choice.best == knee and len(choice.front) == 20
    assert choice.reason.startswith(f"epoch {knee} (")


def test_it_does_not_depend_on_units_or_order():
    points = trajectory()
    scaled = [point._replace(quality=1000 * point.quality, diversity=0.01 * point.diversity) for point in points]
    order = random.Random(0).sample(range(20), 20)
    assert choose(scaled).best == 8 and order[choose([points[i] for i in order]).best] == 8


def test_the_front_is_what_nothing_beats():
    generator = random.Random(1)
    points = [Candidate(str(i), generator.random(), generator.random()) for i in range(60)]

    def beaten(point):  # in both, or in one with the other equal
        return any(o.quality <= point.quality and o.diversity >= point.diversity and o[1:3] != point[1:3] for o in points)

    front = pareto_front(points)
    assert {i for i, point in enumerate(points) if not beaten(point)} == set(front)
    assert [points[i].quality for i in front] == sorted(points[i].quality for i in front)


def test_copying_takes_out_of_the_competition():
    points = trajectory()
    points[8] = points[8]._replace(copies=True)
    points.append(Candidate("copier", 0.0, 0.7, copies=True))  # would beat everything
    choice = choose(points, "kd", "pixel_diversity")
    assert choice.best in (7, 9) and 20 not in choice.front
    assert "2 of 21 are excluded as copies" in choice.reason and "kd" in choice.reason
    nothing = choose([Candidate("a", 0.1, 0.5, True), Candidate("b", 0.2, 0.6, True)])
    assert nothing.best is None and nothing.front == [] and "all are excluded as copies" in nothing.reason


def test_a_small_share_of_one_is_given_up_for_a_large_one_of_the_other():
    """Also where there are but two, and where all of a front lies within a few per cent."""
    assert choose([Candidate("a", 0.10, 0.6), Candidate("b", 0.09, 0.3)]).best == 0
    assert choose([Candidate("a", 0.50, 0.61), Candidate("b", 0.09, 0.6)]).best == 1
    healthy = [Candidate(str(i), 1.0 - 0.2 * i, 0.62 - 0.005 * i) for i in range(5)]
    assert choose(healthy).best == 4
    assert choose([Candidate("a", -0.02, 0.5), Candidate("b", 0.01, 0.52)]).best == 0  # distances that go below zero


def test_the_reason_states_the_losses():
    reason = choose([Candidate("a", 0.1, 0.3), Candidate("b", 0.12, 0.6), Candidate("c", 0.2, 0.7)], "kd", "spread").reason
    assert reason.startswith("b (kd 0.12, spread 0.6).") and "10% of kd and 14% of spread" in reason
    assert "Lowest kd: a (0.1); highest spread: c (0.7)." in reason and "Of the 3 on the Pareto front" in reason


def test_the_first_of_equal_ones_counts_and_values_that_are_no_numbers_do_not():
    values = {"nan": (math.nan, 1.0), "a": (0.1, 0.5), "b": (0.1, 0.5), "inf": (0.0, math.inf)}
    points = [Candidate(name, *pair) for name, pair in values.items()]
    assert choose(points).best == 1 and pareto_front(points) == [1]
    assert choose(points[:1]).best is None and choose([]).best is None
    assert "only candidate" in choose(points[1:2]).reason and "No other is better in either" in choose(points[1:3]).reason


def test_keys_are_found_in_their_order():
    keys = ["fd_mobilenet_v2", "kd_mobilenet_v2", "kd_mobilenet_v2_crops", "pixel_diversity", "pixel_diversity_raw"]
    assert first_key(QUALITY, keys) == "kd_mobilenet_v2" and first_key(QUALITY, [*keys, "kid", "fid"]) == "kid"
    assert first_key(QUALITY, ["sifd_rand_cnn_median", "sifd_rand_cnn"]) == "sifd_rand_cnn"
    assert first_key(QUALITY, ["kd_rand_cnn_crops"]) is None and first_key(DIVERSITY, keys) == "pixel_diversity"
    keys = ("kid", "kd_x", "recall_k3", "pixel_diversity", "nearest_psnr_max", "kdx")
    assert [direction(key) for key in keys] == [-1, -1, 1, 0, 0, 0]


@pytest.mark.parametrize("lowpass", [None, 32])
@pytest.mark.parametrize("published", [False, True])
def test_a_standard_error_is_never_chosen_or_judged(published, lowpass):
    backbone = RandomCNN(lowpass)
    if published:  # without its weights, which the names do not need
        backbone.__class__, backbone.name = FIDInception, FIDInception.name
    torch.manual_seed(0)
    kinds = ExtrapolatedFrechet.value(None, torch.randn(9, 2), torch.randn(1000, 2))
    plain, value, error = (backbone.key(kind) for kind in ("fd", *kinds))
    for keys in ([plain, value, error], [error, value, plain]):
        assert first_key(QUALITY, keys) == plain
    assert first_key(QUALITY, [value, error]) == value and first_key(QUALITY, [error]) is None
    assert [direction(key) for key in (plain, value, error)] == [-1, -1, 0]


def test_undecided_ones_take_part_and_are_counted():
    points = trajectory()
    assert "UNDECIDED" not in choose(points).reason
    points[3], points[9] = (points[i]._replace(undecided=True) for i in (3, 9))
    choice = choose(points)
    assert choice.best == 8 and choice.front == choose(trajectory()).front
    assert "For 2 of 20 the memorization verdict is UNDECIDED." in choice.reason
    points[8] = points[8]._replace(undecided=True)
    choice = choose(points)
    assert choice.best == 8 and "For 3 of 20 (including this one) the memorization verdict is UNDECIDED" in choice.reason
    points[3] = points[3]._replace(copies=True, undecided=False)
    reason = choose(points).reason
    assert "1 of 20 are excluded as copies of training images. For 2 of 20 (including this one) the memorization" in reason


def test_a_quality_of_which_higher_is_better_is_told_as_it_is():
    assert direction("realism") == 1
    points = [Candidate("early", -0.2, 0.5), Candidate("late", -0.99, 0.4)]
    choice = choose(points, "realism", "pairs")
    assert choice.best == 1 and "late (realism 0.99, pairs 0.4)" in choice.reason
    assert "Highest realism: late (0.99)" in choice.reason
