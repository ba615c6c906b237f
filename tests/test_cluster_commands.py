"""`nightshift clusters` and `nightshift name`, over three nights written by hand.

night   c-0001          c-0002   c-0003            c-0004           unassigned   documents
n1      d0..d5 (6)      d6..d8   d9, d10           -                d11          12
n2      d0..d3 (4)      d6..d8   d9, d10           d4, d5 (split)   d11          12
n3      d0..d3, d12 (5) + d9, d10: ended into      d4, d5           d11, d13     14
                        c-0002 (5)
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

from flows import cli, terminal
from flows.clusters import as_lines, as_passport, sparkline
from nightshift.identity import UNASSIGNED
from nightshift.journal import Journal
from nightshift.tables import Lake, rows_of

Call = Callable[..., tuple[int, str, str]]
EVENTS = {
    "n1": [("c-0001", "born", 6), ("c-0002", "born", 3), ("c-0003", "born", 2)],
    "n2": [("c-0001", "continued", 4), ("c-0002", "continued", 3), ("c-0003", "continued", 2),
           ("c-0004", "split", 2)],
    "n3": [("c-0001", "continued", 5), ("c-0002", "merged", 5), ("c-0003", "ended", 0),
           ("c-0004", "continued", 2)],
}  # fmt: skip
RELATIVES = {
    ("n2", "c-0004"): {"parents": ["c-0001"]},
    ("n3", "c-0002"): {"parents": ["c-0003"]},
    ("n3", "c-0003"): {"heirs": ["c-0002"]},
}
WORDS = {
    "c-0001": ["card", "lost", "stolen", "replacement"],
    "c-0002": ["汇率", "外币", "兑换", "手续费"],
    "c-0003": ["fee", "abroad", "charge"],
    "c-0004": ["pin", "blocked", "atm"],
}
PLACES = {
    "n1": {"c-0001": [0, 1, 2, 3, 4, 5], "c-0002": [6, 7, 8], "c-0003": [9, 10], UNASSIGNED: [11]},
    "n2": {"c-0004": [4, 5]},
    "n3": {"c-0001": [12], "c-0002": [9, 10], UNASSIGNED: [13]},
}


def write(lake: Lake, number: int, named: dict[str, tuple[str, str]] | None = None) -> None:
    """Publish night `n<number>`; `named` gives a person's name and who gave it, by cluster."""
    night, named = f"n{number}", named or {}
    versions: dict[str, int] = {}

    def replace(table: str, rows: list[dict[str, Any]]) -> None:
        versions[table] = lake.replace(table, night, rows_of(table, rows)).version

    new = [12, 13] if number == 3 else range(12) if number == 1 else []
    replace("documents", [
        {"doc_id": f"d{n}", "text": f"text {n}", "label": "lost_card" if n < 2 else None}
        for n in new
    ])  # fmt: skip
    replace("clusters", [
        {
            "cluster_id": one, "event": event, "size": size, "cohesion": 0.75,
            "name": named.get(one, (", ".join(WORDS[one][:3]), ""))[0],
            "named_by": named[one][1] if one in named else None,
            "born": "n2" if one == "c-0004" else "n1", "keywords": WORDS[one],
            "exemplars": ["d1", "d0"] if one == "c-0001" else [],
            "centroid": [1.0, 0.0], "model_id": "m1", **RELATIVES.get((night, one), {}),
        }
        for one, event, size in EVENTS[night]
    ])  # fmt: skip
    replace("assignments", [
        {"doc_id": f"d{n}", "cluster_id": one, "distance": 0.5}
        for one, documents in PLACES[night].items()
        for n in documents
    ])  # fmt: skip
    when = datetime(2026, 11, 19 + number, 2, tzinfo=UTC)
    lake.write_night({
        "night": night, "number": number, "state": "published", "started": when,
        "finished": when, "versions": versions, "model_id": "m1",
    })  # fmt: skip


def add(lake: Lake, night: str, cluster: dict[str, Any], places: dict[str, str]) -> None:
    """Write one cluster and some documents' places for a night, without publishing it."""
    row = {"name": "half", "event": "continued", **cluster}
    moved = [{"doc_id": one, "cluster_id": place} for one, place in places.items()]
    lake.replace("clusters", night, rows_of("clusters", [row]))
    lake.replace("assignments", night, rows_of("assignments", moved))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"), "questions")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "lake" / "questions" / "journal.sqlite")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """Exit code, output and errors of a command on the pipeline `questions`."""
    config = tmp_path / "pipelines.yaml"
    config.write_text(
        "lake: lake\nreports: reports\npipelines:\n  questions:\n    source: {paths: [inbox/*]}\n"
    )
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)

    def called(command: str, *arguments: str) -> tuple[int, str, str]:
        def main() -> None:
            with terminal.spoken_errors():
                cli.app([command, "questions", *arguments, "--config", str(config)])

        wrapped = typer.Typer()
        wrapped.command()(main)
        done = CliRunner().invoke(wrapped, [])
        return done.exit_code, done.stdout, done.stderr

    yield called
    os.environ.clear()
    os.environ.update(before)


def said(found: tuple[int, str, str]) -> list[str]:
    code, out, err = found
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(cell_len, lines)) <= 100
    return lines


# --- the table ------------------------------------------------------------------------------


def test_the_table_says_of_every_cluster_what_it_is_and_what_happened(
    lake: Lake, call: Call
) -> None:
    for number in (1, 2, 3):
        write(lake, number)
    lines = said(call("clusters"))
    assert lines[0] == "questions, night n3: 3 clusters, 14 documents"
    assert [" ".join(line.split()) for line in lines[3:6]] == [
        "c-0001 card, lost, stolen 5 +1 continued 3 0.75 replacement",
        "c-0002 汇率, 外币, 兑换 5 +2 merged 3 0.75 手续费",
        "c-0004 pin, blocked, atm 2 0 continued 2 0.75",
    ]
    assert lines[-2] == "ended       c-0003 fee, abroad, charge -> c-0002"
    assert lines[-1] == "unassigned  2 documents (14.3%), far from every cluster"


def test_columns_stand_under_one_another_for_chinese_names(lake: Lake, call: Call) -> None:
    write(lake, 1, {"c-0002": ("外币兑换" * 20, "anna")})
    head, *rows = said(call("clusters"))[2:6]
    assert "  外币兑换外币兑换外币兑换外… *  " in rows[1]  # 26 + 1 + 2 of 30 cells
    starts = {cell_len(row[: row.index("born")]) for row in rows}
    assert starts == {cell_len(head[: head.index("event")])}
    ends = {cell_len(row[: row.index("0.75") + 4]) for row in rows}
    assert ends == {cell_len(head[: head.index("cohesion") + 8])}


def test_the_newborn_have_no_change_and_nothing_ended_on_a_first_night(
    lake: Lake, call: Call
) -> None:
    write(lake, 1)
    lines = said(call("clusters"))
    assert re.search(r"stolen +6 +new +born +1 ", lines[3])
    assert lines[-2:] == [
        "ended       none",
        "unassigned  1 document (8.3%), far from every cluster",
    ]


def test_json_has_the_same_and_more(lake: Lake, call: Call) -> None:
    for number in (1, 2, 3):
        write(lake, number)
    found = json.loads("\n".join(call("clusters", "--json")[1].splitlines()))
    assert [(one["cluster_id"], one["size"], one["change"]) for one in found["clusters"]] == [
        ("c-0001", 5, 1),
        ("c-0002", 5, 2),
        ("c-0004", 2, 0),
    ]
    assert found["clusters"][1]["parents"] == ["c-0003"]
    assert found["clusters"][2]["born"] == "n2"
    assert found["ended"] == [
        {"cluster_id": "c-0003", "name": "fee, abroad, charge", "heirs": ["c-0002"]}
    ]
    assert (found["night"], found["unassigned"]) == ("n3", 2)


def test_a_pipeline_without_nights_says_how_to_start(call: Call) -> None:
    assert said(call("clusters")) == [
        "questions has no published night yet. Start one: nightshift run questions"
    ]
    found = json.loads(call("clusters", "--json")[1])
    assert (found["night"], found["clusters"]) == (None, [])
    code, _, err = call("name", "c-0001", "Cards")
    assert (code, "no published night yet" in err) == (1, True)


def test_rows_of_a_night_that_is_not_published_are_not_shown(lake: Lake, call: Call) -> None:
    write(lake, 1)
    before = call("clusters")
    add(lake, "n2", {"cluster_id": "c-0009", "size": 9}, {"d0": UNASSIGNED})
    assert call("clusters") == before
    code, _, err = call("clusters", "--history", "c-0009")
    assert (code, "no cluster 'c-0009'" in err) == (2, True)


def test_nights_count_by_their_number_and_not_their_name(lake: Lake, call: Call) -> None:
    for number in (1, 2, 3):
        write(lake, number)
    add(lake, "a-last", {"cluster_id": "c-0001", "size": 13}, {"d11": "c-0001"})
    lake.write_night({
        "night": "a-last", "number": 4, "state": "published",
        "versions": {one: lake.version(one) for one in ("clusters", "assignments")},
    })  # fmt: skip
    found = json.loads(call("clusters", "--json")[1])
    assert [(one["size"], one["change"], one["nights"]) for one in found["clusters"]] == [
        (13, 8, 4)
    ]
    assert found["unassigned"] == 1  # d13; d11 came home


def test_a_night_that_was_given_up_does_not_count(lake: Lake, call: Call) -> None:
    write(lake, 1)
    add(lake, "n1b", {"cluster_id": "c-0001", "size": 1}, {"d0": UNASSIGNED})
    write(lake, 2)
    found = json.loads(call("clusters", "--json")[1])
    assert (found["clusters"][0]["size"], found["clusters"][0]["change"]) == (4, -2)
    assert found["clusters"][0]["nights"] == 2
    assert found["unassigned"] == 1


def test_what_does_not_fit_a_line_is_counted() -> None:
    ended = [{"cluster_id": f"c-{n:04d}", "name": "x" * 20, "heirs": []} for n in range(1, 10)]
    found = {"pipeline": "p", "night": "n", "clusters": [], "ended": ended, "unassigned": 0}
    loose = [{"size": 40, "keywords": ["x" * 20, "y" * 20]}] * 9
    line, _, groups = list(as_lines(found | {"among_them": loose}))[1:]
    # 12 cells of title, then 27 for one and 29 for each more; the third would end at 97, and leave
    # no room for the 8 that count the rest.
    assert line == f"{'ended':<12}c-0001 {'x' * 20}; c-0002 {'x' * 20}; 7 more"
    # 24 cells of lead, then 23 for one and 25 for each more: the third would leave no room either.
    group = f"40 {'x' * 20}"
    assert groups == f"{'':<12}among them: {group}; {group}; 7 more"


# --- names ----------------------------------------------------------------------------------


def test_a_name_waits_for_the_next_night_and_then_is_marked_as_a_persons(
    lake: Lake, journal: Journal, call: Call
) -> None:
    write(lake, 1)
    lines = said(call("name", "c-0001", " Lost cards ", "--by", "anna"))
    assert lines == [
        'c-0001 is called "Lost cards" from the next night on. Noted for anna.',
        'Until then it is "card, lost, stolen".',
        "Take it back: nightshift name questions c-0001 --forget",
    ]
    assert journal.names()["c-0001"].name == "Lost cards"
    lines = said(call("clusters"))
    assert lines[3].startswith("c-0001   Lost cards ~ ")
    assert "~           from the next night on: c-0001 by anna" in lines
    write(lake, 2, {"c-0001": ("Lost cards", "anna")})
    lines = said(call("clusters"))
    assert lines[3].startswith("c-0001   Lost cards * ")
    assert "*           named by a person" in lines
    assert not any("~" in line for line in lines)


def test_a_name_with_a_class_says_how_many_documents_become_examples(
    lake: Lake, journal: Journal, call: Call
) -> None:
    write(lake, 1)
    lines = said(call("name", "c-0001", "Lost cards", "--class", "lost_card", "--by", "anna"))
    assert lines[2] == "Its 6 documents become examples of class lost_card."
    lines = said(call("name", "c-0002", "Rates", "--class", "lost_crad", "--by", "anna"))
    assert lines[2] == (
        "Its 3 documents become examples of class lost_crad, which is new (there is a class "
        "lost_card)."
    )
    assert journal.names()["c-0002"].class_name == "lost_crad"


def test_a_better_name_keeps_the_class_and_forgetting_ends_both(
    lake: Lake, journal: Journal, call: Call
) -> None:
    write(lake, 1)
    call("name", "c-0001", "Cards", "--class", "lost_card", "--by", "anna")
    lines = said(call("name", "c-0001", "Lost cards", "--by", "bob"))
    assert lines[2] == "Its 6 documents stay examples of class lost_card."
    assert journal.names()["c-0001"].class_name == "lost_card"
    lines = said(call("name", "c-0001", "--forget", "--by", "bob"))
    assert lines[0].startswith('c-0001 is no longer called "Lost cards": from the next night on')
    assert lines[1] == "Its documents are no longer examples of class lost_card."
    assert (journal.names()["c-0001"].name, journal.names()["c-0001"].class_name) == (None, None)


def test_a_name_taken_back_stays_until_the_next_night(lake: Lake, call: Call) -> None:
    write(lake, 1, {"c-0001": ("Lost cards", "anna")})
    said(call("name", "c-0001", "--forget", "--by", "bob"))
    lines = said(call("clusters"))
    assert lines[3].startswith("c-0001   Lost cards ~ ")
    assert "~           from the next night on: c-0001 by bob (name taken back)" in lines
    write(lake, 2)
    assert not any("~" in line for line in said(call("clusters")))


def test_there_is_nothing_to_forget_where_keywords_name_a_cluster(
    lake: Lake, journal: Journal, call: Call
) -> None:
    write(lake, 1)
    code, out, err = call("name", "c-0001", "--forget")
    assert (code, out) == (2, "")
    assert 'its keywords name it: "card, lost, stolen"' in err
    assert journal.names() == {}


def test_a_cluster_that_ended_names_its_night_and_heirs(
    lake: Lake, journal: Journal, call: Call
) -> None:
    for number in (1, 2, 3):
        write(lake, number)
    code, out, err = call("name", "c-0003", "Fees")
    assert (code, out) == (2, "")
    assert err.strip() == (
        'name: c-0003 "fee, abroad, charge" ended on night n3; its documents went to c-0002 '
        '"汇率, 外币, 兑换". Name one of those.'
    )
    assert journal.names() == {}


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("c-0007", "c-0003"), ("7", "c-0003"), ("2", "c-0002"), ("c-01", "c-0001"),
     ("lost cards", "c-0001"), ("9" * 5000, "c-0001")],
)  # fmt: skip
def test_an_unknown_id_is_answered_with_the_nearest(
    lake: Lake, call: Call, asked: str, nearest: str
) -> None:
    write(lake, 1)
    for command in (("name", asked, "Cards"), ("clusters", "--history", asked)):
        code, out, err = call(*command)
        assert (code, out) == (2, "")
        assert f'in questions; nearest: {nearest} "' in err


def test_the_unassigned_are_no_cluster(lake: Lake, call: Call) -> None:
    write(lake, 1)
    code, _, err = call("name", UNASSIGNED, "Strange")
    assert (code, "'unassigned' is no cluster" in err) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [["c-0001"], ["c-0001", "Cards", "--forget"], ["c-0001", "--forget", "--class", "x"]],
)
def test_a_name_or_forgetting_but_not_both(lake: Lake, call: Call, arguments: list[str]) -> None:
    write(lake, 1)
    code, out, err = call("name", *arguments)
    assert (code, out) == (2, "")
    assert "either a name" in err


def test_a_name_too_long_is_refused(lake: Lake, journal: Journal, call: Call) -> None:
    write(lake, 1)
    code, _, err = call("name", "c-0001", "x" * 81, "--by", "anna")
    assert (code, "expected 1 to 80 characters" in err) == (2, True)
    assert journal.names() == {}


# --- the passport ---------------------------------------------------------------------------


def test_a_passport_tells_a_life_from_birth_to_end(lake: Lake, call: Call) -> None:
    for number in (1, 2, 3):
        write(lake, number)
    lines = said(call("clusters", "--history", "c-0003"))
    assert lines == [
        "c-0003  fee, abroad, charge",
        "",
        "named       by its keywords",
        "born        n1",
        'ended       n3; its documents went to c-0002 "汇率, 外币, 兑换"',
        "lived       2 nights",
        "size        ██  2 2",
        "cohesion    0.75",
        "at birth    fee, abroad, charge",
        "at its end  fee, abroad, charge",
        "",
        "n1                    born       2",
        "n2                    continued  2",
        "n3                    ended      0, to c-0002",
    ]


def test_a_passport_tells_parents_names_and_exemplars(lake: Lake, call: Call) -> None:
    write(lake, 1)
    write(lake, 2, {"c-0001": ("Lost cards", "anna")})
    lines = said(call("clusters", "--history", "c-0001"))
    assert lines[0] == "c-0001  Lost cards"
    assert "named       by anna" in lines
    assert "size        █▆  6 4" in lines
    assert 'n2                    continued  4, named "Lost cards" by anna' in lines
    assert lines[-2:] == ["exemplars   text 1", "            text 0"]
    lines = said(call("clusters", "--history", "c-0004"))
    assert 'born        n2, from c-0001 "Lost cards"' in lines
    assert lines[-1] == "n2                    split      2, from c-0001"


def test_a_passport_shows_a_word_that_waits(lake: Lake, call: Call) -> None:
    write(lake, 1)
    call("name", "c-0001", "Lost cards", "--class", "lost_card", "--by", "anna")
    lines = said(call("clusters", "--history", "c-0001"))
    assert lines[0] == "c-0001  card, lost, stolen"
    assert 'waiting     from the next night on: "Lost cards", by anna' in lines
    assert "class       its documents are examples of lost_card, from the next night on" in lines


def test_a_passport_as_json_has_every_night(lake: Lake, call: Call) -> None:
    for number in (1, 2, 3):
        write(lake, number)
    found = json.loads(call("clusters", "--history", "c-0002", "--json")[1])
    assert [(one["night"], one["event"], one["size"]) for one in found["events"]] == [
        ("n1", "born", 3),
        ("n2", "continued", 3),
        ("n3", "merged", 5),
    ]
    assert found["events"][2]["parents"] == ["c-0003"]
    assert found["keywords"] == WORDS["c-0002"]


def test_a_long_life_fits_the_terminal() -> None:
    event = {"parents": [], "heirs": [], "change": 1, "name": "card", "named_by": None}
    sizes = [1000 + n for n in range(200)]
    found = {
        "cluster_id": "c-0001", "name": "card " * 40, "named_by": None, "class_name": None,
        "waiting": None, "born": "n0", "parents": [], "ended": None, "heirs": [], "nights": 200,
        "cohesion": 0.5, "keywords_at_birth": ["word"] * 50, "keywords": ["外币"] * 50,
        "exemplars": ["很" * 300],
        "events": [
            {**event, "night": f"n{n}", "event": "continued" if n else "born", "size": size}
            for n, size in enumerate(sizes)
        ],
    }  # fmt: skip
    lines = list(as_passport(found))
    assert max(map(cell_len, lines)) <= 100
    assert "n1                    continued  199 nights, until n199, 1,199 in the end" in lines
    [size] = [line for line in lines if line.startswith("size")]
    assert size.endswith(" 1,197 1,198 1,199")
    assert "  … 1," in size


@pytest.mark.parametrize(
    ("sizes", "drawn"),
    [([], ""), ([0, 0], "▁▁"), ([1, 2, 4, 8], "▁▂▄█"), ([7], "█"), ([0, 1000, 1], "▁█▁")],
)
def test_a_sparkline_is_as_high_as_its_largest(sizes: list[int], drawn: str) -> None:
    assert sparkline(sizes) == drawn


# --- the picture ----------------------------------------------------------------------------


def test_the_picture_is_written_where_it_is_asked_for(lake: Lake, call: Call) -> None:
    for number in (1, 2, 3):
        write(lake, number)
    file = Path("new/flow.svg")
    [line] = said(call("clusters", "--picture", str(file)))
    assert line.startswith(f"{file}: 3 clusters after 3 nights")
    titles = [one.text for one in ElementTree.parse(file).iter() if one.tag.endswith("title")]
    assert "2 of 6 went from c-0001 card, lost, stolen to c-0004 pin, blocked, atm" in titles


def test_a_picture_needs_an_svg_name_a_night_and_no_other_wish(
    lake: Lake, call: Call, tmp_path: Path
) -> None:
    code, _, err = call("clusters", "--picture", "flow.svg")
    assert (code, "no published night yet" in err) == (1, True)
    write(lake, 1)
    code, _, err = call("clusters", "--picture", "flow.png")
    assert (code, "expected a name in .svg" in err) == (2, True)
    code, _, err = call("clusters", "--picture", "flow.svg", "--json")
    assert (code, "without --history and --json" in err) == (2, True)
    (tmp_path / "file").write_text("")
    code, _, err = call("clusters", "--picture", "file/flow.svg")
    assert (code, "cannot be written" in err) == (2, True)
    assert not list(tmp_path.rglob("flow.*"))
