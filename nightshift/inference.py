"""Ask a trained network: documents in, scores and vectors out, on whatever device there is."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import numpy as np
import torch

from .batches import Documents, Watch, buckets, unwatched
from .encoders import Network
from .errors import TrainingError

CPU_TOKENS = 4096
"""Tokens of one batch on a processor: the states of more fall out of its cache."""

_MMAP_THRESHOLD, BLOCK = -3, 1 << 20
"""glibc's M_MMAP_THRESHOLD (mallopt(3)), and from how many bytes on a block is mapped alone."""
KERNELS = "16"
"""Of shapes that oneDNN keeps compiled; by default 1,024, and every batch is of another."""


def spare_memory() -> None:
    """Keep a process that reads much text about as small as one that reads little; call it before
    its first pass.

    Batches of many shapes leave holes that glibc does not give back: over 15,000 documents 46 MiB,
    and more with each thousand. Elsewhere than with glibc and oneDNN it does nothing.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, BLOCK)


def pick_device(wanted: str) -> torch.device:
    """`auto` -> cuda, mps or cpu, the first that is there.

    Raises: TrainingError when a device is asked for by name and missing.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return torch.device(next((name for name, yes in there.items() if yes), "cpu"))
    if not there.get(wanted, True):
        raise TrainingError(
            f"train.device: found no {wanted} device, though pipelines.yaml asks for it. "
            "Write `device: auto`, or run on a machine that has one."
        )
    return torch.device(wanted)


def device_name(wanted: str) -> str | None:
    """What tells the device from all others of this machine; None for a processor, which is shared.

    Args: as `pick_device`, whose errors are met where it is used.
    """
    try:
        there = pick_device(wanted)
    except TrainingError:
        return None
    if there.type == "cuda":
        # Its number depends on CUDA_VISIBLE_DEVICES, and is another one in each container.
        return f"cuda-{torch.cuda.get_device_properties(there).uuid}"
    return None if there.type == "cpu" else there.type


def padded(
    network: Network, documents: Documents, rows: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as the network wants them padded: ids (rows, time), lengths (rows,)."""
    way = network.config.padding
    if way == "bucket":
        return documents.pad(rows)
    return documents.pad(rows, int(network.config.max_tokens), before=way == "pre")


@torch.inference_mode()
def forward(
    network: Network,
    documents: Documents,
    batch_tokens: int,
    device: torch.device,
    watch: Watch = unwatched,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores before softmax (documents, classes) and vectors (documents, width), both float32."""
    network.eval()
    scores = np.empty((len(documents), network.head.out_features), np.float32)
    vectors = np.empty((len(documents), network.head.in_features), np.float32)
    if device.type == "cpu":
        batch_tokens = min(batch_tokens, CPU_TOKENS)
    parts = list(buckets(documents.lengths, batch_tokens))
    for rows in watch(parts, len(parts)):
        ids, lengths = padded(network, documents, rows)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            one, two = network(ids.to(device), lengths.to(device))
        scores[rows], vectors[rows] = one.float().cpu().numpy(), two.float().cpu().numpy()
    return scores, vectors
