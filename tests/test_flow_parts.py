"""Parts of a night on their own, missed nights, and the watcher; with an embedded Prefect."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import mlflow
import pytest
from conftest import House, rows
from prefect import flow

from flows import parts, watching
from flows.night import night
from nightshift.errors import ConfigError
from nightshift.pipeline import load_settings


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> House:
    """A house with one night; tests below go on from one another's nights."""
    house = House(tmp_path_factory.mktemp("parts"))
    house.declare(triggers={"new_files": "ingest", "registry": "adopt", "drift": 0.25})
    house.drop("one.jsonl", rows(30))
    house.work("n1")
    return house


def figures(house: House, night: str, stage: str) -> dict[str, float]:
    return house.lake.stages(night)[stage]["figures"]


@pytest.mark.slow
def test_ingest_takes_files_in_and_leaves_the_rest_to_reclassify(worked: House) -> None:
    config = str(worked.config)
    worked.drop("two.jsonl", rows(10, seed=2))
    taken = parts.ingest(worked.name, config)
    assert taken.name == f"{date.today()}-ingest"
    assert figures(worked, taken.name, "ingest")["documents"] == 30
    assert figures(worked, taken.name, "embed") == {"classified": 0, "embedded": 0}
    assert worked.lake.published()["night"] == taken.name
    answered = parts.reclassify(worked.name, config=config)
    assert figures(worked, answered.name, "embed")["classified"] == 30
    assert figures(worked, answered.name, "ingest")["rows"] == 0
    ids = [row["doc_id"] for row in worked.table("predictions")]
    assert len(ids) == len(set(ids)) == 120


@pytest.mark.slow
def test_reclassify_answers_everything_or_the_days_asked_for(worked: House) -> None:
    config, today = str(worked.config), date.today()
    everything = parts.reclassify(worked.name, "all", config=config)
    assert everything.name == f"{today}-reclassify-2"
    assert figures(worked, everything.name, "embed")["classified"] == 120
    long_ago = today - timedelta(days=9)
    nobody = parts.reclassify(worked.name, "window", None, long_ago, config)
    assert figures(worked, nobody.name, "embed")["classified"] == 0
    with pytest.raises(ConfigError, match="before it"):
        parts.reclassify(worked.name, "window", today, long_ago, config)


@pytest.mark.slow
def test_recluster_with_keys_for_this_run_alone_is_kept_with_the_night(worked: House) -> None:
    changes = {"clusters": {"k_max": 2, "k_min": 2}}
    done = parts.recluster(worked.name, changes, str(worked.config))
    row = worked.lake.published()
    assert row["night"] == done.name
    assert row["manifest"]["config"]["clusters"]["k_max"] == 2
    assert load_settings(worked.config).pipeline(worked.name).clusters.k_max == 6
    with pytest.raises(ConfigError, match=r"changes: clusters.k_mx: unknown key.*'k_max'"):
        parts.recluster(worked.name, {"clusters": {"k_mx": 2}}, str(worked.config))
    with pytest.raises(ConfigError, match="changes: source: not a part"):
        parts.recluster(worked.name, {"source": {}}, str(worked.config))


@pytest.mark.slow
def test_train_is_forced_and_says_by_what(worked: House) -> None:
    done = parts.train(worked.name, config=str(worked.config), cause="somebody wanted to see")
    outputs = worked.lake.stages(done.name)["train"]["outputs"]
    assert outputs["challenger"] is not None
    assert outputs["reason"] == "somebody wanted to see"
    idle = parts.train(worked.name, False, config=str(worked.config))
    assert worked.lake.stages(idle.name)["train"]["outputs"]["challenger"] is None


@pytest.mark.slow
def test_a_lost_page_is_written_again_as_it_was(worked: House) -> None:
    newest = worked.lake.published()
    path = Path(newest["figures"]["report"])
    before, nights = path.read_text(), len(worked.lake.nights())
    path.unlink()
    assert parts.report(worked.name, str(worked.config)).report == str(path)
    # What follows the report, its own seconds among them, was not known when it was first written.
    assert abs(len(path.read_text()) - len(before)) < 2000
    assert len(worked.lake.nights()) == nights


@pytest.mark.slow
def test_an_alias_moved_by_hand_to_another_model_becomes_a_row_of_the_ledger(
    worked: House,
) -> None:
    settings = load_settings(worked.config)
    client = mlflow.MlflowClient(settings.mlflow)
    challenger = client.get_model_version_by_alias(worked.name, "challenger").version
    client.set_registered_model_alias(worked.name, "champion", challenger)
    [(cause, _)] = list(watching._of_registry(settings, worked.name, worked.lake, {}))
    assert cause.words == f"the alias champion was moved to version {challenger} in MLflow"
    assert cause.flow == "promote"
    parts.promote(worked.name, config=str(worked.config), **cause.parameters)
    last = max(worked.table("promotions"), key=lambda row: row["at"])
    assert (last["by"], last["decision"]) == ("MLflow registry", "promoted")
    assert list(watching._of_registry(settings, worked.name, worked.lake, {})) == []


@pytest.mark.slow
def test_an_alias_moved_to_nothing_of_ours_is_put_back(worked: House) -> None:
    settings = load_settings(worked.config)
    client = mlflow.MlflowClient(settings.mlflow)
    ours = worked.lake.published()["registry_version"]
    client.delete_registered_model_alias(worked.name, "champion")
    assert list(watching._of_registry(settings, worked.name, worked.lake, {})) == []
    assert int(client.get_model_version_by_alias(worked.name, "champion").version) == ours


@pytest.mark.slow
@pytest.mark.parametrize("part", ["rollback", "promote", "train", "recluster"])
def test_a_run_given_to_another_worker_once_its_night_is_published_does_nothing_twice(
    worked: House, part: str
) -> None:
    config = str(worked.config)
    now = worked.lake.published()
    others = [row["registry_version"] for row in worked.lake.nights()
              if row["model_id"] != now["model_id"]]  # fmt: skip
    given: dict[str, dict[str, Any]] = {
        "rollback": {"reason": "sports became politics"},
        "promote": {"version": others[-1], "reason": "it knows better"},
        "train": {},
        "recluster": {},
    }

    @flow(persist_result=False)
    def taken_over() -> list[Any]:
        return [getattr(parts, part).fn(worked.name, config=config, **given[part])
                for _ in range(2)]  # fmt: skip

    before = len(worked.lake.nights())
    first, second = taken_over()
    assert (first.new, second.new, first.name) == (True, False, second.name)
    rows_ = worked.lake.nights()
    assert len(rows_) == before + 1
    changed = worked.lake.published()["model_id"] != now["model_id"]
    assert changed == (part in ("rollback", "promote"))
    # Another run, of another person, is another night.
    if part == "rollback":
        back = now["registry_version"]  # by name, since somebody has just gone back from it
        parts.rollback(worked.name, "it was right before", to=back, config=config)
        assert worked.lake.published()["model_id"] == now["model_id"]


@pytest.mark.slow
def test_a_rollback_that_is_killed_before_it_is_published_is_finished_as_it_was_meant(
    worked: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, before = worked.lake.published(), len(worked.lake.nights())
    from flows import night as module

    whole = module.roll_back

    def killed(one: Any) -> None:
        monkeypatch.setattr(module, "roll_back", whole)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "roll_back", killed)

    @flow(persist_result=False)
    def taken_over() -> Any:
        given = {"reason": "sports became politics", "config": str(worked.config)}
        with pytest.raises(KeyboardInterrupt):
            parts.rollback.fn(worked.name, **given)
        return parts.rollback.fn(worked.name, **given)

    assert taken_over().new
    rows_ = worked.lake.nights()
    assert [row["state"] for row in rows_[before:]] == ["published"]
    assert worked.lake.published()["model_id"] != now["model_id"]
    assert worked.lake.published()["number"] == now["number"] + 1


@pytest.mark.slow
def test_enough_labels_by_people_ask_for_one_training(worked: House) -> None:
    worked.declare(triggers={"new_labels": 2})
    settings = load_settings(worked.config)
    journal = settings.journal_of(worked.name)
    docs = [row["doc_id"] for row in worked.table("documents")[:2]]
    state: watching.State = {}
    for doc_id in docs:
        assert list(watching._of_labels(settings, worked.name, worked.lake, state)) == []
        journal.say_label(doc_id, "galley", None, "unsure", "ann")
    [(cause, after)] = watching._of_labels(settings, worked.name, worked.lake, state)
    assert cause.words == "2 labels that no model has learned from"
    state |= after
    assert list(watching._of_labels(settings, worked.name, worked.lake, state)) == []
    assert cause.flow == "train"
    trained = parts.train(worked.name, config=str(worked.config), **cause.parameters)
    assert [row["by"] for row in worked.table("labels") if row["night"] == trained.name] == [
        "ann", "ann"
    ]  # fmt: skip
    assert list(watching._of_labels(settings, worked.name, worked.lake, state)) == []
    assert state["labels"] == 0  # and two more ask again


@pytest.mark.slow
def test_another_mix_of_predicted_labels_asks_for_a_training_once(worked: House) -> None:
    worked.declare(triggers={"drift": 0.25})
    settings = load_settings(worked.config)
    state: watching.State = {}
    # n1 had thirty documents of each of three topics.
    worked.drop("chess.jsonl", rows(60, seed=5, topics=("chess",)))
    worked.work("all-chess")
    [(cause, after)] = watching._of_drift(settings, worked.name, worked.lake, state)
    assert cause.words.startswith("predicted labels of night all-chess drifted by ")
    assert cause.flow == "train"
    state |= after
    assert list(watching._of_drift(settings, worked.name, worked.lake, state)) == []


@pytest.mark.slow
def test_missed_nights_are_worked_in_order_each_on_the_files_that_were_there(house: House) -> None:
    schedule = {"cron": "0 0 * * *", "missed": "backfill"}
    house.declare(schedule=schedule, source={"label": None})  # nothing to train: seconds
    today = datetime.now(UTC).date()
    nights = [today - timedelta(days=back) for back in (3, 2, 1, 0)]
    for day in nights:
        path = house.drop(f"{day}.jsonl", rows(8, seed=day.day))
        moment = datetime.combine(day, datetime.min.time(), UTC).timestamp() - 3600
        os.utime(path, (moment, moment))
    config = str(house.config)
    [first] = parts.backfill(house.name, nights[0], nights[0], config=config)
    assert (first.name, figures(house, first.name, "files")["new"]) == (nights[0].isoformat(), 1)
    # The pipeline began then; since then nobody has worked.
    [row] = house.lake.nights()
    house.lake.write_night({**row, "started": row["started"] - timedelta(days=3)})
    last = night(house.name, config=config, scheduled=True)
    names = [one.isoformat() for one in nights]
    assert last.name == names[-1]
    assert [row["night"] for row in house.lake.nights()] == names
    assert [figures(house, one, "files")["new"] for one in names] == [1, 1, 1, 1]
    assert not night(house.name, config=config, scheduled=True).new


@pytest.mark.slow
def test_missed_nights_collapse_into_one_that_takes_all_files(house: House) -> None:
    house.declare(schedule={"cron": "0 0 * * *"}, source={"label": None})
    config = str(house.config)
    house.drop("one.jsonl", rows(8))
    today = datetime.now(UTC).date()
    parts.backfill(house.name, today - timedelta(days=4), today - timedelta(days=4), config=config)
    [row] = house.lake.nights()
    house.lake.write_night({**row, "started": row["started"] - timedelta(days=4)})
    house.drop("two.jsonl", rows(8, seed=2))
    house.drop("three.jsonl", rows(8, seed=3))
    done = night(house.name, config=config, scheduled=True)
    assert done.name == today.isoformat()
    assert len(house.lake.nights()) == 2
    # The file of that first night was changed only after it, so it waited as well.
    assert figures(house, done.name, "files")["new"] == 3


def test_a_backfill_of_days_to_come_before_any_file_or_without_end_is_refused(house: House) -> None:
    today = datetime.now(UTC).date()
    house.declare(schedule={"cron": "0 * * * *"})
    for first, last, words in (
        (today, date.max, f"found 9999-12-31 as the last day, and today is {today}"),
        (today, today + timedelta(days=2), "worked when they come"),
        (date.min, date(1, 1, 2), "found 0001-01-01 as the first day, expected 1970-01-02"),
        (today - timedelta(days=90), today, "more than 1,000 nights are due"),
        (today, today - timedelta(days=1), "no night of"),
    ):
        with pytest.raises(ConfigError, match=words):
            parts.backfill.fn(house.name, first, last, config=str(house.config))
    assert house.lake.nights() == []


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[watching.Cause]:
    """What the watcher starts, on a server that only listens."""
    causes = list[watching.Cause]()

    class Server:
        def read_flow_run(self, _: Any) -> Any:
            raise watching.ObjectNotFound(None)

    @contextmanager
    def server() -> Iterator[Any]:
        yield Server()

    def start(_: Any, cause: watching.Cause) -> UUID:
        causes.append(cause)
        return uuid4()

    monkeypatch.setattr(watching, "server", server)
    monkeypatch.setattr(watching, "start", start)
    return causes


def test_a_night_whose_process_was_killed_is_started_again_once_for_each_death_and_thrice_at_most(
    house: House,
    started: list[watching.Cause],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = load_settings(house.config)

    def die(number: int, state: str = "running", error: str | None = None) -> None:
        house.lake.write_night({
            "night": "n1", "number": 1, "state": state, "started": datetime.now(UTC),
            "error": error, "config_digest": "", "code_version": "", "manifest": {},
            "mlflow_run": "", "prefect_run": str(uuid4()), "process": f"here:{number}",
            "figures": {},
        })  # fmt: skip

    die(0)
    assert watching.look(settings) == []  # Prefect, or its own worker, may see to it
    monkeypatch.setattr(watching, "GRACE", timedelta(0))
    assert watching.look(settings) == [
        f"{house.name}: night n1 was interrupted; it is finished"
    ]  # fmt: skip
    assert watching.look(settings) == []
    assert (started[0].flow, started[0].parameters) == ("night", {"night": "n1"})
    for number in (1, 2, 3, 4):
        die(number)
        watching.look(settings)
        watching.look(settings)
    assert len(started) == len({one.key for one in started}) == 3
    assert caplog.text.count("its process died 3 times more, so it is left") == 2
    die(5, "failed", "interrupted")  # somebody told it to end; `up` finishes it when it starts
    assert watching.look(settings) == []
    [told] = watching.catch_up(settings)
    assert told == f"{house.name}: night n1 was interrupted; it is finished"


@pytest.mark.parametrize("content", ["[]", "7", "{", '{"files": 3}', '{"since": "x"}', '{"a": 1}'])
def test_a_damaged_file_of_the_watcher_or_of_alerts_is_begun_anew(
    house: House, started: list[watching.Cause], content: str
) -> None:
    house.declare(
        triggers={"new_files": "ingest"}, schedule={"cron": "* * * * *"},
        webhook="http://127.0.0.1:9/x", alerts={"late_minutes": 1},
    )  # fmt: skip
    house.drop("one.jsonl", rows(2))
    folder = house.folder / "reports" / house.name
    folder.mkdir(parents=True)
    for name in (".watch.json", ".alerts.json"):
        (folder / name).write_text(content)
    told = watching.look(load_settings(house.config))
    assert told[0] == f"{house.name}: a new file, one.jsonl; started ingest"
    assert isinstance(json.loads((folder / ".watch.json").read_text()), dict)
    from flows.alerts import _told

    assert _told(folder / ".alerts.json") is None


def test_what_goes_wrong_with_one_pipeline_does_not_end_the_watcher(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    stop = threading.Event()
    monkeypatch.setattr(watching, "_finish_dead", broken)
    monkeypatch.setattr(stop, "wait", lambda _: True)
    watching.keep_looking(house.config, stop)
    assert f"{house.name}: unexpected ZeroDivisionError: a bug" in caplog.text
    house.config.write_text("[")
    watching.keep_looking(house.config, stop)  # until the file is mended
