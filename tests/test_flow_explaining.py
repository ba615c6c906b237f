"""Two nights, and what people ask in the morning: why, what is like it, what is for whom."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TOPICS, House, rows
from test_cli_help import call

from flows.explaining import explained, write_picture
from nightshift.corpus import Excerpt
from nightshift.erasure import Forgotten
from nightshift.pipeline import load_settings

READERS = {"ann": "chess", "bob": "cooking", "cid": "sailing"}


def numbered(found: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    """With an id, and whoever reads the topic, some with another reader beside."""
    reads = {topic: who for who, topic in READERS.items()}
    return [
        {**row, "id": f"{prefix}-{n}",
         "reader": reads.get(row["label"], "dan") + ("; dan" if n % 10 == 0 else "")}
        for n, row in enumerate(found)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Two published nights, the second with a topic of its own; tests only look."""
    house = House(tmp_path_factory.mktemp("explaining"))
    house.declare(source={"id": "id", "reader": "reader"}, report={"map_points": 500})
    house.drop("one.jsonl", numbered(rows(60), "a"))
    house.work("n1")
    things = ["bass", "chord", "amp", "band", "encore", "stage", "tune"]
    music = [
        {"text": f"guitar solo {n} loud drums {things[n % 7]} riff", "label": "music"}
        for n in range(35)
    ]
    house.drop("two.jsonl", numbered([*rows(12, seed=1), *music], "b"))
    house.work("n2")
    return house


def asked(house: House, *arguments: str) -> tuple[int, str, str]:
    command, *rest = arguments
    return call(command, house.name, *rest, "--config", str(house.config))


def test_an_id_with_a_slip_of_the_pen_is_told_to_be_taken_as_a_text(worked: House) -> None:
    told = "no document that has a vector has the id 'a-99999': it was taken as a text"
    assert asked(worked, "similar", "a-99999")[1].splitlines()[0] == told
    for other in ("a-0", "the pawn and a rook"):
        assert "taken as a text" not in asked(worked, "similar", other)[1]


def test_a_picture_says_that_the_model_abstained(worked: House, tmp_path: Path) -> None:
    found = explained(load_settings(worked.config), worked.name, "the pawn and a rook")[1]
    for abstained in (True, False):
        line = write_picture(replace(found, abstained=abstained), tmp_path / "why.svg")
        assert ("abstained" in line) == abstained


# --- explain ----------------------------------------------------------------------------------


def test_explain_names_the_words_that_carried_the_answer(worked: House) -> None:
    code, out, err = asked(worked, "explain", "the pawn and a rook in the endgame", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["label"] == "chess"
    most = max(found["words"], key=lambda one: one["together"])["text"]
    assert most in TOPICS["chess"].split()
    total = sum(one["wide"] for one in found["words"]) + found["wide_bias"]
    assert total == pytest.approx(found["wide_score"], abs=1e-4)
    assert found["model_version"] == worked.status()[-1]["model_version"]


def test_explain_writes_no_colour_where_no_terminal_is(worked: House) -> None:
    code, out, _ = asked(worked, "explain", "the pawn and a rook", "--label", "cooking")
    assert code == 0
    assert out.startswith("cooking  ")
    assert "\x1b" not in out
    assert "attention  what the pooling read, which is no reason for the answer" in out
    assert all(word in out for word in ("network", "linear", "share", "so far"))


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<svg "), ("png", b"\x89PNG")])
def test_explain_draws_a_picture(worked: House, tmp_path: Path, ending: str, start: bytes) -> None:
    path = tmp_path / f"why.{ending}"
    text = "<script>rook</script> 北京 שלום 👩‍👩‍👧 $x^2$"
    code, out, _ = asked(worked, "explain", text, "--picture", str(path))
    assert (code, out.split(":")[0]) == (0, str(path))
    assert path.read_bytes().startswith(start)
    assert b"<script" not in path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["some text", "--label", "ches"], "no class 'ches'; did you mean 'chess'"),
        ([" "], "the text cannot be used: no text"),
        (["some text", "--picture", "why.gif"], "expected a name in .svg or .png"),
        (["some text", "--picture", "why.svg", "--json"], "either --picture or --json"),
    ],
)
def test_explain_answers_a_wrong_call_in_a_sentence(
    worked: House, arguments: list[str], words: str
) -> None:
    code, out, err = asked(worked, "explain", *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_explain_before_any_night_says_to_run_one(house: House) -> None:
    code, _, err = asked(house, "explain", "some text")
    assert code == 1
    assert f"nightshift run {house.name}" in err


# --- similar ----------------------------------------------------------------------------------


def test_the_documents_nearest_to_a_document_are_of_its_topic(worked: House) -> None:
    code, out, _ = asked(worked, "similar", "a-3", "--top", "8", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["is_document"]
    labels = [one["label"] for one in found["documents"]]
    assert labels == ["cooking"] * 8
    cosines = [one["similarity"] for one in found["documents"]]
    assert cosines == sorted(cosines, reverse=True)
    assert "a-3" not in [one["doc_id"] for one in found["documents"]]


def test_a_text_finds_the_document_that_says_the_same(worked: House) -> None:
    text = next(row["text"] for row in worked.table("documents") if row["doc_id"] == "b-40")
    [first] = json.loads(asked(worked, "similar", text, "--top", "1", "--json")[1])["documents"]
    assert first["similarity"] == pytest.approx(1, abs=1e-3)
    assert (first["label"], first["night"]) == ("music", "n2")
    assert "1.000  " in asked(worked, "similar", text, "--top", "1")[1]


def test_a_reader_gets_tonights_documents_of_the_clusters_they_follow(worked: House) -> None:
    code, out, _ = asked(worked, "similar", "--reader", "ann", "--top", "10", "--json")
    assert code == 0
    found = json.loads(out)
    assert [one["label"] for one in found["documents"]].count("chess") >= 9
    assert all(one["night"] == "n2" for one in found["documents"])
    # Ann, Bob, Cid read twelve of 71 each, Dan whatever comes.
    assert found["readers"] == 4
    assert found["recall_at_20"] > found["popularity_recall_at_20"]
    assert "recall@20" in asked(worked, "similar", "--reader", "ann")[1]


def test_an_unknown_reader_or_no_column_of_readers_is_told(worked: House, house: House) -> None:
    code, _, err = asked(worked, "similar", "--reader", "annn")
    assert (code, "did you mean 'ann'" in err) == (2, True)
    code, _, err = asked(house, "similar", "--reader", "ann")
    assert (code, "source: {reader: COLUMN}" in err) == (2, True)
    code, _, err = asked(worked, "similar")
    assert (code, "either a text or a document's id" in err) == (2, True)
    assert asked(house, "similar", "some text")[0] == 1


# --- what the night tells ---------------------------------------------------------------------


def page(house: House, night: int = 1) -> str:
    return Path(house.status()[night]["report"]).read_text(encoding="utf-8")


def test_a_night_keeps_what_drifts_with_its_evidence_and_without_words(worked: House) -> None:
    drift = worked.lake.published()["figures"]["drift"]
    assert drift["last_night"]["night"] == "n1"
    assert {"labels", "words"} <= set(drift["last_night"]["drifts"])
    assert "guitar" not in json.dumps(drift)
    figures = worked.lake.stages("n2")["report"]["figures"]
    assert figures["drift_last_night_labels"] > 0.1
    assert worked.lake.stages("n1")["report"]["figures"] == {}


def test_the_report_says_what_changed_why_and_what_to_look_at(worked: House) -> None:
    said = page(worked)
    for part in ("changed", "why", "look", "map", "explained", "events"):
        assert f'id="{part}"' in said
    assert "Against night n1, the label mix" in said
    assert ">guitar</bdi>" in said
    assert 'class="pedigree"' in said
    assert said.count('<article class="answer"') == 9
    first = page(worked, 0)
    assert "There is no earlier night to compare with." in first
    assert 'id="events"' not in first


def test_data_and_model_sum_to_the_shift_of_the_night(worked: House) -> None:
    from nightshift.pipeline import load_settings
    from tasks.stage import ModelRef, Night
    from tasks.tracking import Tracking
    from tasks.why import learned_from, shift_and_drift

    settings = load_settings(worked.config)
    nights = worked.lake.nights()
    one = Night(worked.name, settings.pipeline(worked.name), settings, "n2", 2,
                Tracking(settings.mlflow, nights[1]["mlflow_run"]), nights[0])  # fmt: skip
    winner = ModelRef.model_validate(nights[1]["figures"]["model"])
    learned = learned_from(one, winner, 71)
    excerpt = Excerpt(worked.lake, learned, learned)
    shift, drift, _ = shift_and_drift(one, winner, 71, excerpt, learned)
    # Of what taught the winner only last night was there before, and it is not told twice.
    assert [*drift] == ["last_night"]
    assert shift["other_model"]
    assert {row["label"] for row in shift["rows"]} == {"chess", "cooking", "sailing", "music"}
    for row in shift["rows"]:
        assert row["data"] + row["model"] == pytest.approx(row["shift"], abs=1e-12)
    music = next(row for row in shift["rows"] if row["label"] == "music")
    # The old model has no such class: what it makes of the text is another label.
    assert (music["before"], music["shift"]) == (0, pytest.approx(35 / 71, abs=0.05))


def test_a_forgotten_document_leaves_the_map_and_the_explained_answers(worked: House) -> None:
    said = page(worked)
    start = said.index('<article class="answer" data-doc="') + len(
        '<article class="answer" data-doc="'
    )
    doc_id = said[start : said.index('"', start)]
    text = next(row["text"] for row in worked.table("documents") if row["doc_id"] == doc_id)
    assert f"\n{text}\n" in said[said.index('id="map-texts"') :]
    after = Forgotten(frozenset({doc_id}), [text]).page(said)
    assert text not in after
    assert f'data-doc="{doc_id}"' not in after

    # A line stays a line: the others keep their places on the map.
    def lines(html: str) -> int:
        begin = html.index('id="map-texts"')
        return html[begin : html.index("</pre>", begin)].count("\n")

    assert lines(after) == lines(said)
    assert after.count('<article class="answer"') == said.count('<article class="answer"') - 1
