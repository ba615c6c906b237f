"""pipelines.yaml: what is filled in, and what is said when something is wrong in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nightshift.config import expand_variables, merge, nearest
from nightshift.errors import ConfigError
from nightshift.pipeline import (
    Pipeline,
    Settings,
    config_digest,
    json_schema,
    load_settings,
    masked,
    reference,
)
from nightshift.recipe import ModelConfig, PretrainConfig, TrainConfig, most_read, resolve

MINIMAL = """\
lake: data/lake                       # folder or URI for the tables
mlflow: sqlite:///data/mlflow.db      # tracking and registry
pipelines:
  headlines:
    source:
      paths: ["inbox/headlines/*.parquet"]
      text: text                      # columns; label, id, split, time are optional
      label: label
      split: split
"""
SOURCE = "source: {paths: [x.csv]}"


def load(folder: Path, text: str) -> Settings:
    path = folder / "pipelines.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return str(caught.value)


# --- what is right --------------------------------------------------------------------------


def test_the_minimal_pipeline_is_complete(tmp_path: Path) -> None:
    settings = load(tmp_path, MINIMAL)
    pipeline = settings.pipeline("headlines")
    assert list(settings.pipelines) == ["headlines"]
    assert (pipeline.source.label, pipeline.source.split, pipeline.source.id) == (
        "label",
        "split",
        None,
    )
    assert (pipeline.language, pipeline.model.encoder, pipeline.train.when) == (
        "auto",
        "lstm",
        "auto",
    )
    assert (pipeline.tokenizer.unit, pipeline.clusters.k, pipeline.webhook) == ("bpe", "auto", None)


def test_the_only_key_a_pipeline_needs_is_its_source(tmp_path: Path) -> None:
    settings = load(tmp_path, f"pipelines: {{a: {{{SOURCE}}}}}")
    assert settings.pipeline("a").source.text == "text"
    assert "pipelines.a.source is missing" in complaint(tmp_path, "pipelines: {a: {}}")


def test_relative_places_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    settings = load(tmp_path, MINIMAL)
    assert settings.lake == str(tmp_path / "data/lake")
    assert settings.mlflow == f"sqlite:///{tmp_path}/data/mlflow.db"
    assert settings.reports == str(tmp_path / "data/reports")
    assert settings.pipeline("headlines").source.paths == [
        str(tmp_path / "inbox/headlines/*.parquet")
    ]


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("lake", "s3://bucket/lake"),
        ("lake", "/absolute/lake"),
        ("mlflow", "http://mlflow:5000"),
        ("mlflow", "sqlite:////absolute/mlflow.db"),
    ],
)
def test_urls_and_absolute_places_stay_as_they_are(tmp_path: Path, key: str, place: str) -> None:
    settings = load(tmp_path, f"{key}: {place}\npipelines: {{a: {{{SOURCE}}}}}")
    assert getattr(settings, key) == place


def test_a_url_among_the_paths_stays_as_it_is(tmp_path: Path) -> None:
    settings = load(tmp_path, "pipelines: {a: {source: {paths: ['s3://bucket/*.csv', x.csv]}}}")
    assert settings.pipeline("a").source.paths == ["s3://bucket/*.csv", str(tmp_path / "x.csv")]


def test_defaults_are_shared_and_a_pipeline_overrides_single_keys(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """\
defaults:
  language: en
  model: {hidden: 64, pooling: [mean, max]}
  source: {text: body}
pipelines:
  a: {source: {paths: [a.csv]}}
  b:
    source: {paths: [b.csv], text: title}
    model: {pooling: [last]}
""",
    )
    a, b = settings.pipeline("a"), settings.pipeline("b")
    assert (a.language, a.model.hidden, a.model.pooling) == ("en", 64, ["mean", "max"])
    assert (b.language, b.model.hidden, b.model.pooling) == ("en", 64, ["last"])
    assert (a.source.text, b.source.text) == ("body", "title")


def test_merging_replaces_lists_and_values_and_joins_mappings() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert merge(base, {"a": {"y": [3]}, "c": {"z": 1}}) == {
        "a": {"x": 1, "y": [3]},
        "b": 1,
        "c": {"z": 1},
    }
    assert merge(base, {"a": None}) == {"a": None, "b": 1}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 1}


def test_settings_do_not_change(tmp_path: Path) -> None:
    settings = load(tmp_path, MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        settings.lake = "elsewhere"


# --- what is wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lakes: x\n", "line 1: lakes: unknown key; did you mean 'lake'?"),
        ("pipelines:\n  a:\n    sorce: {}\n", "line 3: pipelines.a.sorce: unknown key; did you"),
        (
            "pipelines:\n  a:\n    source:\n      paths: [x]\n      txt: body\n",
            "line 5: pipelines.a.source.txt: unknown key; did you mean 'text'?",
        ),
        (
            f"pipelines:\n  a:\n    {SOURCE}\n    model:\n      hiden: 3\n",
            "line 5: pipelines.a.model.hiden: unknown key; did you mean 'hidden'?",
        ),
        (
            f"pipelines:\n  a:\n    {SOURCE}\n    train: {{q: 1}}\n",
            "line 4: pipelines.a.train.q: unknown key; known here: activation, averaging,",
        ),
    ],
)
def test_an_unknown_key_is_told_with_its_line_and_the_nearest_known_one(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert f"pipelines.yaml {expected}" in complaint(tmp_path, text)


def test_an_error_in_the_defaults_is_reported_on_their_own_line(tmp_path: Path) -> None:
    text = f"defaults:\n  model:\n    hiden: 3\npipelines:\n  a:\n    {SOURCE}\n"
    found = complaint(tmp_path, text)
    assert "pipelines.yaml line 3: " in found
    assert "did you mean 'hidden'?" in found


def test_several_problems_are_told_at_once_each_on_a_line_of_its_own(tmp_path: Path) -> None:
    text = f"""\
lakes: x
pipelines:
  a:
    {SOURCE}
    language: English
    clusters: {{k_min: 0}}
  b: {{}}
"""
    found = complaint(tmp_path, text).splitlines()
    assert len(found) == 4
    assert {int(re.findall(r"line (\d+)", line)[0]) for line in found} == {1, 5, 6, 7}
    assert any("found 'English'" in line for line in found)


def test_a_value_of_two_possible_types_has_one_line_that_names_the_key(tmp_path: Path) -> None:
    found = complaint(
        tmp_path, f"pipelines:\n  a:\n    {SOURCE}\n    clusters:\n      k: few\n"
    ).splitlines()
    assert len(found) == 1
    assert found[0].startswith("pipelines.yaml line 5: pipelines.a.clusters.k: found 'few'. ")
    assert re.search(r"integer.* Or: .*'auto'", found[0])


@pytest.mark.parametrize(
    "setting",
    [
        "model: {stride: 0}",
        "model: {max_tokens: 0}",
        "model: {pooling: []}",
        "train: {epochs: 0}",
        "train: {batch_tokens: -1}",
        "clusters: {k: 0}",
        "tokenizer: {vocabulary: 1}",
        "splits: {test: 0.5, gate: 0.5}",
    ],
)
def test_a_number_out_of_its_bounds_is_refused_before_the_night(
    tmp_path: Path, setting: str
) -> None:
    found = complaint(tmp_path, f"pipelines:\n  a:\n    {SOURCE}\n    {setting}\n")
    assert found.startswith("pipelines.yaml line 4: pipelines.a.")


def test_a_key_given_twice_names_both_lines(tmp_path: Path) -> None:
    found = complaint(tmp_path, "lake: a\nmlflow: b\nlake: c\n")
    assert "pipelines.yaml line 3: 'lake' is given twice (first on line 1)" in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lake: [a\nmlflow: b\n", "line 2: not valid YAML"),
        ("lake: a\n\tmlflow: b\n", "line 2: not valid YAML"),
        ("lake: {{ place }}\n", "line 1: found braces or brackets as a key"),
        ("lake: &a [*a]\n", "not valid YAML"),
        ("lake: 2026-13-45\n", "not valid YAML: month must be in 1..12"),
        ("lake: bell \x07\n", "not valid YAML"),
        ("lake: a\n---\nlake: b\n", "not valid YAML"),
        ("lake: !!python/object:os.system {}\n", "line 1: not valid YAML"),
        ("", "found no keys"),
        ("- a\n- b\n", "found no keys"),
        ("just words\n", "found no keys"),
    ],
)
def test_text_that_is_not_a_mapping_in_yaml_is_explained(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in complaint(tmp_path, text)


def test_a_file_that_is_missing_or_no_utf8_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("lake: é".encode("latin-1"))
    for name in ("missing.yaml", "latin.yaml"):
        with pytest.raises(
            ConfigError, match=r"cannot be read .* write one: `nightshift init FILE`"
        ):
            load_settings(tmp_path / name)


@pytest.mark.parametrize("name", ["Headlines", "a b", "../a", "-a", "新闻"])
def test_a_pipeline_name_must_fit_folders_and_urls(tmp_path: Path, name: str) -> None:
    assert "lower-case letters" in complaint(tmp_path, f"pipelines: {{'{name}': {{{SOURCE}}}}}")


def test_a_file_without_pipelines_is_refused(tmp_path: Path) -> None:
    assert "pipelines is missing" in complaint(tmp_path, "lake: x")
    assert "pipelines" in complaint(tmp_path, "pipelines: {}")


def test_an_unknown_pipeline_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    settings = load(tmp_path, MINIMAL)
    with pytest.raises(
        ConfigError, match=r"no pipeline 'headline' .* did you mean 'headlines'"
    ) as one:
        settings.pipeline("headline")
    assert one.value.exit_code == 2
    with pytest.raises(ConfigError, match="known here: headlines"):
        settings.pipeline("zzz")


def test_nearest_lists_what_is_known_when_nothing_is_near() -> None:
    assert nearest("txt", ["text", "label"]) == "did you mean 'text'?"
    assert nearest("q", ["text", "label"]) == "known here: label, text."
    assert nearest("q", []) == "known here: none."


# --- variables and secrets ------------------------------------------------------------------


def test_variables_come_from_the_environment_with_or_without_a_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NS_TEST_HERE", "there")
    monkeypatch.delenv("NS_TEST_GONE", raising=False)
    given = {
        "a": ["x-${NS_TEST_HERE}-y", 3],
        "b": "${NS_TEST_GONE:-else}",
        "c": "${NS_TEST_GONE:-}",
    }
    assert expand_variables(given, "f") == {"a": ["x-there-y", 3], "b": "else", "c": ""}
    assert expand_variables("$NS_TEST_HERE ${not a name}", "f") == "$NS_TEST_HERE ${not a name}"


def test_a_variable_that_is_not_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NS_TEST_GONE", raising=False)
    found = complaint(tmp_path, f"lake: ${{NS_TEST_GONE}}\npipelines: {{a: {{{SOURCE}}}}}")
    assert "${NS_TEST_GONE} is used, but that environment variable is not set" in found
    assert "${NS_TEST_GONE:-default}" in found


SECRETS = f"""\
storage: {{AWS_SECRET_ACCESS_KEY: "${{NS_TEST_SECRET}}"}}
pipelines:
  a:
    {SOURCE}
    webhook: https://hooks.example/${{NS_TEST_SECRET}}
"""


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NS_TEST_SECRET", "hunter2")
    return "hunter2"


def test_secrets_are_in_no_representation_and_no_dump(tmp_path: Path, secret: str) -> None:
    settings = load(tmp_path, SECRETS)
    shown = [
        repr(settings),
        str(settings),
        repr(settings.pipeline("a")),
        str(settings.model_dump()),
        settings.model_dump_json(),
        settings.pipeline("a").model_dump_json(),
    ]
    assert all(secret not in one for one in shown)
    assert settings.storage_options() == {"AWS_SECRET_ACCESS_KEY": secret}
    webhook = settings.pipeline("a").webhook
    assert webhook is not None
    assert webhook.get_secret_value().endswith(secret)


def test_secrets_are_in_no_error_message(tmp_path: Path, secret: str) -> None:
    # The problem is found on the mapping that holds the secret, and that is not printed.
    renamed = SECRETS.replace("  a:\n", "  A:\n")
    for text in (
        renamed,
        f"{renamed}\nlakes: x",
        f"storage: [{{A: '${{NS_TEST_SECRET}}'}}]\npipelines: {{a: {{{SOURCE}}}}}",
        f"pipelines: {{a: {{{SOURCE}, webhook: ['${{NS_TEST_SECRET}}']}}}}",
    ):
        assert secret not in complaint(tmp_path, text)


def test_the_config_digest_changes_with_any_key_but_the_webhook() -> None:
    def digest(**more: Any) -> str:
        return config_digest(Pipeline.model_validate({"source": {"paths": ["x"]}, **more}))

    assert digest() == digest(webhook="https://hooks.example/x") == digest(language="auto")
    assert len({digest(), digest(language="en"), digest(train={"seed": 2})}) == 3


# --- the schema -----------------------------------------------------------------------------


def test_the_committed_schema_is_that_of_the_models() -> None:
    committed = Path(__file__).parent.parent / "pipelines.schema.json"
    assert json.loads(committed.read_text(encoding="utf-8")) == json_schema(), (
        "run: nightshift schema > pipelines.schema.json"
    )


def test_every_key_of_the_schema_is_described() -> None:
    schema = json_schema()
    described = {
        f"{name}.{key}": field.get("description") or field.get("$ref")
        for name, part in [("Settings", schema), *schema["$defs"].items()]
        for key, field in part["properties"].items()
    }
    # A field that only points to a definition is described there.
    assert [name for name, text in described.items() if not text] == []


def test_the_schema_lets_a_pipeline_rely_on_defaults() -> None:
    schema = json_schema()
    assert schema["$defs"]["Pipeline"]["required"] == ["source"]
    assert "required" not in schema["$defs"]["PipelineDefaults"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["defaults"]["$ref"].endswith("/PipelineDefaults")


# --- auto -----------------------------------------------------------------------------------


def test_of_text_that_is_learned_from_alone_no_more_is_kept_than_is_read() -> None:
    assert most_read(ModelConfig()) == 2_048
    assert most_read(ModelConfig(max_tokens=5_000)) == 5_000
    ends = ModelConfig(truncation="both", max_tokens=100)
    assert (most_read(ends), most_read(ends, heads=True)) == (None, 2_048)


@pytest.mark.parametrize(
    ("rows", "p50", "p95", "expected"),
    [
        # max_tokens 16 at least, 512 at most; stride 4 past 120 tokens; 100,000 documents in all,
        # in 4 to 12 passes; 32, 64 or 128 documents of median length, at least 8 tokens, a batch;
        # 5e-3 for up to 20,000 short texts; 5 million tokens pretrained on, in 1 to 8 passes.
        (100, 5, 9, (16, 1, 12, 32 * 8, 5e-3, 8)),
        (10_000, 20, 40, (40, 1, 10, 64 * 20, 5e-3, 8)),
        (50_000, 20, 40, (40, 1, 4, 128 * 20, 3e-3, 5)),
        (50_000, 300, 900, (512, 4, 4, 64 * 300, 3e-3, 1)),
        (0, 0, 0, (16, 1, 12, 32 * 8, 5e-3, 8)),
    ],
)
def test_auto_follows_the_rows_and_their_lengths(
    rows: int, p50: int, p95: int, expected: tuple[int, int, int, int, float, int]
) -> None:
    model, train, pretrain = resolve(
        ModelConfig(), TrainConfig(), PretrainConfig(), rows, rows, p50, p95
    )
    found = (model.max_tokens, model.stride, train.epochs, train.batch_tokens)
    assert (*found, train.learning_rate, pretrain.epochs) == expected


@pytest.mark.parametrize(
    ("encoder", "documents", "expected"),
    [
        ("lstm", 2000, "next_token"),
        ("lstm", 1999, "none"),
        ("transformer", 5000, "denoise"),
        ("huggingface:somewhere", 5000, "none"),
    ],
)
def test_what_is_learned_before_any_label_follows_the_text_and_the_encoder(
    encoder: str, documents: int, expected: str
) -> None:
    model = ModelConfig(encoder=encoder)
    *_, pretrain = resolve(model, TrainConfig(), PretrainConfig(), 100, documents, 10, 20)
    assert pretrain.objective == expected


@pytest.mark.parametrize(
    ("encoder", "rate", "pretraining_rate"),
    [("gru", 5e-3, 3e-3), ("transformer", 1e-3, 1e-3), ("huggingface:somewhere", 5e-5, 3e-3)],
)
def test_learning_rates_follow_the_encoder(
    encoder: str, rate: float, pretraining_rate: float
) -> None:
    _, train, pretrain = resolve(
        ModelConfig(encoder=encoder), TrainConfig(), PretrainConfig(), 100, 5000, 10, 20
    )
    assert (train.learning_rate, pretrain.learning_rate) == (rate, pretraining_rate)


def test_weights_decay_only_where_the_optimizer_keeps_it_apart_from_the_gradient() -> None:
    found = {}
    for train in (TrainConfig(), TrainConfig(optimizer="adam"), TrainConfig(weight_decay=0.3)):
        _, train, _ = resolve(ModelConfig(), train, PretrainConfig(), 100, 100, 10, 20)
        found[train.optimizer, train.weight_decay] = None
    assert list(found) == [("adamw", 0.01), ("adam", 0.0), ("adamw", 0.3)]


def test_the_quick_preset_reads_less_and_once_and_keys_given_win() -> None:
    model, train, pretrain = resolve(
        ModelConfig(), TrainConfig(preset="quick"), PretrainConfig(), 10_000, 10_000, 300, 900
    )
    # Half a million tokens are fewer than one pass over 10,000 x 128.
    assert (model.max_tokens, train.epochs, train.refit, pretrain.objective) == (
        128, 1, False, "none",
    )  # fmt: skip
    given = TrainConfig(preset="quick", refit=True, epochs=7)
    _, train, _ = resolve(ModelConfig(), given, PretrainConfig(), 10_000, 10_000, 300, 900)
    assert (train.epochs, train.refit) == (7, True)


def test_what_is_declared_is_not_resolved() -> None:
    model = ModelConfig(max_tokens=9, stride=2)
    train = TrainConfig(epochs=3, batch_tokens=77, weight_decay=0.1, learning_rate=0.1)
    pretrain = PretrainConfig(objective="denoise", epochs=3, learning_rate=2e-3)
    given = (model, train, pretrain)
    assert resolve(*given, 50_000, 50_000, 300, 900) == given


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://ada:s3cret@db/mlflow", "postgresql://ada:***@db/mlflow"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("s3://bucket/lake", "s3://bucket/lake"),
    ],
)
def test_a_password_in_a_uri_is_not_shown(uri: str, shown: str) -> None:
    assert masked(uri) == shown


def test_the_reference_page_in_docs_is_current() -> None:
    page = Path(__file__).parent.parent / "docs" / "pipelines.md"
    assert page.read_text(encoding="utf-8") == reference(), "nightshift schema --page > docs/..."


def test_a_floor_of_something_that_parts_no_documents_is_refused(tmp_path: Path) -> None:
    given = f"pipelines:\n  a:\n    {SOURCE}\n    promotion: {{floors: {{langage: 0.1}}}}\n"
    assert "no slices by 'langage'; did you mean 'language'" in complaint(tmp_path, given)
    columns = given.replace("x.csv]", "x.csv], columns: [region]")
    fine = columns.replace("langage", "region")
    assert load(tmp_path, fine).pipeline("a").promotion.floors == {"region": 0.1}


@pytest.mark.parametrize("key", ["lake", "mlflow", "reports"])
def test_an_address_with_a_typo_is_refused_without_its_password(tmp_path: Path, key: str) -> None:
    said = complaint(
        tmp_path, f"{key}: 'postgresql;//ann:opensesame@host/x'\npipelines: {{a: {{{SOURCE}}}}}\n"
    )
    assert f"{key}: found what looks like an address with a login" in said
    assert "opensesame" not in said
