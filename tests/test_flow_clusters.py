"""Clusters over nights: names that people give, topics that are born, classes that follow."""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlflow
import pandas as pd
import pytest
from conftest import TOPICS, House, rows, texts

from flows.clusters import forget_name, journal_of, past_of, say_name, table_of
from nightshift.journal import Journal
from nightshift.nearest import UNASSIGNED
from nightshift.pipeline import Settings, load_settings
from tasks.train import is_of_no_class

TOPIC_OF = {text: topic for topic in TOPICS for seed in range(4) for text in texts(topic, 60, seed)}


def settings(house: House) -> Settings:
    return load_settings(house.config)


def journal(house: House) -> Journal:
    return journal_of(settings(house), house.name)


def call(house: House, cluster_id: str, name: str, class_name: str | None = None) -> list[str]:
    past = past_of(settings(house), house.name)
    return list(say_name(past, journal(house), cluster_id, name, class_name, "ada"))


def clusters(house: House) -> list[dict[str, Any]]:
    """The newest night's, the largest first."""
    return past_of(settings(house), house.name).tonight


def topics_of(house: House) -> dict[str, Counter[str]]:
    """How many documents of each topic every cluster has."""
    text_of = {row["doc_id"]: row["text"] for row in house.table("documents")}
    where = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    found: dict[str, Counter[str]] = {}
    for doc_id, cluster_id in where.items():
        found.setdefault(cluster_id, Counter())[TOPIC_OF[text_of[doc_id]]] += 1
    return found


def unlabelled(house: House, **clusters: Any) -> None:
    house.declare(source={"label": None}, clusters=clusters)


def test_a_name_is_taken_up_by_a_quiet_night_and_stays_until_it_is_taken_back(
    house: House,
) -> None:
    house.drop("one.jsonl", rows(30))
    house.work("n1")
    largest = clusters(house)[0]
    assert largest["named_by"] is None
    call(house, largest["cluster_id"], "Kitchen talk")
    house.work("n2")
    named = next(row for row in clusters(house) if row["cluster_id"] == largest["cluster_id"])
    assert (named["name"], named["named_by"], named["born"]) == ("Kitchen talk", "ada", "n1")
    house.drop("two.jsonl", rows(10, seed=1))
    house.work("n3")
    called = {row["cluster_id"]: row["name"] for row in clusters(house)}
    assert called[largest["cluster_id"]] == "Kitchen talk"
    past = past_of(settings(house), house.name)
    list(forget_name(past, journal(house), largest["cluster_id"], "ada"))
    house.work("n4")
    forgotten = next(row for row in clusters(house) if row["cluster_id"] == largest["cluster_id"])
    assert forgotten["named_by"] is None
    assert forgotten["name"] != "Kitchen talk"


def test_a_topic_that_arrives_is_born_on_its_night(house: House) -> None:
    unlabelled(house, k_min=2, k_max=3)
    house.drop("one.jsonl", rows(60, topics=("cooking", "sailing")))
    house.work("n1")
    house.drop("two.jsonl", [*rows(4, 1, ("cooking", "sailing")), *rows(40, 0, ("chess",))])
    house.work("n2")
    born = [row for row in clusters(house) if row["event"] == "born"]
    assert len(born) == 1
    assert born[0]["born"] == "n2"
    of_newborn = topics_of(house)[born[0]["cluster_id"]]
    assert of_newborn["chess"] >= 0.7 * 40
    assert of_newborn["chess"] >= 0.8 * of_newborn.total()


def test_the_unassigned_are_grouped_on_their_own_and_a_quiet_night_keeps_that(
    house: House,
) -> None:
    unlabelled(house, k=2, unassigned=0.4, exemplars=2)
    house.drop("one.jsonl", rows(60, topics=("cooking", "sailing")))
    house.work("n1")
    shown = table_of(past_of(settings(house), house.name))
    groups = shown["among_them"]
    # 48 of 120 documents, 15 to a group.
    assert len(groups) == 3
    assert sum(one["size"] for one in groups) == shown["unassigned"] == 48
    assert groups == sorted(groups, key=lambda one: -one["cohesion"])
    where = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    for one in groups:
        assert one["keywords"]
        assert {where[doc_id] for doc_id in one["exemplars"]} == {UNASSIGNED}
    house.work("n2")
    assert table_of(past_of(settings(house), house.name))["among_them"] == groups


def test_clusters_named_as_classes_are_predicted_from_the_next_night_on(house: House) -> None:
    unlabelled(house, k=3)
    house.drop("one.jsonl", rows(60))
    house.work("n1")
    assert house.table("predictions") == []
    for cluster_id, found in topics_of(house).items():
        if cluster_id != "unassigned":
            topic = found.most_common(1)[0][0]
            [_, *said] = call(house, cluster_id, f"All of {topic}", topic)
            assert any(f"examples of class {topic}" in line for line in said)
    before = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    model = house.lake.published()["model_id"]
    house.drop("two.jsonl", rows(20, seed=1))
    house.work("n2")
    text_of = {row["doc_id"]: row["text"] for row in house.table("documents")}
    said = {text_of[row["doc_id"]]: row["label"] for row in house.table("predictions")}
    assert len(said) == 240
    right = sum(TOPIC_OF[text] == label for text, label in said.items())
    assert right >= 0.9 * len(said)
    assert {row["by"] for row in house.table("labels")} == {
        f"cluster c-000{number}" for number in (1, 2, 3)
    }
    # Another model, another space, and the same clusters.
    assert house.lake.published()["model_id"] != model
    after = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    assert sum(after[one] == where for one, where in before.items()) >= 0.9 * len(before)
    assert {row["event"] for row in clusters(house)} == {"continued"}


def test_a_cluster_that_is_of_no_class_lives_on_when_others_become_classes(house: House) -> None:
    unlabelled(house, k=3)
    house.drop("one.jsonl", rows(60))
    house.work("n1")
    found = sorted(one for one in topics_of(house) if one != "unassigned")
    for cluster_id in found[:2]:
        call(house, cluster_id, f"Named {cluster_id}", cluster_id)
    before = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    house.work("n2")
    assert house.lake.published()["figures"]["model"]["kind"] == "network"
    assert {row["event"] for row in clusters(house)} == {"continued"}
    after = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    assert sum(after[one] == where for one, where in before.items()) >= 0.9 * len(before)
    # It has no answer of its own: the classes are those that were named.
    assert {row["label"] for row in house.table("predictions")} <= set(found[:2])


def test_a_cluster_is_of_no_class_only_where_labels_pass_it_over() -> None:
    # A quarter of all is labelled: of 100 documents 25 are expected, of which 2 are a tenth.
    assert is_of_no_class(100, 2, 0.25)
    assert not is_of_no_class(100, 3, 0.25)
    # One label in a hundred, spread evenly: no cluster is passed over, none of 50 is no news.
    assert not is_of_no_class(5_000, 50, 0.01)
    assert not is_of_no_class(50, 0, 0.01)
    assert is_of_no_class(5_000, 0, 0.01)


@pytest.mark.parametrize("again", ["better name", "forget"])
def test_examples_follow_what_was_said_last(house: House, again: str) -> None:
    from nightshift.corpus import current_labels

    unlabelled(house, k=3)
    house.drop("one.jsonl", rows(30))
    house.work("n1")
    call(house, "c-0001", "One", "first")
    house.work("n2")
    given = current_labels(house.lake)
    # Eight in ten of the cluster's documents, the nearest ones.
    size = next(row["size"] for row in clusters(house) if row["cluster_id"] == "c-0001")
    assert set(given.values()) == {"first"}
    assert len(given) == round(0.8 * size)
    if again == "forget":
        past = past_of(settings(house), house.name)
        list(forget_name(past, journal(house), "c-0001", "ada"))
    else:
        call(house, "c-0001", "One and only", "second")
    house.work("n3")
    now = current_labels(house.lake)
    assert set(now.values()) == (set() if again == "forget" else {"second"})
    assert len(now) == (0 if again == "forget" else len(given))


def test_a_model_that_comes_back_has_every_document_once(house: House) -> None:
    unlabelled(house, k=2)
    house.drop("one.jsonl", rows(30, topics=("cooking", "sailing")))
    for night, way in (("n1", "vectors"), ("n2", "clusters"), ("n3", "vectors")):
        house.declare(train={"without_labels": way, "learning_rate": 0.02})
        house.work(night)
        assert sum(row["size"] for row in clusters(house)) <= 60
    first, last = (
        next(row for row in house.status() if row["night"] == one) for one in ("n1", "n3")
    )
    assert first["model_id"] == last["model_id"]


def test_a_network_that_could_not_be_learned_is_not_tried_again_every_night(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlabelled(house, k=2)
    house.declare(train={"without_labels": "clusters"})
    monkeypatch.setattr("nightshift.discovery.refit", lambda *_: None)
    house.drop("one.jsonl", rows(30, topics=("cooking", "sailing")))
    house.work("n1")
    house.drop("two.jsonl", rows(2, 1, ("cooking", "sailing")))
    house.work("n2")
    first, second = (row["figures"] for row in house.lake.nights())
    assert (first["model"]["kind"], first["trained"]) == ("vectors", True)
    assert not second["trained"]


def test_a_changed_tokenizer_is_no_reason_to_fail_while_the_champion_reads_another(
    house: House,
) -> None:
    house.drop("one.jsonl", rows(60))
    house.work("n1")
    house.declare(tokenizer={"vocabulary": 300}, train={"when": "never"})
    house.drop("two.jsonl", rows(20, 1))
    house.work("n2")
    said = {row["doc_id"] for row in house.table("predictions")}
    assert said == {row["doc_id"] for row in house.table("documents")}


@pytest.mark.slow
def test_without_labels_a_network_learns_clusters_and_on_its_night_a_new_topic(
    house: House,
) -> None:
    unlabelled(house, k_min=2, k_max=3)
    house.declare(train={"without_labels": "clusters", "learning_rate": 0.02})
    house.drop("one.jsonl", rows(60, topics=("cooking", "sailing")))
    house.work("n1")
    first = house.lake.published()
    assert first["figures"]["model"]["kind"] == "encoder"
    assert {row["event"] for row in clusters(house)} == {"born"}
    assert house.table("predictions") == []
    house.drop("two.jsonl", rows(4, 1, ("cooking", "sailing")))
    house.work("n2")
    # Frozen while nothing is new: otherwise every night would move every document.
    assert house.lake.published()["model_id"] == first["model_id"]
    before = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    house.drop("three.jsonl", [*rows(4, 3, ("cooking", "sailing")), *rows(40, 0, ("chess",))])
    house.work("n3")
    assert house.lake.published()["model_id"] != first["model_id"]
    [born] = [row for row in clusters(house) if row["event"] == "born"]
    assert topics_of(house)[born["cluster_id"]]["chess"] >= 0.8 * 40
    after = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    assert sum(after[one] == where for one, where in before.items()) >= 0.9 * len(before)
    # The network is served: it knows clusters, and no labels.
    model = mlflow.pyfunc.load_model(f"models:/{house.name}@champion")
    said = model.predict(pd.DataFrame({"text": texts("cooking", 20, 9)}))
    assert said["label"].isna().all()
    of_cooking = [one for one, held in topics_of(house).items() if held["cooking"] > 40]
    assert (said["cluster_id"] == of_cooking[0]).sum() >= 15
