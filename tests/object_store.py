"""An object store that speaks S3 over HTTP, for tests: moto's, made safe for two writers.

    python tests/object_store.py serve PORT LOG BUCKET...
    python tests/object_store.py door PORT TO-PORT

moto answers `If-None-Match: *` by looking first and writing then, and of two threads both may find
nothing: here one request is answered at a time, as by a store that keeps its promise. Signatures
are checked, which moto leaves out. Each request is a line of LOG. What is stored lives as long as
the process; the door is a proxy that can be killed, and opened again, without losing it.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

KEY, SECRET = "NIGHTSHIFTTESTS00000", "of/nobody+but-it-must-not-show"
BUCKET = "tables"


@dataclass
class Store:
    """A running store, and its door."""

    folder: Path
    port: int
    door_port: int
    _door: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address that its users have: the door's."""
        return f"http://127.0.0.1:{self.door_port}"

    @property
    def options(self) -> dict[str, str]:
        """`storage:` of a pipelines file."""
        return {
            "AWS_ENDPOINT_URL": self.url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
        }  # fmt: skip

    def requests(self) -> list[tuple[str, str, int]]:
        """Method, path and status of every request so far."""
        lines = (self.folder / "requests.log").read_text().splitlines()
        return [(one.split()[0], one.split()[1], int(one.split()[2])) for one in lines]

    def open(self) -> None:
        """Open the door."""
        here = [sys.executable, __file__, "door", str(self.door_port), str(self.port)]
        self._door = subprocess.Popen(here, start_new_session=True)
        wait_for(self.door_port)

    def shut(self) -> None:
        """Kill the door: what is on its way through it breaks off, and nobody listens any more."""
        if self._door is not None:
            self._door.kill()
            self._door.wait()

    @property
    def shut_command(self) -> str:
        """The same for a shell."""
        assert self._door is not None
        return f"kill -9 {self._door.pid}"

    @property
    def open_command(self) -> str:
        """The shell's `open`; whoever runs it has to end it."""
        return f"{sys.executable} {__file__} door {self.door_port} {self.port}"


@contextmanager
def store(folder: Path) -> Iterator[Store]:
    """A store with an empty bucket."""
    found = Store(folder, free_port(), free_port())
    log = str(folder / "requests.log")
    serve_ = [sys.executable, __file__, "serve", str(found.port), log, BUCKET, "artifacts"]
    with (folder / "server.log").open("w") as words:
        process = subprocess.Popen(serve_, stdout=words, stderr=words, start_new_session=True)
    try:
        wait_for(found.port)
        found.open()
        yield found
    finally:
        found.shut()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int) -> None:
    """Until somebody listens."""
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nobody listens at port {port}")


# --- the processes ----------------------------------------------------------------------------


def serve(port: int, log: Path, buckets: list[str]) -> None:
    """Serve until killed."""
    from moto.moto_server.werkzeug_app import create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import run_simple

    for bucket in buckets:
        s3_backends["123456789012"]["aws"].create_bucket(bucket, "us-east-1")
    app, one_at_a_time, lines = create_backend_app("s3"), Lock(), log.open("a", buffering=1)

    def answer(environ: dict[str, Any], start: Any) -> list[bytes]:
        # Read before the lock is taken: who dies in mid-upload must not hold up the others.
        size = int(environ.get("CONTENT_LENGTH") or 0)
        whole = size or environ.get("wsgi.input_terminated")  # by length, or in chunks
        body = environ["wsgi.input"].read(size or -1) if whole else b""
        if len(body) < size:
            return []
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        told: list[str] = []

        def begin(status: str, headers: Any, *more: Any) -> Any:
            told.append(status)
            return start(status, headers, *more)

        refusal = refused(environ)
        if refusal:
            begin("403 Forbidden", [("Content-Type", "application/xml")])
            found = f"<Error><Code>{refusal}</Code><Message>{refusal}</Message></Error>".encode()
        else:
            with one_at_a_time:
                found = b"".join(app(environ, begin))
        query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
        path = f"{environ['PATH_INFO']}{query}".replace(" ", "+")
        lines.write(f"{environ['REQUEST_METHOD']} {path} {told[0][:3]}\n")
        return [found]

    run_simple("127.0.0.1", port, answer, threaded=True)


def refused(environ: dict[str, Any]) -> str:
    """The code with which S3 refuses a signature that is not made with SECRET; empty for a good one
    (Signature Version 4)."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    said = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d+/([^/]+)/s3/aws4_request, ?"
        r"SignedHeaders=([^,]+), ?Signature=([0-9a-f]+)",
        environ.get("HTTP_AUTHORIZATION", ""),
    )
    if said is None:
        return "AccessDenied"
    key, region, names, signature = said.groups()
    if key != KEY:
        return "InvalidAccessKeyId"
    headers = {
        name: environ.get(f"HTTP_{name.upper().replace('-', '_')}")
        or environ.get(name.upper().replace("-", "_"), "")
        for name in names.split(";")
    }
    request = AWSRequest(
        environ["REQUEST_METHOD"], f"http://{environ['HTTP_HOST']}{environ['RAW_URI']}", headers
    )
    request.context["timestamp"] = headers["x-amz-date"]
    signer = S3SigV4Auth(Credentials(KEY, SECRET), "s3", region)
    # The words are signed by their digest, which is a header.
    words = signer.string_to_sign(request, signer.canonical_request(request))
    return "" if signer.signature(words, request) == signature else "SignatureDoesNotMatch"


async def door(port: int, to: int) -> None:
    """Pass on all that comes, until killed."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while block := await reader.read(1 << 16):
                writer.write(block)
                await writer.drain()
        writer.close()

    async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    async with await asyncio.start_server(enter, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        asyncio.run(door(int(sys.argv[2]), int(sys.argv[3])))
