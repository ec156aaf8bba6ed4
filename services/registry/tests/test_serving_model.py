"""The served model: built with a real SavedModel, registered, and loaded where nothing of the pipeline is."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.process

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
    import mlflow, numpy, pandas
    mlflow.set_tracking_uri(sys.argv[1])
    model = mlflow.pyfunc.load_model(sys.argv[2])
    params = {"max_tokens": 66, "top_k": 67, "seed": 68, "temperature": 6.9, "top_p": 0.7}
    def failure(given, params=params):
        try:
            return model.predict(given, params=params)
        except mlflow.exceptions.MlflowException as error:
            return f"{error.error_code}: {error}"
    frame = pandas.DataFrame
    print(json.dumps({
        "list": model.predict(["x", "hello", "zy", ""], params=params),
        "array": model.predict(numpy.array(["x"]), params=params),
        "series": model.predict(pandas.Series(["x"]), params=params),
        "frame": model.predict(frame({"prompt": ["x"]}), params=params),
        "unnamed column": model.predict(frame(["x"]), params=params),
        "first column": model.predict(frame({"lang": ["d"], "prompt": ["x"]}), params=params),
        "last column": model.predict(frame({"prompt": ["x"], "lang": ["d"]}), params=params),
        "numbers first": model.predict(frame({"id": [7], "prompt": ["x"], "new": [True]}), params=params),
        "dict": model.predict({"prompt": ["x"]}, params=params),
        "two in a dict": model.predict({"prompt": ["x", "hello"]}, params=params),
        "text": model.predict("x", params=params),
        "half a character": model.predict(["ä"], params=params),
        "defaults": model.predict(["x"]),
        "stopped": model.predict(["x", "y"], params={**params, "stop": ["E", "CD"]}),
        "stopped at once": model.predict(["x"], params={**params, "stop": ["x"]}),
        "never stopped": model.predict(["x"], params={**params, "stop": ["no such"]}),
        "first complete stop": model.predict(["x"], params={**params, "stop": ["BCDEF", "DE"]}),
        "no such column": failure(frame({"lang": ["de"], "text": ["x"]})),
        "another name": failure(frame({"text": ["x"]})),
        "no name for two": failure(frame([["x", "y"]])),
        "refused": {
            str(value): failure(given) for value in (None, 3, 2.5, float("nan"), True, b"x", ["x", ["y"]])
            for given in [["x", value]]
        },
        "missing": failure(frame({"prompt": pandas.Series(["x", pandas.NA], dtype="string")})),
        "old export": failure(["x"], {"repetition_penalty": 1.5}),
        "unknown": failure(["x"], {"temprature": 1.0}),
        "example": model.input_example,
        "columns": [column.name for column in model.metadata.get_input_schema()],
        "modules": [name for name in sys.modules if name.startswith(("gpt2_", "keras"))],
    }))
"""

SERVE = """
    import json, os, sys
    from fastapi.testclient import TestClient
    import mlflow
    mlflow.set_tracking_uri(sys.argv[1])
    os.environ["__pyfunc_model_path__"] = sys.argv[2]
    from mlflow.pyfunc.scoring_server.app import app
    client = TestClient(app)
    params = {"max_tokens": 66, "top_k": 67, "seed": 68, "temperature": 6.9, "top_p": 0.7}
    answers = []
    for body in json.loads(sys.stdin.read()):
        answer = client.post("/invocations", content=json.dumps({"params": params, **body}), headers={
            "Content-Type": "application/json"})
        answers.append([answer.status_code, answer.json()])
    print(json.dumps(answers))
"""


def run(script, *arguments, folder, sent=None):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False, input=sent)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def version_uri(shared_registry, shared_artifacts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    run(BUILD, str(folder / "model"), folder=folder)
    model = shared_artifacts.model(saved_model=folder / "model")
    [version] = shared_registry.register(model_uri=model, model_name="served").outputs
    return version.uri


@pytest.fixture
def serve(version_uri, mlflow_uri, tmp_path):
    """What MLflow's scoring server answers to requests, as pairs of status and content."""

    def ask(requests):
        return json.loads(
            run(SERVE, mlflow_uri, version_uri, folder=tmp_path, sent=json.dumps(requests)).splitlines()[-1]
        )

    return ask


def test_text_in_text_out(version_uri, mlflow_uri, tmp_path):
    said = json.loads(run(PREDICT, mlflow_uri, version_uri, folder=tmp_path).splitlines()[-1])
    assert said["list"] == ["xBCDEF", "oBCDEF", "yBCDEF", "<|endoftext|>BCDEF"]
    for form in ("array", "series", "frame", "unnamed column", "dict", "text"):
        assert said[form] == ["xBCDEF"], form
    for form in ("first column", "last column", "numbers first"):
        assert said[form] == ["xBCDEF"], f"the text is in the column prompt: {form}"
    assert said["two in a dict"] == ["xBCDEF", "oBCDEF"]
    assert said["half a character"] == ["\ufffdBCDEF"]
    # max_tokens 128 is no whole character; then top_k 40, seed 0, temperature 1.0, top_p 1.0.
    assert said["defaults"] == ["x\ufffd(\0\nd"]
    assert said["stopped"] == ["xB", "yB"]
    assert said["stopped at once"] == [""]
    assert said["never stopped"] == ["xBCDEF"]
    assert said["first complete stop"] == ["xBC"]
    assert said["example"] == ["Once upon a time"]
    assert "prompt" in said["columns"]
    assert [name for name in said["modules"] if name.startswith("gpt2_")] == []
    for case in ("no such column", "another name"):
        assert said[case].startswith("INVALID_PARAMETER_VALUE: prompt: the input has no column of this name"), case
    assert "several columns" in said["no name for two"]
    for value, message in said["refused"].items():
        assert message.startswith("INVALID_PARAMETER_VALUE: prompt: row 1, counted from 0, is "), (value, message)
    assert "is null" in said["refused"]["None"]
    assert "is null" in said["refused"]["nan"]
    assert "is null" in said["missing"]
    assert "3 (int), no text" in said["refused"]["3"]
    assert "repetition_penalty: this model was exported before" in said["old export"]
    # MLflow itself leaves out parameters that the signature does not have, and warns in the server's log.
    assert said["unknown"] == ["x\ufffd(\0\nd"]


def test_the_scoring_server_takes_the_column_prompt(serve):
    answers = serve(
        [
            {"inputs": ["x", "hello"]},
            {"inputs": "x"},
            {"inputs": {"prompt": ["x", "hello"]}},
            {"inputs": [{"lang": "de", "prompt": "x"}, {"lang": "en", "prompt": "hello"}]},
            {"instances": ["x", "hello"]},
            {"instances": [{"n": 3, "prompt": "x"}]},
            {"dataframe_split": {"columns": ["lang", "prompt"], "data": [["de", "x"], ["en", "hello"]]}},
            {"dataframe_split": {"columns": ["n", "prompt", "z"], "data": [[1, "x", 0.5]]}},
            {"dataframe_split": {"data": [["x"]]}},
            {"dataframe_records": [{"prompt": "x", "lang": "de"}]},
        ]
    )
    one, two = {"predictions": ["xBCDEF"]}, {"predictions": ["xBCDEF", "oBCDEF"]}
    assert [content for _, content in answers] == [two, one, two, two, two, one, two, one, one, one]
    assert {status for status, _ in answers} == {200}


def test_the_scoring_server_says_what_is_wrong_and_nothing_of_itself(serve):
    inputs = {"inputs": ["x"]}
    cases = [
        *(({"inputs": ["x", value]}, "prompt: row 1") for value in (None, 3, 2.5, True, {"a": 1})),
        *(({"instances": [value]}, "prompt: row 0") for value in (None, 3)),
        ({"instances": [{"prompt": None}]}, "prompt: row 0, counted from 0, is null"),
        ({"inputs": {"prompt": ["x", None]}}, "prompt: row 1"),
        ({"inputs": [{"prompt": "x"}, {"prompt": None}]}, "prompt: row 1"),
        ({"inputs": [["x", "y"]]}, "several columns"),
        ({"inputs": ["\ud800"]}, "U+D800"),
        ({"dataframe_split": {"columns": ["prompt"], "data": [["x"], [None]]}}, "prompt: row 1"),
        ({"dataframe_split": {"columns": ["prompt"], "data": [[12]]}}, "12 (int), no text"),
        ({"dataframe_split": {"columns": ["lang"], "data": [["de"]]}}, "no column of this name"),
        ({"dataframe_records": [{"text": "x"}]}, "no column of this name"),
        *(
            ({**inputs, "params": {name: value}}, f"{name}: must be ")
            for name, value in [
                ("max_tokens", 0), ("max_tokens", 10**12), ("max_tokens", None), ("temperature", -1),
                ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", None), ("top_p", 0),
                ("top_p", 1.5), ("top_k", -1), ("top_k", 10**10), ("seed", None), ("seed", 2**63), ("seed", 10**30),
                ("stop", [""]), ("stop", [None]), ("stop", ["x"] * 17), ("repetition_penalty", 0),
                ("no_repeat_ngram_size", -1),
            ]
        ),
        *(
            ({**inputs, "params": {name: value}}, name)
            for name, value in [("seed", True), ("top_k", "3"), ("top_k", 1.5), ("stop", [1]), ("stop", "x")]
        ),
    ]  # fmt: skip
    for (request, expected), (status, content) in zip(cases, serve([request for request, _ in cases]), strict=True):
        assert status == 400, (request, content)
        assert content["error_code"] == "INVALID_PARAMETER_VALUE", (request, content)
        assert expected in content["message"], (request, content)
        assert "stack_trace" not in content, request
        assert "Traceback" not in json.dumps(content), request
        assert "/" not in content["message"], (request, content)
