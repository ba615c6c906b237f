"""Where a text is known again, and what stands there after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nightshift.cleaning import CleaningConfig
from nightshift.erasure import Forgotten, forgotten_since, rewrite, words_only_of
from nightshift.tables import Lake, rows_of

LONG = (
    "Dear team, I am Zelda Marchbanks and my parcel, which I ordered on the third of May, has "
    "still not arrived; nobody at the depot answers & I want my money back at once, thank you."
)
SHORT = "ok"


@pytest.fixture
def gone() -> Forgotten:
    return Forgotten(frozenset({"d-1"}), [LONG, SHORT], words=frozenset({"marchbanks"}))


@pytest.mark.parametrize(
    "said",
    [
        LONG,
        LONG[:60] + "…",
        "…" + LONG[70:120],
        "  Dear team, I am Zelda\n Marchbanks and my parcel,  which",
        f'{{"id": 4, "text": "{LONG}", "label": ',
        SHORT,
        " \u2068ok\u2069 ",
    ],
)
def test_a_line_shows_a_text_whole_in_part_or_inside_another(gone: Forgotten, said: str) -> None:
    assert gone.shows(said)


@pytest.mark.parametrize("said", ["", "…", "Dear team", "it looks ok to me", "another parcel came"])
def test_other_lines_are_left(gone: Forgotten, said: str) -> None:
    assert not gone.shows(said)


def test_a_row_as_its_file_had_it_is_known_before_it_was_cleaned() -> None:
    gone = Forgotten(frozenset(), [LONG], CleaningConfig(html=True))
    assert gone.shows_raw("<p>" + LONG.replace("&", "&amp;").replace("Zelda", "<b>Zelda</b>"))


HEADLINE = "北京地铁十号线停运"
LETTER = 'Dear Sir,\nI am Zelda Marchbanks 🙂 and this is 北京: where is my parcel, the "red" one?'
OF_TWO = Forgotten(frozenset({"r-1041"}), [HEADLINE, LETTER, "ok"])


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(f'{{"id": 4, "text": "{HEADLINE}", "label": ', id="a short text, JSON"),
        pytest.param(f'4,{HEADLINE},news,"', id="a short text, CSV"),
        pytest.param(f"4\t{HEADLINE}\tnews", id="a short text, tabs"),
        pytest.param("text: " + json.dumps(LETTER, ensure_ascii=False)[:60], id="a newline"),
        pytest.param('7,"' + LETTER.replace('"', '""') + '",news,more', id="doubled quotes"),
        pytest.param('{"id": 4, "text": "Dear Sir,\\nI am Zel', id="cut after a prefix"),
        pytest.param('{"id": 4, "text": "北京地', id="cut, Chinese"),
        pytest.param('{"text": ' + json.dumps(HEADLINE) + ', "la', id="escapes, short"),
        pytest.param('{"id": 4, "text": ' + json.dumps(LETTER), id="escapes"),
        pytest.param('{"text": ' + json.dumps(HEADLINE)[:22], id="cut within an escape"),
        pytest.param('"{""text"": ' + json.dumps(LETTER).replace('"', '""'), id="JSON in CSV"),
        pytest.param('{"text": "ok", "label": ', id="two letters that fill a field"),
        pytest.param('{"id": "r-1041", "text": 17}', id="its id"),
    ],
)
def test_a_row_that_could_not_be_read_shows_a_text_however_it_is_written(raw: str) -> None:
    assert OF_TWO.shows_raw(raw)


@pytest.mark.parametrize(
    "raw",
    [
        '{"id": 4, "text": "it looks ok to me", "label": ',
        '{"id": "r-104", "text": "Dear all, look',
        '{"id": 4, "text": "北京',
        "上海地铁十号线停运,news",
        "the tea was ok,news",
        '{"id": 4, "text": "no I am Zelda", "label": "news',
    ],
)
def test_rows_that_tell_of_others_are_left(raw: str) -> None:
    assert not OF_TWO.shows_raw(raw)


def test_a_row_in_which_the_document_stood_is_emptied_when_its_file_came_again(
    tmp_path: Path,
) -> None:
    lake = Lake(str(tmp_path), "p")
    told = [("in.csv", 1, "what is it"), ("in.csv", 2, "another"), ("other.csv", 1, "more")]
    rejects = [{"source_file": one, "row": row, "raw": raw} for one, row, raw in told]
    version = lake.replace("rejects", "n1", rows_of("rejects", rejects)).version
    gone = Forgotten(frozenset({"d-1"}), [LONG], places=frozenset({("in.csv", 1)}))
    assert rewrite(lake, "rejects", gone, version, ["n1"])[1] == 1
    assert lake.read("rejects", ["raw"])["raw"].to_pylist() == ["", "another", "more"]


def test_a_page_loses_its_lines_and_keeps_everything_else(gone: Forgotten) -> None:
    page = (
        '<p class="passage" dir="auto">Dear team, I am Zelda Marchbanks and my parcel…</p>'
        "<title>c-1 · cards\n\u2068nobody at the depot answers &amp; I want my mo…\u2069</title>"
        '<p class="ok">it looks ok</p><bdi>marchbanks</bdi><h3>parcel, marchbanks, depot</h3>'
    )
    assert gone.page(page) == (
        '<p class="passage" dir="auto">[forgotten]</p>'
        "<title>c-1 · cards\n[forgotten]</title>"
        '<p class="ok">it looks ok</p><bdi>[forgotten]</bdi><h3>parcel, [forgotten], depot</h3>'
    )


def test_figures_lose_ids_texts_and_words(gone: Forgotten) -> None:
    figures = {
        "loose": [{"size": 2, "exemplars": ["d-1", "d-2"], "keywords": ["marchbanks", "depot"]}],
        "topics": [["d-1", "d-3"], ["d-4"]],
        "name": "marchbanks, depot",
        "reason": LONG[:50],
        "rows": 7,
        "label": "d-1",
    }
    assert gone.figures(figures) == {
        "loose": [{"size": 2, "exemplars": ["d-2"], "keywords": ["depot"]}],
        "topics": [["d-3"], ["d-4"]],
        "name": "[forgotten], depot",
        "reason": "[forgotten]",
        "rows": 7,
        "label": "d-1",
    }


def test_words_of_no_other_document_are_found(tmp_path: Path, gone: Forgotten) -> None:
    lake = Lake(str(tmp_path), "p")
    told = [("d-1", LONG), ("d-2", "The DEPOT burned down"), ("d-3", "a parcel of land")]
    rows = [{"doc_id": one, "text": text} for one, text in told]
    lake.replace("documents", "n1", rows_of("documents", rows))
    words = ["marchbanks", "depot", "parcel", "thank", "elsewhere"]
    assert words_only_of(lake, gone, words, None) == {"marchbanks", "thank"}


def test_history_is_written_anew_as_if_the_rows_had_never_been(tmp_path: Path) -> None:
    lake, table = Lake(str(tmp_path), "p"), "predictions"

    def write(night: str, ids: str) -> int:
        rows = [{"doc_id": one, "label": night} for one in ids]
        return lake.replace(table, night, rows_of(table, rows)).version

    def held(version: int | None) -> str:
        return "".join(lake.read(table, ["doc_id"], version=version)["doc_id"].to_pylist())

    first, _, _, base = (write(*one) for one in [("n1", "ab"), ("n2", "cxd"), ("n3", "e"),
                                                 ("n4", "fx")])  # fmt: skip
    order = ["n1", "n2", "n2-without-rows", "n3", "n4"]
    gone = Forgotten(frozenset({"x"}), [])
    versions, rows = rewrite(lake, table, gone, base, order)
    assert rows == 2
    # A second time, as after a kill, from the same version.
    versions, _ = rewrite(lake, table, gone, base, order)
    lake.vacuum()
    assert held(first) == "ab"
    assert {night: held(version) for night, version in versions.items()} == {
        "n2": "abcd", "n2-without-rows": "abcd", "n3": "abcde", "n4": "abcdef",
    }  # fmt: skip
    assert held(None) == "abcdef"
    assert rewrite(lake, table, gone, versions["n4"], order) == ({}, 0)


def test_rows_about_a_forgotten_document_leave_what_an_evaluation_told() -> None:
    gone = Forgotten(frozenset({"d1"}), ["a text that nobody should read again"])
    told = {"mistakes": [{"doc_id": "d1", "label": "a"}, {"doc_id": "d2", "label": "b"}],
            "near": {"examples": [{"doc_id": "d3", "like": "d1"}], "rows": 1}}  # fmt: skip
    kept = {"mistakes": [{"doc_id": "d2", "label": "b"}], "near": {"examples": [], "rows": 1}}
    assert gone.figures(told) == kept


def test_what_was_forgotten_while_a_night_lay_unfinished_counts_for_that_night(
    tmp_path: Path,
) -> None:
    lake = Lake(str(tmp_path), "a")
    assert not forgotten_since(lake, 1)
    # Night 1 is published, night 2 failed: the tombstone lies with 2, and says after 1.
    lake.replace("tombstones", "n2", rows_of("tombstones", [{"doc_digest": "d", "after": 1}]))
    assert forgotten_since(lake, 1)
    assert not forgotten_since(lake, 2)
