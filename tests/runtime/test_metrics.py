"""Figures of merit: small cases worked out by hand, and their spread."""

import numpy as np
import pytest

from berdiff.runtime import metrics

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
LABELS = np.array([True, False, True, False, False])


def test_average_precision_by_hand() -> None:
    # The first hit at rank 1, the second at rank 3: (1/1 + 2/3) / 2.
    assert metrics.average_precision(SCORES, LABELS) == pytest.approx(5 / 6)
    # Ties are one step: 2 hits among 5.
    assert metrics.average_precision(np.zeros(5), LABELS) == pytest.approx(2 / 5)


def test_auroc_by_hand() -> None:
    # Of 6 pairs only (0.7, 0.8) is in the wrong order.
    assert metrics.auroc(SCORES, LABELS) == pytest.approx(5 / 6)
    assert metrics.auroc(np.zeros(5), LABELS) == pytest.approx(0.5)


def test_dice_by_hand() -> None:
    assert metrics.dice(SCORES > 0.65, LABELS) == pytest.approx(2 * 2 / (3 + 2))
    assert metrics.dice(SCORES > 1, LABELS) == 0
    assert metrics.dice(SCORES > 1, LABELS & False) is None


def test_best_dice_by_hand_and_its_threshold_gives_it() -> None:
    # Thresholds let through 1, 2, 3, 4, 5 scores: Dice 2/3, 2/4, 4/5, 4/6, 4/7.
    best, threshold = metrics.best_dice(SCORES, LABELS) or (0, 0)
    assert best == pytest.approx(4 / 5)
    assert metrics.dice(SCORES > threshold, LABELS) == pytest.approx(best)


@pytest.mark.parametrize("labels", [np.zeros(5, bool), np.ones(5, bool)])
def test_one_class_alone_has_no_figure(labels: np.ndarray) -> None:
    assert metrics.average_precision(SCORES, labels) is None
    assert metrics.auroc(SCORES, labels) is None
    assert metrics.best_dice(SCORES, labels) is None
    assert metrics.average_precision_interval([SCORES, SCORES], [labels, labels]) is None
    assert metrics.auroc_interval(SCORES, labels) is None


def _images(count: int, shift: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    random = np.random.default_rng(1)
    labels = [random.random(400) < 0.2 for _ in range(count)]
    scores = [(random.standard_normal(400) + shift * truth).astype(np.float32) for truth in labels]
    return scores, labels


def test_interval_of_average_precision_holds_the_pooled_figure() -> None:
    scores, labels = _images(30, 1.5)
    pooled = metrics.average_precision(np.concatenate(scores), np.concatenate(labels))
    low, high = metrics.average_precision_interval(scores, labels) or (0, 0)
    assert pooled is not None
    assert low < pooled < high
    # As many pixels, in fewer independent images: wider.
    joined = [np.concatenate(scores[i::5]) for i in range(5)]
    truths = [np.concatenate(labels[i::5]) for i in range(5)]
    again = metrics.average_precision_interval(joined, truths) or (0, 0)
    assert again != (low, high)
    assert metrics.average_precision_interval(scores, labels) == (low, high)


def test_interval_of_identical_images_is_a_point_at_the_exact_figure() -> None:
    random = np.random.default_rng(2)
    labels = random.random(500) < 0.3
    scores = random.standard_normal(500) + labels
    exact = metrics.average_precision(scores, labels)
    low, high = metrics.average_precision_interval([scores] * 4, [labels] * 4) or (0, 0)
    assert low == pytest.approx(exact, abs=1e-12)
    assert high == pytest.approx(exact, abs=1e-12)


def test_interval_of_auroc_holds_the_figure_and_shrinks_with_images() -> None:
    random = np.random.default_rng(3)
    labels = np.arange(400) % 2 == 0
    scores = random.standard_normal(400) + labels
    few, many = (metrics.auroc_interval(scores[:n], labels[:n]) or (0, 0) for n in (40, 400))
    assert many[0] < (metrics.auroc(scores, labels) or 0) < many[1]
    assert many[1] - many[0] < few[1] - few[0]
    assert metrics.auroc_interval(np.array([1.0, 2, 3]), np.array([True, False, False])) is None


def test_results_of_one_seed_are_paired() -> None:
    """The same images are drawn: scores of the same order differ in no resampling."""
    scores, labels = _images(20, 1.5)
    first = metrics.resampled_average_precision(scores, labels)
    again = metrics.resampled_average_precision([2 * values for values in scores], labels)
    np.testing.assert_array_equal(first, again)
    means, sick = np.array([values.mean() for values in scores]), np.arange(20) % 3 == 0
    np.testing.assert_array_equal(
        metrics.resampled_auroc(means, sick), metrics.resampled_auroc(2 * means, sick)
    )
    worse = metrics.resampled_average_precision(_images(20, 0.5)[0], labels)
    assert first is not None
    assert worse is not None
    assert metrics.percentile_interval(first - worse)[0] > 0
