"""The lake in an object store that speaks S3 over HTTP: nights, two writers, outages, commands."""
# ruff: noqa: F811 - fixtures of other files are named where they are used, too

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import object_store
import pytest
from conftest import House, rows
from test_kills import nursery, run, server  # noqa: F401 - fixtures
from test_leases import hold, holders, newest, settings_of  # noqa: F401 - fixtures

from flows.locking import alone, lake_of
from nightshift.errors import BusyError, ConfigError, PassingError, SourceError
from nightshift.files import files_at
from nightshift.lines import open_bytes
from nightshift.pipeline import load_settings
from nightshift.queues import build_index
from nightshift.stores import arrow_store, problem_of, safe
from nightshift.tables import Lake, rows_of

STAGES = ("tokens", "train", "evaluate", "promote", "embed", "cluster")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object_store.Store]:
    with object_store.store(tmp_path_factory.mktemp("store")) as found:
        yield found


@pytest.fixture(autouse=True)
def _door_is_open(store: object_store.Store) -> Iterator[None]:
    yield
    store.shut()
    store.open()


@pytest.fixture
def away(store: object_store.Store, tmp_path: Path) -> House:
    """A house whose tables lie in the store."""
    found = House(tmp_path, lake_uri=f"s3://{object_store.BUCKET}/lake", storage=store.options)
    found.declare()
    (tmp_path / "inbox").mkdir()
    return found


def lake(store: object_store.Store, name: str) -> Lake:
    return Lake(f"s3://{object_store.BUCKET}/lake", name, store.options)


def labels(*doc_ids: str) -> list[Any]:
    return rows_of("labels", [{"doc_id": one, "label": "a"} for one in doc_ids])


# --- options and errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"AWS_ENDPONT_URL": "hush"}, "did you mean 'aws_endpoint_url'"),
        ({"AWS_S3_ALLOW_UNSAFE_RENAME": "true"}, "lose each other's commits"),
        ({"aws_conditional_put": "disabled"}, "cannot be written safely"),
    ],
)
def test_options_that_would_lose_commits_or_mean_nothing_are_refused(
    house: House, options: dict[str, str], says: str
) -> None:
    house.storage = options
    house.declare()
    with pytest.raises(ConfigError, match=says) as told:
        load_settings(house.config)
    assert "storage" in str(told.value)
    assert "hush" not in str(told.value)


def test_good_options_are_taken_and_the_environment_cannot_make_them_unsafe() -> None:
    given = {"AWS_ENDPOINT_URL": "https://s3.example", "aws_region": "eu-1", "timeout": "30s"}
    assert problem_of(given) is None
    made = safe("s3://bucket/lake", given)
    assert made.items() >= given.items()
    assert made["AWS_CONDITIONAL_PUT"] == "etag"
    assert made["AWS_S3_ALLOW_UNSAFE_RENAME"] == "false"
    assert safe("data/lake", {}) == {}


@pytest.mark.parametrize(
    ("options", "bucket", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "hush"}, "tables", "refused access (SignatureDoesNotMatch)"),
        ({"AWS_ACCESS_KEY_ID": "HUSH"}, "tables", "refused access (InvalidAccessKeyId)"),
        ({}, "no-such-bucket", "has no such bucket"),
        ({"AWS_ALLOW_HTTP": "false"}, "tables", 'Give `AWS_ALLOW_HTTP: "true"`'),
    ],
)
def test_what_a_person_must_put_right_is_one_line_without_a_secret(
    store: object_store.Store, options: dict[str, str], bucket: str, says: str
) -> None:
    wrong = Lake(f"s3://{bucket}/lake", "a", {**store.options, **options})
    for ask in (wrong.nights, lambda: wrong.replace("labels", "n1", labels("a"))):
        with pytest.raises(ConfigError) as told:
            ask()
        assert says in str(told.value)
        assert "\n" not in str(told.value)
        for secret in ("hush", "HUSH", object_store.SECRET):
            assert secret not in str(told.value)


def test_a_store_that_does_not_answer_is_one_line_and_worth_a_retry(
    store: object_store.Store,
) -> None:
    store.shut()
    with pytest.raises(PassingError, match=r"does not answer \(Connection refused") as told:
        lake(store, "gone").nights()
    assert "\n" not in str(told.value)


def put(store: object_store.Store, name: str, content: bytes) -> None:
    with arrow_store(store.options).open_output_stream(f"{object_store.BUCKET}/{name}") as stream:
        stream.write(content)


def test_files_of_the_store_are_listed_and_read_with_the_lakes_options(
    store: object_store.Store, house: House
) -> None:
    put(store, "inbox/a.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    put(store, "inbox/deep/b c.csv", b"text\nthree\n")
    house.storage = store.options
    house.declare(source={"paths": [f"s3://{object_store.BUCKET}/inbox"], "label": None})
    source = load_settings(house.config).pipeline(house.name).source
    files = list(files_at(source.paths[0], "auto"))
    assert [one.uri for one in files] == [
        "s3://tables/inbox/a.jsonl", "s3://tables/inbox/deep/b c.csv",
    ]  # fmt: skip
    assert [one.bytes for one in files] == [32, 11]
    with open_bytes(files[1].uri) as stream:
        assert stream.read() == b"text\nthree\n"
    house.storage = {**store.options, "AWS_SECRET_ACCESS_KEY": "hush"}
    house.declare()
    load_settings(house.config)
    # Not an inbox without files: that night would be published, and empty.
    with pytest.raises(SourceError, match="ACCESS_DENIED"):
        list(files_at(source.paths[0], "auto"))


# --- reading and writing ----------------------------------------------------------------------


def test_a_process_that_read_ends_well(store: object_store.Store) -> None:
    there = lake(store, "ends")
    for number in range(4):
        there.replace("labels", f"n{number}", labels(*map(str, range(500))))
    code = (
        "import json, sys; from nightshift.tables import Lake\n"
        "print(Lake(sys.argv[1], 'ends', json.loads(sys.argv[2])).read('labels').num_rows)"
    )
    said = [sys.executable, "-c", code, "s3://tables/lake", json.dumps(store.options)]
    # With a file system that is written in Python about one in twelve aborted.
    for _ in range(8):
        found = subprocess.run(said, capture_output=True, text=True, timeout=60)
        assert (found.returncode, found.stdout.strip()) == (0, "2000"), found.stderr


def test_a_table_is_read_as_it_was_and_as_it_is(store: object_store.Store) -> None:
    there = lake(store, "versions")
    first = there.replace("labels", "n1", labels("a", "b"))
    second = there.replace("labels", "n2", labels("c"))
    again = there.replace("labels", "n1", labels("a", "b"))
    assert first.digest == again.digest
    assert [row["doc_id"] for row in there.read("labels").to_pylist()] == ["a", "b", "c"]
    assert there.read("labels", version=first.version).num_rows == 2
    assert there.read("labels", version=second.version).num_rows == 3


def test_under_a_lease_a_table_is_opened_once_and_still_read_as_others_left_it(
    store: object_store.Store,
) -> None:
    mine, other = lake(store, "once"), lake(store, "once")
    first = mine.replace("labels", "n0", labels("a"))
    mine.hold(1)
    try:
        assert mine.read("labels").num_rows == 1
        before = len(store.requests())
        assert mine.read("labels").num_rows == 1
        asked = [path for _, path, _ in store.requests()[before:]]
        assert not any(path.endswith(".json") for path in asked)  # nothing of its log
    finally:
        mine.let_go()
    mine.hold(2)
    try:
        assert mine.read("labels").num_rows == 1
        # As a pipeline's other machine, whose process knows nothing of this lease.
        code = (
            "import json, sys; from nightshift.tables import Lake, rows_of\n"
            "there = Lake(sys.argv[1], 'once', json.loads(sys.argv[2]))\n"
            "there.hold(2)\n"
            "there.replace('labels', 'n1', rows_of('labels', [{'doc_id': 'b'}]))"
        )
        said = [sys.executable, "-c", code, "s3://tables/lake", json.dumps(store.options)]
        subprocess.run(said, check=True, timeout=60)
        assert mine.read("labels").num_rows == 2
        assert mine.read("labels", version=first.version).num_rows == 1
    finally:
        mine.let_go()
    assert other.read("labels").num_rows == 2


# --- two writers ------------------------------------------------------------------------------


def test_of_many_that_write_one_object_on_condition_one_wins(store: object_store.Store) -> None:
    import boto3
    from botocore.exceptions import ClientError

    client = boto3.client(
        "s3", endpoint_url=store.url, region_name="us-east-1",
        aws_access_key_id=object_store.KEY, aws_secret_access_key=object_store.SECRET,
    )  # fmt: skip
    together = threading.Barrier(6)

    def write(round_: int, me: int) -> bool:
        together.wait()
        try:
            client.put_object(
                Bucket=object_store.BUCKET, Key=f"race/{round_}", Body=b"%d" % me, IfNoneMatch="*"
            )
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
                raise
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        for round_ in range(20):
            assert sum(pool.map(write, [round_] * 6, range(6))) == 1


def add(options: dict[str, str], me: str, count: int) -> None:
    """Commit rows one by one to a table that others write, too."""
    there = Lake("s3://tables/lake", "crowd", options)
    for number in range(count):
        while True:
            try:
                there.replace("labels", f"{me}-{number}", labels(f"{me}-{number}"))
                break
            except PassingError:
                continue


@pytest.mark.slow
def test_two_that_commit_to_one_table_at_once_lose_and_double_nothing(
    store: object_store.Store,
) -> None:
    lake(store, "crowd").replace("labels", "n0", labels("first"))
    spawn = multiprocessing.get_context("spawn")
    each = 10
    writers = [spawn.Process(target=add, args=(store.options, me, each)) for me in ("a", "b")]
    for one in writers:
        one.start()
    # A commit whose answer is lost was made nevertheless.
    time.sleep(3)
    store.shut()
    time.sleep(0.5)
    store.open()
    for one in writers:
        one.join(240)
        assert one.exitcode == 0
    found = Counter(row["doc_id"] for row in lake(store, "crowd").read("labels").to_pylist())
    expected = {"first", *(f"{me}-{number}" for me in "ab" for number in range(each))}
    assert set(found) == expected
    assert set(found.values()) == {1}


def test_of_two_that_fight_for_one_pipeline_one_is_let_in(
    away: House,
    holders: list[Any],
) -> None:
    away.declare(when_busy="leave")
    first = hold(away, "first", holders)
    assert first.write() == "wrote"
    settings = settings_of(away, "second")
    pipeline = settings.pipeline(away.name)
    with pytest.raises(BusyError, match="is running already"), alone(settings, away.name, pipeline):
        pytest.fail("two are in")
    assert first.write() == "wrote"
    assert newest(away) == [1]


def test_a_holder_that_was_silent_is_taken_over_and_writes_no_more(
    away: House,
    holders: list[Any],
) -> None:
    first = hold(away, "first", holders)
    assert first.write() == "wrote"
    first.end(signal.SIGSTOP)
    settings = settings_of(away, "second")
    with alone(settings, away.name, settings.pipeline(away.name)) as before:
        assert before is not None
        lake_of(settings, away.name).replace("rejects", "n1", rows_of("rejects", [{"row": 42}]))
        first.end(signal.SIGCONT)
        assert first.write().startswith("refused: this process was silent")
    assert newest(away) == [42]


# --- nights -----------------------------------------------------------------------------------


def same_night(one: House, other: House, night: str) -> None:
    mine, its = one.digests(night), other.digests(night)
    for stage in STAGES:
        assert mine[stage] == its[stage], stage
    # Its rows name the folder of the inbox.
    assert mine["ingest"]["figures"] == its["ingest"]["figures"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nights_in_a_store_equal_those_in_a_folder_and_its_commands_answer(
    away: House, store: object_store.Store, tmp_path_factory: pytest.TempPathFactory,
    nursery: Any, server: str,
) -> None:  # fmt: skip
    local = House(tmp_path_factory.mktemp("local"))
    local.declare()
    for house in (local, away):
        for night, found in (("n1", rows(30)), ("n2", rows(10, seed=1))):
            house.drop(f"{night}.jsonl", found)
            assert nursery.run(house.folder, house.name, night) == 0
    for night in ("n1", "n2"):
        same_night(away, local, night)
    assert len(away.table("documents")) == 120

    def command(*words: str, code: int = 0) -> str:
        found = run(away, server, "-m", "flows.cli", *words)
        said = found.stdout + found.stderr
        assert found.returncode == code, said
        assert object_store.SECRET not in said
        return said

    shown = json.loads(command("status", away.name, "--json"))
    assert [one["state"] for one in shown] == ["published"] * 2
    assert "healthy" in command("doctor", away.name)
    assert "store's own copy" in command("backup", str(away.folder / "copy.tar"), code=2)
    index = build_index(away.lake, away.folder / "index")
    assert index.stat().st_size > 0
    command("replay", away.name, "n2")
    doc_id = away.table("documents")[0]["doc_id"]
    command("forget", away.name, doc_id, "--yes", "--reason", "asked for")
    assert len(away.table("documents")) == 119
    assert doc_id not in {row["doc_id"] for row in away.table("embeddings")}
    away.declare(keep={"nights": 2, "table_versions": 2, "grace_hours": 0})
    before = len(store.requests())
    assert nursery.run(away.folder, away.name, "n3") == 0
    assert len(store.requests()) - before < 4000  # nothing new, but it prunes
    assert len(away.table("documents")) == 119
    assert "healthy" in command("doctor", away.name)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moment", ["laid:documents:1", "epoch:3", "before:nights:2"])
def test_a_night_that_is_killed_is_finished_by_running_it_again(
    away: House,
    nursery: Any,
    moment: str,
) -> None:
    away.drop("one.jsonl", rows(30))
    assert nursery.run(away.folder, away.name, "n1", moment) == -9
    assert [one["state"] for one in away.status()] == ["failed"]
    assert nursery.run(away.folder, away.name, "n1") == 0
    assert [one["state"] for one in away.status()] == ["published"]
    assert len(away.table("documents")) == 90
    assert Counter(row["doc_id"] for row in away.table("embeddings")).most_common(1)[0][1] == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moment", ["before:documents:1", "epoch:2", "before:nights:2"])
def test_a_store_that_goes_away_in_mid_night_costs_a_retry_and_not_the_night(
    away: House,
    store: object_store.Store,
    nursery: Any,
    moment: str,
) -> None:
    away.drop("one.jsonl", rows(30))
    # Connections break off, and nobody listens for some seconds; then all is as before.
    shut = away.folder / "shut"

    def watch() -> None:
        while not shut.exists():
            time.sleep(0.1)
        time.sleep(6)
        store.open()

    back = threading.Thread(target=watch, daemon=True)
    back.start()
    fault = f"{store.shut_command}; touch {shut}"
    assert nursery.run(away.folder, away.name, "n1", moment, fault) == 0
    back.join(30)
    assert shut.exists()
    assert [one["state"] for one in away.status()] == ["published"]
    assert len(away.table("documents")) == 90
