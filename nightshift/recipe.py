"""How a model is declared: its parts and its training.

Kept apart from the code that uses it so that the command line can read pipelines.yaml without
importing torch. A value of `auto` follows the data, by the rules in `resolve`, and the resolved
recipe is what gets logged and stored beside the weights.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from .cleaning import CleaningConfig
from .config import Config, nearest

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Cell = Literal["lstm", "gru", "rnn", "mingru", "minlstm", "transformer", "tdnn"]
PREFIX = "huggingface:"
"""Of an `encoder` that comes from Hugging Face; its name or folder follows."""

Hub = Annotated[str, Field(pattern=rf"^{PREFIX}.+$")]

QUICK_TOKENS, QUICK_READ = 128, 5e5
"""What the quick preset's network reads: tokens per document, and about how many in all."""
TRANSFORMER_RATE = 1e-3
LONG_TOKENS = 120
"""Median length, in tokens, from which a corpus counts as long text."""
READ = 2_048
"""Tokens of a document that lie in memory where text alone is learned from; see `most_read`."""


class ModelConfig(Config):
    """The network: embedding -> (strided convolution) -> encoder layers -> pooling -> head."""

    encoder: Cell | Hub = "lstm"
    """LSTM (Hochreiter & Schmidhuber 1997), GRU (Cho et al. 2014), tanh RNN, minGRU and minLSTM
    (Feng et al. 2024), Transformer (Vaswani et al. 2017), TDNN (dilated convolutions, Waibel et al.
    1989), or `huggingface:` and the name or folder of a pretrained encoder, which is fine-tuned."""
    layers: int = Field(default=1, ge=1, le=8)
    """Encoder layers on top of each other."""
    bidirectional: bool = True
    """Read every document in both directions."""
    hidden: int = Field(default=128, ge=4, le=4096)
    """Width of one direction's state; a Transformer and a TDNN are as wide as both directions."""
    heads: int = Field(default=4, ge=1, le=64)
    """Attention heads of a Transformer layer; they must divide its width."""
    embedding: int = Field(default=128, ge=4, le=4096)
    """Width of a token's vector."""
    embeddings: str = "learned"
    """Where token vectors start: `learned` at random, `corpus` from the words that share a document
    (PPMI-SVD), or a file of word vectors (.vec, .txt, .npz)."""
    freeze_embeddings: bool = False
    """Leave the token vectors as they start."""
    pooling: list[Literal["attention", "max", "mean", "last"]] = Field(
        default=["attention", "max", "mean"], min_length=1
    )
    """How the states of a document become one vector; several are concatenated."""
    vector: int = Field(default=128, ge=2, le=4096)
    """Width of the document vector that is classified, stored in `embeddings` and clustered."""
    stride: Count | Literal["auto"] = "auto"
    """Steps folded into one by a convolution first; auto: 4 for long texts, else 1."""
    max_tokens: Count | Literal["auto"] = "auto"
    """Tokens read per document; auto: enough for 95% of them, at most 512."""
    truncation: Literal["head", "tail", "both"] = "head"
    """Which part of a longer document is read: its head, its tail, or half of each."""
    padding: Literal["bucket", "post", "pre"] = "bucket"
    """bucket: documents of like length together; post, pre: all to the same length behind or before
    the text, as tutorials do. Only `pre` lets the network read its padding."""
    chunk_tokens: int = Field(default=512, ge=16)
    """A longer document is read in chunks of this many tokens, its state carried on and its pooling
    taken over all of them; memory and the reach of a gradient end here."""
    memory: Count | None = None
    """Spread the gates' biases over memories of up to this many tokens (chrono initialisation,
    Tallec & Ollivier 2018); for long documents whose answer stands far from their end."""
    dropout: Share = 0.3
    """Share of embedding, pooled and document-vector values dropped in training."""
    state_dropout: Share = 0.0
    """Share of state values dropped, the same ones at every step of a chunk (Gal & Ghahramani
    2016)."""
    weight_dropout: Share = 0.0
    """Share of recurrent weights dropped (DropConnect, Merity et al. 2018), of a minGRU and minLSTM
    their only ones; no effect on a Transformer or TDNN."""
    word_dropout: Share = 0.1
    """Share of tokens replaced by the unknown token in training."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> ModelConfig:
        width = self.hidden * (2 if self.bidirectional else 1)
        if self.encoder == "transformer" and width % self.heads:
            fitting = ", ".join(str(n) for n in range(1, min(width, 64) + 1) if width % n == 0)
            raise ValueError(
                f"heads: {self.heads} do not divide a transformer layer of width {width} (hidden "
                f"{self.hidden} x {width // self.hidden} directions). Set heads to one of "
                f"{fitting}, or choose another hidden."
            )
        return self


class PretrainConfig(Config):
    """What the network learns from text alone, before any label."""

    objective: Literal["auto", "none", "next_token", "denoise", "contrastive"] = "auto"
    """Predict the next token forwards and the previous one backwards; restore corrupted tokens; or
    tell two dropouts of one document from other documents (SimCSE). auto: next_token where there
    are at least `min_documents`, else none."""
    min_documents: int = Field(default=2000, ge=1)
    """auto pretrains on at least this many documents."""
    documents: int = Field(default=200_000, ge=1)
    """Most documents learned from, the newest first; of each its first 2,048 tokens, or
    `model.max_tokens` where those are more."""
    epochs: Count | Literal["auto"] = "auto"
    """Passes over the text; auto: fewer the more tokens there are."""
    negatives: int = Field(default=256, ge=1)
    """Random tokens that a right one is told from, beside those of its batch (sampled softmax)."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    """Peak of the schedule while pretraining; auto: 3e-3, 1e-3 for a Transformer."""


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
    without_labels: Literal["auto", "clusters", "vectors"] = "auto"
    """What gives documents their vectors while there is no classifier: a network that learns
    clusters of the documents by itself, or vectors of the corpus alone, within seconds; auto:
    clusters from 1,000 documents on."""
    preset: Literal["full", "quick"] = "full"
    """quick: for a first look within seconds, no pretraining, no second training, and a few passes
    over shorter texts, of a large corpus over a sample (not the wide path); keys given win."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes the first of cuda, mps and cpu that is there."""
    warm_start: bool = False
    """Start from the champion's weights where its network has the same shape and tokenizer."""
    rehearsal: float = Field(default=1.0, ge=0, le=1)
    """Share of the rows the champion has seen that a warm start sees again."""
    epochs: Count | Literal["auto"] = "auto"
    """Passes over the training rows; auto: fewer the more rows there are, 4 to 12."""
    refit: bool = True
    """Once validation has chosen, train again on training and validation rows, for as many passes;
    never where the source itself declares validation rows."""
    batch_tokens: Count | Literal["auto"] = "auto"
    """Tokens, padding included, in one batch; auto follows the number of rows and their length."""
    optimizer: Literal["adamw", "adam", "nadam", "radam", "rmsprop", "adagrad", "sgd"] = "adamw"
    """By its name in torch.optim; sgd has momentum 0.9."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Literal["auto", "range_test"] = "auto"
    """Peak of the schedule; auto: 3e-3, 5e-3 for few short texts, 1e-3 for a Transformer, 5e-5 for
    a pretrained encoder; range_test: found before training by growing it until the loss diverges
    (Smith 2017)."""
    schedule: Literal["one_cycle", "cosine", "plateau", "constant"] = "one_cycle"
    """Warm-up and one cycle down (Smith & Topin 2017); warm-up and cosine (Loshchilov & Hutter
    2017); a third whenever validation stands still; or constant after the warm-up."""
    warmup: Share = 0.15
    """Share of the steps in which the learning rate rises to its peak."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """After pretraining: factor on the learning rate per layer downwards from the head
    (discriminative rates, Howard & Ruder 2018)."""
    weight_decay: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """Decoupled decay of the weights with adamw (Loshchilov & Hutter 2019), else L2; auto: 0.01
    decoupled, and none as L2, which at that size leaves nothing to learn."""
    l1: float = Field(default=0.0, ge=0)
    """Weight of the sum of absolute weights in the loss."""
    label_smoothing: Share = 0.1
    """Probability mass given to the other classes (Szegedy et al. 2016)."""
    confidence_penalty: float = Field(default=0.0, ge=0)
    """Weight of the negative entropy of the answers in the loss (Pereyra et al. 2017)."""
    activation: float = Field(default=0.0, ge=0)
    """Weight of the squared states in the loss (AR, Merity et al. 2018)."""
    temporal: float = Field(default=0.0, ge=0)
    """Weight of the squared change from state to state in the loss (TAR, Merity et al. 2018)."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient (Pascanu et al. 2013)."""
    averaging: Literal["none", "ema", "swa"] = "none"
    """Answer with averaged weights: exponentially, or of the last quarter of the steps."""
    mixup: float = Field(default=0.0, ge=0)
    """Alpha of the beta distribution that mixes pairs of embedded documents (Guo et al. 2019)."""
    deletion: Share = 0.0
    """Share of tokens left out of a training document."""
    swap: Share = 0.0
    """Share of neighbouring tokens that change places in a training document."""
    synonym: Share = 0.0
    """Share of tokens replaced by one of their nearest in the starting token vectors; for vectors
    of the corpus, of a file or of pretraining: random ones have no neighbours worth the name."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: rare classes weigh as much in the loss as frequent ones."""
    patience: int = Field(default=3, ge=1)
    """Epochs without a better validation loss before training stops."""
    seed: int = Field(default=1, ge=0)
    """Seed of weights, order and dropout: the same seed gives the same model on one machine."""


class WideConfig(Config):
    """The wide path: a linear model on TF-IDF n-grams, blended with the network."""

    use: bool = True
    """Blend it in, by the weight that validation chooses."""
    words: int = Field(default=2, ge=0, le=5)
    """Longest run of words that is a feature, signs being words too; 0 for none."""
    characters: int | Literal["auto"] = "auto"
    """Longest run of characters between two spaces; auto: 5, and none for long texts."""
    han: int = Field(default=3, ge=0, le=8)
    """Longest run of characters of which one at least is Chinese."""
    min_documents: int = Field(default=2, ge=1)
    """A feature must stand in this many documents (1 where there are fewer than 200)."""
    features: int = Field(default=500_000, ge=10)
    """Most features kept, the most frequent ones."""
    c: float = Field(default=1.0, gt=0)
    """Inverse strength of the regularisation of the support vector machine."""


class AnswerConfig(Config):
    """What is said of a document, and when nothing should be."""

    keep: float = Field(default=0.95, gt=0, le=1)
    """Share of validation's answers that are kept; the least sure of the rest are `abstained`."""
    reject_score: Literal["blend", "probability", "distance"] = "blend"
    """How a document out of scope is recognised: by a small largest probability; by its distance
    from every class, in the network's vectors and in the wide path's scores; or by both distances
    and the entropy of the answer, each standardised on validation and added."""
    positive: str | None = None
    """Of two classes, the one that must be found or must not be falsely said, such as spam."""
    precision: float | None = Field(default=None, gt=0, lt=1)
    """The positive class is said where validation promises this precision."""
    cost: float | None = Field(default=None, gt=0)
    """Cost of a false positive, where a miss costs 1; the threshold follows from it."""


class Recipe(Config):
    """Everything declared about how a model is made."""

    cleaning: CleaningConfig = CleaningConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    train: TrainConfig = TrainConfig()
    wide: WideConfig = WideConfig()
    answers: AnswerConfig = AnswerConfig()


def most_read(model: ModelConfig, heads: bool = False) -> int | None:
    """Tokens of a document, from its head, that will do where its text alone is learned from.

    Args: `heads` where nothing else is read, whatever `truncation` says. Returns: None for all.
    """
    if model.truncation != "head" and not heads:
        return None
    return max(READ, 0 if model.max_tokens == "auto" else model.max_tokens)


def resolve(
    model: ModelConfig,
    train: TrainConfig,
    pretrain: PretrainConfig,
    rows: int,
    documents: int,
    p50_tokens: int,
    p95_tokens: int,
) -> tuple[ModelConfig, TrainConfig, PretrainConfig]:
    """Fill every `auto` in.

    Args: labelled training rows; documents there are to pretrain on; percentiles of the rows'
    lengths in tokens.
    """
    quick = train.preset == "quick"
    max_tokens = model.max_tokens
    if max_tokens == "auto":
        max_tokens = min(QUICK_TOKENS if quick else 512, max(16, p95_tokens))
    stride = model.stride
    if stride == "auto":
        # Long texts: a step per token is slow and did not classify better.
        stride = 4 if p50_tokens > LONG_TOKENS else 1
    objective = pretrain.objective
    if objective == "auto":
        enough = documents >= pretrain.min_documents and not quick
        able = not model.encoder.startswith(PREFIX)
        # Only what reads step by step can be asked what comes next.
        fitting = "denoise" if model.encoder in ("transformer", "tdnn") else "next_token"
        objective = fitting if enough and able else "none"
    passes = pretrain.epochs
    if passes == "auto":
        # About 5 million tokens read in all.
        tokens = documents * min(p50_tokens, max_tokens)
        passes = min(8, max(1, round(5e6 / max(tokens, 1))))
    learning_rate = train.learning_rate
    if learning_rate == "auto":
        # Measured on validation: 5e-3 for 10,000 questions, 3e-3 for 30,000 headlines.
        learning_rate = 5e-3 if rows <= 20_000 and stride == 1 else 3e-3
        if model.encoder == "transformer":
            # On 30,000 headlines: validation 0.879, against 0.834 on their test rows with 3e-3.
            learning_rate = TRANSFORMER_RATE
        if model.encoder.startswith(PREFIX):
            learning_rate = 5e-5
    pretraining_rate = pretrain.learning_rate
    if pretraining_rate == "auto":
        pretraining_rate = TRANSFORMER_RATE if model.encoder == "transformer" else 3e-3
    decay = train.weight_decay
    if decay == "auto":
        decay = 1e-2 if train.optimizer == "adamw" else 0.0
    epochs = train.epochs
    if epochs == "auto":
        # About 100,000 documents seen in all, few epochs for large sets and many for small ones.
        epochs = min(12, max(4, round(100_000 / max(rows, 1))))
        if quick:
            seen = rows * min(p50_tokens, max_tokens)
            epochs = min(epochs, max(1, round(QUICK_READ / max(seen, 1))))
    batch_tokens = train.batch_tokens
    if batch_tokens == "auto":
        batch = 128 if rows > 20_000 and stride == 1 else 64 if rows > 2_000 else 32
        batch_tokens = batch * max(8, min(p50_tokens, max_tokens))
    return (
        model.model_copy(update={"max_tokens": max_tokens, "stride": stride}),
        train.model_copy(
            update={
                "epochs": epochs,
                "batch_tokens": batch_tokens,
                "learning_rate": learning_rate,
                "weight_decay": decay,
                "refit": train.refit and not (quick and "refit" not in train.model_fields_set),
            }
        ),
        pretrain.model_copy(
            update={
                "objective": objective,
                "epochs": passes,
                "learning_rate": pretraining_rate,
            }
        ),
    )


Finite = Annotated[float, Field(allow_inf_nan=False)]

UNTUNED = {
    "when", "min_new_labels", "max_age_nights", "min_rows", "device", "warm_start", "rehearsal",
    "without_labels",
}  # fmt: skip
"""Keys of `train` that say when and where, or need a champion: no score depends on them."""


class Range(Config):
    """Numbers that tuning may try."""

    low: Finite
    """The smallest."""
    high: Finite
    """The largest."""
    log: bool = False
    """Try as many between 0.001 and 0.01 as between 0.01 and 0.1."""
    step: float | None = Field(default=None, gt=0)
    """Only low, low + step and so on."""

    @model_validator(mode="after")
    def _is_searchable(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and no step")
        return self


class TuneConfig(Config):
    """How `nightshift tune` looks for a better recipe."""

    trials: int = Field(default=30, ge=1, le=10_000)
    """Recipes tried; the first is the declared one."""
    processes: int = Field(default=1, ge=1, le=256)
    """Trials at the same time; they share the machine's cores."""
    metric: Literal["accuracy", "macro_f1", "log_loss"] = "accuracy"
    """What is compared, on the validation rows."""
    space: dict[str, list[Any] | Range] = Field(default_factory=dict)
    """What is tried: keys such as `train.learning_rate`, each with a list of values or with
    {low, high, log, step}; without any, a space around the declared recipe."""

    @field_validator("space")
    @classmethod
    def _fits_the_recipe(cls, space: dict[str, list[Any] | Range]) -> dict[str, list[Any] | Range]:
        checked: dict[str, list[Any] | Range] = {}
        problems: list[InitErrorDetails] = []
        for key, found in space.items():
            try:
                checked[key] = _tried(key, found)
            except ValueError as error:
                why = (
                    error
                    if isinstance(error, PydanticCustomError)
                    else PydanticCustomError("space", "{why}", {"why": str(error)})
                )
                shown = found if isinstance(found, list) else found.model_dump()
                problems.append(InitErrorDetails(type=why, loc=(key,), input=shown))
        if problems:
            # Raised as one of its own, every problem keeps its key, and so its line in the file.
            raise ValidationError.from_exception_data("space", problems)
        return checked


def tunable() -> dict[str, Any]:
    """The dotted keys that a trial may change, each with the type of its values.

    Cleaning is not among them: it is done before a text is stored; nor are the answers' thresholds,
    which are set after all is learned.
    """
    parts = {"model": ModelConfig, "pretrain": PretrainConfig, "train": TrainConfig}
    return {
        f"{part}.{name}": field.annotation
        for part, config in {**parts, "wide": WideConfig}.items()
        for name, field in config.model_fields.items()
        if name not in UNTUNED
    }


def is_whole(key: str) -> bool:
    """Whether a tunable key holds whole numbers, whatever else it may hold.

    Raises: ValueError for one that holds no numbers.
    """
    kinds = _inside(tunable()[key])
    if int not in kinds and float not in kinds:
        raise ValueError("has no numbers between low and high; give a list of values")
    return float not in kinds


def _inside(annotation: Any) -> list[Any]:
    return [annotation, *(one for part in get_args(annotation) for one in _inside(part))]


def _tried(key: str, found: list[Any] | Range) -> list[Any] | Range:
    """The values of one key as the recipe reads them; ValueError for what it would refuse."""
    known = tunable()
    if key not in known:
        part, _, name = key.partition(".")
        config = Recipe.model_fields.get(part)
        if config is not None and name in getattr(config.annotation, "model_fields", {}):
            why = "cannot be tuned; only what changes a score can, of model, pretrain, train, wide."
        else:
            # The right name in the wrong part is the likeliest slip.
            named_so = [one for one in known if one.split(".")[1] == key.split(".")[-1]]
            why = f"unknown key; {nearest(key, named_so or known)}"
        raise PydanticCustomError("refused_key", "{why}", {"why": why})
    if isinstance(found, list):
        if not found:
            raise ValueError("at least one value is needed")
        return [_accepted(key, one) for one in found]
    numbers = [found.low, found.high, *([found.step] if found.step else [])]
    if is_whole(key) and not all(one.is_integer() for one in numbers):
        raise ValueError("has whole numbers only; give them as low, high and step")
    for end in numbers[:2]:
        _accepted(key, int(end) if is_whole(key) else end)
    return found


def _accepted(key: str, value: Any) -> Any:
    part, name = key.split(".")
    try:
        recipe = Recipe.model_validate({part: {name: value}})
    except ValidationError as error:
        why = " Or: ".join(dict.fromkeys(f"{one['msg']}." for one in error.errors()))
        raise ValueError(f"{value!r} does not fit: {why.rstrip('.')}") from error
    return getattr(getattr(recipe, part), name)
