"""Text -> token ids: learn once per pipeline, encode in parallel, save as one JSON file.

Units: `bpe`, subwords by byte-pair encoding (Sennrich et al. 2016), in every language; `word`,
with jieba for Chinese; `character`; and `pretrained`, the tokenizer that came with a pretrained
encoder. The file is a Hugging Face tokenizer, readable by others.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from itertools import chain, islice
from typing import Literal

from pydantic import Field

from .config import Config
from .errors import BundleError

PADDING, UNKNOWN = 0, 1
SPECIAL = ["[PAD]", "[UNK]"]
PIECE = 2_000_000
"""Characters encoded at once: until their ids are read, a token takes a hundred bytes."""
PART = 16_384
"""Characters of a text that are normalized at once, which takes 170 bytes for each of them."""
ENDS = " \n\t。，！？；、"
"""A token of ours never reaches across these, so a long text is cut behind one."""

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
# A run of Han, or a word of any other script with its inner apostrophes.
WORD = re.compile(
    r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
    r"|(?:(?![\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])\w)+(?:['’]\w+)*"
)
# A mark in front of words of scripts that write spaces: "the" and the end of "bathe" differ.
# Chinese has no such boundaries, and marking a line's first character would split its statistics.
WORD_START = r"(?<![\p{L}\p{N}\p{M}])(?=[\p{L}\p{N}])(?!\p{Han})"
MARK = "▁"


class TokenizerConfig(Config):
    """What a token is."""

    unit: Literal["bpe", "word", "character"] = "bpe"
    """Subwords, words (jieba for Chinese) or characters. A pretrained encoder has a tokenizer of
    its own, which is used whatever stands here."""
    vocabulary: int = Field(default=8000, ge=16, le=1_000_000)
    """Most entries the tokenizer may have."""
    lowercase: bool = True
    """Fold case before cutting."""
    min_count: int = Field(default=2, ge=1)
    """A word, or a merge of subwords, must be seen this often to become an entry."""
    max_tokens: int = Field(default=200_000, ge=8)
    """Tokens kept of one document, from its head; `n_tokens` still tells its whole length. The
    network reads `model.max_tokens` of them."""
    learn_from: int = Field(default=200_000, ge=100)
    """Documents, from the first on, that the tokenizer is learned from."""
    unknown_warning: float = Field(default=0.02, ge=0, le=1)
    """A share of unknown tokens above this, in one night, is warned about."""


def words(text: str) -> list[str]:
    """Cut text into words, case kept: Han runs by jieba, all else by spaces and punctuation."""
    found: list[str] = []
    for run in WORD.findall(text):
        if HAN.match(run):
            found.extend(_jieba().lcut(run))
        else:
            found.append(run)
    return found


@cache
def _jieba():
    import jieba

    # It announces its dictionary on standard error at the first use. Said once: each time, Python
    # forgets what it knows of all loggers, and a process with Prefect and MLflow has a thousand.
    jieba.setLogLevel(logging.WARNING)
    return jieba


class Tokenizer:
    """A learned tokenizer. Ids: 0 pads, 1 is what the vocabulary does not know.

    Of a pretrained one: `order`, its own id of each of ours, and `around`, the ids, its own, of the
    special tokens that its encoder expects before and after a text. Else empty.
    """

    def __init__(self, serialized: str, unit: str):
        import tokenizers

        self.serialized, self.unit = serialized, unit
        self._tokenizer = tokenizers.Tokenizer.from_str(serialized)
        # A text that says "[PAD]" is a text about padding, not padding.
        self._tokenizer.encode_special_tokens = True
        self.size: int = self._tokenizer.get_vocab_size()
        self.digest = blake2b(f"{unit}\n{serialized}".encode(), digest_size=16).hexdigest()
        self.order: list[int] = []
        self.around: tuple[list[int], list[int]] = ([], [])
        self._places: dict[int, int] = {}
        if unit == "pretrained":
            self._adopt()
        elif self._tokenizer.token_to_id(SPECIAL[1]) != UNKNOWN:
            raise BundleError(
                f"tokenizer.json: found '{SPECIAL[1]}' at id "
                f"{self._tokenizer.token_to_id(SPECIAL[1])}, expected {UNKNOWN}. This file was not "
                "written by Nightshift; train again to make a new one."
            )

    @classmethod
    def learn(cls, texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
        """Learn a vocabulary from texts, streamed; the same texts give the same tokenizer."""
        from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Base

        texts = islice(texts, config.learn_from)
        steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if config.lowercase else [])]
        if config.unit != "word":
            steps.append(normalizers.Replace(Regex(WORD_START), MARK))
        if config.unit == "bpe":
            base = Base(models.BPE(unk_token=SPECIAL[1]))
            base.pre_tokenizer = pre_tokenizers.Sequence([
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Split(Regex(r"\p{Han}+|[\p{P}\p{S}&&[^▁]]"), "isolated"),
            ])  # fmt: skip
            trainer = trainers.BpeTrainer(
                vocab_size=config.vocabulary,
                min_frequency=config.min_count,
                # Rare Chinese characters must not crowd out every merge.
                limit_alphabet=max(8, config.vocabulary * 7 // 10),
                special_tokens=SPECIAL,
                show_progress=False,
            )
        else:
            base = Base(models.WordLevel(unk_token=SPECIAL[1]))
            single = pre_tokenizers.Split(Regex("."), "isolated")
            base.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.WhitespaceSplit(),
                    *([single] if config.unit == "character" else []),
                ]
            )
            trainer = trainers.WordLevelTrainer(
                vocab_size=config.vocabulary,
                min_frequency=config.min_count,
                special_tokens=SPECIAL,
                show_progress=False,
            )
        base.normalizer = normalizers.Sequence(steps)
        # It waits for 256 texts before it reads the first.
        cut = (part for text in texts for part in _parts(text))
        base.train_from_iterator(_prepared(cut, config.unit), trainer)
        return cls(base.to_str(), config.unit)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, at least one: a text without any token is one unknown."""
        return [one for piece in self.pieces(texts) for one in piece]

    def pieces(self, texts: Sequence[str]) -> Iterator[list[list[int]]]:
        """The same, so many texts at a time as are not too long together."""
        for piece in _pieces(texts):
            # A pretrained one may see more than a word at once.
            whole = self.unit == "pretrained" or max(map(len, piece)) <= PART
            if whole:
                yield [ids or [UNKNOWN] for ids in self._ids(piece)]
                continue
            parts = [_parts(text) for text in piece]
            few = _pieces([*chain.from_iterable(parts)])
            ids = chain.from_iterable(map(self._ids, few))
            yield [[*chain.from_iterable(islice(ids, len(one)))] or [UNKNOWN] for one in parts]

    def _ids(self, texts: Iterable[str]) -> Iterator[list[int]]:
        places = self._places
        encoded = self._tokenizer.encode_batch_fast(
            list(_prepared(texts, self.unit)), add_special_tokens=False
        )
        if places:
            return ([places.get(i, i) for i in one.ids] for one in encoded)
        return (one.ids for one in encoded)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token that `encode` makes of a text stands in it: first character, past the
        last."""
        found: list[tuple[int, int]] = []
        start = 0
        # Cut where `encode` cuts, so that there are as many as it makes ids.
        for part in [text] if self.unit == "pretrained" else _parts(text):
            found += [(start + first, start + end) for first, end in self._spans(part)]
            start += len(part)
        return found or [(0, len(text))]

    def _spans(self, text: str) -> list[tuple[int, int]]:
        if self.unit != "word":
            return self._tokenizer.encode(text, add_special_tokens=False).offsets
        found: list[tuple[int, int]] = []
        end = 0
        for word in words(text):
            start = text.index(word, end)
            end = start + len(word)
            found += [(start, end)] * len(
                self._tokenizer.encode(word, add_special_tokens=False).offsets
            )
        return found

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The entries behind ids."""
        if self.order:
            ids = (self.order[one] for one in ids)
        return [self._tokenizer.id_to_token(one) or SPECIAL[UNKNOWN] for one in ids]

    def _adopt(self) -> None:
        """Give a pretrained tokenizer's padding and unknown the places they have here."""
        base, model = self._tokenizer, json.loads(self.serialized)["model"]
        unknown, padding = model.get("unk_id"), base.padding
        if unknown is None:
            unknown = base.token_to_id(model.get("unk_token") or "")
        if unknown is None or padding is None:
            raise BundleError(
                "tokenizer.json: found no unknown token or no padding in a pretrained tokenizer, "
                "expected both. This file was not written by Nightshift; train again to make a "
                "new one."
            )
        base.no_padding()
        # Ids may have gaps, and then there are fewer entries than ids.
        self.size = max(base.get_vocab().values()) + 1
        self.order = swapped(self.size, padding["pad_id"], unknown)
        self._places = {own: place for place, own in enumerate(self.order) if own != place}
        probe = base.encode("a")
        first = probe.special_tokens_mask.index(0)
        last = len(probe) - probe.special_tokens_mask[::-1].index(0)
        self.around = (probe.ids[:first], probe.ids[last:])


def swapped(size: int, padding: int, unknown: int) -> list[int]:
    """0 to `size`, with `padding` and `unknown` at 0 and 1, and what stood there where they were.

    >>> swapped(5, padding=3, unknown=0)
    [3, 0, 2, 1, 4]
    """
    order = list(range(size))
    for place, one in ((PADDING, padding), (UNKNOWN, unknown)):
        there = order.index(one)
        order[place], order[there] = order[there], order[place]
    return order


def _pieces(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """In their order, PIECE characters in each, or a text that is longer alone."""
    first = size = 0
    for place, text in enumerate(texts):
        if size and size + len(text) > PIECE:
            yield texts[first:place]
            first, size = place, 0
        size += len(text)
    if len(texts) > first:
        yield texts[first:]


def _parts(text: str) -> list[str]:
    """PART characters in each at most, cut where no token is, if there is such a place."""
    parts: list[str] = []
    start = 0
    while len(text) - start > PART:
        end = start + PART
        cut = max(text.rfind(one, start, end) for one in ENDS) + 1 or end
        parts.append(text[start:cut])
        start = cut
    return [*parts, text[start:]]


def _prepared(texts: Iterable[str], unit: str) -> Iterator[str]:
    return (" ".join(words(text)) for text in texts) if unit == "word" else iter(texts)
