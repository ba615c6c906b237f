"""Work a night that dies by SIGKILL at a named moment; for kills.py and tests/test_kills.py.

    python benchmarks/dying.py MOMENT PIPELINE CONFIG NIGHT
    python benchmarks/dying.py --nursery    # many nights, told on standard input

Moments: `start` (the flow run has begun, nothing is written), `lease` (it is taken, the night not
yet noted), `run` (MLflow's run is open, the night not yet noted), `before:TABLE:N` and
`after:TABLE:N` (the N-th commit to a table), `laid:TABLE:N` (its rows are in a file that the commit
does not name yet), `amid:TABLE:N:MS` (so many milliseconds into it), `epoch:N`, `upload:MS` (into
the upload of the model), `logged` (the bundle is in MLflow, and no version), `alias:N` (N aliases
are set), `published` (all is done but the closing of the runs), `keep:NAME` (a function of
tasks/keep.py, or a method of its Attic, has done its first piece), `after-seconds:S` (so long after
the night was noted). Ends as a night does where the moment does not come.

With FAULT in the environment this command of the shell is run at that moment instead, once, and the
night goes on. With DELAYS, such as 1,5, stages are tried again after so many seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def die() -> None:
    """As the kernel ends a process that took too much memory: at once, without a word."""
    if "FAULT" in os.environ:
        command, os.environ["FAULT"] = os.environ["FAULT"], ""
        subprocess.run(command, shell=True, check=False, start_new_session=True)
        return
    os.kill(os.getpid(), signal.SIGKILL)


def die_in(seconds: float) -> None:
    """The same after a while, whatever this process then does."""
    me = os.getpid()
    if os.fork() == 0:
        os.closerange(0, 4096)  # the lock and the pipes are the night's
        time.sleep(seconds)
        if os.getppid() == me:
            os.kill(me, signal.SIGKILL)
        os._exit(0)


def around(
    owner: Any,
    name: str,
    before: Callable[..., None] | None = None,
    after: Callable[..., None] | None = None,
) -> None:
    """Do something before or after every call of a function or method."""
    real = getattr(owner, name)

    def call(*given: Any, **named: Any) -> Any:
        if before is not None:
            before(*given, **named)
        found = real(*given, **named)
        if after is not None:
            after(*given, **named)
        return found

    setattr(owner, name, call)


def at_commit(place: str, table: str, count: int, seconds: float) -> None:
    """Die at the count-th commit to a table."""
    from nightshift.tables import NightWriter

    calls = 0

    def counted(writer: Any) -> bool:
        return writer._table == table and calls == count

    def before(writer: Any) -> None:
        nonlocal calls
        calls += writer._table == table
        if not counted(writer):
            return
        if place == "before":
            die()
        if place == "amid":
            die_in(seconds)
        if place == "laid":
            writer._added()
            die()

    around(NightWriter, "_commit", before, lambda one: die() if counted(one) else None)


def arm(moment: str) -> None:
    """Lay the trap."""
    import flows.night
    from tasks import keep, publish, tracking

    place, *rest = moment.split(":")
    if place in ("before", "after", "laid", "amid"):
        at_commit(place, rest[0], int(rest[1]), float(rest[2]) / 1000 if len(rest) > 2 else 0)
    elif place == "start":
        around(flows.night, "alone", before=lambda *_: die())
    elif place == "lease":
        around(flows.night.forgetting, "finish", before=lambda *_: die())
    elif place == "run":
        around(flows.night, "open_run", after=lambda *_: die())
    elif place == "epoch":
        number = int(rest[0])

        def logged(_: Any, __: Any, step: int = 0, run_id: str | None = None) -> None:
            if step == number:
                die()

        around(tracking.Tracking, "figures", after=logged)
    elif place == "upload":
        around(tracking.Tracking, "keep", before=lambda *_: die_in(float(rest[0]) / 1000))
    elif place == "logged":
        around(tracking, "_log_pyfunc", after=lambda *_: die())
    elif place == "alias":
        calls: list[int] = []

        def count(*_: Any) -> None:
            if len(calls) == int(rest[0]):
                die()
            calls.append(1)

        around(tracking.Registry, "alias", before=count)
        around(publish, "follow", after=count)
    elif place == "published":
        around(flows.night, "_finish", before=lambda *_: die())
    elif place == "keep":
        owner = keep if hasattr(keep, rest[0]) else tracking.Attic
        around(owner, rest[0], after=lambda *_, **__: die())
    elif place == "after-seconds":
        around(flows.night, "manifest", after=lambda *_: die_in(float(rest[0])))
    else:
        raise SystemExit(f"no moment {moment!r}")


def ready() -> None:
    """Everything that a night imports."""
    from importlib import import_module

    from flows.environment import prepare

    prepare(Path(os.environ["PREFECT_HOME"]))
    if "DELAYS" in os.environ:
        from tasks import stage  # before the stages read it

        stage.RETRY_DELAYS_SECONDS[:] = map(float, os.environ["DELAYS"].split(","))
    from flows.night import WARM

    for name in (*WARM, "flows.cli", "mlflow.pyfunc", "deltalake", "pyarrow.dataset", "matplotlib"):
        import_module(name)


def one(moment: str, pipeline: str, config: str, night: str) -> None:
    """Work a night; without a moment as the command does."""
    if not moment:
        from flows.cli import main as command

        sys.argv = ["nightshift", "run", pipeline, "--night", night, "--config", config]
        command()
        return
    arm(moment)
    from flows.night import work

    work(pipeline, night, config)


def nursery() -> None:
    """Work a night per line of standard input, each in a process of its own, forked from this one:
    half of a short night is imports. A line is JSON: [moment, pipeline, config, night, log file,
    environment]. Answers with the exit code."""
    ready()
    for line in sys.stdin:
        *words, log, environment = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            with open(log, "a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.environ.update(environment)
            code = 1
            try:
                one(*words)
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--nursery"]:
        nursery()
    else:
        ready()
        one(*sys.argv[1:])
