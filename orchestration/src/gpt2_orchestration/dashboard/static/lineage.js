// What was made of what: cards in the order of making, joined by lines, and said in words on each card.

import { element, foreign, svg } from "./elements.js";
import { counted, shortDigest, words } from "./text.js";

const KINDS = { source: "Source", version: "Model version" };

export class Lineage {
  constructor() {
    this.lines = svg("svg", { class: "lines", "aria-hidden": "true" });
    this.layers = element("ol", { class: "layers" });
    this.root = element("div", { class: "lineage" }, this.lines, this.layers);
    this.edges = [];
    this.cards = new Map();
    this.resizing = new ResizeObserver(() => this.draw());
  }

  close() {
    this.resizing.disconnect();
  }

  /** Shows the graph of a run. */
  show(runId, { nodes, edges }) {
    const looks = JSON.stringify([nodes, edges]);
    if (looks === this.looks) return;
    this.looks = looks;
    this.resizing.disconnect();
    this.edges = edges;
    const byId = new Map(nodes.map((node) => [node.id, node]));
    this.cards = new Map(nodes.map((node) => [node.id, card(runId, node, edges.filter(([, to]) => to === node.id).map(([from]) => title(byId.get(from))))]));
    const layers = [];
    for (const node of nodes) (layers[depth(node.id, edges)] ??= []).push(this.cards.get(node.id));
    this.layers.replaceChildren(...layers.filter(Boolean).map((cards) => element("li", {}, cards)));
    if (!nodes.length) this.layers.replaceChildren(element("li", {}, element("p", { class: "note" }, "Nothing is made yet.")));
    this.resizing.observe(this.root);
    for (const one of this.cards.values()) this.resizing.observe(one);
    this.draw();
  }

  draw() {
    const frame = this.root.getBoundingClientRect();
    this.lines.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
    const paths = this.edges.map(([from, to]) => {
      const start = this.cards.get(from).getBoundingClientRect();
      const end = this.cards.get(to).getBoundingClientRect();
      const across = end.left >= start.right;
      const [x1, y1] = across ? [start.right, middle(start.top, start.bottom)] : [middle(start.left, start.right), start.bottom];
      const [x2, y2] = across ? [end.left, middle(end.top, end.bottom)] : [middle(end.left, end.right), end.top];
      const at = (x, y) => `${(x - frame.left).toFixed(1)} ${(y - frame.top).toFixed(1)}`;
      const bend = across ? [at(middle(x1, x2), y1), at(middle(x1, x2), y2)] : [at(x1, middle(y1, y2)), at(x2, middle(y1, y2))];
      return svg("path", { d: `M${at(x1, y1)}C${bend[0]} ${bend[1]} ${at(x2, y2)}` });
    });
    this.lines.replaceChildren(...paths);
  }
}

function card(runId, node, parents) {
  const counts = Object.entries(node.counts).filter(([unit]) => unit !== node.kind).map(([unit, value]) => counted(unit, value));
  const by = node.made_by;
  const facts = [
    ["Made by", by ? by.job_id : ""],
    ["URI", node.uri],
    ["SHA-256", node.digest],
    ...Object.entries(node.properties).filter(([name]) => name !== "snapshot").map(([name, value]) => [words(name), value]),
  ].filter(([, value]) => value);
  return element(
    "article",
    { class: `card ${node.kind}` },
    element("p", { class: "kind" }, foreign(title(node))),
    element("p", { class: "facts" }, counts.slice(0, 3).map((text) => element("span", {}, text))),
    node.digest && element("p", { class: "digest" }, shortDigest(node.digest)),
    by && by.run_id !== runId && element("p", { class: "facts" }, "of run ", element("a", { href: `#/runs/${encodeURIComponent(by.run_id)}` }, foreign(by.run_id))),
    parents.length > 0 && element("p", { class: "hidden" }, `Made of ${parents.join(", ")}.`),
    facts.length > 0 && element("details", {}, element("summary", {}, "Details", element("span", { class: "hidden" }, ` of ${title(node)}`)), element("dl", {}, facts.map(([name, value]) => [element("dt", {}, name), foreign(value, "dd")]))),
  );
}

function title(node) {
  if (node.kind === "version") return `${node.properties.model_name} version ${node.properties.version}`;
  return node.kind === "source" ? `${KINDS.source}: ${node.name}` : words(node.name);
}

/** Longest way from a node without parents. */
function depth(id, edges) {
  const parents = edges.filter(([, to]) => to === id).map(([from]) => from);
  return parents.length ? 1 + Math.max(...parents.map((parent) => depth(parent, edges))) : 0;
}

function middle(one, other) {
  return (one + other) / 2;
}
