"""From text to a model, in the one order that night, tuning and benchmarks share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import TOPICS, texts

from nightshift.batches import Documents
from nightshift.bundle import Model
from nightshift.errors import ConfigError
from nightshift.learning import Learned, Material, Side, learn
from nightshift.pretraining import Pass
from nightshift.recipe import Recipe
from nightshift.tokenizer import Tokenizer, TokenizerConfig
from nightshift.training import Epoch

CLASSES = ("chess", "cooking", "sailing")
SMALL = {
    "model": {"hidden": 16, "embedding": 16, "vector": 16},
    "train": {"epochs": 6, "learning_rate": 0.02, "batch_tokens": 512, "refit": False},
    "pretrain": {"objective": "none"},
}
TOKENIZER = Tokenizer.learn(
    [text for topic in TOPICS for text in texts(topic, 80)], TokenizerConfig(vocabulary=300)
)


def recipe(**changes: dict[str, Any]) -> Recipe:
    parts = {*SMALL, *changes}
    return Recipe.model_validate(
        {part: {**SMALL.get(part, {}), **changes.get(part, {})} for part in parts}
    )


def side(rows: list[tuple[str, str]], classes: tuple[str, ...] = CLASSES) -> Side:
    given = [text for text, _ in rows]
    labels = np.array([classes.index(label) for _, label in rows])
    return Side(Documents.from_lists(TOKENIZER.encode(given)).labelled(labels), given)


def rows(count: int, topics: tuple[str, ...] = CLASSES, seed: int = 0) -> list[tuple[str, str]]:
    return [(text, topic) for topic in topics for text in texts(topic, count, seed)]


def material(topics: tuple[str, ...] = CLASSES, **changes: Any) -> Material:
    given = {"tokenizer": TOKENIZER, "classes": list(topics), **changes}
    if "train" not in given:
        given["train"] = side(rows(60, topics), topics)
    if "validation" not in given:
        given["validation"] = side(rows(20, topics, seed=1), topics)
    return Material(**given)


def learned(given: Material, how: Recipe, champion: Model | None = None) -> Learned:
    *_, last = learn(given, how, champion)
    assert isinstance(last, Learned)
    return last


def said(model: Model, wanted: list[str]) -> list[str]:
    choice = model.answer(model.documents(wanted), wanted, "cpu").choice
    return [model.labels[one] for one in choice]


def accuracy(model: Model, given: list[tuple[str, str]]) -> float:
    answers = said(model, [text for text, _ in given])
    return float(np.mean([one == label for one, (_, label) in zip(answers, given, strict=True)]))


# --- the order --------------------------------------------------------------------------------


def test_passes_come_before_epochs_and_what_was_learned_comes_last() -> None:
    text = Documents.from_lists(TOKENIZER.encode([one for one, _ in rows(60)]))
    pretrained = recipe(pretrain={"objective": "next_token", "epochs": 2})
    kinds = [type(one) for one in learn(material(text=text), pretrained)]
    assert kinds[:3] == [Pass, Pass, Epoch]
    assert set(kinds[2:-1]) == {Epoch}
    assert kinds[-1] is Learned


def test_both_paths_and_their_blend_are_told() -> None:
    found = learned(material(), recipe())
    assert found.figures["validation_accuracy"] > 0.9
    assert found.figures["network_validation_accuracy"] > 0.8
    assert found.figures["wide_validation_accuracy"] > 0.9
    assert 0 <= found.figures["network_weight"] <= 1
    assert {"train_seconds", "wide_seconds", "decide_seconds"} <= set(found.figures)


def test_without_the_wide_path_the_network_answers_alone() -> None:
    found = learned(material(), recipe(wide={"use": False}))
    assert found.model.wide is None
    assert found.figures["network_weight"] == 1
    assert "wide_validation_accuracy" not in found.figures


def test_the_same_seed_learns_the_same_model() -> None:
    one, two = (learned(material(), recipe()).model for _ in range(2))
    assert one.network is not None
    assert two.network is not None
    pairs = zip(one.network.parameters(), two.network.parameters(), strict=True)
    assert all(bool((a == b).all()) for a, b in pairs)
    assert one.blend == two.blend


# --- all rows ---------------------------------------------------------------------------------


def test_what_stood_in_for_validation_is_learned_from_in_the_end() -> None:
    new = [(f"{text} zugzwang", label) for text, label in rows(20, ("chess",), seed=1)]
    others = rows(20, ("cooking", "sailing"), seed=1)
    # 210 rows and 270: both above the number from which a feature must stand in two documents.
    given = material(train=side(rows(70)), validation=side([*new, *others]), held_out=True)
    without = learned(given, recipe(train={"refit": False})).model
    model = learned(given, recipe(train={"refit": True})).model
    assert model.wide is not None
    assert without.wide is not None
    assert model.wide.features > without.wide.features
    assert said(model, ["zugzwang"]) == ["chess"]


def test_validation_rows_that_the_source_declares_are_never_learned_from() -> None:
    given = material(held_out=False)
    one, two = (learned(given, recipe(train={"refit": yes})).model for yes in (True, False))
    assert one.wide is not None
    assert two.wide is not None
    assert one.wide.features == two.wide.features


def test_thresholds_stay_as_validation_chose_them() -> None:
    given = material(held_out=True)
    one, two = (learned(given, recipe(train={"refit": yes})).model for yes in (True, False))
    assert one.blend == two.blend
    assert one.reject is not None
    assert two.reject is not None
    assert one.reject.threshold == two.reject.threshold


def test_a_first_look_at_a_large_corpus_reads_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    given = material()
    whole = learned(given, recipe(train={"preset": "quick"}))
    assert (whole.figures["rows"], whole.notes) == (len(given.train), [])
    tokens = float(given.train.documents.lengths.mean())
    monkeypatch.setattr("nightshift.learning.QUICK_READ", 30 * tokens)
    some = learned(given, recipe(train={"preset": "quick"}))
    assert some.figures["rows"] == 30
    assert some.notes == [
        f"quick: the network read 30 of {len(given.train)} rows, the wide path all"
    ]


# --- warm start -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def champion() -> Model:
    return learned(material(("cooking", "sailing")), recipe()).model


def test_a_new_class_grows_the_head_and_the_old_answers_stay(champion: Model) -> None:
    old = rows(20, ("cooking", "sailing"), seed=2)
    found = learned(material(), recipe(train={"warm_start": True}), champion)
    assert any(note == "the head grew by 1: chess" for note in found.notes)
    assert found.forgotten == []
    assert accuracy(found.model, old) >= accuracy(champion, old) - 0.03
    assert accuracy(found.model, rows(20, ("chess",), seed=2)) > 0.9


def test_a_warm_start_begins_where_the_champion_ended(champion: Model) -> None:
    given = material(("cooking", "sailing"))
    short = {"epochs": 1, "learning_rate": 1e-4, "schedule": "constant"}
    warm, cold = (
        learned(given, recipe(train={**short, "warm_start": yes}), champion)
        for yes in (True, False)
    )
    assert warm.figures["network_validation_accuracy"] > 0.9
    assert cold.figures["network_validation_accuracy"] < 0.8


def test_a_class_without_rows_any_more_is_still_known(champion: Model) -> None:
    topics = ("chess", "cooking", "sailing")
    given = material(train=side(rows(60, ("chess", "cooking")), topics))
    found = learned(given, recipe(train={"warm_start": True}), champion)
    assert found.model.labels == list(topics)


def test_a_class_that_is_lost_is_named(champion: Model) -> None:
    # Every sailing text of tonight says cooking: the champion still knows better.
    wrong = [(text, "cooking") for text, _ in rows(60, ("sailing",))]
    given = material(
        ("cooking", "sailing"),
        train=side([*rows(60, ("cooking",)), *wrong], ("cooking", "sailing")),
    )
    assert learned(given, recipe(), champion).forgotten == ["sailing"]


def test_a_champion_of_another_shape_is_left_and_that_is_said(champion: Model) -> None:
    how = recipe(train={"warm_start": True}, model={"hidden": 8})
    found = learned(material(), how, champion)
    assert "started anew: the champion has another tokenizer or another shape" in found.notes


def test_rehearsal_takes_all_that_is_new_and_a_share_of_what_is_old(champion: Model) -> None:
    given = material()
    fresh = np.arange(len(given.train)) < 60
    some = recipe(train={"warm_start": True, "rehearsal": 0.0})
    found = learned(replace(given, fresh=fresh), some, champion)
    assert found.figures["rows"] == 60


def test_synonyms_among_vectors_that_start_at_random_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.synonym: 0\.1.*model\.embeddings"):
        learned(material(), recipe(train={"synonym": 0.1}))


# --- thresholds -------------------------------------------------------------------------------


def test_a_positive_class_that_does_not_exist_is_refused_with_the_nearest() -> None:
    how = recipe(answers={"positive": "ches", "precision": 0.9})
    with pytest.raises(ConfigError, match="'chess'"):
        learned(material(), how)


def test_a_promised_precision_moves_the_threshold() -> None:
    how = recipe(answers={"positive": "chess", "precision": 0.9})
    found = learned(material(), how)
    assert found.model.positive == 0
    assert found.model.threshold is not None
    assert any(note.startswith("chess is said from a probability of") for note in found.notes)


def test_about_as_many_answers_are_kept_as_declared() -> None:
    how = recipe(answers={"keep": 0.8})
    found = learned(material(validation=side(rows(60, seed=1))), how).model
    fresh = [text for text, _ in rows(60, seed=5)]
    kept = 1 - found.answer(found.documents(fresh), fresh, "cpu").abstained.mean()
    assert 0.65 < kept < 0.95


# --- long documents ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_document_of_100_000_tokens_whose_only_cue_stands_at_its_end_is_classified() -> None:
    random = np.random.default_rng(3)
    filler, cues = list(range(2, 30)), {0: [30, 31], 1: [32, 33]}

    def document(label: int, length: int) -> list[int]:
        return [*random.choice(filler, length - 1).tolist(), int(random.choice(cues[label]))]

    def documents(lengths: list[int]) -> Side:
        labels = np.arange(len(lengths)) % 2
        found = [
            document(int(label), length) for label, length in zip(labels, lengths, strict=True)
        ]
        return Side(Documents.from_lists(found).labelled(labels), ["" for _ in found])

    lengths = np.geomspace(8, 600, 240).astype(int)
    given = material(
        ("no", "yes"),
        train=documents(random.permutation(lengths).tolist()),
        validation=documents(random.permutation(lengths)[:60].tolist()),
    )
    how = recipe(
        model={"max_tokens": 200_000, "chunk_tokens": 128, "stride": 1, "dropout": 0.1},
        train={"epochs": 10, "learning_rate": 0.01, "batch_tokens": 2048},
        wide={"use": False},
    )
    model = learned(given, how).model
    long = documents([100_000] * 6)
    answers = model.answer(long.documents, long.texts, "cpu").choice
    assert answers.tolist() == [0, 1] * 3
