"""A person turns to another model: promotes, goes back, and asks who was champion when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import SCRATCH, House, rows
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from flows.champions import as_lines, champion_at, promote, roll_back
from flows.clusters import journal_of
from flows.lineage import as_lines as lineage_lines
from flows.lineage import lineage
from flows.replaying import replay
from nightshift.corpus import current_assignments
from nightshift.errors import ConfigError, NightError, PassingError, ReplayError
from nightshift.pipeline import load_settings
from tasks.promote import by_other_code
from tasks.tracking import champion_bundle


def aliases(house: House) -> dict[str, int]:
    client = MlflowClient(f"sqlite:///{SCRATCH}/mlflow.db")
    found = client.get_registered_model(house.name).aliases
    return {name: int(version) for name, version in found.items()}


def tags(house: House, version: int) -> dict[str, str]:
    client = MlflowClient(f"sqlite:///{SCRATCH}/mlflow.db")
    return client.get_model_version(house.name, str(version)).tags


def asked(house: House, at: Any = None) -> dict[str, Any]:
    when = None if at is None else at.isoformat()
    return champion_at(load_settings(house.config), house.name, when)


def another(house: House, policy: str, seed: int, when: str = "auto") -> None:
    """Declare a recipe that gives another model, and what is to be done with it."""
    training = {"epochs": 6, "learning_rate": 0.02, "batch_tokens": 512, "seed": seed}
    house.declare(train={**training, "when": when}, promotion={"policy": policy})


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Two nights with a model each; then back to the first, a night, and one that waits."""
    house = House(tmp_path_factory.mktemp("champions"))
    house.declare()
    (house.folder / "inbox").mkdir()
    house.drop("one.jsonl", rows(60))
    house.work("n1")
    another(house, "always", seed=5)
    house.drop("two.jsonl", rows(8, seed=2))
    house.work("n2")
    roll_back(house.name, None, "sports became politics", "ann", str(house.config))
    house.drop("three.jsonl", rows(8, seed=3))
    another(house, "always", seed=5, when="never")
    house.work("n3")
    another(house, "manual", seed=9)
    house.work("n4")
    return house


def night(house: House, name: str) -> dict[str, Any]:
    return next(row for row in house.lake.nights() if name in row["night"])


def test_a_rollback_is_one_flip_to_the_version_that_was(story: House) -> None:
    first, second, back = (night(story, name) for name in ("n1", "n2", "rollback"))
    assert first["model_id"] != second["model_id"]
    assert back["state"] == "published"
    assert (back["model_id"], back["registry_version"]) == (
        first["model_id"], first["registry_version"],
    )  # fmt: skip
    assert back["figures"]["quality"] == first["figures"]["quality"]
    # The tables are those of the night before; only clusters and the decision have rows.
    same = {name: one for name, one in back["versions"].items() if name in ("documents", "tokens")}
    assert same == {name: second["versions"][name] for name in same}
    said = tags(story, second["registry_version"])["nightshift.rolled_back"]
    assert said.endswith(": sports became politics")


def test_the_night_after_a_rollback_labels_what_the_model_has_not_read(story: House) -> None:
    first, third = night(story, "n1"), night(story, "n3")
    assert third["model_id"] == first["model_id"]
    assert third["registry_version"] != first["registry_version"]
    own = [row for row in story.table("predictions") if row["model_id"] == first["model_id"]]
    assert len({row["doc_id"] for row in own}) == len(own) == 3 * 76
    # Those of the second night, which another model labelled then, and its own.
    assert sum(row["night"] == "n3" for row in own) == 3 * 16


def test_clusters_keep_their_ids_through_a_rollback(story: House) -> None:
    living: dict[str, set[str]] = {}
    for row in story.table("clusters"):
        if row["event"] != "ended":
            living.setdefault(row["night"], set()).add(row["cluster_id"])
    back = night(story, "rollback")["night"]
    assert living["n1"] == living[back]
    assert living["n3"] & living["n1"]


# --- the clusters of then ---------------------------------------------------------------------


def living(house: House, name: str) -> dict[str, Any]:
    """What a night's living clusters answer with."""
    keys = ("name", "named_by", "keywords", "centroid", "scale", "radius", "model_id")
    return {row["cluster_id"]: [row[key] for key in keys] for row in house.table("clusters")
            if row["night"] == name and row["event"] != "ended"}  # fmt: skip


def fates(house: House, name: str) -> dict[str, str]:
    return {row["cluster_id"]: row["event"] for row in house.table("clusters")
            if row["night"] == name}  # fmt: skip


def assigned(house: House, name: str) -> dict[str, str]:
    """Where the documents were as of a night."""
    where = night(house, name)
    found = current_assignments(house.lake, until=where["number"])
    return {doc_id: cluster_id for doc_id, (cluster_id, _) in found.items()}


@pytest.fixture(scope="module")
def regretted(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Version 1, then 2 and 3 of the same model with other clusters and a person's name, back to 1,
    a night of nothing new; another model with version 4, back, and a night of nothing new."""
    house = House(tmp_path_factory.mktemp("regretted"))
    house.declare(clusters={"k": 3})
    (house.folder / "inbox").mkdir()
    house.drop("one.jsonl", rows(60))
    house.work("n1")
    another(house, "always", seed=5, when="never")
    house.drop("two.jsonl", rows(40, seed=2))
    house.declare(clusters={"k": 5})
    house.work("n2")
    journal_of(load_settings(house.config), house.name).say_name("c-0001", "Regretted", None, "ann")
    house.work("n3")
    roll_back(house.name, 1, "too many", "ann", str(house.config))
    house.work("n4")
    another(house, "always", seed=5)
    house.work("n5")
    another(house, "always", seed=5, when="never")
    roll_back(house.name, None, "worse", "ann", str(house.config))
    house.work("n6")
    return house


def test_a_rollback_to_the_same_model_is_not_undone_by_an_empty_night(regretted: House) -> None:
    versions = {row["night"]: row["registry_version"] for row in regretted.lake.nights()}
    first, third, fourth = (night(regretted, name) for name in ("n1", "n3", "n4"))
    assert first["model_id"] == third["model_id"] == fourth["model_id"]
    assert [versions[name] for name in ("n1", "n2", "n3", "n4")] == [1, 2, 3, 1]
    back = night(regretted, "rollback-1")["night"]
    assert len(living(regretted, "n3")) == 5
    assert living(regretted, "n3")["c-0001"][0] == "Regretted"
    assert living(regretted, "n1") == living(regretted, back) == living(regretted, "n4")
    assert living(regretted, back)["c-0001"][0] != "Regretted"


def test_clusters_of_the_bad_version_end_when_it_is_gone_back_from(regretted: House) -> None:
    back, old = night(regretted, "rollback-1")["night"], living(regretted, "n1")
    new = living(regretted, "n3").keys() - old
    assert new
    found = fates(regretted, back)
    assert {one: found[one] for one in new} == dict.fromkeys(new, "ended")
    assert "ended" not in {found[one] for one in old}
    ended = [row for row in regretted.table("clusters")
             if row["night"] == back and row["event"] == "ended"]  # fmt: skip
    assert all({*row["heirs"]} <= {*old} for row in ended)
    was, now = assigned(regretted, "n1"), assigned(regretted, back)
    assert {one: now[one] for one in was} == was
    # Those that came later are with the nearest of the old centroids, and are counted there.
    assert {*now.values()} <= {*old, "unassigned"}
    assert len(now) == 3 * 100
    sizes = {row["cluster_id"]: row["size"] for row in regretted.table("clusters")
             if row["night"] == back and row["event"] != "ended"}  # fmt: skip
    assert sizes == {one: sum(there == one for there in now.values()) for one in old}


def test_a_rollback_to_another_model_is_kept_by_an_empty_night(regretted: House) -> None:
    fifth, sixth = night(regretted, "n5"), night(regretted, "n6")
    assert fifth["model_id"] != sixth["model_id"] == night(regretted, "n1")["model_id"]
    # Version 3 of the same model was gone back from, so the one before it answers.
    assert sixth["registry_version"] == 1
    back = regretted.lake.nights()[-2]["night"]
    assert living(regretted, back) == living(regretted, "n6") == living(regretted, "n1")
    was, now = assigned(regretted, "n4"), assigned(regretted, "n6")
    assert was == now


def test_a_night_of_a_rollback_is_not_replayed_and_says_what_it_was(regretted: House) -> None:
    with pytest.raises(ReplayError, match="went back to version 1, and nothing was computed"):
        replay(
            load_settings(regretted.config), regretted.name, night(regretted, "rollback-1")["night"]
        )


def test_a_decision_says_that_the_champions_version_was_made_by_other_code(
    regretted: House,
) -> None:
    # It went back to version 1, whose night was worked by code of long ago.
    rows_now = {row["night"]: row for row in regretted.lake.nights()}
    back = night(regretted, "rollback-1")
    assert back["figures"]["bundle_code"] == rows_now["n1"]["code_version"]
    old = {**back, "figures": {**back["figures"], "bundle_code": "0.0.9+old"}}
    for previous, words in ((back, ""), (old, "was made by 0.0.9+old"), (None, "")):
        before: Any = SimpleNamespace(previous=previous, before=(previous or {}).get("figures", {}))
        assert words in by_other_code(before)
        assert bool(words) == bool(by_other_code(before))


def test_a_second_rollback_does_not_return_to_what_was_gone_back_from(regretted: House) -> None:
    settings, before = str(regretted.config), len(regretted.lake.nights())
    with pytest.raises(ConfigError, match=r"versions 4.* somebody went back from each.*--to"):
        roll_back(regretted.name, None, "again", "ann", settings)
    assert len(regretted.lake.nights()) == before


def test_the_ledger_tells_versions_of_one_model_apart(regretted: House) -> None:
    soon = timedelta(milliseconds=1)
    back = night(regretted, "rollback-1")["night"]
    nights = [night(regretted, name) for name in ("n1", "n2", "n3", back, "n4", "n5")]
    found = [asked(regretted, row["finished"] + soon) for row in nights]
    assert [one["version"] for one in found] == [1, 2, 3, 1, 1, 4]
    assert [one["replaced_by"] for one in found] == [2, 3, 1, 4, 4, 1]
    moments = [row["finished"].isoformat(timespec="seconds") for row in nights]
    assert [one["since"] for one in found] == [*moments[:4], moments[3], moments[5]]
    assert [one["model_since"] for one in found[:5]] == [moments[0]] * 5
    assert [one["decision"]["decision"] for one in found] == [
        "promoted", "promoted", "promoted", "rolled_back", "rolled_back", "promoted",
    ]  # fmt: skip
    assert "too many" in found[3]["decision"]["reason"]
    assert found[2]["decision"]["night"] == "n1"
    lines = "\n".join(as_lines(found[2]))
    assert "this version has other clusters" in lines
    lines = "\n".join(as_lines(found[5]))
    assert "decided   by policy in night n5, promotion.policy always" in lines
    assert "95% interval of the lead" in lines


# --- lineage ----------------------------------------------------------------------------------


def test_lineage_after_a_rollback_leads_to_what_the_other_model_said(house: House) -> None:
    house.drop("one.jsonl", rows(60))
    house.work("n1")
    another(house, "always", seed=5)
    house.drop("two.jsonl", rows(8, seed=2))
    house.work("n2")
    roll_back(house.name, None, "bad", "ann", str(house.config))
    settings, second = load_settings(house.config), night(house, "n2")
    late = next(row["doc_id"] for row in house.table("documents") if row["night"] == "n2")
    told = lineage(settings, house.name, late)
    assert told["prediction"] is None
    assert told["others"] == [{"model_id": second["model_id"], "version": 2, "night": "n2"}]
    lines = "\n".join(lineage_lines(told))
    assert "prediction none: version 1 (model " in lines
    assert "had not read it" in lines
    assert f"version 2 answered in night n2: --model {second['model_id'][:12]}" in lines
    soon = (second["finished"] + timedelta(milliseconds=1)).isoformat()
    for asked_by in ({"at": soon}, {"model": second["model_id"][:6]}):
        told = lineage(settings, house.name, late, **asked_by)
        assert told["prediction"]["night"] == "n2"
        assert (told["model"]["version"], told["model"]["model_id"]) == (2, second["model_id"])
        assert told["model"]["uri"] == second["model_uri"]
        assert told["trained"]["night"] == "n2"
        assert told["others"] == []
    with pytest.raises(ConfigError, match="--model: found 'zz', expected the beginning of one"):
        lineage(settings, house.name, late, model="zz")
    with pytest.raises(ConfigError, match="Give one of them"):
        lineage(settings, house.name, late, at=soon, model="zz")
    early = next(row["doc_id"] for row in house.table("documents") if row["night"] == "n1")
    told = lineage(settings, house.name, early)
    assert (told["prediction"]["night"], told["model"]["version"]) == ("n1", 1)


# --- the ledger -------------------------------------------------------------------------------


def test_the_ledger_answers_for_three_dates(story: House) -> None:
    first, second, back = (night(story, name) for name in ("n1", "n2", "rollback"))
    soon = timedelta(milliseconds=1)
    found = [asked(story, row["finished"] + soon) for row in (first, second, back)]
    assert [one["version"] for one in found] == [
        row["registry_version"] for row in (first, second, back)
    ]
    assert [one["decision"]["decision"] for one in found] == ["promoted", "promoted", "rolled_back"]
    assert [one["decision"]["by"] for one in found] == ["policy", "policy", "ann"]
    assert "the first classifier becomes champion" in found[0]["decision"]["reason"]
    assert "promotion.policy is always" in found[1]["decision"]["reason"]
    assert [one["trained"]["night"] for one in found] == ["n1", "n2", "n1"]
    assert found[0]["trained"]["labels"] == 180
    assert found[0]["until"] == found[1]["since"]
    assert found[1]["replaced_by"] == back["registry_version"]
    lines = "\n".join(as_lines(found[2]))
    assert "ann rolled back from version" in lines
    assert "180 labels of 3 classes" in lines


def test_before_the_first_night_there_was_no_champion(story: House) -> None:
    with pytest.raises(NightError, match="its first came at"):
        asked(story, datetime(2001, 1, 1, tzinfo=UTC))
    settings = load_settings(story.config)
    for words in ("last tuesday", "", "2026-02-30", "9999-12-31", "0001-01-01T00:00"):
        with pytest.raises(ConfigError, match="expected a date such as"):
            champion_at(settings, story.name, words)


def test_a_date_is_its_end_and_a_moment_may_name_its_zone(story: House) -> None:
    settings, first = load_settings(story.config), night(story, "n1")
    today = first["finished"].astimezone().date()
    ends = [champion_at(settings, story.name, form)["at"]
            for form in (today.isoformat(), today.strftime("%Y%m%d"))]  # fmt: skip
    midnight = datetime.combine(today + timedelta(days=1), datetime.min.time()).astimezone()
    assert ends == [midnight.isoformat()] * 2
    after = (first["finished"] + timedelta(milliseconds=1)).astimezone(UTC)
    for zone in (UTC, timezone(timedelta(hours=8)), timezone(-timedelta(hours=9, minutes=30))):
        found = asked(story, after.astimezone(zone))
        assert found["version"] == first["registry_version"]
    assert champion_at(settings, story.name, f"{after:%Y-%m-%dT%H:%M:%S.%fZ}")["night"] == "n1"


def test_a_challenger_waits_for_a_person_who_makes_it_champion(story: House) -> None:
    fourth = night(story, "n4")
    waiting = fourth["figures"]["challenger_version"]
    assert fourth["model_id"] == night(story, "n1")["model_id"]
    assert aliases(story)["challenger"] == waiting
    assert tags(story, waiting)["nightshift.decision"] == "waiting"
    promote(story.name, waiting, "the labels read better", "ben", str(story.config))
    last = story.lake.published()
    assert last["model_id"] == tags(story, waiting)["nightshift.model_id"] != fourth["model_id"]
    # Its clusters are new, so the same model is another version.
    assert aliases(story)["champion"] == last["registry_version"] > waiting
    own = {row["doc_id"] for row in story.table("predictions")
           if row["model_id"] == last["model_id"]}  # fmt: skip
    assert len(own) == 3 * 76
    centred = {row["model_id"] for row in story.table("clusters")
               if row["night"] == last["night"] and row["event"] != "ended"}  # fmt: skip
    assert centred == {last["model_id"]}
    found = asked(story)
    assert found["decision"]["by"] == "ben"
    assert "the labels read better" in found["decision"]["reason"]
    assert found["decision"]["rows"] > 0
    assert found["trained"]["night"] == "n4"
    doc_id = story.table("documents")[0]["doc_id"]
    told = lineage(load_settings(story.config), story.name, doc_id)
    assert told["prediction"]["night"] == last["night"]
    assert (told["trained"]["night"], told["trained"]["mlflow_run"]) == ("n4", fourth["mlflow_run"])
    assert told["trained"]["tables"]["documents"] == fourth["versions"]["documents"]
    with pytest.raises(ConfigError, match="is champion already"):
        promote(story.name, waiting, "again", "ben", str(story.config))
    with pytest.raises(ReplayError, match=r"promoted version \d+, and documents were"):
        replay(load_settings(story.config), story.name, last["night"])


def test_versions_that_cannot_become_champion_change_nothing(story: House) -> None:
    before, nights = aliases(story), len(story.lake.nights())
    for version in (999, 0, -1, 10**30):
        with pytest.raises(ConfigError, match=f"no version {version}"):
            promote(story.name, version, "why", None, str(story.config))
    for reason in ("", " \n ", "x" * 501):
        with pytest.raises(ConfigError, match="--reason: found"):
            promote(story.name, before["challenger"], reason, "ben", str(story.config))
        with pytest.raises(ConfigError, match="--reason: found"):
            roll_back(story.name, None, reason, "ben", str(story.config))
    with pytest.raises(ConfigError, match="was never champion; found"):
        roll_back(story.name, 999, "why", None, str(story.config))
    with pytest.raises(ConfigError, match="is champion"):
        roll_back(story.name, before["champion"], "why", None, str(story.config))
    assert aliases(story) == before
    assert len(story.lake.nights()) == nights


def test_a_damaged_version_is_not_gone_back_to(story: House) -> None:
    before, rows_before = aliases(story), len(story.lake.nights())
    version = night(story, "n2")["registry_version"]
    client = MlflowClient(f"sqlite:///{SCRATCH}/mlflow.db")
    where = client.get_model_version_download_uri(story.name, str(version))
    weights = Path(download_artifacts(where)) / "artifacts" / "bundle" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    try:
        with pytest.raises(NightError, match="cut or altered"):
            roll_back(story.name, version, "why", "ann", str(story.config))
    finally:
        weights.write_bytes(whole)
    assert aliases(story) == before
    assert len(story.lake.nights()) == rows_before


def test_a_registry_that_is_down_leaves_the_champion(story: House) -> None:
    settings = load_settings(story.config)
    before, version = aliases(story), night(story, "n2")["registry_version"]
    text = story.config.read_text()
    story.config.write_text(text.replace(settings.mlflow, "http://127.0.0.1:9"))
    try:
        with pytest.raises(PassingError, match="Yesterday stays published"):
            roll_back(story.name, version, "why", "ann", str(story.config))
    finally:
        story.config.write_text(text)
    assert aliases(story) == before
    found = champion_bundle(settings.mlflow, story.name)
    assert found is not None
    assert found[0] == before["champion"]


def test_a_rollback_does_not_wait_for_a_night_that_fails(house: House) -> None:
    house.drop("one.jsonl", rows(60))
    house.work("n1")
    another(house, "always", seed=5)
    house.work("n2")
    another(house, "always", seed=5, when="never")
    reports = house.folder / "reports" / house.name
    house.drop("three.jsonl", rows(5, seed=3))
    # A folder where the page should be: the night fails late.
    (reports / "n3.part").mkdir()
    with pytest.raises(OSError, match=r"n3\.part"):
        house.work("n3")
    roll_back(house.name, None, "bad", "ann", str(house.config))
    first, back = night(house, "n1"), night(house, "rollback")
    assert house.lake.published()["night"] == back["night"]
    assert aliases(house)["champion"] == first["registry_version"]
    # The clusters that the failed night left are not those of the night before it.
    assert any(row["night"] == "n3" for row in house.lake.read("assignments").to_pylist())
    assert assigned(house, back["night"]) == assigned(house, "n1")
    assert living(house, back["night"]) == living(house, "n1")
    (reports / "n3.part").rmdir()
    house.work("n4")
    assert [row["night"] for row in house.lake.nights()][2:] == [back["night"], "n3", "n4"]
    assert {row["state"] for row in house.lake.nights()} == {"published"}
    assert house.lake.published()["model_id"] == first["model_id"]
    assert len(house.table("documents")) == 3 * 65


def test_a_promotion_that_an_unfinished_night_makes_is_not_made_twice(house: House) -> None:
    house.drop("one.jsonl", rows(60))
    house.work("n1")
    another(house, "manual", seed=5)
    house.work("n2")
    waiting = aliases(house)["challenger"]
    page = house.folder / "reports" / house.name / f"{date.today()}-promote-{waiting}.part"
    page.mkdir()  # a folder where the page should be: the night fails late
    with pytest.raises(OSError, match=r"\.part"):
        promote(house.name, waiting, "good", "ben", str(house.config))
    page.rmdir()
    with pytest.raises(ConfigError, match=r"is champion by now, as version .* left unfinished"):
        promote(house.name, waiting, "good", "ben", str(house.config))
    assert [row["state"] for row in house.lake.nights()] == ["published"] * 3
    assert house.lake.published()["model_id"] == tags(house, waiting)["nightshift.model_id"]


# Goes back, and dies by SIGKILL the moment before a table's second commit, or before the aliases.
DRIVER = """
import os, signal, sys
place, config, pipeline, version = sys.argv[1:]
from pathlib import Path
from flows.environment import prepare
prepare(Path(os.environ["PREFECT_HOME"]))
import nightshift.tables as tables
import tasks.rollback as rollback

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

real, seen = tables.NightWriter._commit, []
def commit(self):
    seen.append(self._table)
    if place == f"{self._table} {seen.count(self._table)}":
        die()
    real(self)
tables.NightWriter._commit = commit
if place == "aliases":
    rollback.follow = die
from flows.champions import roll_back
roll_back(pipeline, int(version), "bad", "ann", config)
"""


@pytest.mark.slow
def test_a_rollback_that_is_killed_is_finished_by_the_next_night(house: House) -> None:
    house.drop("one.jsonl", rows(60))
    house.work("n1")
    another(house, "always", seed=5)
    house.work("n2")
    another(house, "always", seed=5, when="never")
    first, second = night(house, "n1"), night(house, "n2")
    for count, (place, to) in enumerate((
        ("promotions 1", first), ("nights 2", second), ("aliases", first),
    )):  # fmt: skip
        version = to["registry_version"]
        killed = subprocess.Popen(
            [sys.executable, "-c", DRIVER, place, house.config, house.name, str(version)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PREFECT_HOME": str(house.folder / "prefect")},
        )  # fmt: skip
        assert killed.wait(100) == -signal.SIGKILL
        os.killpg(killed.pid, signal.SIGKILL)  # the embedded server that it left
        assert (house.lake.published()["model_id"] == to["model_id"]) == (place == "aliases")
        house.work(f"m{count}")
        rows_now = house.lake.nights()
        assert {row["state"] for row in rows_now} == {"published"}
        assert rows_now[-1]["model_id"] == to["model_id"]
        assert rows_now[-2]["registry_version"] == version
        assert aliases(house)["champion"] == rows_now[-1]["registry_version"]
    said = [row["decision"] for row in house.table("promotions")]
    assert said.count("rolled_back") == 3
