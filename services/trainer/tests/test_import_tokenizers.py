"""Whatever tokenizer a model's folder carries becomes the tokenizer artifact, or the import says why not."""

import json

import pytest
from tokenizers import Tokenizer
from trainer_support import jobs
from trainer_support.data import (
    END_TOKEN_ID,
    MERGES,
    VOCABULARY_SIZE,
    make_tokenizer,
    random_weights,
    small_architecture,
    vocabulary,
    write_pair,
)
from trainer_support.sources import write_huggingface_files

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.errors import InvalidRequest
from gpt2_common.vocabulary.files import write_vocabulary
from gpt2_common.vocabulary.importing import import_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_trainer.formats.checkpoint import read_checkpoint
from gpt2_trainer.formats.huggingface import write_huggingface
from gpt2_trainer.formats.tokenizer_files import check_tokenizer
from gpt2_trainer.generation.text import TextCodec
from gpt2_trainer.jobs.import_checkpoint import import_checkpoint

WEIGHTS = random_weights(small_architecture())
PAD = {"id": VOCABULARY_SIZE, "content": "<pad>", "special": True, "normalized": False}
PADDED = Vocabulary.from_parts({**vocabulary(), "<pad>": VOCABULARY_SIZE}, MERGES, ["<pad>"])


@pytest.fixture
def source(tmp_path):
    """A model's folder, in Hugging Face's format, without a tokenizer."""
    folder = tmp_path / "source"
    folder.mkdir()
    write_huggingface_files(folder, WEIGHTS)
    return folder


@pytest.fixture
def import_source(tmp_path, source):
    def run(context=None):
        request = pb.ImportCheckpointRequest(uri=source.as_uri())
        outputs = import_checkpoint(request, context or jobs.make_context(tmp_path))
        return {item.name: item for item in outputs}

    return run


def write_complete(folder, **changes):
    """Writes `tokenizer.json` alone, with some of its parts exchanged."""
    content = json.loads((make_tokenizer(folder.with_name("made")) / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | changes))
    return content


def write_merges_as_strings(folder):
    content = write_complete(folder)
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "write",
    [
        write_complete,
        write_merges_as_strings,
        write_pair,
        lambda folder: write_pair(folder, ("vocab.json", "merges.txt")),
        lambda folder: (write_complete(folder), write_pair(folder, ("vocab.json", "merges.txt"))),
    ],
    ids=["tokenizer.json", "merges as strings", "OpenAI's pair", "Hugging Face's pair", "both"],
)
def test_every_form_of_tokenizer_in_a_checkpoints_folder_becomes_the_same_artifact(write, source, import_source):
    write(source)
    outputs = import_source()
    assert outputs.keys() == {"checkpoint", "tokenizer"}
    tokenizer = outputs["tokenizer"]
    assert dict(tokenizer.counts) == {"vocabulary": VOCABULARY_SIZE}
    read = import_vocabulary(tokenizer.uri)
    assert dict(tokenizer.properties) == {
        "fingerprint": read.fingerprint,
        "end_token": "<|endoftext|>",
        "end_token_id": str(END_TOKEN_ID),
        "source": source.as_uri(),
    }
    assert read == Vocabulary.from_parts(vocabulary(), MERGES)
    assert outputs["checkpoint"].properties["tokenizer_digest"] == tokenizer.digest
    for name in ("tokenizer.json", "encoder.json", "vocab.bpe"):
        made = jobs.folder({"uri": tokenizer.uri}) / name
        assert made.read_bytes() == (make_tokenizer(source.with_name("made")) / name).read_bytes()


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"added_tokens_decoder": {str(VOCABULARY_SIZE): PAD}}},
        {"added_tokens.json": {"<pad>": VOCABULARY_SIZE}},
        {"added_tokens.json": {"<pad>": VOCABULARY_SIZE}, "special_tokens_map.json": {"pad_token": "<pad>"}},
        {"tokenizer.json": None},
    ],
    ids=lambda files: " ".join(files),
)
def test_special_tokens_beside_a_pair_are_the_tokenizers(files, source, import_source):
    weights = {**WEIGHTS, "wte.weight": WEIGHTS["wte.weight"][[*range(VOCABULARY_SIZE), 0]]}
    write_huggingface_files(source, weights, vocab_size=VOCABULARY_SIZE + 1)
    write_pair(source, ("vocab.json", "merges.txt"))
    for name, content in files.items():
        if content is not None:
            (source / name).write_text(json.dumps(content))
        else:
            write_complete(
                source, added_tokens=[{"id": END_TOKEN_ID, "content": "<|endoftext|>"} | {"special": True}, PAD]
            )
    made = import_source()["tokenizer"]
    assert json.loads(made.properties["special_tokens"]) == ["<pad>"]
    assert import_vocabulary(made.uri) == PADDED
    tokenizer = Tokenizer.from_file(str(jobs.folder({"uri": made.uri}) / "tokenizer.json"))
    assert tokenizer.encode("a<pad>").ids == [vocabulary()["a"], VOCABULARY_SIZE]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": {}}}, "its model is WordPiece"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenisation is not GPT-2's"),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": []}}, "its model is Unigram"),
        ("tokenizer_config.json", {"add_prefix_space": True}, "adds a space before each text"),
        ("vocab.txt", None, "vocab.txt (WordPiece or SentencePiece)"),
        ("tokenizer.model", None, "tokenizer.model (WordPiece or SentencePiece)"),
        ("vocab.json", None, "merges.txt is missing"),
        ("merges.txt", None, "vocab.json is missing"),
    ],
)
def test_a_tokenizer_that_is_not_gpt2s_is_never_left_out_silently(name, content, part, source, import_source):
    if content is None:
        (source / name).write_text("x")
    elif name == "tokenizer.json":
        write_complete(source, **content)
    else:
        write_complete(source)
        (source / name).write_text(json.dumps(content))
    with pytest.raises(InvalidRequest) as refusal:
        import_source()
    assert part in str(refusal.value)
    assert "without them and name a tokenizer in tokenizer_uri" in str(refusal.value)


def test_a_folder_without_a_tokenizer_is_warned_of(import_source, tmp_path):
    context = jobs.make_context(tmp_path)
    assert import_source(context).keys() == {"checkpoint"}
    [warning] = context.warnings
    assert "has no tokenizer: name one in tokenizer_uri" in warning


def test_another_end_token_and_added_tokens_go_from_import_to_export(source, import_source, tmp_path):
    """The tokenizer's end token counts, not the stale one of config.json."""
    ids = {"</s>" if token == "<|endoftext|>" else token: number for token, number in vocabulary().items()}
    other = Vocabulary.from_parts({**ids, "für": VOCABULARY_SIZE}, MERGES, added_tokens=["für"], end_token="</s>")
    weights = {**WEIGHTS, "wte.weight": WEIGHTS["wte.weight"][[*range(VOCABULARY_SIZE), 0]]}
    write_huggingface_files(source, weights, vocab_size=VOCABULARY_SIZE + 1, eos_token_id=5)
    write_vocabulary(other, source)
    outputs = import_source()
    assert outputs["tokenizer"].properties["end_token"] == "</s>"
    folder = jobs.folder({"uri": outputs["checkpoint"].uri})
    checkpoint = read_checkpoint(folder, with_optimizer=False)
    assert checkpoint.architecture.end_token_id == END_TOKEN_ID
    check_tokenizer(folder / "tokenizer", checkpoint.architecture, "checkpoint_uri")

    model = tmp_path / "model"
    model.mkdir()
    write_huggingface(model, checkpoint.architecture, checkpoint.weights, folder / "tokenizer")
    assert json.loads((model / "config.json").read_text())["eos_token_id"] == END_TOKEN_ID
    assert json.loads((model / "tokenizer_config.json").read_text())["eos_token"] == "</s>"
    assert import_vocabulary(model.as_uri()) == other
    codec = TextCodec(model, END_TOKEN_ID)
    assert codec.encode_prompt("") == [END_TOKEN_ID]
    assert codec.encode_prompt("für") == [VOCABULARY_SIZE]
    assert codec.decode([VOCABULARY_SIZE, ids["a"], END_TOKEN_ID, ids["a"]]) == "füra"
