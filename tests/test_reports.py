from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from pydantic import ValidationError

from nightshift.exhibits import accuracy_margin, comparison, safe_link, slice_rows
from nightshift.pictures import (
    GREY,
    PALETTE,
    Point,
    clean,
    cluster_colours,
    confusion_picture,
    cut,
    interval_picture,
    lay_out,
    map_picture,
    stage_bar,
)
from nightshift.plots import curves_picture, reliability_picture
from nightshift.promotion import Judged, PromotionConfig, compare, judge
from nightshift.reports import SCRIPT, NightReport, ReportConfig, render
from nightshift.scoring import Scores
from nightshift.sentences import (
    against_linear,
    against_yesterday,
    decided,
    digest_text,
    in_chinese,
    leakage,
    on_the_gate,
    term,
    verdict,
)
from nightshift.wording import ZH

STARTED = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style></svg><img src=x onerror=alert(1)>",
    '" onload="alert(1)" \'',
    "]]><!-- &lt; &#0; {{ 7 * 7 }} {% raw %}",
    "bell \x07, null \x00, escape \x1b[31m, \ufffe",
    "lone \ud800 surrogate",
    "override \u202e txt.exe \u2066",
    "שלום עולם",
    "family 👩‍👩‍👧, 中文标题很长很长",
    "x" * 100_000,
]


def quality(accuracy: float = 0.8, labels: tuple[str, ...] = ("good", "bad")) -> Scores:
    per_class = [
        {"label": label, "precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 50}
        for label in labels
    ]
    right, wrong = 40, 10
    confusion = [
        [right if row == column else wrong for column in range(len(labels))]
        for row in range(len(labels))
    ]
    return Scores(100, accuracy, accuracy - 0.01, 0.5, 0.03, list(labels), per_class, confusion)


def cluster(number: int, name: str, **more: Any) -> dict[str, Any]:
    return {
        "cluster_id": f"c-{number:04d}",
        "name": name,
        "event": "continued",
        "size": 100 - number,
        "cohesion": 0.7,
        "keywords": ["soup", "fish"],
        "exemplars": ["d-1", "d-2"],
        "previous_size": 90 - number,
    } | more


def third_night(**changes: Any) -> NightReport:
    night = NightReport(
        pipeline="reviews",
        night="2026-11-22",
        number=3,
        started=STARTED,
        finished=STARTED + timedelta(seconds=75),
        seconds={"ingest": 1.5, "train": 60.0},
        documents=90,
        duplicates=7,
        rejects=3,
        labelled=45,
        documents_total=290,
        reject_reasons={"no_text": 2, "id_reused": 1},
        files=[{"uri": "in/a.csv", "rows": 100, "kept": 90, "duplicates": 7, "rejects": 3,
                "problem": None}],
        languages={"en": 80, "zh": 10},
        unknown_rate=0.01,
        champion="version 3",
        trained=True,
        outcome="Promoted: better on the gate rows by 2.0 points.",
        quality=quality(0.8),
        previous={"accuracy": 0.78, "macro_f1": 0.79, "log_loss": 0.45},
        baseline={"accuracy": 0.75, "macro_f1": 0.74},
        promotion={"champion_score": 0.8, "challenger_score": 0.82, "low": 0.01, "high": 0.03,
                   "rows": 200, "metric": "macro_f1", "decision": "promoted", "reason": "better"},
        label_counts={"good": 60, "bad": 30},
        clusters=[cluster(1, "soup, fish"), cluster(2, "music", event="born", previous_size=None)],
        cluster_quality={"silhouette": 0.2, "davies_bouldin": 1.5, "stability": 0.75},
        loose=[{"size": 12, "keywords": ["<refund>", "fee"], "exemplars": ["d-3", "d-9"]}],
        examples={"d-1": "The soup was cold.", "d-2": "The fish was good.",
                  "d-3": "They want a <refund>."},
        points=[Point(0, 0, "c-0001", "bad", "The soup was cold."),
                Point(1, 2, "c-0002", None, "The music was loud.")],
        links={"MLflow run": "http://localhost:5000/#/runs/1"},
    )  # fmt: skip
    return replace(night, **changes)


def empty_night(**changes: Any) -> NightReport:
    return replace(NightReport("reviews", "2026-11-23", 4, STARTED, STARTED), **changes)


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, and all English text."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._inside = ""
        self._chinese = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag != "span":
            self.text += " "
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "span" and (self._chinese or dict(attrs).get("class") == "zh"):
            self._chinese += 1

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        if tag != "span":
            self.text += " "
        if tag == "span" and self._chinese:
            self._chinese -= 1

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, said = self.scripts.pop()
            self.scripts.append((attributes, said + data))
        elif self._inside != "style" and not self._chinese:
            # Spans of a language stand between other words, where no space is.
            self.text += data


def assert_harmless(page: Page) -> None:
    policy = next(
        attributes["content"] or ""
        for _, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    for attributes, said in page.scripts:
        if attributes.get("type") == "application/json":
            json.loads(said)
            assert "<" not in said
            continue
        assert attributes == {}
        assert said == SCRIPT.read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(said.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}';" in policy
    assert sum(attributes == {} for attributes, _ in page.scripts) == 1
    for tag, attributes in page.elements:
        assert tag not in {"img", "iframe", "object", "link", "base", "form"}
        assert not [name for name in attributes if name.startswith("on")]
        assert not {"src", "xlink:href", "srcset"} & set(attributes)


def words(html: str) -> str:
    return " ".join(Page(html).text.split())


# --- hostile text


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_harmless_everywhere_on_the_page(text: str):
    short = text[:200]
    night = third_night(
        pipeline=short,
        outcome=short,
        champion=short,
        quality=quality(labels=(short, "b")),
        label_counts={short: 3},
        clusters=[cluster(1, short, keywords=[short], event=short)],
        examples={"d-1": text, "d-2": text},
        points=[Point(0, 0, "c-0001", short, text)],
        notes=[short],
        links={short: short},
        files=[{"uri": short, "rows": 1, "kept": 1, "duplicates": 0, "rejects": 0,
                "problem": short}],
        reject_reasons={short: 3},
        languages={short: 1},
        seconds={short: 1.0},
    )  # fmt: skip
    html = render(night, ReportConfig())
    html.encode("utf-8")
    page = Page(html)
    assert_harmless(page)
    assert sum(tag == "title" for tag, _ in page.elements) > 1
    digest_text(night).encode("utf-8")


def details(text: str = "Refund?") -> dict[str, Any]:
    bins = [{"confidence": 0.6, "accuracy": 0.5, "rows": 40}]
    return {
        "slices": [
            {"kind": "language", "name": text, "rows": 60, "accuracy": 0.5, "low": 0.38,
             "high": 0.62, "macro_f1": 0.49},
            {"kind": "language", "name": "zh", "rows": 40, "accuracy": 0.9, "low": 0.77,
             "high": 0.96, "macro_f1": 0.88},
            {"kind": "region", "name": "north", "rows": 100, "accuracy": 0.8, "low": 0.71,
             "high": 0.87, "macro_f1": 0.8},
        ],
        "reliability": {"before": bins, "after": bins, "error_before": 0.125, "error_after": 0.1},
        "mistakes": [{"doc_id": "d-1", "label": text, "said": text, "probability": 0.98}],
        "suspects": [{"doc_id": "d-2", "label": text, "suggested": text, "margin": -0.9,
                      "side": "test"}],
        "suspected": 7,
        "label_error_share": 0.031,
        "apart": {"rows": 96, "accuracy": 0.79, "macro_f1": 0.78},
        "failed": [],
    }  # fmt: skip


def evaluated_night(text: str = "Refund?", **changes: Any) -> NightReport:
    return third_night(
        details=details(text),
        near={"rows": 4, "of": 100, "share": 0.04, "threshold": 0.6,
              "examples": [{"doc_id": "d-1", "like": "d-2", "similarity": 0.75}]},
        curves=[{"epoch": n, "train_loss": 1 / n, "validation_loss": 1.2 / n,
                 "validation_accuracy": 0.9} for n in (1, 2, 3)],
        checks=5,
        failed={"champion": [], "challenger": [{"must": True, "sentence": text},
                                               {"must": False, "sentence": text}]},
        examples={"d-1": text, "d-2": text},
        **changes,
    )  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_harmless_in_what_was_evaluated(text: str):
    page = Page(render(evaluated_night(text)))
    assert_harmless(page)
    html = render(evaluated_night(text))
    assert len(html) < 150_000
    html.encode("utf-8")


def test_the_page_tells_slices_calibration_mistakes_suspects_near_duplicates_and_checks():
    html = render(evaluated_night())
    said = words(html)
    assert "Language Refund? 60 50.0% 38.0% to 62.0% 49.0%" in said
    assert "region north 100 80.0% 71.0% to 87.0% 80.0%" in said
    assert "uncalibrated, error 0.125" in said
    assert "calibrated, error 0.100" in said
    assert "epoch 3 was kept" in said
    assert "7 labels of test and gate rows" in said
    assert "takes 3.1% of them all for wrong" in said
    assert "4 of 100 test rows (4.0%) are near duplicates of training rows" in said
    assert "Without them the accuracy is 79.0% instead of 80.0%." in said
    assert "The champion passes all 5 checks. The challenger fails 2 of 5 checks." in said
    assert said.count("Refund? (must hold)") == 1


def test_only_a_slice_that_is_surely_below_all_rows_is_coloured():
    tones = [row["tone"] for row in slice_rows(evaluated_night())]
    assert tones == ["worse", "", ""]
    assert [row["kind"] for row in slice_rows(evaluated_night())] == ["Language", "", "region"]


def test_a_night_that_evaluated_nothing_has_no_such_sections():
    html = render(third_night())
    for name in ("slices", "training", "mistakes", "leakage", "checks"):
        assert f'id="{name}"' not in html
        assert f'href="#{name}"' not in html
    assert 'id="slices"' not in render(evaluated_night(quality=None))


def test_near_duplicates_that_nobody_looked_for_are_said_so():
    note = "1,000,000 training and test documents are more than evaluation.near_documents (200,000)"
    assert words(render(third_night(near={"note": note}))).count(note) == 1
    none = {"rows": 0, "of": 9, "share": 0.0, "threshold": 0.6, "examples": []}
    assert leakage(third_night(near=none)).startswith("No test row is a near duplicate")


def test_curves_and_reliability_are_drawn_where_values_stand():
    bins = [{"confidence": 0.5, "accuracy": 0.5, "rows": 3}]
    picture = reliability_picture(bins, bins, (0.1, 0.2))
    # The frame is 46 to 428 across and 40 to 262 down: its middle is 237, 151.
    assert picture.count('cx="237.0" cy="151.0"') == 2
    ElementTree.fromstring(picture)
    epochs = [{"epoch": n, "train_loss": loss, "validation_loss": loss, "validation_accuracy": 0.5}
              for n, loss in ((1, 3.0), (2, 1.0), (3, 2.0))]  # fmt: skip
    picture = curves_picture(epochs)
    assert "epoch 2 was kept" in picture
    # The highest loss is at the top of its panel, the lowest at its ground.
    assert 'cx="46.0" cy="40.0"' in picture
    assert 'cx="237.0" cy="146.0"' in picture
    ElementTree.fromstring(picture)


def test_curves_of_one_epoch_or_of_losses_that_left_the_numbers_are_still_a_picture():
    one = {"epoch": 1, "train_loss": 0.5, "validation_loss": 0.5, "validation_accuracy": 1.0}
    lost = {**one, "epoch": 2, "train_loss": float("nan"), "validation_loss": float("inf")}
    for epochs in ([], [one], [one, lost], [lost]):
        picture = curves_picture(epochs)
        assert "nan" not in picture
        assert "inf" not in picture.replace("info", "")
        ElementTree.fromstring(picture)


def test_template_syntax_in_a_text_is_only_text():
    assert "{{ 7 * 7 }} {% raw %}" in words(render(third_night(notes=["{{ 7 * 7 }} {% raw %}"])))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_leaves_pictures_well_formed(text: str):
    pictures = [
        confusion_picture([[3, 1], [0, 2]], [text, "b"]),
        map_picture([Point(0, 0, "c-0001", text, text)], [cluster(1, text)]),
        stage_bar({text: 1.0}),
    ]
    for picture in pictures:
        root = ElementTree.fromstring(picture.encode("utf-8"))
        names = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert names <= {"svg", "style", "rect", "g", "title", "text", "circle", "path"}
        assert not [name for one in root.iter() for name in one.attrib if name.startswith("on")]
        assert len(picture) < 20_000


def test_text_itself_is_kept_and_only_the_unreadable_is_dropped():
    assert clean("a\x00b\u202ec\ud800d\te\n👩‍👧") == "abc\ufffdd\te\n👩‍👧"
    html = render(third_night(examples={"d-1": "<script>alert(1)</script> & more"}))
    assert "<script>alert(1)</script> & more" in words(html)


def test_page_asks_nothing_of_the_network():
    html = render(third_night())
    policy = next(
        attributes["content"]
        for tag, attributes in Page(html).elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    assert not re.search(r"url\(|@import", html)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", html))
    assert addresses == {"http://www.w3.org/2000/svg", "http://localhost:5000/#/runs/1"}


def test_links_lead_only_where_nothing_runs():
    assert safe_link("https://example.org/a b") == "https://example.org/a b"
    assert safe_link("data/lake/my reviews") == "data/lake/my reviews"
    for to in (
        "javascript:alert(1)",
        " JaVa\tScript:alert(1)",
        "data:text/html,x",
        "\x00vbscript:x",
    ):
        assert safe_link(to) is None


def test_every_document_text_sets_its_own_direction():
    html = render(third_night(examples={"d-1": "שלום", "d-2": "hello"}))
    # Two clusters of two exemplars; the one that was born and the one that grew show one more.
    assert html.count('<p class="passage" dir="auto">') == 4 + 2


def test_a_very_long_text_is_folded_and_its_length_is_told():
    html = render(third_night(examples={"d-1": "y" * 100_000}), ReportConfig(text_length=200))
    assert "97,800 more characters not shown" in words(html)
    assert len(html) < 70_000


# --- nights of every kind


def test_third_night_tells_what_changed():
    assert verdict(third_night()) == (
        "90 new documents tonight; version 3 took over and is right on 80.0% of the test rows, "
        "2.0 points better than yesterday; 2 clusters, 1 of them new."
    )
    page = words(render(third_night()))
    assert "100 rows in = 90 new documents + 7 duplicates + 3 rejects" in page
    assert "no text 2" in page
    assert "id reused 1" in page
    assert "+10 tonight" in page
    assert "new tonight" in page
    assert "Macro-F1 on 200 gate rows: champion 80.0%, challenger 82.0%." in page


def test_first_night_has_no_yesterday():
    night = third_night(number=1, previous=None)
    assert verdict(night).startswith("90 new documents on the first night; version 3 is the first")
    assert "new" not in verdict(night).partition("clusters")[2]
    page = words(render(night))
    assert "This is the first night, so there is no yesterday to compare with." in page
    assert "new tonight" not in page


def test_empty_night_says_so_in_every_section():
    assert verdict(empty_night()) == "Nothing new arrived tonight; no classifier answers yet."
    page = words(render(empty_night()))
    for sentence in (
        "No row arrived tonight, so every table stands as it did yesterday.",
        "There is no classifier, so there is nothing to measure.",
        "No model was trained tonight.",
        "can be told once labelled test rows exist",
        "There are no clusters yet",
        "No map tonight",
        "No new file was found.",
    ):
        assert sentence in page


def test_night_of_nothing_but_duplicates_is_not_called_empty():
    night = empty_night(duplicates=5, champion="version 2", clusters=[cluster(1, "soup")])
    assert verdict(night) == (
        "5 rows arrived, none of them a new document; version 2 still answers, without test rows "
        "to measure it on; 1 cluster."
    )
    assert "5 rows in = 0 new documents + 5 duplicates + 0 rejects" in words(render(night))


def test_night_without_labels_still_shows_its_clusters():
    night = third_night(
        champion=None, quality=None, previous=None, baseline=None, promotion=None, trained=False,
        labelled=0, label_counts={}, outcome="No document has a label, so nothing was trained.",
    )  # fmt: skip
    assert verdict(night) == (
        "90 new documents tonight; no classifier answers yet; 2 clusters, 1 of them new."
    )
    page = words(render(night))
    assert "None of the new ones came with a label." in page
    assert "No document has a label, so nothing was trained." in page
    assert "The soup was cold." in page


def test_model_without_test_rows_is_not_given_a_quality():
    page = words(render(third_night(quality=None, previous=None, champion="version 3")))
    assert "Version 3 answers, but no labelled document is on the test side" in page


def test_quality_of_no_test_rows_draws_no_confusion():
    none = Scores(0, float("nan"), float("nan"), float("nan"), float("nan"), [], [], [])
    assert accuracy_margin(none) is None
    assert "without test rows to measure it on" in verdict(third_night(quality=none))
    assert "can be told once labelled test rows exist" in words(render(third_night(quality=none)))


def test_losing_challenger_is_shown_beside_the_champion():
    assert (
        "Challenger"
        not in words(render(third_night(challenger=quality(0.8)))).partition("Model")[0]
    )
    rows = comparison(third_night(challenger=quality(0.7)))
    assert [row["challenger"] for row in rows] == ["70.0%", "69.0%", "0.500", "0.030"]


# --- figures in words


@pytest.mark.parametrize(
    ("then", "sentence"),
    [
        (0.78, "Accuracy is 2.0 points better than yesterday: 80.0% against 78.0%."),
        (0.81, "Accuracy is 1.0 point worse than yesterday: 80.0% against 81.0%."),
        (0.8, "Accuracy is 80.0%, the same as yesterday."),
        (None, "The night before has no figures to compare with."),
    ],
)
def test_accuracy_is_compared_with_yesterday_in_a_sentence(then: float | None, sentence: str):
    assert against_yesterday(third_night(previous={"accuracy": then})) == sentence


@pytest.mark.parametrize(
    ("linear", "sentence"),
    [
        (0.75, "The model is 5.0 points ahead of a linear one on TF-IDF: 80.0% against 75.0%."),
        (0.8, "A linear model on TF-IDF alone does as well: both 80.0%."),
        (None, "No linear baseline was measured tonight."),
    ],
)
def test_network_is_compared_with_the_linear_baseline(linear: float | None, sentence: str):
    assert against_linear(third_night(baseline={"accuracy": linear})) == sentence


def test_page_says_plainly_that_the_linear_baseline_is_better():
    page = words(render(third_night(baseline={"accuracy": 0.83, "macro_f1": 0.8})))
    assert "is 3.0 points better: 83.0% against 80.0%." in page
    assert "the network does not earn its cost" in page


def test_comparison_colours_a_higher_loss_as_worse():
    rows = {row["title"]: row for row in comparison(third_night())}
    assert rows["Accuracy"]["change"] == "+2.0 points"
    assert rows["Accuracy"]["tone"] == "better"
    assert rows["Log loss"]["change"] == "+0.050"
    assert rows["Log loss"]["tone"] == "worse"
    assert rows["Macro-F1"]["change"] == "no change"
    assert rows["Calibration error"]["then"] == "–"


def test_accuracy_margin_is_two_standard_errors():
    # 1.96 * sqrt(0.8 * 0.2 / 100) = 1.96 * 0.04
    assert accuracy_margin(quality(0.8)) == pytest.approx(0.0784)


def test_digest_is_twelve_plain_lines():
    lines = digest_text(third_night(notes=["Two\nlines", "another"])).split("\n")
    assert len(lines) == 12
    assert lines[0] == "night      reviews 2026-11-22, night 3, 61.5 seconds"
    assert lines[2] == "rows       100 in = 90 kept + 7 duplicates + 3 rejects"
    assert lines[3] == "documents  290 in all, 45 of tonight's labelled"
    assert lines[4] == "quality    accuracy 80.0%, macro-F1 79.0%, on 100 test rows"
    assert lines[7] == "clusters   2; the largest: soup, fish (99), music (98)"
    assert lines[8] == "changed    1 cluster born"
    assert lines[9] == "drift      There is no earlier night to compare with."
    assert lines[11] == "notes      Two lines (and 1 more in the report)"


def test_digest_of_an_empty_night_is_twelve_lines_too():
    lines = digest_text(empty_night()).split("\n")
    assert len(lines) == 12
    assert lines[4] == "quality    not measured: no classifier, or no test rows"
    assert lines[11] == "notes      nothing unusual"


# --- pictures


def texts(svg: str, kind: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [one.text or "" for one in root.iter(f"{{http://www.w3.org/2000/svg}}{kind}")]


def test_confusion_writes_counts_and_explains_each_cell():
    svg = confusion_picture([[3, 1], [0, 2]], ["soup", "fish"])
    assert {"3", "1", "2"} <= set(texts(svg, "text"))
    assert "0" not in texts(svg, "text")
    assert "soup, taken for fish: 1 of 4 (25.0%)" in texts(svg, "title")
    assert "fish, recognised: 2 of 2 (100.0%)" in texts(svg, "title")


def test_confusion_of_a_hundred_classes_shades_without_counts():
    matrix = np.eye(100, dtype=int) * 1234
    svg = confusion_picture(matrix.tolist(), [f"class {n}" for n in range(100)])
    assert "class 99" in texts(svg, "text")
    assert "1234" not in texts(svg, "text")
    assert len(svg) < 100_000


def test_confusion_of_more_classes_keeps_the_largest_and_says_so():
    matrix = np.diag(np.arange(150)).tolist()
    svg = confusion_picture(matrix, [f"class {n}" for n in range(150)])
    assert "class 49" not in texts(svg, "text")
    assert "class 50" in texts(svg, "text")
    assert any("the 100 largest of 150 classes" in text for text in texts(svg, "text"))


def test_confusion_without_classes_says_there_are_no_test_rows():
    assert texts(confusion_picture([], []), "text") == ["no test rows"]


def test_page_of_a_hundred_classes_folds_all_but_the_weakest():
    labels = tuple(f"class {n}" for n in range(100))
    page = words(render(third_night(quality=quality(labels=labels))))
    assert "The twenty weakest of 100 classes." in page
    assert "the other 80" in page


def test_largest_clusters_have_colours_and_the_rest_are_grey():
    clusters = [cluster(number, f"topic {number}") for number in range(1, 21)]
    colours = cluster_colours(clusters)
    assert colours["c-0001"] == PALETTE[0]
    assert list(colours.values()).count(GREY) == 20 - len(PALETTE)


def test_resting_on_a_dot_shows_the_cut_document():
    points = [Point(0, 0, "c-0001", "bad", "word " * 100), Point(1, 1, "c-0009", None, "short")]
    about = texts(map_picture(points, [cluster(1, "soup")]), "title")
    assert any(one.startswith("soup · bad\n") and one.count("word") < 30 for one in about)
    assert "c-0009\n\u2068short\u2069" in about


def test_names_of_clusters_in_one_place_do_not_cover_each_other():
    clusters = [cluster(number, "the same long name") for number in range(1, 21)]
    points = [Point(5, 5, one["cluster_id"], None, "text") for one in clusters]
    assert len(texts(map_picture(points, clusters), "text")) == 5


def test_map_of_one_point_or_of_broken_places_is_drawn():
    for point in (Point(3, 3, "c-1", None, ""), Point(float("nan"), float("inf"), "c-1", None, "")):
        ElementTree.fromstring(map_picture([point], []))


def test_page_samples_the_map_to_its_most_points():
    points = [Point(n, n, "c-0001", None, f"text {n}") for n in range(100)]
    html = render(third_night(points=points), ReportConfig(map_points=10))
    assert html.count("<circle cx=") == 10
    assert "No map tonight" in words(render(third_night(points=points), ReportConfig(map_points=0)))


def test_stage_bar_names_every_stage_with_its_seconds():
    assert texts(stage_bar({"ingest": 1.5, "train": 60.0}), "text") == [
        "ingest", "1.5 s", "train", "60.0 s",
    ]  # fmt: skip
    ElementTree.fromstring(stage_bar({}))


def test_interval_stays_inside_its_picture():
    root = ElementTree.fromstring(interval_picture(0.02, -0.9, 0.9))
    dots = [float(one.attrib["cx"]) for one in root.iter() if one.tag.endswith("circle")]
    assert all(0 < x < 436 for x in dots)


def test_cut_keeps_one_line_and_tells_that_there_was_more():
    assert cut("a  b\nc", 10) == "a b c"
    assert cut("abcdefghij", 5) == "abcd…"
    assert cut(" " * 100_000 + "x", 5) == "…"


# --- the map's layout


@pytest.mark.parametrize("count", [0, 1, 2, 3, 29, 60])
def test_layout_places_any_number_of_documents(count: int):
    vectors = np.random.default_rng(1).normal(size=(count, 8)).astype(np.float32)
    places = lay_out(vectors, seed=1)
    assert places.shape == (count, 2)
    assert places.dtype == np.float32
    assert np.isfinite(places).all()


def test_layout_of_equal_vectors_is_one_place():
    assert not lay_out(np.ones((50, 8), np.float32)).any()
    assert lay_out(np.full((40, 8), np.nan, np.float32)).shape == (40, 2)


def test_layout_of_the_same_seed_is_the_same():
    vectors = np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)
    assert np.array_equal(lay_out(vectors, seed=3), lay_out(vectors, seed=3))


def test_layout_keeps_two_groups_apart():
    vectors = np.zeros((60, 8), np.float32)
    vectors[:30, 0], vectors[30:, 1] = 1, 1
    vectors += np.random.default_rng(1).normal(scale=0.01, size=vectors.shape).astype(np.float32)
    places = lay_out(vectors)
    inside = np.linalg.norm(places[:30] - places[:30].mean(axis=0), axis=1).mean()
    assert np.linalg.norm(places[:30].mean(axis=0) - places[30:].mean(axis=0)) > 2 * inside


def test_the_unassigned_are_shown_in_groups_with_those_of_their_texts_that_are_there() -> None:
    page = render(third_night())
    assert "12 documents are far from every cluster." in page
    assert "<summary>12 · <bdi>&lt;refund&gt;</bdi>, <bdi>fee</bdi></summary>" in page
    assert "They want a &lt;refund&gt;." in page
    assert "far from every cluster" not in render(third_night(loose=[]))


# --- the decision, in words ------------------------------------------------------------------

FIGURES = (
    "accuracy 0.9012 against 0.8934 on 531 gate rows (lead +0.0078, 95% interval +0.0012 to "
    "+0.0143; 12 rows won, 3 lost, p 0.035)"
)


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        (f"the challenger is proved better: {FIGURES}", "The challenger is proved better."),
        (
            f"the challenger is proved better: {FIGURES}; but class 'a' falls from F1 0.90 to 0.50 "
            "on 20 rows",
            "The challenger is proved better; but class 'a' falls from F1 0.90 to 0.50 on 20 rows.",
        ),
        (f"promotion.policy is always: {FIGURES}", "Because promotion.policy is always."),
        (
            f"the challenger is better: it knows x, which the champion does not; {FIGURES}",
            "The challenger is better: it knows x, which the champion does not.",
        ),
        ("the first classifier becomes champion", "The first classifier becomes champion."),
    ],
)
def test_a_decision_is_a_sentence_without_the_figures_beside_it(reason: str, sentence: str) -> None:
    assert decided(third_night(outcome=reason)) == sentence
    # A digest has no other place for them.
    assert reason in digest_text(third_night(outcome=reason))


def reasons() -> list[str]:
    """What the ledger may say, by the functions that say it where they need no lake."""
    rows = ["a", "b"] * 60
    wrong = ["b" if n < 30 else one for n, one in enumerate(rows)]
    found: list[str] = []
    for policy in ("better", "not_worse", "always", "manual"):
        for old, new, classes in ((rows, wrong, "ab"), (wrong, rows, "ab"), (rows, rows, "abcde"),
                                  (rows, wrong, "abc")):  # fmt: skip
            sides = Judged(old, ["a", "b"], 1.0), Judged(new, [*classes], 3.0)
            config = PromotionConfig(policy=policy, class_margin=0.01, floors={"language": 0.01},
                                     slower=2.0)  # fmt: skip
            slices = {"language": ["en", "zh"] * 60}
            found.append(judge(compare(rows, *sides, config, slices), config).reason)
    return [
        *found,
        "the champion stays: nothing new to learn from",
        "the champion stays: the newest classifier did not become champion, and since then neither "
        "labels, config nor code have changed: it would come out the same",
        "there is no champion: no document is labelled",
        "there is no champion: 8 labelled training documents, and train.min_rows is 20",
        "there is no champion: all 8 labelled training documents say 'a': one class",
        "there is no champion: there are no documents yet",
        "a network that learned clusters replaces corpus vectors",
        "corpus vectors, learned anew (the corpus has grown from 80 to 900 documents)",
        "the first model (a network that learned clusters) becomes champion",
        "the challenger is the champion, bit by bit",
        "promotion.policy is better, and no labelled document is on the gate side",
        "no labelled document is on the test side",
    ]


def test_what_the_ledger_says_of_a_model_has_chinese() -> None:
    known = {"promotion.policy", "train.min_rows", "manual", "always", "better", "not_worse",
             "language", "en", "zh", "a", "b", "c", "d", "e", "F1", "p"}  # fmt: skip
    for reason in reasons():
        left = set(re.findall(r"[A-Za-z][\w.]*", in_chinese(reason))) - known
        assert not left, (reason, in_chinese(reason))
    assert in_chinese(f"the challenger is not proved better: {FIGURES}") == (
        "未能证明挑战者更好：准确率 0.9012 对 0.8934，531 行把关数据（领先 +0.0078，"
        "95% 区间 +0.0012 至 +0.0143；赢 12 行，输 3 行，p 0.035）"
    )
    # A person's own words stay theirs.
    assert in_chinese("ada promoted version 3: it reads better") == (
        "ada 晋升版本 3：it reads better"
    )
    assert decided(third_night(outcome="as ada said"), ZH) == "As ada said."


def test_names_that_tables_have_in_english_are_chinese_on_a_chinese_page() -> None:
    assert [term(one).zh for one in ("no text", "6 to 9 tokens", "1 token", "new champion")] == [
        "没有文本",
        "6 至 9 个词元",
        "1 个词元",
        "新冠军",
    ]
    html = render(evaluated_night())
    assert '<span class="zh" lang="zh-Hans">没有文本</span>' in html
    assert "冠军通过了全部5 项检查。" in html
    # A class or a region may be called so, and keeps its name.
    night = third_night(details={"slices": [{**details()["slices"][2], "name": "other"}]})
    assert slice_rows(night)[0]["name"] == "other"


def test_the_gates_sentence_says_its_measure_in_chinese_and_who_won_which_rows() -> None:
    row = {"champion_score": 0.8, "challenger_score": 0.82, "rows": 200, "metric": "accuracy",
           "wins": 9, "losses": 5}  # fmt: skip
    assert on_the_gate(row, ZH).startswith("准确率，200 行把关数据：冠军 80.0%，挑战者 82.0%。")
    assert on_the_gate(row).endswith(
        " The challenger alone is right on 9 of them, the champion alone on 5."
    )


# --- what deserves a look --------------------------------------------------------------------


def looked_at(**changes: Any) -> NightReport:
    row = {"doc_id": "d/1&?", "label": "good", "given": True, "probability": 0.5,
           "cluster_id": "unassigned", "margin": 0.01}  # fmt: skip
    standouts = {"unsure": [row], "surprising": [], "disagreeing": []}
    return third_night(standouts=standouts, details={"suspects": [], "slices": []}, **changes)


def test_a_list_without_a_document_says_so() -> None:
    said = words(render(looked_at()))
    assert "Most surprising None tonight." in said
    assert "Suspected wrong labels None tonight." in said
    # Where there were no test rows, nobody looked for them.
    said = words(render(replace(looked_at(), details={})))
    assert "Suspected wrong labels" not in said


def test_documents_that_deserve_a_look_lead_to_the_review_page_or_name_its_command() -> None:
    assert "nightshift review reviews" in words(render(looked_at()))
    html = render(looked_at(), ReportConfig(review_url="https://review.example/n/"))
    links = [attributes.get("href") for tag, attributes in Page(html).elements if tag == "a"]
    assert "https://review.example/n/review?queue=unsure&doc=d%2F1%26%3F" in links
    assert "nightshift review" not in words(html)


@pytest.mark.parametrize("url", ["javascript:alert(1)", "ftp://x", "http://u:p@x", "https://x?a"])
def test_a_review_page_is_reached_by_http_without_secrets(url: str) -> None:
    with pytest.raises(ValidationError, match="review_url"):
        ReportConfig(review_url=url)


def test_who_is_in_no_cluster_is_called_so_in_chinese_too() -> None:
    html = render(looked_at())
    cell = html.partition('id="look-unsure"')[2].partition("</tr>\n</tbody>")[0]
    assert "未归类" in cell
    assert "unassigned" not in cell


def test_the_numbers_of_an_explained_answer_stand_in_a_table() -> None:
    word = {"text": "cold", "start": 0, "end": 4, "network": -0.25, "wide": None, "together": -0.5,
            "attention": 0.75, "probability": 0.8}  # fmt: skip
    one = {"doc_id": "d-1", "text": "cold soup", "label": "good", "probability": 0.8,
           "abstained": False,
           "words": [word, *({**word, "together": n / 100} for n in range(24))]}  # fmt: skip
    html = render(third_night(explained=[one]))
    said = words(html)
    assert "cold −50.0% −0.250 – 75.0% 80.0% cold +23.0%" in said
    assert "The 20 strongest of 25 words." in said
    assert "合计" in html
    assert ">100%</text>" in html
    assert ">0%</text>" in html
