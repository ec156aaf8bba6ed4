"""Which data a step sees: each window once an epoch, in an order that only seed and step decide."""

import numpy as np
import pytest

from gpt2_common.errors import InvalidRequest
from gpt2_trainer.training.data import ShuffledDocuments, TokenStream, TrainingData, ValidationData
from gpt2_trainer.training.shuffle import permute


@pytest.fixture
def stream(tmp_path):
    """Tokens 0 to 99 in shards of 30."""
    for number, start in enumerate(range(0, 100, 30)):
        np.save(tmp_path / f"train-{number:05d}.npy", np.arange(100, dtype=np.uint16)[start : start + 30])
    return TokenStream(tmp_path, "train")


def training_data(stream, **changes):
    values = {"context_length": 9, "batch_size": 4, "seed": 1, "noise": 0.0, "vocabulary_size": 100}
    return TrainingData(stream, *(values | changes).values())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 64, 65, 1000])
def test_order_is_a_permutation(size):
    order = permute(np.arange(size), size, seed=0, epoch=0)
    assert sorted(order) == list(range(size))


def test_orders_of_epochs_and_seeds_differ_and_look_random():
    positions = np.arange(1000)
    orders = [permute(positions, 1000, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (-1, 0))]
    for number, order in enumerate(orders):
        assert abs(np.corrcoef(positions, order)[0, 1]) < 0.15
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.15
        assert all((order != other).mean() > 0.9 for other in orders[:number])


def test_any_element_is_found_without_the_others():
    whole = permute(np.arange(1000), 1000, seed=3, epoch=2)
    assert permute(np.array([617]), 1000, seed=3, epoch=2)[0] == whole[617]


def test_stream_reads_across_shards(stream):
    assert len(stream) == 100
    for start, length in ((0, 100), (25, 10), (29, 1), (30, 30), (59, 33), (99, 1)):
        np.testing.assert_array_equal(stream.read(start, length), np.arange(start, start + length))


def test_an_epoch_has_each_token_as_target_once(stream):
    data = training_data(stream)
    assert data.windows == 11
    rows = [row for step in range(11) for row in zip(*data.batch(step), strict=True)]
    # 44 rows are 4 epochs of 11 windows, whose borders lie within batches.
    for epoch in range(4):
        targets = np.concatenate([row[1] for row in rows[epoch * 11 : (epoch + 1) * 11]])
        assert sorted(targets) == list(range(1, 100))
    for inputs, targets in rows:
        np.testing.assert_array_equal(inputs + 1, targets)


def test_a_batch_depends_on_seed_and_step_alone(stream):
    first, second = training_data(stream, noise=0.5), training_data(stream, noise=0.5)
    for step in range(5):
        second.batch(step)
    np.testing.assert_array_equal(first.batch(3), second.batch(3))
    assert not np.array_equal(first.batch(3), training_data(stream, noise=0.5, seed=2).batch(3))


@pytest.fixture
def documents(tmp_path):
    """Documents of 1 to 12 tokens that all differ, each ended by 0, in shards of 30."""
    texts, start = [], 1
    for number in range(20):
        length = 1 + number * 7 % 12
        texts.append([*range(start, start + length), 0])
        start += length
    tokens = np.concatenate(texts).astype(np.uint16)
    for number, first in enumerate(range(0, len(tokens), 30)):
        np.save(tmp_path / f"train-{number:05d}.npy", tokens[first : first + 30])
    return TokenStream(tmp_path, "train"), [tuple(text) for text in texts]


def test_each_epoch_has_every_document_once_in_another_order(documents):
    stream, texts = documents
    shuffled = ShuffledDocuments(stream, 0, seed=1)
    orders = []
    for epoch in range(3):
        tokens = shuffled.read(epoch, 0, len(stream)).tolist()
        ends = [place + 1 for place, token in enumerate(tokens) if token == 0]
        orders.append([tuple(tokens[start:end]) for start, end in zip([0, *ends], ends, strict=False)])
        assert sorted(orders[-1]) == sorted(texts)
        for start, length in ((0, 1), (5, 30), (len(stream) - 7, 7)):
            assert shuffled.read(epoch, start, length).tolist() == tokens[start : start + length]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert ShuffledDocuments(stream, 0, seed=2).read(0, 0, 30).tolist() != shuffled.read(0, 0, 30).tolist()


def test_reshuffled_batches_depend_on_seed_and_step_alone(documents):
    stream, _ = documents
    first, second = (training_data(stream, vocabulary_size=200, reshuffled_by=0) for _ in range(2))
    plain = training_data(stream, vocabulary_size=200)
    assert first.windows == plain.windows
    for step in range(8):
        second.batch(step)
    # Across the border of an epoch, where a step needs two orders.
    step = first.windows // 4
    for found in (step, 7, 0):
        np.testing.assert_array_equal(first.batch(found), second.batch(found))
        assert not np.array_equal(first.batch(found), plain.batch(found))
    rows = [row for step in range(first.windows) for row in zip(*first.batch(step), strict=True)]
    for epoch in range(4):
        targets = np.concatenate([row[1] for row in rows[epoch * first.windows : (epoch + 1) * first.windows]])
        assert len(np.unique(targets[targets > 0])) == (targets > 0).sum()


def test_a_stream_without_end_tokens_is_one_document(stream):
    assert stream.document_ends(1000).tolist() == [100]
    assert stream.document_ends(99).tolist() == [100]
    assert stream.document_ends(29).tolist() == [30, 100]
    np.testing.assert_array_equal(ShuffledDocuments(stream, 1000, seed=0).read(3, 0, 100), np.arange(100))


def test_noise_replaces_inputs_and_never_targets(stream):
    clean, noisy = training_data(stream, batch_size=200), training_data(stream, batch_size=200, noise=0.25)
    (inputs, targets), (noisy_inputs, noisy_targets) = clean.batch(0), noisy.batch(0)
    np.testing.assert_array_equal(targets, noisy_targets)
    # One in a hundred of the random tokens is the right one.
    assert (inputs != noisy_inputs).mean() == pytest.approx(0.2475, abs=0.03)
    assert noisy_inputs.min() >= 0
    assert noisy_inputs.max() < 100
    assert (training_data(stream, noise=1.0).batch(0)[0] != clean.batch(0)[0][:4]).mean() > 0.9


def test_validation_uses_the_same_sequences_spread_over_the_split(stream):
    data = ValidationData(stream, 9, sequences=5, batch_size=2)
    batches = list(data.batches())
    assert [count for _, _, count in batches] == [2, 2, 1]
    assert {inputs.shape for inputs, _, _ in batches} == {(2, 9)}
    starts = [row[0] for inputs, _, count in batches for row in inputs[:count]]
    assert starts == [0, 18, 36, 54, 72]
    for (inputs, targets, _), (again, _, _) in zip(batches, data.batches(), strict=True):
        np.testing.assert_array_equal(inputs, again)
        np.testing.assert_array_equal(inputs + 1, targets)


def test_validation_takes_all_where_there_are_fewer(stream):
    assert ValidationData(stream, 9, sequences=64, batch_size=8).sequences == 11


@pytest.mark.parametrize(
    ("tokens", "advice"),
    [(10, "a context_length of at most 9 fits"), (1, "no context_length fits"), (0, "no context")],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_too_short_a_split_is_refused_with_what_would_fit(tmp_path, tokens, advice, split):
    np.save(tmp_path / f"{split}-00000.npy", np.zeros(tokens, np.uint16))
    stream = TokenStream(tmp_path, split)
    with pytest.raises(InvalidRequest) as caught:
        training_data(stream, context_length=10) if split == "train" else ValidationData(stream, 10, 5, 2)
    [(field, description)] = caught.value.violations
    assert field == "config.context_length"
    assert f"the {split} split of the dataset has {tokens} tokens" in description
    assert advice in description
    assert ("share for validation" in description) == (split == "validation")


def test_a_split_of_exactly_one_sequence_is_enough(tmp_path):
    np.save(tmp_path / "train-00000.npy", np.arange(11, dtype=np.uint16))
    inputs, targets = training_data(TokenStream(tmp_path, "train"), context_length=10).batch(7)
    np.testing.assert_array_equal(inputs, [list(range(10))] * 4)
    np.testing.assert_array_equal(targets, [list(range(1, 11))] * 4)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_processes_that_share_a_batch_read_its_rows(stream, noise):
    data = training_data(stream, noise=noise)
    for step in range(5):
        whole = data.batch(step)
        for rows in ([0], [1, 3], [2]):
            part = data.batch(step, np.array(rows))
            for tokens, expected in zip(part, whole, strict=True):
                np.testing.assert_array_equal(tokens, expected[rows])
