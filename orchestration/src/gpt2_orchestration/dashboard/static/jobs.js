// Jobs and runs from lists and live changes: merged, with their state and progress.

import { element, foreign, hidden } from "./elements.js";
import { counted, count, duration, figure, secondsBetween, words } from "./text.js";

const UNFINISHED = ["queued", "running"];
const SIGNS = { succeeded: "✓", failed: "✕", cancelled: "–", running: "▸", queued: "…", "next": "" };

/** The stage's name: the second part of the job's id, or its start call. */
export function stageName(job) {
  return words(job.job_id.includes("/") ? job.job_id.split("/")[1].replace(/[.-][0-9a-f]{8,}$/, "") : job.kind);
}

export function isUnfinished(job) {
  return UNFINISHED.includes(job.state);
}

/** State and remaining stages of a run, as in `gpt2 runs`. */
export function summarise(run) {
  const last = run.jobs.at(-1);
  run.remaining_stages = last.remaining_stages;
  if (run.jobs.some(isUnfinished)) run.state = "running";
  else if (last.state === "succeeded" && last.remaining_stages.length) run.state = "waiting";
  else run.state = last.state;
}

/** Takes a job into its run, unless what is known is newer. Returns whether the run is another now. */
export function mergeJob(run, job) {
  const place = run.jobs.findIndex((known) => known.job_id === job.job_id && known.service === job.service);
  if (place >= 0 && run.jobs[place].revision >= job.revision) return false;
  if (place >= 0) run.jobs[place] = { ...run.jobs[place], ...job };
  else run.jobs.push(job);
  run.jobs.sort((one, other) => (one.create_time < other.create_time ? -1 : 1));
  summarise(run);
  return true;
}

/** Keeps what an answer lacks: jobs of services that are away, and changes that the stream has brought in the meantime. */
export function keepKnown(run, before) {
  for (const job of before?.jobs ?? []) mergeJob(run, job);
}

export function stateBadge(state) {
  return element("span", { class: `state ${state}` }, state);
}

/** The stages of a run as a strip of signs. */
export function strip(run) {
  const done = run.jobs.map((job) => [stageName(job), job.state]);
  const all = [...done, ...run.remaining_stages.map((name) => [words(name), "next"])];
  return element(
    "ol",
    { class: "strip", "aria-label": "Stages" },
    all.map(([name, state]) =>
      element("li", { class: state.replace(" ", "-"), title: `${name}: ${state}` }, element("span", { "aria-hidden": "true" }, SIGNS[state]), hidden(`${name}: ${state}`)),
    ),
  );
}

/** How far a job is, kept up to date by calling `update`. */
export class ProgressLine {
  constructor(label) {
    this.bar = element("progress", { "aria-label": label });
    this.text = element("span", { class: "facts" });
    this.root = element("div", { class: "progress" }, this.bar, this.text);
  }

  update(job) {
    const { total, done } = job.progress;
    this.bar.hidden = !isUnfinished(job);
    if (total > 0) {
      this.bar.max = total;
      this.bar.value = done;
    } else this.bar.removeAttribute("value");
    this.text.replaceChildren(foreign(progressText(job)));
  }
}

/** How far a job is, in one line: phase, amount, rate, time left, loss. */
export function progressText(job) {
  const { phase, done, total, unit, rate, metrics } = job.progress;
  if (job.state === "queued") return "waiting for a free place";
  if (job.state !== "running") return total > 0 && done > 0 ? counted(unit, done) : "";
  const parts = [job.cancel_requested ? "stopping" : phase];
  if (total > 0) parts.push(`${count(done)} of ${count(total)} ${unit}`);
  else if (done > 0) parts.push(`${count(done)} ${unit}`);
  if (rate > 0) {
    parts.push(`${figure(rate)}/s`);
    if (total > done) parts.push(`${duration((total - done) / rate)} left`);
  }
  for (const name of ["loss", "validation_loss"]) if (name in metrics) parts.push(`${words(name)} ${figure(metrics[name])}`);
  return parts.filter(Boolean).join(" · ");
}

/** How long a job has worked. */
export function worked(job) {
  return job.start_time ? duration(secondsBetween(job.start_time, job.end_time)) : "–";
}
