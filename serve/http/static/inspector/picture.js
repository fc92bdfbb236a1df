// The picture: one canvas with ground truths and positive anchors, and an SVG over it with what is selected.

import { ASSIGNED, LOST_TO, anchorAt, anchorNear } from "./model.js";

// Okabe and Ito's colours, which colour-blind people can tell apart; all are drawn with a dark outline.
export const COLOURS = ["#e69f00", "#56b4e9", "#00b386", "#f0e442", "#3d94ff", "#ff7f3f", "#e7a1cb"];
export const SHAPES = ["circle", "square", "diamond", "triangle"];
const DARK = "rgb(0 0 0 / 0.8)";
const SVG = "http://www.w3.org/2000/svg";
const SIZES = 6; // sizes of anchors, by their weight
const SMALLEST = 2.5; // radii in CSS pixels
const LARGEST = 8;
const REACH = 14; // CSS pixels from which a positive anchor is hit
const MOST_ZOOM = 40; // times the size that fits
const DIMMED = 0.4;

/** Draws a scene and finds what is at a point; says by `onView` when the view has changed. */
export class Picture {
  constructor(canvas, overlay, onView) {
    Object.assign(this, { canvas, overlay, onView });
    this.hiddenLevels = new Set();
    this.selection = { slot: -1, anchor: -1 };
    this.hovered = -1;
    this.view = null;
    this.sprites = new Map();
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  /** Show another image; the bitmap may be null. */
  setScene(scene, bitmap, colours) {
    Object.assign(this, { scene, bitmap, colours, found: null, hovered: -1 });
    this.resize();
    this.fit();
  }

  /** Show another assignment of the image. */
  setAssignment(found) {
    this.found = found;
    this.anchors = positiveAnchors(this.scene, found);
    this.redraw();
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    const ratio = window.devicePixelRatio || 1;
    if (clientWidth === 0) return;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (this.ratio !== ratio) this.sprites.clear();
    this.ratio = ratio;
    if (this.scene) this.setView(this.atFit || !this.view ? this.fittingView() : this.view);
  }

  fittingView() {
    const { clientWidth, clientHeight } = this.canvas;
    const scale = Math.min(clientWidth / this.scene.width, clientHeight / this.scene.height);
    return { x: this.scene.width / 2, y: this.scene.height / 2, zoom: 1, scale };
  }

  fit() {
    this.setView(this.fittingView());
  }

  /** Look at a centre in picture pixels, at a zoom of which 1 fits. */
  setView({ x, y, zoom }) {
    const fitting = this.fittingView();
    const limited = Math.min(Math.max(zoom, 1), MOST_ZOOM);
    const scale = fitting.scale * limited;
    const near = (value, size, shown) => {
      const half = Math.min(shown / scale, size) / 2;
      return Math.min(Math.max(value, half), size - half);
    };
    const { clientWidth, clientHeight } = this.canvas;
    this.view = {
      x: near(x, this.scene.width, clientWidth), y: near(y, this.scene.height, clientHeight), zoom: limited, scale,
    };
    this.atFit = limited === 1;
    this.canvas.style.touchAction = this.atFit ? "pan-y" : "none";
    this.redraw();
    this.onView();
  }

  panBy(dx, dy) {
    const { x, y, zoom, scale } = this.view;
    this.setView({ x: x + dx / scale, y: y + dy / scale, zoom });
  }

  /** Zoom by a factor; the point (px, py) of the canvas keeps its place. */
  zoomBy(factor, px = this.canvas.clientWidth / 2, py = this.canvas.clientHeight / 2) {
    const before = this.toPicture(px, py);
    const zoom = Math.min(Math.max(this.view.zoom * factor, 1), MOST_ZOOM);
    const scale = (this.view.scale / this.view.zoom) * zoom;
    const { clientWidth, clientHeight } = this.canvas;
    this.setView({ x: before.x - (px - clientWidth / 2) / scale, y: before.y - (py - clientHeight / 2) / scale, zoom });
  }

  /** Bring a point into view, if it is not. */
  reveal(x, y) {
    const at = this.toCanvas(x, y);
    const { clientWidth, clientHeight } = this.canvas;
    if (at.x < 0 || at.y < 0 || at.x > clientWidth || at.y > clientHeight) this.setView({ ...this.view, x, y });
  }

  toPicture(px, py) {
    const { x, y, scale } = this.view;
    return { x: x + (px - this.canvas.clientWidth / 2) / scale, y: y + (py - this.canvas.clientHeight / 2) / scale };
  }

  toCanvas(x, y) {
    const { x: cx, y: cy, scale } = this.view;
    return { x: (x - cx) * scale + this.canvas.clientWidth / 2, y: (y - cy) * scale + this.canvas.clientHeight / 2 };
  }

  /** The anchor at a point of the canvas: a positive one nearby, else the nearest with candidates; -1 without. */
  anchorAtPoint(px, py) {
    if (!this.found) return -1;
    const { x, y } = this.toPicture(px, py);
    let best = { anchor: -1, distance: Infinity };
    for (let level = 0; level < this.scene.levels.length; level++) {
      if (this.hiddenLevels.has(level)) continue;
      for (const anchor of anchorsAround(this.scene, level, x, y)) {
        const positive = this.found.owner[anchor] >= 0;
        if (!positive && !isCandidate(this.scene, this.found, anchor)) continue;
        const at = anchorAt(this.scene, anchor);
        const pixels = Math.hypot(at.x - x, at.y - y) * this.view.scale;
        const distance = positive && pixels < REACH ? pixels - 2 * REACH : pixels;
        if (pixels < at.stride * this.view.scale && distance < best.distance) best = { anchor, distance };
      }
    }
    return best.anchor;
  }

  /** The smallest ground truth at a point of the canvas; -1 without. */
  truthAtPoint(px, py) {
    const { x, y } = this.toPicture(px, py);
    const margin = 3 / this.view.scale;
    let best = { slot: -1, area: Infinity };
    for (const { slot, bbox } of this.scene?.truths ?? []) {
      const [x1, y1, x2, y2] = bbox;
      const area = (x2 - x1) * (y2 - y1);
      const inside = x > x1 - margin && x < x2 + margin && y > y1 - margin && y < y2 + margin;
      if (inside && area < best.area) best = { slot, area };
    }
    return best.slot;
  }

  select(selection) {
    this.selection = selection;
    this.redraw();
  }

  hover(anchor) {
    if (anchor === this.hovered) return;
    this.hovered = anchor;
    this.drawOverlay();
  }

  setHiddenLevels(levels) {
    this.hiddenLevels = levels;
    this.redraw();
  }

  /** Draw before the next frame, once. */
  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => this.draw());
  }

  /** Draw now. */
  draw() {
    this.waiting = false;
    if (!this.scene || !this.found || !this.view || !this.canvas.width) return;
    const context = this.canvas.getContext("2d");
    drawScene(context, this);
    this.drawOverlay();
  }

  drawOverlay() {
    if (!this.view || !this.found) return;
    const { clientWidth, clientHeight } = this.canvas;
    this.overlay.setAttribute("viewBox", `0 0 ${clientWidth} ${clientHeight}`);
    this.overlay.replaceChildren(...selectionShapes(this), ...hoverShapes(this));
  }

  /** A PNG of what is shown, with the selection. */
  async toBlob() {
    this.draw();
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [this.canvas.width, this.canvas.height];
    const context = copy.getContext("2d");
    context.fillStyle = getComputedStyle(this.canvas).backgroundColor;
    context.fillRect(0, 0, copy.width, copy.height);
    context.drawImage(this.canvas, 0, 0);
    context.scale(this.ratio, this.ratio);
    for (const shape of this.overlay.children) paintShape(context, shape);
    return new Promise((done) => copy.toBlob(done, "image/png"));
  }
}

/** Anchors of a level whose cells are at a point or around it. */
function* anchorsAround(scene, level, x, y) {
  const { stride } = scene.levels[level];
  for (const dy of [-1, 0, 1]) {
    for (const dx of [-1, 0, 1]) {
      const anchor = anchorNear(scene, level, x + dx * stride, y + dy * stride);
      if (anchor >= 0) yield anchor;
    }
  }
}

function isCandidate(scene, found, anchor) {
  const { starts, order } = scene.byAnchor;
  for (let place = starts[anchor]; place < starts[anchor + 1]; place++) if (found.inside[order[place]]) return true;
  return false;
}

/** Columns of the positive anchors: their pairs, coordinates, levels and size classes. */
function positiveAnchors(scene, found) {
  const pairs = found.owner.filter((pair) => pair >= 0);
  const columns = { pair: pairs, slot: new Int32Array(pairs.length), level: new Uint8Array(pairs.length) };
  columns.x = new Float32Array(pairs.length);
  columns.y = new Float32Array(pairs.length);
  columns.size = new Uint8Array(pairs.length);
  pairs.forEach((pair, index) => {
    const { x, y, level } = anchorAt(scene, scene.pairs.anchor[pair]);
    [columns.x[index], columns.y[index], columns.level[index]] = [x, y, level];
    columns.slot[index] = scene.pairs.slot[pair];
    columns.size[index] = Math.min(SIZES - 1, Math.floor(Math.sqrt(found.weight[pair]) * SIZES));
  });
  return columns;
}

function drawScene(context, picture) {
  const { canvas, scene, bitmap, ratio, selection } = picture;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const [from, to] = [picture.toCanvas(0, 0), picture.toCanvas(scene.width, scene.height)];
  if (bitmap) {
    context.imageSmoothingEnabled = picture.view.zoom < 4;
    context.drawImage(bitmap, from.x, from.y, to.x - from.x, to.y - from.y);
  } else {
    context.fillStyle = "#5b636e";
    context.fillRect(from.x, from.y, to.x - from.x, to.y - from.y);
  }
  context.globalAlpha = selection.slot >= 0 ? DIMMED : 1;
  drawBoxes(context, picture);
  drawAnchors(context, picture);
  context.globalAlpha = 1;
}

function drawBoxes(context, picture) {
  const { scene, found, colours } = picture;
  const paths = COLOURS.map(() => new Path2D());
  const [all, nothing] = [new Path2D(), new Path2D()];
  for (const { slot, bbox } of scene.truths) {
    const rectangle = rectangleOf(picture, bbox);
    const path = found.truths[slot].assigned > 0 ? paths[colours[slot]] : nothing;
    all.rect(...rectangle);
    path.rect(...rectangle);
  }
  outline(context, all, DARK, 3.5);
  paths.forEach((path, index) => outline(context, path, COLOURS[index], 1.75));
  context.setLineDash([5, 4]);
  outline(context, nothing, "#ffffff", 2);
  context.setLineDash([]);
}

function rectangleOf(picture, [x1, y1, x2, y2]) {
  const [from, to] = [picture.toCanvas(x1, y1), picture.toCanvas(x2, y2)];
  return [from.x, from.y, to.x - from.x, to.y - from.y];
}

function outline(context, path, colour, width) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke(path);
}

function drawAnchors(context, picture) {
  const { anchors, colours, hiddenLevels, selection, canvas, ratio } = picture;
  const growth = Math.min(2, Math.max(0.4, picture.view.scale / 1.8));
  const [width, height] = [canvas.width / ratio, canvas.height / ratio];
  for (let index = 0; index < anchors.pair.length; index++) {
    const level = anchors.level[index];
    if (hiddenLevels.has(level)) continue;
    const at = picture.toCanvas(anchors.x[index], anchors.y[index]);
    if (at.x < -LARGEST || at.y < -LARGEST || at.x > width + LARGEST || at.y > height + LARGEST) continue;
    const slot = anchors.slot[index];
    const sprite = spriteOf(picture, colours[slot], level, anchors.size[index], growth);
    const half = sprite.width / ratio / 2;
    if (slot === selection.slot) context.globalAlpha = 1;
    context.drawImage(sprite, at.x - half, at.y - half, 2 * half, 2 * half);
    if (slot === selection.slot) context.globalAlpha = DIMMED;
  }
}

/** A small canvas with one marker. Thousands of them are drawn in one frame. */
function spriteOf(picture, colour, level, size, growth) {
  const step = Math.round(growth * 8) / 8;
  const key = `${colour} ${level} ${size} ${step}`;
  if (picture.sprites.has(key)) return picture.sprites.get(key);
  const radius = (SMALLEST + (LARGEST - SMALLEST) * (size / (SIZES - 1))) * step;
  const sprite = document.createElement("canvas");
  sprite.width = sprite.height = 2 * Math.ceil((radius + 1.5) * picture.ratio);
  const context = sprite.getContext("2d");
  context.translate(sprite.width / 2, sprite.height / 2);
  context.scale(picture.ratio, picture.ratio);
  const path = new Path2D(markerPath(SHAPES[level % SHAPES.length], 0, 0, radius));
  context.fillStyle = COLOURS[colour];
  context.fill(path);
  outline(context, path, DARK, 1.25);
  picture.sprites.set(key, sprite);
  return sprite;
}

/** SVG path of a marker. */
export function markerPath(shape, x, y, r) {
  switch (shape) {
    case "circle":
      return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`;
    case "square":
      return `M${x - 0.85 * r} ${y - 0.85 * r}h${1.7 * r}v${1.7 * r}h${-1.7 * r}z`;
    case "diamond":
      return `M${x} ${y - 1.2 * r}l${1.2 * r} ${1.2 * r}l${-1.2 * r} ${1.2 * r}l${-1.2 * r} ${-1.2 * r}z`;
    default:
      return `M${x} ${y - 1.15 * r}l${1.1 * r} ${1.95 * r}h${-2.2 * r}z`;
  }
}

function selectionShapes(picture) {
  const { selection, scene, found } = picture;
  const shapes = [];
  if (selection.slot >= 0) {
    const { bbox } = scene.truths[selection.slot];
    const area = enlarged(bbox, found.settings.side);
    const box = rectanglePath(rectangleOf(picture, bbox));
    if (area.some((side, index) => side !== bbox[index])) {
      shapes.push(...twoTone(rectanglePath(rectangleOf(picture, area)), 1.5, "3 4"));
    }
    shapes.push(...twoTone(box, 2.5, found.truths[selection.slot].assigned ? "" : "6 4"));
    shapes.push(...candidateShapes(picture));
  }
  if (selection.anchor >= 0) {
    const { x, y } = anchorAt(scene, selection.anchor);
    const at = picture.toCanvas(x, y);
    const cross = `M${at.x - 18} ${at.y}h8M${at.x + 10} ${at.y}h8M${at.x} ${at.y - 18}v8M${at.x} ${at.y + 10}v8`;
    shapes.push(...twoTone(markerPath("circle", at.x, at.y, 12) + cross, 2, ""));
  }
  return shapes;
}

/** The candidates of the selected ground truth: a ring where it won, a cross where another did, else a point. */
function candidateShapes(picture) {
  const { scene, found, selection, hiddenLevels } = picture;
  let [rings, crosses, points] = ["", "", ""];
  for (let pair = scene.bySlot[selection.slot]; pair < scene.bySlot[selection.slot + 1]; pair++) {
    if (!found.inside[pair] || hiddenLevels.has(scene.pairs.level[pair])) continue;
    const { x, y, stride } = anchorAt(scene, scene.pairs.anchor[pair]);
    const at = picture.toCanvas(x, y);
    const radius = Math.min(9, Math.max(3, 0.42 * stride * picture.view.scale)); // rings of neighbours stay apart
    if (found.outcome[pair] === ASSIGNED) rings += markerPath("circle", at.x, at.y, radius);
    else if (found.outcome[pair] === LOST_TO) crosses += `M${at.x - 4} ${at.y - 4}l8 8m0 -8l-8 8`;
    else points += markerPath("circle", at.x, at.y, 1.2);
  }
  const shapes = [];
  if (points) shapes.push(...twoTone(points, 1.2, ""));
  if (rings) shapes.push(...twoTone(rings, 1.5, ""));
  if (crosses) shapes.push(...twoTone(crosses, 2, ""));
  return shapes;
}

function hoverShapes(picture) {
  if (picture.hovered < 0) return [];
  const { x, y } = anchorAt(picture.scene, picture.hovered);
  const at = picture.toCanvas(x, y);
  return twoTone(markerPath("circle", at.x, at.y, 10), 1.5, "");
}

/** A ground truth's area at a minimum side. */
function enlarged([x1, y1, x2, y2], side) {
  const [width, height] = [Math.max(x2 - x1, side), Math.max(y2 - y1, side)];
  const [x, y] = [(x1 + x2) / 2, (y1 + y2) / 2];
  const sides = [width > x2 - x1, height > y2 - y1];
  return [
    sides[0] ? x - width / 2 : x1, sides[1] ? y - height / 2 : y1,
    sides[0] ? x + width / 2 : x2, sides[1] ? y + height / 2 : y2,
  ];
}

function rectanglePath([x, y, width, height]) {
  return `M${x} ${y}h${width}v${height}h${-width}z`;
}

/** A white line on a dark one, which is seen on any picture. */
function twoTone(path, width, dashes) {
  const under = line(path, "#000000", width + 2);
  const over = line(path, "#ffffff", width);
  if (dashes) over.setAttribute("stroke-dasharray", dashes);
  return [under, over];
}

function line(path, colour, width) {
  const shape = document.createElementNS(SVG, "path");
  const attributes = { d: path, fill: "none", stroke: colour, "stroke-width": width, "stroke-linejoin": "round" };
  for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
  return shape;
}

function paintShape(context, shape) {
  const dashes = shape.getAttribute("stroke-dasharray");
  context.setLineDash(dashes ? dashes.split(" ").map(Number) : []);
  outline(context, new Path2D(shape.getAttribute("d")), shape.getAttribute("stroke"), Number(shape.getAttribute("stroke-width")));
  context.setLineDash([]);
}
