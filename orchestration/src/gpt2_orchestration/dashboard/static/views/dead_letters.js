// The topic of dead letters: events that a service could not handle, and why; sent again once that is put right.

import { get, post } from "../api.js";
import { ask } from "../dialog.js";
import { element, foreign, hidden, latest, renew } from "../elements.js";
import { clock, count } from "../text.js";

const READ_MILLIS = 10000;

export function deadLettersView() {
  const list = element("ul", { class: "letters" });
  const note = element("p", { class: "note", role: "status" });
  const all = element("button", { type: "button", hidden: true, click: () => askToReplay(letters, "Send all again?") }, "Send all again…");
  const root = element("div", {}, element("div", { class: "actions" }, note, all), list);
  const timer = setInterval(() => document.hidden || read().catch(() => null), READ_MILLIS);
  let letters = [];

  const read = latest(() => get("dead-letters"), (answer) => {
    letters = answer.letters.toReversed();
    note.textContent = letters.length ? `${count(letters.length)} that could not be handled` : "None: every event was handled.";
    all.hidden = letters.length < 2;
    renew(list, letters.map(item));
  });

  function item(letter) {
    return element(
      "li",
      {},
      foreign(letter.reason, "p", { class: "error" }),
      element("p", { class: "facts" }, clock(letter.time), " · ", foreign(letter.consumer), " · ", foreign(letter.type || "no type"), " ", foreign(letter.subject), " · at ", letter.place, ` · ${count(letter.bytes)} bytes`),
      element("div", { class: "actions" }, element("button", { type: "button", click: () => askToReplay([letter], "Send it again?") }, "Send again…", hidden(` ${letter.place}`))),
      element("details", {}, element("summary", {}, "Content"), foreign(letter.payload || "(empty)", "pre", { tabindex: "0", "aria-label": `Content of ${letter.place}` })),
    );
  }

  function askToReplay(chosen, title) {
    ask({
      title,
      text: "Put right first what is wrong. An event goes to the topic that it came from; services that have handled it know it.",
      fields: [],
      button: "Send again",
      send: () => post("dead-letters/replay", { places: chosen.map((letter) => letter.place) }).then(read),
    });
  }

  return { title: "Dead letters", page: "#/dead-letters", root, read, close: () => clearInterval(timer) };
}
