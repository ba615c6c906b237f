"""Servers and disks that go away in the middle of a night.

    python benchmarks/faults.py [--seconds 60] [--only 'mlflow*']
    python benchmarks/faults.py --page

An MLflow server on SQLite, a Prefect server on Postgres, a lake on a small disk of its own (tmpfs,
as root): each is stopped, killed, restarted or filled while a second night works, for so many
seconds or for good. A short outage must cost retries and not the night. One for good must end the
night with a message, leave yesterday published, and the night goes on when it is run again. All
tables are then compared with those of a night without a fault. A fault with a row in
results/faults.json is not made again; faults.md is written from it. Exit code 1 where one does not
hold. Postgres is taken from POSTGRES_BIN (Debian's by default), and does not run as root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from corpora import NIGHTSHIFT, RESULTS, keep, kept, machine
from kills import Nursery, build, differences, open_flows, open_mlflow, tables

FILE = "faults.json"
POSTGRES = Path(os.environ.get("POSTGRES_BIN", "/usr/lib/postgresql/15/bin"))
DISK_MIB = 24
HOUSE = "house"
DOCTOR_SECONDS = 12
"""Runs that ended less than ten seconds ago are left alone."""


def free_port() -> int:
    """A port that nobody listens at, as far as one can know."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A server in a process group of its own, that can be stopped, killed and started again."""

    command: list[str]
    log: Path
    health: str
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **self.environment},
            )  # fmt: skip
        for _ in range(360):
            if self.answers():
                return
            time.sleep(0.5)
        raise SystemExit(f"{self.command}: did not start\n{self.log.read_text()[-2000:]}")

    def answers(self) -> bool:
        """Whether it is up: an HTTP address that answers, or a port that is open."""
        with suppress(OSError):
            if self.health.startswith("http"):
                urllib.request.urlopen(self.health, timeout=2).close()
            else:
                socket.create_connection(("127.0.0.1", int(self.health)), 2).close()
            return True
        return False

    def end(self) -> None:
        """As when the machine loses its power."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def frozen(self, seconds: float) -> str:
        """The command that makes it silent for a while, its connections open."""
        assert self.process is not None
        stop, go_on = (_signal(self.process.pid, one) for one in (signal.SIGSTOP, signal.SIGCONT))
        return f"{stop}; (sleep {seconds}; {go_on}) >/dev/null 2>&1 &"

    def killed(self, seconds: float | None) -> str:
        """The command that kills it; it is started again after so many seconds, or not at all."""
        assert self.process is not None
        dying = self.process

        def restart() -> None:
            dying.wait()
            if seconds is not None:
                time.sleep(seconds)
                self.start()

        threading.Thread(target=restart, daemon=True).start()
        return _signal(dying.pid, signal.SIGKILL)


def _signal(group: int, number: int) -> str:
    """The command that sends a signal to a process group; not every shell's own kill can."""
    return f"{sys.executable} -c 'import os; os.killpg({group}, {int(number)})'"


def mlflow_server(folder: Path) -> Server:
    """MLflow on SQLite, artifacts through it."""
    port = free_port()
    command = [
        str(NIGHTSHIFT.with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "artifacts"), "--workers", "1",
    ]  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return Server(command, folder / "mlflow.log", f"http://127.0.0.1:{port}/health", quiet)


def postgres(folder: Path) -> Server:
    """Postgres, as the user postgres where we are root."""
    folder.mkdir(exist_ok=True)
    port, data = free_port(), folder / "data"
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres")
        for parent in folder.parents:  # it has to get there
            if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 1:
                parent.chmod(parent.stat().st_mode | 0o011)
    if not data.exists():
        subprocess.run(
            [*user, str(POSTGRES / "initdb"), "-D", str(data), "-U", "nightshift", "-A", "trust"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
    command = [
        *user, str(POSTGRES / "postgres"), "-D", str(data), "-p", str(port),
        "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off",
    ]  # fmt: skip
    return Server(command, folder.parent / "postgres.log", str(port))


def prefect_server(folder: Path, database: Server | None) -> Server:
    """Prefect's server, on Postgres where there is one."""
    port = free_port()
    command = [
        str(NIGHTSHIFT.with_name("prefect")), "server", "start", "--host", "127.0.0.1",
        "--port", str(port),
    ]  # fmt: skip
    environment = {"PREFECT_HOME": str(folder / "prefect-server"), "PREFECT_API_URL": "",
                   "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}  # fmt: skip
    if database is not None:
        environment["PREFECT_API_DATABASE_CONNECTION_URL"] = (
            f"postgresql+asyncpg://nightshift@127.0.0.1:{database.health}/postgres"
        )
    return Server(
        command, folder / "prefect.log", f"http://127.0.0.1:{port}/api/health", environment
    )


@dataclass
class World:
    """The servers, and a folder in which every night finds the same paths."""

    folder: Path
    mlflow: Server
    prefect: Server
    postgres: Server | None
    disk: bool
    nurseries: dict[str, Nursery]
    _whole: dict[str, Any] = field(default_factory=dict)

    @property
    def house(self) -> Path:
        """Where the nights are worked."""
        return self.folder / HOUSE

    @property
    def uri(self) -> str:
        """MLflow's."""
        return self.mlflow.health.removesuffix("/health")

    def prepare(self, name: str) -> None:
        """A house whose first night is published, and whose second one's files have come."""
        for one in (self.postgres, self.prefect, self.mlflow):
            if one is not None and not one.answers():
                one.end()
                one.start()
        if self.disk:
            for one in (self.house / "lake").iterdir() if (self.house / "lake").exists() else ():
                shutil.rmtree(one) if one.is_dir() else one.unlink()
        build(self.house, name, self.uri, 1)
        if self.disk:
            (self.house / "lake").symlink_to(self.folder / "disk")
        if self.work(name, "n1") != 0:
            raise SystemExit((self.house / "night.log").read_text()[-3000:])
        (self.house / "two.jsonl").rename(self.house / "inbox" / "two.jsonl")

    def work(self, name: str, night: str, moment: str = "", fault: str | None = None) -> int:
        """Work a night, with a fault at a moment; returns its exit code."""
        return self.nurseries[HOUSE].run(self.house, name, night, moment, fault)

    def close_left(self, folder: Path, name: str) -> int:
        """What Prefect and MLflow still show as running once the doctor has been; ends it.

        Where Prefect's database was away, the server lost what it had heard of tasks' ends.
        """
        url = self.prefect.health.removesuffix("/health")
        if open_flows(url, name):
            time.sleep(DOCTOR_SECONDS)
            environment = {**os.environ, "PREFECT_API_URL": url}
            config = ["--config", str(folder / "pipelines.yaml")]
            subprocess.run(
                [str(NIGHTSHIFT), "doctor", name, "--repair", *config], env=environment,
                stdout=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        return open_flows(url, name) + open_mlflow(self.uri, name)

    def whole(self) -> dict[str, Any]:
        """The tables of a second night without a fault."""
        if not self._whole:
            self.prepare("whole")
            assert self.work("whole", "n2") == 0
            self._whole = tables(self.house, "whole")
        return self._whole


@contextmanager
def world(
    folder: Path, on_postgres: bool, delays: str, nurseries: tuple[str, ...] = (HOUSE,)
) -> Iterator[World]:
    """All servers, and a small disk where this user may mount one.

    Args: stages' DELAYS of dying.py; who works nights at the same time.
    """
    with ExitStack() as stack:
        database = postgres(folder / "postgres") if on_postgres else None
        servers = (database, prefect_server(folder, database), mlflow_server(folder))
        for one in servers:
            if one is not None:
                stack.callback(one.end)
                one.start()
        disk = folder / "disk"
        disk.mkdir(exist_ok=True)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk)],
            stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if mounted.returncode == 0:
            stack.callback(subprocess.run, ["umount", "-l", str(disk)], check=False)
        _, prefect, mlflow = servers
        assert prefect is not None
        assert mlflow is not None
        url = prefect.health.removesuffix("/health")
        workers = {name: Nursery(folder, url, delays) for name in nurseries}
        for one in workers.values():
            stack.callback(one.close)
        yield World(folder, mlflow, prefect, database, mounted.returncode == 0, workers)


# --- faults ---------------------------------------------------------------------------------

FAULTS = {
    "mlflow frozen": ("epoch:2", "in training"),
    "mlflow restarted in training": ("epoch:2", "in training"),
    "mlflow restarted at publication": ("before:nights:2", "model registered, night unpublished"),
    "mlflow restarted at the aliases": ("alias:1", "published, one alias set"),
    "mlflow gone": ("epoch:2", "in training"),
    "prefect frozen": ("epoch:2", "in training"),
    "prefect restarted": ("before:predictions:1", "in embed"),
    "prefect gone": ("before:predictions:1", "in embed"),
    "postgres restarted": ("before:predictions:1", "in embed"),
    "postgres gone": ("before:predictions:1", "in embed"),
    "lake away": ("before:predictions:1", "in embed"),
    "lake gone": ("before:predictions:1", "in embed"),
    "disk full": ("before:embeddings:1", "in embed"),
    "disk full at publication": ("before:nights:2", "model registered, night unpublished"),
    "disk full for a while": ("before:embeddings:1", "in embed"),
}
"""Name -> the moment for dying.py, and in words. `gone` and `full` last until the night ends."""


def possible(here: World, fault: str) -> bool:
    """Whether this machine can have a fault: a small disk of its own, a Postgres."""
    needed = {"disk": here.disk, "postgres": here.postgres is not None}
    return needed.get(fault.split()[0], True)


def command_of(here: World, fault: str, seconds: float) -> str:
    """The shell command that makes a fault; for a while it also ends it."""
    what, how = fault.split()[:2]
    if what == "lake":
        lake = here.house / "lake"
        away = f"mv {lake} {lake}.away; echo away > {lake}"
        back = f"rm {lake}; mv {lake}.away {lake}"
        return away if how == "gone" else f"{away}; (sleep {seconds}; {back}) >/dev/null 2>&1 &"
    if what == "disk":
        fill = f"dd if=/dev/zero of={here.folder}/disk/filler bs=1k count=1000000 2>/dev/null"
        while_ = f"(sleep {seconds}; rm {here.folder}/disk/filler) >/dev/null 2>&1 &"
        return f"{fill}; {while_}" if fault.endswith("while") else fill
    server = {"mlflow": here.mlflow, "prefect": here.prefect, "postgres": here.postgres}[what]
    assert server is not None
    if how == "frozen":
        return server.frozen(seconds)
    return server.killed(None if how == "gone" else seconds)


def repair(here: World, fault: str) -> None:
    """End a fault that was there for good, or wait until its end."""
    lake, away = here.house / "lake", here.house / "lake.away"
    if fault == "lake gone":
        lake.unlink()
        away.rename(lake)
    (here.folder / "disk" / "filler").unlink(missing_ok=True)
    for one in (here.postgres, here.prefect, here.mlflow):
        if one is None:
            continue
        if "gone" in fault and not one.answers():
            one.end()
            one.start()
        for _ in range(360):
            if one.answers():
                break
            time.sleep(0.5)


def state_of(here: World, name: str, night: str) -> str | None:
    """What the tables say of a night; None where they do not name it."""
    from nightshift.tables import Lake

    rows = Lake(str(here.house / "lake"), name).nights()
    return next((one["state"] for one in rows if one["night"] == night), None)


def suffer(here: World, fault: str, seconds: float) -> dict[str, Any]:
    """One fault; what it came to."""
    moment, when = FAULTS[fault]
    whole = here.whole()
    name = fault.replace(" ", "-")
    here.prepare(name)
    log = here.house / "night.log"
    already = len(log.read_text())
    fired = here.folder / "fired"
    fired.unlink(missing_ok=True)
    command = f"touch {fired}; {command_of(here, fault, seconds)}"
    began = time.perf_counter()
    code = here.work(name, "n2", moment, command)
    worked = time.perf_counter() - began
    said = log.read_text()[already:]
    repair(here, fault)
    before = state_of(here, name, "n2"), state_of(here, name, "n1")
    again = None if before[0] == "published" and code == 0 else here.work(name, "n2")
    here.work(name, "n2")  # once more, by which whatever was left open is closed
    return {
        "fault": fault,
        "when": when,
        "seconds": None if "gone" in fault or fault in ("disk full", "disk full at publication")
        else seconds,
        "came": fired.exists(),
        "exit_code": code,
        "night_after": before[0],
        "yesterday_after": before[1],
        "worked_seconds": round(worked, 1),
        "run_again": again,
        "message": _last_line(said.replace(str(here.folder), "")) if code else "",
        **differences(tables(here.house, name), whole),
        "left_open": here.close_left(here.house, name),
    }  # fmt: skip


def _last_line(said: str) -> str:
    lines = [one for one in said.strip().splitlines() if one.strip()]
    return lines[-1][:300] if lines else ""


def good(row: dict[str, Any]) -> bool:
    """Whether a fault cost what it may cost: one that passes no night, one for good this run."""
    for_good = row["seconds"] is None
    ended = row["exit_code"] == (1 if for_good else 0) and row["run_again"] in (None, 0)
    clear = "unexpected" not in row["message"] and bool(row["message"]) == for_good
    return (
        row["came"] and ended and clear and row["yesterday_after"] == "published"
        and not row["changed"] and not row["rows_lost"] + row["rows_doubled"] + row["left_open"]
    )  # fmt: skip


# --- the page -------------------------------------------------------------------------------


def write_page(rows: dict[str, Any]) -> None:
    """faults.md from faults.json."""
    lines = [
        "# Faults of servers and disks",
        "",
        "Made by `python benchmarks/faults.py`; do not edit. MLflow's server is on SQLite,",
        "Prefect's on Postgres 15, the lake on a tmpfs of its own. Left open is what Prefect or",
        "MLflow show as running after the next start and `nightshift doctor --repair`, which close",
        "what a night could not.",
        "",
        "| fault | when | seconds | what happened | rows lost | rows doubled | left open |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for row in rows.values():
        took = f"published after {row['worked_seconds']:.0f} s"
        if row["exit_code"]:
            took = f"failed after {row['worked_seconds']:.0f} s, yesterday stayed; run again: " + (
                "published" if row["run_again"] == 0 else "failed"
            )
        seconds = "for good" if row["seconds"] is None else f"{row['seconds']:.0f}"
        lines.append(
            f"| {row['fault']} | {row['when']} | {seconds} | {took} | {row['rows_lost']} | "
            f"{row['rows_doubled']} | {row['left_open']} |"
        )
    lines += ["", "What the night said when it failed:", ""]
    lines += [f"- {row['fault']}: {row['message']}" for row in rows.values() if row["message"]]
    lines += ["", f"{machine()}, shared with other work."]
    (RESULTS / "faults.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", default="*")
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args()
    if not args.page:
        there = kept(RESULTS, FILE)
        due = [one for one in FAULTS if one not in there and fnmatch(one, args.only)]
        with TemporaryDirectory(prefix="faults-") as scratch:
            sys.path.insert(0, str(Path(__file__).parent.parent))
            with world(Path(scratch), POSTGRES.exists(), "2,15,60") as here:
                for fault in due:
                    if not possible(here, fault):
                        print(f"{fault}: left out, this machine has no such disk or server")
                        continue
                    row = suffer(here, fault, args.seconds)
                    row["at"] = datetime.now(UTC).isoformat(timespec="seconds")
                    keep(RESULTS, FILE, fault, row)
                    print("ok " if good(row) else "BAD", row, flush=True)
    rows = kept(RESULTS, FILE)
    write_page(rows)
    return 0 if all(good(row) for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
