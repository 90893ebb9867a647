"""What each way would promise, before anything is trained."""

import itertools

import pytest

from hf_pacgen.maths.held_out_bounds import exact_error_bound
from hf_pacgen.maths.progressive import MOST_PLAYED, chernoff_bound, game_bound, progressive_tilt
from hf_pacgen.promises.expected import default_train_fraction, expected_promises, progressive_bound, share_out


def test_the_table_has_the_bounds_at_the_expected_error() -> None:
    split, progressive, whole = expected_promises(400, expected_error=0.2, num_unlabeled=1000)
    assert (split.how, split.trained_on, split.tested_on) == ("split", 200, 200)
    assert split.error_bound == exact_error_bound(40, 200, 0.05)
    assert (progressive.how, progressive.trained_on, progressive.tested_on) == ("progressive", 212, 300)
    assert progressive.error_bound == game_bound(60, 4, 75, 0.05, 0.2)
    assert (whole.how, whole.trained_on, whole.tested_on) == ("all", 400, 200)
    assert whole.error_bound == exact_error_bound(40, 200, 0.025) + exact_error_bound(20, 1000, 0.025)
    assert [row.how for row in expected_promises(400)] == ["split", "progressive"]
    assert all(0 < row.error_bound < 0.05 for row in expected_promises(1000, expected_error=0.0))


def test_how_data_are_shared_out() -> None:
    for count, blocks, fraction in itertools.product((9, 100, 1001), (1, 3, 4), (0.2, 0.5)):
        first, size = share_out(count, blocks, fraction)
        assert first + blocks * size == count and first >= fraction * count - 1e-9 and size >= 1
    assert default_train_fraction(6500) == pytest.approx(0.65)


def test_large_blocks_are_bounded_by_the_supermartingale() -> None:
    size = MOST_PLAYED // 4 + 1
    errors = [30, 40, 20, 35]
    bound, name = progressive_bound(errors, size, 0.05, 0.1)
    tilts = [progressive_tilt(0.1, 4 * size, 0.05)] * 4
    assert bound == chernoff_bound(errors, [size] * 4, 0.05, tilts) and "supermartingale" in name
    # it goes by the guess, whatever the errors are
    other, _ = progressive_bound([*errors[:3], 300], size, 0.05, 0.1)
    assert other == chernoff_bound([*errors[:3], 300], [size] * 4, 0.05, tilts)
    # a guess that is three times too large costs little: less than a point over the exact bound
    assert progressive_bound(errors, size, 0.05, 0.3)[0] < exact_error_bound(sum(errors), 4 * size, 0.05) + 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expected_error": 1.5}, r"expected_error must be in \[0, 1\]; got 1\.5\."),
        ({"expected_disagreement": -1}, r"expected_disagreement must be in \[0, 1\]; got -1\."),
        ({"train_fraction": 0.001}, r"A share of 0\.001 of 100 examples leaves nothing to train or to test\."),
        ({"blocks": 0}, r"blocks must be a whole number of at least 1; got 0\."),
        ({"blocks": 2.0}, r"blocks must be a whole number of at least 1; got 2\.0\."),
        ({"blocks": 90}, r"100 examples are too few for 90 blocks after a first part of 0\.25"),
        ({"first_fraction": 0.0}, r"first_fraction must be in \(0, 1\)"),
        ({"delta": 0.0}, r"delta must be in \(0, 1\)"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_promises(100, **arguments)  # type: ignore[arg-type]
