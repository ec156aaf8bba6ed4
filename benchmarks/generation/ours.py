"""Our decoder, as the service runs it."""

import sys
from itertools import islice

import numpy as np
from contender import Work, serve


def build(setting: dict) -> Work:
    """Makes a generation from a random prompt."""
    from gpt2_trainer.model.backend import select_backend

    select_backend(sys.argv[1])
    from gpt2_trainer.configuration.architecture import Architecture, LayerSizes
    from gpt2_trainer.configuration.sampling import SamplingConfig
    from gpt2_trainer.generation.decoder import Decoder
    from gpt2_trainer.model.weights import initial_weights

    sizes = LayerSizes(**{name: setting[name] for name in ("n_layer", "n_head", "n_embd", "n_ctx")})
    vocabulary = setting["vocabulary"]
    architecture = Architecture(layers=sizes, vocabulary_size=vocabulary, end_token_id=vocabulary - 1)
    decoder = Decoder(architecture, sys.argv[2])
    weights = decoder.load(initial_weights(architecture, 0))
    options = SamplingConfig(temperature=1.0, top_k=40, top_p=1.0)
    random = np.random.default_rng(0)

    def work() -> float:
        prompt = random.integers(0, vocabulary, setting["prompt"]).tolist()
        tokens = decoder.generate(weights, prompt, setting["batch"], options, 0)
        return float(len(list(islice(tokens, setting["new"]))))

    return work


serve(build)
