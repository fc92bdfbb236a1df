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
const LEAST_DASHED = 12; // CSS pixels, the shorter side

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
    // Kept, as reading them from the page takes longer than what is done with them.
    [this.width, this.height] = [clientWidth, clientHeight];
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (this.ratio !== ratio) this.sprites.clear();
    this.ratio = ratio;
    if (this.scene) this.setView(this.atFit || !this.view ? this.fittingView() : this.view);
  }

  fittingView() {
    const scale = Math.min(this.width / this.scene.width, this.height / this.scene.height);
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
    const [cx, cy] = [near(x, this.scene.width, this.width), near(y, this.scene.height, this.height)];
    this.view = { x: cx, y: cy, zoom: limited, scale };
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
  zoomBy(factor, px = this.width / 2, py = this.height / 2) {
    const before = this.toPicture(px, py);
    const zoom = Math.min(Math.max(this.view.zoom * factor, 1), MOST_ZOOM);
    const scale = (this.view.scale / this.view.zoom) * zoom;
    this.setView({ x: before.x - (px - this.width / 2) / scale, y: before.y - (py - this.height / 2) / scale, zoom });
  }

  /** Bring a point into view, if it is not. */
  reveal(x, y) {
    const at = this.toCanvas(x, y);
    if (at.x < 0 || at.y < 0 || at.x > this.width || at.y > this.height) this.setView({ ...this.view, x, y });
  }

  toPicture(px, py) {
    const { x, y, scale } = this.view;
    return { x: x + (px - this.width / 2) / scale, y: y + (py - this.height / 2) / scale };
  }

  toCanvas(x, y) {
    const { x: cx, y: cy, scale } = this.view;
    return { x: (x - cx) * scale + this.width / 2, y: (y - cy) * scale + this.height / 2 };
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
    this.overlay.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
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
  const shown = scene.truths.map(({ slot, bbox }) => ({ slot, rectangle: rectangleOf(picture, bbox) }))
    .filter(({ rectangle }) => isShown(picture, rectangle));
  // Rectangles one by one are drawn far faster than as parts of one path; by colour, to change the state seldom.
  const groups = [...COLOURS.map(() => []), []];
  for (const { slot, rectangle } of shown) {
    groups[found.truths[slot].assigned > 0 ? colours[slot] : COLOURS.length].push(rectangle);
  }
  const stroke = (rectangles, colour, width) => {
    [context.strokeStyle, context.lineWidth] = [colour, width];
    for (const rectangle of rectangles) context.strokeRect(...rectangle);
  };
  for (const rectangles of groups) stroke(rectangles, DARK, 3.5);
  COLOURS.forEach((colour, index) => stroke(groups[index], colour, 1.75));
  stroke(groups.at(-1).filter((rectangle) => !isDashed(rectangle)), "#ffffff", 1.5);
  context.setLineDash([5, 4]);
  stroke(groups.at(-1).filter(isDashed), "#ffffff", 2);
  context.setLineDash([]);
}

/** Whether a rectangle is large enough for dashes to be seen as such. */
function isDashed([, , width, height]) {
  return Math.min(width, height) >= LEAST_DASHED;
}

function isShown(picture, [x, y, width, height]) {
  return x < picture.width && y < picture.height && x + width > 0 && y + height > 0;
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

/** Draw the positive anchors, all but the selected ground truth's by way of one bitmap: thousands take milliseconds. */
function drawAnchors(context, picture) {
  const { anchors, hiddenLevels, selection, ratio } = picture;
  const layer = layerOf(picture);
  const pixels = new Uint32Array(layer.image.data.buffer).fill(0);
  const selected = [];
  for (let index = 0; index < anchors.pair.length; index++) {
    if (hiddenLevels.has(anchors.level[index])) continue;
    if (anchors.slot[index] === selection.slot) selected.push(index);
    else stamp(pixels, layer.image, spriteOf(picture, index), picture.toCanvas(anchors.x[index], anchors.y[index]), ratio);
  }
  layer.context.putImageData(layer.image, 0, 0);
  context.drawImage(layer.canvas, 0, 0, picture.width, picture.height);
  context.globalAlpha = 1;
  for (const index of selected) {
    const path = new Path2D(markerOf(picture, index, picture.toCanvas(anchors.x[index], anchors.y[index])));
    context.fillStyle = COLOURS[picture.colours[selection.slot]];
    context.fill(path);
    outline(context, path, DARK, 1.25);
  }
}

/** A bitmap as large as the canvas, kept between frames. */
function layerOf(picture) {
  const { width, height } = picture.canvas;
  if (picture.layer?.canvas.width !== width || picture.layer.canvas.height !== height) {
    const canvas = new OffscreenCanvas(width, height);
    picture.layer = { canvas, context: canvas.getContext("2d"), image: new ImageData(width, height) };
  }
  return picture.layer;
}

/** Copy a sprite to a bitmap. Soft edges stay soft on the picture; on another marker they are cut. */
function stamp(pixels, { width, height }, sprite, at, ratio) {
  const left = Math.round(at.x * ratio) - sprite.half;
  const top = Math.round(at.y * ratio) - sprite.half;
  const size = 2 * sprite.half;
  if (left + size <= 0 || top + size <= 0 || left >= width || top >= height) return;
  for (let row = Math.max(0, -top); row < Math.min(size, height - top); row++) {
    for (let column = Math.max(0, -left); column < Math.min(size, width - left); column++) {
      const value = sprite.pixels[row * size + column];
      const place = (top + row) * width + left + column;
      if (value >>> 31 || (value && !pixels[place])) pixels[place] = value; // alpha, the highest byte, is half or more
    }
  }
}

function radiusOf(picture, index) {
  const growth = Math.min(2, Math.max(0.4, picture.view.scale / 1.8));
  const size = SMALLEST + (LARGEST - SMALLEST) * (picture.anchors.size[index] / (SIZES - 1));
  return size * (Math.round(growth * 8) / 8);
}

function markerOf(picture, index, { x, y }) {
  return markerPath(SHAPES[picture.anchors.level[index] % SHAPES.length], x, y, radiusOf(picture, index));
}

/** The pixels of an anchor's marker, made once for each colour, shape and radius. */
function spriteOf(picture, index) {
  const { ratio, sprites, colours, anchors } = picture;
  const colour = colours[anchors.slot[index]];
  const radius = radiusOf(picture, index);
  const key = colour + 16 * (anchors.level[index] % SHAPES.length) + 256 * Math.round(radius * 64);
  if (sprites.has(key)) return sprites.get(key);
  const half = Math.ceil((1.3 * radius + 1.5) * ratio);
  const context = new OffscreenCanvas(2 * half, 2 * half).getContext("2d");
  context.translate(half, half);
  context.scale(ratio, ratio);
  const path = new Path2D(markerOf(picture, index, { x: 0, y: 0 }));
  context.fillStyle = COLOURS[colour];
  context.fill(path);
  outline(context, path, DARK, 1.25);
  const { data } = context.getImageData(0, 0, 2 * half, 2 * half);
  const sprite = { half, pixels: new Uint32Array(data.buffer) };
  sprites.set(key, sprite);
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
    const rectangle = rectangleOf(picture, bbox);
    if (area.some((side, index) => side !== bbox[index])) {
      shapes.push(...twoTone(rectanglePath(rectangleOf(picture, area)), 1.5, "3 4"));
    }
    const dashed = !found.truths[selection.slot].assigned && isDashed(rectangle);
    shapes.push(...twoTone(rectanglePath(rectangle), 2.5, dashed ? "6 4" : ""));
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
    // Marks of neighbours stay apart.
    const radius = Math.min(9, Math.max(3, 0.42 * stride * picture.view.scale));
    const arm = radius / 2;
    if (found.outcome[pair] === ASSIGNED) rings += markerPath("circle", at.x, at.y, radius);
    else if (found.outcome[pair] === LOST_TO) crosses += `M${at.x - arm} ${at.y - arm}l${2 * arm} ${2 * arm}m0 ${-2 * arm}l${-2 * arm} ${2 * arm}`;
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
