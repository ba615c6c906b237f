"""What a night is computed with, as far as its numbers may depend on it.

The same config, code and inputs give the same numbers on the same machine with the same libraries.
Sums of floats depend on their order, so on the processor, its vector units and the threads.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .errors import TrainingError

LIBRARIES = (
    "torch", "numpy", "scipy", "scikit-learn", "tokenizers", "pandas", "pyarrow", "jieba", "opencc",
    "py3langid", "transformers",
)  # fmt: skip
"""What computes, by its name on the package index."""
OF_TORCH = ("vector_units", "threads", "device")
"""What `of_torch` tells."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def machine() -> dict[str, Any]:
    """Libraries' versions, the processor, and what the environment says of threads."""
    return {
        "python": platform.python_version(),
        **{name: found for name in LIBRARIES if (found := installed(name))},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        **{name: os.environ[name] for name in THREADS if name in os.environ},
    }


def of_torch(device: str) -> dict[str, Any]:
    """Vector units, threads and the device with which torch computes here; it is imported for it.

    Args: `train.device` of the pipeline.
    """
    import torch

    from .inference import pick_device

    try:
        there = pick_device(device)
    except TrainingError:
        name = f"{device}, which is not there"
    else:
        name = torch.cuda.get_device_name(there) if there.type == "cuda" else str(there)
    return {
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": name,
    }


def installed(library: str) -> str | None:
    """The version of a library; None where it is not installed."""
    with suppress(PackageNotFoundError):
        return version(library)
    return None


def _processor() -> str:
    """Linux tells the model; elsewhere Python's own word has to do."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
