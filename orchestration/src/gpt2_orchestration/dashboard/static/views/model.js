// One model: its versions, and who moved which label when and why. Labels are moved from here, and versions compared.

import { get, post } from "../api.js";
import { ask } from "../dialog.js";
import { element, foreign, hidden, latest, renew, row, table } from "../elements.js";
import { clock, figure, shortDigest, words } from "../text.js";

const COLUMNS = ["Version", "Labels", "Validation loss, nats", "Registered", "Run", "Choose"];
const HISTORY = ["When", "Label", "From", "To", "Who", "Why"];
const USUAL_LABELS = ["staging", "production", "retired"];
const NAME = "gpt2-dashboard-actor";

export function modelView(name) {
  const path = `models/${encodeURIComponent(name)}`;
  const versions = table("Versions", COLUMNS, [], { class: "versions" });
  const changes = table("Changes of labels", HISTORY, [], { class: "changes" });
  const note = element("p", { class: "note" });
  const chosen = new Set();
  const compare = element("button", { type: "button", disabled: true, click: openComparison }, "Compare the chosen versions");
  const root = element("div", {}, element("p", { class: "actions" }, compare), versions, note, element("h2", {}, "Changes of labels"), changes);
  let known = [];

  const read = latest(() => get(path), (answer) => {
    known = [...new Set([...answer.changes.map((change) => change.label), ...USUAL_LABELS])];
    note.textContent = answer.more ? "Older versions are not shown: gpt2 models list has all." : "";
    renew(versions.tBodies[0], answer.versions.map(versionRow));
    renew(changes.tBodies[0], answer.changes.map(changeRow));
  });

  function versionRow(version) {
    const { label_error: problem, run_id: run } = version;
    return row(COLUMNS, [
      element("details", {}, element("summary", {}, `Version ${version.version}`), facts(version)),
      element("div", { class: "chips" }, version.labels.map((label) => labelChip(label, version)), problem && foreign(`Label ${problem}`, "p", { class: "error" })),
      figure(version.metrics.validation_loss ?? null),
      clock(version.create_time),
      run ? element("a", { href: `#/runs/${encodeURIComponent(run)}` }, foreign(run)) : "–",
      element("div", { class: "actions" },
        element("button", { type: "button", click: () => askForLabel(version) }, "Set a label…", hidden(` of version ${version.version}`)),
        element("label", {}, element("input", { type: "checkbox", checked: chosen.has(version.version), change: (event) => choose(version.version, event.target.checked) }), "Compare", hidden(` version ${version.version}`)),
      ),
    ]);
  }

  function choose(number, isChosen) {
    isChosen ? chosen.add(number) : chosen.delete(number);
    compare.disabled = chosen.size < 2;
  }

  function openComparison() {
    location.hash = `#/comparisons/${encodeURIComponent(name)}/${[...chosen].sort((one, other) => one - other).join(",")}`;
  }

  function labelChip(label, version) {
    return element(
      "span",
      { class: "chip" },
      foreign(label),
      element("button", { type: "button", class: "remove", title: `Take ${label} away…`, click: () => askToClear(label, version) }, element("span", { "aria-hidden": "true" }, "×"), hidden(`Take ${label} away from version ${version.version}`)),
    );
  }

  function askForLabel(version) {
    ask({
      title: `Set a label of version ${version.version}`,
      text: "The version that holds it now loses it.",
      fields: [{ name: "label", label: "Label", required: true, limit: 255, choices: known }, ...whoAndWhy()],
      button: "Set the label",
      send: (content) => change({ ...content, version: version.version }),
    });
  }

  function askToClear(label, version) {
    ask({
      title: `Take ${label} away from version ${version.version}?`,
      text: "No version holds it then.",
      fields: whoAndWhy(),
      button: "Take it away",
      send: (content) => change({ ...content, label, version: 0 }),
    });
  }

  async function change(content) {
    localStorage.setItem(NAME, content.actor);
    await post(`${path}/label`, content);
    await read();
  }

  return { title: name, page: "#/models", root, read, hear: (kind, content) => kind === "label" && content.name === name && read().catch(() => null) };
}

function whoAndWhy() {
  return [
    { name: "actor", label: "Your name (optional)", limit: 200, value: localStorage.getItem(NAME) ?? "" },
    { name: "reason", label: "Why", limit: 1000 },
  ];
}

function facts(version) {
  const measured = version.evaluations.flatMap(({ measurement, metrics }) => Object.entries(metrics).map(([name, value]) => [`${words(name)} on ${shortDigest(measurement.digest)}`, figure(value)]));
  const metrics = Object.entries(version.metrics).map(([name, value]) => [words(name), figure(value)]);
  const tags = Object.entries(version.tags).map(([name, value]) => [name, value]);
  return element("dl", {}, [["URI", version.uri], ...metrics, ...measured, ...tags].map(([name, value]) => [foreign(name, "dt"), foreign(value, "dd")]));
}

function changeRow(change) {
  return row(HISTORY, [
    clock(change.time),
    foreign(change.label),
    change.previous_version || "none",
    change.version || "none",
    foreign(change.actor),
    change.reason && foreign(change.reason),
  ]);
}
