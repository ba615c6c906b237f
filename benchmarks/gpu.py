"""A training step beside a bare `nn.LSTM` of the same shape, on the device there is.

    python benchmarks/gpu.py [--device cuda] [--rounds 5] [--out FOLDER]

A step is the product's own, of the default network: look tokens up, read them in both directions,
pool, classify, backwards, clip, AdamW. The bare one is `nn.LSTM` forwards and backwards on a tensor
that is there already, and nothing else. Both see full batches, in turn. Beside tokens a second and
their ratio: which share of the time the device is busy (on a GPU, by its own clock), and where a
step's time goes. On a GPU the result is gpu.json; a processor's is a row of suite.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from corpora import RESULTS, keep, machine

if TYPE_CHECKING:
    import torch

SHAPES = ((128, 16), (128, 64), (64, 200))
"""Documents and tokens of each in a batch: headlines, questions, reviews."""
STEPS, VOCABULARY, CLASSES, WIDTH = 10, 8000, 10, 128
PARTS = {
    "recurrence": ("mkldnn_rnn", "cudnn_rnn", "lstm"),
    "dropout": ("bernoulli", "dropout"),
    "other products": ("mm", "linear", "gemm"),
    "optimizer and clipping": ("adam", "norm", "foreach"),
    "lookup and its gradient": ("embedding", "index_select"),
}
"""Where a step's time goes, by what stands in an operation's name; the first that fits."""


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=there, choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5, help="both in turn, so many times")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    if options.device == "cuda" and there != "cuda":
        print("--device cuda: found no GPU. Run on a machine that has one.", file=sys.stderr)
        return 2
    found = measure(torch.device(options.device), options.rounds)
    print(json.dumps(found, indent=2))
    if options.device == "cuda":
        keep(options.out, "gpu.json", "step", found)
    return 0


def measure(
    device: torch.device, rounds: int, wanted: tuple[tuple[int, int], ...] = SHAPES
) -> dict[str, Any]:
    """Each shape: tokens a second of both by round, the share busy, and the parts of a step."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    shapes = [compare(device, documents, tokens, rounds) for documents, tokens in wanted]
    return {
        "device": name, "threads": torch.get_num_threads(), "shapes": shapes,
        "machine": machine(), "day": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


def compare(device: torch.device, documents: int, tokens: int, rounds: int) -> dict[str, Any]:
    """One shape, both in turn."""
    ours, bare = product_step(device, documents, tokens), bare_step(device, documents, tokens)
    for step in (ours, bare):
        _rate(step, device, documents * tokens)  # warms up
    pairs = [
        {
            "ours": _rate(ours, device, documents * tokens),
            "peer": _rate(bare, device, documents * tokens),
        }
        for _ in range(rounds)
    ]
    return {
        "documents": documents, "tokens": tokens, "unit": "tokens/s", "pairs": pairs,
        "ratio": median(one["ours"] / one["peer"] for one in pairs), **_profile(ours, device),
    }  # fmt: skip


def product_step(device: torch.device, documents: int, tokens: int) -> Callable[[], None]:
    """`STEPS` steps of training the default network on documents of one length."""
    import torch

    from nightshift.batches import Documents
    from nightshift.encoders import Network
    from nightshift.optimisation import groups_of, make_optimizer
    from nightshift.recipe import ModelConfig, TrainConfig
    from nightshift.training import _Loss, _step

    random, count = np.random.default_rng(1), documents * STEPS
    ids = random.integers(2, VOCABULARY, count * tokens).astype(np.int32)
    rows = Documents(
        ids, np.arange(count) * tokens, np.full(count, tokens), random.integers(0, CLASSES, count)
    )
    config = TrainConfig(
        epochs=1, batch_tokens=documents * tokens, learning_rate=1e-3, weight_decay=1e-2
    )
    torch.manual_seed(1)
    network = Network(ModelConfig(max_tokens=tokens, stride=1), VOCABULARY, CLASSES).to(device)
    loss_of = _Loss(network, rows, config, device)
    optimizer = make_optimizer(groups_of(network, config, 1.0), config.optimizer, 1e-3)
    parts = np.arange(count).reshape(STEPS, documents)

    def steps() -> None:
        for part in parts:
            _step(network, loss_of, part, optimizer, config.clip)

    return steps


def bare_step(device: torch.device, documents: int, tokens: int) -> Callable[[], None]:
    """As many times: `nn.LSTM` forwards and backwards, both directions, the gradient of its input
    with it."""
    import torch
    from torch import nn

    lstm = nn.LSTM(WIDTH, WIDTH, bidirectional=True, batch_first=True).to(device)
    inputs = torch.randn(documents, tokens, WIDTH, device=device, requires_grad=True)

    def steps() -> None:
        for _ in range(STEPS):
            lstm.zero_grad(set_to_none=True)
            inputs.grad = None
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                states = lstm(inputs)[0]
            states.float().sum().backward()

    return steps


def _rate(steps: Callable[[], None], device: torch.device, tokens: int) -> float:
    """Tokens a second."""
    import torch

    started = time.perf_counter()
    steps()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return STEPS * tokens / (time.perf_counter() - started)


def _profile(steps: Callable[[], None], device: torch.device) -> dict[str, Any]:
    """The share of the time in which the device is busy, and of each part in what it does."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    started = time.perf_counter()
    with profile(activities=kinds) as seen:
        steps()
        if on_gpu:
            torch.cuda.synchronize(device)
    wall = time.perf_counter() - started
    parts = dict.fromkeys([*PARTS, "the rest"], 0.0)
    for event in seen.key_averages():
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        name = event.key.lower()
        part = next((one for one, has in PARTS.items() if any(h in name for h in has)), "the rest")
        parts[part] += took / 1e6
    total = sum(parts.values())
    # Torch's profiler knows a GPU's kernels one by one; the processor is simply at work.
    busy = min(1.0, total / wall) if on_gpu else None
    return {"busy": busy, "parts": {name: took / total for name, took in parts.items()}}


if __name__ == "__main__":
    sys.exit(main())
