"""Where the shards of a night are computed: in this process, or on the nodes of a Ray cluster.

A shard is a stretch of rows of a table's file. Whoever computes it reads it from the lake; what it
makes comes back in the order of the shards, and the night's own process writes it. So tables, their
order, leases and commits are the same, whatever the engine, and who computes writes nothing.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass, replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import pyarrow as pa
from pydantic import Field

from .config import Config
from .errors import ConfigError, NightshiftError, PassingError
from .tables import Lake

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Out = TypeVar("Out", covariant=True)
Made = dict[str, pa.RecordBatch]
"""What work makes of a chunk: rows for tables, by their names."""

RETRIES = 5
"""Nodes that may die under one shard before the stage is given up."""
AHEAD = 3
"""Shards that are computed or wait to be written, for each that can be computed at once."""
PATIENCE_SECONDS = 30.0
"""Between two looks at whether there is a node left to wait for."""
CONNECT_SECONDS = 10.0


class ComputeConfig(Config):
    """Where a night is computed; what it comes to is the same, but for a training's last digits."""

    engine: Literal["local", "ray"] = "local"
    """`ray` spreads tokens, answers, the assignment to clusters and, with `workers`, training over
    the nodes of a Ray cluster; it needs the extra `ray`, and a lake that all nodes can read."""
    address: str = Field(default="auto", pattern=r"^(auto|[^\s:/@]+:\d{1,5})$")
    """Host and port of the cluster's head, such as head:6379; auto is the cluster that this machine
    is a node of. The night itself runs on one of the nodes."""
    workers: int = Field(default=1, ge=1, le=256)
    """Processes that train one network together, each on its share of every batch; 1 trains in the
    night's own process. Fewer train on while fewer find room."""

    def about(self) -> dict[str, str]:
        """What a night's numbers may depend on, in words; nothing where they cannot."""
        several = self.engine == "ray" and self.workers > 1
        return {"training": f"{self.workers} workers of a Ray cluster"} if several else {}


class Source(Protocol[Out]):
    """Rows to work on: streamed here, or as shards that others read; the same chunks either way."""

    def stream(self, lake: Lake) -> Iterator[Out]:
        """All chunks in order."""
        ...

    def shards(self, lake: Lake) -> list[Any]:
        """References whose chunks, one shard after the other, are those of `stream`."""
        ...

    def read(self, lake: Lake, shard: Any) -> Iterator[Out]:
        """The chunks of one shard."""
        ...


def spread(
    config: ComputeConfig, lake: Lake, source: Source[Item], work: Callable[[Item], Made]
) -> Iterator[Made]:
    """What work makes of each chunk, in the order of the chunks.

    Args: with Ray, `source` and `work` are pickled; a `device` that work has is set to the one that
    the cluster offers.
    Raises: ConfigError where nodes differ from here in code or libraries, or cannot see the lake;
    PassingError where the cluster does not answer, or loses a shard again and again.
    """
    if config.engine == "local":
        return map(work, source.stream(lake))
    return _on_ray(config, lake, source, work)


# --- the cluster ----------------------------------------------------------------------------


def connect(config: ComputeConfig) -> Any:
    """The module `ray`, connected to the cluster.

    Raises: ConfigError without the extra; PassingError where the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Of shards and workers that were called off.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"compute.engine: found ray, but Ray is not installed here ({error}). Run `pip install "
            '"nightshift[ray]"`, or write `engine: local`.'
        ) from error
    if ray.is_initialized():
        if _connected.get("address") == config.address:
            return ray
        ray.shutdown()
    _knock(config.address)
    with _own_signals():
        try:
            ray.init(
                config.address, namespace="nightshift", configure_logging=False, log_to_driver=False
            )
        except Exception as error:  # as many kinds as there are ways not to be connected
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise PassingError(
                f"compute.address: no Ray cluster answers at {config.address} ({said[0]}). Start "
                "one, or make this machine a node of it: `ray start --address=HOST:PORT`, with the "
                "same RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH; then run the night again."
            ) from error
    _connected["address"] = config.address
    if os.environ.get("RAY_AUTH_MODE") != "token":
        log.warning(
            "compute   RAY_AUTH_MODE is not `token`: whoever reaches the cluster's ports runs what "
            "he likes on it. See docs/ray.md."
        )
    return ray


_connected: dict[str, str] = {}


def _knock(address: str) -> None:
    """Ray itself asks for a minute before it says that nobody is there."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise PassingError(
            f"compute.address: nobody answers at {address} ({error}). Start the cluster, or "
            "correct the address, and run the night again: it goes on here."
        ) from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray would end the process at a SIGTERM in a way of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@contextmanager
def in_our_words(address: str, doing: str) -> Iterator[None]:
    """Turn Ray's errors into those of the house; what a shard raised itself is raised here."""
    from ray import exceptions

    try:
        yield
    except exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, NightshiftError | MemoryError):
            raise cause from None
        if isinstance(cause, ImportError) or "No module named" in str(error):
            raise ConfigError(
                f"compute: a node of {address} lacks a module that is here ({cause or error}). "
                "Install the same version of Nightshift on every node."
            ) from error
        raise
    except exceptions.RayError as error:
        said = str(error).strip().splitlines() or [""]
        raise PassingError(
            f"compute: the cluster at {address} {doing} ({type(error).__name__}: {said[0]}). Look "
            "for nodes that die, or have too little memory; then run the night again: it goes on "
            "here."
        ) from error


def room(ray: Any, device: str, threads: int) -> tuple[str, dict[str, float]]:
    """The device that work is done on, and what a process of it needs of a node.

    As many processors as it has threads, if the nodes are so large; a GPU where the cluster has any
    and `device` does not say otherwise.
    """
    nodes = [one["Resources"] for one in ray.nodes() if one["Alive"]]
    cores = [one["CPU"] for one in nodes if one.get("CPU")]
    if not cores:
        return device, {"num_cpus": 1}
    needs: dict[str, float] = {"num_cpus": max(1, min(threads, int(min(cores))))}
    gpus = any(one.get("GPU") for one in nodes)
    if device == "cuda" or (device == "auto" and gpus):
        return "cuda", {**needs, "num_gpus": 1}
    # Some nodes' own idea of the best device would give some rows other last digits.
    return "cpu" if device == "auto" else device, needs


# --- shards on it ---------------------------------------------------------------------------


def _on_ray(
    config: ComputeConfig, lake: Lake, source: Source[Item], work: Callable[[Item], Made]
) -> Iterator[Made]:
    ray = connect(config)
    shards = source.shards(lake)
    if not shards:
        return
    like = likeness()
    device, needs = room(ray, getattr(work, "device", "cpu"), like["threads"])
    if is_dataclass(work) and hasattr(work, "device"):
        there: Any = replace(work, device=device)
        work = there
    with in_our_words(config.address, "took no work"):
        job = ray.put((source, work))
        compute = ray.remote(_compute).options(
            **needs, max_retries=RETRIES, retry_exceptions=[PassingError],
            scheduling_strategy="SPREAD", name="nightshift shard",
        )  # fmt: skip
    log.info("compute   %d shards on the Ray cluster at %s", len(shards), config.address)
    asked: deque[Any] = deque()
    left = iter(shards)
    try:
        while True:
            slots = max(1, int(ray.cluster_resources().get("CPU", 1) // needs["num_cpus"]))
            while len(asked) < AHEAD * slots and (shard := next(left, None)) is not None:
                # The lake goes beside the job: it may hold a secret, and a job may be spilled.
                asked.append(compute.remote([job], shard, lake, like))
            if not asked:
                return
            for made in _waited_for(ray, asked[0], config.address, lake):
                yield {name: _unpacked(rows) for name, rows in made.items()}
            asked.popleft()
    finally:
        for one in asked:
            with suppress(Exception):  # the cluster may be gone
                ray.cancel(one)


def _waited_for(ray: Any, asked: Any, address: str, lake: Lake) -> list[dict[str, bytes]]:
    """A shard's result, for as long as there are nodes that may bring it."""
    while True:
        with in_our_words(address, f"lost a shard {RETRIES + 1} times"):
            try:
                return ray.get(asked, timeout=PATIENCE_SECONDS)
            except ray.exceptions.GetTimeoutError:
                lake.check_held()
                if ray.cluster_resources().get("CPU"):
                    continue
        raise PassingError(
            f"compute: no node that computes is left of the cluster at {address}. Add nodes, or "
            "write `compute: {engine: local}`; then run the night again: it goes on here."
        )


def _compute(job: list[Any], shard: Any, lake: Lake, like: dict[str, Any]) -> list[dict[str, Any]]:
    """On a node: work on one shard."""
    be_like(like)
    source, work = _job(job[0])
    return [
        {name: _packed(rows) for name, rows in work(item).items()}
        for item in source.read(lake, shard)
    ]


_JOBS: dict[str, Any] = {}


def _job(reference: Any) -> Any:
    """What is to be done; read once for all shards that come to this process."""
    import ray

    key = reference.hex()
    if key not in _JOBS:
        _JOBS.clear()
        _JOBS[key] = ray.get(reference)
    return _JOBS[key]


def _packed(rows: pa.RecordBatch) -> Any:
    # Not pickled: a slice would bring all that it was cut from.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_batch(rows)
    return sink.getvalue()


def _unpacked(packed: Any) -> pa.RecordBatch:
    with pa.ipc.open_stream(packed) as stream:
        return stream.read_next_batch()


# --- likeness -------------------------------------------------------------------------------


def likeness() -> dict[str, Any]:
    """What a node must have in common with this process, so that it makes the same of a shard."""
    import torch
    from threadpoolctl import threadpool_info

    from .machine import LIBRARIES, installed

    return {
        "code": library_digest(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "vector units": torch.backends.cpu.get_cpu_capability(),
        **{name: installed(name) for name in (*LIBRARIES, "ray")},
        "threads": torch.get_num_threads(),
        "pools": {one["user_api"]: one["num_threads"] for one in threadpool_info()},
    }


def be_like(other: dict[str, Any]) -> None:
    """Take as many threads as the night's process: sums of floats depend on how they are cut.

    Raises: ConfigError where the code, a library or the processor's kind is another.
    """
    import torch
    from threadpoolctl import threadpool_limits

    threadpool_limits(other["pools"])
    torch.set_num_threads(other["threads"])
    own = likeness()
    for name in [one for one in other if one not in ("threads", "pools")]:
        if own[name] == other[name]:
            continue
        raise ConfigError(
            f"compute: {platform.node()} has {name} {own[name]}, and the night {other[name]}: it "
            "would make something else of the same rows. Install the same version of Nightshift "
            "from the same lock on every node (docs/ray.md)."
        )


@cache
def library_digest() -> str:
    """Of the library's source: nodes import it, and nothing of the floors above."""
    digest = blake2b(digest_size=8)
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
