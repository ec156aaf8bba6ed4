// Builds the page's elements. Text only ever becomes text nodes: nothing from outside is read as HTML.

import { visible } from "./text.js";

/**
 * Makes an element.
 * @param {string} tag Its name.
 * @param {Object} attributes Attributes; a function is an event listener, `false` and `null` leave one out.
 * @param {...(Node|string|number|null|Array)} children What is in it.
 */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/** Text that others wrote, kept from changing the direction of what stands around it. */
export function foreign(text, tag = "bdi", attributes = {}) {
  return element(tag, tag === "bdi" ? attributes : { dir: "auto", ...attributes }, visible(text));
}

/** Text for screen readers alone. */
export function hidden(text) {
  return element("span", { class: "hidden" }, text);
}

/** A table whose cells keep their roles when a narrow screen stacks them. */
export function table(caption, columns, rows, attributes = {}) {
  const head = element("tr", { role: "row" }, columns.map((name) => element("th", { role: "columnheader", scope: "col" }, name)));
  return element(
    "table",
    { role: "table", ...attributes },
    element("caption", { class: "hidden" }, caption),
    element("thead", { role: "rowgroup" }, head),
    element("tbody", { role: "rowgroup" }, rows),
  );
}

/** A row of such a table. `labels` name the cells where they are stacked. */
export function row(labels, cells) {
  return element(
    "tr",
    { role: "row" },
    cells.map((cell, index) => element("td", { role: "cell", "data-label": labels[index] }, cell)),
  );
}

/** Replaces what is in an element. What had the focus there has it again, in the place where it was. */
export function renew(target, ...children) {
  const usable = () => [...target.querySelectorAll("a, button, input, select, summary, [tabindex]")];
  const place = usable().indexOf(document.activeElement);
  target.replaceChildren(...children.flat(Infinity));
  if (place >= 0) usable()[place]?.focus();
}

/**
 * Lets only the answer to the latest question through, and only if it is another than the one before: answers may
 * overtake one another.
 * @param {function(): Promise} question Asks.
 * @param {function(Object)} show Takes the answer.
 */
export function latest(question, show) {
  let asked = 0;
  let shown = "";
  return async () => {
    asked += 1;
    const mine = asked;
    const answer = await question();
    const looks = JSON.stringify(answer);
    if (mine !== asked || looks === shown) return answer;
    shown = looks;
    show(answer);
    return answer;
  };
}

/** A failure, in place of what could not be shown, with a way to try again. */
export function failure(message, retry) {
  return element(
    "div",
    { class: "failure", role: "alert" },
    element("p", {}, foreign(message)),
    element("button", { type: "button", click: retry }, "Try again"),
  );
}

function fill(target, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") target.addEventListener(name, value);
    else if (value !== false && value !== null && value !== undefined) target.setAttribute(name, value === true ? "" : value);
  }
  target.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return target;
}
