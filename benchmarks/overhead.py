"""What a night costs beyond its compute: the night of a corpus against a bare script.

    python benchmarks/overhead.py --data DIR [--corpus thucnews] [--pairs 3] [--out FOLDER]

The bare script calls the same verbs of the library in the same order on the same file, in a
process of its own, and keeps everything in memory: no Prefect, no MLflow, no tables. It ends with
the same report page, and with the same test accuracy, or the comparison is refused. Night and
script take turns, each going first in every second pair. The share of a night that is not compute
is 1 - script / (night - start of the embedded server): processes from start to end, imports
included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from corpora import (
    CORPORA,
    NIGHT,
    NIGHTSHIFT,
    RESULTS,
    STAGES,
    Corpus,
    add_data_option,
    declare,
    keep,
    kept,
    machine,
    run,
    status,
    table,
)

from flows.environment import calm_threads

if TYPE_CHECKING:
    from nightshift.bundle import Answers
    from nightshift.pipeline import Pipeline
    from nightshift.reports import NightReport
    from nightshift.scoring import Scores
    from nightshift.tokenizer import Tokenizer

ALLOWED = 0.15
DISTURBED = 0.05
"""CPU seconds of others per second of a run, above which its time says nothing."""
TRIES = 3
"""Pairs that may be disturbed, for each that is wanted."""
AROUND = "before the first stage"
BETWEEN = "between and after the stages"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--corpus", default="thucnews", choices=[one.name for one in CORPORA])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--bare", type=Path, metavar="CONFIG", help="only the script, in here")
    options = parser.parse_args()
    if options.bare:
        found = bare(options.bare, options.corpus)
        (options.bare.parent / "bare.json").write_text(json.dumps(found), encoding="utf-8")
        return 0
    corpus = next(one for one in CORPORA if one.name == options.corpus)
    calm_threads()
    file = options.data / f"{corpus.name}.parquet"
    if not file.is_file():
        print(f"{corpus.name}: skipped, found no {file.name} in {options.data}")
        return 0
    pairs = list(islice(_undisturbed(corpus, file, TRIES * options.pairs), options.pairs))
    if not pairs:
        print(f"{corpus.name}: the machine was never quiet enough; nothing is kept.")
        return 1
    about = {"machine": machine(), "day": datetime.now(UTC).date().isoformat()}
    keep(options.out, "overhead.json", corpus.name, {**about, "pairs": pairs})
    text = page(kept(options.out, "overhead.json"))
    (options.out / "overhead.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if median(one["share"] for one in pairs) < ALLOWED else 1


def _undisturbed(corpus: Corpus, file: Path, tries: int) -> Iterator[dict[str, Any]]:
    """Pairs, without those in which others used the machine: a neighbour can triple a training."""
    for number in range(tries):
        pair = _pair(corpus, file, number % 2 == 0)
        worst = max(
            pair[way]["others_cpu_seconds"] / pair[way]["wall_seconds"] for way in ("night", "bare")
        )
        said = f"{corpus.name}: {pair['share']:.1%} of the night is not compute"
        if worst <= DISTURBED:
            print(said)
            yield pair
        else:
            print(f"{said}; not counted, others used {worst:.0%} of a core meanwhile")


def _pair(corpus: Corpus, file: Path, night_first: bool) -> dict[str, Any]:
    """One night and one bare script."""
    ways = (_night, _bare) if night_first else (_bare, _night)
    found = {way.__name__: way(corpus, file) for way in ways}
    night, script = found["_night"], found["_bare"]
    if abs(night["accuracy"] - script["accuracy"]) > 1e-6:
        raise SystemExit(
            f"{corpus.name}: the night's test accuracy is {night['accuracy']:.6f}, the bare "
            f"script's {script['accuracy']:.6f}: they do not compute the same. Bring bare() up to "
            "date with the stages in tasks/."
        )
    share = 1 - script["wall_seconds"] / (night["wall_seconds"] - night["server_seconds"])
    return {"share": share, "night": night, "bare": script}


def _night(corpus: Corpus, file: Path) -> dict[str, Any]:
    with TemporaryDirectory(prefix="nightshift-benchmark-") as folder:
        config = declare(corpus, file, Path(folder))
        done = run([str(NIGHTSHIFT), "run", corpus.name, "--night", NIGHT, "--config", str(config)])
        said = status(corpus.name, config)
    seconds = said["seconds"] | {
        BETWEEN: done.wall_seconds - done.begins_seconds - sum(said["seconds"].values()),
        AROUND: done.begins_seconds - done.server_seconds,
    }
    return {
        "accuracy": said["test_accuracy"],
        "wall_seconds": done.wall_seconds,
        "server_seconds": done.server_seconds,
        "others_cpu_seconds": done.others_cpu_seconds,
        "seconds": seconds,
    }


def _bare(corpus: Corpus, file: Path) -> dict[str, Any]:
    with TemporaryDirectory(prefix="nightshift-benchmark-") as folder:
        config = declare(corpus, file, Path(folder))
        done = run([sys.executable, __file__, "--corpus", corpus.name, "--bare", str(config)])
        said = json.loads((config.parent / "bare.json").read_text(encoding="utf-8"))
    rest = done.wall_seconds - sum(said["seconds"].values())
    return {
        "accuracy": said["accuracy"],
        "wall_seconds": done.wall_seconds,
        "others_cpu_seconds": done.others_cpu_seconds,
        "seconds": said["seconds"] | {BETWEEN: rest},
    }


# --- the bare script ------------------------------------------------------------------------


@dataclass
class Bare:
    """A night's compute in memory: each method is a stage, and does what its task does."""

    pipeline: Pipeline
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Time a stage."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def ingest(self) -> None:
        """Rows of the file -> documents, cleaned, without duplicates, with their language."""
        from nightshift.intake import Intake
        from nightshift.known import Known
        from nightshift.sources import list_files, read_rows

        own = self.pipeline
        intake = Intake(Known(), own.cleaning, own.splits, own.language, datetime.now(UTC))
        self.documents = [
            document
            for file in list_files(own.source)
            for rows in read_rows(file.uri, own.source)
            for document in intake.take(file.uri, rows).documents
        ]
        for one in self.documents:
            # A duplicate may have brought another label, which is the newer one.
            there = intake.known.row_of(one["content_digest"])
            one["label"] = None if there is None else intake.known.label(there)
        self.texts = [one["text"] for one in self.documents]
        self.sides: dict[str, list[int]] = {"train": [], "validation": [], "gate": [], "test": []}
        order = sorted(range(len(self.texts)), key=lambda row: self.documents[row]["doc_id"])
        for row in order:
            self.sides[self.documents[row]["split"]].append(row)
        if not self.sides["validation"]:
            self._stand_in()

    def _stand_in(self) -> None:
        from nightshift.splits import stands_in_for_validation

        rows = self.sides["train"]
        held = {r for r in rows if stands_in_for_validation(self.documents[r]["content_digest"])}
        self.sides["validation"] = [row for row in rows if row in held]
        self.sides["train"] = [row for row in rows if row not in held]

    def tokens(self) -> None:
        """Learn a tokenizer from all but the test rows; encode all."""
        from nightshift.batches import Documents
        from nightshift.tokenizer import Tokenizer

        config = self.pipeline.tokenizer
        seen = (one["text"] for one in self.documents if one["split"] != "test")
        self.tokenizer: Tokenizer = Tokenizer.learn(seen, config)
        ids = [
            one
            for start in range(0, len(self.texts), 4096)
            for one in self.tokenizer.encode(self.texts[start : start + 4096])
        ]
        self.encoded = Documents.from_lists(ids).cut(config.max_tokens)

    def train(self) -> None:
        """Learn the model, by the same verb as the night."""
        from nightshift.learning import Learned, Material, learn
        from nightshift.recipe import Recipe

        own = self.pipeline
        classes = sorted({self.documents[row]["label"] for row in self.sides["train"]})
        seen = sorted(row for name, rows in self.sides.items() if name != "test" for row in rows)
        seen.sort(key=lambda row: self.documents[row]["doc_id"])
        declared = own.source.split is not None
        material = Material(
            self.tokenizer,
            classes,
            *(self._side(name, classes) for name in ("train", "validation")),
            text=self.encoded.take(np.array(seen)),
            held_out=not declared
            or all(one["split"] != "validation" for one in self.documents),
        )  # fmt: skip
        recipe = Recipe(**{part: getattr(own, part) for part in Recipe.model_fields})
        *_, learned = learn(material, recipe)
        assert isinstance(learned, Learned)
        self.model = learned.model

    def _side(self, name: str, classes: list[str]) -> Any:
        from nightshift.learning import Side

        rows = self.sides[name]
        labels = np.array([classes.index(self.documents[row]["label"]) for row in rows], np.int64)
        tokens = self.encoded.take(np.array(rows)).labelled(labels)
        return Side(tokens, [self.texts[row] for row in rows])

    def _answer(self, rows: np.ndarray) -> Answers:
        return self.model.answer(self.encoded.take(rows), [self.texts[row] for row in rows])

    def evaluate(self) -> None:
        """Score the model and its wide path alone on the test rows."""
        from nightshift.scoring import score

        truth = [self.documents[row]["label"] for row in self.sides["test"]]
        said = self._answer(np.array(self.sides["test"]))
        assert said.probabilities is not None
        assert said.wide is not None
        self.scores: Scores = score(truth, said.probabilities, self.model.labels)
        alone = score(truth, said.wide, self.model.labels)
        self.linear = {"accuracy": alone.accuracy, "macro_f1": alone.macro_f1}

    def embed(self) -> None:
        """Classify and embed every document."""
        size = len(self.texts)
        answers = [
            self._answer(np.arange(start, min(start + 16_384, size)))
            for start in range(0, size, 16_384)
        ]
        self.vectors = np.concatenate([one.vectors for one in answers])
        self.said = [self.model.labels[row] for one in answers for row in one.choice]

    def cluster(self) -> None:
        """Group the vectors; sizes, keywords and exemplars of each group."""
        from nightshift.clustering import cluster
        from nightshift.naming import describe, exemplars

        config = self.pipeline.clusters
        self.found = found = cluster(self.vectors, config)
        cells = found.cells
        sample = np.random.default_rng(config.seed).permutation(len(self.texts))[:20_000]
        described = describe(
            [self.texts[row] for row in sample], found.places[sample], len(cells), config
        )
        cosines = (self.vectors * cells.centroids[found.places]).sum(1)
        nearest = np.argsort(found.distances, kind="stable")
        self.groups: list[dict[str, Any]] = []
        for place, one in enumerate(described):
            members = nearest[found.places[nearest] == place]
            near = members[: 4 * config.exemplars]
            shown = exemplars(self.vectors[near], cells.centroids[place],
                              [self.texts[row] for row in near], config.exemplars)  # fmt: skip
            self.groups.append({
                "cluster_id": f"c-{place + 1:04d}", "name": one.name, "event": "born",
                "parents": [], "size": len(members), "previous_size": None,
                "keywords": one.keywords, "cohesion": float(cosines[members].mean()),
                "exemplars": [str(near[row]) for row in shown],
            })  # fmt: skip

    def report(self, to: Path) -> None:
        """The same page."""
        from collections import Counter

        from nightshift.changes import place_all
        from nightshift.pictures import Point
        from nightshift.reports import NightReport, render
        from nightshift.sentences import digest_text

        most = self.pipeline.report.map_points
        rows = np.random.default_rng(1).permutation(len(self.texts))[:most]
        ids = [
            self.groups[place]["cluster_id"] if place >= 0 else "unassigned"
            for place in self.found.places[rows]
        ]
        points = [
            Point(float(x), float(y), one, self.said[row], self.texts[row])
            for one, row, (x, y) in zip(ids, rows, place_all(self.vectors[rows]), strict=True)
        ]
        now = datetime.now(UTC)
        page: NightReport = NightReport(
            "bare", NIGHT, 1, now, now, self.seconds, len(self.texts),
            languages=dict(Counter(one["lang"] for one in self.documents)),
            quality=self.scores, baseline=self.linear, label_counts=dict(Counter(self.said)),
            clusters=self.groups, cluster_quality=self.found.figures, points=points,
            examples={one: self.texts[int(one)] for g in self.groups for one in g["exemplars"]},
        )  # fmt: skip
        to.write_text(render(page, self.pipeline.report), encoding="utf-8")
        digest_text(page)


def bare(config: Path, name: str) -> dict[str, Any]:
    """Run the script on a pipeline; its seconds by stage, and its test accuracy."""
    from nightshift.pipeline import load_settings

    # First of all, as a night does: a stage's seconds then hold no imports of the library.
    for module in ("bundle", "clustering", "intake", "learning", "reports"):
        import_module(f"nightshift.{module}")
    night = Bare(load_settings(config).pipeline(name))
    night.seconds[AROUND] = time.time() - psutil.Process().create_time()
    for stage in ("ingest", "tokens", "train", "evaluate", "embed", "cluster"):
        with night.clock(stage):
            getattr(night, stage)()
    with night.clock("report"):
        night.report(config.parent / "bare.html")
    return {"seconds": night.seconds, "accuracy": night.scores.accuracy}


# --- results --------------------------------------------------------------------------------


def page(rows: dict[str, Any]) -> str:
    """The results as Markdown."""
    said = ["# What a night costs beyond its compute", "", *(__doc__ or "").splitlines()[4:], ""]
    for name, row in sorted(rows.items()):
        pairs = row["pairs"]
        shares = sorted(one["share"] for one in pairs)
        verdict = "holds" if median(shares) < ALLOWED else "MISSED"
        said += [
            f"## {name}", "", f"{row['day']}: {row['machine']}", "",
            f"**{median(shares):.1%} of the night is not compute** (median of {len(pairs)} pairs, "
            f"{shares[0]:.1%} to {shares[-1]:.1%}); under {ALLOWED:.0%} {verdict}.", "",
            *table(
                ["pair", "night", "of which server start", "bare script", "not compute"],
                [_line(number, pair) for number, pair in enumerate(pairs, 1)],
            ),
            "", "Median seconds by stage:", "",
            *table(
                ["stage", "night", "bare script", "difference"],
                [_stage(stage, pairs) for stage in (AROUND, *STAGES, BETWEEN)],
            ),
            "",
        ]  # fmt: skip
    return "\n".join(said)


def _line(number: int, pair: dict[str, Any]) -> list[str]:
    night, script = pair["night"], pair["bare"]
    return [
        str(number), f"{night['wall_seconds']:.1f}", f"{night['server_seconds']:.1f}",
        f"{script['wall_seconds']:.1f}", f"{pair['share']:.1%}",
    ]  # fmt: skip


def _stage(stage: str, pairs: list[dict[str, Any]]) -> list[str]:
    one, two = (
        median(pair[way]["seconds"].get(stage, 0.0) for pair in pairs) for way in ("night", "bare")
    )
    return [stage, f"{one:.2f}", f"{two:.2f}", f"{one - two:+.2f}"]


if __name__ == "__main__":
    sys.exit(main())
