"""What people said on the review page, carried out by the next nights; labels as files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import House, rows, texts
from typer.testing import CliRunner

from flows import cli
from flows.clusters import passport_of, past_of
from flows.forgetting import forget
from flows.labelling import FORMATS, export_labels, import_labels
from nightshift.errors import ConfigError, NightError
from nightshift.journal import Journal
from nightshift.pipeline import load_settings
from nightshift.queues import Index, build_index, query_of, searchable
from tasks.reviewed import sentences


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> House:
    house = House(tmp_path_factory.mktemp("words"))
    house.declare(clusters={"k_min": 3, "k_max": 6})
    house.drop("one.jsonl", [*rows(25), *({"text": one} for one in texts("chess", 20, seed=1))])
    house.work("n1")
    return house


@pytest.fixture
def house(worked: House, tmp_path: Path) -> House:
    """The same after its first night, to be changed at will."""
    found = House(tmp_path / worked.name)
    shutil.copytree(worked.folder, found.folder)
    found.settings = worked.settings
    return found


def journal(house: House) -> Journal:
    return load_settings(house.config).journal_of(house.name)


def newest(house: House) -> dict[str, dict[str, Any]]:
    past = past_of(load_settings(house.config), house.name)
    return {row["cluster_id"]: row for row in past.tonight}


def members(house: House) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    where = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    for doc_id, cluster_id in where.items():
        found.setdefault(cluster_id, set()).add(doc_id)
    return found


# --- clusters by hand ---------------------------------------------------------------------------


def test_a_merger_by_hand_is_made_told_by_the_pedigree_and_stays(house: House) -> None:
    # The two that are most alike: what one cluster cannot hold goes to its neighbours.
    near = {
        float(np.linalg.norm(np.subtract(one["centroid"], two["centroid"]))): (one, two)
        for one, two in combinations(house.table("clusters"), 2)
    }
    pair = sorted(near[min(near)], key=lambda one: one["size"])
    small, large = (one["cluster_id"] for one in pair)
    before = members(house)
    # The larger goes into the smaller: who has more documents would else keep its id.
    journal(house).merge(large, small, by="ada")
    house.work("n2")
    tonight = newest(house)
    assert (tonight[small]["event"], tonight[small]["parents"]) == ("merged", [large])
    assert (tonight[large]["event"], tonight[large]["heirs"][0]) == ("ended", small)
    together = before[small] | before[large]
    assert len(members(house)[small] & together) >= 0.8 * len(together)
    passport = passport_of(past_of(load_settings(house.config), house.name), small)
    assert passport["events"][-1]["event"] == "merged"
    for night in ("n3", "n4"):
        house.drop(f"{night}.jsonl", rows(4, seed=int(night[1])))
        house.work(night)
        assert newest(house)[small]["event"] == "continued"
        assert large not in {one for one, row in newest(house).items() if row["event"] != "ended"}


def test_a_split_by_hand_is_made_and_stays(house: House) -> None:
    large = max(newest(house), key=lambda one: newest(house)[one]["size"])
    was = {*newest(house)}
    before = members(house)[large]
    journal(house).split(large, 2, by="ada")
    house.work("n2")
    tonight = newest(house)
    [child] = {*tonight} - was
    assert (tonight[child]["event"], tonight[child]["parents"]) == ("split", [large])
    assert tonight[large]["event"] == "continued"
    after = members(house)
    assert len((after[large] | after[child]) & before) >= 0.7 * len(before)
    house.drop("n3.jsonl", rows(4, seed=3))
    house.work("n3")
    assert {newest(house)[one]["event"] for one in (large, child)} == {"continued"}


def test_what_was_taken_back_or_has_ended_changes_nothing(house: House) -> None:
    one, two = sorted(newest(house))[:2]
    journal(house).merge(one, two, by="ada")
    journal(house).leave(one, by="ada")
    journal(house).split("c-0999", 2, by="ada")
    house.work("n2")
    assert {row["event"] for row in newest(house).values()} == {"continued"}


# --- labels --------------------------------------------------------------------------------------


def test_a_persons_label_stands_against_a_class_that_a_cluster_became(house: House) -> None:
    cluster_id, docs = max(members(house).items(), key=lambda one: len(one[1]))
    free = [row["doc_id"] for row in house.table("documents")
            if row["label"] is None and row["doc_id"] in docs]  # fmt: skip
    assert free
    journal(house).say_label(free[0], "mine", None, "unsure", "ada")
    journal(house).say_name(cluster_id, "All", "theirs", by="bob")
    house.work("n2")
    told = [(row["doc_id"], row["label"]) for row in house.table("labels")]
    assert Counter(one for one, _ in told).most_common(1)[0][1] == 1
    assert dict(told)[free[0]] == "mine"
    assert "theirs" in dict(told).values()


def test_the_sentence_says_what_the_labels_did_and_no_more() -> None:
    found = {"documents": 12, "by": {"ada": 8, "bob": 4}, "trained": True, "rows": 531,
             "before": 0.896, "after": 0.901}  # fmt: skip
    people = "People labelled 12 documents since the last training (ada 8, bob 4)"
    assert [str(one) for one in sentences(found)] == [
        f"{people}. The model that learned from them is right on 90.1% of the same 531 test rows "
        "(0.5 points more; before: 89.6%)"
    ]
    assert "(1.6 points fewer; before" in sentences({**found, "after": 0.88})[0].en
    assert "(as before; before" in sentences({**found, "after": 0.896})[0].en
    [waiting] = sentences({**found, "trained": False})
    assert waiting.en == f"{people}; they wait for the next one"
    assert waiting.zh == "自上次训练以来，人工标注了 12 篇文档（ada 8, bob 4）；等待下一次训练"
    assert sentences({}) == []


# --- the index ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [("手机丢失", "手机 机丢 丢失 失"), ("我a我", "我 a 我"), ("plain words", "plain words")],
)
def test_chinese_is_found_by_pairs(text: str, parts: str) -> None:
    assert searchable(text).split() == parts.split()


@pytest.mark.parametrize(
    ("said", "query"),
    [("lost car", '"lost" "car"*'), ("手机丢", '"手机 机丢"'), ("机", '"机"*'),
     ('a" OR', '"a" "OR"*'), ("!?", "")],
)  # fmt: skip
def test_what_is_typed_becomes_a_query_of_words_alone(said: str, query: str) -> None:
    assert query_of(said) == query


def test_an_index_is_made_once_per_night_and_goes_with_a_forgotten_document(
    house: House, tmp_path: Path
) -> None:
    folder = house.folder / "lake" / house.name
    path = build_index(house.lake, folder)
    made = path.stat().st_mtime_ns
    assert build_index(house.lake, folder).stat().st_mtime_ns == made
    doc = house.table("documents")[0]
    index = Index(path)
    assert index.doc(doc["doc_id"]) is not None
    journal(house).say_label(doc["doc_id"], "x", None, "unsure", "ada")
    forget(load_settings(house.config), house.name, [doc["doc_id"]], "asked for", "ada")
    assert not path.exists()
    assert journal(house).said() == []
    again = build_index(house.lake, folder)
    assert again != path
    assert Index(again).doc(doc["doc_id"]) is None
    assert doc["text"].encode() not in again.read_bytes()


def test_without_a_night_there_is_nothing_to_review(tmp_path: Path) -> None:
    from nightshift.tables import Lake

    with pytest.raises(NightError, match="nothing to review"):
        build_index(Lake(str(tmp_path), "new"), tmp_path)


# --- files --------------------------------------------------------------------------------------


def said(house: House) -> dict[str, tuple[str | None, str]]:
    return {one.doc_id: (one.label, one.by) for one in journal(house).labels(0)}


def bring_in(house: House, file: Path, form: str | None = None, by: str | None = None) -> list[str]:
    return list(import_labels(load_settings(house.config), house.name, file, form, by))


@pytest.mark.parametrize("form", FORMATS)
def test_labels_that_go_out_come_in_again_with_who_said_them(
    house: House, worked: House, tmp_path: Path, form: str
) -> None:
    docs = [row["doc_id"] for row in house.table("documents")]
    journal(house).say_label(docs[0], "银行", None, "unsure", "ada")
    journal(house).say_label(docs[1], 'a "b", c', None, "unsure", "bob")
    journal(house).say_label(docs[2], None, "chess", "unsure", "bob")
    journal(house).say_label(docs[3], "=cmd|' /C calc'!A0", None, "unsure", "bob")
    before = said(house)
    ending = {"csv": ".csv", "jsonl": ".jsonl"}.get(form, ".json")
    file = tmp_path / f"labels{ending}"
    file.write_text("".join(export_labels(load_settings(house.config), house.name, form)))
    shutil.rmtree(tmp_path / worked.name)
    shutil.copytree(worked.folder, house.folder)
    [line] = bring_in(house, file)
    assert "4 labels" in line
    assert said(house) == before
    assert "0 of them new" in bring_in(house, file)[0]


def test_published_labels_go_out_too_and_the_source_s_do_not(house: House) -> None:
    docs = [row["doc_id"] for row in house.table("documents")]
    journal(house).say_label(docs[0], "galley", None, "unsure", "ada")
    house.work("n2")
    journal(house).say_label(docs[1], "late", None, "unsure", "bob")
    lines = "".join(export_labels(load_settings(house.config), house.name, "jsonl")).splitlines()
    told = {row["doc_id"]: (row["label"], row["by"]) for row in map(json.loads, lines)}
    assert told == {docs[0]: ("galley", "ada"), docs[1]: ("late", "bob")}


def test_what_label_studio_and_argilla_export_is_read(house: House, tmp_path: Path) -> None:
    one, two, three = house.table("documents")[:3]
    studio = [
        {"id": 1, "data": {"text": one["text"]}, "predictions": [],
         "annotations": [{"id": 9, "was_cancelled": False, "completed_by": 1, "result": [
             {"id": "x", "from_name": "label", "to_name": "text", "type": "choices",
              "origin": "manual", "value": {"choices": ["galley"]}}]}]},
        {"id": 2, "data": {"text": two["text"]}, "annotations": [{"was_cancelled": True,
                                                                "result": []}]},
    ]  # fmt: skip
    argilla = [
        {"id": three["doc_id"], "fields": {"text": three["text"]}, "metadata": {}, "vectors": {},
         "suggestions": {"label": {"value": "no", "score": 0.9, "agent": "a model"}},
         "responses": {"label": [{"value": "galley", "user_id": "3f0a"}]}, "_server_id": "77"},
        {"id": two["doc_id"], "fields": {"text": two["text"]}, "responses": {},
         "suggestions": {"label": {"value": "no", "score": 0.9, "agent": "a model"}}},
    ]  # fmt: skip
    for name, found in (("studio", studio), ("argilla", argilla)):
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
        bring_in(house, tmp_path / f"{name}.json", by="eve")
    assert said(house) == {one["doc_id"]: ("galley", "eve"), three["doc_id"]: ("galley", "eve")}


def test_a_cell_left_blank_says_nothing_and_is_counted(house: House, tmp_path: Path) -> None:
    one, two, three = (row["doc_id"] for row in house.table("documents")[:3])
    file = tmp_path / "labels.csv"
    file.write_text(f"doc_id,label\n{one},galley\n{two},\n{three},(no class)\n,  \n")
    lines = bring_in(house, file, by="ada")
    assert "2 labels" in lines[0]
    assert lines[1].startswith("2 rows have no label")
    assert said(house) == {one: ("galley", "ada"), three: (None, "ada")}
    file = tmp_path / "labels.jsonl"
    file.write_text(f'{{"doc_id": "{one}", "label": null}}\n')
    assert "1 rows have no label" in bring_in(house, file, by="ada")[1]
    assert said(house)[one] == ("galley", "ada")


def test_no_cell_of_a_file_of_labels_is_a_formula(house: House) -> None:
    doc = house.table("documents")[0]["doc_id"]
    journal(house).say_label(doc, '=HYPERLINK("http://evil")', None, "unsure", "ada")
    out = "".join(export_labels(load_settings(house.config), house.name, "csv"))
    assert "\"'=HYPERLINK" in out
    assert '"=HYPERLINK' not in out


def test_a_label_of_the_source_comes_in_as_the_source_has_it(
    tmp_path: Path, worked: House, house: House
) -> None:
    long = "a  label " + "x" * 90
    house.drop("odd.jsonl", [{"text": "a text with an odd label", "label": long}])
    house.work("n2")
    doc = house.table("documents")[0]["doc_id"]
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps({"doc_id": doc, "label": long, "by": "ada"}))
    bring_in(house, file)
    assert said(house)[doc] == (long, "ada")


def test_an_unknown_document_is_told_and_kept_for_later(house: House, tmp_path: Path) -> None:
    known = house.table("documents")[0]["doc_id"]
    file = tmp_path / "labels.csv"
    file.write_text(f"doc_id,label,by\n{known},galley,ada\nr-77,oven,bob\n")
    lines = bring_in(house, file)
    assert "1 labels" in lines[0]
    assert "line 3 (r-77)" in lines[1]
    kept = tmp_path / "labels.unknown.jsonl"
    assert json.loads(kept.read_text()) == {
        "doc_id": "r-77", "text": None, "label": "oven", "by": "bob",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "doc_id,lable\nr-1,x\n", "no column label"),
        ("a.csv", "doc_id,label\n{known},x\n,y\n", "line 3: found neither a doc_id nor a text"),
        ("a.csv", "doc_id,label\n{known}," + "x" * 81 + "\n", "line 2: label: found"),
        ("a.jsonl", '{{"doc_id": "{known}", "label": "x"}}\n{{oops\n', "line 2: is not JSON"),
        ("a.jsonl", '{{"doc_id": "{known}", "label": "x"}}\n{{"doc_id": "r"}}\n', "line 2: is not"),
        ("a.jsonl", '{{"doc_id": "{known}", "label": "x", "by": "source"}}\n', "line 1: by: found"),
        ("a.json", '[{{"data": 3, "annotations": [{{"result": []}}]}}]', "item 1: is not of the"),
        ("a.json", "{{}}", "expected a JSON array"),
        ("a.txt", "x", "expected .csv"),
    ],
)
def test_a_wrong_row_is_named_and_nothing_is_said(
    house: House, tmp_path: Path, name: str, content: str, told: str
) -> None:
    known = house.table("documents")[0]["doc_id"]
    file = tmp_path / name
    file.write_text(content.format(known=known))
    with pytest.raises(ConfigError, match=told):
        bring_in(house, file)
    assert journal(house).said() == []


def test_the_command_writes_and_reads(house: House, tmp_path: Path) -> None:
    doc = house.table("documents")[0]["doc_id"]
    journal(house).say_label(doc, "galley", None, "unsure", "ada")

    def call(*words: str) -> Any:
        return CliRunner().invoke(cli.app, ["labels", *words, "--config", str(house.config)])

    out = call("export", house.name)
    assert out.stdout.splitlines()[0] == "doc_id,text,label,by,at"
    assert doc in out.stdout
    file = tmp_path / "labels.json"
    assert call("export", house.name, str(file), "--format", "argilla").exit_code == 0
    assert "0 of them new" in call("import", house.name, str(file)).stdout
