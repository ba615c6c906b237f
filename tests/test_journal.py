from __future__ import annotations

import getpass
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nightshift import journal_stores as module
from nightshift.errors import ConfigError, PassingError
from nightshift.journal import Journal, cleaned, journal_path

WRITER = """
import sys
from pathlib import Path
from nightshift.journal import Journal
journal, me = Journal(Path(sys.argv[1])), sys.argv[2]
sys.stdin.readline()
for n in range(20):
    journal.say_name(f"c-{n:04d}", f"{me} {n}", by=me)
"""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "headlines" / "journal.sqlite")


# --- words ----------------------------------------------------------------------------------


def test_a_word_is_kept_with_who_and_when(journal: Journal) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    said = journal.say_name("c-0007", "Lost cards", class_name="lost_card", by="anna")
    kept = Journal(journal.path).names()["c-0007"]
    assert kept == said
    assert (kept.name, kept.class_name, kept.by) == ("Lost cards", "lost_card", "anna")
    assert before <= kept.at <= datetime.now(UTC)


def test_the_newest_word_about_a_cluster_holds(journal: Journal) -> None:
    journal.say_name("c-0001", "Cards", by="anna")
    journal.say_name("c-0002", "Money", by="anna")
    journal.say_name("c-0001", "Lost cards", by="bob")
    found = journal.names()
    assert {one: word.name for one, word in found.items()} == {
        "c-0001": "Lost cards",
        "c-0002": "Money",
    }
    assert found["c-0001"].class_name is None


def test_a_name_taken_back_is_a_word_without_a_name(journal: Journal) -> None:
    journal.say_name("c-0001", "Cards", class_name="card", by="anna")
    journal.forget_name("c-0001", by="bob")
    word = journal.names()["c-0001"]
    assert (word.name, word.class_name, word.by) == (None, None, "bob")
    assert [one.name for one in journal.since(0)] == ["Cards", None]


def test_a_night_reads_only_what_was_said_after_the_last_one_and_before_its_start(
    journal: Journal,
) -> None:
    journal.say_name("c-0001", "one", by="anna")
    read = journal.last()
    journal.say_name("c-0002", "two", by="anna")
    frozen = journal.last()
    journal.say_name("c-0002", "three", by="anna")
    assert [one.name for one in journal.since(read)] == ["two", "three"]
    assert journal.names(until=frozen)["c-0002"].name == "two"
    assert journal.names()["c-0002"].name == "three"


def test_numbers_are_not_given_again_when_rows_are_gone(journal: Journal) -> None:
    journal.say_name("c-0001", "one", by="anna")
    last = journal.say_name("c-0001", "two", by="anna").number
    with sqlite3.connect(journal.path) as opened:
        opened.execute("delete from names")
    assert journal.say_name("c-0001", "three", by="anna").number == last + 1


def test_reading_an_absent_journal_finds_nothing_and_makes_no_file(journal: Journal) -> None:
    assert (journal.names(), journal.since(0), journal.last()) == ({}, [], 0)
    assert not journal.path.parent.exists()


def test_the_login_name_is_noted_unless_another_is_given(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "carol")
    assert journal.say_name("c-0001", "Cards").by == "carol"
    assert journal.say_name("c-0001", "Cards", by="dan").by == "dan"


def test_without_a_login_name_the_person_is_asked_for_one(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> str:
        raise OSError("no username set in the environment")

    monkeypatch.setattr(getpass, "getuser", unknown)
    with pytest.raises(ConfigError, match="--by NAME"):
        journal.say_name("c-0001", "Cards")
    assert not journal.path.exists()


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("  Lost cards ", "Lost cards"),
        ("Lost\ncards\r\n", "Lost cards"),
        ("Lost\u2028cards", "Lost cards"),
        ("银行卡\x00丢失\x1b[31m", "银行卡丢失[31m"),
        ("a\u202eb", "ab"),
        ("x" * 80, "x" * 80),
        ("O'Hara; drop table names --", "O'Hara; drop table names --"),
    ],
)
def test_a_name_is_trimmed_and_put_on_one_line(journal: Journal, said: str, kept: str) -> None:
    assert journal.say_name("c-0001", said, by="anna").name == kept
    assert journal.names()["c-0001"].name == kept


@pytest.mark.parametrize("said", ["", " \n\t ", "\x00", "x" * 81])
def test_a_name_of_no_or_too_many_characters_is_refused(journal: Journal, said: str) -> None:
    for arguments in ({"name": said}, {"name": "Cards", "class_name": said}):
        with pytest.raises(ConfigError, match="expected 1 to 80 characters on one line"):
            journal.say_name("c-0001", **arguments)
    assert journal.names() == {}


def test_a_refused_name_is_told_apart_from_a_refused_class() -> None:
    with pytest.raises(ConfigError, match=r"^class: found nothing"):
        cleaned(" ", "class")


# --- the file -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lake", "path"),
    [
        ("/srv/lake", "/srv/lake/headlines/journal.sqlite"),
        ("file:///srv/lake", "/srv/lake/headlines/journal.sqlite"),
        ("s3://bucket/lake", "/team/reports/journals/headlines/journal.sqlite"),
    ],
)
def test_the_journal_lies_beside_a_local_lake_or_else_among_the_reports(
    lake: str, path: str
) -> None:
    assert journal_path(lake, "headlines", "/team/reports") == Path(path)


def test_two_pipelines_have_two_journals(tmp_path: Path) -> None:
    one, two = (Journal(journal_path(str(tmp_path), name, "")) for name in ("one", "two"))
    one.say_name("c-0001", "Cards", by="anna")
    assert two.names() == {}


def test_no_word_of_several_processes_is_lost(journal: Journal) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(journal.path), name],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        for name in ("anna", "bob", "carol", "dan")
    ]
    for one in writers:  # together, so that all of them meet a file that is not there yet
        assert one.stdin is not None
        one.stdin.write(b"go\n")
        one.stdin.flush()
    assert [one.wait(60) for one in writers] == [0] * 4
    words = journal.since(0)
    assert [one.number for one in words] == list(range(1, 81))
    for name in ("anna", "bob", "carol", "dan"):
        own = [one.name for one in words if one.by == name]
        assert own == [f"{name} {n}" for n in range(20)]
    left = {one.name for one in journal.path.parent.iterdir()}
    assert left <= {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"}


def test_reading_goes_on_while_another_process_writes(journal: Journal) -> None:
    journal.say_name("c-0001", "Cards", by="anna")
    with sqlite3.connect(journal.path, isolation_level=None) as other:
        other.execute("begin immediate")
        other.execute("update names set name = 'Half said'")
        assert journal.names()["c-0001"].name == "Cards"
        other.execute("rollback")


def test_a_journal_that_stays_busy_says_so_and_that_nothing_was_noted(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.say_name("c-0001", "Cards", by="anna")
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    with sqlite3.connect(journal.path, isolation_level=None) as other:
        other.execute("begin immediate")
        with pytest.raises(PassingError, match=r"database is locked.*is not noted; run the same"):
            journal.say_name("c-0001", "Lost cards", by="bob")
        other.execute("rollback")
    assert journal.names()["c-0001"].name == "Cards"


def test_a_file_that_is_no_journal_is_left_as_it_is(journal: Journal) -> None:
    journal.path.parent.mkdir(parents=True)
    journal.path.write_text("this is a letter, not a database" * 40)
    for use in (journal.names, lambda: journal.say_name("c-0001", "Cards", by="anna")):
        with pytest.raises(ConfigError, match=r"expected the SQLite file"):
            use()
    assert journal.path.read_text().startswith("this is a letter")


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("a file where a folder is needed")
    with pytest.raises(PassingError, match=r"could not be made"):
        Journal(tmp_path / "lake" / "headlines" / "journal.sqlite").say_name("c-1", "x", by="anna")


def test_a_journal_of_an_older_version_gets_the_tables_it_lacks(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.say_name("c-0001", "Cards", by="anna")
    later = "create table opinions (number integer primary key autoincrement, doc_id text) strict"
    monkeypatch.setitem(module.TABLES, "opinions", later)
    assert journal.names()["c-0001"].name == "Cards"
    with sqlite3.connect(journal.path) as opened:
        assert opened.execute("select count(*) from opinions").fetchone() == (0,)
