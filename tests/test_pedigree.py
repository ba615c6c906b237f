from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from nightshift.identity import UNASSIGNED
from nightshift.pedigree import MARKS, moves, pedigree_picture, unassigned
from nightshift.pictures import GREY, PALETTE

SVG = "{http://www.w3.org/2000/svg}"
NIGHTS = ["n1", "n2"]
CHANGES = [
    # six documents in A, four in B, one nowhere
    *[("n1", f"a{n}", "A") for n in range(6)],
    *[("n1", f"b{n}", "B") for n in range(4)],
    ("n1", "x", UNASSIGNED),
    # two leave A for C, which splits from it; B ends in A; a new one in C; x is found to be A's
    ("n2", "a0", "C"),
    ("n2", "a1", "C"),
    *[("n2", f"b{n}", "A") for n in range(4)],
    ("n2", "new", "C"),
    ("n2", "x", "A"),
]


def row(night: str, cluster_id: str, size: int, event: str, **more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"parents": [], "heirs": [], "name": f"name of {cluster_id}"}
    return {"night": night, "cluster_id": cluster_id, "size": size, "event": event, **empty, **more}


ROWS = [
    row("n1", "A", 6, "born"),
    row("n1", "B", 4, "born"),
    row("n2", "A", 9, "merged", parents=["B"]),
    row("n2", "B", 0, "ended", heirs=["A"]),
    row("n2", "C", 3, "split", parents=["A"]),
]


def table(changes: list[Any]) -> pa.Table:
    names = ("night", "doc_id", "cluster_id")
    return pa.table({name: [one[place] for one in changes] for place, name in enumerate(names)})


def drawn(nights: list[str], rows: list[dict[str, Any]], changes: list[Any]) -> ElementTree.Element:
    return ElementTree.fromstring(pedigree_picture(nights, rows, moves(table(changes), nights)))


def titled(picture: ElementTree.Element) -> dict[str, ElementTree.Element]:
    """Everything that says something when rested on."""
    return {
        one.findtext(f"{SVG}title", ""): one
        for one in picture.iter()
        if one.find(f"{SVG}title") is not None
    }


def titles_of(picture: ElementTree.Element, kind: str) -> list[str]:
    found = [one for one in picture.iter(f"{SVG}path") if one.get("class") == kind]
    return [one.findtext(f"{SVG}title", "") for one in found]


def bars(picture: ElementTree.Element) -> dict[str, ElementTree.Element]:
    return {about: one for about, one in titled(picture).items() if one.tag == f"{SVG}rect"}


def marks(picture: ElementTree.Element) -> list[str]:
    """Events whose marks are drawn, without the legend's."""
    known = {path: event for event, path in MARKS.items()}
    found = [
        known[one.get("d", "")]
        for one in picture.iter(f"{SVG}path")
        if (one.get("class") or "").startswith("mark")
    ]
    return sorted(found[: -len(MARKS)])


# --- counting -------------------------------------------------------------------------------


def test_moves_count_documents_by_where_they_came_from() -> None:
    assert moves(table(CHANGES), NIGHTS) == {
        "n1": {(None, "A"): 6, (None, "B"): 4, (None, UNASSIGNED): 1},
        "n2": {("A", "C"): 2, ("B", "A"): 4, (None, "C"): 1, (UNASSIGNED, "A"): 1},
    }


def test_the_unassigned_are_those_who_came_without_those_who_left() -> None:
    changes = [("n1", "x", UNASSIGNED), ("n1", "y", UNASSIGNED), ("n3", "x", "A")]
    assert unassigned(["n1", "n2", "n3"], moves(table(changes), ["n1", "n2", "n3"])) == {
        "n1": 2,
        "n2": 2,
        "n3": 1,
    }


# --- what is drawn --------------------------------------------------------------------------


def test_bands_are_those_who_stayed_and_those_who_moved() -> None:
    picture = drawn(NIGHTS, ROWS, CHANGES)
    assert sorted(titles_of(picture, "band")) == [
        "1 of 1 went from unassigned to A name of A",
        "2 of 6 went from A name of A to C name of C",
        "4 of 4 went from B name of B to A name of A",
        "4 of 6 stayed in A name of A",
    ]
    assert titles_of(picture, "new")[:1] == ["1 new in C name of C"]


def test_a_bar_is_as_high_as_its_cluster_is_large() -> None:
    found = bars(drawn(NIGHTS, ROWS, CHANGES))
    heights = {about.split(" document")[0]: float(one.get("height", "")) for about, one in
               found.items()}  # fmt: skip
    whole = heights["A name of A\nnight n2: 9"]
    assert whole == pytest.approx(430 * 9 / 12, abs=0.06)  # twelve in the fullest night
    assert heights["A name of A\nnight n1: 6"] == pytest.approx(whole * 6 / 9, abs=0.1)
    assert heights["C name of C\nnight n2: 3"] == pytest.approx(whole * 3 / 9, abs=0.1)
    assert heights["unassigned\nnight n1: 1"] == pytest.approx(whole / 9, abs=0.1)
    assert len(heights) == 5  # nothing is unassigned in the second night, and B is gone


def test_bands_fill_the_sides_of_their_bars_exactly() -> None:
    picture = drawn(NIGHTS, ROWS, CHANGES)
    parts = [one for one in picture.iter(f"{SVG}path") if one.get("class") in ("band", "new")]
    about = {one.findtext(f"{SVG}title", ""): one.get("d", "") for one in parts}
    into_a = []
    for said, path in about.items():
        numbers = [float(one) for one in re.findall(r"-?\d+\.\d", path)]
        if said.endswith(("in A name of A", "to A name of A")):
            into_a.append((numbers[7], numbers[8]))  # where the curve ends, and V
    into_a.sort()
    [bar] = [one for said, one in bars(picture).items() if "night n2: 9" in said]
    top, height = float(bar.get("y", "")), float(bar.get("height", ""))
    assert into_a[0][0] == pytest.approx(top, abs=0.11)
    assert [foot for _, foot in into_a[:-1]] == pytest.approx([top for top, _ in into_a[1:]])
    assert into_a[-1][1] == pytest.approx(top + height, abs=0.11)


def test_births_splits_merges_and_ends_have_a_mark_and_say_whose() -> None:
    picture = drawn(NIGHTS, ROWS, CHANGES)
    assert marks(picture) == ["born", "born", "ended", "merged", "split"]
    about = bars(picture)
    assert "A name of A\nnight n2: 9 documents\nmerged with B name of B" in about
    assert "C name of C\nnight n2: 3 documents\nsplit from A name of A" in about
    end = "B name of B\nnight n1: 4 documents\nborn\nended in night n2, heirs: A name of A"
    assert end in about


def test_a_child_stands_right_under_its_parent() -> None:
    found = bars(drawn(NIGHTS, [*ROWS, row("n2", "D", 8, "born")], CHANGES))
    heights = {about[:1]: float(one.get("y", "")) for about, one in found.items() if "n2" in about}
    assert heights["A"] < heights["C"] < heights["D"]


def test_a_name_is_written_once() -> None:
    changes = [*CHANGES, ("n3", "later", "A")]
    rows = [*ROWS, row("n3", "A", 10, "continued"), row("n3", "C", 3, "continued")]
    picture = drawn(["n1", "n2", "n3"], rows, changes)
    written = [one.text for one in picture.iter(f"{SVG}text")]
    assert [written.count(f"name of {one}") for one in "ABC"] == [1, 1, 1]


def test_only_the_last_eight_nights_are_drawn() -> None:
    nights = [f"n{n:02d}" for n in range(11)]
    rows = [row(night, "A", 5, "continued") for night in nights]
    picture = drawn(nights, rows, [("n00", f"d{n}", "A") for n in range(5)])
    found = [one for one in bars(picture) if one.startswith("A ")]
    assert [one.split()[-3] for one in found] == [f"{night}:" for night in nights[-8:]]


def test_small_clusters_share_a_bar_and_moves_within_it_are_no_moves() -> None:
    sizes = {f"c-{n:04d}": 100 - n for n in range(20)} | {"small": 3, "tiny": 2}
    rows = [row("n1", one, size, "born") for one, size in sizes.items()]
    rows += [row("n2", one, size, "continued") for one, size in sizes.items() if size > 3]
    rows += [row("n2", "small", 2, "continued"), row("n2", "tiny", 4, "continued")]
    changes = [("n1", f"{one}-{n}", one) for one, size in sizes.items() for n in range(size)]
    changes += [("n2", "small-0", "tiny"), ("n2", "new", "tiny")]
    picture = drawn(NIGHTS, rows, changes)
    others = [one for one in bars(picture) if one.startswith("2 smaller ones")]
    assert [one.split(": ")[1] for one in others] == ["5 documents", "6 documents"]
    assert "5 of 5 stayed in 2 smaller ones" in titles_of(picture, "band")
    assert "1 new in 2 smaller ones" in titles_of(picture, "new")
    assert len(bars(picture)) == 2 * 21


def test_the_largest_have_the_colours_of_the_map_and_others_are_grey() -> None:
    rows = [row("n1", f"c-{n:04d}", 50 - n, "born") for n in range(9)]
    found = bars(drawn(["n1"], rows, [("n1", "d", "c-0000")]))
    assert [one.get("fill") for one in found.values()] == [*PALETTE, GREY, GREY]


# --- what may come --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nights", "rows", "changes"),
    [
        ([], [], []),
        (["n1"], [], []),
        (["n1"], [row("n1", "A", 0, "ended")], []),
    ],
)
def test_without_clusters_the_picture_says_so(
    nights: list[str], rows: list[dict[str, Any]], changes: list[Any]
) -> None:
    picture = drawn(nights, rows, changes)
    assert "no clusters yet" in [one.text for one in picture.iter(f"{SVG}text")]


def test_a_night_in_which_everything_is_unassigned_is_drawn() -> None:
    picture = drawn(["n1"], [], [("n1", "d1", UNASSIGNED), ("n1", "d2", UNASSIGNED)])
    assert list(bars(picture)) == ["unassigned\nnight n1: 2 documents"]


def test_rows_that_disagree_with_the_moves_do_not_break_the_picture() -> None:
    rows = [row("n1", "A", 1, "born"), row("n2", "A", 1, "continued"), row("n2", "B", 1, "born")]
    picture = drawn(NIGHTS, rows, [("n1", "x", "A"), *[("n2", f"y{n}", "B") for n in range(9)]])
    [bar] = [one for said, one in bars(picture).items() if said.startswith("B ")]
    foot = float(bar.get("y", "")) + float(bar.get("height", ""))
    paths = [one.get("d", "") for one in picture.iter(f"{SVG}path") if one.get("class") == "new"]
    assert float(re.findall(r"V(-?\d+\.\d)", paths[0])[0]) <= foot + 0.11


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "a & b \"c\" 'd'",
        "银行卡 " * 60,
        "bell \x07 \u202e lone \ud800",
        "",
    ],
)
def test_any_name_leaves_well_formed_markup_inside_the_picture(name: str) -> None:
    rows = [{**one, "name": name} for one in ROWS]
    picture = drawn(NIGHTS, rows, CHANGES)
    assert not list(picture.iter(f"{SVG}script"))
    assert len(bars(picture)) == 5


def test_what_is_no_name_of_a_cluster_is_said_in_both_languages() -> None:
    picture = drawn(NIGHTS, ROWS, CHANGES)
    spoken = {one.get("class", ""): "".join(one.itertext()) for one in picture.iter(f"{SVG}text")
              if "halo " in one.get("class", "")}  # fmt: skip
    assert spoken["halo zh"].startswith("未归类")
    assert spoken["halo en"].startswith("unassigned")
    hovered = {one.get("data-en"): one.get("data-zh") for one in picture.iter(f"{SVG}title")}
    assert hovered["A name of A\nnight n1: 6 documents\nborn"] == (
        "A name of A\nn1 夜：6 篇文档\n新生"
    )
    assert "由 A name of A 分裂而来" in "".join(one or "" for one in hovered.values())


def test_the_picture_brings_its_own_light_and_dark() -> None:
    picture = pedigree_picture(NIGHTS, ROWS, moves(table(CHANGES), NIGHTS))
    assert "prefers-color-scheme:dark" in picture
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", picture)
