"""Which words carried an answer: integrated gradients, the linear path's own sums, attention.

The network is explained by integrated gradients (Sundararajan, Taly & Yan 2017; captum) over its
token vectors, from a text of padding to this one: what they sum to is told, and how far it is from
what they should. The wide path is linear, so its contributions are exact: weight x TF-IDF of every
n-gram, shared out over the characters it stands on. Attention weights are shown beside both: they
say what the pooling read, not why the answer came out.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batches import Documents
from .bundle import Model
from .cleaning import clean, reject_reason
from .encoders import NOWHERE, Network
from .errors import ConfigError
from .inference import padded
from .tokenizer import WORD, words
from .wide import Wide, folded, occurrences

STEPS = 32
"""Points on the way from padding to the text (Gauss-Legendre)."""
MOST_TOKENS = 512
"""Tokens of a document that are explained; what is longer is read up to there."""
MOST_PREFIXES = 160
"""Beginnings of a text that are classified, for the probability word by word."""
BATCH = 16_384
"""Tokens in one forward pass of the integral."""


@dataclass(frozen=True)
class Word:
    """A word of the text, or a sign, and what it did for the answer.

    network: its integrated gradients, in nats of the label's log-probability. attention: its share
    of the attention, None without such a pooling. wide: its share of the linear score, None without
    that path. together: the first and the third as shares of their path's whole, as the blend
    weighs the paths. probability: of the label, from the text up to here, None where not asked.
    """

    text: str
    start: int
    end: int
    network: float
    attention: float | None
    wide: float | None
    together: float
    probability: float | None


@dataclass(frozen=True)
class Explanation:
    """An answer with its words.

    network_gain: log-probability of the label by the network, less that of a text of padding;
    integrated gradients sum to it but for `error`. wide_score: of the linear path for the label,
    `wide_bias` of it without any word. network_weight: of the network in the blend. left_out:
    tokens behind the last one that was read.
    """

    text: str
    label: str
    probability: float
    abstained: bool
    top: list[tuple[str, float]]
    words: list[Word]
    network_gain: float
    error: float
    wide_score: float | None
    wide_bias: float | None
    network_weight: float
    left_out: int

    def as_json(self) -> dict[str, Any]:
        """A plain mapping."""
        return asdict(self)


def explain(
    model: Model, text: str, label: str | None = None, prefixes: bool = True, steps: int = STEPS
) -> Explanation:
    """Why a text gets its label, or what speaks for another one.

    Args: a model with a classifier; a text as it comes; a class of the model; whether the
    probability is followed word by word. The network is moved to the CPU.
    Raises: ConfigError for a text that cannot be used, a class that is not known, or a model that
    is no classifier.
    """
    if model.network is None or model.kind != "network":
        raise ConfigError("explain: the model is no classifier, so no label has to be explained.")
    given = clean(text, model.cleaning)
    problem = reject_reason(given, model.cleaning)
    if problem:
        raise ConfigError(f"explain: the text cannot be used: {problem.replace('_', ' ')}.")
    said = model.answer(model.documents([given]), [given], "cpu")
    assert said.probabilities is not None
    target = _target(model, label, int(said.choice[0]))
    document, places, left_out = _read(model, given)
    spans = [model.tokenizer.spans(given)[place] for place in places]
    network, gain, error = integrated_gradients(model, document, target, steps)
    attention = attention_weights(model.network, document)
    parts = segments(given)
    seen = max((end for _, end in spans), default=0)
    parts = [one for one in parts if one[0] < seen or model.wide is not None]
    by_network = shared_out(spans, network, parts)
    by_attention = None if attention is None else shared_out(spans, attention, parts)
    wide = _wide(model.wide, given, target, parts) if model.wide is not None else None
    weight = model.blend.weight if wide is not None else 1.0
    chances = _prefixes(model, given, target, parts) if prefixes else [None] * len(parts)
    together = weight * _shares(by_network)
    if wide is not None:
        together = together + (1 - weight) * _shares(wide[0])
    order = np.argsort(-said.probabilities[0], kind="stable")[:3]
    return Explanation(
        text=given,
        label=model.labels[target],
        probability=float(said.probabilities[0, target]),
        abstained=bool(said.abstained[0]),
        top=[(model.labels[one], float(said.probabilities[0, one])) for one in order],
        words=[
            Word(
                text=given[start:end],
                start=start,
                end=end,
                network=float(by_network[place]),
                attention=None if by_attention is None else float(by_attention[place]),
                wide=None if wide is None else float(wide[0][place]),
                together=float(together[place]),
                probability=chances[place],
            )
            for place, (start, end) in enumerate(parts)
        ],
        network_gain=gain,
        error=error,
        wide_score=None if wide is None else wide[1],
        wide_bias=None if wide is None else wide[2],
        network_weight=weight,
        left_out=left_out,
    )


def _target(model: Model, label: str | None, choice: int) -> int:
    if label is None:
        return choice
    if label not in model.labels:
        from .config import nearest

        raise ConfigError(f"explain: no class {label!r}; {nearest(label, model.labels)}")
    return model.labels.index(label)


def _read(model: Model, text: str) -> tuple[Documents, np.ndarray, int]:
    """The document as the network reads it, which tokens those are, and how many it does not."""
    whole = model.documents([text])
    most = min(int(model.config.max_tokens), MOST_TOKENS)
    if model.pretrained is not None:
        most = min(most, model.pretrained.room)
    document = whole.cut(most, model.config.truncation)
    kept = int(document.lengths[0])
    places = document.places(np.zeros(kept, np.int64), np.arange(kept))
    return document, places, int(whole.lengths[0]) - kept


# --- the network ----------------------------------------------------------------------------


def integrated_gradients(
    model: Model, document: Documents, target: int, steps: int = STEPS
) -> tuple[np.ndarray, float, float]:
    """What each token adds to the label's log-probability by the network alone.

    Args: one document of at most `MOST_TOKENS`; the class.
    Returns: float64 (tokens,); what they should sum to; how far their sum is from it.
    """
    from captum.attr import LayerIntegratedGradients

    network = model.network
    assert network is not None
    network.cpu().eval()
    ids, lengths = padded(network, document, np.array([0]))
    temperature = model.blend.network_temperature

    def score(given: Tensor, long: Tensor) -> Tensor:
        scores, _ = network(given, long)
        return torch.log_softmax(scores / temperature, dim=1)[:, target]

    layer = (
        network.embedding
        if network.pretrained is None
        else network.pretrained.encoder.get_input_embeddings()
    )
    nothing = torch.zeros_like(ids)
    chunk = network.chunk
    # In one piece: between chunks the gradient stops, and the embedding would be asked twice.
    network.chunk = max(chunk, ids.shape[1])
    try:
        found, error = LayerIntegratedGradients(score, layer).attribute(
            ids,
            baselines=nothing,
            additional_forward_args=(lengths,),
            n_steps=steps,
            internal_batch_size=max(1, BATCH // ids.shape[1]),
            return_convergence_delta=True,
        )
        with torch.no_grad():
            gain = float(score(ids, lengths) - score(nothing, lengths))
    finally:
        network.chunk = chunk
    assert isinstance(found, Tensor)
    assert isinstance(error, Tensor)
    tokens = found.detach().sum(2)[0].double().numpy()
    if network.pretrained is not None:  # special tokens stand around the text
        tokens = tokens[len(network.pretrained.before) :]
    return _own(network, tokens, document), gain, float(error.abs().max())


def attention_weights(network: Network, document: Documents) -> np.ndarray | None:
    """The pooling's attention over the tokens of one document, float64 (tokens,), sum 1.

    None for a network that does not pool by attention. A step of several tokens gives each of them
    the same share.
    """
    if network.attention is None:
        return None
    network.eval()
    ids, lengths = padded(network, document, np.array([0]))
    with torch.no_grad():
        states, steps, _ = network.states(ids, lengths, [None] * len(network.layers))
        scores = network.attention(states).float()[0, :, 0]
        inside = torch.arange(len(scores)) < steps[0]
        weights = scores.masked_fill(~inside, NOWHERE).softmax(0).double().numpy()
    stride = -(-ids.shape[1] // len(weights))
    step = np.arange(ids.shape[1]) // stride
    spread = weights[step] / np.bincount(step)[step]  # the last step may have fewer
    return _own(network, spread, document)


def _own(network: Network, values: np.ndarray, document: Documents) -> np.ndarray:
    """Of what a padded row has, the document's own steps."""
    kept = int(document.lengths[0])
    ahead = len(values) - kept if network.config.padding == "pre" else 0
    return values[ahead : ahead + kept]


# --- the wide path --------------------------------------------------------------------------


def _wide(
    wide: Wide, text: str, target: int, parts: list[tuple[int, int]]
) -> tuple[np.ndarray, float, float]:
    """Each part's share of the linear score, that score, and the bias in it."""
    column = np.flatnonzero(wide.present.numpy() == target)
    if not len(column):  # no training row had this class
        return np.zeros(len(parts)), float(wide.scores([text])[0, target]), 0.0
    place, sign = int(column[0]), 1.0
    if wide.weights.shape[1] == 1:
        place, sign = 0, 1.0 if column[0] == 1 else -1.0
    spans, given = wide_contributions(wide, text, place)
    back = _original(text)
    spans = [(back[start], back[end]) for start, end in spans]
    bias = sign * float(wide.bias[place])
    return (
        shared_out(spans, sign * given, parts),
        float(wide.scores([text])[0, target]),
        bias,
    )


def wide_contributions(
    wide: Wide, text: str, column: int
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Every occurrence of a known n-gram, and weight x TF-IDF of it: with the bias their sum is the
    score.

    Returns: spans in `folded(text)`, and float64 (occurrences,).
    """
    places, values, _ = wide.vocabulary.encode([text])
    known = wide.vocabulary.features[places]
    worth = values.astype(np.float64) * wide.weights[places, column].double().numpy()
    features, starts, ends = occurrences(text, wide.vocabulary.config)
    order = np.argsort(known)
    found = np.minimum(np.searchsorted(known[order], features), max(len(known) - 1, 0))
    if not len(known):
        return [], np.zeros(0)
    row = order[found]
    here = known[row] == features
    row, starts, ends = row[here], starts[here], ends[here]
    times = np.bincount(row, minlength=len(known))
    length = len(folded(text))
    spans = [
        (max(0, start), min(length, end))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    return spans, worth[row] / times[row]


def _original(text: str) -> list[int]:
    """Where each place of `folded(text)` stands in the text, its end included."""
    whole = folded(text)
    places: list[int] = []
    for place, one in enumerate(text):
        places += [place] * len(unicodedata.normalize("NFKC", one).lower())
    if len(places) != len(whole):  # characters that only compose together
        places = [round(n * len(text) / max(1, len(whole))) for n in range(len(whole))]
    return [*places, len(text)]


# --- words ----------------------------------------------------------------------------------


def segments(text: str) -> list[tuple[int, int]]:
    """Words as people read them, and every other visible sign: start and end of each."""
    found: list[tuple[int, int]] = []
    last = 0
    for run in WORD.finditer(text):
        found += _signs(text, last, run.start())
        at = run.start()
        for word in words(run[0]):
            start = text.index(word, at)
            at = start + len(word)
            found.append((start, at))
        last = run.end()
    return [*found, *_signs(text, last, len(text))]


def _signs(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """What stands between words, one run between two spaces."""
    found: list[tuple[int, int]] = []
    for place in range(start, end):
        if not text[place].isspace():
            if found and found[-1][1] == place:
                found[-1] = (found[-1][0], place + 1)
            else:
                found.append((place, place + 1))
    return found


def shared_out(
    spans: Sequence[tuple[int, int]], values: np.ndarray, parts: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Values of spans over the words that they stand on, by the characters they share.

    A span on no word goes to the nearest word before it, else the first: the sum stays.
    Returns: float64 (parts,).
    """
    found = np.zeros(len(parts))
    if not len(parts):
        return found
    starts = np.array([start for start, _ in parts])
    ends = np.array([end for _, end in parts])
    for (start, end), value in zip(spans, values.tolist(), strict=True):
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(starts, end, side="left"))
        if first >= last:
            found[max(0, last - 1)] += value
            continue
        common = np.minimum(ends[first:last], end) - np.maximum(starts[first:last], start)
        found[first:last] += value * common / common.sum()
    return found


def _shares(values: np.ndarray) -> np.ndarray:
    whole = np.abs(values).sum()
    return values / whole if whole > 0 else values


def _prefixes(
    model: Model, text: str, target: int, parts: list[tuple[int, int]]
) -> list[float | None]:
    """The label's probability from the text up to each word; of many words, of some."""
    chosen = np.unique(
        np.linspace(0, len(parts) - 1, min(len(parts), MOST_PREFIXES)).round().astype(int)
    )
    beginnings = [text[: parts[place][1]] for place in chosen]
    said = model.answer(model.documents(beginnings), beginnings, "cpu")
    assert said.probabilities is not None
    found: list[float | None] = [None] * len(parts)
    for place, one in zip(chosen.tolist(), said.probabilities[:, target].tolist(), strict=True):
        found[place] = one
    return found


# --- how good an explanation is -------------------------------------------------------------


def deletion_curve(
    text: str,
    parts: Sequence[tuple[int, int]],
    order: Sequence[int],
    chance: Callable[[list[str]], np.ndarray],
    shares: Sequence[float],
) -> np.ndarray:
    """What is left of an answer when the words said to matter most are taken out, one by one.

    Args: a text; its words; their numbers, the most important first; texts -> probability of the
    answer, float (texts,); which shares of the words are taken out.
    Returns: float64 (shares,), the probability each time; low early is a good order.
    """
    cut = []
    for share in shares:
        gone = {*order[: round(share * len(parts))]}
        kept = [text[start:end] for place, (start, end) in enumerate(parts) if place not in gone]
        cut.append(" ".join(kept))
    return np.asarray(chance(cut), np.float64)
