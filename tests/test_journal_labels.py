"""Words about documents, in a SQLite file and in a real Postgres; how a night reads them once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from test_kills import free_port

from nightshift.errors import ConfigError, PassingError
from nightshift.journal import Journal, open_journal
from nightshift.journal_stores import PostgresStore

POSTGRES = Path("/usr/lib/postgresql/15/bin")
WRITER = """
import sys
from pathlib import Path
from nightshift.journal import open_journal
journal, me = open_journal(sys.argv[1], sys.argv[2], "headlines", ""), sys.argv[3]
sys.stdin.readline()
for n in range(25):
    journal.say_label(f"{me}-{n}", "x", None, "unsure", me)
    print(journal.last(), len(journal.said()), flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A Postgres server of our own, which does not run as root."""
    pytest.importorskip("psycopg2")
    if not POSTGRES.exists():
        pytest.skip("no Postgres 15")
    folder, port = Path(tempfile.mkdtemp(prefix="nightshift-postgres-")), free_port()
    as_postgres = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    if as_postgres:
        shutil.chown(folder, "postgres")
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    data = folder / "data"
    subprocess.run([POSTGRES / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N"],
                   check=True, **silent, **as_postgres)  # fmt: skip
    words = [POSTGRES / "postgres", "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
    process = subprocess.Popen([*words, "-c", "fsync=off"], **silent, **as_postgres)
    for _ in range(100):
        ready = [POSTGRES / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        if subprocess.run(ready, **silent).returncode == 0:
            break
    yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    process.terminate()
    process.wait(20)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """URL and lake of a journal of its own."""
    if request.param == "sqlite":
        return "", str(tmp_path)
    url = request.getfixturevalue("server")
    import psycopg2

    name = f"db_{os.urandom(4).hex()}"
    opened = psycopg2.connect(url)
    opened.autocommit = True
    opened.cursor().execute(f"create database {name}")
    opened.close()
    return url.removesuffix("postgres") + name, str(tmp_path)


@pytest.fixture
def journal(place: tuple[str, str]) -> Journal:
    return open_journal(*place, "headlines", "")


def test_all_kinds_of_words_are_numbered_together(journal: Journal) -> None:
    assert journal.last() == 0
    journal.say_name("c-0001", "Cards", by="ada")
    journal.say_label("d1", "lost", None, "unsure", "ada")
    journal.merge("c-0001", "c-0002", by="bob")
    journal.skip("d2", "unsure", "bob")
    assert [one.number for one in (*journal.since(0), *journal.said(), *journal.shapes())] == [
        1, 2, 4, 3,
    ]  # fmt: skip
    assert journal.last() == 4


def test_a_night_reads_each_change_once(journal: Journal) -> None:
    journal.say_label("d1", "lost", "found", "unsure", "ada")
    journal.say_label("d2", "lost", None, "unsure", "ada")
    first = journal.last()
    journal.say_label("d2", "lost", "lost", "suspects", "bob")  # the same again changes nothing
    journal.say_label("d3", "sent", None, "unsure", "bob")
    second = journal.last()
    assert {one.doc_id: one.label for one in journal.labels(0, first)} == {
        "d1": "lost", "d2": "lost",
    }  # fmt: skip
    assert {one.doc_id: one.label for one in journal.labels(first, second)} == {"d3": "sent"}
    assert journal.labels(second) == []
    # A night that is worked again reads what it read.
    assert {one.doc_id: one.label for one in journal.labels(0, first)} == {
        "d1": "lost", "d2": "lost",
    }  # fmt: skip


def test_what_is_taken_back_in_time_never_reaches_a_night(journal: Journal) -> None:
    journal.say_label("d1", "lost", "found", "unsure", "ada")
    journal.undo("ada")
    assert journal.labels(0) == []


def test_what_is_taken_back_later_gives_the_label_before_it_back(journal: Journal) -> None:
    journal.say_label("d1", "lost", "found", "unsure", "ada")
    read = journal.last()
    journal.undo("ada")
    [word] = journal.labels(read)
    assert (word.doc_id, word.label, word.by) == ("d1", "found", "ada")


def test_an_undo_leaves_what_others_said(journal: Journal) -> None:
    journal.say_label("d1", "lost", None, "unsure", "ada")
    journal.say_label("d1", "sent", "lost", "unsure", "bob")
    assert journal.undo("ada") is not None
    [word] = journal.labels(0)
    assert (word.label, word.by) == ("sent", "bob")
    journal.undo("bob")
    assert journal.labels(0) == []
    assert journal.undo("bob") is None


def test_of_no_class_is_a_word_too(journal: Journal) -> None:
    journal.say_label("d1", None, "lost", "unsure", "ada")
    [word] = journal.labels(0)
    assert (word.kind, word.label) == ("label", None)


def test_a_later_word_is_later_whatever_the_clock_says(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nightshift import journal as module

    first = journal.say_label("d1", "lost", None, "unsure", "ada")

    class Behind(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.now(UTC) - timedelta(hours=1)

    monkeypatch.setattr(module, "datetime", Behind)
    second = journal.say_label("d1", "sent", "lost", "unsure", "bob")
    assert second.at > first.at


def test_a_loan_is_one_persons_until_they_answer_or_it_ends(journal: Journal) -> None:
    assert journal.lend(["d1", "d2"], "ada", 10) == "d1"
    assert journal.lend(["d1", "d2"], "bob", 10) == "d2"
    assert journal.lend(["d1", "d2"], "eve", 10) is None
    assert journal.lend(["d1", "d2"], "ada", 10) == "d1"
    journal.say_label("d1", "lost", None, "unsure", "ada")
    assert journal.lend(["d1", "d2"], "eve", 0.0) == "d1"
    assert journal.lend(["d1", "d2"], "fay", 10) == "d1"  # eve's was over at once


def test_shapes_are_carried_out_once_and_can_be_taken_back(journal: Journal) -> None:
    journal.merge("c-0001", "c-0002", by="ada")
    journal.split("c-0003", 3, by="ada")
    journal.split("c-0004", 2, by="ada")
    journal.leave("c-0004", by="bob")
    told = [(one.cluster_id, one.verb, one.other, one.parts) for one in journal.shapes()]
    assert told == [("c-0001", "merge", "c-0002", None), ("c-0003", "split", None, 3)]
    assert journal.shapes(journal.last()) == []
    with pytest.raises(ConfigError, match="expected two clusters"):
        journal.merge("c-0001", "c-0001", by="ada")
    with pytest.raises(ConfigError, match="expected 2 to 20"):
        journal.split("c-0001", 1, by="ada")


@pytest.mark.parametrize("by", ["source", "cluster c-0001"])
def test_nobody_labels_in_the_name_of_a_source_or_a_cluster(journal: Journal, by: str) -> None:
    with pytest.raises(ConfigError, match="no person's name"):
        journal.say_label("d1", "x", None, "unsure", by)
    assert journal.said() == []


def test_forgetting_leaves_no_word_and_gives_no_number_again(journal: Journal) -> None:
    journal.say_label("d1", "lost", None, "unsure", "ada")
    journal.say_label("d2", "lost", None, "unsure", "ada")
    journal.lend(["d2"], "bob", 10)
    assert journal.erase(["d2"]) == 2
    assert [one.doc_id for one in journal.said()] == ["d1"]
    assert journal.say_label("d3", "lost", None, "unsure", "ada").number == 3


def test_a_copy_has_the_same_words_under_the_same_numbers(journal: Journal, tmp_path: Path) -> None:
    journal.say_name("c-0001", "Cards", by="ada")
    journal.say_label("d1", "lost", None, "unsure", "ada")
    journal.copy(tmp_path / "copy" / "journal.sqlite")
    copied = Journal(tmp_path / "copy" / "journal.sqlite")
    assert copied.said() == journal.said()
    assert copied.since(0) == journal.since(0)
    assert copied.say_label("d2", "x", None, "unsure", "ada").number == 3


def test_no_label_of_several_processes_is_lost_or_read_too_late(place: tuple[str, str]) -> None:
    """Whoever reads up to the last number sees every word under it, at any moment."""
    names = ("ada", "bob", "eve")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, *place, name], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
        )
        for name in names
    ]  # fmt: skip
    for one in writers:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    told = [one.communicate(timeout=60)[0] for one in writers]
    assert [one.returncode for one in writers] == [0] * 3
    words = open_journal(*place, "headlines", "").said()
    assert [one.number for one in words] == list(range(1, 76))
    assert {one.doc_id for one in words} == {f"{name}-{n}" for name in names for n in range(25)}
    for line in "".join(told).splitlines():
        last, seen = map(int, line.split())
        assert seen >= last


# --- labels that are there, circles, files ------------------------------------------------------


def test_a_label_that_is_there_is_taken_as_it_is_and_a_new_one_is_cleaned(journal: Journal) -> None:
    long, blanks = "x" * 90, "New  York"
    known = {long, blanks, "two\nlines"}
    for said, kept in [
        (long, long), (blanks, blanks), ("New York ", blanks), ("two\r\nlines", "two\nlines"),
        ("Lost  cards ", "Lost cards"),
    ]:  # fmt: skip
        assert journal.say_label("d1", said, None, "unsure", "ada", known).label == kept
    assert journal.say_label("d2", "y" * 90, "y" * 90, "unsure", "ada").label == "y" * 90
    assert journal.say_name("c-0001", "Cards", blanks, "ada", known).class_name == blanks
    with pytest.raises(ConfigError, match="expected 1 to 80 characters"):
        journal.say_label("d1", "z" * 81, None, "unsure", "ada", known)
    # Where blanks alone tell two labels apart, nobody guesses which was meant.
    assert journal.say_label("d3", "a   b", None, "unsure", "ada", {"a b", "a  b"}).label == "a b"


def test_what_came_in_a_file_is_not_taken_back_on_the_page(journal: Journal) -> None:
    journal.say_label("d1", "lost", None, "unsure", "bob")
    journal.say_labels([("d2", "lost", None), ("d3", "lost", None)], "import", "bob")
    word = journal.undo("bob")
    assert word is not None
    assert word.doc_id == "d1"
    assert journal.undo("bob") is None


def test_mergers_that_would_go_round_in_a_circle_are_refused(journal: Journal) -> None:
    journal.merge("c-0001", "c-0002", by="ada")
    journal.merge("c-0002", "c-0003", by="bob")
    for one, other in (("c-0002", "c-0001"), ("c-0003", "c-0001"), ("c-0003", "c-0002")):
        with pytest.raises(ConfigError, match=r"goes into .* already \(said by .*no circle"):
            journal.merge(one, other, by="eve")
    assert len(journal.shapes()) == 2
    # Into another instead, or back after it was left, is fine; and so is what a night has made.
    journal.leave("c-0001", by="ada")
    journal.merge("c-0002", "c-0001", by="bob")
    read = journal.last()
    assert journal.merge("c-0001", "c-0002", by="ada", after=read).other == "c-0002"


def test_forgetting_leaves_no_trace_in_a_file_that_is_kept_open(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.store.hold()  # nothing is there yet
    journal.say_label("doc-to-forget", "secret", None, "unsure", "ada")
    journal.store.hold()
    journal.say_label("doc-to-forget", "secret two", None, "unsure", "bob")
    assert (tmp_path / "journal.sqlite-wal").exists()
    assert journal.erase(["doc-to-forget"]) == 2
    for path in tmp_path.iterdir():
        assert b"doc-to-forget" not in path.read_bytes()
    assert journal.said() == []


def test_a_loan_that_still_holds_is_not_written_again(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journal.lend(["d1"], "ada", 10) == "d1"

    def none(durable: bool = True) -> object:
        raise AssertionError("nothing needs to be written")

    monkeypatch.setattr(journal.store, "writing", none)
    assert journal.lend(["d1", "d2"], "ada", 10) == "d1"
    assert journal.lend(["d1"], "bob", 10) is None


# --- Postgres alone -----------------------------------------------------------------------------


def test_pipelines_share_a_database_and_not_a_word(server: str) -> None:
    one, two = (Journal(PostgresStore(server, name)) for name in ("a" * 63, "a" * 62 + "b"))
    one.say_label("d1", "x", None, "unsure", "ada")
    assert two.said() == []


def test_a_server_that_went_away_is_met_again(server: str) -> None:
    journal = Journal(PostgresStore(server, "again"))
    journal.say_label("d1", "x", None, "unsure", "ada")
    other = Journal(PostgresStore(server, "other"))
    with other.store.reading() as opened:
        opened.rows("select pg_terminate_backend(pid) from pg_stat_activity "
                    "where pid <> pg_backend_pid() and usename = 'postgres'")  # fmt: skip
    journal.say_label("d2", "x", None, "unsure", "ada")
    assert len(journal.said()) == 2


def test_a_database_that_is_not_there_is_told_without_its_password() -> None:
    url = f"postgresql://ada:hush@127.0.0.1:{free_port()}/none"
    with pytest.raises(PassingError, match="not noted") as told:
        open_journal(url, "", "headlines", "").say_label("d1", "x", None, "unsure", "ada")
    assert "hush" not in str(told.value)
    with pytest.raises(ConfigError, match="expected postgresql"):
        open_journal("mysql://here", "", "headlines", "")
