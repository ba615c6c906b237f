"""speed.md and its picture, made from speed.json and from what other benchmarks left beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from corpora import kept, table
from quality_page import write_whole

NOT_RUN = "not run"


@dataclass(frozen=True)
class Found:
    """The ratios of one row, one per pair, and what is to be said of them."""

    ratios: list[float]
    said: str


@dataclass(frozen=True)
class Claim:
    """A row of the promise: what it must reach, and where its figures are."""

    name: str
    target: float
    unit: str
    find: Callable[[Path], Found | None]
    at_most: bool = False
    source: str = "suite.py"
    why: str = ""
    """Where it is missed: where the profile says that the seconds go."""

    def holds(self, found: Found | None) -> str:
        """The verdict, by the median."""
        if found is None or not found.ratios:
            return NOT_RUN
        reached = median(found.ratios)
        good = reached <= self.target if self.at_most else reached >= self.target
        return "met" if good else "MISSED"

    def goal(self) -> str:
        """The target in words."""
        return f"{'at most' if self.at_most else 'at least'} {_said(self.target, self.unit)}"


def _said(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.1%}"
    return f"{value:.2f}{unit}" if value < 10 else f"{value:,.0f}{unit}"


def _speed(out: Path, job: str) -> dict[str, Any] | None:
    return kept(out, "speed.json").get(job)


def _trained(corpus: str, *ways: str) -> Callable[[Path], Found | None]:
    """The first of these ways that reaches the goal soonest; what never does has no ratio."""

    def find(out: Path) -> Found | None:
        row = _speed(out, f"train_{corpus}")
        if row is None:
            return None
        runs = {way: row["ours"][way] for way in ways}
        good = {way: found for way, found in runs.items() if all(one["reached"] for one in found)}
        if not good:
            best = max(one["validation_accuracy"] for found in runs.values() for one in found)
            return Found([0.0], f"never reached: validation {best:.4f}")
        way = max(good, key=lambda one: median(run["ratio"] for run in good[one]))
        seconds = [run["seconds"] for run in good[way]]
        peers = [one["train_seconds"] for one in row["peers"]]
        return Found(
            [run["ratio"] for run in good[way]],
            f"{way}: {median(seconds):.1f} s; {row['peer']}: {median(peers):.0f} s",
        )

    return find


def _paired(job: str, corpus: str) -> Callable[[Path], Found | None]:
    def find(out: Path) -> Found | None:
        row = _speed(out, job)
        if row is None or corpus not in row["corpora"]:
            return None
        found = row["corpora"][corpus]
        ours, theirs = (median(one[name] for one in found["pairs"]) for name in ("ours", "peer"))
        return Found(
            [one["ours"] / one["peer"] for one in found["pairs"]],
            f"{ours:,.0f} and {theirs:,.0f} {found['unit']}",
        )

    return find


def _stepped(out: Path, row: dict[str, Any] | None) -> Found | None:
    if row is None:
        return None
    said = ", ".join(
        f"{one['documents']} x {one['tokens']}: {one['ratio']:.2f}" for one in row["shapes"]
    )
    pairs = [one for shape in row["shapes"] for one in shape["pairs"]]
    return Found([one["ours"] / one["peer"] for one in pairs], said)


def _command(name: str) -> Callable[[Path], Found | None]:
    def find(out: Path) -> Found | None:
        row = _speed(out, "commands")
        return row and Found(row["commands"][name], f"{len(row['commands'][name])} calls")

    return find


def _around(out: Path) -> Found | None:
    """The share of a night that is not its compute, of overhead.py."""
    rows = kept(out, "overhead.json")
    name = next((one for one in ("large", "imdb", "thucnews") if one in rows), None)
    if name is None:
        return None
    pairs = rows[name]["pairs"]
    return Found([one["share"] for one in pairs], f"{name}, measured on {rows[name]['day']}")


def _nights(out: Path, size: int, prefect: str, kind: str) -> list[dict[str, Any]]:
    row = kept(out, "scale.json").get(f"{size:09d}-{prefect}")
    return row["nights"][kind] if row else []


def _empty(prefect: str) -> Callable[[Path], Found | None]:
    def find(out: Path) -> Found | None:
        for size in (1_000_000, 100_000, 10_000):
            if nights := _nights(out, size, prefect, "empty"):
                return Found([one["wall_seconds"] for one in nights], f"{size:,} documents")
        return None

    return find


def _growth(out: Path) -> Found | None:
    """Nights of a thousand documents in the largest corpus, by those in the smallest."""
    for prefect in ("server", "embedded"):
        few, many = (_nights(out, size, prefect, "thousand") for size in (10_000, 1_000_000))
        if few and many:
            base = median(one["wall_seconds"] for one in few)
            return Found([one["wall_seconds"] / base for one in many], f"{base:.1f} s at 10,000")
    return None


def _memory(out: Path) -> Found | None:
    for prefect in ("server", "embedded"):
        if nights := _nights(out, 1_000_000, prefect, "first"):
            smaller = _nights(out, 100_000, prefect, "first")
            said = (
                f"{max(one['peak_mib'] for one in smaller):,.0f} MiB at 100,000" if smaller else ""
            )
            return Found([one["peak_mib"] / 1024 for one in nights], said)
    return None


def _grouped(way: str, by: str) -> Callable[[Path], Found | None]:
    """Seconds of one way of kmeans.py's by those of another, pair by pair."""

    def find(out: Path) -> Found | None:
        row = kept(out, "kmeans.json").get("1000000x128-256")
        if row is None:
            return None
        return Found([one[way]["seconds"] / one[by]["seconds"] for one in row["rounds"]], "")

    return find


TIMES = " x"
CLAIMS = [
    Claim("train to the padded BiLSTM's accuracy, thucnews: any path", 20, TIMES,
          _trained("thucnews", "wide", "quick")),
    Claim("the same, the recurrent path alone", 8, TIMES, _trained("thucnews", "recurrent")),
    Claim("train to the Keras LSTM's accuracy, banking77: any path", 10, TIMES,
          _trained("banking77", "wide", "quick"),
          why="three quarters of the linear path are liblinear's, in one thread; the LSTM has both "
          "cores, and with a processor that has AVX-512 it was 1.9 times as fast as without, the "
          "linear path 1.2 times (14 times faster there)"),
    Claim("the same, the recurrent path alone", 3, TIMES, _trained("banking77", "recurrent"),
          why="as above (2.7 times there)"),
    Claim("train to the Keras LSTM's accuracy, imdb: any path", 10, TIMES,
          _trained("imdb", "wide", "quick")),
    Claim("the same, the recurrent path alone", 3, TIMES, _trained("imdb", "recurrent")),
    Claim("training step, by a bare nn.LSTM, processor", 0.9, TIMES,
          lambda out: _stepped(out, _speed(out, "step")),
          why="the recurrence is half of our step; dropout, pooling and attention over all tokens, "
          "which the bare one has none of, are most of the rest (the parts stand below)"),
    Claim("training step, by a bare nn.LSTM, GPU", 0.9, TIMES,
          lambda out: _stepped(out, kept(out, "gpu.json").get("step")), source="gpu.py"),
    Claim("classify, by the padded BiLSTM", 4, TIMES, _paired("classify", "thucnews")),
    Claim("encode to the tokens table, by the bare batch call, headlines", 0.8, TIMES,
          _paired("tokens", "thucnews"),
          why="of a short text the reading of its ids out of what the call returns, which the bare "
          "call leaves out, and the writing take more than half as long as the encoding"),
    Claim("the same, reviews", 0.8, TIMES, _paired("tokens", "imdb")),
    Claim("KMeans 1,000,000 x 128, k 256, by faiss on the processor", 2, TIMES,
          _grouped("faiss", "memory"), source="kmeans.py"),
    Claim("KMeans streaming from the table, time by in memory", 1.3, TIMES,
          _grouped("table", "memory"), True, "kmeans.py",
          "one round from a good start suffices, so that unpacking the table's files weighs as "
          "much as the products"),
    Claim("a night around its compute", 0.05, "%", _around, True, "overhead.py",
          "a third of it, nine seconds, is outside training: imports, tables, and what the page "
          "explains and the bare one does not; the rest is training, which took longer in these "
          "nights, in an earlier one not, and whose speed varies by half within a minute here; see "
          "overhead.md"),
    Claim("an empty night, against a running server", 4, " s", _empty("server"), True,
          "scale.py --server",
          "imports are half of a small one (MLflow with its store twice as long as Prefect; torch "
          "is not among them any more), half a second is Prefect's last heartbeat; of a million "
          "documents the page takes a quarter"),
    Claim("an empty night, embedded", 25, " s", _empty("embedded"), True, "scale.py"),
    Claim("1,000 new documents, corpus 10,000 -> 1,000,000: time grows", 1.5, TIMES, _growth,
          True, "scale.py",
          "the clusters stage and the page read what all documents left, and what both nights "
          "share has become less; it was 1.39 the day before, on a faster machine"),
    Claim("memory of a night at 1,000,000 documents", 4, " GiB", _memory, True, "scale.py"),
    Claim("`nightshift --help`", 0.5, " s", _command("help"), True),
    Claim("`nightshift status`", 1, " s", _command("status"), True,
          why="imports: the settings, which know every option of the library, are nearly half "
          "of it"),
]  # fmt: skip

DID_NOT_HELP = [
    "The input's projection looked up per vocabulary entry, and the rest of the LSTM written out: "
    "no faster than oneDNN's LSTM once the rows are gathered (5.3 ms by 5.6 of 2,048 tokens, 10.5 "
    "by 10.6 of 4,096; 50 by 60 of 16,384, a batch that is slower as a whole).",
    "Dynamic int8 (torch.ao): as fast as 32 bits, on batches of 2,048 to 16,384 tokens.",
    "bfloat16 (AMX): the LSTM alone answers 2.4 times as fast in batches of 2,048 tokens, and "
    "slower than 32 bits in batches of 16,384. Not taken: with 8 bits a document's answer would "
    "depend on what shares its batch, and on the processor.",
    "Dropout masks from draws of 16 bits: 4 ms of a step of 85 less. Not taken: three of the "
    "networks that tests train on tiny problems no longer reached their accuracy in time.",
    "torch.compile of what reads a batch: a step is 1.06 (128 x 16) and 1.11 times (128 x 64) as "
    "fast, for 35 s of compiling at first and 5 s for a second shape. Not taken: it needs a C++ "
    "compiler on the machine of the night, and on thucnews would save as much as it costs.",
]  # on an Intel Xeon with AMX, one of two cores, CPU time; torch.compile on two of an AMD EPYC


def write_page(out: Path) -> int:
    """speed.md and speed.png from the results in a folder."""
    write_whole(out / "speed.md", page(out))
    draw(out)
    print(f"{out / 'speed.md'}: {sum(one.find(out) is not None for one in CLAIMS)} of "
          f"{len(CLAIMS)} rows have figures")  # fmt: skip
    return 0


def page(out: Path) -> str:
    """The results as Markdown."""
    done = kept(out, "speed.json")
    rows = done.values()
    tried = any(row["rows"] for row in rows)
    return "\n".join([
        "# How fast", "",
        "`python benchmarks/suite.py --data DIR`. Both of a pair work on the same machine in one",
        "run, in turn; a ratio is the median over the pairs, with the least and the greatest. It",
        "is speed by speed: 2 x is twice as fast. A target counts as met by the median.",
        *(["", "**Tried on few rows: these figures mean nothing.**"] if tried else []), "",
        *(f"- {key}: {said}" for key in ("machine", "day")
          for said in sorted({row[key] for row in rows})),
        *_busy(done), "",
        *table(["work", "target", "found", "least", "greatest", "verdict", "of"], _verdicts(out)),
        *_short(out), "", "![Ratios by their targets; accuracy by seconds](speed.png)", "",
        "Clustering beside BERTopic and scikit-learn: [clusters.md](clusters.md). Accuracy of",
        "every recipe and peer over seeds: [quality.md](quality.md).", "",
        *_trainings(done), *_usual(done), *_step(out, done), *_classify(done), *_tokens(done),
        "## Tried, and not kept", "", *(f"- {one}" for one in DID_NOT_HELP), "",
    ])  # fmt: skip


def _verdicts(out: Path) -> list[list[str]]:
    lines = []
    for claim in CLAIMS:
        found = claim.find(out)
        if found is None or not found.ratios:
            lines.append([claim.name, claim.goal(), "", "", "", NOT_RUN, f"`{claim.source}`"])
            continue
        ends = (median(found.ratios), min(found.ratios), max(found.ratios))
        numbers = [_said(one, claim.unit) for one in ends]
        lines.append([claim.name, claim.goal(), *numbers, claim.holds(found), found.said])
    return lines


def _short(out: Path) -> list[str]:
    """What is missed, and why."""
    said = [f"- {one.name}: {one.why}." for one in CLAIMS
            if one.why and one.holds(one.find(out)) == "MISSED"]  # fmt: skip
    return ["", "Where it falls short, and what a profile says of it:", "", *said] if said else []


def _busy(done: dict[str, Any]) -> list[str]:
    """Jobs in which the rest of the machine took more than a twentieth of it."""
    noisy = [
        f"{name} ({row['others_cpu_seconds'] / (row['seconds'] * row['cores']):.0%})"
        for name, row in done.items()
        if row["others_cpu_seconds"] > 0.05 * row["seconds"] * row["cores"]
    ]
    return [f"- others used the machine meanwhile: {', '.join(noisy)}"] if noisy else []


def _trainings(done: dict[str, Any]) -> list[str]:
    lines = [
        "## Training to an accuracy", "",
        "Ours trains until its validation accuracy is that of the peer's kept weights; it looks",
        "where the product looks, after each epoch, so it often ends above. Seconds count all",
        "that precedes the first answer, without imports. The peer's are of all its epochs; `kept`",
        "is the part of them after which its best weights were there. The test rows are read once,",
        "at the end. *wide* is the linear path alone; *quick* the whole model of `train.preset:",
        "quick`, both paths, blended, with its thresholds; *recurrent* the network alone, without",
        "pretraining; of imdb, the last 256 tokens in two passes.", "",
    ]  # fmt: skip
    rows = []
    for name in [one for one in done if one.startswith("train_")]:
        row = done[name]
        for one in row["peers"]:
            rows.append([
                row["corpus"], row["peer"], f"{one['train_seconds']:.1f}",
                f"{one['train_seconds'] * one['kept_share']:.1f}", "1",
                f"{one['validation_accuracy']:.4f}", f"{one['accuracy']:.4f}",
            ])  # fmt: skip
        for way, runs in row["ours"].items():
            seconds = [run["seconds"] for run in runs]
            ratio = f"{median(run['ratio'] for run in runs):.1f}"
            rows.append([
                row["corpus"], way, f"{median(seconds):.1f}", "",
                ratio if all(run["reached"] for run in runs) else "not reached",
                f"{median(run['validation_accuracy'] for run in runs):.4f}",
                f"{median(run['accuracy'] for run in runs):.4f}",
            ])  # fmt: skip
    head = ["corpus", "what", "seconds", "kept", "times as fast", "validation", "test"]
    return [*lines, *table(head, rows), ""] if rows else []


def _usual(done: dict[str, Any]) -> list[str]:
    row = done.get("usual")
    if row is None:
        return []
    lines = [
        "## What a user would take instead", "",
        "svm_words: TF-IDF and LinearSVC of scikit-learn. trainer: a Transformer of two layers of",
        "width 128, from scratch, under Hugging Face's Trainer. Each to its own end.", "",
    ]  # fmt: skip
    rows = [
        [corpus, name, f"{one['train_seconds']:.1f}", f"{one['accuracy']:.4f}",
         f"{one['parameters']:,}", one["note"]]
        for corpus, peers in row["corpora"].items() for name, one in peers.items()
    ]  # fmt: skip
    head = ["corpus", "peer", "seconds", "test", "parameters", "note"]
    return [*lines, *table(head, rows), ""]


def _step(out: Path, done: dict[str, Any]) -> list[str]:
    found = [row for row in (done.get("step"), kept(out, "gpu.json").get("step")) if row]
    if not found:
        return []
    names = [*found[0]["shapes"][0]["parts"]]
    lines = [
        "## A training step", "",
        "Documents x tokens of each. The bare one is the recurrence alone; ours also looks tokens",
        "up, drops values, pools three ways, attention among them, classifies, clips and moves the",
        "weights. The parts are shares of our step, by torch's profiler.", "",
    ]  # fmt: skip
    rows = [
        [row["device"], f"{one['documents']} x {one['tokens']}",
         f"{median(pair['ours'] for pair in one['pairs']):,.0f}",
         f"{median(pair['peer'] for pair in one['pairs']):,.0f}", f"{one['ratio']:.2f}",
         "-" if one["busy"] is None else f"{one['busy']:.0%}",
         *(f"{one['parts'][name]:.0%}" for name in names)]
        for row in found for one in row["shapes"]
    ]  # fmt: skip
    head = ["device", "shape", "tokens/s", "bare", "ratio", "busy", *names]
    if not kept(out, "gpu.json"):
        lines += ["No GPU was there: gpu.py has run on a processor alone.", ""]
    return [*lines, *table(head, rows), ""]


def _classify(done: dict[str, Any]) -> list[str]:
    parts = ["cleaning", "tokens", "network", "wide path"]
    rows = [
        [corpus, *(f"{one['parts'][name]:.2f}" for name in parts)]
        for corpus, one in done.get("classify", {}).get("corpora", {}).items()
    ]
    head = ["corpus", *parts]
    lines = ["## Where answering spends its seconds", ""]
    return [*lines, *table(head, rows), ""] if rows else []


def _tokens(done: dict[str, Any]) -> list[str]:
    rows = [
        [corpus, *(f"{median(pair[name] for pair in one['pairs']):,.0f}"
                   for name in ("ours", "peer", "with_ids"))]
        for corpus, one in done.get("tokens", {}).get("corpora", {}).items()
    ]  # fmt: skip
    lines = [
        "## Text to the tokens table", "",
        "Documents a second. The bare call leaves its ids inside the tokenizer's own objects; the",
        "last column is that call with the ids read out, which whoever uses them has to do.", "",
    ]  # fmt: skip
    head = ["corpus", "table to table", "bare call", "bare call, ids read"]
    return [*lines, *table(head, rows), ""] if rows else []


# --- the picture ----------------------------------------------------------------------------


def draw(out: Path) -> None:
    """Ratios by their targets, and accuracy against seconds, as one picture."""
    from matplotlib.figure import Figure

    from nightshift.pictures import GREY, PALETTE

    picture = Figure(figsize=(11, 9), layout="constrained")
    done = kept(out, "speed.json")
    trained = {one: row for one, row in done.items() if one.startswith("train_")}
    parts = picture.subfigures(2, 1, height_ratios=[3, 2])
    axes = parts[0].subplots()
    for place, claim in enumerate(reversed(CLAIMS)):
        found = claim.find(out)
        if found is None or not min(found.ratios, default=0):
            axes.annotate(claim.holds(found), (1, place), color=GREY, va="center", size=7)
            continue
        # To the right is better: what should be little is turned over.
        shares = [
            claim.target / one if claim.at_most else one / claim.target for one in found.ratios
        ]
        good = claim.holds(found) == "met"
        middle = median(shares)
        ends = [[middle - min(shares)], [max(shares) - middle]]
        axes.errorbar(middle, place, xerr=ends, fmt="o", color=PALETTE[2 if good else 4],
                      markersize=5, capsize=2)  # fmt: skip
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="found by target; right of the line is met",
             ylim=(-0.7, len(CLAIMS) - 0.3))  # fmt: skip
    axes.set_yticks(range(len(CLAIMS)), [one.name for one in reversed(CLAIMS)], size=7)
    axes.grid(axis="x", alpha=0.3)
    below = parts[1].subplots(1, max(1, len(trained)), squeeze=False)[0]
    for axes, row in zip(below, trained.values(), strict=False):
        others = done.get("usual", {}).get("corpora", {}).get(row["corpus"], {})
        points = [
            (row["peer"], row["peers"][0]["train_seconds"], row["peers"][0]["accuracy"]),
            *((name, one["train_seconds"], one["accuracy"]) for name, one in others.items()),
        ]
        for name, seconds, accuracy in points:
            _mark(axes, name, seconds, accuracy, GREY)
        for way, runs in row["ours"].items():
            middle = median(one["seconds"] for one in runs)
            _mark(axes, way, middle, median(one["accuracy"] for one in runs), PALETTE[0])
        axes.set(xscale="log", title=row["corpus"], xlabel="seconds of training")
        axes.margins(x=0.2, y=0.1)
        axes.grid(alpha=0.3)
    below[0].set_ylabel("test accuracy")
    picture.savefig(out / "speed.png", dpi=110, metadata={"Software": None})


def _mark(axes: Any, name: str, seconds: float, accuracy: float, colour: str) -> None:
    axes.plot(seconds, accuracy, "o", color=colour, markersize=5)
    axes.annotate(name, (seconds, accuracy), xytext=(4, 4), textcoords="offset points", size=7)
