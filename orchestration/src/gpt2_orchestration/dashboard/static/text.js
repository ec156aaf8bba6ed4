// Numbers, times and names for people.

const DIRECTIONS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]/g;
const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** Text with the characters that are not seen, and could turn the line around, written out. */
export function visible(text) {
  return String(text).replace(DIRECTIONS, (found) => `⟨U+${found.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

/** A count. */
export function count(value) {
  return NUMBER.format(value);
}

/** A measured figure, to four digits. */
export function figure(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return count(value);
  if (size >= 10000) return count(value);
  if (size < 0.001) return value.toExponential(2).replace("e-", "e−");
  return String(Number(value.toPrecision(4)));
}

/** The tick labels of an axis, written alike: small ones with a power of ten where all are small. */
export function axisLabels(ticks) {
  const allSmall = Math.max(...ticks.map(Math.abs)) < 0.001;
  return ticks.map((tick) => {
    if (tick === 0 || Math.abs(tick) >= 0.001) return figure(tick);
    return allSmall ? tick.toExponential().replace("e-", "e−") : String(tick);
  });
}

/** A span of time: `45s`, `3m20s`, `2h05m`, `3d04h`. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)}h${two(Math.floor((whole % 3600) / 60))}m`;
  return `${Math.floor(whole / 86400)}d${two(Math.floor((whole % 86400) / 3600))}h`;
}

/** A time of the clock; with the day where that is not today. */
export function clock(text) {
  if (!text) return "–";
  const time = new Date(text);
  const isToday = time.toDateString() === new Date().toDateString();
  const hour = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  const day = time.toLocaleDateString([], { year: "numeric", month: "short", day: "numeric" });
  return isToday ? hour : `${day} ${hour}`;
}

/** Seconds from one time to another, or to now. */
export function secondsBetween(from, to) {
  return ((to ? new Date(to) : new Date()) - new Date(from)) / 1000;
}

/** `TrainModel` as `train model`. */
export function words(name) {
  return name.replace(/([a-z])([A-Z])/g, "$1 $2").replaceAll("_", " ").replaceAll("-", " ").toLowerCase();
}

/** The start of a digest, enough to tell two apart. */
export function shortDigest(digest) {
  return digest.slice(0, 12);
}

/** What an artifact or a phase counts, such as `473 documents`. */
export function counted(unit, value) {
  return unit === "version" || unit.includes("loss") ? `${words(unit)} ${figure(value)}` : `${figure(value)} ${words(unit)}`;
}
