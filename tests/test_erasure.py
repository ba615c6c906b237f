"""Where a text is known again, and what stands there after."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightshift.cleaning import CleaningConfig
from nightshift.erasure import Forgotten, rewrite, words_only_of
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
