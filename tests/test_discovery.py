"""A network that learns groups by itself: which ones, from which documents, and again the same."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import TOPICS, texts

from nightshift.batches import Documents
from nightshift.clustering import ClusterConfig
from nightshift.discovery import SURE, Round, discover, first_groups, surest
from nightshift.inference import forward, pick_device
from nightshift.nearest import nearest_centroids, unit
from nightshift.recipe import ModelConfig, TrainConfig
from nightshift.scoring import quality_with_labels
from nightshift.tokenizer import Tokenizer, TokenizerConfig

SMALL = ModelConfig(embedding=16, hidden=16, vector=16)
LABELS = [topic for topic in TOPICS for _ in range(80)]
TEXTS = [text for topic in TOPICS for text in texts(topic, 80, 0)]
ORDER = np.random.default_rng(0).permutation(len(TEXTS))
TEXTS, LABELS = [TEXTS[row] for row in ORDER], [LABELS[row] for row in ORDER]


@pytest.fixture(scope="module")
def tokens() -> tuple[Documents, Tokenizer]:
    tokenizer = Tokenizer.learn(iter(TEXTS), TokenizerConfig(vocabulary=500))
    return Documents.from_lists(tokenizer.encode(TEXTS)), tokenizer


def found(
    tokens: tuple[Documents, Tokenizer],
    known: np.ndarray | None = None,
    seed: int = 1,
    unseen: np.ndarray | None = None,
) -> tuple[list[Round], np.ndarray]:
    """The rounds, and the group of each document by the last of them."""
    documents, tokenizer = tokens
    rounds = list(
        discover(
            documents, TEXTS, tokenizer, SMALL, TrainConfig(seed=seed, learning_rate=0.02),
            ClusterConfig(k=len(TOPICS)), known, None, unseen,
        )
    )  # fmt: skip
    last = rounds[-1]
    vectors = unit(forward(last.network, documents, 4096, pick_device("cpu"))[1])
    return rounds, nearest_centroids(vectors.astype(np.float32), last.centres)[0]


def test_groups_of_words_are_the_topics() -> None:
    groups = first_groups(TEXTS, ClusterConfig(k=len(TOPICS)), 1)
    assert quality_with_labels(LABELS, groups)["accuracy"] >= 0.95
    assert set(groups.tolist()) == set(range(len(TOPICS)))


def test_a_network_learns_the_topics_and_the_same_ones_twice(
    tokens: tuple[Documents, Tokenizer],
) -> None:
    rounds, groups = found(tokens)
    assert quality_with_labels(LABELS, groups)["accuracy"] >= 0.95
    assert str(rounds[-1]).startswith(f"round {len(rounds)} of 2: {len(TOPICS)} groups, ")
    again, same = found(tokens)
    np.testing.assert_array_equal(groups, same)
    np.testing.assert_array_equal(rounds[-1].centres, again[-1].centres)


def test_known_groups_are_what_is_learned_even_if_others_would_be_found(
    tokens: tuple[Documents, Tokenizer],
) -> None:
    # Two topics are one group, a tenth of the documents is in none, and a number is left out.
    known = np.array([0 if one == LABELS[0] else 5 for one in LABELS])
    known[::10] = -1
    rounds, groups = found(tokens, known)
    assert rounds[-1].groups == 2
    assert quality_with_labels([str(one == LABELS[0]) for one in LABELS], groups)["accuracy"] > 0.95


def test_what_is_held_out_is_placed_without_being_taught(
    tokens: tuple[Documents, Tokenizer],
) -> None:
    # Known groups that the held-out documents contradict: they are placed by what others taught.
    true = np.unique(LABELS, return_inverse=True)[1]
    unseen = np.arange(len(LABELS)) % 5 == 0
    known = np.where(unseen, (true + 1) % len(TOPICS), true)
    rounds, groups = found(tokens, known, unseen=unseen)
    assert (groups[unseen] == true[unseen]).mean() > 0.9
    # A group that has nothing else is taught all the same.
    alone = np.where(unseen & (true == 0), len(TOPICS), true)
    assert found(tokens, alone, unseen=unseen)[0][-1].groups == len(TOPICS) + 1
    assert len(rounds[-1].places) == len(LABELS)


def test_the_surest_of_each_group_teach_and_a_large_group_no_more_than_its_share() -> None:
    # Ten documents in three groups: a group teaches at most 10 / 3 -> 3 of them.
    groups = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
    sure = np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.5, 0.1, 0.6, 0.0])
    assert SURE == 0.8
    # Of six the three surest; of three 2.4, so all three; the only one of the last.
    assert surest(groups, sure, 3).tolist() == [1, 3, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("few", [["the same words"] * 6, ["a", "b"], ["one two", "one two", "x y"]])
def test_texts_without_anything_to_tell_apart_are_grouped_all_the_same(few: list[str]) -> None:
    groups = first_groups(few, ClusterConfig(k=2), 1)
    assert len(groups) == len(few)
    assert set(groups.tolist()) <= {0, 1}
