// The assignment, from the candidate pairs that an explanation lists: pure functions of typed arrays, no page.
//
// A scene is one image of an explanation document; an assignment is what one choice of parameters makes of it. Steps,
// tie rules and rounding to float32 are those of docs/mathematics.md, so that the document's own parameters give the
// document's own outcomes, and others give what torch gives.

export const OUTCOMES = ["assigned", "below_topk", "lost_to", "dropped_by_topk2", "outside"];
export const [ASSIGNED, BELOW_TOPK, LOST_TO, DROPPED, OUTSIDE] = OUTCOMES.keys();
export const LAST_PRODUCT = 16; // exponents up to it are computed by multiplication
const CLIPPING_MARGIN = 0.01;
const WEAK_SHARE = 0.1;
const MOST_NAMED = 3; // rivals in a sentence
const TERMS = ["box", "cls", "dfl"];
const f32 = Math.fround;

/** Raise an error that says what is wrong with a document, if anything is. */
export function checkDocument(found) {
  if (found?.format !== "yolo-assigner explanation") {
    throw new Error("this is no explanation document; open one of POST /v1/explain or yolo-assigner explain");
  }
  if (found.version !== 1) throw new Error(`the document has version ${found.version}, this page reads version 1`);
  if (found.images.some((image) => image.pairs === null)) {
    throw new Error("the document lists no candidates; make it with pairs");
  }
  return found;
}

/** Read one image of a document. */
export function readScene(document, image) {
  const { levels, parameters, imgsz } = document;
  const { ground_truths: truths, pairs, loss } = document.images[image];
  const columns = {
    slot: Int32Array.from(pairs.slot),
    anchor: Int32Array.from(pairs.anchor),
    level: Uint8Array.from(pairs.level),
    iou: Float32Array.from(pairs.iou),
    score: Float32Array.from(pairs.score),
    metric: Float32Array.from(pairs.metric),
    outside: Uint8Array.from(pairs.outcome, (outcome) => Number(document.outcomes[outcome] === "outside")),
  };
  const last = levels.at(-1);
  const anchors = last.first_anchor + last.height * last.width;
  const scene = { levels, parameters, truths, loss, anchors, pairs: columns, powers: {}, height: imgsz[0], width: imgsz[1] };
  scene.bySlot = startsOf(columns.slot, truths.length);
  scene.byAnchor = pairsByAnchor(columns.anchor, anchors);
  scene.needed = neededSides(scene);
  scene.ownSide = parameters.min_box_side ?? 0;
  scene.listedSide = document.listed_side ?? scene.ownSide;
  return scene;
}

/** Level, centre and stride of an anchor. */
export function anchorAt(scene, anchor) {
  let level = scene.levels.length - 1;
  while (anchor < scene.levels[level].first_anchor) level--;
  const { stride, width, first_anchor: first } = scene.levels[level];
  const row = Math.floor((anchor - first) / width);
  const column = (anchor - first) % width;
  return { level, stride, row, column, x: (column + 0.5) * stride, y: (row + 0.5) * stride };
}

/** Anchor of a level whose cell contains a point; -1 outside the image. */
export function anchorNear(scene, level, x, y) {
  const { stride, width, height, first_anchor: first } = scene.levels[level];
  const column = Math.floor(x / stride);
  const row = Math.floor(y / stride);
  return column < 0 || row < 0 || column >= width || row >= height ? -1 : first + row * width + column;
}

/** Where the pairs of each slot begin, (M + 1); they are listed slot by slot. */
function startsOf(slot, count) {
  const starts = new Int32Array(count + 1);
  for (const each of slot) starts[each + 1]++;
  for (let i = 0; i < count; i++) starts[i + 1] += starts[i];
  return starts;
}

/** Pairs of each anchor: those of anchor a are `order[starts[a]]` to `order[starts[a + 1] - 1]`, by slot. */
function pairsByAnchor(anchor, count) {
  const starts = startsOf(anchor, count);
  const next = starts.slice();
  const order = new Int32Array(anchor.length);
  for (let pair = 0; pair < anchor.length; pair++) order[next[anchor[pair]]++] = pair;
  return { starts, order };
}

/** The side beyond which each pair's box must be enlarged to contain the anchor's centre; 0 where it does anyway. */
function neededSides(scene) {
  const { slot, anchor } = scene.pairs;
  const needed = new Float32Array(slot.length);
  for (let pair = 0; pair < slot.length; pair++) {
    const [x1, y1, x2, y2] = scene.truths[slot[pair]].bbox;
    const { x, y } = anchorAt(scene, anchor[pair]);
    const [dx, dy] = [Math.abs(2 * x - x1 - x2), Math.abs(2 * y - y1 - y2)];
    needed[pair] = Math.max(dx < x2 - x1 ? 0 : dx, dy < y2 - y1 ? 0 : dy);
  }
  return needed;
}

/** The parameters that a document was made with, in the form that `assign` takes. */
export function ownSettings(scene) {
  const { topk, alpha, beta, topk2 } = scene.parameters;
  return { topk, alpha, beta, topk2: topk2 ?? null, side: scene.ownSide };
}

/** Whether two settings are the same. */
export function sameSettings(one, other) {
  return ["topk", "alpha", "beta", "topk2", "side"].every((name) => one[name] === other[name]);
}

/**
 * Assign with other parameters.
 *
 * Args: a scene; settings: topk, alpha, beta, topk2 (null: all) and side, the minimum side of a box's area in pixels.
 * Returns: per pair `metric`, `outcome`, `lostTo` (-1: nobody) and `weight`; per anchor `owner`, the pair that has it or
 * -1; and what `summarise` says about each ground truth.
 */
export function assign(scene, settings, summary = true) {
  const { pairs } = scene;
  const inside = candidatesAt(scene, settings.side);
  const metric = metricsOf(scene, settings);
  const chosen = choose(scene, inside, metric, settings.topk);
  const { best, takers } = findWinners(scene, inside, chosen);
  const count = pairs.slot.length;
  const outcome = new Uint8Array(count);
  const lostTo = new Int32Array(count).fill(-1);
  for (let pair = 0; pair < count; pair++) {
    const anchor = pairs.anchor[pair];
    const contested = takers[anchor] > 1;
    if (!inside[pair]) outcome[pair] = OUTSIDE;
    else if (contested ? best[anchor] === pair : chosen[pair]) outcome[pair] = ASSIGNED;
    else if (chosen[pair]) {
      outcome[pair] = LOST_TO;
      lostTo[pair] = pairs.slot[best[anchor]];
    } else outcome[pair] = BELOW_TOPK;
  }
  if (settings.topk2 !== null) keepBest(scene, metric, outcome, settings.topk2);
  const weight = weigh(scene, metric, outcome);
  const owner = new Int32Array(scene.anchors).fill(-1);
  for (let pair = 0; pair < count; pair++) if (outcome[pair] === ASSIGNED) owner[pairs.anchor[pair]] = pair;
  const found = { settings, inside, metric, chosen, outcome, lostTo, weight, owner };
  if (summary) found.truths = scene.truths.map((truth) => summarise(scene, found, truth.slot));
  if (summary) markWeak(found.truths);
  return found;
}

/** Which pairs are candidates at a minimum side, 0 or 1 each. */
function candidatesAt(scene, side) {
  const { needed, pairs: { outside } } = scene;
  const inside = new Uint8Array(needed.length);
  // The document's own answer was computed from coordinates of all digits.
  const own = side === scene.ownSide;
  for (let pair = 0; pair < inside.length; pair++) {
    inside[pair] = own ? 1 - outside[pair] : needed[pair] === 0 || needed[pair] < side;
  }
  return inside;
}

function metricsOf(scene, { alpha, beta }) {
  const { metric } = scene.pairs;
  const { alpha: ownAlpha, beta: ownBeta } = scene.parameters;
  if (alpha === ownAlpha && beta === ownBeta) return metric;
  const [scores, ious] = [powersOf(scene, "score", alpha), powersOf(scene, "iou", beta)];
  const found = new Float32Array(metric.length);
  for (let pair = 0; pair < found.length; pair++) {
    const value = f32(scores[pair] * ious[pair]);
    found[pair] = value > 0 ? value : 0;
  }
  return found;
}

/** A column of the pairs to a power; the last one is kept, as only one of two exponents changes at a time. */
function powersOf(scene, column, exponent) {
  const kept = scene.powers[column];
  if (kept?.exponent === exponent) return kept.values;
  const values = scene.pairs[column].map((base) => power(base, exponent));
  scene.powers[column] = { exponent, values };
  return values;
}

/** base^exponent in float32, with the products and roots of the exported models. */
export function power(base, exponent) {
  const whole = Math.floor(exponent);
  if (exponent === 0) return 1;
  if (whole === exponent && whole <= LAST_PRODUCT) return wholePower(base, whole);
  if (whole + 0.5 !== exponent || whole > LAST_PRODUCT) return f32(Math.exp(exponent * Math.log(base)));
  const root = f32(Math.sqrt(base));
  return whole === 0 ? root : f32(wholePower(base, whole) * root);
}

function wholePower(base, exponent) {
  let [square, whole] = [base, exponent];
  while (whole % 2 === 0) [square, whole] = [f32(square * square), whole / 2];
  let result = square;
  while (whole > 1) {
    [square, whole] = [f32(square * square), Math.floor(whole / 2)];
    if (whole % 2) result = f32(result * square);
  }
  return result;
}

/** Step 3: which pairs are among the k largest metrics of their slot, none of them 0; 0 or 1 each. */
function choose(scene, inside, metric, topk) {
  const chosen = new Uint8Array(metric.length);
  const fits = (pair) => inside[pair] && metric[pair] > 0;
  for (let slot = 0; slot < scene.truths.length; slot++) {
    for (const pair of largest(scene, slot, metric, topk, fits)) chosen[pair] = 1;
  }
  return chosen;
}

/** Up to `limit` fitting pairs of a slot by falling metric, among equal ones by the anchor. */
function largest(scene, slot, metric, limit, fits) {
  const found = [];
  // Pairs come by ascending anchor, so that one that is only equal stays behind those found before.
  for (let pair = scene.bySlot[slot]; pair < scene.bySlot[slot + 1]; pair++) {
    if (!fits(pair)) continue;
    if (found.length === limit && !(metric[pair] > metric[found[limit - 1]])) continue;
    let place = found.length;
    while (place > 0 && metric[pair] > metric[found[place - 1]]) place--;
    found.splice(place, 0, pair);
    if (found.length > limit) found.pop();
  }
  return found;
}

/** Step 4: per anchor the candidate of largest IoU, of equal ones that of the smallest slot, and how many chose it. */
function findWinners(scene, inside, chosen) {
  const { anchor, iou } = scene.pairs;
  const best = new Int32Array(scene.anchors).fill(-1);
  const takers = new Uint16Array(scene.anchors);
  for (let pair = 0; pair < anchor.length; pair++) {
    if (!inside[pair]) continue;
    const a = anchor[pair];
    if (best[a] < 0 || iou[pair] > iou[best[a]]) best[a] = pair;
    takers[a] += chosen[pair];
  }
  return { best, takers };
}

/** Each slot keeps the `topk2` largest metrics of those it won, none of them 0. */
function keepBest(scene, metric, outcome, topk2) {
  const won = (pair) => outcome[pair] === ASSIGNED && metric[pair] > 0;
  for (let slot = 0; slot < scene.truths.length; slot++) {
    const kept = new Set(largest(scene, slot, metric, topk2, won));
    for (let pair = scene.bySlot[slot]; pair < scene.bySlot[slot + 1]; pair++) {
      if (outcome[pair] === ASSIGNED && !kept.has(pair)) outcome[pair] = DROPPED;
    }
  }
}

/** Step 5: the normalized alignment score of each assigned pair; 0 elsewhere. */
function weigh(scene, metric, outcome) {
  const weight = new Float32Array(metric.length);
  const { bySlot, pairs, parameters } = scene;
  for (let slot = 0; slot < scene.truths.length; slot++) {
    let [maxMetric, maxIou] = [0, 0];
    for (let pair = bySlot[slot]; pair < bySlot[slot + 1]; pair++) {
      if (outcome[pair] !== ASSIGNED) continue;
      if (metric[pair] > maxMetric) maxMetric = metric[pair];
      if (pairs.iou[pair] > maxIou) maxIou = pairs.iou[pair];
    }
    const divisor = f32(maxMetric + f32(parameters.eps));
    for (let pair = bySlot[slot]; pair < bySlot[slot + 1]; pair++) {
      if (outcome[pair] === ASSIGNED) weight[pair] = f32(f32(metric[pair] * maxIou) / divisor);
    }
  }
  return weight;
}

/** Candidates of a slot with their places by metric, best first: [{pair, rank}]. */
export function ranked(scene, found, slot) {
  const pairs = [];
  for (let pair = scene.bySlot[slot]; pair < scene.bySlot[slot + 1]; pair++) if (found.inside[pair]) pairs.push(pair);
  pairs.sort((one, other) => found.metric[other] - found.metric[one] || one - other);
  return pairs.map((pair, place) => ({ pair, rank: place + 1 }));
}

/** What became of a ground truth: section 9 of docs/mathematics.md. */
function summarise(scene, found, slot) {
  const { pairs, bySlot } = scene;
  const sum = { slot, candidates: scene.levels.map(() => 0), chosen: 0, lost: 0, assigned: 0, weight: 0 };
  Object.assign(sum, { bestIou: 0, bestScore: 0, bestMetric: 0 });
  let took = null; // by slot, how many anchors it took
  for (let pair = bySlot[slot]; pair < bySlot[slot + 1]; pair++) {
    if (!found.inside[pair]) continue;
    sum.candidates[pairs.level[pair]]++;
    sum.chosen += found.chosen[pair];
    if (pairs.iou[pair] > sum.bestIou) sum.bestIou = pairs.iou[pair];
    if (pairs.score[pair] > sum.bestScore) sum.bestScore = pairs.score[pair];
    if (found.metric[pair] > sum.bestMetric) sum.bestMetric = found.metric[pair];
    if (found.outcome[pair] === LOST_TO) {
      sum.lost++;
      took ??= new Map();
      took.set(found.lostTo[pair], (took.get(found.lostTo[pair]) ?? 0) + 1);
    } else if (found.outcome[pair] === ASSIGNED) {
      sum.assigned++;
      sum.weight += found.weight[pair];
    }
  }
  sum.rivals = [...(took ?? [])].map(([rival, anchors]) => ({ slot: rival, anchors }));
  sum.rivals.sort((one, other) => other.anchors - one.anchors || one.slot - other.slot);
  sum.reason = reasonOf(scene.truths[slot], sum);
  sum.clipped = clippedShare(scene, found, slot, sum.assigned);
  return sum;
}

function reasonOf(truth, sum) {
  if (sum.assigned > 0) return "assigned";
  // These two do not depend on the parameters.
  if (truth.reason === "invalid" || truth.reason === "outside") return truth.reason;
  if (sum.candidates.every((count) => count === 0)) return "no_anchor";
  if (sum.bestIou <= 0 && sum.bestMetric <= 0) return "no_overlap";
  return sum.bestMetric <= 0 ? "no_score" : "contested";
}

/** Share of the sides of the slot's anchors that lie beyond the last bin. */
function clippedShare(scene, found, slot, assigned) {
  const { reg_max: bins } = scene.parameters;
  if (bins === 1 || assigned === 0) return 0;
  const [x1, y1, x2, y2] = scene.truths[slot].bbox;
  let beyond = 0;
  for (let pair = scene.bySlot[slot]; pair < scene.bySlot[slot + 1]; pair++) {
    if (found.outcome[pair] !== ASSIGNED) continue;
    const { x, y, stride } = anchorAt(scene, scene.pairs.anchor[pair]);
    const longest = (bins - 1 - CLIPPING_MARGIN) * stride;
    for (const distance of [x - x1, y - y1, x2 - x, y2 - y]) beyond += Number(distance > longest);
  }
  return beyond / (4 * assigned);
}

/** Mark ground truths whose weights' sum is far below the median of those that have anchors. */
function markWeak(truths) {
  const sums = truths.filter((truth) => truth.assigned > 0).map((truth) => truth.weight);
  sums.sort((one, other) => one - other);
  const median = (sums[(sums.length - 1) >> 1] + sums[sums.length >> 1]) / 2;
  for (const truth of truths) truth.weak = truth.assigned > 0 && truth.weight < WEAK_SHARE * median;
}

/** The reason in words and what would help, in the words of yolo_loss.explain: {sentence, remedy}. */
export function describe(truth, sum) {
  const candidates = sum.candidates.reduce((total, count) => total + count, 0);
  return DESCRIPTIONS[sum.reason](truth, sum, counted(candidates, "candidate"));
}

const DESCRIPTIONS = {
  assigned: (_, { assigned }) => said(`${counted(assigned, "anchor")} learn${assigned === 1 ? "s" : ""} it.`),
  invalid: asComputed,
  outside: asComputed,
  no_anchor: (truth, sum) =>
    truth.reason === "no_anchor" ? asComputed(truth) : said(
      "No anchor's centre lies inside the box at this minimum side.",
      "A larger minimum side helps; so do larger images or a head with a finer level.",
    ),
  no_overlap: (_, __, candidates) => said(
    `No box that is predicted at its ${candidates} overlaps it: every IoU is 0.`,
    "Early in a training this is ordinary, and ends as similar objects are learned. If it lasts, check the box's " +
      "coordinates, or give it more candidates by a larger min_box_side.",
  ),
  no_score: (_, { bestIou, bestScore }, candidates) => said(
    `A predicted box overlaps it (IoU ${digits(bestIou)}), but every metric is 0: the largest score of its class at ` +
      `its ${candidates} is ${digits(bestScore)}.`,
    "Check its class; a smaller alpha lets the IoU decide, and a smaller beta keeps powers of small IoUs above 0.",
  ),
  contested: (_, { chosen, rivals }) => said(
    `${chosen > 1 ? `All ${chosen} anchors` : "The only anchor"} that it chose went to ${named(rivals)} more with the ` +
      "boxes predicted there.",
    "Check whether the labels repeat one object; with a larger topk it also chooses anchors that no other ground " +
      "truth wants, and a finer level or larger images put more anchors between crowded objects.",
  ),
};

function said(sentence, remedy = "") {
  return { sentence, remedy };
}

function asComputed({ sentence, remedy }) {
  return { sentence, remedy };
}

function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** Two significant digits, as Python's `.2g` writes them. */
export function digits(value) {
  if (value === 0) return "0";
  const exponent = Number(value.toExponential(1).split("e")[1]);
  if (exponent >= -4 && exponent < 2) return String(Number(value.toPrecision(2)));
  const [mantissa, power10] = value.toExponential(1).split("e");
  const size = String(Math.abs(Number(power10))).padStart(2, "0");
  return `${Number(mantissa)}e${power10[0]}${size}`;
}

function named(rivals) {
  if (rivals.length <= 1) return `ground truth ${rivals[0].slot}, which overlaps`;
  const first = rivals.slice(0, MOST_NAMED).map(({ slot, anchors }) => `${slot} (${anchors})`).join(", ");
  const others = rivals.length - MOST_NAMED;
  return `ground truths ${first}${others > 0 ? ` and ${others} more` : ""}, which overlap`;
}

/** Flags in words: [{flag, sentence, remedy}]. */
export function flagsOf(truth, sum) {
  const flags = [];
  if (sum.clipped > 0) {
    flags.push({
      flag: "clipped",
      sentence:
        `The head cannot express ${Math.round(100 * sum.clipped)} % of the sides of its anchors' targets: they are ` +
        "beyond the last bin.",
      remedy: "A larger reg_max, a further level of a coarser stride, or smaller images.",
    });
  }
  // Depends on the boxes alone.
  flags.push(...truth.flags.filter(({ flag }) => flag === "duplicate"));
  if (sum.weak) {
    flags.push({
      flag: "weak",
      sentence:
        `Its anchors have a sum of weights below ${WEAK_SHARE} of the image's median, so it is hardly learned.`,
      remedy: "Look at its rivals and its best IoU; a larger topk, a larger min_box_side or larger images help.",
    });
  }
  return flags;
}

/** What became of a candidate, in the words of yolo_loss.explain. */
export function describeOutcome(scene, found, pair, rank) {
  const { topk, topk2, side } = found.settings;
  switch (found.outcome[pair]) {
    case ASSIGNED:
      return `The anchor learns this ground truth${whyWon(beatenAt(scene, found, pair), rank)}.`;
    case BELOW_TOPK:
      return `Not chosen: ${rank <= topk ? "its metric is 0" : `it is number ${rank} by metric, and topk is ${topk}`}.`;
    case LOST_TO:
      return `Chosen, but ground truth ${found.lostTo[pair]} overlaps more with the box predicted here.`;
    case DROPPED:
      return `Won, but dropped: topk2 keeps ${topk2} of the ground truth's anchors, those of larger metric.`;
    default:
      return `No candidate: the anchor's centre is not in the box${side ? ` enlarged to ${side} pixels` : ""}.`;
  }
}

/** Slots of the other ground truths that chose a pair's anchor. */
function beatenAt(scene, found, pair) {
  const { starts, order } = scene.byAnchor;
  const anchor = scene.pairs.anchor[pair];
  return [...order.subarray(starts[anchor], starts[anchor + 1])]
    .filter((other) => other !== pair && found.chosen[other]).map((other) => scene.pairs.slot[other]);
}

function whyWon(beaten, rank) {
  if (beaten.length === 0) return `: number ${rank} by metric, and no other chose the anchor`;
  const others = beaten.length - MOST_NAMED;
  const named = beaten.slice(0, MOST_NAMED).join(", ") + (others > 0 ? ` and ${others} more` : "");
  return `: it overlaps more with the box predicted here than ground truth${beaten.length === 1 ? "" : "s"} ${named}, which also chose the anchor`;
}

/** Parts of a ground truth's loss by term, which add up to its total; null without a loss. */
export function lossParts(truth, gains) {
  if (!truth.loss || truth.loss.total === null) return null;
  const weighted = TERMS.map((term) => gains[term] * (truth.loss[term] ?? 0));
  const sum = weighted.reduce((total, part) => total + part, 0);
  return weighted.map((part) => (sum > 0 ? (part / sum) * truth.loss.total : 0));
}

/** Slots in the order of interest: those that got nothing, then weak ones, then the others, each by slot. */
export function orderOfInterest(found) {
  const grade = (truth) => (truth.assigned === 0 ? 0 : truth.weak ? 1 : 2);
  return found.truths.map((truth) => truth.slot)
    .sort((one, other) => grade(found.truths[one]) - grade(found.truths[other]) || one - other);
}

/** A palette index for each ground truth; neighbours differ where the palette is large enough. */
export function colourTruths(scene, colours) {
  const boxes = scene.truths.map(({ bbox }) => grown(bbox));
  const chosen = new Uint8Array(boxes.length);
  for (let slot = 0; slot < boxes.length; slot++) {
    const used = new Uint16Array(colours);
    for (let other = 0; other < slot; other++) if (touch(boxes[slot], boxes[other])) used[chosen[other]]++;
    const start = slot % colours; // so that all colours are used
    let best = start;
    for (let step = 1; step < colours; step++) {
      const colour = (start + step) % colours;
      if (used[colour] < used[best]) best = colour;
    }
    chosen[slot] = best;
  }
  return chosen;
}

function grown([x1, y1, x2, y2]) {
  const margin = Math.max(x2 - x1, y2 - y1) / 2;
  return [x1 - margin, y1 - margin, x2 + margin, y2 + margin];
}

function touch(one, other) {
  return one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3];
}
