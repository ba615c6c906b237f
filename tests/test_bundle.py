"""A bundle: plain files that answer alike wherever, whenever and beside whatever they are asked."""

from __future__ import annotations

import ast
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from nightshift.batches import Documents
from nightshift.bundle import MODULES, Bundle, Clusters, Model
from nightshift.cleaning import CleaningConfig
from nightshift.deciding import Blend, Gaussians, Reject, Scale, Threshold
from nightshift.encoders import Network
from nightshift.errors import BundleError
from nightshift.nearest import UNASSIGNED, Cells, unit
from nightshift.recipe import ModelConfig, WideConfig
from nightshift.tokenizer import Tokenizer, TokenizerConfig
from nightshift.vectors import CorpusVectors
from nightshift.wide import Wide

Kind = Literal["network", "vectors"]
KINDS: list[Kind] = ["network", "vectors"]
TEXTS = [
    "the cat sat on the mat",
    "a dog ran",
    "北京清华大学",
    "where is my card, and why " * 6,
    "x",
]


def tokenizer(texts: list[str] = TEXTS) -> Tokenizer:
    return Tokenizer.learn(texts, TokenizerConfig(vocabulary=80, min_count=1))


def model(kind: Kind = "network", **options: Any) -> Model:
    torch.manual_seed(1)
    config = ModelConfig(hidden=8, embedding=8, vector=6, stride=1, max_tokens=32)
    learned = options.pop("tokenizer", tokenizer())
    random = np.random.default_rng(1)
    words = random.normal(size=(learned.size, 6)).astype(np.float32)
    words[:2] = 0
    common = np.zeros(6, np.float32)
    parts: dict[str, Any] = {"corpus": CorpusVectors(words, common)}
    if kind == "network":
        wide = Wide.fit(TEXTS, np.arange(5) % 3, 3, WideConfig())
        near = {"network": Gaussians.of(random.normal(size=(9, 6)), np.arange(9) % 3)}
        scales = {"network": Scale(0.4, 0.1), "entropy": Scale(0.0, 0.5)}
        parts = {
            "network": Network(config, learned.size, 3),
            "wide": wide,
            "labels": ["cats", "dogs", "other"],
            "blend": Blend(0.7, 0.5, 0.6),
            "reject": Reject("blend", 0.2, scales, near),
        }
    return Model(kind, learned, config, CleaningConfig(), **{**parts, **options})


def surest(threshold: float) -> Reject:
    """Keep back what is less probable than this."""
    return Reject("probability", threshold, {}, {})


CLUSTERS = Clusters(
    Cells.of(unit(np.random.default_rng(2).normal(size=(3, 6))).astype(np.float32)),
    ["c-0001", "c-0002", "c-0007"],
    ["cats", "dogs", "universities"],
    [["cat"], ["dog"], []],
)


def saved(folder: Path, kind: Kind = "network", clusters: Clusters | None = CLUSTERS) -> Path:
    made = model(kind)
    made.save(folder / "model")
    Bundle(made, clusters).save(folder / "bundle", folder / "model")
    return folder / "bundle"


def close(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> bool:
    """Equal answers, numbers within rounding."""
    for mine, other in zip(one, two, strict=True):
        for key in mine.keys() | other.keys():
            if key == "top":
                same = close(mine[key], other[key])
            elif isinstance(mine[key], float | list):
                same = bool(np.allclose(mine[key], other[key], atol=3e-6))
            else:
                same = mine[key] == other[key]
            if not same:
                return False
    return True


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clusters", [CLUSTERS, None])
def test_a_bundle_answers_the_same_from_its_files(
    tmp_path: Path, kind: Kind, clusters: Clusters | None
) -> None:
    before = Bundle(model(kind), clusters).answer(TEXTS, vectors=True)
    after = Bundle.load(saved(tmp_path, kind, clusters)).answer(TEXTS, vectors=True)
    assert after == before
    assert ("cluster_id" in after[0]) == (clusters is not None)


def test_a_model_with_all_its_parts_survives_its_files_bit_for_bit(tmp_path: Path) -> None:
    made = model(positive=1, threshold=Threshold(0.055, 0.8, 0.5, 12))
    documents = made.documents(TEXTS)
    plain = made.answer(documents, TEXTS)
    assert made.reject is not None
    # Two of the five are kept back.
    made.reject = replace(made.reject, threshold=float(np.sort(plain.scope)[2]))
    made.save(tmp_path)
    before, after = made.answer(documents, TEXTS), Model.load(tmp_path).answer(documents, TEXTS)
    for name in ("vectors", "probabilities", "choice", "scope", "abstained", "network", "wide"):
        found = getattr(after, name)
        assert np.array_equal(found, getattr(before, name)), name
        assert len(found) == len(TEXTS), name
    assert after.abstained.sum() == 2
    # None of the parts is idle: without it some answer is another.
    parts = {"wide": "probabilities", "reject": "abstained", "threshold": "choice"}
    for part, changed in parts.items():
        other = replace(made, **{part: None}).answer(documents, TEXTS)
        assert not np.array_equal(getattr(other, changed), getattr(after, changed)), part


@pytest.mark.parametrize("score", ["blend", "probability", "distance"])
def test_every_reject_score_survives_its_files(
    tmp_path: Path, score: Literal["blend", "probability", "distance"]
) -> None:
    near = Gaussians.of(np.random.default_rng(3).normal(size=(7, 6)), np.arange(7) % 2)
    scales = {"network": Scale(0.5, 0.1), "entropy": Scale(0.1, 0.3)}
    kept = {} if score == "probability" else {"network": near}
    made = Reject(score, -math.inf, scales, kept)
    model(reject=made).save(tmp_path)
    loaded = Model.load(tmp_path).reject
    assert loaded is not None
    assert loaded.threshold == -math.inf
    there = {"network": np.eye(6, dtype=np.float32)[:2]}
    given = np.array([[0.2, 0.8], [0.5, 0.5]], np.float32), there
    assert np.array_equal(loaded.scores(*given), made.scores(*given))


def test_a_document_too_far_from_every_cluster_is_unassigned(tmp_path: Path) -> None:
    cells = Cells(CLUSTERS.cells.centroids, np.array([1, 0.5, 1], np.float32), radius=0.01)
    narrow = replace(CLUSTERS, cells=cells)
    [answer] = Bundle.load(saved(tmp_path, "network", narrow)).answer(TEXTS[:1])
    assert (answer["cluster_id"], answer["cluster_name"]) == (UNASSIGNED, None)
    assert answer["distance"] > 0.01


def test_a_bundle_is_plain_files_without_pickle(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    files = {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}
    assert files == {
        "weights.safetensors", "tokenizer.json", "model.json", "clusters.json",
        "centroids.safetensors", "files.json", *(f"code/{name}.py" for name in MODULES),
    }  # fmt: skip
    for one in folder.rglob("*.json"):
        json.loads(one.read_text(encoding="utf-8"))


def test_what_can_be_seen_of_a_model_is_in_its_json(tmp_path: Path) -> None:
    model(reject=surest(0.4)).save(tmp_path)
    about = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert about["kind"] == "network"
    assert about["labels"] == ["cats", "dogs", "other"]
    assert about["blend"] == {
        "network_temperature": 0.7, "wide_temperature": 0.5, "weight": 0.6, "temperature": 1.0
    }  # fmt: skip
    assert about["reject"]["threshold"] == 0.4
    assert about["model"]["hidden"] == 8


def test_the_model_id_is_stable_and_changes_with_every_part(tmp_path: Path) -> None:
    ids = {"plain": model().save(tmp_path / "one")}
    assert model().save(tmp_path / "two") == ids["plain"]
    assert Model.load(tmp_path / "one").save(tmp_path / "three") == ids["plain"]
    other = model()
    assert other.network is not None
    other.network.head.bias.data[0] += 1e-3
    ids["weights"] = other.save(tmp_path / "four")
    ids["calibration"] = model(blend=Blend(0.8, 0.5, 0.6)).save(tmp_path / "five")
    ids["threshold"] = model(reject=surest(0.5)).save(tmp_path / "six")
    ids["wide"] = model(wide=None).save(tmp_path / "ten")
    ids["positive"] = model(positive=1).save(tmp_path / "eleven")
    ids["labels"] = model(labels=["cats", "dogs", "birds"]).save(tmp_path / "seven")
    ids["tokenizer"] = model(tokenizer=tokenizer([*TEXTS, "zzz"])).save(tmp_path / "eight")
    ids["kind"] = model("vectors").save(tmp_path / "nine")
    assert len(set(ids.values())) == len(ids)
    assert all(len(one) == 16 for one in ids.values())


def test_the_bundle_digest_changes_with_its_clusters_alone(tmp_path: Path) -> None:
    made = model()
    made.save(tmp_path / "model")
    renamed = Clusters(CLUSTERS.cells, CLUSTERS.ids, ["a", "b", "c"], CLUSTERS.keywords)
    digests = [
        Bundle(made, clusters).save(tmp_path / str(number), tmp_path / "model")
        for number, clusters in enumerate([CLUSTERS, CLUSTERS, renamed, None])
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# --- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "tokenizer.json", "model.json", "centroids.safetensors"]
)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"found no {name}"):
        Bundle.load(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "model.json"])
@pytest.mark.parametrize("rest", [0, 100])
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, name: str, rest: int) -> None:
    folder = saved(tmp_path)
    (folder / name).write_bytes((folder / name).read_bytes()[:rest])
    with pytest.raises(BundleError, match="the model cannot be read"):
        Model.load(folder)
    with pytest.raises(BundleError, match=f"found {name} cut or altered"):
        Bundle.load(folder)


def test_the_tokenizer_of_another_model_is_refused_even_where_it_has_the_same_size(
    tmp_path: Path,
) -> None:
    folder = saved(tmp_path)
    own = tokenizer()
    other = tokenizer([text.translate(str.maketrans("ct", "tc")) for text in TEXTS])
    assert other.size == own.size
    assert other.digest != own.digest
    for foreign in (other, tokenizer(TEXTS[:2])):
        (folder / "tokenizer.json").write_text(foreign.serialized, encoding="utf-8")
        with pytest.raises(BundleError, match="of different models"):
            Model.load(folder)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    about["model"]["hidden"] = 16
    (folder / "model.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(BundleError, match="the model cannot be read"):
        Model.load(folder)


# --- answers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle(model(reject=surest(0.45)), CLUSTERS)


def test_an_answer_is_the_likeliest_label_with_those_after_it(bundle: Bundle) -> None:
    for answer in bundle.answer(TEXTS, top=2):
        first, second = answer["top"]
        assert (answer["label"], answer["probability"]) == (first["label"], first["probability"])
        assert first["probability"] >= second["probability"]
        assert answer["abstained"] == (answer["probability"] < 0.45)
    [answer] = bundle.answer(TEXTS[:1], top=10)
    assert sum(one["probability"] for one in answer["top"]) == pytest.approx(1, abs=1e-5)


def test_no_runner_up_is_listed_where_none_is_asked_for(bundle: Bundle) -> None:
    [answer] = bundle.answer(TEXTS[:1], top=0)
    assert answer["label"] in ("cats", "dogs", "other")
    assert answer["top"] == []


def test_the_temperature_divides_the_scores() -> None:
    made = model(wide=None, reject=None)
    documents = made.documents(TEXTS)
    plain, warm = (
        replace(made, blend=Blend(degrees, 1.0, 1.0)).answer(documents, TEXTS).probabilities
        for degrees in (1.0, 2.0)
    )
    assert plain is not None
    assert warm is not None
    expected = np.sqrt(plain) / np.sqrt(plain).sum(1, keepdims=True)
    np.testing.assert_allclose(warm, expected, atol=1e-6)


def test_both_paths_are_blended_by_their_weight() -> None:
    said = model().answer(model().documents(TEXTS), TEXTS)
    assert said.probabilities is not None
    assert said.network is not None
    assert said.wide is not None
    np.testing.assert_allclose(said.probabilities, 0.6 * said.network + 0.4 * said.wide, atol=1e-6)


def test_a_threshold_says_the_positive_class_where_it_is_not_the_likeliest() -> None:
    made = model(positive=2, threshold=Threshold(0.0, 0.5, 1.0, 10))
    assert (made.answer(made.documents(TEXTS), TEXTS).choice == 2).all()
    never = replace(made, threshold=Threshold(2.0, 0.0, 0.0, 0))
    assert (never.answer(made.documents(TEXTS), TEXTS).choice != 2).all()


def test_a_label_said_by_its_threshold_keeps_its_probability_and_the_listing_its_order() -> None:
    made = model(positive=2, threshold=Threshold(0.0, 0.5, 1.0, 10))
    answers = Bundle(made, None).answer(TEXTS)
    assert any(answer["top"][0]["label"] != "other" for answer in answers)
    for answer in answers:
        shown = {one["label"]: one["probability"] for one in answer["top"]}
        assert (answer["label"], answer["probability"]) == ("other", shown["other"])
        assert list(shown.values()) == sorted(shown.values(), reverse=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("truncation", ["head", "tail", "both"])
def test_of_a_long_text_the_part_that_the_recipe_names_is_read(kind: Kind, truncation: str) -> None:
    made = model(kind)
    made.config = made.config.model_copy(update={"max_tokens": 4, "truncation": truncation})
    [ids] = made.tokenizer.encode(["where is my card, and why the cat ran"])
    parts = {"head": ids[:4], "tail": ids[-4:], "both": [*ids[:2], *ids[-2:]]}
    assert len({tuple(part) for part in parts.values()}) == 3
    whole, part = Documents.from_lists([ids]), Documents.from_lists([parts[truncation]])
    found, expected = (made.answer(one, ["x"]).vectors for one in (whole, part))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_threshold_survives_its_files(tmp_path: Path) -> None:
    made = model(positive=2, threshold=Threshold(0.25, 0.5, 1.0, 10, "as asked"))
    made.save(tmp_path)
    found = Model.load(tmp_path)
    assert (found.positive, found.threshold) == (2, made.threshold)


def test_a_document_is_in_the_cluster_of_the_nearest_centroid(bundle: Bundle) -> None:
    for answer in bundle.answer(TEXTS, vectors=True):
        vector = np.array(answer["vector"])
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        distances = np.linalg.norm(CLUSTERS.cells.centroids - vector, axis=1)
        place = int(distances.argmin())
        assert (answer["cluster_id"], answer["cluster_name"]) == (
            CLUSTERS.ids[place],
            CLUSTERS.names[place],
        )
        assert answer["distance"] == pytest.approx(distances[place], abs=1e-5)


def test_a_model_without_a_classifier_has_clusters_and_no_label() -> None:
    [answer] = Bundle(model("vectors"), CLUSTERS).answer(TEXTS[:1])
    assert (answer["label"], answer["probability"], answer["abstained"]) == (None, None, None)
    assert answer["cluster_id"] in CLUSTERS.ids
    assert "vector" not in answer


def test_a_text_that_cannot_be_used_gets_an_error_in_its_place(bundle: Bundle) -> None:
    alone = bundle.answer(TEXTS)
    short = Bundle(bundle.model, CLUSTERS)
    given = ["", TEXTS[0], "\u200b", TEXTS[1], " \x00 ", *TEXTS[2:]]
    found = short.answer(given)
    assert [answer.get("error") for answer in found] == [
        "no_text", None, "no_text", None, "no_text", None, None, None,
    ]  # fmt: skip
    assert close([answer for answer in found if "error" not in answer], alone)


def test_a_text_past_the_limit_gets_an_error() -> None:
    made = model()
    made.cleaning = CleaningConfig(max_characters=20)
    found = Bundle(made, CLUSTERS).answer([TEXTS[0], TEXTS[1]])
    assert found[0] == {"error": "too_long"}
    assert found[1]["label"]


def test_no_text_has_no_answer(bundle: Bundle) -> None:
    assert bundle.answer([]) == []
    assert bundle.answer([""]) == [{"error": "no_text"}]


@pytest.mark.parametrize("kind", KINDS)
def test_company_and_order_change_no_answer(kind: Kind) -> None:
    one = Bundle(model(kind), CLUSTERS)
    together = one.answer(TEXTS, vectors=True)
    alone = [one.answer([text], vectors=True)[0] for text in TEXTS]
    backwards = one.answer([*TEXTS[::-1], "long " * 500], vectors=True)[:-1][::-1]
    assert close(together, alone)
    assert close(together, backwards)


def test_texts_are_cleaned_as_at_night(bundle: Bundle) -> None:
    one, two = bundle.answer(["  the cat\x07 sat on the mat\ufeff ", TEXTS[0]])
    assert one == two


# --- the code it brings ---------------------------------------------------------------------

ALONE = """
import importlib.util, json, sys
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nightshift", "tasks", "flows", "prefect", "mlflow",
                                      "deltalake", "pandas", "sklearn", "scipy", "transformers"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
sys.dont_write_bytecode = True

def load(folder, name):
    spec = importlib.util.spec_from_file_location(
        name, folder / "code" / "__init__.py", submodule_search_locations=[str(folder / "code")]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return importlib.import_module(f"{name}.bundle").Bundle.load(folder)

texts = json.loads(sys.argv[1])
found = {
    path: load(Path(path), f"bundle_{number}").answer(texts, vectors=True)
    for number, path in enumerate(sys.argv[2:])
}
assert "nightshift" not in sys.modules
print(json.dumps(found))
"""


def test_the_code_in_a_bundle_answers_where_nightshift_is_not_installed(tmp_path: Path) -> None:
    folders: dict[Kind, Path] = {kind: saved(tmp_path / kind, kind) for kind in KINDS}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps([*TEXTS, ""]), *map(str, folders.values())],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for kind, folder in folders.items():
        here = Bundle(model(kind), CLUSTERS).answer([*TEXTS, ""], vectors=True)
        assert close(found[str(folder)], here)


def imported(path: Path) -> set[str]:
    """The modules beside it that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module} if node.module else {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            named = [node.module] if isinstance(node, ast.ImportFrom) else node.names
            assert all("nightshift" not in str(getattr(one, "name", one)) for one in named), path
    return found


def test_the_code_in_a_bundle_is_what_it_imports_no_less_and_no_more() -> None:
    package = Path(sys.modules["nightshift"].__path__[0])
    reached: set[str] = set()
    waiting = {"__init__", "bundle"}
    while waiting:
        reached |= waiting
        waiting = {one for name in waiting for one in imported(package / f"{name}.py")} - reached
    assert sorted(MODULES) == sorted(reached)
    assert len(reached) > 10


def test_a_copied_bundle_is_as_good_as_the_first(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    moved = tmp_path / "elsewhere" / "bündel 包"
    shutil.copytree(folder, moved)
    assert Bundle.load(moved).answer(TEXTS) == Bundle.load(folder).answer(TEXTS)
