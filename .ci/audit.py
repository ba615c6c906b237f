"""Known vulnerabilities of what is locked, by pip-audit; a service that is away is only told.

Usage: audit.py REQUIREMENTS ...     Exit codes: 0 none known, 1 some, 2 pip-audit could not work.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SERVICES = ("osv", "pypi")
AWAY = ("ConnectionError", "Timeout", "Could not connect", "ServiceError")


def ask(service: str, pinned: str) -> tuple[list[dict], str]:
    """What a service says of each package, and what went wrong, in words."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(pinned)
        file.flush()
        asked = subprocess.run(
            [Path(sys.executable).with_name("pip-audit"), "--requirement", file.name,
             "--disable-pip", "--no-deps", "--vulnerability-service", service,
             "--format", "json", "--progress-spinner", "off"],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    found = json.loads(asked.stdout)["dependencies"] if asked.stdout else []
    return found, asked.stderr.strip()


def main(files: list[str]) -> int:
    """Ask one service after the other, until one knows all packages."""
    # Without the hashes: torch has none, and pip-audit wants all or none.
    lines = [line for name in files for line in Path(name).read_text().splitlines()]
    pinned = "".join(f"{line.rstrip(' ' + chr(92))}\n" for line in lines if line[:1].isalnum())
    for service in SERVICES:
        found, wrong = ask(service, pinned)
        if not found and not any(word in wrong for word in AWAY):
            print(wrong)
            return 2
        known = [one for one in found if "vulns" in one]
        print(f"audit: {service} answered for {len(known)} of {pinned.count('==')} packages")
        holes = [(one, hole) for one in known for hole in one["vulns"]]
        for one, hole in holes:
            fixed = ", ".join(hole["fix_versions"]) or "nothing yet"
            print(f"{one['name']} {one['version']}: {hole['id']}, fixed in {fixed}")
        if holes:
            return 1
        if known and len(known) == len(found):
            return 0
    print("WARNING: not every package was looked up; run `make audit` where a service answers.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
