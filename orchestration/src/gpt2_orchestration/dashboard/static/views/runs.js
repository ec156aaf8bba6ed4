// All runs, newest first, with what they are doing now.

import { get } from "../api.js";
import { element, foreign, row, table } from "../elements.js";
import { isUnfinished, keepKnown, mergeJob, ProgressLine, stageName, stateBadge, strip } from "../jobs.js";
import { clock, count, duration, figure, secondsBetween } from "../text.js";

const COLUMNS = ["Run", "State", "Stages", "Progress", "Started", "Took"];
const STATES = ["all states", "running", "waiting", "succeeded", "failed", "cancelled"];
const PAGE = 50;
const OLDER_PAGE = 250;
const MAX_IDS = 100;
const GATHER_MILLIS = 300;

export function runsView() {
  const runs = new Map();
  const lines = new Map();
  const unread = new Set();
  let next = "";
  let older = false;

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

  async function showMore() {
    const answer = await get(`runs?limit=${OLDER_PAGE}&after=${encodeURIComponent(next)}`);
    next = answer.next;
    older = true;
    take(answer);
    return answer;
  }

  /** Reads the newest runs, and those shown further down that had not ended; the others are as they were. */
  async function read() {
    const answer = await get(`runs?limit=${PAGE}`);
    const page = new Set(answer.runs.map((run) => run.run_id));
    if (!answer.troubles.length) {
      const joins = !answer.next || answer.runs.some((run) => runs.has(run.run_id));
      const oldest = answer.next ? answer.runs.at(-1).create_time : "";
      for (const [id, run] of runs) if (!page.has(id) && (!joins || run.create_time >= oldest)) forget(id);
      older = older && joins;
    }
    if (!older) next = answer.next;
    take(answer);
    for (const [id, run] of runs) if (!page.has(id) && ["running", "waiting"].includes(run.state)) unread.add(id);
    await readSome();
    return answer;
  }

  /** Reads runs that have changed, or may have. */
  async function readSome() {
    while (unread.size) {
      const ids = [...unread].slice(0, MAX_IDS);
      for (const id of ids) unread.delete(id);
      take(await get(`runs?${ids.map((id) => `id=${encodeURIComponent(id)}`).join("&")}`));
    }
  }

  function take(answer) {
    for (const run of answer.runs) {
      keepKnown(run, runs.get(run.run_id));
      put(run);
    }
    more.hidden = !next;
    arrange();
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
    let fitting = 0;
    for (const [id, run] of runs) {
      const fits = id.toLowerCase().includes(text) && (state.selectedIndex === 0 || run.state === state.value);
      lines.get(id).root.hidden = !fits;
      if (fits) fitting += 1;
    }
    // The filter knows nothing of older runs that were not read.
    const all = `${next ? "the newest " : ""}${runs.size} ${runs.size === 1 ? "run" : "runs"}`;
    const counted = fitting === runs.size ? all : `${fitting} of ${all}`;
    shown.textContent = runs.size ? counted : "No run yet: gpt2 run FILE.yaml starts one, and so does any start call.";
    list.hidden = runs.size === 0;
  }

  function hear(kind, job) {
    if (kind !== "job") return;
    const run = runs.get(job.run_id);
    if (!run) {
      put({ run_id: job.run_id, state: job.state === "queued" ? "running" : job.state, jobs: [job], remaining_stages: job.remaining_stages, create_time: job.create_time });
      arrange();
      // The run may be an old one that was taken up again.
      if (!unread.size) setTimeout(() => readSome().catch(() => {}), GATHER_MILLIS);
      unread.add(job.run_id);
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
    const looks = JSON.stringify([run.state, run.jobs.map((job) => job.state), run.remaining_stages]);
    if (looks !== this.looks) {
      this.looks = looks;
      this.badge.replaceChildren(stateBadge(run.state));
      const omitted = run.omitted_jobs ? element("span", { class: "facts" }, `and ${count(run.omitted_jobs)} older jobs`) : "";
      this.strip.replaceChildren(strip(run), omitted);
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
