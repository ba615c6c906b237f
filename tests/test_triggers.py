"""Drift by hand, and files and labels that no night has met."""

from __future__ import annotations

import math
import time

import pytest
from conftest import House, rows

from nightshift.pipeline import load_settings
from nightshift.triggers import TriggersConfig, fresh_files, stability_index


def test_stability_index_of_a_half_that_became_a_quarter() -> None:
    # (0.25 - 0.5) ln(0.5) + (0.75 - 0.5) ln(1.5) = 0.25 ln 2 + 0.25 ln 1.5 = 0.25 ln 3
    found = stability_index({"a": 50, "b": 50}, {"a": 25, "b": 75})
    assert found == pytest.approx(0.25 * math.log(3))


def test_stability_index_does_not_ask_which_came_first_nor_how_many_there_were() -> None:
    one, other = {"a": 30, "b": 70}, {"a": 600, "b": 400}
    assert stability_index(one, other) == pytest.approx(stability_index(other, one))
    assert stability_index({"a": 3, "b": 7}, {"a": 30, "b": 70}) == pytest.approx(0)


def test_a_label_that_is_new_is_a_large_but_finite_drift() -> None:
    # (0.5 - 1) ln(0.5) + (0.5 - 0.0001) ln(0.5 / 0.0001)
    expected = 0.5 * math.log(2) + 0.4999 * math.log(5000)
    assert stability_index({"a": 10}, {"a": 10, "b": 10}) == pytest.approx(expected)


def test_a_file_that_is_still_being_written_is_no_news_yet(house: House) -> None:
    house.drop("old.jsonl", rows(2))
    (house.folder / "inbox" / "young.jsonl").write_text("{}\n")
    source = load_settings(house.config).pipeline(house.name).source
    names = [one.uri.rsplit("/", 1)[1] for one in fresh_files(house.lake, source, time.time())]
    assert names == ["old.jsonl"]


def test_triggers_are_off_unless_one_is_declared() -> None:
    assert not TriggersConfig().is_set
    assert TriggersConfig(drift=0.25).is_set
    assert TriggersConfig(registry="restore").is_set
