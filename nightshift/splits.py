"""Which side a document is on, decided by its content and for ever.

train       the network learns from it
validation  early stopping, temperature
gate        champion and challenger are compared on it
test        reported, decides nothing
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .config import Config

Side = Literal["train", "validation", "gate", "test"]

NAMES: dict[str, Side] = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
    "gate": "gate",
}  # fmt: skip

HELD_OUT = 0.05
"""Share of declared training rows that become the gate, and, where the source has no validation
rows, another such share that becomes validation."""


class SplitConfig(Config):
    """Shares of the documents whose source declares no split."""

    validation: float = Field(default=0.08, ge=0, lt=1)
    """Share for early stopping and calibration."""
    gate: float = Field(default=0.07, ge=0, lt=1)
    """Share on which the promotion is decided."""
    test: float = Field(default=0.10, ge=0, lt=1)
    """Share that is only reported."""

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> SplitConfig:
        if self.validation + self.gate + self.test >= 1:
            raise ValueError("validation, gate and test together must stay below 1")
        return self


def position(content_digest: str) -> float:
    """A number in [0, 1) that depends on the document's content alone."""
    return int(content_digest[:8], 16) / 16**8


def side(content_digest: str, declared: str | None, config: SplitConfig) -> Side:
    """The side of a document.

    Args: the hexadecimal digest of its cleaned text; the source's own word for its split, if any.
    A word that is not in `NAMES` counts as not declared.
    """
    where = position(content_digest)
    named = NAMES.get(declared.strip().lower()) if declared else None
    if named == "train":
        return "gate" if where < HELD_OUT else "train"
    if named:
        return named
    if where < config.test:
        return "test"
    if where < config.test + config.gate:
        return "gate"
    if where < config.test + config.gate + config.validation:
        return "validation"
    return "train"


def stands_in_for_validation(content_digest: str) -> bool:
    """Whether a training row is held out when a source declares no validation rows at all."""
    return HELD_OUT <= position(content_digest) < 2 * HELD_OUT
