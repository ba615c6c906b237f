"""A pretrained encoder of Hugging Face, fine-tuned by the same loop as every other network.

    name or folder -> its tokenizer -> Tokenizer              (read_tokenizer)
                   -> its weights ---> Pretrained             (Pretrained.load)
    model.json ----> its config -----> Pretrained, unfilled   (Pretrained.blank)

Documents hold text alone, under Nightshift's ids (0 pads, 1 is unknown). In front of the encoder
they get its own ids and, around whatever part of a document is read, its special tokens.
transformers is an extra: it is imported where a pretrained encoder is used, and only there.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .recipe import PREFIX, PretrainConfig, TrainConfig
from .tokenizer import UNKNOWN, Tokenizer

UNIT = "pretrained"
"""What `Tokenizer.unit` says of a tokenizer that came with an encoder."""
NO_LIMIT = 10**9
"""Tokens that an encoder without numbered positions can read."""


class Pretrained(nn.Module):
    """An encoder of transformers behind Nightshift's ids.

    width: numbers in a state. room: most tokens of text read at once; layers: how many it has.

    Args: the encoder; the tokenizer that came with it.
    """

    order: Tensor

    def __init__(self, encoder: Any, tokenizer: Tokenizer):
        super().__init__()
        self.encoder = encoder
        self.width = int(encoder.config.hidden_size)
        self.layers = int(getattr(encoder.config, "num_hidden_layers", 1))
        self.before, self.after = tokenizer.around
        self.room = _positions(encoder) - len(self.before) - len(self.after)
        # The tokenizer's file has it already.
        self.register_buffer("order", torch.tensor(tokenizer.order), persistent=False)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """States of the text's own tokens (batch, time, width).

        Args: int64 (batch, time) padded on the right; int64 (batch,), a 0 is read as a 1.
        """
        start, end = len(self.before), len(self.after)
        lengths = lengths.clamp(min=1)[:, None]
        own = nn.functional.pad(ids, (start, end))
        steps = torch.arange(own.shape[1], device=ids.device)
        own = self.order[own]
        for place, one in enumerate(self.before):
            own[:, place] = one
        for place, one in enumerate(self.after):
            # Right behind each text, wherever its padding starts.
            own = own.masked_fill(steps == start + lengths + place, one)
        mask = (steps < start + lengths + end).long()
        states = self.encoder(input_ids=own, attention_mask=mask).last_hidden_state
        return states[:, start : start + ids.shape[1]]

    def freeze_embeddings(self) -> None:
        """Leave the token vectors as they are."""
        self.encoder.get_input_embeddings().requires_grad_(False)

    def about(self) -> dict[str, Any]:
        """The encoder's config as JSON has it: all that `blank` needs beside the tokenizer."""
        found = json.loads(self.encoder.config.to_json_string(use_diff=False))
        # Where it once came from says nothing about what it is, and would change the model's id.
        found.pop("_name_or_path", None)
        return found

    @classmethod
    def blank(cls, about: dict[str, Any], tokenizer: Tokenizer) -> Pretrained:
        """An encoder of this config, with random weights; asks no hub and reads no file.

        Raises: ConfigError without the extra.
        """
        library = _transformers()
        config = library.AutoConfig.for_model(**about)
        with torch.random.fork_rng(devices=[]):
            encoder = library.AutoModel.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
        return cls(encoder, tokenizer)

    @classmethod
    def load(cls, encoder: str, tokenizer: Tokenizer) -> Pretrained:
        """The pretrained weights of `huggingface:<name or folder>`, from safetensors only.

        Raises: ConfigError for one that cannot be had, or that is no encoder of this tokenizer.
        """
        if read_tokenizer(encoder).digest != tokenizer.digest:
            raise ConfigError(
                f"model.encoder: {encoder}: found another tokenizer there than the one that wrote "
                f"this pipeline's tokens ({tokenizer.digest[:8]}), expected the same. Give the new "
                "encoder a folder of its own, so that the texts are encoded anew."
            )
        library, place = _transformers(), _place(encoder)
        # Weights that a file lacks are drawn, and must be the same ones every time.
        with _reading(encoder, "weights"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, found = library.AutoModel.from_pretrained(
                **place, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        _refuse_strange(encoder, model, found["missing_keys"], tokenizer)
        with _reading(encoder, "answer to a text of one token"), torch.inference_mode():
            loaded = cls(model, tokenizer)
            states = loaded.eval()(torch.tensor([[UNKNOWN]]), torch.tensor([1]))
            assert states.shape == (1, 1, loaded.width), f"states of shape {tuple(states.shape)}"
        return loaded


def read_tokenizer(encoder: str) -> Tokenizer:
    """The tokenizer that came with `huggingface:<name or folder>`.

    Raises: ConfigError for one that cannot be had, is not fast, or neither pads nor knows unknowns.
    """
    library, place = _transformers(), _place(encoder)
    with _reading(encoder, "tokenizer"):
        found = library.AutoTokenizer.from_pretrained(**place)
    if not getattr(found, "is_fast", False):
        raise ConfigError(
            f"model.encoder: {encoder}: found a tokenizer in Python ({type(found).__name__}), "
            "expected a fast one, which is a tokenizer.json. Choose an encoder that has one."
        )
    if set(found.get_vocab()) <= set(found.all_special_tokens):
        raise ConfigError(
            f"model.encoder: {encoder}: found a tokenizer that knows no words, expected one with a "
            "tokenizer.json. Save it there with save_pretrained, beside the weights."
        )
    padding, unknown = found.pad_token_id, found.unk_token_id
    if padding is None or unknown is None or padding == unknown:
        raise ConfigError(
            f"model.encoder: {encoder}: found padding {found.pad_token!r} and unknown "
            f"{found.unk_token!r}, expected two tokens, as encoders like BERT and RoBERTa have. "
            "Choose such an encoder."
        )
    base = found.backend_tokenizer
    base.no_truncation()
    # The file itself shall tell what pads; transformers keeps that in another one.
    base.enable_padding(pad_id=padding, pad_token=found.pad_token)
    about = json.loads(base.to_str())
    if about["model"].get("unk_id") is None and not about["model"].get("unk_token"):
        about["model"]["unk_token"] = found.unk_token
    return Tokenizer(json.dumps(about, ensure_ascii=False), UNIT)


def refuse_unfit(train: TrainConfig, pretrain: PretrainConfig) -> None:
    """Raise ConfigError for a way of training that needs a token embedding of Nightshift's own."""
    found = {
        "train.mixup": train.mixup,
        "train.synonym": train.synonym,
        "pretrain.objective": pretrain.objective in ("next_token", "denoise"),
    }
    named = [name for name, used in found.items() if used]
    if named:
        raise ConfigError(
            f"{', '.join(named)}: cannot be used with a pretrained encoder, which embeds its "
            "tokens itself. Remove the key, or choose another model.encoder."
        )


def _positions(encoder: Any) -> int:
    """Tokens, special ones included, for which the encoder has positions."""
    most = getattr(encoder.config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return NO_LIMIT
    for name, part in encoder.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            # RoBERTa and its kin count positions from behind the id of padding.
            most -= part.padding_idx + 1
    return most


def _refuse_strange(encoder: str, model: Any, missing: set[str], tokenizer: Tokenizer) -> None:
    """Raise ConfigError for files that do not belong together."""
    # A pooler stands on top of the states, and nobody reads it here.
    lacking = sorted(name for name in missing if "pooler" not in name)
    if lacking:
        raise ConfigError(
            f"model.encoder: {encoder}: found no weights of {len(lacking)} parts, such as "
            f"{lacking[0]}, expected all of them. The file is of another encoder than config.json "
            "says; save both anew with save_pretrained."
        )
    entries = math.inf
    with _reading(encoder, "token embedding"):
        entries = model.get_input_embeddings().num_embeddings
    if tokenizer.size > entries:
        raise ConfigError(
            f"model.encoder: {encoder}: found {tokenizer.size} entries in its tokenizer, expected "
            f"at most the {entries} that its embedding has. They are of different encoders; save "
            "both anew with save_pretrained."
        )


def _place(encoder: str) -> dict[str, Any]:
    """Where transformers shall look; a folder is read without a thought of the hub."""
    name = encoder.removeprefix(PREFIX)
    here = Path(name).is_absolute() or Path(name).is_dir()
    if here and not (Path(name) / "config.json").is_file():
        raise ConfigError(
            f"model.encoder: found no config.json in the folder {name}, expected config.json, "
            "model.safetensors and tokenizer.json. Correct the folder, or write one with "
            "save_pretrained."
        )
    return {
        "pretrained_model_name_or_path": name,
        "local_files_only": here,
        "trust_remote_code": False,
    }


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"model.encoder: found no package for pretrained encoders ({error}), expected "
            "transformers 5. Install the extra: pip install 'nightshift[huggingface]'."
        ) from error
    return transformers


@contextmanager
def _reading(encoder: str, what: str) -> Iterator[None]:
    """Say plainly what could not be read, without transformers' own progress and warnings."""
    from transformers.utils import logging as own

    names = ("transformers", "huggingface_hub")
    levels = {name: logging.getLogger(name).level for name in names}
    bars = own.is_progress_bar_enabled()
    own.disable_progress_bar()
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:  # every encoder has mistakes of its own to make
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise ConfigError(
            f"model.encoder: {encoder}: its {what} cannot be read: {said}. Expected a folder, or a "
            "name on the hub, of an encoder with config.json, model.safetensors and "
            "tokenizer.json. Correct the name, or connect to the hub once to fetch it."
        ) from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            own.enable_progress_bar()
