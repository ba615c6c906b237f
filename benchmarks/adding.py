"""The adding problem (Hochreiter & Schmidhuber 1997): who remembers over 1,000 steps?

    python benchmarks/adding.py [--length 1000] [--cells lstm,gru,rnn]

A sequence of random numbers, two of them marked, one in each half; the answer is the sum of the
two. Saying 1 every time has a mean squared error of 1/6. A cell has solved it when the error over
the last 20 batches is below 0.01; it is given `--steps` batches at most. Writes
benchmarks/results/adding.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nightshift.cells import make_layer
from nightshift.recipe import ModelConfig

RESULTS = Path(__file__).parent / "results"
SOLVED, WINDOW, CHANCE = 0.01, 20, 1 / 6
BATCH, HIDDEN = 32, 64


class Adder(nn.Module):
    """One layer, read at its last step."""

    def __init__(self, cell: str, length: int):
        super().__init__()
        config = ModelConfig(
            encoder=cell, hidden=HIDDEN, bidirectional=False,
            memory=None if cell == "rnn" else length,
        )  # fmt: skip
        self.layer, self.head = make_layer(config, 2), nn.Linear(HIDDEN, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, time, 2) -> (batch,)."""
        lengths = torch.full((len(inputs),), inputs.shape[1])
        return self.head(self.layer(inputs, lengths)[0][:, -1])[:, 0]


def batch(length: int) -> tuple[Tensor, Tensor]:
    """Numbers with their marks (batch, length, 2), and the sums (batch,)."""
    numbers, marks = torch.rand(BATCH, length), torch.zeros(BATCH, length)
    rows = torch.arange(BATCH)
    first, second = torch.randint(length // 2, (BATCH,)), torch.randint(length // 2, (BATCH,))
    marks[rows, first] = marks[rows, second + length // 2] = 1
    return torch.stack([numbers, marks], 2), (numbers * marks).sum(1)


def train(cell: str, length: int, steps: int, seed: int) -> dict[str, Any]:
    """Errors batch by batch, until solved or out of steps."""
    torch.manual_seed(seed)
    adder, errors, started = Adder(cell, length), list[float](), time.process_time()
    optimizer = torch.optim.Adam(adder.parameters(), 3e-3 if cell != "rnn" else 1e-3)
    solved = None
    for step in range(1, steps + 1):
        inputs, sums = batch(length)
        loss = (adder(inputs) - sums).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(adder.parameters(), 1.0)
        optimizer.step()
        errors.append(loss.item())
        if step % 50 == 0:
            mean = sum(errors[-WINDOW:]) / WINDOW
            print(f"{cell} step {step}: error {mean:.4f}", file=sys.stderr, flush=True)
        if step >= WINDOW and sum(errors[-WINDOW:]) / WINDOW < SOLVED:
            solved = step
            break
    return {
        "cell": cell, "length": length, "steps": step, "solved_at_step": solved,
        "error": sum(errors[-WINDOW:]) / WINDOW, "cpu_seconds": time.process_time() - started,
        "errors": [round(one, 5) for one in errors],
    }  # fmt: skip


def picture(rows: list[dict[str, Any]], out: Path) -> None:
    """Error by batch, one line per cell."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for row in rows:
        errors = torch.tensor(row["errors"])
        smooth = errors.unfold(0, WINDOW, 1).mean(1)
        said = f"solved after {row['solved_at_step']}" if row["solved_at_step"] else "not solved"
        axes.plot(range(WINDOW, len(errors) + 1), smooth, label=f"{row['cell']}: {said}")
    axes.axhline(CHANCE, color="grey", linewidth=0.8, linestyle=":")
    axes.annotate("always saying 1", (0, CHANCE), (0, 3), textcoords="offset points", color="grey")
    axes.set(
        yscale="log", xlabel="batches of 32 sequences", ylabel="mean squared error (20 batches)",
        title=f"The adding problem over {rows[0]['length']:,} steps",
    )  # fmt: skip
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)


def page(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "# The adding problem",
        "",
        f"`python benchmarks/adding.py`, {date.today()}, one seed, one thread, length "
        f"{rows[0]['length']:,}, hidden {HIDDEN}; LSTM and GRU start with `model.memory` of that "
        "length. Solved: a mean squared error below 0.01 over 20 batches; chance is 0.167.",
        "",
        "| cell | batches | solved | last error | CPU seconds |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    lines += [
        f"| {row['cell']} | {row['steps']:,} | {'yes' if row['solved_at_step'] else 'no'} | "
        f"{row['error']:.4f} | {row['cpu_seconds']:.0f} |"
        for row in rows
    ]
    return "\n".join([*lines, "", "![error by batch](adding.png)", ""])


def main() -> None:
    """Train every cell asked for, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--cells", default="lstm,gru,rnn")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [train(one, given.length, given.steps, given.seed) for one in given.cells.split(",")]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "adding.json").write_text(json.dumps(rows) + "\n")
    (RESULTS / "adding.md").write_text(page(rows))
    picture(rows, RESULTS / "adding.png")


if __name__ == "__main__":
    main()
