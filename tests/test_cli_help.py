"""The command line's manners: help with an example, and a way out of every wrong call."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from flows import cli, terminal

COMMANDS = [
    "sample", "init", "check", "run", "status", "clusters", "name", "predict", "serve", "export",
    "schema", "tune", "champion", "promote", "rollback", "replay", "forget", "lineage",
    "up", "deploy", "watch", "ingest", "train", "reclassify", "recluster", "report", "backfill",
    "doctor", "alert", "backup", "restore",
    "explain", "similar",
    "review", "labels",
]  # fmt: skip
PIPELINES = "pipelines:\n  headlines:\n    source: {paths: [inbox/*.csv]}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "pipelines.yaml"
    path.write_text(PIPELINES, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command sets the environment for its process, which here is that of all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NIGHTSHIFT_CONFIG", raising=False)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def helped(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, [*arguments, "--help"], terminal_width=100)
    assert done.exit_code == 0
    return done.output


def call(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a call, as its shell would see them."""
    runner = CliRunner()

    def main() -> None:
        with terminal.spoken_errors():
            cli.app(list(arguments))

    wrapped = typer.Typer()
    wrapped.command()(main)
    done = runner.invoke(wrapped, [])
    return done.exit_code, done.stdout, done.stderr


# --- help -----------------------------------------------------------------------------------


def test_every_command_of_the_house_is_there() -> None:
    known = typer.main.get_command(cli.app)
    assert sorted(getattr(known, "commands", {})) == sorted(COMMANDS)
    shown = helped()
    assert all(re.search(rf"^\s+{name}\s+\w", shown, re.M) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_what_it_does_and_gives_an_example_of_itself(command: str) -> None:
    shown = helped(command)
    [example] = re.findall(r"^\s*Example: (.+)$", shown, re.M)
    assert f"nightshift {command}" in example
    effect = shown.split("\n\n")[1].strip()
    assert len(effect.split()) >= 4
    assert not effect.startswith("Example")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_argument_of_a_command_is_explained(command: str) -> None:
    found = typer.main.get_command(cli.app)
    for parameter in getattr(found, "commands", {})[command].params:
        assert getattr(parameter, "help", None), f"{command} {parameter.name}"


@pytest.mark.parametrize(
    "command", [one for one in COMMANDS if one not in ("sample", "schema", "restore")]
)
def test_what_reads_a_pipeline_takes_the_file_by_option_or_environment(command: str) -> None:
    shown = " ".join(helped(command).split())
    assert "--config" in shown
    assert "NIGHTSHIFT_CONFIG" in shown


# --- wrong calls ----------------------------------------------------------------------------

READING = [
    ["run", "headlins"],
    ["status", "headlins"],
    ["clusters", "headlins"],
    ["name", "headlins", "c-0001", "Cards"],
    ["predict", "headlins"],
    ["serve", "headlins"],
    ["export", "headlins", "documents"],
    ["tune", "headlins"],
    ["replay", "headlins", "n1"],
    ["lineage", "headlins", "r-1"],
    ["ingest", "headlins"],
    ["reclassify", "headlins", "all"],
    ["backfill", "headlins", "2026-11-20", "2026-11-21"],
    ["explain", "headlins", "some text"],
    ["similar", "headlins", "some text"],
    ["forget", "headlins", "r-1", "--reason", "asked for"],
    ["doctor", "headlins"],
    ["alert", "headlins", "--test"],
    ["review", "headlins"],
    ["labels", "export", "headlins"],
]


@pytest.mark.parametrize("arguments", READING, ids=lambda one: one[0])
def test_an_unknown_pipeline_is_answered_with_the_nearest_name(
    arguments: list[str], config: Path
) -> None:
    code, out, err = call(*arguments, "--config", str(config))
    assert (code, out) == (2, "")
    assert err.strip() == "no pipeline 'headlins' in pipelines.yaml; did you mean 'headlines'?"


@pytest.mark.parametrize("arguments", [*READING, ["check"]], ids=lambda one: one[0])
def test_a_missing_pipelines_file_says_how_to_write_one(arguments: list[str]) -> None:
    code, out, err = call(*arguments, "--config", "missing.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("missing.yaml: cannot be read")
    assert "nightshift init FILE" in err


def test_the_environment_names_the_pipelines_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = config.with_name("other.yaml")
    other.write_text(PIPELINES.replace("headlines", "reviews"), encoding="utf-8")
    monkeypatch.setenv("NIGHTSHIFT_CONFIG", str(other))
    code, _, err = call("status", "zzz")
    assert code == 2
    assert "known here: reviews" in err


def test_all_problems_of_a_file_are_told_and_nothing_else(config: Path) -> None:
    config.write_text(PIPELINES + "    languge: en\nlak: x\n", encoding="utf-8")
    code, out, err = call("check", "--config", str(config))
    assert (code, out) == (2, "")
    assert [line.split(": ")[0] for line in err.strip().splitlines()] == [
        "pipelines.yaml line 4",
        "pipelines.yaml line 5",
    ]


def test_a_night_that_was_never_worked_has_no_status(config: Path) -> None:
    code, out, err = call("status", "headlines", "--night", "n9", "--config", str(config))
    assert (code, out) == (2, "")
    assert "has no night 'n9'" in err


def test_a_pipeline_without_nights_has_an_empty_status(config: Path) -> None:
    code, out, _ = call("status", "headlines", "--json", "--config", str(config))
    assert (code, json.loads(out)) == (0, [])


@pytest.mark.parametrize(
    "arguments",
    [
        ["rum"],
        ["run"],
        ["status", "a", "--jsn"],
        ["predict", "a", "--top", "0"],
        ["serve", "a", "--port", "70000"],
    ],
    ids=lambda one: " ".join(one),
)
def test_a_call_that_does_not_exist_is_the_callers_turn(arguments: list[str]) -> None:
    code, _, err = call(*arguments)
    assert code == 2
    assert "Usage: " in err


def test_an_unexpected_fault_says_whose_it_is_and_how_to_see_more(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("nightshift.pipeline.load_settings", broken)
    monkeypatch.delenv("NIGHTSHIFT_DEBUG", raising=False)
    code, _, err = call("check", "--config", str(config))
    assert code == 1
    assert "unexpected ZeroDivisionError: by zero" in err
    assert "NIGHTSHIFT_DEBUG=1" in err


def test_the_schema_is_printed_as_json() -> None:
    code, out, _ = call("schema")
    assert code == 0
    assert json.loads(out)["title"] == "pipelines.yaml of Nightshift"
