"""The served model: built with a real SavedModel, registered, and loaded where nothing of the pipeline is."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_registry.jobs import register_model

BUILD = """
    import sys
    import tensorflow as tf

    class Model(tf.Module):
        @tf.function(input_signature=[
            tf.TensorSpec((None, None), tf.int32, "token_ids"), tf.TensorSpec((), tf.int32, "max_tokens"),
            tf.TensorSpec((), tf.float32, "temperature"), tf.TensorSpec((), tf.int32, "top_k"),
            tf.TensorSpec((), tf.float32, "top_p"), tf.TensorSpec((), tf.int64, "seed"),
        ])
        def generate(self, token_ids, max_tokens, temperature, top_k, top_p, seed):
            # Says what it was asked, as the bytes of a text; the last token is over its length.
            scaled = [tf.cast(tf.round(temperature * 10), tf.int32), tf.cast(tf.round(top_p * 100), tf.int32)]
            said = tf.stack([max_tokens, top_k, tf.cast(seed, tf.int32), *scaled, 90])
            rows = tf.shape(token_ids)[0]
            made = tf.concat([token_ids[:, -1:], tf.tile(said[None, :], [rows, 1])], axis=1)
            return {"token_ids": made, "lengths": tf.fill([rows], 6)}

    model = Model()
    tf.saved_model.save(model, sys.argv[1], {"generate": model.generate})
"""

PREDICT = """
    import json, sys
    import mlflow, pandas
    mlflow.set_tracking_uri(sys.argv[1])
    model = mlflow.pyfunc.load_model(sys.argv[2])
    params = {"max_tokens": 66, "top_k": 67, "seed": 68, "temperature": 6.9, "top_p": 0.7}
    def failure(params):
        try:
            model.predict(["x"], params=params)
        except Exception as error:
            return str(error)
    print(json.dumps({
        "list": model.predict(["x", "hello", "zy", ""], params=params),
        "frame": model.predict(pandas.DataFrame({"prompt": ["x"]}), params=params),
        "dict": model.predict({"prompt": ["x"]}, params=params),
        "text": model.predict("x", params=params),
        "half a character": model.predict(["ä"], params=params),
        "defaults": model.predict(["x"]),
        "stopped": model.predict(["x", "y"], params={**params, "stop": ["E", "CD"]}),
        "stopped at once": model.predict(["x"], params={**params, "stop": ["x"]}),
        "never stopped": model.predict(["x"], params={**params, "stop": ["no such"]}),
        "empty stop": failure({"stop": [""]}),
        "example": model.input_example,
        "bad": failure({"top_p": 1.5}),
        "modules": [name for name in sys.modules if name.startswith(("gpt2_", "keras"))],
    }))
"""


def run(script, *arguments, folder):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def version_uri(artifacts, make_context, tmp_path):
    run(BUILD, str(tmp_path / "saved"), folder=tmp_path)
    request = pb.RegisterModelRequest(model_uri=artifacts.model(saved_model=tmp_path / "saved"), model_name="served")
    return register_model(request, make_context("served"))[0].uri


def test_text_in_text_out(version_uri, mlflow_uri, tmp_path):
    said = json.loads(run(PREDICT, mlflow_uri, version_uri, folder=tmp_path).splitlines()[-1])
    assert said["list"] == ["xBCDEF", "oBCDEF", "yBCDEF", "<|endoftext|>BCDEF"]
    assert said["frame"] == said["dict"] == said["text"] == ["xBCDEF"]
    assert said["half a character"] == ["\ufffdBCDEF"]
    # max_tokens 128 is no whole character; then top_k 40, seed 0, temperature 1.0, top_p 1.0.
    assert said["defaults"] == ["x\ufffd(\0\nd"]
    assert said["stopped"] == ["xB", "yB"]
    assert said["stopped at once"] == [""]
    assert said["never stopped"] == ["xBCDEF"]
    assert "a stop text must not be empty" in said["empty stop"]
    assert said["example"] == ["Once upon a time"]
    assert "top_p must be over 0 and at most 1" in said["bad"]
    assert [name for name in said["modules"] if name.startswith("gpt2_")] == []
