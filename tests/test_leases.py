"""Leases of pipelines and devices, with real processes that are killed, stopped and woken."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from flows.locking import alone, clear, is_running, lake_of, stale
from nightshift.errors import BusyError, PassingError
from nightshift.leases import Lease, device_path, on_device
from nightshift.pipeline import Settings, load_settings
from nightshift.tables import Lake, rows_of

if TYPE_CHECKING:
    from conftest import House

SECONDS = 2.0

# Takes the lease as a process of a machine of its own, and writes a row whenever it is told to.
HOLDER = """
import sys, time, logging
from pathlib import Path
from flows.locking import alone, lake_of
from nightshift.errors import BusyError, PassingError
from nightshift.pipeline import load_settings
from nightshift.tables import rows_of
settings = load_settings(Path(sys.argv[1]))
name, lake = sys.argv[2], lake_of(settings, sys.argv[2])
try:
    with alone(settings, name, settings.pipeline(name), run="a-flow-run"):
        print("held", flush=True)
        for number, _ in enumerate(sys.stdin):
            lake.replace("rejects", "n1", rows_of("rejects", [{"row": number}]))
            print("wrote", flush=True)
    print("gave it back", flush=True)
except BusyError as error:
    print("refused:", error, flush=True)
"""


class Holder:
    """A process that holds a pipeline's lease."""

    def __init__(self, config: Path, name: str):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(config), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def write(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.says()

    def end(self, number: int) -> None:
        os.killpg(self.process.pid, number)


@pytest.fixture
def holders() -> Iterator[list[Holder]]:
    found: list[Holder] = []
    yield found
    for one in found:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)
        one.process.wait()


def settings_of(house: House, machine: str = "here") -> Settings:
    """The house as another machine sees it: the same lake, other folders."""
    text = house.config.read_text()
    path = house.folder / f"{machine}.yaml"
    path.write_text(
        text.replace("reports: reports", f"reports: {machine}") + f"lease_seconds: {SECONDS}\n"
    )
    return load_settings(path)


def hold(house: House, machine: str, holders: list[Holder]) -> Holder:
    settings_of(house, machine)
    holders.append(Holder(house.folder / f"{machine}.yaml", house.name))
    assert holders[-1].says() == "held"
    return holders[-1]


def newest(house: House) -> list[int]:
    return [row["row"] for row in house.lake.read("rejects").to_pylist()]


def test_a_killed_holder_of_this_machine_is_taken_over_at_once(
    house: House, holders: list[Holder]
) -> None:
    settings = settings_of(house)
    holder = hold(house, "here", holders)
    assert is_running(settings, house.name)
    holder.end(signal.SIGKILL)
    holder.process.wait()
    left = stale(settings, house.name)
    assert left is not None
    assert left.run == "a-flow-run"
    began = time.monotonic()
    with alone(settings, house.name, settings.pipeline(house.name)) as before:
        assert time.monotonic() - began < SECONDS
        assert before == left
    assert stale(settings, house.name) is None


def test_a_killed_holder_of_another_machine_is_taken_over_when_its_lease_has_expired(
    house: House, holders: list[Holder], caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(house)
    holder = hold(house, "elsewhere", holders)
    time.sleep(SECONDS * 1.5)  # renewed all the while
    assert is_running(settings, house.name)
    holder.end(signal.SIGKILL)
    began = time.monotonic()
    with alone(settings, house.name, settings.pipeline(house.name)) as before:
        waited = time.monotonic() - began
        assert before is not None
    assert SECONDS <= waited < SECONDS + 5
    assert f"process {holder.process.pid}" in caplog.text


def test_a_holder_that_wakes_after_its_night_was_taken_over_writes_nothing(
    house: House, holders: list[Holder]
) -> None:
    settings = settings_of(house)
    sleeper = hold(house, "elsewhere", holders)
    assert sleeper.write() == "wrote"
    sleeper.end(signal.SIGSTOP)
    with alone(settings, house.name, settings.pipeline(house.name)):
        lake_of(settings, house.name).replace("rejects", "n1", rows_of("rejects", [{"row": 7}]))
        sleeper.end(signal.SIGCONT)
        assert sleeper.write().startswith("refused: this process was silent")
    assert newest(house) == [7]


def test_the_tables_refuse_a_sleeper_that_does_not_know_it_yet(house: House) -> None:
    # Neither its thread nor its clock told it; two lakes of one folder stand for two processes.
    lake, other = house.lake, Lake(str(house.folder / "lake") + "/.", house.name)
    assert Lease(lake, 60, "first").take(None, "")
    lake.replace("rejects", "n1", rows_of("rejects", [{"row": 1}]))
    writer = lake.writer("rejects", "n1")
    writer.__enter__()
    second = Lease(other, 60, "second")
    assert second.take(second.look(), "")
    for table in ("rejects", "clusters"):  # one that both write, and one that is new
        with pytest.raises(BusyError, match="another took its night over"):
            lake.replace(table, "n1", [])
    writer.write([{"row": 3}])
    with pytest.raises(BusyError):
        writer.__exit__(None, None, None)
    assert newest(house) == [1]
    other.replace("rejects", "n1", rows_of("rejects", [{"row": 2}]))
    assert newest(house) == [2]
    second.release()
    lake.let_go()


def test_a_holder_that_is_stuck_with_the_lock_of_this_machine_is_taken_over_by_its_lease(
    house: House, holders: list[Holder]
) -> None:
    settings = settings_of(house)
    hold(house, "here", holders).end(signal.SIGSTOP)
    with alone(settings, house.name, settings.pipeline(house.name)) as before:
        assert before is not None


def test_of_many_that_reach_for_a_lease_one_gets_it(house: House) -> None:
    won: list[int] = []
    errors: list[PassingError] = []
    ready = threading.Barrier(8)

    def reach(number: int) -> None:
        lease = Lease(Lake(str(house.folder / "lake"), house.name), 60, f"holder {number}")
        seen = lease.look()
        ready.wait(20)
        try:
            if lease.take(seen, ""):
                won.append(number)
        except PassingError as error:
            errors.append(error)

    threads = [threading.Thread(target=reach, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(won) == 1
    assert not errors
    entry = Lease(house.lake, 60).look()
    assert entry is not None
    assert entry.holder == f"holder {won[0]}"
    house.lake.let_go()


def test_a_table_that_was_made_again_does_not_hide_its_holder(house: House) -> None:
    lake = Lake(str(house.folder / "lake"), house.name)
    assert Lease(lake, 60, "first").take(None, "")
    table = DeltaTable(f"{lake.root}/leases")
    # As of two that make the table at once the slower one leaves it: behind the holder's entry.
    table.create_write_transaction([], "append", pa.schema([("night", pa.string())]))
    entry = Lease(house.lake, 60).look()
    assert entry is not None
    assert entry.holder == "first"
    assert not Lease(house.lake, 60, "second").take(None, "")
    lake.let_go()


def test_a_second_night_leaves_while_another_machine_is_at_work(
    house: House, holders: list[Holder]
) -> None:
    house.declare(when_busy="leave")
    settings = settings_of(house)
    holder = hold(house, "elsewhere", holders)
    said = f"process {holder.process.pid}"
    with (
        pytest.raises(BusyError, match=said),
        alone(settings, house.name, settings.pipeline(house.name)),
    ):
        pass


def test_a_stale_lease_is_listed_and_cleared_and_a_live_one_is_not(
    house: House, holders: list[Holder]
) -> None:
    settings = settings_of(house)
    assert not clear(settings, house.name)  # there was never one
    holder = hold(house, "elsewhere", holders)
    assert not clear(settings, house.name)
    holder.end(signal.SIGKILL)
    time.sleep(SECONDS * 1.2)
    assert stale(settings, house.name) is not None
    assert clear(settings, house.name)
    assert stale(settings, house.name) is None
    with alone(settings, house.name, settings.pipeline(house.name)) as before:
        assert before is None


def test_tables_that_were_restored_without_their_lease_take_a_new_one(house: House) -> None:
    settings = settings_of(house)
    for _ in range(3):
        with alone(settings, house.name, settings.pipeline(house.name)):
            house.lake.replace("rejects", "n1", rows_of("rejects", [{"row": 1}]))
    shutil.rmtree(house.folder / "lake" / house.name / "leases")
    for number in (2, 3):
        with alone(settings, house.name, settings.pipeline(house.name)):
            house.lake.replace("rejects", "n1", rows_of("rejects", [{"row": number}]))
    assert newest(house) == [3]


def test_a_lease_outlives_a_store_that_is_away_for_a_while(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(house)
    log_folder = house.folder / "lake" / house.name / "leases" / "_delta_log"
    with alone(settings, house.name, settings.pipeline(house.name)):
        log_folder.rename(log_folder.with_name("away"))
        log_folder.write_text("no folder any more")  # whoever writes into it fails
        time.sleep(SECONDS)
        log_folder.unlink()
        log_folder.with_name("away").rename(log_folder)
        time.sleep(SECONDS)
        assert "could not be renewed" in caplog.text
        lake_of(settings, house.name).replace("rejects", "n1", [])
        assert is_running(settings, house.name)
    assert not is_running(settings, house.name)


def test_the_log_of_a_lease_is_kept_short(house: House) -> None:
    lease = Lease(house.lake, 60, "somebody")
    seen = lease.look()
    assert lease.take(seen, "")
    for _ in range(210):
        assert lease._renew("somebody")
    lease.release()
    entry = Lease(house.lake, 60).look()
    assert entry is not None
    assert (entry.free, entry.version) == (True, 212)


# --- devices ----------------------------------------------------------------------------------

USER = """
import sys
from nightshift.leases import on_device
with on_device(sys.argv[1], "night n1 of headlines"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_DEVICE_LOCKS", str(tmp_path))


def use(device: str) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


@pytest.mark.usefixtures("locks")
def test_a_device_is_waited_for_and_its_holder_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    process = use("cuda-1")
    with on_device("cuda-2", "another night"):
        assert "waiting" not in caplog.text  # another device
    threading.Timer(0.5, process.kill).start()  # kill -9 frees it
    began = time.monotonic()
    with on_device("cuda-1", "night n1 of reviews") as waited:
        assert time.monotonic() - began >= waited > 0.4
    process.wait()
    said = f"held by night n1 of headlines (process {process.pid}"
    assert said in caplog.text


@pytest.mark.usefixtures("locks")
def test_a_processor_is_everybodys() -> None:
    with on_device(None, "one night"), on_device(None, "another night"):
        pass


@pytest.mark.usefixtures("locks")
def test_a_device_lock_follows_no_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    device_path("cuda-1").symlink_to(mine)
    with pytest.raises(OSError, match="symbolic links"), on_device("cuda-1", "a night"):
        pass
    assert mine.read_text() == "precious"
