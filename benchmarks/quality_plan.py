"""What quality.py compares: tables of recipes over corpora, and what they are asked to reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpora import CORPORA

Recipe = dict[str, Any] | str
"""What differs from Nightshift's default recipe, by the keys of recipe.py; or a peer's name."""

NIGHTSHIFT = "nightshift"
DEFAULT: Recipe = {}
SLOW = {"keras", "textrnn", "hmm"}
"""Peers of one seed."""
SAME = {("thucnews", "svm_characters")}
"""svm_words has characters only where the text is Chinese: nothing to add."""


@dataclass(frozen=True)
class Table:
    """Recipes to compare on some corpora; `recipes` by name, in the order of the page."""

    name: str
    about: str
    corpora: tuple[str, ...]
    recipes: dict[str, Recipe]


@dataclass(frozen=True)
class Job:
    """One recipe on one corpus with one seed; `table` is the first that has it."""

    table: str
    corpus: str
    name: str
    seed: int
    recipe: Recipe = field(hash=False)

    @property
    def path(self) -> str:
        """As `--only` matches it."""
        return f"{self.table}/{self.corpus}/{self.name}"

    def file(self, folder: Path) -> Path:
        """Where its result is."""
        return folder / "quality" / f"{self.path}-{self.seed}.json"


@dataclass(frozen=True)
class Goal:
    """What the mean test accuracy on a corpus must reach, by the key of the result."""

    corpus: str
    key: str
    floor: float


GOALS = [
    Goal("thucnews", "accuracy", 0.911),
    Goal("thucnews", "network_accuracy", 0.898),
    Goal("banking77", "accuracy", 0.922),
    Goal("banking77", "network_accuracy", 0.908),
    Goal("imdb", "accuracy", 0.904),
    Goal("imdb", "network_accuracy", 0.875),
    Goal("agnews_test", "accuracy", 0.882),
]

LINEAR = ("svm_words", "svm_characters")
BARE: dict[str, dict[str, Any]] = {
    "pretrain": {"objective": "none"}, "train": {"refit": False}, "wide": {"use": False}
}  # fmt: skip
"""The network alone, trained once: what the ablation changes one thing of."""
ABLATED: dict[str, dict[str, Any]] = {
    "adam": {"train": {"optimizer": "adam"}},
    "nadam": {"train": {"optimizer": "nadam"}},
    "radam": {"train": {"optimizer": "radam"}},
    "rmsprop": {"train": {"optimizer": "rmsprop"}},
    # These two step by the gradient's own size: Adam's rate would leave them where they start.
    "adagrad": {"train": {"optimizer": "adagrad", "learning_rate": 0.03}},
    "sgd": {"train": {"optimizer": "sgd", "learning_rate": 0.1}},
    "range_test": {"train": {"learning_rate": "range_test"}},
    "cosine": {"train": {"schedule": "cosine"}},
    "plateau": {"train": {"schedule": "plateau"}},
    "constant": {"train": {"schedule": "constant"}},
    "no_weight_decay": {"train": {"weight_decay": 0.0}},
    "l1": {"train": {"l1": 1e-6}},
    "no_label_smoothing": {"train": {"label_smoothing": 0.0}},
    "confidence_penalty": {"train": {"label_smoothing": 0.0, "confidence_penalty": 0.1}},
    "activation": {"train": {"activation": 1.0}},
    "temporal": {"train": {"temporal": 1.0}},
    "ema": {"train": {"averaging": "ema"}},
    "swa": {"train": {"averaging": "swa"}},
    "mixup": {"train": {"mixup": 0.2}},
    "deletion": {"train": {"deletion": 0.1}},
    "swap": {"train": {"swap": 0.1}},
    # Neighbours need vectors to be near in: compare with corpus_vectors.
    "synonym": {"train": {"synonym": 0.1}, "model": {"embeddings": "corpus"}},
    "class_weights": {"train": {"class_weights": "balanced"}},
    "no_dropout": {"model": {"dropout": 0.0}},
    "state_dropout": {"model": {"state_dropout": 0.2}},
    "weight_dropout": {"model": {"weight_dropout": 0.2}},
    "no_word_dropout": {"model": {"word_dropout": 0.0}},
    "two_layers": {"model": {"layers": 2}},
    "forwards_only": {"model": {"bidirectional": False}},
    "attention": {"model": {"pooling": ["attention"]}},
    "max": {"model": {"pooling": ["max"]}},
    "mean": {"model": {"pooling": ["mean"]}},
    "last": {"model": {"pooling": ["last"]}},
    "corpus_vectors": {"model": {"embeddings": "corpus"}},
    "frozen_corpus_vectors": {"model": {"embeddings": "corpus", "freeze_embeddings": True}},
    "refit": {"train": {"refit": True}},
}


def _changed(base: dict[str, dict[str, Any]], change: dict[str, dict[str, Any]]) -> Recipe:
    return {part: base.get(part, {}) | change.get(part, {}) for part in base | change}


TABLES = [
    Table(
        "main",
        "One default recipe for all corpora, and what a user would take instead.",
        tuple(one.name for one in CORPORA),
        {
            NIGHTSHIFT: DEFAULT,
            "quick": {"train": {"preset": "quick"}},
            **{name: name for name in (*LINEAR, "fasttext", "keras", "textrnn")},
        },
    ),
    Table(
        "family",
        "The default recipe with each encoder, and a hidden Markov model per class, for history.",
        ("thucnews",),
        {
            "lstm": DEFAULT,
            **{
                name: {"model": {"encoder": name}}
                for name in ("gru", "rnn", "mingru", "minlstm", "transformer", "tdnn")
            },
            "hmm": "hmm",
        },
    ),
    Table(
        "ablation",
        "The network alone, without pretraining and trained once, with one thing changed.",
        ("banking77", "agnews_test"),
        {"default": BARE, **{name: _changed(BARE, one) for name, one in ABLATED.items()}},
    ),
    Table(
        "padding",
        "Documents of like length together, or all to one length, behind or before the text.",
        ("banking77", "thucnews"),
        {
            "bucket": DEFAULT,
            "post": {"model": {"padding": "post"}},
            "pre": {"model": {"padding": "pre"}},
        },
    ),
    Table(
        "pretraining",
        "What the network learns from the text before any label; the default is the next token.",
        ("banking77", "thucnews", "imdb"),
        {
            "next_token": DEFAULT,
            "none": {"pretrain": {"objective": "none"}},
            "denoise": {"pretrain": {"objective": "denoise"}},
            "contrastive": {"pretrain": {"objective": "contrastive"}},
            "layer_decay": {"train": {"layer_decay": 0.8}},
        },
    ),
]


def plan(seeds: int) -> list[Job]:
    """Every job once, those of the first seed first."""
    found = {
        job: None
        for where in TABLES
        for corpus in where.corpora
        for name in where.recipes
        for job in jobs_of(where, corpus, name, seeds)
    }
    return sorted(found, key=lambda job: job.seed)


def jobs_of(where: Table, corpus: str, name: str, seeds: int = 3) -> list[Job]:
    """The jobs behind one cell of a table, one per seed; none where there is nothing to run."""
    recipe = where.recipes[name]
    if (corpus, recipe) in [*SAME]:
        return []
    home = next(
        (one.name, other)
        for one in TABLES
        for other, its in one.recipes.items()
        if its == recipe and corpus in one.corpora
    )
    count = 1 if recipe in [*SLOW] else seeds
    return [Job(home[0], corpus, home[1], seed, recipe) for seed in range(1, count + 1)]
