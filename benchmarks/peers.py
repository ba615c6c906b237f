"""What a user would take instead: one peer, trained and tested on one corpus.

    python benchmarks/peers.py PEER --corpus NAME --seed N --data DIR --json FILE

Peers: svm_words, svm_characters, fasttext, keras (the tutorials' LSTM), textrnn (a padded BiLSTM
in plain PyTorch), trainer (a small Transformer under Hugging Face's Trainer), hmm (a hidden Markov
model per class, for history). All see the same rows: the corpus's own split, or 20% test rows where
it has none; with `--rows N`, N of each side. What a peer chooses it chooses on
validation rows: the corpus's own, or a tenth of the training rows. The test rows are read once,
after training. fasttext, keras, trainer, hmm and bertopic run in environments of their own,
benchmarks/.venvs/PEER, made on first use from requirements-peers.txt. One thread, or
OMP_NUM_THREADS. With `--topics GIVEN SAID K SEED` it is BERTopic that groups the texts and vectors
of an .npz instead, for clusters.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import venv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from corpora import CORPORA, SPLIT_SEED, TEST_SHARE, Corpus, add_data_option

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

ENVIRONMENTS = Path(__file__).with_name(".venvs")
PINS = Path(__file__).with_name("requirements-peers.txt")
VALIDATION_SHARE = 0.1
HAN = re.compile("[\u3400-\u9fff]")


@dataclass(frozen=True)
class Rows:
    """Texts and their labels, in the order of the file."""

    texts: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Sides:
    """The rows of a corpus; `validation` is empty where the source has no such rows."""

    train: Rows
    validation: Rows
    test: Rows


@dataclass(frozen=True)
class Fitted:
    """A trained peer: what answers a label per text, and what it told of itself."""

    answer: Callable[[list[str]], list[str]]
    parameters: int
    validation_accuracy: float | None = None
    note: str = ""
    kept_share: float = 1.0
    """Which share of the training had passed when the weights that answer were there."""


@dataclass(frozen=True)
class Result:
    """One peer's run on one corpus.

    `documents_per_second` is of the test rows and of CPU time, as `train_cpu_seconds`: with one
    thread what a quiet machine takes, however busy this one was.
    """

    peer: str
    corpus: str
    seed: int
    accuracy: float
    macro_f1: float
    validation_accuracy: float | None
    train_seconds: float
    train_cpu_seconds: float
    documents_per_second: float
    parameters: int
    threads: int
    train_rows: int
    test_rows: int
    note: str
    kept_share: float


class PeerError(Exception):
    """A peer cannot run; the message is for the person."""


def main() -> int:
    if sys.argv[1:2] == ["--topics"]:
        return bertopic(*sys.argv[2:])
    options = _options()
    # Before numpy or torch is imported: they read it once.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    corpus = next(one for one in CORPORA if one.name == options.corpus)
    try:
        python = environment(options.peer)
        if not python.parent.parent.samefile(sys.prefix):
            os.execv(python, [str(python), *sys.argv])
        result = measure(options.peer, corpus, options.data, options.seed, options.rows)
    except PeerError as error:
        print(error, file=sys.stderr)
        return 2
    options.json.write_text(json.dumps(asdict(result), ensure_ascii=False), encoding="utf-8")
    print(f"{result.peer} on {result.corpus}, seed {result.seed}: accuracy {result.accuracy:.4f}, "
          f"trained in {result.train_seconds:.1f} s")  # fmt: skip
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("--corpus", required=True, choices=[one.name for one in CORPORA])
    parser.add_argument("--seed", type=int, default=1)
    add_data_option(parser)
    parser.add_argument("--rows", type=int, help="of each side, drawn; for trying")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the result")
    return parser.parse_args()


def measure(peer: str, corpus: Corpus, data: Path, seed: int, rows: int | None = None) -> Result:
    """Train on the training rows, then answer the test rows, once; imports are not counted.

    Raises: PeerError without the corpus's file.
    """
    sides = read_corpus(corpus, data, rows)
    for name in IMPORTS.get(peer, ()):
        import_module(name)
    started, cpu_started = time.perf_counter(), time.process_time()
    fitted = PEERS[peer](sides.train, sides.validation, seed)
    trained, cpu_trained = time.perf_counter(), time.process_time()
    answers = fitted.answer(sides.test.texts)
    answer_seconds = time.process_time() - cpu_trained
    accuracy, macro_f1 = scores(sides.test.labels, answers)
    return Result(
        peer, corpus.name, seed, accuracy, macro_f1, fitted.validation_accuracy,
        round(trained - started, 3), round(cpu_trained - cpu_started, 3),
        round(len(answers) / answer_seconds, 1), fitted.parameters, threads(),
        len(sides.train.texts), len(answers), fitted.note, fitted.kept_share,
    )  # fmt: skip


def threads() -> int:
    """How many threads a peer may use."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def scores(truth: list[str], answers: list[str]) -> tuple[float, float]:
    """Accuracy, and the mean F1 of all classes that are met or answered."""
    hits = Counter(one for one, other in zip(truth, answers, strict=True) if one == other)
    met, said = Counter(truth), Counter(answers)
    f1 = [2 * hits[name] / (met[name] + said[name]) for name in met | said]
    return sum(hits.values()) / len(truth), sum(f1) / len(f1)


# --- rows -----------------------------------------------------------------------------------


def read_corpus(corpus: Corpus, data: Path, rows: int | None = None) -> Sides:
    """All rows of a corpus, duplicates included; the same test rows as benchmarks/corpora.py.

    Args: `rows`, how many of each side are drawn, for trying.

    Raises: PeerError without the corpus's file.
    """
    import pyarrow.parquet as pq

    file = data / f"{corpus.name}.parquet"
    if not file.is_file():
        raise PeerError(
            f"{corpus.name}: found no {file.name} in {data}, expected a table of text and label. "
            "Give its folder with --data or NIGHTSHIFT_DATA."
        )
    columns = pq.read_table(file).to_pydict()
    splits = columns["split"] if corpus.has_split else drawn_splits(len(columns["text"]))
    sides: dict[str, Rows] = {name: Rows([], []) for name in ("train", "dev", "test")}
    for text, label, split in zip(columns["text"], columns["label"], splits, strict=True):
        sides[split].texts.append(text)
        sides[split].labels.append(str(label))
    return Sides(*(_some(sides[name], rows) for name in ("train", "dev", "test")))


def _some(side: Rows, count: int | None) -> Rows:
    """That many rows, drawn with the seed of the split; all without a number."""
    import numpy as np

    if count is None or count >= len(side.texts):
        return side
    drawn = np.random.default_rng(SPLIT_SEED).permutation(len(side.texts))[:count].tolist()
    return Rows([side.texts[row] for row in drawn], [side.labels[row] for row in drawn])


def drawn_splits(count: int) -> list[str]:
    """`train` or `test` for each row of a source without a split."""
    import numpy as np

    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    return np.where(order < round(TEST_SHARE * count), "test", "train").tolist()


def held_out(train: Rows, validation: Rows, seed: int) -> tuple[Rows, Rows]:
    """Training and validation rows, for a peer that needs both: a tenth stands in."""
    import numpy as np

    if validation.texts:
        return train, validation
    order = np.random.default_rng(seed).permutation(len(train.texts)).tolist()
    held = round(VALIDATION_SHARE * len(order))
    kept, out = (
        Rows([train.texts[row] for row in rows], [train.labels[row] for row in rows])
        for rows in (order[held:], order[:held])
    )
    return kept, out


def is_chinese(texts: list[str]) -> bool:
    """Whether most of the first thousand texts have a Chinese character."""
    seen = texts[:1000]
    return sum(bool(HAN.search(text)) for text in seen) * 2 > len(seen)


def split_words(text: str, chinese: bool) -> list[str]:
    """Words in lower case and punctuation marks; Chinese: characters."""
    if chinese:
        return [one for one in text if not one.isspace()]
    return re.findall(r"\w+|[^\w\s]", text.lower())


class Vocabulary:
    """Ids of words: 0 is padding, 1 is unknown, then the most frequent ones."""

    def __init__(self, texts: list[str], most: int) -> None:
        self.chinese = is_chinese(texts)
        counts = Counter(word for text in texts for word in split_words(text, self.chinese))
        self.ids = {word: place for place, (word, _) in enumerate(counts.most_common(most), 2)}

    def __len__(self) -> int:
        return len(self.ids) + 2

    def encode(self, text: str) -> list[int]:
        """The ids of a text's words."""
        return [self.ids.get(word, 1) for word in split_words(text, self.chinese)]


def usual_length(encoded: list[list[int]], most: int) -> int:
    """A length that holds 95% of the texts, at most `most`."""
    lengths = sorted(len(one) for one in encoded)
    return max(1, min(most, lengths[round(0.95 * (len(lengths) - 1))]))


# --- environments ---------------------------------------------------------------------------


def environment(peer: str) -> Path:
    """The python that runs a peer; its environment is made where it is not there yet.

    Raises: PeerError when pip cannot install the pins.
    """
    pins = pinned(peer)
    if not pins:
        return Path(sys.executable)
    folder = ENVIRONMENTS / peer
    done, python = folder / "pins.sha256", folder / "bin" / "python"
    digest = hashlib.sha256("\n".join(pins).encode()).hexdigest()
    if not done.is_file() or done.read_text() != digest:
        rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _install(peer, python, pins)
        done.write_text(digest)  # last: a killed installation begins anew
    return python


def pinned(peer: str) -> list[str]:
    """The pins of a peer with those of all; none for a peer of the repository's environment."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in PINS.read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"# \[(\w+)\]", line):
            lines = sections.setdefault(found[1], [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return [*sections["all"], *sections[peer]] if peer in sections else []


def _install(peer: str, python: Path, pins: list[str]) -> None:
    print(f"{peer}: installing {', '.join(pins)} into {python.parent.parent}", file=sys.stderr)
    command = [str(python), "-m", "pip", "install", "--quiet", *pins]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PeerError(
            f"{peer}: pip could not install its pins. Correct [{peer}] in {PINS.name}, or go "
            f"online.\n{done.stderr[-2000:]}"
        )


# --- linear models --------------------------------------------------------------------------


def svm_words(train: Rows, validation: Rows, seed: int) -> Fitted:
    """TF-IDF of words and pairs of words, linear SVM; Chinese: of 1 to 3 characters."""
    return _svm(train, seed, characters=False)


def svm_characters(train: Rows, validation: Rows, seed: int) -> Fitted:
    """The same, with 2 to 5 characters inside a word beside the words."""
    return _svm(train, seed, characters=True)


def _svm(train: Rows, seed: int, characters: bool) -> Fitted:
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    shared: dict[str, Any] = {"sublinear_tf": True, "min_df": 2, "dtype": np.float32}
    if is_chinese(train.texts):
        parts = [TfidfVectorizer(analyzer="char", ngram_range=(1, 3), **shared)]
    else:
        parts = [TfidfVectorizer(ngram_range=(1, 2), **shared)]
        if characters:
            parts.append(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), **shared))
    model = LinearSVC(random_state=seed)
    line = make_pipeline(make_union(*parts), model).fit(train.texts, train.labels)
    weights = np.size(model.coef_) + np.size(model.intercept_)
    return Fitted(lambda texts: line.predict(texts).tolist(), weights)


def fasttext(train: Rows, validation: Rows, seed: int) -> Fitted:
    """fastText (Joulin et al. 2016), rows shuffled: in the order of classes it learns the last."""
    import fasttext as library  # pyright: ignore[reportMissingImports]
    import numpy as np

    chinese = is_chinese(train.texts)
    names = sorted(set(train.labels))
    place = {name: number for number, name in enumerate(names)}
    order = np.random.default_rng(seed).permutation(len(train.texts)).tolist()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "train.txt"
        lines = (
            f"__label__{place[train.labels[row]]} {_spaced(train.texts[row], chinese)}\n"
            for row in order
        )
        file.write_text("".join(lines), encoding="utf-8")
        model = library.train_supervised(
            str(file), epoch=25, lr=0.5, wordNgrams=3 if chinese else 2, seed=seed,
            thread=threads(), verbose=0,
        )  # fmt: skip

    def answer(texts: list[str]) -> list[str]:
        found, _ = model.predict([_spaced(text, chinese) for text in texts])
        return [names[int(one[0].removeprefix("__label__"))] for one in found]

    buckets = model.f.getArgs().bucket
    parameters = (len(model.words) + buckets + len(names)) * model.get_dimension()
    return Fitted(answer, parameters, note=f"{buckets:,} of its rows are hashed n-grams")


def _spaced(text: str, chinese: bool) -> str:
    return " ".join(split_words(text, chinese))


# --- networks -------------------------------------------------------------------------------


def keras(train: Rows, validation: Rows, seed: int) -> Fitted:
    """The LSTM of Keras tutorials: padded before the text, embedding 64, LSTM 64, softmax, Adam.

    Ten epochs; the weights of the best one on validation are kept.
    """
    import keras as library  # pyright: ignore[reportMissingImports]
    import numpy as np
    import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]

    tf.config.threading.set_intra_op_parallelism_threads(threads())
    tf.config.threading.set_inter_op_parallelism_threads(1)
    library.utils.set_random_seed(seed)
    train, validation = held_out(train, validation, seed)
    words = tf.keras.preprocessing.text.Tokenizer(20_000, char_level=is_chinese(train.texts))
    words.fit_on_texts(train.texts)
    length = usual_length(words.texts_to_sequences(train.texts), 250)
    size = 1 + min(20_000, len(words.word_index))
    names = sorted(set(train.labels))

    def padded(texts: list[str]) -> np.ndarray:
        # Keras pads and cuts before the text by default.
        return library.utils.pad_sequences(words.texts_to_sequences(texts), maxlen=length)

    model = _tutorial(library.Sequential, library.layers, size, len(names))
    best = library.callbacks.EarlyStopping("val_accuracy", patience=10, restore_best_weights=True)
    told = model.fit(
        padded(train.texts), _places(train.labels, names), batch_size=32, epochs=10, verbose=0,
        validation_data=(padded(validation.texts), _places(validation.labels, names)),
        callbacks=[best],
    )  # fmt: skip

    def answer(texts: list[str]) -> list[str]:
        said = model.predict(padded(texts), batch_size=256, verbose=0)
        return [names[one] for one in said.argmax(1)]

    accuracies = told.history["val_accuracy"]
    epoch = 1 + int(np.argmax(accuracies))
    note = f"{length} words, epoch {epoch} of 10"
    return Fitted(answer, int(model.count_params()), max(accuracies), note, epoch / 10)


def _tutorial(network: Any, layers: Any, size: int, classes: int) -> Any:
    model = network([
        layers.Embedding(size, 64), layers.LSTM(64), layers.Dense(classes, activation="softmax")
    ])  # fmt: skip
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def _places(labels: list[str], names: list[str]) -> np.ndarray:
    import numpy as np

    place = {name: number for number, name in enumerate(names)}
    # A class that only validation has counts as wrong.
    return np.array([place.get(label, 0) for label in labels], np.int64)


def textrnn(train: Rows, validation: Rows, seed: int) -> Fitted:
    """A BiLSTM as short as users write it: padded behind the text, read at the last step.

    Sizes of the TextRNN in Chinese-Text-Classification-Pytorch, without its pretrained vectors.
    Ten epochs; the weights of the lowest validation loss are kept.
    """
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(threads())
    train, validation = held_out(train, validation, seed)
    words = Vocabulary(train.texts, 10_000 if is_chinese(train.texts) else 20_000)
    encoded = [words.encode(text) for text in train.texts]
    # Headlines get the 32 of the original.
    length = 32 if words.chinese else usual_length(encoded, 200)
    names = sorted(set(train.labels))

    def padded(texts: list[str]) -> Tensor:
        cut = (words.encode(text)[:length] for text in texts)
        return torch.tensor([one + [0] * (length - len(one)) for one in cut])

    network = _text_rnn(len(words), len(names))
    sides = [
        (padded(rows.texts), torch.from_numpy(_places(rows.labels, names)))
        for rows in (train, validation)
    ]
    best = min(_epochs(network, *sides), key=lambda one: one[0])
    network.load_state_dict(best[2])
    parameters = sum(one.numel() for one in network.parameters())

    def answer(texts: list[str]) -> list[str]:
        return [names[one] for one in _forward(network, padded(texts)).argmax(1).tolist()]

    note = f"{length} tokens, epoch {best[3]} of 10"
    return Fitted(answer, parameters, best[1], note, best[3] / 10)


def _text_rnn(size: int, classes: int) -> nn.Module:
    from torch import nn

    class TextRnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(size, 300, padding_idx=0)
            self.lstm = nn.LSTM(300, 128, 2, bidirectional=True, batch_first=True, dropout=0.5)
            self.head = nn.Linear(256, classes)
            for name, weights in [*self.lstm.named_parameters(), *self.head.named_parameters()]:
                nn.init.xavier_normal_(weights) if "weight" in name else nn.init.zeros_(weights)

        def forward(self, ids: Tensor) -> Tensor:
            states, _ = self.lstm(self.embedding(ids))
            return self.head(states[:, -1])

    return TextRnn()


def _epochs(
    network: nn.Module, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]
) -> Iterator[tuple[float, float, dict[str, Tensor], int]]:
    """Ten epochs; after each its validation loss and accuracy, the weights and its number."""
    from torch import optim, randperm
    from torch.nn import functional as F

    steps = optim.Adam(network.parameters(), lr=1e-3)
    for epoch in range(1, 11):
        network.train()
        for rows in randperm(len(train[1])).split(128):
            steps.zero_grad()
            F.cross_entropy(network(train[0][rows]), train[1][rows]).backward()
            steps.step()
        said = _forward(network, validation[0])
        loss = F.cross_entropy(said, validation[1]).item()
        accuracy = (said.argmax(1) == validation[1]).float().mean().item()
        weights = {name: one.clone() for name, one in network.state_dict().items()}
        yield loss, accuracy, weights, epoch


def _forward(network: nn.Module, ids: Tensor) -> Tensor:
    import torch

    network.eval()
    with torch.inference_mode():
        return torch.cat([network(one) for one in ids.split(512)])


def trainer(train: Rows, validation: Rows, seed: int) -> Fitted:
    """A Transformer as small as our network, from scratch, by Hugging Face's Trainer.

    Two layers of width 128 over words, dynamic padding by its own collator, ten epochs; the weights
    of the best one on validation are kept.
    """
    import numpy as np
    import torch
    import transformers as library

    torch.set_num_threads(threads())
    library.utils.logging.set_verbosity_error()
    library.set_seed(seed)
    train, validation = held_out(train, validation, seed)
    words = Vocabulary(train.texts, 8_000)
    names = sorted(set(train.labels))
    longest = usual_length([words.encode(text) for text in train.texts], 200)

    def given(texts: list[str], labels: list[str] | None = None) -> list[dict[str, Any]]:
        rows = [{"input_ids": words.encode(text)[:longest] or [1]} for text in texts]
        if labels is not None:
            for row, place in zip(rows, _places(labels, names).tolist(), strict=True):
                row["labels"] = place
        return rows

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        most = max(len(row["input_ids"]) for row in rows)
        lacks = [most - len(row["input_ids"]) for row in rows]
        ids = [[*row["input_ids"], *[0] * n] for row, n in zip(rows, lacks, strict=True)]
        batch = {"input_ids": torch.tensor(ids)}
        batch["attention_mask"] = (batch["input_ids"] != 0).long()
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch

    shape = library.BertConfig(
        vocab_size=len(words), hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=longest, num_labels=len(names),
    )  # fmt: skip
    network = library.BertForSequenceClassification(shape)
    with TemporaryDirectory() as folder:
        how = library.TrainingArguments(
            folder, num_train_epochs=10, learning_rate=1e-3, warmup_steps=100, seed=seed,
            per_device_train_batch_size=64, per_device_eval_batch_size=256, eval_strategy="epoch",
            save_strategy="epoch", save_total_limit=1, load_best_model_at_end=True, use_cpu=True,
            metric_for_best_model="accuracy", report_to="none", disable_tqdm=True,
            logging_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        work = library.Trainer(
            network, how, data_collator=collate,
            train_dataset=given(train.texts, train.labels),  # pyright: ignore[reportArgumentType]
            eval_dataset=given(validation.texts, validation.labels),  # pyright: ignore
            compute_metrics=lambda said: {
                "accuracy": float((said.predictions.argmax(1) == said.label_ids).mean())
            },
        )  # fmt: skip
        work.train()
        told = [one for one in work.state.log_history if "eval_accuracy" in one]
    best = max(told, key=lambda one: one["eval_accuracy"])

    def answer(texts: list[str]) -> list[str]:
        said = work.predict(given(texts)).predictions  # pyright: ignore[reportArgumentType]
        return [names[one] for one in np.asarray(said).argmax(1)]

    parameters = sum(one.numel() for one in network.parameters())
    note = f"at most {longest} tokens, epoch {best['epoch']:.0f} of 10"
    return Fitted(answer, parameters, best["eval_accuracy"], note, best["epoch"] / 10)


# --- history --------------------------------------------------------------------------------

STATES = (1, 2, 4, 8)
"""Of a class's hidden Markov model; the number with the best validation accuracy is kept."""
CHOOSING = 1000
"""Validation rows that choose: each takes a likelihood per class, one at a time."""


def hmm(train: Rows, validation: Rows, seed: int) -> Fitted:
    """A hidden Markov model of tokens per class (Rabiner 1989): likelihood and prior decide."""
    import numpy as np

    train, validation = held_out(train, validation, seed)
    chosen = np.random.default_rng(seed).permutation(len(validation.texts))[:CHOOSING]
    texts, labels = ([one[row] for row in chosen] for one in (validation.texts, validation.labels))
    words = Vocabulary(train.texts, 5_000)
    names = sorted(set(train.labels))
    counts = Counter(train.labels)
    priors = np.log([counts[name] / len(train.labels) for name in names])

    def answers(models: list[Any], texts: list[str]) -> list[str]:
        likelihoods = np.array([_likelihoods(models, words.encode(text)) for text in texts])
        return [names[one] for one in (likelihoods + priors).argmax(1)]

    tried: dict[int, tuple[float, list[Any]]] = {}
    for states in STATES:
        models = [_fit_class(words, train, name, states, seed) for name in names]
        tried[states] = scores(labels, answers(models, texts))[0], models
    states = max(tried, key=lambda one: tried[one][0])
    accuracy, models = tried[states]
    parameters = len(names) * (states + states**2 + states * len(words))
    note = f"{states} states of {', '.join(map(str, STATES))}; seconds are those of all"
    return Fitted(lambda texts: answers(models, texts), parameters, accuracy, note)


def _fit_class(words: Vocabulary, train: Rows, name: str, states: int, seed: int) -> Any:
    import logging

    import numpy as np
    from hmmlearn.hmm import CategoricalHMM  # pyright: ignore[reportMissingImports]

    # It warns of every class with more parameters than tokens; the prior below is for that.
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)
    pairs = zip(train.texts, train.labels, strict=True)
    encoded = [words.encode(text) or [1] for text, label in pairs if label == name]
    # The prior adds a tenth of a count to every word: a class must not forbid what it lacks.
    model = CategoricalHMM(
        states, emissionprob_prior=1.1, n_iter=10, random_state=seed, n_features=len(words)
    )
    column = np.concatenate(encoded).reshape(-1, 1)
    return model.fit(column, [len(one) for one in encoded])


def _likelihoods(models: list[Any], ids: list[int]) -> list[float]:
    import numpy as np

    column = np.array(ids or [1]).reshape(-1, 1)
    return [model.score(column) for model in models]


IMPORTS = {
    "svm_words": ("sklearn.feature_extraction.text", "sklearn.svm", "sklearn.pipeline"),
    "svm_characters": ("sklearn.feature_extraction.text", "sklearn.svm", "sklearn.pipeline"),
    "fasttext": ("fasttext",),
    "keras": ("tensorflow", "keras"),
    "textrnn": ("torch",),
    "trainer": ("torch", "transformers", "accelerate"),
}
"""What each imports before its clock starts."""

PEERS: dict[str, Callable[[Rows, Rows, int], Fitted]] = {
    "svm_words": svm_words,
    "svm_characters": svm_characters,
    "fasttext": fasttext,
    "keras": keras,
    "textrnn": textrnn,
    "trainer": trainer,
    "hmm": hmm,
}


# --- topics ---------------------------------------------------------------------------------


def bertopic(given: str, said: str, k: str, seed: str) -> int:
    """BERTopic by its defaults (UMAP, HDBSCAN), merged down to k topics, on vectors as given.

    Where nights are given, each later one is fitted alone and its model merged into what there is
    (`merge_models`). Leaves int64 (nights, documents): topics from 0, -1 left out, -2 not there.
    """
    import numpy as np
    from bertopic import BERTopic
    from umap import UMAP

    rows = np.load(given, allow_pickle=True)
    texts, vectors, night = rows["texts"], rows["vectors"], rows["night"]
    model, there, told = None, np.zeros(0, np.int64), list[np.ndarray]()
    for now in range(int(night.max()) + 1):
        new = np.flatnonzero(night == now)
        shape = UMAP(n_neighbors=15, n_components=5, min_dist=0.0, metric="cosine",
                     random_state=int(seed))  # fmt: skip
        # One of its topics is what it leaves out.
        merged = int(k) + 1 if model is None else None
        fitted = BERTopic(embedding_model=None, umap_model=shape, nr_topics=merged)
        fitted.fit(texts[new].tolist(), vectors[new])
        model = fitted if model is None else BERTopic.merge_models([model, fitted])
        there = np.append(there, new)
        told.append(np.full(len(night), -2))
        told[-1][there] = model.topics_
    np.save(said, np.stack(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
