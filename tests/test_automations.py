"""Automations on a real Prefect server: made once, and they tell of a run that died."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_kills import server as server  # a fixture

# In a process of its own: Prefect reads the address of its server once.
DRIVER = """
import json, sys
from pathlib import Path
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Crashed, Scheduled
from flows.automations import declare
from nightshift.pipeline import load_settings

@flow
def probe():
    pass

settings = load_settings(Path(sys.argv[1]))
with get_client(sync_client=True) as api:
    its = api.create_deployment(api.create_flow(probe), "probe", paused=True)
    told = [declare(settings, {"a": [its]}), declare(settings, {"a": [its]})]
    if len(sys.argv) > 2:
        run = api.create_flow_run_from_deployment(its, name="night-of-a")
        api.set_flow_run_state(run.id, Crashed(message="the power went out"), force=True)
print(json.dumps(told))
"""


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}/secret-path", got
    web.shutdown()
    web.server_close()


@pytest.mark.slow
def test_the_server_tells_the_webhook_of_a_run_that_crashed(
    server: str,
    hook: tuple[str, list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    def declared(*words: str, **keys: Any) -> list[dict[str, str]]:
        pipeline = {"source": {"paths": ["x"]}, **keys}
        (tmp_path / "p.yaml").write_text(yaml.safe_dump({"pipelines": {"a": pipeline}}))
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, str(tmp_path / "p.yaml"), *words], text=True,
            env={**os.environ, "PREFECT_API_URL": server}, capture_output=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "secret-path" not in done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    names = ["nightshift a: failed", "nightshift a: late"]
    told = declared("crash", webhook=hook[0])
    assert told == [dict.fromkeys(names, "new"), dict.fromkeys(names, "unchanged")]
    for _ in range(120):
        if hook[1]:
            break
        time.sleep(0.5)
    assert hook[1], "nothing came within a minute"
    assert hook[1][0]["pipeline"] == "a"
    assert "night-of-a" in hook[1][0]["text"]
    assert "the power went out" in hook[1][0]["text"]
    # Who no longer wants to hear of late nights has that automation no more.
    told = declared(webhook=hook[0], alerts={"on": ["failed"]})
    assert told[0] == {names[0]: "unchanged", names[1]: "removed"}
