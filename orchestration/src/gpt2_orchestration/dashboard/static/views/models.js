// All registered models, with who holds which label.

import { get } from "../api.js";
import { element, foreign, latest, renew, row, table } from "../elements.js";

const COLUMNS = ["Model", "Newest version", "Labels"];

export function modelsView() {
  const list = table("Models", COLUMNS, [], { class: "models" });
  const note = element("p", { class: "note" });

  const read = latest(() => get("models"), ({ models }) => {
    note.textContent = models.length ? "" : "No model yet: a run registers one with RegisterModel.";
    list.hidden = models.length === 0;
    renew(
      list.tBodies[0],
      models.map((model) =>
        row(COLUMNS, [
          element("a", { href: `#/models/${encodeURIComponent(model.name)}` }, foreign(model.name)),
          model.latest_version || "none",
          element("span", { class: "chips" }, Object.entries(model.labels).map(([label, version]) => element("span", { class: "chip" }, foreign(label), ` ${version}`))),
        ]),
      ),
    );
  });

  return { title: "Models", page: "#/models", root: element("div", {}, note, list), read, hear: (kind) => kind === "label" && read().catch(() => null) };
}
