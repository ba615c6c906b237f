"""The wide path: which n-grams a text has, what they weigh, and that answers need little."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer

from nightshift import wide
from nightshift.errors import BundleError
from nightshift.recipe import WideConfig
from nightshift.wide import Vocabulary, Wide, count, resolve_wide

ROOT = Path(__file__).parent.parent
TEXTS = [
    "the cat sat on the mat",
    "a cat, a dog and a mouse",
    "the dog ran after the cat",
    "cards don't work in the shop",
    "my card was lost in the shop",
    "北京清华大学",
    "清华大学 in 北京",
    "",
] * 3
LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 1] * 3)


def config(**options: Any) -> WideConfig:
    return WideConfig(**{"characters": 3, "min_documents": 1, **options})


def fitted(texts: list[str] = TEXTS, labels: np.ndarray = LABELS, **options: Any) -> Wide:
    model = Wide.fit(texts, labels, int(labels.max()) + 1, config(**options))
    assert model is not None
    return model


# --- which features a text has, by arithmetic on whole numbers -------------------------------

MASK, BASE = 2**64 - 1, 0x9E3779B97F4A7C15


def mixed(value: int) -> int:
    value = (value + BASE) & MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def feature(kind: str, units: list[int]) -> int:
    value = 0
    for unit in units:
        value = (value * BASE + unit) & MASK
    number = ["words", "characters", "han"].index(kind)
    return mixed(value + number * 16 + len(units) & MASK) >> 14 | number << 50


def letters(text: str) -> list[int]:
    return [BASE if one == "|" else mixed(ord(one)) for one in text]


def of_words(text: str) -> int:
    return feature(
        "words",
        [
            mixed(sum(c * BASE ** (n + 1) for n, c in enumerate(letters(word))) & MASK)
            for word in text.split()
        ],
    )


def of_text(text: str, **options: Any) -> dict[int, int]:
    found = count([text], config(**options))
    return dict(zip(found.features.tolist(), found.times.tolist(), strict=True))


def marked(runs: list[str]) -> list[int]:
    return [feature("characters", letters(run)) for run in runs]


def test_words_are_counted_alone_and_in_pairs() -> None:
    expected = Counter(["to", "be", "or", "to", "be", "to be", "be or", "or to", "to be"])
    found = of_text("To be or TO BE", characters=0)
    assert found == {of_words(one): times for one, times in expected.items()}


def test_characters_stay_between_spaces_and_see_both_ends() -> None:
    runs = ["|i", "i|", "|i|", "|i", "it", "t|", "|it", "it|", "|it|"]
    found = of_text("i it", words=0, characters=4)
    assert found == Counter(marked(runs))


def test_chinese_gives_runs_of_characters_across_what_stands_between() -> None:
    # The wide comma is folded to a narrow one; alone it is a word and a stretch of characters.
    runs = ["清", "大", "清,", ",大", "清,大", "大 ", ",大 "]
    found = of_text("清，大 ", han=3)
    others = [of_words(","), *marked(["|,", ",|", "|,|"])]
    assert found == dict.fromkeys([feature("han", letters(run)) for run in runs] + others, 1)


def test_a_mixed_text_has_features_of_both_kinds() -> None:
    runs = {feature("han", letters("我")): 1, of_words("ok"): 1}
    found = of_text("我ok", characters=2, han=1)
    assert found == runs | dict.fromkeys(marked(["|o", "ok", "k|"]), 1)


def test_a_sign_is_a_word_and_part_of_its_stretch_of_characters() -> None:
    words = {of_words(one): 1 for one in ("good", "good !", "!", "! 😀", "😀")}
    assert of_text("Good! 😀", characters=0) == words
    assert of_text("a!", words=0) == dict.fromkeys(marked(["|a", "a!", "!|", "|a!", "a!|"]), 1)


def test_full_width_letters_and_capitals_are_folded() -> None:
    assert of_text("ＣＡＲＤ") == of_text("card")


def test_an_apostrophe_inside_a_word_belongs_to_it() -> None:
    assert of_words("don't") in of_text("don't")
    assert of_words("cats") in of_text("'cats'")


def test_the_vowel_signs_of_hindi_do_not_cut_a_word() -> None:
    assert of_text("हिन्दी", characters=0) == {of_words("हिन्दी"): 1}


def test_pairs_do_not_reach_into_the_next_document() -> None:
    found = count(["ab 清", "cd 华"], config(characters=0))
    alone = [*of_text("ab 清", characters=0), *of_text("cd 华", characters=0)]
    assert sorted(found.features.tolist()) == sorted(alone)


# --- what they weigh ------------------------------------------------------------------------


def dense(vocabulary: Vocabulary, texts: list[str]) -> np.ndarray:
    places, values, starts = vocabulary.encode(texts)
    out = np.zeros((len(texts), len(vocabulary.features)))
    for row in range(len(texts)):
        here = slice(starts[row], starts[row + 1])
        out[row, places[here]] = values[here]
    return out


def columns(matrix: np.ndarray) -> np.ndarray:
    """Columns in an order that depends on nothing but their values."""
    rounded = matrix.round(5) + 0.0
    return rounded[:, np.lexsort(rounded)]


LATIN = [text for text in TEXTS[:5] if text] + ["the cat the cat the cat", "ran ran"]


def sklearn_values(least: int, **options: Any) -> np.ndarray:
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=least, **options)
    return np.asarray(vectorizer.fit_transform(LATIN).todense())


@pytest.mark.parametrize("least", [1, 2])
def test_word_values_are_those_of_scikit_learn(least: int) -> None:
    pattern = r"\w+(?:'\w+)*|[^\w\s]"
    theirs = sklearn_values(least, ngram_range=(1, 2), token_pattern=pattern)
    vocabulary = Vocabulary.learn(LATIN, config(characters=0, min_documents=least), 1000)
    assert np.allclose(columns(dense(vocabulary, LATIN)), columns(theirs), atol=2e-5)


def test_character_values_are_those_of_scikit_learn() -> None:
    theirs = sklearn_values(1, analyzer="char_wb", ngram_range=(2, 4))
    vocabulary = Vocabulary.learn(LATIN, config(words=0, characters=4), 1000)
    assert np.allclose(columns(dense(vocabulary, LATIN)), columns(theirs), atol=2e-5)


def test_words_and_characters_of_a_document_have_equal_norm() -> None:
    vocabulary = Vocabulary.learn(TEXTS, config(), 1000)
    values = dense(vocabulary, ["the cat", "清华", "zzz", "thes"])
    kinds = vocabulary.features >> wide.KIND_SHIFT
    norms = [np.linalg.norm(values[:, kinds == one], axis=1) for one in range(3)]
    assert norms[0] == pytest.approx([0.5**0.5, 0, 0, 0])  # words
    assert norms[1] == pytest.approx([0.5**0.5, 0, 0, 1])  # characters
    assert norms[2] == pytest.approx([0, 1, 0, 0])  # Chinese


def test_a_feature_must_stand_in_min_documents_not_only_stand_often() -> None:
    texts = ["one one one", "two", "two"]
    vocabulary = Vocabulary.learn(texts, config(words=1, characters=0, min_documents=2), 1000)
    assert vocabulary.features.tolist() == [of_words("two")]
    # idf = ln((1 + 3) / (1 + 2)) + 1
    assert vocabulary.idf.tolist() == pytest.approx([1.287682])


def test_the_most_frequent_features_are_kept() -> None:
    texts = ["a b c d", "a b c", "a b", "a"]
    vocabulary = Vocabulary.learn(texts, config(words=1, characters=0), 2)
    assert set(vocabulary.features.tolist()) == {of_words("a"), of_words("b")}


def test_counting_bounds_its_memory_and_forgets_the_rare_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wide, "MOST_SEEN", 3)
    monkeypatch.setattr(wide, "CHUNK_CHARACTERS", 1)
    texts = ["often", "often", *(f"rare{n}" for n in range(20)), "often"]
    vocabulary = Vocabulary.learn(texts, config(words=1, characters=0), 1)
    assert vocabulary.features.tolist() == [of_words("often")]


# --- chunks and order -----------------------------------------------------------------------


def test_chunks_hold_every_text_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "CHUNK_CHARACTERS", 5)
    pieces = list(wide.chunks(["abc", "de", "f", "a long text", "", "g"]))
    assert pieces == [["abc", "de"], ["f"], ["a long text"], ["", "g"]]
    assert [len(one) for one in wide.chunks([""] * 5000)] == [4096, 904]
    assert list(wide.chunks([])) == []


def test_chunking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, answers = fitted(), fitted().scores(TEXTS)
    monkeypatch.setattr(wide, "CHUNK_CHARACTERS", 20)
    pieces = fitted()
    assert np.array_equal(whole.vocabulary.features, pieces.vocabulary.features)
    assert np.array_equal(whole.vocabulary.idf, pieces.vocabulary.idf)
    assert np.array_equal(pieces.scores(TEXTS), answers)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    whole = fitted()
    monkeypatch.setattr(wide, "CHUNK_CHARACTERS", 20)
    monkeypatch.setattr(wide.torch, "get_num_threads", lambda: threads)
    pieces = fitted()
    assert np.array_equal(whole.vocabulary.features, pieces.vocabulary.features)
    for one, other in zip(
        whole.vocabulary.encode(TEXTS), pieces.vocabulary.encode(TEXTS), strict=True
    ):
        assert np.array_equal(one, other)


def test_a_document_is_answered_alike_alone_and_among_others() -> None:
    model = fitted()
    together = model.scores(TEXTS[::-1])[::-1]
    alone = np.concatenate([model.scores([text]) for text in TEXTS])
    assert np.array_equal(together, alone)


def test_the_order_of_documents_changes_neither_features_nor_answers() -> None:
    order = np.random.default_rng(1).permutation(len(TEXTS))
    one, two = fitted(), fitted([TEXTS[n] for n in order], LABELS[order])
    assert np.array_equal(one.vocabulary.features, two.vocabulary.features)
    assert np.array_equal(one.vocabulary.idf, two.vocabulary.idf)
    assert np.allclose(one.scores(TEXTS), two.scores(TEXTS), atol=0.05)


# --- scores ---------------------------------------------------------------------------------


def test_scores_are_values_times_weights_plus_bias() -> None:
    model = fitted()
    by_hand = dense(model.vocabulary, TEXTS) @ model.weights.double().numpy() + model.bias.numpy()
    assert np.allclose(model.scores(TEXTS), by_hand, atol=1e-5)
    assert model.scores(TEXTS).dtype == np.float32


def test_it_learns_its_labels_and_finds_a_misspelt_word() -> None:
    model = fitted()
    assert model.scores(TEXTS[:7]).argmax(1).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert model.scores(["carrd shopp"]).argmax(1).tolist() == [1]


def test_two_classes_have_two_columns_of_opposite_sign() -> None:
    model = fitted(["good film", "bad film"] * 4, np.array([1, 0] * 4))
    scores = model.scores(["good", "bad", "unknown"])
    assert model.weights.shape == (model.features, 1)
    assert np.array_equal(scores[:, 0], -scores[:, 1])
    assert scores[:2].argmax(1).tolist() == [1, 0]


@pytest.mark.parametrize("labels", [[0, 3, 0, 3], [0, 2, 3, 0]])
def test_a_class_without_rows_scores_one_below_the_lowest(labels: list[int]) -> None:
    texts = ["red apple", "green pear", "blue plum", "red cherry"]
    model = Wide.fit(texts, np.array(labels), 5, config())
    assert model is not None
    assert model.classes == 5
    scores = model.scores(texts)
    without = sorted({0, 1, 2, 3, 4} - set(labels))
    lowest = scores[:, sorted(set(labels))].min(1)
    assert scores.shape == (4, 5)
    assert np.allclose(scores[:, without], lowest[:, None] - 1)


def test_class_weights_move_the_answer_to_a_text_without_features() -> None:
    texts, labels = ["the same"] * 4, np.array([0, 0, 1, 1])
    for heavy in (0, 1):
        weights = np.array([1.0, 1.0])
        weights[heavy] = 10
        model = Wide.fit(texts, labels, 2, config(), weights)
        assert model is not None
        assert model.scores(["the same"]).argmax(1).tolist() == [heavy]


def test_the_faster_solver_learns_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = fitted()
    monkeypatch.setattr(wide, "MOST_PRODUCTS", 0)
    fast = fitted()
    assert not np.array_equal(exact.weights, fast.weights)
    assert fast.scores(TEXTS[:7]).argmax(1).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_nothing_to_learn_from_gives_no_model() -> None:
    assert Wide.fit(["a", "b"], np.array([1, 1]), 2, config()) is None
    assert Wide.fit([], np.array([], np.int64), 2, config()) is None
    assert Wide.fit(["", " \n"], np.array([0, 1]), 2, config()) is None


def test_many_classes_leave_room_for_fewer_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "MOST_WEIGHTS", 30)
    assert fitted().features == 10


# --- strange texts --------------------------------------------------------------------------

STRANGE = [
    "", " ", "\n\n", "?!…，。", "'", "''", "a'", "😀👍🏽", "\ud83d", "\ud83d\ude00 a", "\x00",
    "ééé", "ﷺ", "\u0301", "ก็", "한국어", "́a", "\u200b",
]  # fmt: skip


def test_strange_texts_are_answered_like_any_other() -> None:
    model = fitted(TEXTS + STRANGE, np.append(LABELS, [0] * len(STRANGE)))
    scores = model.scores(STRANGE)
    assert np.isfinite(scores).all()
    assert np.array_equal(scores, np.concatenate([model.scores([text]) for text in STRANGE]))
    assert model.scores([]).shape == (0, 3)


def test_a_text_without_known_features_gets_the_bias() -> None:
    model = fitted()
    assert np.array_equal(model.scores(["", "ξξξ"]), np.stack([model.bias.numpy()] * 2))


@pytest.mark.parametrize("text", ["ab " * 333_333, "x" * 1_000_000, "清华" * 500_000])
def test_a_text_of_a_million_characters_is_answered(text: str) -> None:
    assert np.isfinite(fitted().scores([text, "cat"])).all()


# --- what is resolved, stored and loaded ----------------------------------------------------


def test_auto_takes_characters_for_short_texts_alone() -> None:
    assert resolve_wide(WideConfig(), ["x" * 100] * 3).characters == 5
    assert resolve_wide(WideConfig(), ["x" * 2000] * 3).characters == 0
    assert resolve_wide(WideConfig(characters=4), ["x" * 2000] * 3).characters == 4


def test_few_documents_keep_features_of_a_single_one() -> None:
    assert resolve_wide(WideConfig(), ["x"] * 199).min_documents == 1
    assert resolve_wide(WideConfig(), ["x"] * 200).min_documents == 2


@pytest.mark.parametrize("classes", [2, 3])
def test_saved_and_loaded_it_scores_equally(tmp_path: Path, classes: int) -> None:
    model = fitted(labels=np.minimum(LABELS, classes - 1))
    save_file(model.tensors(), tmp_path / "weights")
    about = json.loads(json.dumps(model.about()))
    loaded = Wide.from_parts(load_file(tmp_path / "weights"), about)
    assert np.array_equal(loaded.scores(TEXTS), model.scores(TEXTS))
    assert (loaded.classes, loaded.features) == (classes, model.features)
    assert loaded.about() == model.about()


def test_parts_that_are_missing_or_of_different_models_are_refused() -> None:
    model, smaller = fitted(), fitted(words=1)
    tensors = model.tensors()
    tensors.pop("wide.idf")
    with pytest.raises(BundleError, match=r"found no wide\.idf"):
        Wide.from_parts(tensors, model.about())
    mixed_up = model.tensors() | {"wide.weights": smaller.tensors()["wide.weights"]}
    with pytest.raises(BundleError, match=r"found weights \(\d+, 3\), expected"):
        Wide.from_parts(mixed_up, model.about())


ALONE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sklearn", "scipy", "pandas", "tokenizers"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
from safetensors.torch import load_file
from nightshift.wide import Wide

about, texts = json.loads(sys.argv[2]), json.loads(sys.argv[3])
print(json.dumps(Wide.from_parts(load_file(sys.argv[1]), about).scores(texts).tolist()))
"""


def test_it_answers_where_scikit_learn_and_scipy_are_missing(tmp_path: Path) -> None:
    model = fitted()
    save_file(model.tensors(), tmp_path / "weights")
    arguments = [str(tmp_path / "weights"), json.dumps(model.about()), json.dumps(TEXTS)]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert np.allclose(json.loads(done.stdout), model.scores(TEXTS), atol=1e-6)
