"""Which side a document is on: by hand-made digests, whose first eight digits decide."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

from nightshift.cleaning import content_digest
from nightshift.splits import SplitConfig, position, side, stands_in_for_validation

PLAIN = SplitConfig()  # test 0.10, gate 0.07, validation 0.08


def at(share: float) -> str:
    """A digest whose position is the share, rounded down to 1 in 16**8."""
    return f"{int(share * 16**8):08x}" + "0" * 24


def test_the_position_is_read_from_the_first_eight_digits() -> None:
    assert position("00000000" + "f" * 24) == 0
    assert position("80000000" + "0" * 24) == 0.5
    assert position("ffffffff" + "0" * 24) == 1 - 1 / 16**8


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, "test"),
        (0.0999, "test"),
        (0.1001, "gate"),
        (0.1699, "gate"),
        (0.1701, "validation"),
        (0.2499, "validation"),
        (0.2501, "train"),
        (0.9999, "train"),
    ],
)
def test_without_a_declared_split_the_shares_decide(share: float, expected: str) -> None:
    assert side(at(share), None, PLAIN) == expected


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("validation", "validation"),
        ("valid", "validation"),
        ("val", "validation"),
        ("dev", "validation"),
        ("test", "test"),
        ("testing", "test"),
        ("gate", "gate"),
        (" TEST ", "test"),
    ],
)
def test_a_declared_split_is_honoured_wherever_the_content_stands(
    declared: str, expected: str
) -> None:
    assert {side(at(share), declared, PLAIN) for share in (0.0, 0.06, 0.5)} == {expected}


@pytest.mark.parametrize("declared", ["train", "training", "Train"])
def test_the_gate_is_a_fixed_share_of_declared_training_rows(declared: str) -> None:
    assert side(at(0.0499), declared, PLAIN) == "gate"
    assert side(at(0.0501), declared, PLAIN) == "train"
    assert side(at(0.2), declared, PLAIN) == "train"


@pytest.mark.parametrize("declared", ["", "  ", "fold-3", "unlabelled"])
def test_a_word_that_names_no_side_counts_as_not_declared(declared: str) -> None:
    assert side(at(0.05), declared, PLAIN) == "test"
    assert side(at(0.5), declared, PLAIN) == "train"


def test_what_stands_in_for_validation_never_overlaps_the_gate() -> None:
    shares = [0.0, 0.0499, 0.0501, 0.0999, 0.1001]
    assert [stands_in_for_validation(at(one)) for one in shares] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_shares_of_real_texts_come_close_to_those_declared() -> None:
    counts = Counter(side(content_digest(f"text {i}"), None, PLAIN) for i in range(4000))
    # Four standard deviations of a binomial share of 0.1 over 4000 rows are 0.019.
    for name, share in {"test": 0.10, "gate": 0.07, "validation": 0.08, "train": 0.75}.items():
        assert counts[name] / 4000 == pytest.approx(share, abs=0.02)


def test_a_document_stays_on_its_side_whatever_else_there_is() -> None:
    assert side(content_digest("one text"), None, PLAIN) == side(
        content_digest("one text"), None, PLAIN
    )
    assert content_digest("one text") != content_digest("one text.")


def test_a_share_of_nothing_has_no_documents() -> None:
    none = SplitConfig(validation=0, gate=0, test=0)
    assert {side(at(one), None, none) for one in (0.0, 0.1, 0.9)} == {"train"}


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ValidationError, match="must stay below 1"):
        SplitConfig(validation=0.5, gate=0.3, test=0.2)
