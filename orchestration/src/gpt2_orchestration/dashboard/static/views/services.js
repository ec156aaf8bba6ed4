// Whether each service answers, and what to do where it does not.

import { get } from "../api.js";
import { element, foreign, latest, renew, row, table } from "../elements.js";
import { stateBadge } from "../jobs.js";

const COLUMNS = ["Service", "State", "Version", "Address", "What to do"];
const LINKS = { tensorboard: "TensorBoard", mlflow: "MLflow" };
const READ_MILLIS = 5000;

export function servicesView() {
  const list = table("Services", COLUMNS, [], { class: "services" });
  const links = element("p", { class: "note" });
  const timer = setInterval(() => document.hidden || read().catch(() => null), READ_MILLIS);

  const read = latest(() => get("services"), (answer) => {
    renew(
      list.tBodies[0],
      answer.services.map((service) =>
        row(COLUMNS, [service.name, stateBadge(service.ok ? "answers" : "away"), service.version || "–", foreign(service.address), foreign(service.message)]),
      ),
    );
    const anchors = Object.entries(answer.links).flatMap(([name, uri]) => [" ", element("a", { href: uri, rel: "noreferrer" }, LINKS[name])]);
    renew(links, ...(anchors.length ? ["Everything else of a run is in", ...anchors] : []));
  });

  return { title: "Services", page: "#/services", root: element("div", {}, list, links), read, hear: (kind) => kind === "troubles" && read().catch(() => null), close: () => clearInterval(timer) };
}
