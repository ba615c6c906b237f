"""What `nightshift check` looks at: every store and file that pipelines.yaml names."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nightshift.compute import ComputeConfig, connect
from nightshift.errors import NightshiftError
from nightshift.naming import load_namer
from nightshift.pipeline import Pipeline, Settings, masked
from nightshift.sources import columns_of, list_files
from nightshift.tables import Lake

Finding = tuple[str, str, bool]
"""What was looked at, what was found, and whether that is well."""


def check(settings: Settings) -> Iterator[Finding]:
    """Look at each in turn; nothing raises, everything is told."""
    yield _lake(settings)
    yield _mlflow(settings)
    yield _prefect()
    yield _device()
    # One line for each cluster, however many pipelines use it.
    used = {one.compute.address: one.compute for one in settings.pipelines.values()
            if one.compute.engine == "ray"}  # fmt: skip
    for config in used.values():
        yield _cluster(config)
    for name, pipeline in settings.pipelines.items():
        yield _source(name, pipeline)


def _lake(settings: Settings) -> Finding:
    options = settings.storage_options()
    try:
        nights = {one: Lake(settings.lake, one, options).published() for one in settings.pipelines}
        # Beside the pipelines' tables, never among them.
        Lake(settings.lake, ".check", options).replace("stages", "check", [])
    except NightshiftError as error:
        return "lake", str(error), False
    last = [f"{one} at {row['night']}" for one, row in nights.items() if row]
    return "lake", f"{masked(settings.lake)}: writable, {', '.join(last) or 'no night yet'}", True


def _mlflow(settings: Settings) -> Finding:
    from tasks.tracking import reach

    try:
        return "mlflow", f"{masked(settings.mlflow)}: {reach(settings.mlflow)}", True
    except NightshiftError as error:
        return "mlflow", str(error), False


def _prefect() -> Finding:
    import urllib.error
    import urllib.request

    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return "prefect", "embedded (PREFECT_API_URL is not set)", True
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5) as answer:
            return "prefect", f"{masked(url)}: answers", answer.status == 200
    except (OSError, ValueError) as error:
        said = masked(f"{url}: {error}")
        return "prefect", f"{said}. Start the server, or unset PREFECT_API_URL.", False


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return "device", f"cuda: {torch.cuda.get_device_name()}", True
    return "device", f"cpu, {torch.get_num_threads()} threads", True


def _cluster(config: ComputeConfig) -> Finding:
    try:
        resources = [one["Resources"] for one in connect(config).nodes() if one["Alive"]]
    except NightshiftError as error:
        return "compute", str(error), False
    cores, gpus = (int(sum(one.get(kind, 0) for one in resources)) for kind in ("CPU", "GPU"))
    said = f"Ray at {config.address}: answers, with nodes: {len(resources)}, cores: {cores}"
    return "compute", said + (f", GPUs: {gpus}" if gpus else ""), cores > 0


def _source(name: str, pipeline: Pipeline) -> Finding:
    try:
        files = list_files(pipeline.source)
        if not files:
            paths = ", ".join(map(masked, pipeline.source.paths))
            return name, f"no file matches {paths} yet", True
        if files[0].problem:
            return name, files[0].problem, False
        columns = columns_of(files[0].uri, pipeline.source)
    except NightshiftError as error:
        return name, str(error), False
    source = pipeline.source
    declared = [source.text, source.label, source.id, source.split, source.time, *source.kept]
    missing = [one for one in declared if one and columns and one not in columns]
    shown = f"{len(files)} files; {files[0].uri} has {', '.join(columns) or 'no columns'}"
    if missing:
        return name, f"{shown}; declared but not there: {', '.join(missing)}", False
    if pipeline.clusters.namer:
        try:
            load_namer(pipeline.clusters.namer)
        except NightshiftError as error:
            return name, str(error), False
    return name, shown, True
