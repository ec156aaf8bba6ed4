// A line chart: axes with units, the values under the pointer or the arrow keys, and all of them as a table.

import { element, svg } from "./elements.js";
import { axisLabels, count, figure, words } from "./text.js";

const HEIGHT = 200;
const LEFT = 56;
const RIGHT = 12;
const TOP = 8;
const BOTTOM = 24;
const MAX_ROWS = 200;

export class Chart {
  constructor(title, unit) {
    this.series = [];
    this.place = null;
    this.readout = element("p", { class: "readout" });
    this.picture = svg("svg", { "aria-hidden": "true" });
    this.frame = element(
      "div",
      {
        class: "plot",
        tabindex: "0",
        role: "img",
        pointermove: (event) => this.point(event),
        pointerleave: () => this.moveTo(null),
        keydown: (event) => this.step(event),
      },
      this.picture,
    );
    this.table = element("table");
    this.values = element("details", { toggle: () => this.fillTable() }, element("summary", {}, "Values"), element("div", { class: "values", tabindex: "0", role: "region", "aria-label": `Values of ${title}` }, this.table));
    this.title = title;
    this.unit = unit;
    this.root = element(
      "figure",
      {},
      element("figcaption", {}, element("strong", {}, title), ` ${unit}`),
      this.readout,
      this.frame,
      this.values,
    );
    this.resizing = new ResizeObserver(() => this.draw());
    this.resizing.observe(this.frame);
  }

  close() {
    this.resizing.disconnect();
  }

  update(series) {
    this.series = series.filter((one) => one.points.length);
    this.steps = [...new Set(this.series.flatMap((one) => one.points.map(([step]) => step)))].sort((one, other) => one - other);
    this.bySeries = this.series.map((one) => new Map(one.points));
    this.frame.setAttribute("aria-label", this.summary());
    this.draw();
    this.fillTable();
  }

  summary() {
    const parts = this.series.map(({ name, points }) => `${words(name)} from ${figure(points[0][1])} at step ${points[0][0]} to ${figure(points.at(-1)[1])} at step ${points.at(-1)[0]}`);
    return `${this.title}, ${this.unit}: ${parts.join("; ")}. Arrow keys move along the steps.`;
  }

  draw() {
    const width = this.frame.clientWidth;
    if (!width || !this.series.length) return;
    const values = this.series.flatMap((one) => one.points.map(([, value]) => value));
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const ticks = niceTicks(least, most, 4);
    const low = Math.min(least, ticks[0]);
    const high = Math.max(most, ticks.at(-1));
    const [firstStep, lastStep] = [this.steps[0], this.steps.at(-1)];
    const share = (value, from, to) => (to > from ? (value - from) / (to - from) : 0.5);
    this.x = (step) => LEFT + share(step, firstStep, lastStep) * (width - LEFT - RIGHT);
    this.y = (value) => TOP + (1 - share(value, low, high)) * (HEIGHT - TOP - BOTTOM);

    const labels = axisLabels(ticks);
    const grid = ticks.map((tick, index) => [
      svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: this.y(tick), y2: this.y(tick) }),
      svg("text", { class: "tick", x: LEFT - 6, y: this.y(tick) + 4, "text-anchor": "end" }, labels[index]),
    ]);
    const stepTicks = niceTicks(firstStep, lastStep, Math.max(2, Math.floor(width / 110))).filter((tick) => tick >= firstStep && tick <= lastStep && Number.isInteger(tick));
    const below = stepTicks.map((tick) => svg("text", { class: "tick", x: this.x(tick), y: HEIGHT - 6, "text-anchor": tick === lastStep ? "end" : "middle" }, tick === stepTicks.at(-1) ? `step ${count(tick)}` : count(tick)));
    const lines = this.series.map(({ points }, index) => {
      const path = points.map(([step, value], place) => `${place ? "L" : "M"}${this.x(step).toFixed(1)} ${this.y(value).toFixed(1)}`).join("");
      const marks = points.length <= 40 ? points.map(([step, value]) => svg("circle", { class: `mark series-${index}`, cx: this.x(step), cy: this.y(value), r: 2.5 })) : [];
      return [svg("path", { class: `line series-${index}`, d: path }), marks];
    });
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, x1: 0, x2: 0 });
    this.picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.picture.replaceChildren(...[grid, below, lines, this.cursor].flat(Infinity));
    this.moveTo(this.place);
  }

  point(event) {
    if (!this.x) return;
    const at = event.clientX - this.frame.getBoundingClientRect().left;
    this.moveTo(this.steps.reduce((best, step) => (Math.abs(this.x(step) - at) < Math.abs(this.x(best) - at) ? step : best), this.steps[0]));
  }

  step(event) {
    const at = this.place === null ? this.steps.length - 1 : this.steps.indexOf(this.place);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: this.steps.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.readout.setAttribute("role", "status");
    this.moveTo(this.steps[Math.min(this.steps.length - 1, Math.max(0, to))]);
  }

  /** Shows the values at a step; the last ones where it is null. */
  moveTo(step) {
    this.place = step;
    if (!this.series.length) return;
    this.cursor?.classList.toggle("on", step !== null);
    if (step !== null) {
      this.cursor?.setAttribute("x1", this.x(step));
      this.cursor?.setAttribute("x2", this.x(step));
    }
    const parts = this.series.map(({ name, points }, index) => {
      const value = step === null ? points.at(-1)[1] : this.bySeries[index].get(step);
      return element("span", { class: `key series-${index}` }, `${words(name)} `, element("b", {}, figure(value)));
    });
    this.readout.replaceChildren(element("span", { class: "step" }, `step ${count(step ?? this.steps.at(-1))}`), ...parts);
  }

  fillTable() {
    if (!this.values.open) return;
    const stride = Math.ceil(this.steps.length / MAX_ROWS);
    const chosen = this.steps.filter((_, index) => (this.steps.length - 1 - index) % stride === 0);
    const head = element("tr", {}, ["step", ...this.series.map(({ name }) => words(name))].map((name) => element("th", { scope: "col" }, name)));
    const lines = chosen.map((step) => element("tr", {}, element("th", { scope: "row" }, count(step)), this.bySeries.map((values) => element("td", {}, figure(values.get(step))))));
    this.table.replaceChildren(element("caption", { class: "hidden" }, `${this.title}, ${this.unit}`), element("thead", {}, head), element("tbody", {}, lines));
  }
}

function niceTicks(low, high, wanted) {
  if (low === high) return [low];
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const first = Math.floor(low / size);
  const last = Math.ceil(high / size - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * size).toPrecision(12)));
}
