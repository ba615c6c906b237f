"""How a network is declared: its parts and its training.

Kept apart from `encoders.py` and `training.py` so that the command line can read
pipelines.yaml without importing torch. A value of `auto` follows the data, by the rules in
`resolve`, and the resolved recipe is what gets logged and stored beside the weights.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .config import Config

Count = Annotated[int, Field(ge=1)]


class ModelConfig(Config):
    """The network: embedding -> (strided convolution) -> recurrent layers -> pooling -> head."""

    encoder: Literal["lstm", "gru", "rnn"] = "lstm"
    """Recurrent cell: LSTM (Hochreiter & Schmidhuber 1997), GRU (Cho et al. 2014), tanh RNN."""
    layers: int = Field(default=1, ge=1, le=8)
    """Recurrent layers on top of each other."""
    bidirectional: bool = True
    """Read every document in both directions."""
    hidden: int = Field(default=128, ge=4, le=4096)
    """Width of one direction's state."""
    embedding: int = Field(default=128, ge=4, le=4096)
    """Width of a token's vector."""
    pooling: list[Literal["attention", "max", "mean", "last"]] = Field(
        default=["attention", "max", "mean"], min_length=1
    )
    """How the states of a document become one vector; several are concatenated."""
    vector: int = Field(default=128, ge=2, le=4096)
    """Width of the document vector that is classified, stored in `embeddings` and clustered."""
    stride: Count | Literal["auto"] = "auto"
    """Steps folded into one by a convolution first; auto: 4 for long texts, else 1."""
    max_tokens: Count | Literal["auto"] = "auto"
    """Tokens read per document, from its head; auto: enough for 95% of them, at most 512."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Share of embedding, pooled and document-vector values dropped in training."""
    word_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of tokens replaced by the unknown token in training."""


class TrainConfig(Config):
    """When a challenger is trained, and how."""

    when: Literal["auto", "always", "never"] = "auto"
    """auto: without a champion, or after `min_new_labels`, or a new class, or `max_age_nights`."""
    min_new_labels: float = Field(default=0.05, gt=0)
    """auto trains when new labels reach this share (below 1) or number (1 and more)."""
    max_age_nights: int = Field(default=30, ge=1)
    """auto trains when the champion is older than this and any label is new."""
    min_rows: int = Field(default=20, ge=2)
    """Fewer labelled training rows than this train no classifier; the night goes on without."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes the first of cuda, mps and cpu that is there."""
    epochs: Count | Literal["auto"] = "auto"
    """Passes over the training rows; auto: fewer the more rows there are, 4 to 12."""
    batch_tokens: Count | Literal["auto"] = "auto"
    """Tokens, padding included, in one batch; auto follows the number of rows and their length."""
    learning_rate: float = Field(default=3e-3, gt=0, le=1)
    """Peak of the one-cycle schedule (Smith & Topin 2017)."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """AdamW's decoupled decay (Loshchilov & Hutter 2019)."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Probability mass given to the other classes (Szegedy et al. 2016)."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient (Pascanu et al. 2013)."""
    patience: int = Field(default=3, ge=1)
    """Epochs without a better validation loss before training stops."""
    abstain_below: float = Field(default=0.0, ge=0, le=1)
    """Answers of a smaller probability than this are marked as abstained."""
    seed: int = Field(default=1, ge=0)
    """Seed of weights, order and dropout: the same seed gives the same model on one machine."""


def resolve(
    model: ModelConfig, train: TrainConfig, rows: int, p50_tokens: int, p95_tokens: int
) -> tuple[ModelConfig, TrainConfig]:
    """Fill every `auto` in from the training rows and their lengths in tokens (percentiles)."""
    max_tokens = model.max_tokens
    if max_tokens == "auto":
        max_tokens = min(512, max(16, p95_tokens))
    stride = model.stride
    if stride == "auto":
        # Long texts: a step per token is slow and did not classify better.
        stride = 4 if p50_tokens > 120 else 1
    epochs = train.epochs
    if epochs == "auto":
        # About 100,000 documents seen in all, few epochs for large sets and many for small ones.
        epochs = min(12, max(4, round(100_000 / max(rows, 1))))
    batch_tokens = train.batch_tokens
    if batch_tokens == "auto":
        documents = 128 if rows > 20_000 and stride == 1 else 64 if rows > 2_000 else 32
        batch_tokens = documents * max(8, min(p50_tokens, max_tokens))
    return (
        model.model_copy(update={"max_tokens": max_tokens, "stride": stride}),
        train.model_copy(update={"epochs": epochs, "batch_tokens": batch_tokens}),
    )
