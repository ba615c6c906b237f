"""Servers and disks that go away in mid-night, for real, as in benchmarks/faults.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SCRATCH

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import faults
import simulation

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "PREFECT_CLIENT_MAX_RETRIES": "3"}


@pytest.fixture(scope="module")
def here() -> Iterator[faults.World]:
    before = dict(os.environ)
    os.environ.update(PATIENCE)
    # Not in pytest's own folder: its parents are closed to all others with every run of pytest, and
    # Postgres, which is another user, then shuts down.
    folder = SCRATCH / "faults"
    folder.mkdir()
    on_postgres = faults.POSTGRES.exists()
    with faults.world(folder, on_postgres, "1,5,30", ("house", *simulation.PIPELINES)) as found:
        yield found
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "fault", ["mlflow restarted in training", "lake away", "prefect restarted"]
)
def test_an_outage_that_passes_costs_a_retry_and_not_the_night(
    here: faults.World, fault: str
) -> None:
    found = faults.suffer(here, fault, 4)
    assert found["exit_code"] == 0, found["message"]
    assert faults.good(found), str(found)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("mlflow gone", "when MLflow answers"),
        ("disk full", "No space left on device"),
        ("postgres gone", ""),
    ],
)
def test_an_outage_for_good_ends_the_night_clearly_and_the_next_run_goes_on(
    here: faults.World, fault: str, says: str
) -> None:
    if not faults.possible(here, fault):
        pytest.skip(f"{fault}: a small disk needs root, Postgres a server at {faults.POSTGRES}")
    found = faults.suffer(here, fault, 0)
    assert found["yesterday_after"] == "published"
    assert says in found["message"]
    assert faults.good(found), str(found)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_days_of_three_pipelines_with_kills_and_outages_lose_nothing(
    here: faults.World,
) -> None:
    found = simulation.simulate(here, 3, seed=4)
    nights = [night for day in found["days"] for night in day["nights"]]
    assert any(one["codes"][0] == -9 for one in nights)  # the seed has kills
    for one in found["pipelines"]:
        assert simulation.good(one, 3), one
