"""From labelled and unlabelled text to a model: pretrain, train, add the wide path, calibrate.

One order for the night, for tuning and for benchmarks. `learn` yields what happens as it happens;
the last thing it yields is what was learned.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from .batches import Documents, Watch, unwatched
from .bundle import BATCH_TOKENS, Model, spaces
from .corpus import Labelled, texts_of, tokens_of
from .deciding import (
    Gaussians,
    Threshold,
    class_weights,
    fit_blend,
    fit_near,
    fit_reject,
    positive_class,
    sample,
    threshold_for,
)
from .encoders import Network, grow_head
from .errors import ConfigError
from .ids import ids_of
from .inference import forward, pick_device
from .pretrained import Pretrained, refuse_unfit
from .pretraining import Pass, pretrain
from .recipe import (
    PREFIX,
    QUICK_READ,
    AnswerConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
    most_read,
    resolve,
)
from .tables import Lake
from .tokenizer import Tokenizer
from .training import Epoch, Passes, fit, refit
from .wide import Wide
from .wordvectors import Start, frequencies, from_corpus, from_file

log = logging.getLogger(__name__)

FORGOTTEN = 0.5
"""A class is forgotten when less than this share of its recall is left."""


@dataclass(frozen=True)
class Side:
    """Labelled documents: whole (uncut) token ids with their labels, and their cleaned texts."""

    documents: Documents
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Material:
    """What there is to learn from.

    classes: names in the order of the labels' numbers. text: documents to pretrain on, labelled or
    not. fresh: bool (training rows,), which of them the champion has not seen.
    """

    tokenizer: Tokenizer
    classes: list[str]
    train: Side
    validation: Side
    text: Documents | None = None
    fresh: np.ndarray | None = None
    others: Documents | None = None
    """Documents of no class, their labels numbering the groups that they are in from 0: the network
    learns to tell them apart as well, so that they stay apart in its vectors."""
    held_out: bool = False
    """Whether validation was taken from rows for training, so that they may be given back."""


@dataclass(frozen=True)
class Learned:
    """A model, and the figures of its making; accuracies are of validation, times in seconds."""

    model: Model
    figures: dict[str, float]
    forgotten: list[str] = field(default_factory=list)
    """Classes the champion knew, and this model no longer finds."""
    notes: list[str] = field(default_factory=list)


def gather(
    lake: Lake,
    tokenizer: Tokenizer,
    sides: dict[str, Labelled],
    recipe: Recipe,
    also: Sequence[str] = (),
    declared: bool = True,
) -> Material:
    """What a pipeline's tables offer: both labelled sides, and the newest text of all but the test.

    Args: labelled sides of the same lake; what the text is for; classes to know `also`, though no
    row may have them; whether the source declares who is on which side.
    """
    classes = sorted({*sides["train"].labels, *also})
    known = set(classes)
    pairs = zip(sides["validation"].doc_ids, sides["validation"].labels, strict=True)
    kept = [pair for pair in pairs if pair[1] in known]
    held = Labelled([doc_id for doc_id, _ in kept], [label for _, label in kept])
    text = None
    if recipe.pretrain.objective != "none":
        rows = lake.read("documents", ["doc_id", "night"], pc.field("split") != "test")
        # A night that is still at work has a row, and the highest number.
        numbers = {row["night"]: row["number"] for row in lake.nights()}
        nights = ids_of(rows["night"]).dictionary_encode()
        named = [numbers.get(one, len(numbers)) for one in nights.dictionary.to_pylist()]
        number = np.array(named, np.int64)[nights.indices.to_numpy(zero_copy_only=False)]
        ordered = pa.table([rows["doc_id"], pa.array(number)], ["doc_id", "number"]).sort_by(
            [("number", "ascending"), ("doc_id", "ascending")]
        )
        newest = ids_of(ordered["doc_id"][max(0, len(number) - recipe.pretrain.documents) :])
        text = tokens_of(lake, tokenizer.digest, newest, most_read(recipe.model, heads=True))
    return Material(
        tokenizer=tokenizer,
        classes=classes,
        train=_side(lake, tokenizer, sides["train"], classes),
        validation=_side(lake, tokenizer, held, classes),
        text=text,
        # Without validation rows of its own, the source's training rows had to stand in for them.
        held_out=not declared or not lake.count("documents", pc.field("split") == "validation"),
    )


def _side(lake: Lake, tokenizer: Tokenizer, labelled: Labelled, classes: list[str]) -> Side:
    place = {name: index for index, name in enumerate(classes)}
    labels = np.array([place[label] for label in labelled.labels], np.int64)
    documents = tokens_of(lake, tokenizer.digest, labelled.doc_ids).labelled(labels)
    texts = texts_of(lake, labelled.doc_ids)
    return Side(documents, [texts[one] for one in labelled.doc_ids])


def learn(
    material: Material,
    recipe: Recipe,
    champion: Model | None = None,
    watch: Watch = unwatched,
    passes: Passes | None = None,
) -> Iterator[Pass | Epoch | Learned]:
    """Learn a model; see the module.

    Args: a champion to start from, where `train.warm_start` asks for it and its network fits; how
    the classifier's passes are made, unless in this process.
    Raises: TrainingError, and ConfigError for word vectors, a pretrained encoder or a positive
    class that do not exist.
    """
    tokens = material.train.documents.lengths
    p50, p95 = (int(one) for one in np.percentile(tokens, [50, 95]))
    text = material.text
    model, train, pre = resolve(
        recipe.model, recipe.train, recipe.pretrain, len(tokens), 0 if text is None else len(text),
        p50, p95,
    )  # fmt: skip
    device = pick_device(train.device)
    seconds, notes = _Clock(), list[str]()
    warm = _fitting(champion, model, material, notes) if train.warm_start else None
    pretrained = _pretrained(material, recipe, model, warm)
    if pretrained is not None and recipe.model.max_tokens == "auto":
        most = min(int(model.max_tokens), pretrained.room)
        model = model.model_copy(update={"max_tokens": most})
    most = int(model.max_tokens)
    rows, held = (
        side.documents.cut(most, model.truncation) for side in (material.train, material.validation)
    )
    if train.preset == "quick":
        rows = _sampled(rows, train, notes)
    start = _start(material, model, train.seed, notes)
    outputs = [*material.classes, *_names_of(material.others)]
    begin: dict[str, Any] = {}
    if warm is not None:
        rows = _rehearsed(rows, material.fresh, train)
        notes.append(f"started from the champion, on {len(rows)} rows")
    elif pre.objective != "none" and text is not None:
        network = _network(model, material, len(outputs), start, train.seed, pretrained)
        read = text.take(np.arange(max(0, len(text) - pre.documents), len(text)))
        with seconds("pretrain"):
            yield from pretrain(network, read.cut(most), pre, device, train.seed, watch)
        begin = {name: value.clone() for name, value in network.state_dict().items()}

    if material.others is not None:
        labels = material.others.labels
        assert labels is not None
        others = material.others.labelled(labels + len(material.classes))
        rows = rows.join(others.cut(most, model.truncation))
        notes.append(f"{len(others):,} documents of no class were learned by their clusters")

    def build() -> Network:
        network = _network(model, material, len(outputs), start, train.seed, pretrained)
        if warm is not None:
            network.load_state_dict(warm.state_dict())
        elif begin:
            network.load_state_dict(begin)
        return network

    if train.synonym and start is None and warm is None and not begin:
        raise ConfigError(
            f"train.synonym: {train.synonym:g}, but token vectors start at random here, where no "
            "token is like another. Write `model.embeddings: corpus` or a file of word vectors, "
            "pretrain, or leave it 0."
        )
    if warm is None and pretrained is None and not begin:
        # Discriminative rates protect what was learned before; here that is nothing.
        train = train.model_copy(update={"layer_decay": 1.0})
    epochs: list[Epoch] = []
    with seconds("train"):
        for epoch in fit(build, rows, held, train, watch, passes):
            epochs.append(epoch)
            yield epoch
    network = epochs[-1].network
    grow_head(network, outputs, material.classes)
    with seconds("wide"):
        wide = _wide(material.train, material, recipe)
    with seconds("decide"):
        learned = _decided(material, recipe, model, network, wide, held, device)
    forgotten = _forgotten(champion, learned.model, material) if champion else []
    if train.refit and material.held_out:
        best = min(epochs, key=lambda one: one.validation_loss)
        losses = [one.validation_loss for one in epochs[: best.index]]
        log.info("train     once more with the validation rows, %d passes", best.index)
        with seconds("refit"):
            again = refit(build, rows.join(held), best.config, losses, watch, passes)
            if again is not None:
                grow_head(again, outputs, material.classes)
                learned = replace(
                    learned, model=_again(material, recipe, learned.model, again, device)
                )
    figures = learned.figures | {f"{name}_seconds": value for name, value in seconds.took.items()}
    figures |= {"epochs": epochs[-1].index, "rows": len(rows), "classes": len(material.classes)}
    figures |= {"parameters": sum(one.numel() for one in network.parameters())}
    if start is not None:
        figures["token_coverage"] = start.token_coverage
    yield replace(learned, figures=figures, forgotten=forgotten, notes=[*notes, *learned.notes])


def _start(material: Material, model: ModelConfig, seed: int, notes: list[str]) -> Start | None:
    """Where the token vectors start, unless at random."""
    if model.embeddings == "learned" or model.encoder.startswith(PREFIX):
        return None
    documents = material.text if material.text is not None else material.train.documents
    tokenizer, width = material.tokenizer, model.embedding
    if model.embeddings == "corpus":
        return from_corpus(documents, tokenizer, width, seed)
    counts = frequencies(documents, tokenizer.size)
    start = from_file(model.embeddings, tokenizer, width, counts, seed)
    notes.append(
        f"word vectors of {start.source} cover {start.coverage:.1%} of the vocabulary and "
        f"{start.token_coverage:.1%} of the text"
    )
    return start


def _pretrained(
    material: Material, recipe: Recipe, model: ModelConfig, warm: Network | None
) -> Pretrained | None:
    """The encoder to fine-tune, where one is declared; the champion's needs no second look."""
    if not model.encoder.startswith(PREFIX):
        return None
    refuse_unfit(recipe.train, recipe.pretrain)
    if warm is not None:
        return warm.pretrained
    return Pretrained.load(model.encoder, material.tokenizer)


def _names_of(others: Documents | None) -> list[str]:
    """Outputs of the network that are of no class; a name of its own for each."""
    if others is None or others.labels is None:
        return []
    return [f"\0{group}" for group in range(int(others.labels.max()) + 1)]


def _network(
    model: ModelConfig,
    material: Material,
    outputs: int,
    start: Start | None,
    seed: int,
    pretrained: Pretrained | None,
) -> Network:
    torch.manual_seed(seed)
    # A copy: a training that starts again must not find what the last one left.
    parts = (material.tokenizer.size, outputs, copy.deepcopy(pretrained))
    network = Network(model, *parts)
    if start is not None:
        with torch.no_grad():
            network.embedding.weight.copy_(torch.from_numpy(start.matrix))
    return network


def _fitting(
    champion: Model | None, model: ModelConfig, material: Material, notes: list[str]
) -> Network | None:
    """The champion's network with a head for tonight's classes, where its shape is the recipe's."""
    if champion is None or champion.network is None:
        return None
    # What only matters while training may differ.
    loose = {"dropout", "state_dropout", "weight_dropout", "word_dropout", "max_tokens",
             "truncation", "chunk_tokens"}  # fmt: skip
    same = champion.config.model_dump(exclude=loose) == model.model_dump(exclude=loose)
    if not same or champion.tokenizer.digest != material.tokenizer.digest:
        notes.append("started anew: the champion has another tokenizer or another shape")
        return None
    # A copy: the champion is still asked what it has forgotten, and may stay champion.
    network = copy.deepcopy(champion.network).cpu()
    new = [name for name in material.classes if name not in champion.labels]
    if new:
        notes.append(f"the head grew by {len(new)}: {', '.join(new)}")
    outputs = [*material.classes, *_names_of(material.others)]
    grow_head(network, champion.labels, outputs)
    return network


def _sampled(rows: Documents, train: TrainConfig, notes: list[str]) -> Documents:
    """As many rows as a first look has time for."""
    most = int(QUICK_READ / max(1.0, float(rows.lengths.mean()))) if len(rows) else 0
    if most >= len(rows):
        return rows
    notes.append(f"quick: the network read {most:,} of {len(rows):,} rows, the wide path all")
    # As the classes are mixed: a balanced sample would teach another mixture.
    return rows.take(np.sort(np.random.default_rng(train.seed).permutation(len(rows))[:most]))


def _rehearsed(rows: Documents, fresh: np.ndarray | None, train: TrainConfig) -> Documents:
    """All fresh rows, and a share of those the champion has seen."""
    if fresh is None or train.rehearsal >= 1:
        return rows
    draw = np.random.default_rng(train.seed).random(len(rows)) < train.rehearsal
    return rows.take(np.flatnonzero(fresh | draw))


def _wide(side: Side, material: Material, recipe: Recipe) -> Wide | None:
    if not recipe.wide.use:
        return None
    labels, classes = side.documents.labels, len(material.classes)
    assert labels is not None
    weights = class_weights(labels, classes) if recipe.train.class_weights == "balanced" else None
    return Wide.fit(side.texts, labels, classes, recipe.wide, weights, recipe.train.seed)


def _again(
    material: Material, recipe: Recipe, chosen: Model, network: Network, device: torch.device
) -> Model:
    """The model with both paths fitted to all rows; what validation chose stays as it is."""
    one, two = material.train, material.validation
    both = Side(one.documents.join(two.documents), [*one.texts, *two.texts])
    wide = _wide(both, material, recipe)
    reject = chosen.reject
    if reject is not None:
        near = _near(network, wide, chosen.config, both, recipe, device)
        reject = replace(reject, near=near)
    return replace(chosen, network=network, wide=wide, reject=reject)


def _near(
    network: Network,
    wide: Wide | None,
    model: ModelConfig,
    side: Side,
    recipe: Recipe,
    device: torch.device,
) -> dict[str, Gaussians]:
    """Where the classes are, that the reject score measures distances to."""
    labels = side.documents.labels
    assert labels is not None
    if recipe.answers.reject_score == "probability":
        return {}
    some = sample(labels, recipe.train.seed)
    rows = side.documents.take(some).cut(int(model.max_tokens), model.truncation)
    vectors = forward(network, rows, BATCH_TOKENS, device)[1]
    scores = None if wide is None else wide.scores([side.texts[one] for one in some])
    return fit_near(spaces(vectors, scores), labels[some], recipe.answers)


def _decided(
    material: Material,
    recipe: Recipe,
    model: ModelConfig,
    network: Network,
    wide: Wide | None,
    held: Documents,
    device: torch.device,
) -> Learned:
    """Blend both paths and set every threshold, on validation."""
    truth = held.labels
    assert truth is not None
    scores, vectors = forward(network, held, BATCH_TOKENS, device)
    wide_scores = wide.scores(material.validation.texts) if wide else None
    blend = fit_blend(scores, wide_scores, truth)
    said = blend.probabilities(scores, wide_scores)
    positive, threshold, notes = _positive(said, truth, material.classes, recipe.answers)
    near = _near(network, wide, model, material.train, recipe, device)
    found = Model(
        kind="network",
        tokenizer=material.tokenizer,
        config=model,
        cleaning=recipe.cleaning,
        network=network,
        wide=wide,
        blend=blend,
        reject=fit_reject(recipe.answers, said, spaces(vectors, wide_scores), near),
        positive=positive,
        threshold=threshold,
        labels=material.classes,
    )
    figures = {
        "validation_accuracy": float((found.chosen(said) == truth).mean()),
        "validation_loss": float(
            -np.log(np.maximum(said[np.arange(len(truth)), truth], 1e-6)).mean()
        ),
        "network_validation_accuracy": float((scores.argmax(1) == truth).mean()),
        "network_weight": blend.weight,
    }
    if wide_scores is not None:
        figures["wide_validation_accuracy"] = float((wide_scores.argmax(1) == truth).mean())
    return Learned(found, figures, notes=notes)


def _positive(
    said: np.ndarray, truth: np.ndarray, classes: list[str], answers: AnswerConfig
) -> tuple[int | None, Threshold | None, list[str]]:
    """The declared positive class and the threshold from which it is said."""
    positive = positive_class(answers, classes)
    if positive is None or (answers.precision is None and answers.cost is None):
        return positive, None, []
    threshold = threshold_for(said[:, positive], truth == positive, answers.precision, answers.cost)
    note = (
        f"{classes[positive]} is said from a probability of {threshold.value:.3f}: precision "
        f"{threshold.precision:.3f}, recall {threshold.recall:.3f} on validation"
    )
    return positive, threshold, [note, *([threshold.note] if threshold.note else [])]


def _forgotten(champion: Model, model: Model, material: Material) -> list[str]:
    """Classes that the champion still finds on validation, and the new model does not."""
    labels = material.validation.documents.labels
    assert labels is not None
    truth = np.array(model.labels, object)[labels]
    said = [
        np.array(one.labels, object)[
            one.answer(material.validation.documents, material.validation.texts).choice
        ]
        for one in (champion, model)
        if one.network is not None and one.tokenizer.digest == material.tokenizer.digest
    ]
    if len(said) < 2:
        return []
    recall = [
        {name: float((one[truth == name] == name).mean()) for name in set(truth)} for one in said
    ]
    return sorted(
        name for name, old in recall[0].items() if old and recall[1][name] < FORGOTTEN * old
    )


class _Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}
        self._part, self._since = "", 0.0

    def __call__(self, part: str) -> _Clock:
        self._part = part
        return self

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.took[self._part] = time.perf_counter() - self._since
