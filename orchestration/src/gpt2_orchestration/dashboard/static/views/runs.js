// All runs, newest first, with what they are doing now.

import { get } from "../api.js";
import { element, foreign, row, table } from "../elements.js";
import { isUnfinished, keepKnown, mergeJob, ProgressLine, stageName, stateBadge, strip } from "../jobs.js";
import { clock, duration, figure, secondsBetween } from "../text.js";

const COLUMNS = ["Run", "State", "Stages", "Progress", "Started", "Took"];
const STATES = ["all states", "running", "waiting", "succeeded", "failed", "cancelled"];
const FIRST = 50;
const TIMES_MORE = 5;
const MOST = 5000;

export function runsView() {
  const runs = new Map();
  const lines = new Map();
  let limit = FIRST;

  const words = element("input", { type: "search", id: "filter", autocomplete: "off", spellcheck: "false", input: sift });
  const state = element("select", { id: "state", change: sift }, STATES.map((name) => element("option", {}, name)));
  const shown = element("p", { class: "note", role: "status" });
  const list = table("Runs", COLUMNS, [], { class: "runs" });
  const more = element("button", { type: "button", hidden: true, click: showMore }, "Show older runs");
  const root = element(
    "div",
    {},
    element(
      "form",
      { class: "filters", submit: (event) => event.preventDefault() },
      element("label", { for: "filter" }, "Filter by name"),
      words,
      element("label", { for: "state" }, "State"),
      state,
    ),
    shown,
    list,
    more,
  );

  function showMore() {
    limit = Math.min(MOST, limit * TIMES_MORE);
    return read();
  }

  async function read() {
    const answer = await get(`runs?limit=${limit}`);
    for (const run of answer.runs) {
      keepKnown(run, runs.get(run.run_id));
      put(run);
    }
    const known = new Set(answer.runs.map((run) => run.run_id));
    for (const id of runs.keys()) if (!known.has(id) && !answer.troubles.length) forget(id);
    more.hidden = !answer.more || limit >= MOST;
    arrange();
    return answer;
  }

  function put(run) {
    runs.set(run.run_id, run);
    if (!lines.has(run.run_id)) lines.set(run.run_id, new RunLine(run));
    lines.get(run.run_id).update(run);
  }

  function forget(id) {
    lines.get(id).root.remove();
    lines.delete(id);
    runs.delete(id);
  }

  function arrange() {
    const newest = [...runs.values()].sort((one, other) => (one.create_time > other.create_time ? -1 : 1));
    const wanted = newest.map((run) => lines.get(run.run_id).root);
    const body = list.tBodies[0];
    // What stands right already is not touched, or it would lose the focus.
    wanted.forEach((line, index) => body.rows[index] === line || body.insertBefore(line, body.rows[index] ?? null));
    sift();
  }

  function sift() {
    const text = words.value.trim().toLowerCase();
    let count = 0;
    for (const [id, run] of runs) {
      const fits = id.toLowerCase().includes(text) && (state.selectedIndex === 0 || run.state === state.value);
      lines.get(id).root.hidden = !fits;
      if (fits) count += 1;
    }
    const of = count === runs.size ? "" : ` of ${runs.size}`;
    shown.textContent = runs.size ? `${count}${of} ${runs.size === 1 ? "run" : "runs"}` : "No run yet: gpt2 run FILE.yaml starts one, and so does any start call.";
    list.hidden = runs.size === 0;
  }

  function hear(kind, job) {
    if (kind !== "job") return;
    const run = runs.get(job.run_id);
    if (!run) {
      put({ run_id: job.run_id, state: job.state === "queued" ? "running" : job.state, jobs: [job], to_come: job.to_come, create_time: job.create_time });
      arrange();
    } else if (mergeJob(run, job)) {
      lines.get(run.run_id).update(run);
      sift();
    }
  }

  return { title: "Runs", page: "#/runs", root, read, hear };
}

/** One run in the list. */
class RunLine {
  constructor(run) {
    this.badge = element("span");
    this.strip = element("div");
    this.progress = new ProgressLine(`Progress of ${run.run_id}`);
    this.error = element("span", { class: "error" });
    this.result = element("span", { class: "facts" });
    this.took = element("span");
    const name = element("a", { href: `#/runs/${encodeURIComponent(run.run_id)}` }, foreign(run.run_id));
    const doing = element("div", {}, this.progress.root, this.error, this.result);
    const started = element("time", { datetime: run.create_time }, clock(run.create_time));
    this.root = row(COLUMNS, [name, this.badge, this.strip, doing, started, this.took]);
  }

  update(run) {
    const looks = JSON.stringify([run.state, run.jobs.map((job) => job.state), run.to_come]);
    if (looks !== this.looks) {
      this.looks = looks;
      this.badge.replaceChildren(stateBadge(run.state));
      this.strip.replaceChildren(strip(run));
    }
    const now = run.jobs.findLast(isUnfinished) ?? run.jobs.at(-1);
    this.progress.root.hidden = !isUnfinished(now);
    this.progress.update(now);
    const made = run.jobs.flatMap((job) => job.registered);
    const results = made.map((one) => [element("a", { href: `#/models/${encodeURIComponent(one.model_name)}` }, foreign(`${one.model_name} version ${one.version}`)), one.validation_loss === null ? "" : ` · validation loss ${figure(one.validation_loss)} `]);
    if (this.results !== made.length) this.result.replaceChildren(...results.flat());
    this.results = made.length;
    const failed = run.jobs.findLast((job) => job.state === "failed" || job.state === "cancelled");
    const text = failed && !isUnfinished(now) ? `${stageName(failed)}: ${failed.error}` : "";
    if (this.error.title !== text) {
      this.error.title = text;
      this.error.replaceChildren(foreign(text));
    }
    this.took.textContent = duration(secondsBetween(run.create_time, isUnfinished(now) ? null : now.end_time));
  }
}
