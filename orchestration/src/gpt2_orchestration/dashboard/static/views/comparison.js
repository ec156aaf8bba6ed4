// Versions of a model side by side: metrics, what was measured on the same text, parameters that differ, digests, samples.

import { get } from "../api.js";
import { element, foreign, hidden, latest, row, table } from "../elements.js";
import { figure, shortDigest, words } from "../text.js";

export function comparisonView(name, numbers) {
  const path = `models/${encodeURIComponent(name)}/comparison?versions=${encodeURIComponent(numbers)}`;
  const back = element("p", {}, element("a", { href: `#/models/${encodeURIComponent(name)}` }, "All versions"));
  const content = element("div");
  const root = element("div", {}, back, content);

  const read = latest(() => get(path), (answer) => {
    const columns = ["", ...answer.versions.map((version) => `Version ${version.version}`)];
    const labels = row(columns, ["Labels", ...answer.versions.map((version) => foreign(version.labels.join(", ") || "none"))]);
    const measured = answer.evaluations.map((evaluation) => [
      element("h3", {}, foreign(described(evaluation.measurement))),
      compared("What was measured", columns, evaluation.metrics.map((line) => metricRow(columns, line))),
    ]);
    content.replaceChildren(
      element("h2", {}, "Metrics"),
      compared("Metrics", columns, [labels, ...answer.metrics.map((line) => metricRow(columns, line))]),
      element("h2", {}, "Measured on the same text"),
      ...(measured.length ? measured.flat() : [element("p", { class: "note" }, `Nothing yet: gpt2 models compare ${name} ${numbers.replaceAll(",", " ")} --dataset URI measures them.`)]),
      element("h2", {}, "Parameters that differ"),
      answer.parameters.length ? compared("Parameters that differ", columns, answer.parameters.map((line) => texts(columns, line, String))) : element("p", { class: "note" }, "None."),
      element("h2", {}, "Made from"),
      compared("Made from", columns, answer.lineage.map((line) => texts(columns, line, shortDigest))),
      element("h2", {}, "Samples"),
      ...answer.samples.flatMap((text, index) => [
        element("h3", {}, columns[index + 1]),
        text ? foreign(text, "pre", { tabindex: "0", "aria-label": `Samples of ${columns[index + 1]}` }) : element("p", { class: "note" }, "None."),
      ]),
    );
  });

  return { title: `${name}: versions ${numbers.replaceAll(",", ", ")}`, page: "#/models", root, read, hear: (kind, change) => kind === "label" && change.name === name && read().catch(() => null) };
}

function compared(caption, columns, rows) {
  return table(caption, columns, rows, { class: "comparison" });
}

function described(measurement) {
  const how = measurement.kind === "dataset" ? `${measurement.sequences} sequences of ${measurement.context_length} tokens` : "LAMBADA";
  return `${measurement.uri} (${how}, sha256 ${shortDigest(measurement.digest)})`;
}

/** A row of metrics. The best is marked where one direction is better. */
function metricRow(columns, { name, values }) {
  const known = values.filter((value) => value !== null);
  const best = /loss$|perplexity$|per_byte$/.test(name) ? Math.min(...known) : /accuracy$/.test(name) ? Math.max(...known) : null;
  const isTelling = new Set(known).size > 1;
  const cells = values.map((value) => (isTelling && value === best ? element("strong", {}, figure(value), hidden(" (the best)")) : figure(value)));
  return row(columns, [foreign(words(name)), ...cells]);
}

function texts(columns, { name, values }, shorten) {
  return row(columns, [foreign(words(name)), ...values.map((value) => (value ? foreign(shorten(value)) : "–"))]);
}
