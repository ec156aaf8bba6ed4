// One run: its stages, curves, samples and lineage; stopped and taken up again from here.

import { get, post } from "../api.js";
import { Chart } from "../chart.js";
import { ask } from "../dialog.js";
import { element, foreign, row, table } from "../elements.js";
import { isUnfinished, keepKnown, mergeJob, ProgressLine, stageName, stateBadge, worked } from "../jobs.js";
import { Lineage } from "../lineage.js";
import { clock, counted, words } from "../text.js";

const COLUMNS = ["Stage", "State", "Progress", "Attempt", "Started", "Took"];
const CURVES_MILLIS = 5000;

export function runView(runId) {
  const path = `runs/${encodeURIComponent(runId)}`;
  const stages = new Map();
  const charts = new Map();
  const lineage = new Lineage();
  let run = null;

  const badge = element("span", { class: "badge", role: "status" });
  const cancel = element("button", { type: "button", hidden: true, click: askToCancel }, "Stop this run…");
  const goOn = element("button", { type: "button", hidden: true, click: askToContinue }, "Take it up again…");
  const list = table("Stages", COLUMNS, [], { class: "stages" });
  const curves = element("div", { class: "charts" });
  const curvesNote = element("p", { class: "note" });
  const samples = element("div", { class: "samples" });
  const root = element(
    "div",
    {},
    element("div", { class: "actions" }, badge, cancel, goOn),
    section("Stages", list),
    section("Training", curvesNote, curves),
    section("Samples", samples),
    section("Lineage", lineage.root),
  );
  const timer = setInterval(readCurvesWhileTraining, CURVES_MILLIS);

  async function read() {
    const answer = await get(path);
    keepKnown(answer.run, run);
    run = answer.run;
    show();
    lineage.show(runId, answer.lineage);
    await readCurves();
    return answer;
  }

  function show() {
    badge.replaceChildren(stateBadge(run.state));
    cancel.hidden = !["running", "waiting"].includes(run.state);
    goOn.hidden = !["failed", "cancelled"].includes(run.state);
    for (const job of run.jobs) {
      const key = `${job.service}/${job.job_id}`;
      if (!stages.has(key)) {
        stages.set(key, new Stage(job));
        list.tBodies[0].append(stages.get(key).root);
      }
      stages.get(key).update(job);
    }
    list.querySelectorAll(".next-stage").forEach((line) => line.remove());
    for (const name of run.remaining_stages) {
      const line = row(COLUMNS, [words(name), stateBadge("next"), "", "", "", ""]);
      line.classList.add("next-stage");
      list.tBodies[0].append(line);
    }
  }

  async function readCurves() {
    const { trainings } = await get(`${path}/training`);
    curvesNote.textContent = trainings.map((one) => one.message).filter(Boolean).join(" ");
    curvesNote.hidden = !curvesNote.textContent && trainings.some((one) => one.charts.length);
    if (!curvesNote.textContent) curvesNote.textContent = trainings.length ? "The training has not reported yet." : "This run has not trained a model.";
    for (const training of trainings) {
      for (const content of training.charts) {
        const key = `${training.job_id} ${content.title}`;
        if (!charts.has(key)) {
          charts.set(key, new Chart(content.title, content.unit));
          curves.append(charts.get(key).root);
        }
        charts.get(key).update(content.series);
      }
    }
    showSamples(trainings.flatMap((training) => training.samples));
  }

  function showSamples(rounds) {
    const looks = JSON.stringify(rounds.map((round) => round.step));
    if (samples.dataset.looks === looks && rounds.length) return;
    samples.dataset.looks = looks;
    const newest = rounds.toReversed().map((round, index) =>
      element(
        "details",
        { open: index === 0 },
        element("summary", {}, `After step ${round.step}`),
        round.texts.map((text, number) => [element("h3", {}, `Sample ${number + 1}`), foreign(text, "pre", { tabindex: "0", "aria-label": `Sample ${number + 1} after step ${round.step}` })]),
      ),
    );
    samples.replaceChildren(...(newest.length ? newest : [element("p", { class: "note" }, "No samples yet.")]));
  }

  async function readCurvesWhileTraining() {
    if (document.hidden || !run?.jobs.some((job) => job.kind === "TrainModel" && isUnfinished(job))) return;
    // The page tells of a server that is away already.
    await readCurves().catch(() => null);
  }

  function hear(kind, job) {
    if (kind !== "job" || job.run_id !== runId || !run) return;
    const before = run.jobs.find((known) => known.job_id === job.job_id)?.state;
    if (!mergeJob(run, job)) return;
    show();
    // Outputs and lineage come only with the whole run.
    if (before !== job.state) read().catch(() => null);
  }

  function askToCancel() {
    ask({
      title: "Stop this run?",
      text: "Its jobs are cancelled, and no further stage starts.",
      fields: [{ name: "reason", label: "Why (for those who read it later)", limit: 1000 }],
      button: "Stop the run",
      send: (content) => post(`${path}/cancel`, content).then(read),
    });
  }

  function askToContinue() {
    ask({
      title: "Take this run up again?",
      text: "Its failed and cancelled jobs resume from what they have finished.",
      fields: [],
      button: "Take it up again",
      send: () => post(`${path}/continue`, {}).then(read),
    });
  }

  return { title: runId, page: "#/runs", root, read, hear, close: () => (clearInterval(timer), lineage.close(), charts.forEach((chart) => chart.close())) };
}

function section(title, ...content) {
  const id = `section-${title.toLowerCase()}`;
  return element("section", { "aria-labelledby": id }, element("h2", { id }, title), content);
}

/** One stage of the run. */
class Stage {
  constructor(job) {
    this.badge = element("span");
    this.progress = new ProgressLine(`Progress of ${stageName(job)}`);
    this.error = element("p", { class: "error" });
    this.warnings = element("div");
    this.facts = element("dl");
    this.attempt = element("span");
    this.started = element("span");
    this.took = element("span");
    const details = element("details", {}, element("summary", {}, stageName(job)), this.facts);
    const doing = element("div", {}, this.progress.root, this.error, this.warnings);
    this.root = row(COLUMNS, [details, this.badge, doing, this.attempt, this.started, this.took]);
  }

  update(job) {
    if (job.state !== this.state) this.badge.replaceChildren(stateBadge(job.state));
    this.state = job.state;
    this.progress.update(job);
    this.error.replaceChildren(foreign(job.error));
    this.error.hidden = !job.error;
    this.warnings.replaceChildren(...job.warnings.map((text) => foreign(`Warning: ${text}`, "p", { class: "warning" })));
    this.attempt.textContent = job.attempt;
    this.started.textContent = clock(job.start_time);
    this.took.textContent = worked(job);
    if (!job.outputs) return;
    const facts = [["Job", job.job_id], ["Service", job.service], ["Start call", job.kind]];
    if (job.actor) facts.push(["Asked for by", job.actor]);
    if (job.cause) facts.push(["Started by event", job.cause]);
    for (const output of job.outputs) {
      const counts = Object.entries(output.counts).map(([unit, value]) => counted(unit, value));
      facts.push([`Output ${output.name}`, [output.uri, ...counts, `sha256 ${output.digest}`].join("\n")]);
    }
    this.facts.replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), foreign(value, "dd")]));
  }
}
