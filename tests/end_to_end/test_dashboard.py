"""The dashboard in a browser, on the real stack: a run as it goes, labels moved, errors shown, nothing executed."""

import os
import re
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from google.protobuf import json_format
from kafka import KafkaProducer
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from gpt2.exporter.v1.exporter_service_pb2 import ExportCorpusRequest
from gpt2.registry.v1.registry_service_pb2 import RecordEvaluationRequest, RegisterModelRequest
from gpt2.trainer.v1.trainer_service_pb2 import EvaluateModelRequest, TrainModelRequest
from gpt2_contracts.events import DEFAULT_TOPIC, dead_letter_topic
from gpt2_orchestration import dashboard
from gpt2_orchestration.client.service_client import connect
from gpt2_orchestration.stack.control import stack_status

from .browser import Browser, open_browser, why_there_is_none

pytestmark = pytest.mark.skipif(bool(why_there_is_none()), reason=why_there_is_none())

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1> \"'&amp; \u202edlrow"
SEEN = HOSTILE.replace("\u202e", "⟨U+202E⟩")
RUN = "seen-in-a-browser"
LONG_RUN = "stopped-in-a-browser"
MODEL = "seen"
STYLE = (Path(dashboard.__file__).with_name("static") / "style.css").read_text()


@pytest.fixture(scope="module")
def browser(stack):
    with open_browser(f"{stack.addresses.dashboard_uri}/") as opened:
        yield opened


@pytest.fixture(scope="module")
def followed(stack, browser) -> list[str]:
    """Opens the list of runs, then starts a run, and returns what its line showed, in the order of time."""
    texts = stack.mongodb["test"]["seen"]
    texts.drop()
    licence = (Path(__file__).parents[2] / "LICENSE").read_text().split("\n\n")
    texts.insert_many({"_id": f"{number:03d}", "text": text} for number, text in enumerate(licence) if text)
    browser.open("#/runs")
    stages = [
        {"start": "TrainTokenizer", "request": {"vocabulary_size": 300}},
        {"start": "EncodeCorpus", "request": {"validation_fraction": 0.2}},
        {"start": "TrainModel", "request": {"model": SIZES, "config": TRAINING}},
        {"start": "ExportModel"},
        {"start": "RegisterModel", "request": REGISTRATION},
    ]
    request = {
        "job": {"run_id": RUN, "plan": {"stages": stages}},
        "source": {"database": "test", "collections": ["seen"]},
    }
    with connect("exporter", stack.client) as exporter:
        exporter.call("ExportCorpus", json_format.ParseDict(request, ExportCorpusRequest()))
    seen: list[str] = []

    def has_ended() -> bool:
        line = browser.run(LINE, RUN)
        if line and line not in seen:
            seen.append(line)
        assert not seen or "failed" not in seen[-1], seen[-1]
        return bool(seen) and "succeeded" in seen[-1]

    # A whole run, which takes minutes on a machine that does other things beside it.
    browser.until(has_ended, 600)
    return seen


SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 32}
TRAINING = {
    "steps": 40,
    "batch_size": 4,
    "learning_rate": 0.01,
    "log_every": 10,
    "sample_length": 4,
    "sample_prompt": HOSTILE,
}
REGISTRATION = {"model_name": MODEL, "label": "production", "label_gate": {"max_validation_loss": 0.001}}
LINE = """const lines = [...document.querySelectorAll('.runs tbody tr')];
    const line = lines.find(row => row.innerText.includes(arguments[0]));
    return line && [line.cells[1], line.cells[3]].map(cell => cell.innerText).join(' ')"""


def test_progress_is_seen_and_a_run_stopped_without_a_reload(browser, followed, stack):
    browser.open("#/runs")
    browser.run("window.notReloaded = true")
    with connect("tokenizer", stack.client) as tokenizer:
        [dataset] = tokenizer.get(f"{RUN}/encode-corpus").outputs
    training = {"model": SIZES, "config": {**TRAINING, "steps": 10_000_000}, "dataset_uri": dataset.uri}
    with connect("trainer", stack.client) as trainer:
        request = json_format.ParseDict(training, TrainModelRequest())
        # As a pipeline names it: the stage, and a part of its cache key.
        request.job.job_id = f"{LONG_RUN}/train_model.9cb46c01"
        trainer.call("TrainModel", request)
    seen: set[str] = set()

    def moves_on() -> bool:
        seen.add(browser.run(LINE, LONG_RUN) or "")
        done = {re.search(r"([\d,]+) of 10,000,000 steps · [\d.,]+/s · \w+ left · loss", line) for line in seen}
        return len({match[1] for match in done if match}) > 2

    browser.until(moves_on, 600)
    browser.click(".runs a", LONG_RUN)
    browser.click(".actions button", "Stop this run")
    browser.run("document.querySelector('#ask-reason').value = arguments[0]", HOSTILE)
    browser.click("dialog button", "Stop the run")
    browser.until(lambda: browser.text(".badge") == "cancelled")
    browser.until(lambda: SEEN in browser.text(".stages .error"))
    assert browser.text(".stages summary") == "train model"
    assert browser.run("return window.notReloaded") is True


def test_a_run_has_curves_samples_and_lineage(browser, followed):
    assert f"{MODEL} version 1" in followed[-1]
    browser.open(f"#/runs/{RUN}")
    browser.until(lambda: browser.find(".charts .line.series-1"))
    browser.until(lambda: SEEN in browser.text(".samples"))
    cards = browser.run("return [...document.querySelectorAll('.card .kind')].map(card => card.innerText)")
    assert cards == [
        "Source: MongoDB: test.seen", "corpus", "tokenizer", "dataset", "checkpoint", "logs", "samples", "model",
        f"{MODEL} version 1",
    ]  # fmt: skip
    assert "Made of corpus, tokenizer." in browser.run("return document.querySelector('.card.dataset').textContent")
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, ".lines path")) == 10

    plot = browser.find(".plot")
    assert re.search(r"Loss, nats per token: loss from [\d.]+ at step \d+", plot.get_attribute("aria-label"))
    assert "step 40" in browser.text(".readout")
    plot.send_keys(Keys.HOME)
    assert "step 0" in browser.text(".readout")
    browser.click("figure summary")
    browser.until(lambda: "40" in browser.text("figure table"))


AXES = [
    ([0, 0.0005, 0.001, 0.0015], ["0", "0.0005", "0.001", "0.0015"]),
    ([0, 0.00002, 0.0001], ["0", "2e−5", "1e−4"]),
    ([-0.5, 0, 0.5], ["-0.5", "0", "0.5"]),
    ([6, 6.5, 7], ["6", "6.5", "7"]),
    ([0, 20_000], ["0", "20,000"]),
]


@pytest.mark.parametrize(("ticks", "labels"), AXES)
def test_the_labels_of_an_axis_are_written_alike(browser, ticks, labels):
    browser.open("#/runs")
    assert browser.run("return import('/text.js').then(text => text.axisLabels(arguments[0]))", ticks) == labels


def test_a_label_is_moved_by_clicking(browser, followed):
    browser.open("#/models")
    browser.until(lambda: MODEL in browser.text(".models"))
    browser.click(".models a", MODEL)
    browser.until(lambda: browser.find(".versions td"))
    assert "not set: its validation loss" in browser.text(".versions").replace("\n", " ")
    assert browser.run("return document.activeElement.tagName") == "H1"
    set_label(browser, "staging", HOSTILE)
    browser.until(lambda: browser.find(".versions .chip"))
    browser.until(lambda: "ann" in browser.text(".changes"))
    assert browser.text(".chip bdi") == "staging"
    browser.until(lambda: SEEN in browser.text(".changes"))

    browser.click(".chip .remove")
    browser.click("dialog button", "Take it away")
    browser.until(lambda: not browser.find(".versions .chip"))
    browser.until(lambda: browser.text(".changes").count("staging") == 2)


def set_label(browser: Browser, label: str, reason: str) -> None:
    browser.click("button", "Set a label")
    for name, value in (("label", label), ("actor", "ann"), ("reason", reason)):
        field = browser.find(f"#ask-{name}")
        field.clear()
        # Typed by a script, as a keyboard here has no such letters.
        browser.run("arguments[0].value = arguments[1]", field, value)
    browser.click("dialog button", "Set the label")


def test_a_refused_label_is_the_service_s_sentence_and_changes_nothing(browser, followed):
    browser.open(f"#/models/{MODEL}")
    browser.until(lambda: browser.find(".versions td"))
    before = browser.text(".changes")
    set_label(browser, "v7", "x" * 1001)
    browser.until(lambda: "label: " in browser.text("dialog [role=alert]"))
    lines = browser.text("dialog [role=alert]").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["2 errors", "label", "reason"]
    browser.click("dialog button", "Leave it")
    browser.until(lambda: not browser.find("dialog"))
    assert browser.text(".changes") == before


@pytest.fixture(scope="module")
def second_version(stack, followed) -> str:
    """A second version of the model, the first one's on the run's dataset measured. Returns the dataset's URI."""
    with connect("tokenizer", stack.client) as tokenizer, connect("trainer", stack.client) as trainer:
        [dataset] = tokenizer.get(f"{RUN}/encode-corpus").outputs
        [model] = trainer.get(f"{RUN}/export-model").outputs
        measured = trainer.call("EvaluateModel", EvaluateModelRequest(model_uri=model.uri, dataset_uri=dataset.uri)).job
        [evaluation] = trainer.follow(measured, lambda _: None).outputs
    with connect("registry", stack.client) as registry:
        asked = RegisterModelRequest(model_uri=model.uri, model_name=MODEL, tags={"note": HOSTILE})
        registry.follow(registry.call("RegisterModel", asked).job, lambda _: None)
        registry.call(
            "RecordEvaluation",
            RecordEvaluationRequest(model_name=MODEL, version=1, evaluation_uri=evaluation.uri),
        )
    return dataset.uri


def test_versions_are_chosen_and_compared(browser, second_version):
    browser.open(f"#/models/{MODEL}")
    browser.until(lambda: len(browser.driver.find_elements(By.CSS_SELECTOR, ".versions tbody tr")) == 2)
    compare = browser.find(".actions button")
    assert not compare.is_enabled()
    for box in browser.driver.find_elements(By.CSS_SELECTOR, ".versions input[type=checkbox]"):
        box.click()
    compare.click()
    browser.until(lambda: browser.find(".comparison td"))
    assert browser.text("h1") == f"{MODEL}: versions 1, 2"
    tables = browser.run(COMPARED)
    [losses] = [row[1:] for row in tables["Metrics"] if row[0] == "validation loss"]
    assert losses[0] != "–"
    [loss] = [row for row in tables["What was measured"] if row[0] == "loss"]
    assert float(loss[1]) > 0
    assert loss[2] == "–"
    assert second_version in browser.text("main")
    assert browser.text("main pre").startswith("--- sample 1 ---")

    browser.open(f"#/comparisons/{MODEL}/1,7")
    browser.until(lambda: "has no version 7" in browser.text(".failure"))


COMPARED = """return Object.fromEntries([...document.querySelectorAll('.comparison')].map(table =>
    [table.caption.innerText, [...table.tBodies[0].rows].map(row => [...row.cells].map(cell => cell.innerText))]))"""


def test_a_service_that_is_killed_is_named_and_what_is_shown_stays(browser, followed, stack):
    browser.open("#/runs")
    browser.until(lambda: RUN in browser.text(".runs"))
    [pid] = [process.pid for process in stack_status(stack.folder) if process.name == "tokenizer"]
    os.kill(pid, signal.SIGKILL)
    browser.until(lambda: "tokenizer is away" in browser.text("#troubles"))
    assert "start it" in browser.text("#troubles")
    assert "succeeded" in browser.run(LINE, RUN)
    browser.until(lambda: not browser.text("#troubles"))


def test_a_dead_letter_is_shown_as_text_and_sent_again(browser, stack):
    producer = KafkaProducer(bootstrap_servers=stack.addresses.kafka_bootstrap_servers, acks="all")
    headers = [("dlq_reason", HOSTILE.encode()), ("dlq_topic", DEFAULT_TOPIC.encode()), ("ce_type", b"none")]
    producer.send(dead_letter_topic(DEFAULT_TOPIC), value=(HOSTILE * 20_000).encode()[:900_000], headers=headers).get(
        30
    )
    producer.close()
    browser.open("#/dead-letters")
    browser.until(lambda: SEEN in browser.text(".letters .error"))
    browser.click(".letters summary")
    browser.until(lambda: SEEN in browser.text(".letters pre"))
    browser.click(".letters button", "Send again")
    browser.click("dialog button", "Send again")
    browser.until(lambda: not browser.find("dialog"))


def test_an_unknown_run_is_an_error_with_a_way_on(browser, stack):
    browser.open("#/runs/%3Cimg%20src=x%20onerror=alert(1)%3E")
    browser.until(lambda: browser.find(".failure"))
    assert "no service has a job of run <img" in browser.text(".failure")
    assert browser.text("h1") == "<img src=x onerror=alert(1)>"
    [refused] = browser.complaints()[-1:]
    assert "404" in refused


PLACES = [
    "#/runs",
    f"#/runs/{RUN}",
    "#/models",
    f"#/models/{MODEL}",
    f"#/comparisons/{MODEL}/1,2",
    "#/dead-letters",
    "#/services",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_page_is_quiet_fits_a_phone_and_can_be_used_by_ear_and_keyboard(browser, second_version, place):
    browser.complaints()
    browser.hosts()
    browser.resize(360, 740, phone=True)
    browser.open(place)
    browser.until(lambda: browser.text("#connection") == "Live")
    browser.until(lambda: browser.find("main tbody tr, main li"))
    assert browser.run("return document.documentElement.scrollWidth") <= 360
    browser.command("Emulation.clearDeviceMetricsOverride")

    assert browser.run(UNLABELLED) == []
    assert browser.run(DUPLICATE_IDS) == []
    levels = browser.run(HEADINGS)
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert browser.run("return document.querySelectorAll('main').length") == 1
    assert nameless(browser) == []
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0

    assert browser.complaints() == []
    assert browser.hosts() == {browser.home.split("/")[2]}


UNLABELLED = """return [...document.querySelectorAll('input, select')]
    .filter(field => !field.labels.length || !field.labels[0].innerText).map(field => field.outerHTML)"""
DUPLICATE_IDS = """const ids = [...document.querySelectorAll('[id]')].map(element => element.id);
    return ids.filter((id, index) => ids.indexOf(id) !== index)"""
HEADINGS = "return [...document.querySelectorAll('h1, h2, h3, h4')].map(heading => Number(heading.tagName[1]))"


def nameless(browser: Browser) -> list[str]:
    """Roles of what can be used or looked at, and has no name, as Chromium tells screen readers."""
    nodes = browser.command("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "link", "textbox", "searchbox", "combobox", "progressbar", "img", "table", "region"}
    return [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in named
        and not node.get("name", {}).get("value", "").strip()
    ]


def test_the_keyboard_goes_through_the_page_in_its_order(browser, followed):
    browser.open("#/runs")
    browser.until(lambda: browser.find(".runs tbody tr a"))
    order = []
    for _ in range(9):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        order.append(browser.run("return document.activeElement.innerText || document.activeElement.id"))
        assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") != "none"
    pages = ["GPT-2 pipeline", "Runs", "Models", "Dead letters", "Services"]
    assert order[:7] == ["Skip to the content", *pages, "filter"]
    assert order[7].startswith("all states")


def palettes() -> list[dict[str, str]]:
    """The colours by name, of the light and of the dark page."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in blocks]


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_every_colour_can_be_read(palette):
    for ground in ("ground", "raised"):
        for text in ("text", "quiet", "accent", "good", "bad", "stopped", "waiting", "first", "second"):
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    assert contrast(palette["on-accent"], palette["accent"]) >= 4.5
