// The page: what is open, what is chosen, and what follows from it. State lives in one object and in the address.

import {
  anchorAt, anchorNear, assign, checkDocument, colourTruths, describeOutcome, orderOfInterest, ownSettings, ranked,
  readScene, sameSettings,
} from "./model.js";
import { COLOURS, Picture, SHAPES, markerPath } from "./picture.js";
import { askService, explainRequest, pictureNames, pictureRequest, readTensors } from "./request.js";
import {
  COLUMNS, ROWS, bodyRows, candidateCells, candidateRows, element, headCells, lossBar, reasonWord, shortNumber, sortRows, toCsv,
  truthRows,
} from "./table.js";

const NEEDS_KEY = [401, 403, 429];
const NOTHING_SHOWN = 20; // cards before "Show all"
const PAIRS_SHOWN = 6; // of an anchor, in the tip and the panel
const ZOOM_STEP = 1.4;
const LISTS_WAIT = 120; // milliseconds
const USUAL_SIDE = 640; // of the square that pictures are fitted into, pixels
const SLIDERS = ["topk", "alpha", "beta", "side"];
const at = (id) => document.getElementById(id);

const state = {
  document: null, scene: null, own: null, found: null, rows: null, names: [], bitmaps: [], title: "", source: "",
  image: 0, settings: null, selection: { slot: -1, anchor: -1 }, hidden: new Set(), theme: "auto", sort: null,
  truthPage: 0, candidatePage: 0, allNothing: false, key: "", request: null, listing: 0, inputSide: USUAL_SIDE,
};
const picture = new Picture(at("canvas"), at("overlay"), () => rememberSoon());

// ---- opening -------------------------------------------------------------------------------------------------------

/** Show a document, with the bitmaps of its images where there are some, in the state that the address gives. */
function open(found, { title, source, names = [], bitmaps = [], wanted = {} }) {
  Object.assign(state, { document: checkDocument(found), title, source, names, bitmaps });
  at("start").hidden = true;
  at("inspector").hidden = false;
  for (const part of document.querySelectorAll(".when-open")) part.hidden = false;
  at("source").textContent = `${title}${found.model ? ` · model ${found.model}` : ""}`;
  at("input-side-label").hidden = source !== "pictures";
  at("dfl-name").textContent = found.parameters.reg_max === 1 ? "l1" : "dfl";
  const labels = found.images.map((_, image) => names[image] ?? `Image ${image}`);
  at("image").replaceChildren(...labels.map((label, image) => element("option", { value: image }, label)));
  at("image-label").hidden = labels.length === 1;
  showImage(Math.min(wanted.image ?? 0, labels.length - 1), wanted);
}

function showImage(image, wanted = {}) {
  const scene = readScene(state.document, image);
  const own = ownSettings(scene);
  Object.assign(state, { image, scene, own, settings: { ...own, ...limitedSettings(scene, wanted.settings ?? {}) } });
  Object.assign(state, { hidden: new Set(wanted.hidden ?? []), selection: { slot: -1, anchor: -1 }, truthPage: 0 });
  if (wanted.sort) state.sort = wanted.sort;
  state.ownFound = assign(scene, own);
  at("image").value = String(image);
  state.colours = colourTruths(scene, COLOURS.length);
  picture.setScene(scene, state.bitmaps[image] ?? null, state.colours);
  picture.setHiddenLevels(state.hidden);
  renderLevels();
  renderSliders();
  reassign(0);
  const slot = wanted.slot in scene.truths ? wanted.slot : -1;
  const anchor = wanted.anchor >= 0 && wanted.anchor < scene.anchors ? wanted.anchor : -1;
  if (slot >= 0 || anchor >= 0) select({ slot, anchor });
  if (wanted.view) picture.setView(wanted.view);
}

async function openSample(wanted = {}) {
  const reply = await fetch("inspector/sample.json");
  if (!reply.ok) throw new Error(`the sample cannot be read (status ${reply.status})`);
  const sample = await reply.json();
  const bitmaps = await Promise.all(sample.pictures.map(async (name) => {
    const file = await fetch(`inspector/${name}`);
    return createImageBitmap(await file.blob());
  }));
  open(sample.document, { title: sample.title, source: "sample", names: sample.names, bitmaps, wanted });
}

/** Open dropped or chosen files: a document or a request file, and pictures. */
async function openFiles(files, wanted = {}) {
  const [pictures, labels, others] = [[], [], []];
  for (const file of files) {
    (file.type.startsWith("image/") ? pictures : /\.txt$/i.test(file.name) ? labels : others).push(file);
  }
  if (labels.length === 0 && others.length === 0 && state.document && state.source !== "pictures") {
    state.bitmaps = await bitmapsFor(pictures, state.names, state.document.images.length);
    return showImage(state.image, { ...wantedNow() });
  }
  if (others.length === 0) return openPictures(pictures, labels, wanted);
  if (others.length !== 1 || labels.length) {
    throw new Error(
      "give one request file (.npz, .safetensors or an explanation as .json), or pictures with their labels (.txt), " +
        `not ${[...others, ...labels].map(({ name }) => name).join(" and ")}`,
    );
  }
  const [file] = others;
  if (/\.json$/i.test(file.name)) {
    const found = checkDocument(JSON.parse(await file.text()));
    return show(found, file.name, []);
  }
  const tensors = await readTensors(file);
  const body = explainRequest(tensors);
  state.request = { body, show: (found) => show(found, file.name, pictureNames(tensors)) };
  return ask();

  async function show(found, title, names) {
    const bitmaps = await bitmapsFor(pictures, names, found.images.length);
    open(found, { title, source: "file", names, bitmaps, wanted });
  }
}

/** Let the service's detector look at pictures, and explain its loss by their labels. */
async function openPictures(pictures, labels, wanted = {}) {
  const { body, names, bitmaps } = await pictureRequest(pictures, labels, state.inputSide);
  const title = names.length === 1 ? names[0] : `${names.length} pictures`;
  const show = (found) => open(found, { title, source: "pictures", names, bitmaps, wanted });
  const again = () => openPictures(pictures, labels, { ...wantedNow(), view: null, anchor: -1 });
  state.request = { body, show, again };
  return ask();
}

/** Fit the open pictures into a square of another size. */
async function changeInputSide() {
  const { value, min, max, step } = at("input-side");
  if (!at("input-side").checkValidity()) throw new Error(`the input is ${value} pixels; give a multiple of ${step} from ${min} to ${max}`);
  state.inputSide = Number(value);
  await state.request.again();
}

/** Take the size of the input from an address, if it has one that can be. */
function setInputSide(side) {
  const input = at("input-side");
  if (side !== undefined) input.value = String(side);
  if (!input.checkValidity()) input.value = String(USUAL_SIDE);
  state.inputSide = Number(input.value);
}

/** Send the open request, with the key that was typed; ask for one where the service wants it. */
async function ask() {
  at("source").textContent = "The service is computing…";
  try {
    const found = await askService(state.request.body, state.key);
    at("key-form").hidden = true;
    await state.request.show(found);
  } catch (error) {
    at("source").textContent = state.title;
    at("key-form").hidden = !NEEDS_KEY.includes(error.status);
    throw error;
  }
}

/** Bitmaps by the images' names, else in the order of the files' names. */
async function bitmapsFor(pictures, names, count) {
  const ordered = [...pictures].sort((one, other) => (one.name < other.name ? -1 : 1));
  const stem = (name) => name.replace(/\.[^.]*$/, "");
  const named = names.map((name) => ordered.find((file) => file.name === name || stem(file.name) === stem(name)));
  const found = named.some(Boolean) ? named : ordered.slice(0, count);
  return Promise.all(found.map((file) => (file ? createImageBitmap(file) : null)));
}

/** A report's data, which its file holds; null on the service's page. */
function embedded() {
  const part = at("explanation");
  return part && JSON.parse(part.textContent);
}

async function openEmbedded({ document: found, title, names, pictures }, wanted) {
  for (const id of ["open-sample", "open-files"]) at(id).hidden = true;
  const bitmaps = await Promise.all(pictures.map((content) => content && createImageBitmap(blobOf(content))));
  open(found, { title, source: "report", names, bitmaps, wanted });
}

function blobOf({ type, base64 }) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type });
}

/** Run an action and show its error, if it has one. */
async function attempt(action) {
  at("alert").textContent = "";
  try {
    await action();
  } catch (error) {
    at("alert").textContent = error.message;
  }
}

// ---- the address ---------------------------------------------------------------------------------------------------

let remembering = 0;

function rememberSoon() {
  clearTimeout(remembering);
  remembering = setTimeout(() => history.replaceState(null, "", `#${addressOf()}`), 150);
}

function addressOf() {
  const { source, image, selection, settings, own, hidden, theme, inputSide, sort } = state;
  const found = new URLSearchParams();
  if (source === "sample") found.set("open", "sample");
  if (image) found.set("image", image);
  if (inputSide !== USUAL_SIDE) found.set("input", inputSide);
  if (selection.slot >= 0) found.set("truth", selection.slot);
  if (selection.anchor >= 0) found.set("anchor", selection.anchor);
  for (const name of settings ? [...SLIDERS, "topk2"] : []) {
    if (settings[name] !== own[name]) found.set(name, settings[name] ?? "all");
  }
  if (sort) found.set("sort", `${sort.key}${sort.falling ? "-" : ""}`);
  if (hidden.size) found.set("hidden", [...hidden].join(","));
  if (state.scene && picture.view && !picture.atFit) {
    const { x, y, zoom } = picture.view;
    found.set("view", [x, y, zoom].map((number) => Number(number.toFixed(2))).join(","));
  }
  if (theme !== "auto") found.set("theme", theme);
  return found.toString();
}

/** What an address asks for; what is not a number is left out. */
function readAddress(text) {
  const given = new URLSearchParams(text);
  const number = (name) => (given.get(name)?.trim() && Number.isFinite(Number(given.get(name))) ? Number(given.get(name)) : undefined);
  const numbers = (name) => (given.get(name) ?? "").split(",").filter(Boolean).map(Number).filter(Number.isFinite);
  const settings = {};
  for (const name of [...SLIDERS, "topk2"]) if (number(name) !== undefined) settings[name] = number(name);
  if (given.get("topk2") === "all") settings.topk2 = null;
  const [x, y, zoom] = numbers("view");
  return {
    open: given.get("open"), image: number("image"), inputSide: number("input"), slot: number("truth"), anchor: number("anchor"), settings,
    hidden: numbers("hidden"), sort: sortOf(given.get("sort") ?? ""), view: zoom === undefined ? null : { x, y, zoom },
    theme: ["light", "dark"].includes(given.get("theme")) ? given.get("theme") : "auto",
  };
}

/** The order of the table that a word of an address names: a column, and "-" where it falls; null without. */
function sortOf(word) {
  const [key, falling] = [word.replace(/-$/, ""), word.endsWith("-")];
  return COLUMNS.some((column) => column.key === key) ? { key, falling } : null;
}

/** The state as an address would give it, to keep it while another picture is put behind it. */
function wantedNow() {
  return readAddress(addressOf());
}

/** Settings within the limits of the sliders. */
function limitedSettings(scene, settings) {
  const found = {};
  for (const name of SLIDERS.filter((each) => each in settings)) {
    const { min, max } = at(name);
    found[name] = Math.min(Math.max(settings[name], Number(min)), name === "side" ? scene.listedSide : Number(max));
  }
  if (found.topk) found.topk = Math.round(found.topk);
  if (settings.topk2 === null || settings.topk2 >= 1) found.topk2 = settings.topk2;
  return found;
}

// ---- assigning anew ------------------------------------------------------------------------------------------------

/** Assign with the settings. The picture follows at once, the lists when the slider rests, unless told otherwise. */
function reassign(wait = LISTS_WAIT) {
  const { scene, settings } = state;
  state.found = assign(scene, settings);
  state.rows = null;
  picture.setAssignment(state.found);
  renderSummary();
  renderChange();
  clearTimeout(state.listing);
  at("inspector").setAttribute("aria-busy", "true");
  if (wait) state.listing = setTimeout(() => renderLists(), wait);
  else for (const render of LISTS) render();
  rememberSoon();
}

/** The rows of all ground truths, made when they are first asked for. */
function allRows() {
  state.rows ??= truthRows(state.scene, state.found);
  return state.rows;
}

const LISTS = [renderNothing, renderTruths, renderSelection, () => at("inspector").setAttribute("aria-busy", "false")];

/** Make the lists anew, each in a task of its own, so that no event waits for all of them. */
function renderLists(place = 0) {
  LISTS[place]();
  if (place + 1 < LISTS.length) state.listing = setTimeout(() => renderLists(place + 1));
}

function renderSliders() {
  const { scene, settings, own } = state;
  at("side").max = String(scene.listedSide);
  at("side").disabled = scene.listedSide === 0;
  at("topk").max = String(Math.max(40, own.topk));
  at("side-note").textContent = scene.listedSide === 0
    ? "No minimum side can be tried here: this explanation lists no candidates of enlarged boxes. That of a model that is " +
      "exported with --min-box-side does, and that of yolo-assigner explain."
    : `A minimum side of up to ${scene.listedSide} pixels can be tried: up to there this explanation lists candidates.`;
  for (const name of SLIDERS) {
    at(name).value = String(settings[name]);
    at(`${name}-value`).textContent = name === "side" && settings[name] === 0 ? "none" : String(settings[name]);
  }
  at("one-to-one").checked = settings.topk2 === 1;
  at("reset").disabled = sameSettings(settings, own);
}

function changeSettings(changed) {
  Object.assign(state.settings, changed);
  renderSliders();
  reassign();
}

function renderChange() {
  const { found, ownFound, settings, own } = state;
  if (sameSettings(settings, own)) {
    at("change").textContent = "These are the model's own settings.";
    return;
  }
  const changed = (before, after) => found.truths
    .filter(({ slot }) => before.truths[slot].assigned === 0 && after.truths[slot].assigned > 0)
    .map(({ slot }) => slot);
  const [gained, lost] = [changed(ownFound, found), changed(found, ownFound)];
  const list = (slots) => `${slots.slice(0, 8).join(", ")}${slots.length > 8 ? ", …" : ""}`;
  const parts = [];
  if (gained.length) parts.push(`${gained.length} more learned (${list(gained)})`);
  if (lost.length) parts.push(`${lost.length} no longer learned (${list(lost)})`);
  at("change").textContent = `${parts.join("; ") || "The same ground truths are learned"}. Losses are those of the model's own settings.`;
}

// ---- what is shown -------------------------------------------------------------------------------------------------

function renderSummary() {
  const { found, scene } = state;
  const learned = found.truths.filter(({ assigned }) => assigned > 0).length;
  const weak = found.truths.filter((truth) => truth.weak).length;
  const positive = found.owner.reduce((total, pair) => total + Number(pair >= 0), 0);
  const tally = element("p", { class: "tally" }, element("strong", {}, `${learned} of ${scene.truths.length}`), " learned");
  const facts = [`${positive} of ${scene.anchors} anchors are positive`];
  if (weak) facts.push(`${weak} hardly count (weak)`);
  if (scene.loss?.total != null) facts.push(`loss ${shortNumber(scene.loss.total)}, of it background ${shortNumber(scene.loss.background)}`);
  at("summary-text").replaceChildren(tally, element("p", { class: "quiet" }, facts.join("; ") + "."));
}

function renderNothing() {
  const rows = allRows().filter((row) => row.assigned === 0);
  at("nothing").classList.toggle("some", rows.length > 0);
  at("nothing-heading").textContent = rows.length ? `Got nothing: ${rows.length}` : "Every ground truth has an anchor";
  const shown = state.allNothing ? rows : rows.slice(0, NOTHING_SHOWN);
  at("nothing-list").replaceChildren(...shown.map((row) => element("li", {}, nothingCard(row))));
  at("nothing-more").hidden = shown.length === rows.length;
  at("nothing-more").textContent = `Show all ${rows.length}`;
}

function nothingCard(row) {
  return element(
    "button",
    { type: "button", class: "card", "data-slot": row.slot, "aria-pressed": String(row.slot === state.selection.slot), click: () => selectTruth(row.slot) },
    element("b", {}, `Ground truth ${row.slot}: ${reasonWord(row.reason)}`),
    element("span", {}, row.sentence),
    element("span", { class: "remedy" }, row.remedy),
  );
}

function renderLevels() {
  const { scene, hidden } = state;
  const legend = element("legend", { class: "visually-hidden" }, "Anchors shown");
  at("levels").replaceChildren(legend, ...scene.levels.map(({ stride }, level) => {
    const box = element("input", { type: "checkbox", change: (event) => toggleLevel(level, event.target.checked) });
    box.checked = !hidden.has(level);
    return element("label", {}, box, marker(SHAPES[level % SHAPES.length]), `Stride ${stride}`);
  }));
}

function marker(shape) {
  const name = "http://www.w3.org/2000/svg";
  const [svg, path] = [document.createElementNS(name, "svg"), document.createElementNS(name, "path")];
  svg.setAttribute("viewBox", "-10 -10 20 20");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", markerPath(shape, 0, 0, 8));
  svg.append(path);
  return svg;
}

function toggleLevel(level, shown) {
  if (shown) state.hidden.delete(level);
  else state.hidden.add(level);
  picture.setHiddenLevels(state.hidden);
  rememberSoon();
}

function renderTruths() {
  const order = orderOfInterest(state.found);
  const rows = sortRows(allRows(), order, state.sort);
  const most = Math.max(0, ...allRows().map((row) => row.loss ?? 0));
  at("truth-head").replaceChildren(...headCells(state.sort, sortBy));
  const shown = rows.slice(state.truthPage * ROWS, (state.truthPage + 1) * ROWS);
  at("truth-rows").replaceChildren(...bodyRows(shown, { selected: state.selection.slot, most, onSelect: selectTruth }));
  at("truths-heading").textContent = `Ground truths (${rows.length})`;
  renderPages(at("truth-pages"), state.truthPage, rows.length, (page) => {
    state.truthPage = page;
    renderTruths();
  });
}

function sortBy(key) {
  const falling = state.sort?.key === key ? !state.sort.falling : false;
  state.sort = { key, falling };
  state.truthPage = 0;
  renderTruths();
  rememberSoon();
  at("truth-head").querySelector(`th[aria-sort]:not([aria-sort="none"]) button`).focus();
}

function renderPages(place, page, count, onPage) {
  if (count <= ROWS) return place.replaceChildren();
  const last = Math.ceil(count / ROWS) - 1;
  const turn = (label, to) => element("button", { type: "button", disabled: to < 0 || to > last, click: () => onPage(to) }, label);
  const text = `${page * ROWS + 1}–${Math.min(count, (page + 1) * ROWS)} of ${count}`;
  return place.replaceChildren(turn("Previous", page - 1), element("span", { class: "quiet" }, text), turn("Next", page + 1));
}

// ---- the selection -------------------------------------------------------------------------------------------------

function select(selection, say = true) {
  state.selection = selection;
  state.candidatePage = 0;
  picture.select(selection);
  const point = selection.anchor >= 0 ? anchorAt(state.scene, selection.anchor) : middleOf(selection.slot);
  if (point) picture.reveal(point.x, point.y);
  renderSelection();
  markSelected();
  if (say) at("status").textContent = spoken();
  rememberSoon();
}

function middleOf(slot) {
  if (slot < 0) return null;
  const [x1, y1, x2, y2] = state.scene.truths[slot].bbox;
  const inside = (value, size) => Math.min(Math.max(value, 0), size);
  return { x: inside((x1 + x2) / 2, state.scene.width), y: inside((y1 + y2) / 2, state.scene.height) };
}

function selectTruth(slot) {
  select({ slot, anchor: -1 });
}

/** Mark the selected rows and cards, without making them anew, so that the focus stays. */
function markSelected() {
  const { slot } = state.selection;
  for (const row of at("truth-rows").children) {
    const chosen = Number(row.dataset.slot) === slot;
    row.classList.toggle("selected", chosen);
    row.querySelector("button").setAttribute("aria-pressed", String(chosen));
  }
  for (const card of at("nothing-list").querySelectorAll(".card")) {
    card.setAttribute("aria-pressed", String(Number(card.dataset.slot) === slot));
  }
}

function renderSelection() {
  const { selection } = state;
  const open = selection.slot >= 0 || selection.anchor >= 0;
  at("selection").hidden = !open;
  renderCandidates();
  if (!open) return;
  const parts = [];
  if (selection.anchor >= 0) parts.push(...anchorParts(selection.anchor));
  if (selection.slot >= 0) parts.push(...truthParts(allRows()[selection.slot]));
  at("selection-heading").textContent = selection.anchor >= 0
    ? `Anchor ${selection.anchor}` : `Ground truth ${selection.slot}`;
  at("selection-text").replaceChildren(...parts);
}

function truthParts(row) {
  const colour = element("span", { class: "swatch", "aria-hidden": "true" });
  if (row.assigned) colour.style.background = COLOURS[state.colours[row.slot]];
  const parts = [element("p", {}, row.assigned ? colour : null, element("b", {}, row.sentence))];
  if (row.remedy) parts.push(element("p", {}, row.remedy));
  if (state.selection.anchor >= 0) parts.unshift(element("div", { class: "pair" }, element("h3", {}, `Ground truth ${row.slot}`)));
  for (const { sentence, remedy } of row.flags) parts.push(element("p", { class: "flag" }, `${sentence} `, element("span", { class: "quiet" }, remedy)));
  if (row.sum.rivals.length && row.assigned) parts.push(rivalsText(row.sum.rivals));
  const strides = state.scene.levels.map(({ stride }) => stride).join(", ");
  const facts = [
    ["Class", row.label], ["Box", `${shortNumber(row.width)} × ${shortNumber(row.height)} pixels`],
    [`Candidates of stride ${strides}`, row.perLevel.join(", ")], ["Chosen, lost, kept", `${row.chosen}, ${row.lost}, ${row.assigned}`],
    ["Sum of weights", shortNumber(row.weight)], ["Best IoU", shortNumber(row.bestIou)],
    ["Best score", shortNumber(row.bestScore)], ["Best metric", shortNumber(row.bestMetric)],
  ];
  if (row.parts) facts.push(["Loss", shortNumber(row.loss)]);
  parts.push(element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))])));
  if (row.parts && row.loss > 0) {
    const names = ["box", "class", at("dfl-name").textContent];
    const terms = names.map((name, index) => `${name} ${shortNumber(row.parts[index])}`).join(", ");
    parts.push(lossBar(row.parts, row.loss), element("p", { class: "quiet" }, terms));
  }
  return parts;
}

function rivalsText(rivals) {
  const links = rivals.slice(0, PAIRS_SHOWN).flatMap(({ slot, anchors }, index) => [index ? ", " : "", truthLink(slot, `${slot} (${anchors})`)]);
  return element("p", {}, "It lost anchors to ", ...links, rivals.length > PAIRS_SHOWN ? ", …" : "", ".");
}

function truthLink(slot, text) {
  return element("button", { type: "button", class: "link", click: () => selectTruth(slot) }, text);
}

/** The pairs of an anchor, the one that has it first, then by IoU: [{pair, rank}]. */
function pairsAt(anchor) {
  const { scene, found } = state;
  const { starts, order } = scene.byAnchor;
  const pairs = [...order.subarray(starts[anchor], starts[anchor + 1])].filter((pair) => found.inside[pair]);
  const { iou, slot } = scene.pairs;
  pairs.sort((one, other) => (other === found.owner[anchor]) - (one === found.owner[anchor]) || iou[other] - iou[one] || one - other);
  return pairs.map((pair) => ({ pair, slot: slot[pair], rank: () => ranked(scene, found, slot[pair]).find((each) => each.pair === pair).rank }));
}

function pairNumbers({ pair, rank }) {
  const { scene, found } = state;
  const { pairs } = scene;
  const place = rank();
  const numbers = `score ${shortNumber(pairs.score[pair])}, IoU ${shortNumber(pairs.iou[pair])}, metric ${shortNumber(found.metric[pair])}, rank ${place}`;
  const weight = found.weight[pair] > 0 ? `, weight ${shortNumber(found.weight[pair])}` : "";
  return { numbers: numbers + weight, outcome: describeOutcome(scene, found, pair, place) };
}

function whereIs(anchor) {
  const { level, stride, x, y } = anchorAt(state.scene, anchor);
  return `level ${level} (stride ${stride}), centre ${x}, ${y}`;
}

function anchorParts(anchor) {
  const pairs = pairsAt(anchor);
  const { level, stride, x, y } = anchorAt(state.scene, anchor);
  const parts = [element("p", { class: "quiet" }, `Level ${level}, stride ${stride}, centre ${x}, ${y}. ${candidateOf(pairs.length)}`)];
  for (const pair of pairs.slice(0, PAIRS_SHOWN)) {
    const { numbers, outcome } = pairNumbers(pair);
    parts.push(element("div", { class: "pair" },
      element("h3", {}, truthLink(pair.slot, `Ground truth ${pair.slot}`)), element("p", {}, outcome), element("p", { class: "quiet" }, numbers)));
  }
  if (pairs.length > PAIRS_SHOWN) parts.push(element("p", { class: "quiet" }, `And ${pairs.length - PAIRS_SHOWN} more.`));
  return parts;
}

function candidateOf(count) {
  if (count === 0) return "Background: its centre lies in no ground truth.";
  return `Candidate of ${count} ground truth${count === 1 ? "" : "s"}.`;
}

/** The selection in one sentence, for a screen reader. */
function spoken() {
  const { selection } = state;
  if (selection.anchor >= 0) {
    const [first] = pairsAt(selection.anchor);
    if (!first) return `Anchor ${selection.anchor}, ${whereIs(selection.anchor)}. Background.`;
    const { numbers, outcome } = pairNumbers(first);
    return `Anchor ${selection.anchor}, ${whereIs(selection.anchor)}. Ground truth ${first.slot}: ${numbers}. ${outcome}`;
  }
  if (selection.slot < 0) return "Nothing is selected.";
  const row = allRows()[selection.slot];
  return `Ground truth ${row.slot}, ${reasonWord(row.reason)}. ${row.sentence} ${row.remedy}`;
}

function renderCandidates() {
  const { selection, scene, found } = state;
  at("candidates").hidden = selection.slot < 0;
  if (selection.slot < 0) return;
  const rows = candidateRows(scene, found, selection.slot);
  at("candidates-heading").textContent = `Candidates of ground truth ${selection.slot} (${rows.length})`;
  const shown = rows.slice(state.candidatePage * ROWS, (state.candidatePage + 1) * ROWS);
  const onSelect = (anchor) => select({ slot: selection.slot, anchor });
  const cells = candidateCells(shown, { selected: selection.anchor, onSelect });
  const focused = at("candidate-rows").contains(document.activeElement) ? document.activeElement.textContent : null;
  at("candidate-rows").replaceChildren(...cells);
  if (focused) [...at("candidate-rows").querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
  renderPages(at("candidate-pages"), state.candidatePage, rows.length, (page) => {
    state.candidatePage = page;
    renderCandidates();
  });
}

// ---- pointer and keys ----------------------------------------------------------------------------------------------

const pointers = new Map();
let moved = false;

function local(event) {
  const { left, top } = at("canvas").getBoundingClientRect();
  return { x: event.clientX - left, y: event.clientY - top };
}

function onPointerDown(event) {
  pointers.set(event.pointerId, local(event));
  moved = pointers.size > 1;
  at("canvas").setPointerCapture(event.pointerId);
}

function onPointerMove(event) {
  const now = local(event);
  const before = pointers.get(event.pointerId);
  if (!before) return showTip(now);
  const travelled = Math.hypot(now.x - before.x, now.y - before.y);
  if (!moved && travelled < 4) return null;
  moved = true;
  hideTip();
  if (pointers.size === 2) {
    const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
    const spread = (point) => Math.hypot(point.x - other.x, point.y - other.y);
    picture.zoomBy(spread(now) / Math.max(spread(before), 1), (now.x + other.x) / 2, (now.y + other.y) / 2);
  } else {
    picture.panBy(before.x - now.x, before.y - now.y);
  }
  return pointers.set(event.pointerId, now);
}

function onPointerUp(event) {
  const known = pointers.delete(event.pointerId);
  if (!known || moved || event.type === "pointercancel") return;
  const { x, y } = local(event);
  const anchor = picture.anchorAtPoint(x, y);
  const owner = anchor >= 0 ? state.found.owner[anchor] : -1;
  // A click beside any positive anchor means the ground truth below it.
  if (owner >= 0) select({ slot: state.scene.pairs.slot[owner], anchor });
  else select({ slot: picture.truthAtPoint(x, y), anchor });
}

function showTip({ x, y }) {
  const anchor = picture.anchorAtPoint(x, y);
  picture.hover(anchor);
  if (anchor < 0) return hideTip();
  const tip = at("tip");
  const pairs = pairsAt(anchor);
  const lines = pairs.slice(0, 3).flatMap((pair) => {
    const { numbers, outcome } = pairNumbers(pair);
    return [element("b", {}, `Ground truth ${pair.slot}`), element("div", {}, outcome), element("div", { class: "quiet" }, numbers)];
  });
  if (pairs.length > 3) lines.push(element("div", { class: "quiet" }, `And ${pairs.length - 3} more.`));
  tip.replaceChildren(element("div", { class: "quiet" }, `Anchor ${anchor}, ${whereIs(anchor)}`), ...lines);
  tip.hidden = false;
  const { clientWidth, clientHeight } = at("canvas");
  tip.style.left = `${Math.max(0, Math.min(x + 18, clientWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight < clientHeight ? y + 18 : Math.max(0, y - 18 - tip.offsetHeight)}px`;
  return null;
}

function hideTip() {
  at("tip").hidden = true;
  picture.hover(-1);
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  "+": () => picture.zoomBy(ZOOM_STEP), "=": () => picture.zoomBy(ZOOM_STEP), "-": () => picture.zoomBy(1 / ZOOM_STEP),
  0: () => picture.fit(), n: () => stepTruth(1), p: () => stepTruth(-1), PageUp: () => changeLevel(1),
  PageDown: () => changeLevel(-1), Enter: selectOwner, Escape: () => select({ slot: -1, anchor: -1 }),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!arrow && !action) return;
  event.preventDefault();
  hideTip();
  if (!arrow) action();
  else if (event.shiftKey) picture.panBy(60 * arrow[0], 60 * arrow[1]);
  else moveAnchor(...arrow);
}

/** The anchor to begin at: one of the selected ground truth, else that in the middle of the view. */
function firstAnchor() {
  const { scene, selection, found } = state;
  if (selection.anchor >= 0) return selection.anchor;
  if (selection.slot >= 0) {
    const best = ranked(scene, found, selection.slot)[0];
    if (best) return scene.pairs.anchor[best.pair];
  }
  const { x, y } = middleOf(selection.slot) ?? picture.view;
  return anchorNear(scene, 0, Math.min(x, scene.width - 1), Math.min(y, scene.height - 1));
}

function moveAnchor(dx, dy) {
  const { scene, selection } = state;
  const from = firstAnchor();
  const { level, stride, x, y } = anchorAt(scene, from);
  const next = selection.anchor < 0 ? from : anchorNear(scene, level, x + dx * stride, y + dy * stride);
  if (next >= 0) select({ slot: selection.slot, anchor: next });
}

function changeLevel(by) {
  const { scene, selection } = state;
  const { level, x, y } = anchorAt(scene, firstAnchor());
  if (level + by < 0 || level + by >= scene.levels.length) return;
  select({ slot: selection.slot, anchor: anchorNear(scene, level + by, x, y) });
}

function stepTruth(by) {
  const order = sortRows(allRows(), orderOfInterest(state.found), state.sort).map((row) => row.slot);
  const place = order.indexOf(state.selection.slot);
  const next = place < 0 ? (by > 0 ? 0 : order.length - 1) : (place + by + order.length) % order.length;
  if (order.length) selectTruth(order[next]);
}

function selectOwner() {
  const anchor = firstAnchor();
  const owner = state.found.owner[anchor];
  if (owner >= 0) select({ slot: state.scene.pairs.slot[owner], anchor });
}

// ---- saving --------------------------------------------------------------------------------------------------------

function save(blob, name) {
  const address = URL.createObjectURL(blob);
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function fileName(ending) {
  const name = state.names[state.image] ?? `${state.title}-${state.image}`;
  return `${name.replace(/\.[^.]*$/, "").replace(/[^\w.-]+/g, "-")}-assignment.${ending}`;
}

async function copyLink() {
  history.replaceState(null, "", `#${addressOf()}`);
  await navigator.clipboard.writeText(location.href).catch(() => {
    throw new Error("the browser does not let this page copy; copy the address above, which has the same");
  });
  at("status").textContent = "The link is copied.";
  at("copy-link").textContent = "Copied";
  setTimeout(() => (at("copy-link").textContent = "Copy link"), 2000);
}

function setTheme(theme) {
  state.theme = theme;
  at("theme").value = theme;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  rememberSoon();
}

// ---- wiring --------------------------------------------------------------------------------------------------------

function listen() {
  for (const id of ["open-sample", "start-sample"]) at(id).addEventListener("click", () => attempt(() => openSample()));
  at("open-files").addEventListener("click", () => at("files").click());
  at("files").addEventListener("change", () => attempt(() => openFiles([...at("files").files])));
  at("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    state.key = at("key").value.trim();
    attempt(ask);
  });
  at("input-side").addEventListener("change", () => attempt(changeInputSide));
  at("image").addEventListener("change", () => showImage(Number(at("image").value), { settings: { ...state.settings } }));
  for (const name of SLIDERS) at(name).addEventListener("input", () => changeSettings({ [name]: Number(at(name).value) }));
  at("one-to-one").addEventListener("change", () => {
    const off = state.own.topk2 === 1 ? null : state.own.topk2;
    changeSettings({ topk2: at("one-to-one").checked ? 1 : off });
  });
  at("reset").addEventListener("click", () => changeSettings({ ...state.own }));
  at("nothing-more").addEventListener("click", () => {
    state.allNothing = true;
    renderNothing();
  });
  at("zoom-in").addEventListener("click", () => picture.zoomBy(ZOOM_STEP));
  at("zoom-out").addEventListener("click", () => picture.zoomBy(1 / ZOOM_STEP));
  at("zoom-fit").addEventListener("click", () => picture.fit());
  at("save-picture").addEventListener("click", () => attempt(async () => save(await picture.toBlob(), fileName("png"))));
  at("save-table").addEventListener("click", () => save(new Blob([toCsv(allRows())], { type: "text/csv" }), fileName("csv")));
  at("copy-link").addEventListener("click", () => attempt(copyLink));
  at("theme").addEventListener("change", () => setTheme(at("theme").value));
  listenToCanvas();
  listenToDrops();
}

function listenToCanvas() {
  const canvas = at("canvas");
  canvas.addEventListener("pointerdown", onPointerDown);
  canvas.addEventListener("pointermove", onPointerMove);
  canvas.addEventListener("pointerup", onPointerUp);
  canvas.addEventListener("pointercancel", onPointerUp);
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("dblclick", (event) => picture.zoomBy(2, local(event).x, local(event).y));
  canvas.addEventListener("keydown", onKey);
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    picture.zoomBy(Math.exp(-event.deltaY / 300), local(event).x, local(event).y);
  }, { passive: false });
}

function listenToDrops() {
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (!embedded()) attempt(() => openFiles([...event.dataTransfer.files]));
  });
}

function start() {
  listen();
  const wanted = readAddress(location.hash.slice(1));
  setTheme(wanted.theme);
  setInputSide(wanted.inputSide);
  const report = embedded();
  if (report) attempt(() => openEmbedded(report, wanted));
  else if (wanted.open === "sample") attempt(() => openSample(wanted));
}

start();
