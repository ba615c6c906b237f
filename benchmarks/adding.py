"""The adding problem (Hochreiter & Schmidhuber 1997): who remembers over 1,000 steps?

    python benchmarks/adding.py [--length 1000] [--cells lstm,gru,rnn]

A sequence of random numbers, two of them marked, one in each half; the answer is the sum of the
two. Saying 1 every time has a mean squared error of 1/6. A cell has solved a length when the error
over the last 20 batches is below 0.01. It begins with short sequences, which double whenever it has
solved them, up to `--length` (a curriculum: batches of full length cost twenty times as much), and
is given `--steps` batches in all. Writes benchmarks/results/adding.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nightshift.cells import make_layer
from nightshift.recipe import ModelConfig

RESULTS = Path(__file__).parent / "results"
SOLVED, WINDOW, CHANCE = 0.01, 20, 1 / 6
BATCH, HIDDEN, FIRST = 32, 64, 32
RATES = {"lstm": 3e-3, "gru": 3e-3, "rnn": 1e-3}
"""Adam's, each cell's better one of the two."""


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
    """Errors and lengths batch by batch, until the full length is solved or steps are out."""
    torch.manual_seed(seed)
    adder, errors, started = Adder(cell, length), list[float](), time.process_time()
    optimizer = torch.optim.Adam(adder.parameters(), RATES.get(cell, 3e-3))
    now, lengths, solved = min(FIRST, length), list[int](), dict[int, int]()
    while len(errors) < steps and length not in solved:
        inputs, sums = batch(now)
        loss = (adder(inputs) - sums).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(adder.parameters(), 1.0)
        optimizer.step()
        errors.append(loss.item())
        lengths.append(now)
        if len(errors) % 100 == 0:
            said = f"{cell} batch {len(errors)}, length {now}: error {mean(errors[-WINDOW:]):.4f}"
            print(said, file=sys.stderr, flush=True)
        if lengths[-WINDOW:] == [now] * WINDOW and mean(errors[-WINDOW:]) < SOLVED:
            solved[now] = len(errors)
            now = min(2 * now, length)
    return {
        "cell": cell, "length": length, "batches": len(errors), "solved": solved,
        "error": mean(errors[-WINDOW:]), "cpu_seconds": time.process_time() - started,
        "errors": [round(one, 5) for one in errors], "lengths": lengths,
    }  # fmt: skip


def picture(rows: list[dict[str, Any]], out: Path) -> None:
    """Error and length by batch, one line per cell."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(7, 5), layout="constrained")
    for row in rows:
        smooth = torch.tensor(row["errors"]).unfold(0, WINDOW, 1).mean(1)
        end = row["solved"].get(row["length"])
        said = f"{row['cell']}: {f'solved after {end:,}' if end else 'not solved'}"
        above.plot(range(WINDOW, len(smooth) + WINDOW), smooth, label=said, linewidth=1)
        below.step(range(1, len(row["lengths"]) + 1), row["lengths"])
    above.axhline(CHANCE, color="grey", linewidth=0.8, linestyle=":")
    above.annotate("always saying 1", (0, CHANCE), (0, 3), textcoords="offset points", color="grey")
    above.set(
        yscale="log", ylabel=f"mean squared error ({WINDOW} batches)",
        title=f"The adding problem, up to {rows[0]['length']:,} steps",
    )  # fmt: skip
    below.set(yscale="log", ylabel="length", xlabel=f"batches of {BATCH} sequences")
    below.axhline(rows[0]["length"], color="grey", linewidth=0.8, linestyle=":")
    above.legend(frameon=False)
    figure.savefig(out, dpi=150)


def page(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "# The adding problem",
        "",
        f"`python benchmarks/adding.py`, {date.today()}, one seed, one thread, hidden {HIDDEN}, "
        f"batches of {BATCH}; LSTM and GRU start with `model.memory: {rows[0]['length']}`. "
        f"Sequences begin with {FIRST} steps and double whenever they are solved, which is a mean "
        f"squared error below {SOLVED} over {WINDOW} batches; chance is 0.167.",
        "",
        "| cell | batches | longest solved | last error | CPU seconds |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['cell']} | {row['batches']:,} | {max(row['solved'], default=0):,} | "
        f"{row['error']:.4f} | {row['cpu_seconds']:.0f} |"
        for row in rows
    ]
    return "\n".join([*lines, "", "![error and length by batch](adding.png)", ""])


def main() -> None:
    """Train every cell asked for, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--cells", default="lstm,gru,rnn")
    parser.add_argument("--steps", type=int, default=6000)
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
