"""docker/: what compose.yaml promises, read from the file; and all of it with a real engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
COMPOSE = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
SECRETS = re.compile(r"PASSWORD|SECRET|AUTH_STRING")


@pytest.mark.parametrize("name", SERVICES)
def test_service_may_do_no_more_than_it_needs(name: str) -> None:
    one = SERVICES[name]
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in one
    assert "cap_add" not in one
    assert not any("docker.sock" in str(volume) for volume in one.get("volumes", []))


@pytest.mark.parametrize("name", SERVICES)
def test_service_cannot_eat_the_machine(name: str) -> None:
    one = SERVICES[name]
    assert one["mem_limit"]
    assert one["cpus"]
    assert one["pids_limit"]
    assert one["logging"]["options"].keys() == {"max-size", "max-file"}


def test_what_lasts_is_started_again_and_says_how_it_is() -> None:
    lasting = {name for name, one in SERVICES.items() if one["restart"] != "no"}
    assert lasting == {"postgres", "prefect", "mlflow", "cpu", "gpu", "watch", "review"}
    assert not any(SERVICES[name].get("healthcheck", {}).get("disable") for name in lasting)


def test_only_this_machines_own_ports_are_published() -> None:
    ports = [port for one in SERVICES.values() for port in one.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert {one.get("network_mode") for one in SERVICES.values()} == {None, "none"}


def test_every_secret_is_asked_of_the_environment_and_has_no_default() -> None:
    given = [
        (name, value)
        for one in SERVICES.values()
        for name, value in one.get("environment", {}).items()
        if SECRETS.search(name)
    ]
    assert len({name for name, _ in given}) >= 8
    for name, value in given:
        # Who has no object store gives no key to it.
        asked = r"\$\{S3_[A-Z_]+:-\}|(nightshift:)?\$\{[A-Z_]+:\?[^}]+\}"
        assert re.fullmatch(asked, value), name


def test_image_for_gpus_is_told_no_index_whose_cpu_build_pip_would_take() -> None:
    # Of 2.13.0 and 2.13.0+cpu, which both fit ==2.13.0, pip takes the second.
    assert SERVICES["gpu"]["build"]["args"] == {"TORCH": "cuda"}
    assert "PIP_EXTRA_INDEX_URL" in SERVICES["migrate"]["build"]["args"]


def test_databases_are_out_of_the_workers_reach() -> None:
    networks = yaml.safe_load(COMPOSE)["networks"]
    assert networks["servers"]["internal"] is True
    assert SERVICES["postgres"]["networks"] == ["servers"]
    for name in ("cpu", "gpu", "watch", "deploy"):
        assert SERVICES[name]["networks"] == ["work"]
        assert not any("DB_PASSWORD" in key for key in SERVICES[name]["environment"])


def test_a_password_that_is_missing_stops_compose_before_anything_starts(tmp_path: Path) -> None:
    _need_compose()
    names = sorted(set(re.findall(r"\$\{(\w+):\?", COMPOSE)))
    whole = {"PATH": os.environ["PATH"], **dict.fromkeys(names, "x")}
    whole |= {name: os.environ[name] for name in ("DOCKER_CONFIG", "HOME") if name in os.environ}
    # A .env that lies in docker/ is somebody's own.
    command = ["docker", "compose", "--env-file", "/dev/null", "--file", DOCKER / "compose.yaml"]
    command += ["--profile", "gpu", "--profile", "state", "config", "--quiet"]
    done = subprocess.run(command, env=whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in names:
        without = {key: value for key, value in whole.items() if key != name}
        done = subprocess.run(command, env=without, capture_output=True, text=True)
        assert done.returncode != 0
        assert name in done.stderr


def test_dockerfile_has_no_error_that_hadolint_knows() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint has no build for this platform")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "error", DOCKER / "Dockerfile"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["state.sh", "try.sh", "postgres-init.sh"])
def test_script_is_bash_that_can_be_read_and_run(name: str) -> None:
    script = DOCKER / name
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def test_image_runs_as_nobody_in_particular_and_installs_by_hash() -> None:
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    assert not text.startswith("# syntax")
    assert re.findall(r"^FROM (\S+)", text, re.M) == ["python:3.11-slim-bookworm"] * 2
    assert re.findall(r"^USER (\S+)", text, re.M) == ["10001"]
    assert text.count("--require-hashes") == 2
    assert "HEALTHCHECK" in text


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements-dev.lock", "requirements-audit.lock"]
)
def test_lock_pins_every_package_with_hashes_and_names_no_index(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[a-z])", text.strip())
    assert len(blocks) > 10
    for block in blocks:
        requirement, *hashes = re.split(r" \\\n +", block)
        assert {one.operator for one in Requirement(requirement).specifier} == {"=="}
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), requirement
    assert "://" not in text


def test_lock_has_whatever_the_project_needs_but_torch() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    locked = {
        match[1]: match[2]
        for match in re.finditer(
            r"^([a-z0-9._-]+)==([^ ;]+)", (ROOT / "requirements.lock").read_text(), re.M
        )
    }
    wanted = project["project"]["dependencies"]
    wanted = [*wanted, *project["project"]["optional-dependencies"]["servers"]]
    for text in wanted:
        one = Requirement(text)
        if one.name != "torch":
            assert one.specifier.contains(locked[one.name]), text


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_compose_works_its_nights_through_a_kill_a_restart_and_a_restore() -> None:
    """Runs docker/try.sh, which says what it tries; only where an engine answers."""
    _need_compose()
    engine = subprocess.run(["docker", "version"], capture_output=True, text=True)
    if engine.returncode != 0:
        pytest.skip("no Docker engine answers here; `.ci/run` says how to give it one")
    if not os.environ.get("TORCH_INDEX") and not os.environ.get("TORCH_FIND_LINKS"):
        pytest.skip("TORCH_INDEX or TORCH_FIND_LINKS must say where torch's CPU wheels are")
    done = subprocess.run([DOCKER / "try.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    assert done.stdout.rstrip().endswith("n3 is published. Done.")


def _need_compose() -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("no docker compose on this machine")
