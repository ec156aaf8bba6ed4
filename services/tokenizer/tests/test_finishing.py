"""Finished shards are whole, on the disk and hashed before a resume point lists them."""

import json
import threading

import numpy as np
import pytest

from gpt2_common.artifacts.manifest import sha256_of
from gpt2_tokenizer.dataset import resume_point as resume_points
from gpt2_tokenizer.dataset.blocks import Block
from gpt2_tokenizer.dataset.resume_point import ResumePoint, ShardFinisher
from gpt2_tokenizer.dataset.shards import SplitState, SplitWriter


@pytest.fixture
def writer(store):
    with store.create("job", "dataset", "dataset", {}) as writer:
        yield writer


@pytest.fixture
def resume_point():
    return ResumePoint("key", {"train": SplitState(), "validation": SplitState()})


def blocks(count):
    return [Block(np.array([n]), np.array([10]), np.full(10, n, np.uint16)) for n in range(count)]


def test_a_resume_point_is_written_after_the_shards_it_names(writer, resume_point, tmp_path, monkeypatch):
    may_finish = threading.Event()
    replace = resume_points.replace_durable

    def slowly(part, path):
        assert may_finish.wait(60)
        assert not (tmp_path / "encode.json").exists()
        replace(part, path)

    monkeypatch.setattr(resume_points, "replace_durable", slowly)
    with ShardFinisher(writer, tmp_path) as finisher:
        split = SplitWriter(writer.folder, "train", np.uint16, 40, resume_point.splits["train"], finisher.finish)
        for block in blocks(2):
            split.add(block)
        finisher.save(resume_point)
        # What is encoded from here on is no part of the resume point that waits.
        split.add(blocks(1)[0])
        assert not (tmp_path / "encode.json").exists()
        may_finish.set()
        split.close()
    saved = json.loads((tmp_path / "encode.json").read_text())
    assert saved["splits"]["train"] == {"shards": 1, "tokens": 20, "documents": 2, "next_document": 2}
    (writer.folder / ".train-00001.npy.part").unlink()
    made = writer.commit()
    assert [entry.sha256 for entry in made.manifest.files] == [sha256_of(made.folder / "train-00000.npy")]


def no_space(part, path):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("shards", [1, 20])
def test_a_disk_that_fails_fails_the_job(writer, resume_point, tmp_path, monkeypatch, shards):
    monkeypatch.setattr(resume_points, "replace_durable", no_space)

    def encode():
        with ShardFinisher(writer, tmp_path) as finisher:
            split = SplitWriter(writer.folder, "train", np.uint16, 2, resume_point.splits["train"], finisher.finish)
            for block in blocks(shards):
                split.add(block)

    with pytest.raises(OSError, match="No space left"):
        encode()
    assert not list(writer.folder.glob("train-*.npy"))


def test_an_error_of_the_job_is_not_hidden_by_one_of_the_disk(writer, tmp_path, monkeypatch):
    monkeypatch.setattr(resume_points, "replace_durable", no_space)

    def encode():
        with ShardFinisher(writer, tmp_path) as finisher:
            finisher.finish(tmp_path / "part", tmp_path / "shard")
            raise ValueError("the job's own")

    with pytest.raises(ValueError, match="the job's own"):
        encode()
