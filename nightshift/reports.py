"""The morning page: finished tables -> one HTML file, and a digest for the terminal.

    NightReport (filled by the task) -> sentences.py, in the words of wording.py
                                     -> rows (here), pictures.py plots.py pedigree.py (SVG)
                                     -> atlas.py (the map's data)
                                     -> report.html with report.css and report.js inside

Nothing is computed twice: figures arrive finished, this file only compares them and shows them.
What a night did not have (labels, test rows, a yesterday) is said too.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from pydantic import Field

from . import exhibits, sentences
from .atlas import atlas, script_json
from .changes import cluster_events
from .config import Config
from .phrases import WORDS
from .pictures import (
    Point,
    clean,
    confusion_picture,
    cut,
    map_picture,
    stage_bar,
)
from .plots import curves_picture, flows_picture
from .scoring import Scores
from .sentences import linear_lead
from .wording import (
    Both,
    both,
    counted,
    counts,
    marked,
    plain,
    share,
    signed_points,
    text_of,
    words_of,
)

TEMPLATE = Path(__file__).with_name("report.html")
STYLE, SCRIPT = TEMPLATE.with_suffix(".css"), TEMPLATE.with_suffix(".js")

STATIC_POINTS = 400
"""Documents on the map of a browser without scripts, and in print."""
SCRIPTS = (
    ("zh-Hans", re.compile("[\u3400-\u9fff]")),
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
)
"""Languages whose letters want a font of their own; kana and hangul tell them from Chinese."""


class ReportConfig(Config):
    """What the report shows of a night, and how much of it."""

    language: Literal["en", "zh"] = "en"
    """The language in which the page opens and the digest is written; the page has both."""
    map_points: int = Field(default=20_000, ge=0, le=50_000)
    """Most documents on the map; more are sampled. 0 draws no map."""
    examples: int = Field(default=5, ge=0, le=20)
    """Documents shown per cluster, the nearest to its centre first."""
    explained: int = Field(default=9, ge=0, le=60)
    """Answers explained word by word, of the documents that deserve a look. 0 explains none."""
    text_length: int = Field(default=240, ge=40, le=5000)
    """Characters of a document shown at once; the rest is behind a fold."""
    review_url: str | None = Field(default=None, pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")
    """Where `nightshift review` is served, such as http://127.0.0.1:8100: documents that deserve a
    look lead there. null names the command instead."""


@dataclass(frozen=True)
class NightReport:
    """All that the page says of one night; what the night did not have is None or empty."""

    pipeline: str
    night: str
    number: int
    """1 is the pipeline's first night."""
    started: datetime
    finished: datetime
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage, in the order of the night."""

    documents: int = 0
    """New tonight: rows in = documents + duplicates + rejects."""
    duplicates: int = 0
    rejects: int = 0
    labelled: int = 0
    """Of the new documents."""
    documents_total: int = 0
    reject_reasons: dict[str, int] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `batches`."""
    languages: dict[str, int] = field(default_factory=dict)
    unknown_rate: float | None = None
    """Share of tonight's tokens that the tokenizer does not know."""

    champion: str | Both | None = None
    """The model that answers now, such as `version 3`."""
    trained: bool = False
    outcome: str = ""
    """The promotion's decision and reason, or why nothing was trained, in a sentence."""
    quality: Scores | None = None
    """Of the champion, on the test rows."""
    previous: dict[str, Any] | None = None
    """Figures to compare with, by the names of `Scores`."""
    previous_name: str = "yesterday"
    """Whose they are: yesterday's, or yesterday's model on tonight's rows, which is fairer."""
    challenger: Scores | None = None
    """Of the model trained tonight; shown where it did not become the champion."""
    baseline: dict[str, Any] | None = None
    """Accuracy and macro_f1 of TF-IDF and a linear model, on the same rows."""
    promotion: dict[str, Any] | None = None
    """Row of `promotions`; decision is `promoted` or `kept`, low and high bound the lead."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else was seen of the champion on the test rows: slices, reliability, mistakes, suspects,
    apart (its scores without near duplicates); texts are in `examples`."""
    near: dict[str, Any] = field(default_factory=dict)
    """Test documents that nearly stand in training: rows, of, share, threshold, examples; or a
    note why nobody looked."""
    curves: list[dict[str, float]] = field(default_factory=list)
    """Epochs of tonight's training."""
    checks: int = 0
    """Declared checks, one for each text."""
    failed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By model, such as `champion`: the checks it fails, each a sentence, and whether it must."""
    label_counts: dict[str, int] = field(default_factory=dict)
    """Predicted labels over the new documents."""

    clusters: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `clusters` without centroids, with previous_size (None where new)."""
    cluster_quality: dict[str, float] = field(default_factory=dict)
    """Of the clusters: silhouette, davies_bouldin, stability; with labels also cluster_accuracy and
    the like."""
    loose: list[dict[str, Any]] = field(default_factory=list)
    """The unassigned in groups of their own, the tightest first: size, keywords, exemplars."""
    examples: dict[str, str] = field(default_factory=dict)
    """Text by doc_id, for the clusters' exemplars."""
    points: list[Point] = field(default_factory=list)

    by_file: dict[str, Any] = field(default_factory=dict)
    """As `changes.by_file` has it."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Documents that are called otherwise, as `changes.label_changes` has them; empty where the
    model is the same."""
    ended: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `clusters` that ended tonight, with heirs and the keywords they had."""
    pedigree: str = ""
    """The clusters' picture of the last nights, SVG."""
    shift: dict[str, Any] = field(default_factory=dict)
    """Rows of `drift.split_shift`, the night compared with, documents [then, tonight], whether the
    model is another, and how many documents the old one was asked."""
    drift: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`drift.compare` against `last_night` and `training`, with the night's name."""
    standouts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What deserves a look, as `changes.standouts` has it."""
    explained: list[dict[str, Any]] = field(default_factory=list)
    """Explanations as JSON with their doc_id, as `explanations.explain` has them."""

    notes: list[str | Both] = field(default_factory=list)
    """Warnings of the night, in words."""
    links: dict[str, str] = field(default_factory=dict)
    """Name -> path or URL."""

    @property
    def events(self) -> dict[str, list[Mapping[str, Any]]]:
        """What happened to clusters tonight, by kind; nothing on the first night."""
        return cluster_events(self.clusters, self.ended) if self.number > 1 else {}

    @property
    def rows_in(self) -> int:
        """Rows read tonight."""
        return self.documents + self.duplicates + self.rejects

    @property
    def measured(self) -> Scores | None:
        """The champion's quality, if there was any row to measure it on."""
        return self.quality if self.quality and self.quality.rows else None

    @property
    def promoted(self) -> bool:
        """Whether tonight's model took over from another one, or as the first."""
        return bool(self.promotion) and self.promotion["decision"] == "promoted"


def render(report: NightReport, config: ReportConfig | None = None) -> str:
    """The whole page: one HTML file with a script of its own, that asks nothing of the network."""
    config = config or ReportConfig()
    script = SCRIPT.read_text(encoding="utf-8")
    page = _environment(config).from_string(TEMPLATE.read_text(encoding="utf-8"))
    quality = report.measured
    points = exhibits.spread(report.points, config.map_points)
    few = exhibits.spread(points, STATIC_POINTS)
    return page.render(
        night=report,
        language=config.language,
        style=Markup(STYLE.read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        interface=script_json(_interface()),
        said={name: both(lambda say, name=name: getattr(sentences, name)(report, say))
              for name in ("verdict", "against_yesterday", "against_linear", "leakage",
                           "drift_verdict")},
        champion=both(lambda say: _capital(str(say.said(report.champion or "")))),
        decided=both(lambda say: sentences.decided(report, say)),
        linear_leads=(linear_lead(report) or 0) >= 0.0005,
        on_the_gate=both(lambda say: sentences.on_the_gate(report.promotion, say)),
        paired=both(lambda say: sentences.paired(report.promotion, say)),
        previous=sentences.previous(report),
        comparison=exhibits.comparison(report),
        margin=exhibits.accuracy_margin(quality) if quality else None,
        classes=exhibits.weakest_first(quality) if quality else [],
        confusion=Markup(confusion_picture(quality.confusion, quality.labels)) if quality else "",
        interval=exhibits.interval(report.promotion),
        flows=Markup(flows_picture(report.changes["flows"])) if report.changes.get("flows") else "",
        events=exhibits.events(report),
        pedigree=Markup(report.pedigree),
        shifts=exhibits.shifts(report),
        drift=[exhibits.drift(kind, found) for kind, found in report.drift.items()],
        look=exhibits.look(report, config.review_url),
        review_url=config.review_url,
        explained=[exhibits.explained(one) for one in report.explained],
        slices=exhibits.slice_rows(report),
        reliability=exhibits.reliability(report.details),
        curves=Markup(curves_picture(report.curves)) if report.curves else "",
        labels=exhibits.bars(report.label_counts),
        cards=exhibits.cards(report, config),
        loose=report.loose[: exhibits.MOST_LOOSE],
        static_map=Markup(map_picture(few, report.clusters)) if few else "",
        static_points=len(few),
        map=atlas(points, report.clusters, report.night) if points else None,
        timing=Markup(stage_bar(report.seconds)) if report.seconds else "",
        total_seconds=sum(report.seconds.values()),
        links=[(name, to, exhibits.safe_link(to)) for name, to in report.links.items()],
    )  # fmt: skip


def _interface() -> dict[str, list[str]]:
    """The words that the script writes, by key."""
    keys = ("theme_auto", "theme_light", "theme_dark", "everything", "only_tonight", "unassigned")
    return {key: [*WORDS[key]] for key in keys}


def _environment(config: ReportConfig) -> Environment:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.globals.update(t=text_of, n=counts, w=words_of)
    environment.filters.update(
        count=counted,
        share=share,
        plain=plain,
        points=signed_points,
        fold=lambda text: exhibits.fold(text, config.text_length),
        short=lambda text: text if isinstance(text, Both) else cut(str(text), config.text_length),
        term=sentences.term,
        in_english=lambda text: text.en if isinstance(text, Both) else text,
        in_chinese=lambda text: text.zh if isinstance(text, Both) else text,
        script=script_of,
    )
    return environment


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _printable(value: Any) -> Any:
    """Every printed text is cleaned of what no reader should meet, then escaped."""
    if isinstance(value, Both):
        return marked(value)
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def script_of(text: str | None) -> Markup:
    """A `lang` attribute for a text whose letters want a font of their own, else nothing."""
    head = (text or "")[:400]
    for language, letters in reversed(SCRIPTS):
        if letters.search(head):
            return Markup(f' lang="{language}"')
    return Markup("")
