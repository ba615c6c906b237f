"""Why an answer came out: what the words sum to, on both paths, in any script."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_bundle import TEXTS, model, tokenizer

from nightshift.encoders import Network
from nightshift.errors import ConfigError
from nightshift.explanations import (
    attention_weights,
    deletion_curve,
    explain,
    integrated_gradients,
    segments,
    shared_out,
    wide_contributions,
)
from nightshift.recipe import ModelConfig, WideConfig
from nightshift.tokenizer import Tokenizer, TokenizerConfig
from nightshift.wide import Wide, count, folded, occurrences

HOSTILE = ["<script>alert(1)</script>", "x" * 100_000, "שלום עולם", "👩‍👩‍👧 ok"]
TEXT = "Where is my card, and why? 北京清华大学 don't"


def of(text: str) -> list[str]:
    return [text[start:end] for start, end in segments(text)]


# --- words ----------------------------------------------------------------------------------


def test_words_are_those_that_people_read_and_signs_between_them() -> None:
    assert of("Where's my card, and 5€?") == ["Where's", "my", "card", ",", "and", "5", "€?"]
    assert of("我要去北京大学。") == ["我要", "去", "北京大学", "。"]
    assert of(" \n ") == []


@pytest.mark.parametrize("unit", ["bpe", "word", "character"])
def test_every_token_knows_where_it_stands_in_the_text(unit: str) -> None:
    config = TokenizerConfig.model_validate({"unit": unit, "vocabulary": 120, "min_count": 1})
    learned = Tokenizer.learn([TEXT, *TEXTS], config)
    spans = learned.spans(TEXT)
    assert len(spans) == len(learned.encode([TEXT])[0])
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    covered = {place for start, end in spans for place in range(start, end)}
    visible = {place for place, one in enumerate(TEXT) if not one.isspace()}
    if unit == "word":  # punctuation is no word
        visible -= {place for place in visible if TEXT[place] in ",?"}
    assert visible <= covered


@pytest.mark.parametrize("unit", ["bpe", "word", "character"])
def test_a_long_text_has_a_place_for_each_of_its_tokens_wherever_it_is_cut(unit: str) -> None:
    config = TokenizerConfig.model_validate({"unit": unit, "vocabulary": 120, "min_count": 1})
    text = "中文文本,测试一下," * 4_000  # no mark behind which it could be cut
    learned = Tokenizer.learn([TEXT, *TEXTS, text[:100]], config)
    spans = learned.spans(text)
    assert len(spans) == len(learned.encode([text])[0])
    assert all(end <= start for (_, end), (start, _) in pairwise(dict.fromkeys(spans)))
    assert len(text) - 2 <= spans[-1][1] <= len(text)


def test_values_are_shared_by_the_characters_that_words_have_of_a_span() -> None:
    # "ab" has two of the span's five characters, "cde" three; the space between has none.
    parts = [(0, 2), (3, 6)]
    found = shared_out([(0, 6), (3, 6)], np.array([1.0, 0.5]), parts)
    assert found.tolist() == pytest.approx([2 / 5, 3 / 5 + 0.5])
    # A span on the space alone goes to the word before it, one before all words to the first.
    assert shared_out([(2, 3)], np.array([1.0]), parts).tolist() == [1.0, 0.0]
    assert shared_out([(0, 1)], np.array([1.0]), [(2, 4)]).tolist() == [1.0]


# --- the wide path --------------------------------------------------------------------------


@pytest.mark.parametrize("text", [TEXT, "the cat sat", "ﬁne Ｗide", "zzz", "cat cat cat"])
def test_contributions_of_all_n_grams_and_the_bias_are_the_linear_score(text: str) -> None:
    wide = Wide.fit(TEXTS, np.arange(5) % 3, 3, WideConfig())
    assert wide is not None
    scores = wide.scores([text])[0]
    for column in range(3):
        spans, given = wide_contributions(wide, text, column)
        assert len(spans) == len(given)
        assert given.sum() + float(wide.bias[column]) == pytest.approx(scores[column], abs=1e-5)


def test_occurrences_are_the_counted_n_grams_where_they_stand() -> None:
    config = WideConfig(characters=3)
    features, starts, ends = occurrences(TEXT, config)
    counted = count([TEXT], config)
    assert Counter(features.tolist()) == dict(
        zip(counted.features.tolist(), counted.times.tolist(), strict=True)
    )
    [(start, end)] = {
        (int(one), int(two))
        for feature, one, two in zip(features, starts, ends, strict=True)
        if feature in count(["清华"], config).features and two - one == 2
    }
    assert folded(TEXT)[start:end] == "清华"


def test_of_two_classes_the_first_ones_score_is_the_other_way_round() -> None:
    made = model(wide=Wide.fit(TEXTS, np.arange(5) % 2, 3, WideConfig()))
    for label, place in (("cats", 0), ("dogs", 1)):
        found = explain(made, TEXT, label, prefixes=False)
        total = sum(one.wide or 0 for one in found.words) + (found.wide_bias or 0)
        assert total == pytest.approx(made.wide.scores([TEXT])[0, place], abs=1e-4)  # type: ignore[union-attr]


# --- the network ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 4}, {"encoder": "gru", "layers": 2}, {"encoder": "transformer"},
     {"encoder": "tdnn"}, {"padding": "pre", "max_tokens": 40}, {"chunk_tokens": 16},
     {"pooling": ["max", "last"]}, {"truncation": "both", "max_tokens": 12}],
    ids=str,
)  # fmt: skip
def test_integrated_gradients_sum_to_what_the_words_changed(options: dict[str, object]) -> None:
    torch.manual_seed(2)
    given = {"hidden": 8, "embedding": 8, "vector": 6, "stride": 1, "max_tokens": 64} | options
    config = ModelConfig.model_validate(given)
    made = model(network=Network(config, tokenizer().size, 3))
    made.config = config
    with torch.no_grad():
        assert made.network is not None
        made.network.embedding.weight.mul_(8)
        made.network.embedding.weight[0] = 0
    found = explain(made, TEXT * 2, prefixes=False, steps=64)
    total = sum(one.network for one in found.words)
    assert total == pytest.approx(found.network_gain, abs=0.05 * abs(found.network_gain) + 0.01)
    assert abs(found.network_gain) > 0.001
    attention = [one.attention for one in found.words]
    if "attention" in config.pooling and config.padding != "pre":
        assert sum(one or 0 for one in attention) == pytest.approx(1, abs=1e-4)
    if "attention" not in config.pooling:
        assert attention == [None] * len(attention)
    assert found.left_out == (0 if config.max_tokens != 12 else found.left_out)
    assert (found.left_out > 0) == (config.max_tokens == 12)


def test_the_network_is_left_as_it_was() -> None:
    made = model()
    assert made.network is not None
    chunk = made.network.chunk
    before = made.answer(made.documents([TEXT]), [TEXT], "cpu").probabilities
    explain(made, TEXT)
    assert made.network.chunk == chunk
    after = made.answer(made.documents([TEXT]), [TEXT], "cpu").probabilities
    assert np.array_equal(before, after)  # type: ignore[arg-type]


def test_a_document_alone_has_the_attention_that_the_pooling_gave_it() -> None:
    made = model()
    assert made.network is not None
    made.network.eval()
    document = made.documents([TEXT])
    weights = attention_weights(made.network, document)
    assert weights is not None
    assert weights.shape == (int(document.lengths[0]),)
    ids, lengths = document.pad(np.array([0]))
    with torch.no_grad():
        states, _, _ = made.network.states(ids, lengths, [None])
        attended = made.network.read(ids, lengths).pooled[0, : states.shape[2]]
    mine = (torch.from_numpy(weights).float()[:, None] * states[0]).sum(0)
    assert torch.allclose(mine, attended, atol=1e-5)


# --- an answer ------------------------------------------------------------------------------


def test_the_probability_after_the_last_word_is_the_answers_own() -> None:
    found = explain(model(), TEXT)
    assert found.words[-1].probability == pytest.approx(found.probability, abs=1e-5)
    assert all(one.probability is not None for one in found.words)
    assert found.top[0] == (found.label, pytest.approx(found.probability))
    assert [one.text for one in found.words] == of(found.text)


def test_another_label_can_be_asked_for_and_an_unknown_one_names_the_nearest() -> None:
    assert explain(model(), TEXT, "other", prefixes=False).label == "other"
    with pytest.raises(ConfigError, match="no class 'cat'; did you mean 'cats'"):
        explain(model(), TEXT, "cat")


def test_shares_of_both_paths_are_weighed_as_the_blend_weighs_them() -> None:
    found = explain(model(), TEXT, prefixes=False)
    assert found.network_weight == 0.6
    network = sum(abs(one.network) for one in found.words)
    wide = sum(abs(one.wide or 0) for one in found.words)
    for one in found.words:
        expected = 0.6 * one.network / network + 0.4 * (one.wide or 0) / wide
        assert one.together == pytest.approx(expected)


def test_a_model_without_classes_or_a_text_without_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="no classifier"):
        explain(model("vectors"), TEXT)
    with pytest.raises(ConfigError, match="no text"):
        explain(model(), " \x00 ")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_explained_like_any_other(text: str) -> None:
    found = explain(model(), text, prefixes=False)
    assert "".join(one.text for one in found.words) in found.text.replace(" ", "")
    assert np.isfinite([one.network for one in found.words]).all()


def test_the_deletion_curve_takes_the_first_words_of_the_order_out() -> None:
    text = "a b c d"
    seen: list[str] = []

    def chance(cut: list[str]) -> np.ndarray:
        seen.extend(cut)
        return np.array([len(one) for one in cut], float)

    curve = deletion_curve(text, segments(text), [2, 0, 1, 3], chance, [0, 0.25, 0.5, 1])
    assert seen == ["a b c d", "a b d", "b d", ""]
    assert curve.tolist() == [7, 5, 3, 0]


def test_integrated_gradients_of_a_linear_network_are_weight_times_vector() -> None:
    """One token, no pooling to speak of: the gradient is the same all along the way."""
    made = model()
    document = made.documents(["x"])
    found, gain, error = integrated_gradients(made, document, 0, steps=128)
    # Of a single token the sum has one term, so it is the whole gain.
    assert found.shape == (1,)
    assert found[0] == pytest.approx(gain, abs=1e-3)
    assert error < 1e-3
