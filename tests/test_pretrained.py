"""A pretrained encoder: its ids, its special tokens, its training, its bundle, its refusals."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import TOPICS, House, rows, texts
from tokenizers import Tokenizer as Base
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from nightshift.batches import Documents
from nightshift.bundle import Bundle, Model
from nightshift.encoders import Network
from nightshift.errors import BundleError, ConfigError
from nightshift.learning import Learned, Material, Side, learn
from nightshift.optimisation import groups_of
from nightshift.pipeline import load_settings
from nightshift.pretrained import Pretrained, read_tokenizer, refuse_unfit
from nightshift.recipe import ModelConfig, PretrainConfig, Recipe, TrainConfig
from nightshift.tokenizer import PADDING, UNKNOWN, Tokenizer, swapped

CORPUS = [text for topic in TOPICS for text in texts(topic, 12)]
# Not in the order that Nightshift has them: nothing may work by luck.
SPECIALS = ["[CLS]", "[SEP]", "[MASK]", "[UNK]", "[PAD]"]
CLS, SEP, OWN_UNKNOWN, OWN_PADDING = 0, 1, 3, 4
VOCABULARY = 240
POSITIONS = 64
ROOM = POSITIONS - 2


def fast_tokenizer() -> Any:
    base = Base(models.WordPiece(unk_token="[UNK]"))
    base.normalizer = normalizers.BertNormalizer()
    base.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIALS, show_progress=False
    )
    base.train_from_iterator(CORPUS, trainer)
    base.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=base, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def shape(kind: str = "Bert", **options: Any) -> Any:
    given = {
        "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "pad_token_id": OWN_PADDING,
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64,
    }  # fmt: skip
    return getattr(transformers, f"{kind}Config")(**{**given, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that knows nothing, with a vocabulary of its own."""
    found = tmp_path_factory.mktemp("encoder")
    transformers.utils.logging.disable_progress_bar()
    fast_tokenizer().save_pretrained(found)
    torch.manual_seed(3)
    transformers.BertModel(shape()).save_pretrained(found)
    transformers.utils.logging.enable_progress_bar()
    return found


@pytest.fixture
def other(folder: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "other"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return read_tokenizer(f"huggingface:{folder}")


def loaded(folder: Path) -> Pretrained:
    encoder = f"huggingface:{folder}"
    return Pretrained.load(encoder, read_tokenizer(encoder)).eval()


def side(tokenizer: Tokenizer, count: int, seed: int) -> Side:
    found = rows(count, seed)
    random.Random(seed).shuffle(found)
    labels = np.array([sorted(TOPICS).index(row["label"]) for row in found], np.int64)
    written = [row["text"] for row in found]
    documents = Documents.from_lists(tokenizer.encode(written)).labelled(labels)
    return Side(documents, written)


def material(tokenizer: Tokenizer, count: int) -> Material:
    train, held = side(tokenizer, count, 1), side(tokenizer, 10, 2)
    return Material(tokenizer, sorted(TOPICS), train, held)


def recipe(folder: Path, **train: Any) -> Recipe:
    given = {"epochs": 6, "learning_rate": 2e-3, "batch_tokens": 256, "device": "cpu", **train}
    return Recipe.model_validate({
        "model": {"encoder": f"huggingface:{folder}", "vector": 16}, "train": given,
        "wide": {"use": False},
    })  # fmt: skip


def last(events: Any) -> Learned:
    found = list(events)[-1]
    assert isinstance(found, Learned)
    return found


@pytest.fixture(scope="module")
def learned(folder: Path, tokenizer: Tokenizer) -> Learned:
    return last(learn(material(tokenizer, 60), recipe(folder, epochs=8)))


# --- ids ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padding", "unknown", "expected"),
    [
        (0, 1, [0, 1, 2, 3, 4]),
        (0, 4, [0, 4, 2, 3, 1]),  # as BERT
        (1, 3, [1, 3, 2, 0, 4]),  # as RoBERTa
        (1, 0, [1, 0, 2, 3, 4]),
        (4, 3, [4, 3, 2, 1, 0]),
        (3, 0, [3, 0, 2, 1, 4]),
    ],
)
def test_padding_and_unknown_change_places_with_what_stood_there(
    padding: int, unknown: int, expected: list[int]
) -> None:
    assert swapped(5, padding, unknown) == expected


def test_a_text_has_the_encoders_own_ids_with_four_of_them_moved(
    folder: Path, tokenizer: Tokenizer
) -> None:
    own = transformers.AutoTokenizer.from_pretrained(folder)
    text = "the oven and 猫 the Anchor"
    plain = own(text, add_special_tokens=False)["input_ids"]
    assert OWN_UNKNOWN in plain
    moved = {CLS: 4, SEP: 3, OWN_UNKNOWN: 1, OWN_PADDING: 0}
    assert tokenizer.encode([text]) == [[moved.get(one, one) for one in plain]]
    assert tokenizer.order[:6] == [4, 3, 2, 1, 0, 5]
    assert sorted(tokenizer.order) == list(range(tokenizer.size))


@pytest.mark.parametrize("kind", ["bytes", "unigram"])
def test_other_kinds_of_vocabulary_find_their_places_too(kind: str, other: Path) -> None:
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "bytes":  # as RoBERTa, whose pairs of bytes know no unknown by themselves
        base = Base(models.BPE())
        base.pre_tokenizer = pre_tokenizers.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=specials, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    else:  # as XLM-R
        base = Base(models.Unigram())
        base.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=100, special_tokens=specials, unk_token="<unk>", show_progress=False
        )
    base.train_from_iterator(CORPUS, trainer)
    base.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=base, unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(other)
    found = read_tokenizer(f"huggingface:{other}")
    assert found.order[:5] == [1, 3, 2, 0, 4]
    assert found.around == ([0], [2])
    assert found.tokens([PADDING, UNKNOWN, 2, 3]) == ["<pad>", "<unk>", "</s>", "<s>"]
    [ids] = found.encode(["oven 猫"])
    own = base.encode("oven 猫", add_special_tokens=False).ids
    assert [found.order[one] for one in ids] == own
    assert ids.count(UNKNOWN) == (0 if kind == "bytes" else 1)


def test_entries_are_named_by_the_ids_that_texts_get(tokenizer: Tokenizer) -> None:
    assert tokenizer.tokens([PADDING, UNKNOWN, 2, 3, 4]) == [
        "[PAD]", "[UNK]", "[MASK]", "[SEP]", "[CLS]"
    ]  # fmt: skip
    assert tokenizer.tokens(tokenizer.encode(["the oven 猫"])[0]) == ["the", "oven", "[UNK]"]


def test_special_tokens_stand_around_a_text_and_never_in_its_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.around == ([CLS], [SEP])
    ids = tokenizer.encode(["[PAD] the [CLS] [SEP] oven", "", " "])
    assert not {PADDING, 3, 4} & set(ids[0])
    assert ids[1:] == [[UNKNOWN], [UNKNOWN]]


def test_a_pretrained_tokenizer_survives_its_file(tokenizer: Tokenizer) -> None:
    again = Tokenizer(tokenizer.serialized, "pretrained")
    assert (again.digest, again.order, again.around) == (
        tokenizer.digest, tokenizer.order, tokenizer.around
    )  # fmt: skip
    # Padding is declared in the file, yet no text is padded to the length of its neighbour.
    assert [len(one) for one in again.encode(["the", "the oven the"])] == [1, 3]


def test_a_pretrained_tokenizer_without_padding_in_its_file_is_refused(
    tokenizer: Tokenizer,
) -> None:
    about = {**json.loads(tokenizer.serialized), "padding": None}
    with pytest.raises(BundleError, match="no unknown token or no padding"):
        Tokenizer(json.dumps(about), "pretrained")


# --- states ---------------------------------------------------------------------------------


def test_the_encoder_reads_what_it_would_read_from_its_own_tokenizer(
    folder: Path, tokenizer: Tokenizer
) -> None:
    own = transformers.AutoTokenizer.from_pretrained(folder)
    encoder = transformers.AutoModel.from_pretrained(folder)
    written = ["the oven", "a 猫 and the anchor again"]
    ids, lengths = Documents.from_lists(tokenizer.encode(written)).pad(np.arange(2))
    with torch.inference_mode():
        found = loaded(folder)(ids, lengths)
        for row, text in enumerate(written):
            alone = encoder(**own(text, return_tensors="pt")).last_hidden_state[0, 1:-1]
            assert len(alone) == lengths[row]
            torch.testing.assert_close(found[row, : len(alone)], alone, atol=1e-5, rtol=0)
    assert found.shape == (2, int(lengths.max()), 32)


def test_company_changes_no_answer(learned: Learned) -> None:
    network = learned.model.network
    assert network is not None
    written = ["the oven", "anchor and sail " * 25, "pawn", "knight takes the bishop again"]
    documents = learned.model.documents(written)
    with torch.inference_mode():
        together = network(*documents.pad(np.arange(4)))
        for row in range(4):
            alone = network(*documents.pad(np.array([row])))
            for one, many in zip(alone, together, strict=True):
                torch.testing.assert_close(one[0], many[row], atol=1e-5, rtol=0)


def test_a_text_longer_than_the_positions_is_read_as_several(folder: Path) -> None:
    encoder = loaded(folder)
    network = Network(
        ModelConfig(encoder="huggingface:x", pooling=["mean"]), VOCABULARY, 3, encoder
    )
    network.eval()
    ids = torch.arange(5, 5 + ROOM + 10)[None]
    with torch.inference_mode():
        pooled = network.read(ids, torch.tensor([ROOM + 10])).pooled
        parts = [encoder(part, torch.tensor([part.shape[1]]))[0] for part in ids.split(ROOM, 1)]
    assert [len(part) for part in parts] == [ROOM, 10]
    torch.testing.assert_close(pooled[0], torch.cat(parts).mean(0), atol=1e-5, rtol=0)


def test_gradients_are_finite_where_a_text_ends_before_the_last_chunk(folder: Path) -> None:
    network = Network(ModelConfig(encoder="huggingface:x"), VOCABULARY, 3, loaded(folder)).train()
    ids = torch.zeros(2, ROOM + 5, dtype=torch.int64)
    ids[0], ids[1, :3] = 7, 8
    network(ids, torch.tensor([ROOM + 5, 3]))[0].sum().backward()
    given = [one.grad for one in network.parameters() if one.grad is not None]
    assert len(given) > 30
    assert all(one.isfinite().all() for one in given)


@pytest.mark.parametrize(
    ("kind", "padding", "room"),
    # RoBERTa's positions start behind its padding: 66 rows, of which 0 to 4 hold no text.
    [("Bert", 4, 66 - 2), ("Roberta", 4, 66 - 5 - 2)],
)
def test_room_is_what_positions_and_special_tokens_leave(
    tokenizer: Tokenizer, kind: str, padding: int, room: int
) -> None:
    config = shape(kind, max_position_embeddings=66, pad_token_id=padding)
    encoder = Pretrained(transformers.AutoModel.from_config(config), tokenizer).eval()
    assert encoder.room == room
    with torch.inference_mode():
        full = encoder(torch.full((1, room), 9), torch.tensor([room]))
        assert full.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            encoder(torch.full((1, room + 1), 9), torch.tensor([room + 1]))


# --- training -------------------------------------------------------------------------------


def test_it_is_fine_tuned_to_near_perfect_validation(folder: Path, learned: Learned) -> None:
    assert learned.figures["validation_accuracy"] >= 0.95
    start = transformers.AutoModel.from_pretrained(folder).state_dict()
    assert learned.model.pretrained is not None
    now = learned.model.pretrained.encoder.state_dict()
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(start[name], now[name])


def test_the_same_seed_gives_the_same_model(folder: Path, tokenizer: Tokenizer) -> None:
    found = [
        last(learn(material(tokenizer, 8), recipe(folder, epochs=1))).model for _ in range(2)
    ]  # fmt: skip
    one, two = (model.network.state_dict() for model in found if model.network is not None)
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_the_automatic_length_is_bounded_by_the_positions(
    folder: Path, tokenizer: Tokenizer
) -> None:
    given = material(tokenizer, 8)
    long = Documents.from_lists([[7 + row % 90] * 100 for row in range(len(given.train))])
    train = Side(long.labelled(given.train.documents.labels), given.train.texts)
    wanted = Material(tokenizer, given.classes, train, given.validation)
    assert last(learn(wanted, recipe(folder, epochs=1))).model.config.max_tokens == ROOM


def test_the_automatic_learning_rate_is_that_of_fine_tuning(
    folder: Path, tokenizer: Tokenizer
) -> None:
    events = list(learn(material(tokenizer, 8), recipe(
        folder, epochs=1, learning_rate="auto", schedule="constant", warmup=0,
    )))  # fmt: skip
    assert events[0].figures()["learning_rate"] == pytest.approx(5e-5)  # type: ignore[union-attr]


def test_a_warm_start_goes_on_from_the_champion_without_its_folder(
    other: Path, tokenizer: Tokenizer
) -> None:
    given = material(tokenizer, 8)
    champion = last(learn(given, recipe(other, epochs=1))).model
    assert champion.network is not None
    before = {name: one.clone() for name, one in champion.network.state_dict().items()}
    shutil.rmtree(other)
    still = recipe(other, epochs=1, warm_start=True, learning_rate=1e-12, weight_decay=0)
    found = last(learn(given, still, champion))
    assert found.notes[0] == "started from the champion, on 24 rows"
    assert found.model.network is not None
    for name, one in found.model.network.state_dict().items():
        torch.testing.assert_close(one, before[name], atol=1e-9, rtol=0)


def test_lower_layers_learn_more_slowly_where_that_is_declared(folder: Path) -> None:
    network = Network(ModelConfig(encoder="huggingface:x"), VOCABULARY, 3, loaded(folder))
    groups = groups_of(network, TrainConfig(learning_rate=0.8, weight_decay=0.01), 0.5)
    rates = {id(one): group["lr"] for group in groups for one in group["params"]}
    found = {name: rates[id(one)] for name, one in network.named_parameters()}
    assert found["head.weight"] == found["projection.weight"] == 0.8
    layer = "pretrained.encoder.encoder.layer.{}.output.dense.weight"
    assert [found[layer.format(number)] for number in (1, 0)] == [0.4, 0.2]
    assert found["pretrained.encoder.embeddings.word_embeddings.weight"] == 0.1


def test_token_vectors_can_stay_as_they_are(folder: Path) -> None:
    config = ModelConfig(encoder="huggingface:x", freeze_embeddings=True)
    network = Network(config, VOCABULARY, 3, loaded(folder))
    fixed = [name for name, one in network.named_parameters() if not one.requires_grad]
    assert fixed == ["pretrained.encoder.embeddings.word_embeddings.weight"]


@pytest.mark.parametrize(
    ("train", "pretrain", "named"),
    [
        ({"mixup": 0.2}, {}, "train.mixup"),
        ({"mixup": 0.2, "synonym": 0.1}, {}, "train.mixup, train.synonym"),
        ({}, {"objective": "denoise"}, "pretrain.objective"),
    ],
)
def test_ways_of_training_that_need_another_embedding_are_refused(
    train: dict[str, Any], pretrain: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: cannot be used with a pretrained encoder"):
        refuse_unfit(TrainConfig(**train), PretrainConfig(**pretrain))
    refuse_unfit(TrainConfig(), PretrainConfig(objective="contrastive"))


# --- bundle ---------------------------------------------------------------------------------


def test_a_saved_model_answers_the_same_and_asks_nobody(
    learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = learned.model.save(tmp_path)
    for name in ("AutoModel", "AutoTokenizer", "AutoConfig"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", None)
    again = Model.load(tmp_path)
    written = ["the oven and butter", "tide and wind", "check mate", "anchor " * 80]
    one, two = (model.answer(model.documents(written), written) for model in (learned.model, again))
    np.testing.assert_allclose(one.vectors, two.vectors, atol=1e-6)
    assert one.probabilities is not None
    assert two.probabilities is not None
    np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-6)
    assert [again.labels[place] for place in two.choice[:3]] == ["cooking", "sailing", "chess"]
    assert again.save(tmp_path / "again") == model_id


def test_the_models_json_holds_the_encoders_config_and_not_where_it_lay(
    learned: Learned, folder: Path, tmp_path: Path
) -> None:
    learned.model.save(tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    kept = about["pretrained"]
    assert (kept["model_type"], kept["hidden_size"], kept["num_hidden_layers"]) == ("bert", 32, 2)
    assert str(folder) not in json.dumps(kept)
    assert about["unit"] == "pretrained"


ALONE = """
import importlib.util, json, socket, sys
from pathlib import Path

for name in ("nightshift", "tasks", "flows", "prefect", "mlflow", "deltalake", "sklearn"):
    sys.modules[name] = None

def refuse(*_, **__):
    raise AssertionError("the network was asked")

socket.getaddrinfo = socket.socket.connect = refuse
folder, texts = Path(sys.argv[1]), json.loads(sys.argv[2])
spec = importlib.util.spec_from_file_location(
    "served", folder / "code" / "__init__.py", submodule_search_locations=[str(folder / "code")]
)
sys.modules["served"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
bundle = importlib.import_module("served.bundle").Bundle.load(folder)
print(json.dumps(bundle.answer(texts)))
"""


@pytest.mark.slow
def test_a_bundle_answers_where_only_itsrequirements_are(learned: Learned, tmp_path: Path) -> None:
    learned.model.save(tmp_path / "model")
    Bundle(learned.model, None).save(tmp_path / "bundle", tmp_path / "model")
    written = ["the oven and butter", "tide and wind"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "bundle"), json.dumps(written)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["label"] for one in found] == ["cooking", "sailing"]
    here = Bundle(learned.model, None).answer(written)
    for one, two in zip(found, here, strict=True):
        assert one["probability"] == pytest.approx(two["probability"], abs=1e-5)


def test_a_bundle_without_the_extra_says_what_to_install(
    learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned.model.save(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'nightshift\[huggingface\]'"):
        Model.load(tmp_path)


# --- what is refused ------------------------------------------------------------------------


def test_no_network_is_asked_for_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*given: Any, **_: Any) -> Any:
        asked.append(given)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert loaded(folder).width == 32
    assert asked == []


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_an_encoder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"found no config.json in the folder .*{name}, expected"):
        read_tokenizer(f"huggingface:{tmp_path / name}")


def test_a_name_that_cannot_be_fetched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    expected = "huggingface:nobody/nothing: its tokenizer cannot be read: .*connect to the hub once"
    with pytest.raises(ConfigError, match=expected):
        read_tokenizer("huggingface:nobody/nothing")


def test_the_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'nightshift\[huggingface\]'"):
        read_tokenizer(f"huggingface:{folder}")


def test_a_tokenizer_in_python_is_refused(tmp_path: Path) -> None:
    transformers.T5Config().save_pretrained(tmp_path)
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"found a tokenizer in Python \(ByT5Tokenizer\)"):
        read_tokenizer(f"huggingface:{tmp_path}")


def test_an_encoder_without_a_tokenizer_is_refused(other: Path) -> None:
    (other / "tokenizer.json").unlink()
    (other / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="a tokenizer that knows no words"):
        read_tokenizer(f"huggingface:{other}")


def test_an_encoder_that_cannot_pad_is_refused(other: Path) -> None:
    path = other / "tokenizer_config.json"
    about = json.loads(path.read_text())
    del about["pad_token"]
    path.write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=r"found padding None and unknown '\[UNK\]'"):
        read_tokenizer(f"huggingface:{other}")


def test_pickled_weights_are_never_opened(other: Path) -> None:
    tensors = transformers.AutoModel.from_pretrained(other).state_dict()
    (other / "model.safetensors").unlink()
    torch.save(tensors, other / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"its weights cannot be read: .*model\.safetensors"):
        loaded(other)


def test_weights_of_another_encoder_are_refused(other: Path) -> None:
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match=r"no weights of 16 parts, such as encoder\.layer\.2\."):
        loaded(other)


def test_a_tokenizer_with_more_entries_than_the_embedding_is_refused(
    other: Path, tokenizer: Tokenizer
) -> None:
    transformers.BertModel(shape(vocab_size=150)).save_pretrained(other)
    expected = f"found {tokenizer.size} entries in its tokenizer, expected at most the 150"
    with pytest.raises(ConfigError, match=expected):
        loaded(other)


def test_a_model_that_is_no_encoder_is_refused(other: Path) -> None:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    transformers.T5Model(config).save_pretrained(other)
    with pytest.raises(ConfigError, match="its answer to a text of one token cannot be read"):
        loaded(other)


def test_an_encoder_changed_after_the_texts_were_encoded_is_refused(
    other: Path, tokenizer: Tokenizer
) -> None:
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"oven"', '"ovens"'))
    with pytest.raises(
        ConfigError, match=f"tokens \\({tokenizer.digest[:8]}\\), expected the same"
    ):
        Pretrained.load(f"huggingface:{other}", tokenizer)


# --- plugged in -----------------------------------------------------------------------------


def test_a_folder_starts_at_the_pipelines_file_and_a_name_does_not(house: House) -> None:
    (house.folder / "encoders" / "mine").mkdir(parents=True)
    expected = {
        "encoders/mine": f"huggingface:{house.folder}/encoders/mine",
        "./gone": f"huggingface:{house.folder}/gone",
        "someone/somewhere": "huggingface:someone/somewhere",
        str(house.folder / "gone"): f"huggingface:{house.folder}/gone",
    }
    for given, found in expected.items():
        house.declare(model={"encoder": f"huggingface:{given}"})
        assert load_settings(house.config).pipeline(house.name).model.encoder == found


@pytest.mark.slow
def test_a_night_is_worked_and_answered_with_a_pretrained_encoder(
    house: House, folder: Path
) -> None:
    from flows.reading import predictions
    from tasks.publish import requirements

    shutil.copytree(folder, house.folder / "encoder")
    house.declare(
        model={"encoder": "huggingface:encoder", "vector": 16},
        train={"epochs": 4, "learning_rate": 2e-3, "batch_tokens": 512},
        wide={"use": False},
    )
    house.drop("one.jsonl", rows(60))
    house.work("n1")
    written = house.table("tokens")
    assert len(written) == 180
    assert {row["tokenizer"] for row in written} == {read_tokenizer(
        f"huggingface:{folder}").digest}  # fmt: skip
    assert sum(row["n_unknown"] for row in written) == 0
    # A second night, with nothing to train, needs the folder no more; nor does an answer.
    shutil.rmtree(house.folder / "encoder")
    house.declare(model={"encoder": f"huggingface:{house.folder}/encoder", "vector": 16})
    house.drop("two.jsonl", rows(2, seed=5))
    house.declare(train={**house.settings["train"], "when": "never"})
    house.work("n2")
    assert {row["night"] for row in house.table("predictions")} == {"n1", "n2"}
    settings = load_settings(house.config)
    said = list(predictions(settings, house.name, ["butter and dough", "mast and keel"], 3))
    assert [one["label"] for one in said] == ["cooking", "sailing"]
    uri = house.lake.published()["model_uri"]
    from tasks.tracking import Tracking

    model = Model.load(Tracking(settings.mlflow, "").fetch(uri))
    assert f"transformers=={transformers.__version__}" in requirements(model)
