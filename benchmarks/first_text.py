"""Seconds from a request to the first and the last piece of text, from a trainer that has or has not generated before.

    .venv/bin/python benchmarks/first_text.py [--rounds N] [--backend jax] [--precision float32]

The model has 2.6 million parameters and random weights; 32 tokens are generated. `cold` is a service that has just
started, with an empty folder of compiled programs (nothing generated on this machine yet) or with a full one (a service
that was restarted); `warm` is the same prompt again, `other length` then one of several times its tokens. `command` is
`gpt2 generate` from its start to its end, of a model by its URI. Seconds are medians of the rounds.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2.trainer.v1 import trainer_service_pb2_grpc
from gpt2_common.artifacts import ArtifactWriter
from gpt2_common.vocabulary.byte_symbols import symbol_of_byte
from gpt2_common.vocabulary.files import write_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_contracts.tokenizer import END_TOKEN
from gpt2_trainer.configuration.architecture import Architecture, LayerSizes
from gpt2_trainer.formats.huggingface import write_huggingface
from gpt2_trainer.model.weights import count_parameters, initial_weights

VOCABULARY = 4096
LAYERS = LayerSizes(n_layer=4, n_head=4, n_embd=192, n_ctx=256)
TOKENS = 32
SHORT, LONG = "A short beginning", "A beginning that has several times as many tokens as the other one. " * 2
_START_SECONDS, _TEXT_SECONDS = 60, 300
_PORT = re.compile(rb'"port": (\d+)')


def make_model(folder: Path) -> str:
    """Writes a model artifact with random weights. Returns its URI."""
    symbols = symbol_of_byte()
    letters = [symbols[byte] for byte in b" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;'-()!?"]
    merges = list(product(letters, letters))[: VOCABULARY - len(symbols) - 1]
    tokens = [*symbols.values(), *map("".join, merges), END_TOKEN]
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer, working = folder / "tokenizer", folder / "work"
    for path in (tokenizer, working):
        path.mkdir()
    write_vocabulary(Vocabulary.from_parts(ids, merges), tokenizer)
    architecture = Architecture(layers=LAYERS, vocabulary_size=VOCABULARY, end_token_id=ids[END_TOKEN])
    write_huggingface(working, architecture, initial_weights(architecture, seed=1), tokenizer)
    print(f"{count_parameters(architecture):,} parameters", flush=True)
    return ArtifactWriter((folder / "artifacts" / "model").as_uri(), "model", working, {}, ()).commit().uri


@contextmanager
def trainer(folder: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """A trainer that works in a folder. Yields its address."""
    environment = {
        **os.environ,
        "GPT2_LISTEN": "127.0.0.1:0",
        "GPT2_KAFKA_BOOTSTRAP_SERVERS": "",
        "GPT2_ARTIFACT_ROOT": str(folder / "artifacts"),
        "GPT2_DATABASE_URL": f"sqlite:///{folder / 'jobs.db'}",
        **variables,
    }
    log = folder / "trainer.log"
    with log.open("wb") as errors:
        command = [sys.executable, "-m", "gpt2_trainer"]
        process = subprocess.Popen(command, env=environment, stderr=errors, cwd=folder)
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        process.wait()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while not (found := _PORT.search(log.read_bytes())):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(log.read_text())
        time.sleep(0.05)
    address = f"127.0.0.1:{found[1].decode()}"
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest()
        health_pb2_grpc.HealthStub(channel).Check(request, timeout=_START_SECONDS, wait_for_ready=True)
    return address


def times_of_text(address: str, uri: str, prompt: str) -> tuple[float, float, str]:
    """Seconds to the first and the last piece, and the text."""
    request = pb.GenerateRequest(model_uri=uri, prompt=prompt, max_tokens=TOKENS, seed=1)
    began = time.monotonic()
    with grpc.insecure_channel(address) as channel:
        pieces = trainer_service_pb2_grpc.TrainerServiceStub(channel).Generate(request, timeout=_TEXT_SECONDS)
        text, first = "", None
        for piece in pieces:
            first = first or time.monotonic() - began
            text += piece.text
    return first or 0.0, time.monotonic() - began, text


def time_of_command(address: str, uri: str) -> tuple[float, float, str]:
    """Seconds to the first character and to the end of `gpt2 generate`, and the text."""
    command = [str(Path(sys.executable).with_name("gpt2")), "generate", uri, SHORT]
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, "--max-tokens", str(TOKENS), "--seed", "1"],
        stdout=subprocess.PIPE,
        env={**os.environ, "GPT2_TRAINER_ADDRESS": address},
    )
    assert process.stdout
    start = process.stdout.read(1)
    first = time.monotonic() - began
    rest = process.stdout.read()
    if process.wait():
        raise SystemExit("gpt2 generate failed")
    return first, time.monotonic() - began, (start + rest).decode().removesuffix("\n")


def measure(folder: Path, uri: str, settle: float, variables: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """Seconds of each way, in one round."""
    found, texts = {}, set()
    shutil.rmtree(folder / ".gpt2", ignore_errors=True)
    for state in ("nothing compiled", "compiled before"):
        with trainer(folder, variables) as address:
            time.sleep(settle)
            ways = ((f"cold, {state}", SHORT), ("warm", SHORT), (f"other length, {state}", LONG))
            for name, prompt in ways:
                first, last, text = times_of_text(address, uri, prompt)
                found[name] = first, last
                texts.add((prompt, text))
            for _ in range(2):
                first, last, text = time_of_command(address, uri)
                found["command, warm"] = first, last
                texts.add((SHORT, text))
    if len(texts) != 2:
        raise SystemExit(f"the texts of one seed differ: {texts}")
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds that medians are of")
    parser.add_argument("--settle", type=float, default=0.0, help="seconds between start of the service and request")
    parser.add_argument("--backend", default="jax", help="backend of Keras")
    parser.add_argument("--precision", default="float32", help="float32 or bfloat16")
    arguments = parser.parse_args()
    variables = {"GPT2_GENERATE_BACKEND": arguments.backend, "GPT2_GENERATE_PRECISION": arguments.precision}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        uri = make_model(folder)
        rounds = []
        for _ in range(arguments.rounds):
            rounds.append(measure(folder, uri, arguments.settle, variables))
            print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    print("| | first piece, s | last piece, s |\n|---|---:|---:|")
    for name in rounds[0]:
        first, last = (median(values) for values in zip(*(one[name] for one in rounds), strict=True))
        print(f"| {name} | {first:.2f} | {last:.2f} |")


if __name__ == "__main__":
    main()
