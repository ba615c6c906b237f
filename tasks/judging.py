"""judging: a model answers the gate rows in a process of its own.

Neither model sees what the other left in memory, and one that dies takes no night with it.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path

from nightshift.errors import BundleError, NightError
from nightshift.promotion import Judged

WARM_UP = 32
"""Texts answered before the clock starts."""


def judged(folder: Path, expected: str, texts: list[str], device: str) -> Judged:
    """What the model in a folder says of cleaned texts, and how long it takes.

    Args: the folder; the model_id that it should have.
    Raises: BundleError where its files are another model's; NightError when its process dies, of
    memory perhaps.
    """
    from nightshift.bundle import model_id

    if model_id(folder) != expected:
        raise BundleError(
            f"{folder}: found model {model_id(folder)}, expected {expected}: its files were "
            "altered. Put back what was there, or roll back to another version."
        )
    with ProcessPoolExecutor(1, _nursery(), end_with_parent) as alone:
        try:
            return alone.submit(_answer, folder, texts, device).result()
        except BrokenProcessPool:
            raise NightError(
                f"its process died while it answered {len(texts)} gate rows; memory may not have "
                "sufficed"
            ) from None


def _nursery() -> ForkServerContext:
    """Where processes begin that know the library and nothing of the night: each is a fork of one
    that only imported it, as importing takes longer than most gates."""
    found = get_context("forkserver")
    found.set_forkserver_preload([__name__, "nightshift.bundle"])
    return found


def end_with_parent() -> None:
    """End this process when the one that began it ends: a parent that is killed by force says no
    goodbye, and nobody else would."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _answer(folder: Path, texts: list[str], device: str) -> Judged:
    from nightshift.bundle import Model

    model = Model.load(folder)
    model.answer(model.documents(texts[:WARM_UP]), texts[:WARM_UP], device)
    started = time.perf_counter()
    said = model.answer(model.documents(texts), texts, device)
    seconds = time.perf_counter() - started
    answers = [model.labels[one] for one in said.choice]
    return Judged(answers, model.labels, 1000 * seconds / max(1, len(texts)))
