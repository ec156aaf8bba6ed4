// The page: chooses the view by the address, tells it of changes, and says what is away.

import { element, failure, foreign } from "./elements.js";
import { follow } from "./live.js";
import { comparisonView } from "./views/comparison.js";
import { deadLettersView } from "./views/dead_letters.js";
import { modelView } from "./views/model.js";
import { modelsView } from "./views/models.js";
import { runView } from "./views/run.js";
import { runsView } from "./views/runs.js";
import { servicesView } from "./views/services.js";

const STATES = {
  live: "Live",
  polling: "Asking every 5 s: the stream of changes is not open",
  lost: "The server does not answer. What is shown may be old; it is tried again.",
};

const PASSING = ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNREACHABLE"];
const RETRY_MILLIS = 5000;

const main = document.getElementById("main");
const troubles = document.getElementById("troubles");
const connection = document.getElementById("connection");
let current = null;
let first = true;
let retry = null;

function route() {
  const [place, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  const name = rest.join("/");
  if (place === "runs" && name) return runView(name);
  if (place === "models" && name) return modelView(name);
  if (place === "comparisons" && rest.length > 1) return comparisonView(rest.slice(0, -1).join("/"), rest.at(-1));
  return { models: modelsView, "dead-letters": deadLettersView, services: servicesView }[place]?.() ?? runsView();
}

async function show() {
  if (location.hash === "#main") return;
  clearTimeout(retry);
  current?.close?.();
  const view = route();
  current = view;
  document.title = `${view.title} · GPT-2 pipeline`;
  for (const link of document.querySelectorAll("nav a")) {
    const isHere = view.page === link.getAttribute("href");
    isHere ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  main.replaceChildren(element("h1", { tabindex: "-1" }, foreign(view.title)), view.root);
  // Who reads by ear hears where they are; at the first page the browser tells that itself.
  if (!first) main.firstChild.focus();
  first = false;
  await reread();
}

/** Reads the current view again. Returns whether the server answered. What is shown stays where it does not. */
async function reread() {
  const view = current;
  clearTimeout(retry);
  try {
    const answer = await view.read();
    if (view !== current) return true;
    tellFailure(view, "");
    if (answer?.troubles) tellTroubles(answer.troubles);
    return true;
  } catch (error) {
    if (view !== current) return true;
    if (error.code === undefined) throw error;
    tellFailure(view, error.message);
    if (PASSING.includes(error.code)) retry = setTimeout(reread, RETRY_MILLIS);
    return error.code !== "UNREACHABLE";
  }
}

function tellFailure(view, message) {
  const shown = view.root.querySelector(":scope > .failure");
  // What is there already is not said again.
  if (shown?.dataset.message === message) return;
  shown?.remove();
  if (!message) return;
  const box = failure(message, reread);
  box.dataset.message = message;
  view.root.prepend(box);
}

function tellTroubles(list) {
  const lines = list.map((trouble) =>
    element("p", {}, element("strong", {}, trouble.service), " is away. ", foreign(trouble.message)),
  );
  troubles.replaceChildren(...lines);
}

function tellState(state) {
  if (connection.textContent !== STATES[state]) connection.textContent = STATES[state];
  connection.className = `connection ${state}`;
}

window.addEventListener("hashchange", show);
show();
follow({
  state: tellState,
  reread,
  change(kind, content) {
    if (kind === "troubles") tellTroubles(content);
    current.hear?.(kind, content);
  },
});
