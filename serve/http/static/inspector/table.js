// The tables: everything the picture shows, in words and numbers, a page of rows at a time.

import { OUTCOMES, anchorAt, describe, describeOutcome, flagsOf, lossParts, ranked } from "./model.js";

export const ROWS = 100; // of a page
const WORDS = {
  assigned: "learned", invalid: "invalid box", outside: "outside the image", no_anchor: "no anchor inside",
  no_overlap: "no overlap", no_score: "no score", contested: "all lost to others",
};

/** Make an element; properties that are functions listen, others are attributes. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== false && value !== null) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A number in up to three significant digits. */
export function shortNumber(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 0.001 || size >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

/** The word for a reason. */
export function reasonWord(reason) {
  return WORDS[reason];
}

/** The rows of all ground truths. */
export function truthRows(scene, found) {
  return scene.truths.map((truth) => {
    const sum = found.truths[truth.slot];
    const [x1, y1, x2, y2] = truth.bbox;
    return {
      truth, sum, slot: truth.slot, label: truth.label, bbox: truth.bbox, width: x2 - x1, height: y2 - y1,
      reason: sum.reason, ...describe(truth, sum), flags: flagsOf(truth, sum),
      candidates: sum.candidates.reduce((total, count) => total + count, 0), perLevel: sum.candidates,
      chosen: sum.chosen, lost: sum.lost, assigned: sum.assigned, weight: sum.weight,
      bestIou: sum.bestIou, bestScore: sum.bestScore, bestMetric: sum.bestMetric,
      loss: truth.loss?.total ?? null, parts: lossParts(truth, scene.parameters.gains ?? { box: 1, cls: 1, dfl: 1 }),
    };
  });
}

export const COLUMNS = [
  { key: "slot", title: "Ground truth", text: (row) => String(row.slot) },
  { key: "label", title: "Class", text: (row) => String(row.label) },
  {
    key: "area", title: "Size", value: (row) => row.width * row.height,
    text: (row) => `${shortNumber(row.width)} × ${shortNumber(row.height)}`,
  },
  { key: "reason", title: "Result", words: true, text: resultText },
  { key: "candidates", title: "Candidates", text: (row) => String(row.candidates) },
  { key: "chosen", title: "Chosen", text: (row) => String(row.chosen) },
  { key: "lost", title: "Lost", text: (row) => String(row.lost) },
  { key: "assigned", title: "Anchors", text: (row) => String(row.assigned) },
  { key: "weight", title: "Sum of weights", text: (row) => shortNumber(row.weight) },
  { key: "bestIou", title: "Best IoU", text: (row) => shortNumber(row.bestIou) },
  { key: "bestScore", title: "Best score", text: (row) => shortNumber(row.bestScore) },
  { key: "loss", title: "Loss", text: (row) => shortNumber(row.loss) },
];

function resultText(row) {
  return [reasonWord(row.reason), ...row.flags.map(({ flag }) => flag)].join(", ");
}

/** Rows by a column, or as they come when there is none. */
export function sortRows(rows, order, sort) {
  if (!sort) return order.map((slot) => rows[slot]);
  const column = COLUMNS.find(({ key }) => key === sort.key);
  const value = column.value ?? ((row) => row[column.key]);
  const direction = sort.falling ? -1 : 1;
  const compare = (one, other) => (one < other ? -1 : one > other ? 1 : 0);
  return [...rows].sort((one, other) => direction * compare(value(one), value(other)) || one.slot - other.slot);
}

/** Head cells of the ground truths' table, with a button each that sorts. */
export function headCells(sort, onSort) {
  return COLUMNS.map(({ key, title, words }) => {
    const sorted = sort?.key === key;
    const state = sorted ? (sort.falling ? "descending" : "ascending") : "none";
    const arrow = sorted ? (sort.falling ? " ▾" : " ▴") : "";
    const button = element("button", { type: "button", click: () => onSort(key) }, title);
    if (arrow) button.append(element("span", { "aria-hidden": "true" }, arrow));
    return element("th", { scope: "col", "aria-sort": state, class: words ? "words" : "number" }, button);
  });
}

/** Body rows of one page of ground truths. */
export function bodyRows(rows, { selected, most, onSelect }) {
  return rows.map((row) => {
    const cells = COLUMNS.slice(1).map((column) => {
      if (column.key === "loss") return lossCell(row, most);
      return element("td", { class: column.words ? `words ${row.assigned ? "" : "nothing"}` : "number" }, column.text(row));
    });
    const button = element("button", { type: "button", click: () => onSelect(row.slot), "aria-pressed": String(row.slot === selected) }, String(row.slot));
    const head = element("th", { scope: "row" }, button);
    return element("tr", { "data-slot": row.slot, class: row.slot === selected ? "selected" : "" }, head, ...cells);
  });
}

function lossCell(row, most) {
  if (!row.parts) return element("td", { class: "number" }, "–");
  return element("td", { class: "number loss" }, lossBar(row.parts, most), element("span", {}, shortNumber(row.loss)));
}

/** A bar of the three terms, as long as its share of the largest one. */
export function lossBar(parts, most) {
  const bar = element("span", { class: "bar", "aria-hidden": "true" });
  ["box", "cls", "dfl"].forEach((term, index) => {
    const part = element("span", { class: term });
    part.style.width = `${most > 0 ? (100 * parts[index]) / most : 0}%`;
    bar.append(part);
  });
  return bar;
}

/** Rows of a ground truth's candidates, best first. */
export function candidateRows(scene, found, slot) {
  return ranked(scene, found, slot).map(({ pair, rank }) => ({
    pair, rank, anchor: scene.pairs.anchor[pair], ...anchorAt(scene, scene.pairs.anchor[pair]),
    score: scene.pairs.score[pair], iou: scene.pairs.iou[pair], metric: found.metric[pair],
    weight: found.weight[pair], outcome: OUTCOMES[found.outcome[pair]], words: describeOutcome(scene, found, pair, rank),
  }));
}

/** Body rows of a page of candidates. */
export function candidateCells(rows, { selected, onSelect }) {
  return rows.map((row) => {
    const button = element("button", { type: "button", click: () => onSelect(row.anchor), "aria-pressed": String(row.anchor === selected) }, String(row.anchor));
    const numbers = [row.level, row.rank, shortNumber(row.score), shortNumber(row.iou), shortNumber(row.metric), shortNumber(row.weight)];
    return element(
      "tr", { class: row.anchor === selected ? "selected" : "" },
      element("th", { scope: "row" }, button),
      ...numbers.map((number) => element("td", { class: "number" }, String(number))),
      element("td", { class: `words ${row.outcome}` }, row.words),
    );
  });
}

/** All ground truths as CSV. */
export function toCsv(rows) {
  const names = ["slot", "label", "x1", "y1", "x2", "y2", "reason", "flags", "candidates", "chosen", "lost", "assigned",
    "weight_sum", "best_iou", "best_score", "best_metric", "loss", "sentence", "remedy"];
  const lines = rows.map((row) => [
    row.slot, row.label, ...row.bbox, row.reason, row.flags.map(({ flag }) => flag).join(" "), row.candidates,
    row.chosen, row.lost, row.assigned, row.weight, row.bestIou, row.bestScore, row.bestMetric, row.loss ?? "",
    row.sentence, row.remedy,
  ]);
  return [names, ...lines].map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";
}

function quoted(value) {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
