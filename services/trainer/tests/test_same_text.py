"""One seed gives one text, wherever the model runs; penalties of tokens seen before, and many prompts at once."""

import numpy as np
import pytest
from trainer_support import computations, reference
from trainer_support.data import VOCABULARY_SIZE, random_weights, small_architecture

from gpt2_trainer.configuration.sampling import SamplingConfig

pytestmark = pytest.mark.process

ARCHITECTURE = small_architecture()
WEIGHTS = random_weights(ARCHITECTURE)
OPTIONS = (
    SamplingConfig(),
    SamplingConfig(top_k=0, temperature=1.3),
    SamplingConfig(top_k=0, top_p=0.9),
    SamplingConfig(top_k=5, temperature=0.7, repetition_penalty=1.3, no_repeat_ngram_size=2),
    SamplingConfig(temperature=0.0),
)
SEEDS = (0, 1, -1, 2**32 + 7, 2**63 - 1, -(2**63))


def prompts_of(count, length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY_SIZE - 1, (count, length)).tolist()


CASES = [
    *((prompts_of(1, 3, seed % 100), 1, 24, OPTIONS[1], seed) for seed in SEEDS),
    *(
        (prompts_of(1, 3, seed), 1, 24, options, seed)
        for seed in SEEDS[:2]
        for options in OPTIONS
        if options != OPTIONS[1]
    ),
    *((prompts_of(2, 7), 2, 24, options, SEEDS[3]) for options in OPTIONS),
]


@pytest.fixture(scope="module")
def saved_model(tensorflow_process, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("served") / "saved_model")
    tensorflow_process(computations.write_served, folder, ARCHITECTURE, WEIGHTS)
    return folder


def test_one_seed_gives_one_text_in_the_service_and_in_a_saved_model(backend, tensorflow_process, saved_model):
    """On both backends of the service, past the end of the context, with all ways to draw."""
    generated = backend(computations.generated_cases, ARCHITECTURE, WEIGHTS, CASES)
    served = tensorflow_process(computations.served_samples, saved_model, CASES)
    assert served == generated
    assert len({str(texts) for texts in served}) == len(CASES)


def test_a_text_does_not_depend_on_what_runs_beside_it(jax_process, tensorflow_process, saved_model):
    prompts, options = prompts_of(5, 6), SamplingConfig()
    together, alone = [(prompts, 1, 20, options, 4)], [([prompt], 1, 20, options, 4) for prompt in prompts]
    for run in (
        lambda cases: jax_process(computations.generated_cases, ARCHITECTURE, WEIGHTS, cases),
        lambda cases: tensorflow_process(computations.served_samples, saved_model, cases),
    ):
        [texts] = run(together)
        assert [[text] for text in texts] == run(alone)
        [[one, _, other]] = run([([prompts[0], prompts[1], prompts[0]], 1, 20, options, 4)])
        assert one == other == texts[0]


def test_samples_of_one_prompt_differ_and_are_the_same_however_many(jax_process):
    prompt, options = prompts_of(1, 2), SamplingConfig(top_k=0)
    four, two = jax_process(
        computations.generated_cases, ARCHITECTURE, WEIGHTS, [(prompt, count, 20, options, 1) for count in (4, 2)]
    )
    assert four[:2] == two
    assert len(set(map(str, four))) == 4


@pytest.mark.parametrize(
    ("penalty", "ngram_size"), [(1.5, 0), (0.5, 0), (1.0, 1), (1.0, 2), (1.0, 3), (1.2, 4), (1, 99)]
)
def test_penalties_change_logits_as_transformers_does(backend, penalty, ngram_size):
    random = np.random.default_rng(ngram_size)
    # Few tokens, so that sequences come again; the history has room that does not count.
    history = random.integers(0, 4, (3, 40)).astype(np.int32)
    logits = random.normal(0, 3, (3, 9)).astype(np.float32)
    for length in (1, 2, 3, 17, 40):
        found = backend(computations.penalized, logits, history, length, penalty, ngram_size)
        found = np.where(found < -1e8, -np.inf, found)
        for row in range(3):
            expected = reference.penalized(logits[row], history[row, :length].tolist(), penalty, ngram_size)
            np.testing.assert_allclose(found[row], expected, rtol=1e-6)


@pytest.mark.parametrize(("penalty", "ngram_size", "length"), [(1.4, 0, 5), (1.0, 2, 3), (1.2, 3, 40), (0.7, 2, 1)])
def test_penalised_generation_equals_full_recomputation(
    backend, tensorflow_process, saved_model, penalty, ngram_size, length
):
    """Past the end of the context: what has left it counts for the penalties."""
    prompts = prompts_of(2, length, seed=7)
    options = SamplingConfig(temperature=0.0, repetition_penalty=penalty, no_repeat_ngram_size=ngram_size)
    case = [(prompts, 1, 40, options, 0)]
    expected = [reference.greedy_penalized(WEIGHTS, prompt, 40, 2, 2, 16, penalty, ngram_size) for prompt in prompts]
    end = ARCHITECTURE.end_token_id
    expected = [row[: row.index(end)] if end in row else row for row in expected]
    assert backend(computations.generated_cases, ARCHITECTURE, WEIGHTS, case) == [expected]
    if backend is tensorflow_process:
        assert tensorflow_process(computations.served_samples, saved_model, case) == [expected]


def test_penalties_work_with_weights_rounded_to_bfloat16(jax_process):
    options = SamplingConfig(temperature=0.0, repetition_penalty=1.1, no_repeat_ngram_size=1)
    prompt = prompts_of(1, 4)
    [[text]] = jax_process(
        computations.generated_cases, ARCHITECTURE, WEIGHTS, [(prompt, 1, 60, options, 0)], "bfloat16"
    )
    assert len(set(text) | set(prompt[0])) == len(text) + len(set(prompt[0]))
