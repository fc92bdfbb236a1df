// What is asked of the service: npz, safetensors, or pictures with their labels in, the JSON of POST /v1/explain out.

const ZIP_END = 0x06054b50; // end of the central directory
const ZIP_ENTRY = 0x02014b50;
const END_SIZE = 22;
const MOST_COMMENT = 0xffff;
const PADDING = "rgb(114 114 114)"; // the grey that YOLO detectors are trained with
const BOX_NUMBERS = 5; // class, centre x, centre y, width, height
const LEAST_OUTLINE = 7; // a class and three points
const NUMPY = { f2: "F16", f4: "F32", f8: "F64", i8: "I64", i4: "I32", i2: "I16", i1: "I8", u1: "U8", b1: "BOOL" };
const BYTES = { F16: 2, BF16: 2, F32: 4, F64: 8, I64: 8, I32: 4, I16: 2, I8: 1, U8: 1, BOOL: 1 };
const READERS = {
  F32: (view, place) => view.getFloat32(place, true),
  F64: (view, place) => view.getFloat64(place, true),
  I64: (view, place) => Number(view.getBigInt64(place, true)),
  I32: (view, place) => view.getInt32(place, true),
  I16: (view, place) => view.getInt16(place, true),
  I8: (view, place) => view.getInt8(place),
  U8: (view, place) => view.getUint8(place),
  BOOL: (view, place) => view.getUint8(place),
  BF16: (view, place) => bfloat16(view.getUint16(place, true)),
  F16: (view, place) => float16(view.getUint16(place, true)),
};

/** Read a request file: tensors by name, each {dtype, shape, bytes}, or for text {text}. */
export async function readTensors(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (/\.npz$/i.test(file.name)) return readNpz(bytes);
  if (/\.safetensors$/i.test(file.name)) return readSafetensors(bytes);
  throw new Error(`${file.name} is no request file; give .npz or .safetensors`);
}

/** The names of the pictures that a request file gives, in the order of its images; empty without. */
export function pictureNames(tensors) {
  return tensors.names?.text ?? [];
}

/** The JSON of POST /v1/explain for the tensors of a request file. */
export function explainRequest(tensors) {
  const feats = [];
  for (let level = 0; tensors[`feat_${level}`]; level++) feats.push(packed(tensors[`feat_${level}`]));
  if (feats.length === 0) {
    throw new Error(`the file has ${Object.keys(tensors).join(", ") || "nothing"}, but no feat_0, feat_1, ...: the maps`);
  }
  for (const name of ["batch_idx", "cls", "bboxes"]) {
    if (!tensors[name]) throw new Error(`the file has no ${name}; it needs batch_idx, cls and bboxes beside the maps`);
  }
  const boxes = numbersOf(tensors.bboxes);
  const bboxes = Array.from({ length: boxes.length / 4 }, (_, row) => boxes.slice(4 * row, 4 * row + 4));
  return { feats, batch: { batch_idx: numbersOf(tensors.batch_idx), cls: numbersOf(tensors.cls), bboxes } };
}

/**
 * Pictures as a detector takes them: each in the middle of a square, with its labels.
 *
 * Args: picture files; label files in YOLO's format, of the same names; the side of the square in pixels.
 * Returns: `body`, the JSON of POST /v1/explain; `names`; and `bitmaps`, the squares.
 */
export async function pictureRequest(pictures, labels, side) {
  const pairs = pairUp(pictures, labels);
  const fitted = await Promise.all(pairs.map(({ picture }) => fitPicture(picture, side)));
  const batch = { batch_idx: [], cls: [], bboxes: [] };
  for (const [image, { label }] of pairs.entries()) {
    const { left, top, width, height } = fitted[image].frame;
    for (const [cls, x, y, w, h] of readLabels(await label.text(), label.name)) {
      batch.batch_idx.push(image);
      batch.cls.push(cls);
      batch.bboxes.push([left + x * width, top + y * height, w * width, h * height]);
    }
  }
  const values = new Float32Array(3 * side * side * pairs.length);
  fitted.forEach(({ pixels }, image) => copyPlanes(pixels, values.subarray(3 * side * side * image)));
  const shape = [pairs.length, 3, side, side];
  const images = { shape, dtype: "float32", base64: base64(new Uint8Array(values.buffer)) };
  return { body: { images, batch }, names: pairs.map(({ picture }) => picture.name), bitmaps: fitted.map(({ bitmap }) => bitmap) };
}

/** Each picture with its labels: the files of one name, or the only two. */
function pairUp(pictures, labels) {
  if (pictures.length === 1 && labels.length === 1) return [{ picture: pictures[0], label: labels[0] }];
  const stem = ({ name }) => name.replace(/\.[^.]*$/, "");
  const [named, wanted] = [new Map(labels.map((label) => [stem(label), label])), new Set(pictures.map(stem))];
  const alone = labels.find((label) => !wanted.has(stem(label)));
  if (alone) throw new Error(`${alone.name} has no picture; give ${stem(alone)}.jpg or .png with it`);
  const bare = pictures.find((picture) => !named.has(stem(picture)));
  if (bare) throw new Error(`${bare.name} has no labels; give ${stem(bare)}.txt with it, empty if it shows no object`);
  return [...pictures].sort((one, other) => (one.name < other.name ? -1 : 1))
    .map((picture) => ({ picture, label: named.get(stem(picture)) }));
}

/** Fit a picture into a square, its sides in proportion: the square, its pixels, and where the picture lies, as shares. */
async function fitPicture(file, side) {
  const picture = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name} cannot be read as a picture`);
  });
  const scale = side / Math.max(picture.width, picture.height);
  const [width, height] = [picture.width, picture.height].map((length) => Math.max(Math.round(length * scale), 1));
  const [left, top] = [(side - width) >> 1, (side - height) >> 1];
  const square = new OffscreenCanvas(side, side);
  const context = square.getContext("2d", { willReadFrequently: true });
  context.fillStyle = PADDING;
  context.fillRect(0, 0, side, side);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, left, top, width, height);
  const { data } = context.getImageData(0, 0, side, side);
  const frame = { left: left / side, top: top / side, width: width / side, height: height / side };
  return { pixels: data, frame, bitmap: square.transferToImageBitmap() };
}

/** Copy the red, the green and the blue of pixels, in [0, 1], one after the other. */
function copyPlanes(pixels, planes) {
  const count = pixels.length / 4;
  for (let colour = 0; colour < 3; colour++) {
    for (let pixel = 0; pixel < count; pixel++) planes[colour * count + pixel] = pixels[4 * pixel + colour] / 255;
  }
}

/** The rows of a label file: class, centre x, centre y, width, height, as shares of the picture. */
function readLabels(text, name) {
  const lines = text.split(/\r?\n/).map((line, index) => ({ numbers: line.split(/\s+/).filter(Boolean).map(Number), place: index + 1 }));
  return lines.filter(({ numbers }) => numbers.length).map(({ numbers, place }) => {
    if (!numbers.every(Number.isFinite)) throw new Error(`${name} line ${place} has something that is no number`);
    if (numbers.length === BOX_NUMBERS) return numbers;
    if (numbers.length < LEAST_OUTLINE || numbers.length % 2 === 0) {
      throw new Error(
        `${name} line ${place} has ${numbers.length} numbers; give class, centre x, centre y, width, height, or a ` +
          "class and three or more points",
      );
    }
    const along = (axis) => numbers.slice(1).filter((_, index) => index % 2 === axis);
    const [left, right, top, bottom] = [along(0), along(1)].flatMap((places) => [Math.min(...places), Math.max(...places)]);
    return [numbers[0], (left + right) / 2, (top + bottom) / 2, right - left, bottom - top];
  });
}

/** Send a request to the service; the key may be empty. Raises an error with a `status` when it is refused. */
export async function askService(body, key) {
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const reply = await fetch("v1/explain", { method: "POST", headers, body: JSON.stringify(body) });
  const found = await reply.json().catch(() => ({ error: `status ${reply.status}` }));
  if (!reply.ok) throw Object.assign(new Error(found.error), { status: reply.status });
  return found;
}

async function readNpz(bytes) {
  const view = new DataView(bytes.buffer);
  const tensors = {};
  let place = endOfZip(view);
  let count = view.getUint16(place + 10, true);
  place = view.getUint32(place + 16, true);
  for (; count > 0; count--) {
    if (view.getUint32(place, true) !== ZIP_ENTRY) throw new Error("the npz file is damaged: an entry is not where it should be");
    const [method, size] = [view.getUint16(place + 10, true), view.getUint32(place + 20, true)];
    const [name, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(place + offset, true));
    const title = new TextDecoder().decode(bytes.subarray(place + 46, place + 46 + name));
    const local = view.getUint32(place + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    tensors[title.replace(/\.npy$/, "")] = readNpy(title, await inflate(bytes.subarray(start, start + size), method));
    place += 46 + name + extra + comment;
  }
  return tensors;
}

function endOfZip(view) {
  const first = Math.max(0, view.byteLength - END_SIZE - MOST_COMMENT);
  for (let place = view.byteLength - END_SIZE; place >= first; place--) {
    if (view.getUint32(place, true) === ZIP_END) return place;
  }
  throw new Error("the npz file is damaged: it has no list of its arrays");
}

async function inflate(bytes, method) {
  if (method === 0) return bytes;
  if (method !== 8) throw new Error("the npz file is compressed in an unknown way; write it with numpy.savez");
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function readNpy(title, bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const wide = bytes[6] > 1;
  const start = wide ? 12 : 10;
  const length = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder().decode(bytes.subarray(start, start + length));
  const descr = /'descr': '([^']*)'/.exec(header)?.[1] ?? "?";
  const shape = (/'shape': \(([^)]*)\)/.exec(header)?.[1] ?? "").split(",").filter((word) => word.trim()).map(Number);
  const content = bytes.subarray(start + length);
  if (descr.startsWith("<U")) return { text: readText(content, Number(descr.slice(2)), shape) };
  const dtype = NUMPY[descr.slice(1)];
  if (!dtype || descr[0] === ">" || header.includes("'fortran_order': True")) {
    throw new Error(`${title} is of type ${descr} or not row-major; write numbers in row-major, little-endian order`);
  }
  return { dtype, shape, bytes: content };
}

function readText(bytes, length, shape) {
  const codes = new Uint32Array(bytes.slice().buffer);
  const words = [];
  for (let word = 0; word < shape.reduce((size, axis) => size * axis, 1); word++) {
    words.push(String.fromCodePoint(...codes.subarray(word * length, (word + 1) * length).filter((code) => code)));
  }
  return words;
}

function readSafetensors(bytes) {
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [begin, end] = entry.data_offsets.map((offset) => 8 + length + offset);
    if (!(entry.dtype in BYTES)) throw new Error(`${name} is of type ${entry.dtype}; write it as F16 or F32`);
    tensors[name] = { dtype: entry.dtype, shape: entry.shape, bytes: bytes.subarray(begin, end) };
  }
  return tensors;
}

/** The numbers of a tensor in their order. */
export function numbersOf({ dtype, bytes }) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [size, read] = [BYTES[dtype], READERS[dtype]];
  return Array.from({ length: bytes.byteLength / size }, (_, index) => read(view, index * size));
}

function packed(tensor) {
  const { shape } = tensor;
  if (tensor.dtype === "F16" || tensor.dtype === "F32") {
    return { shape, dtype: tensor.dtype === "F16" ? "float16" : "float32", base64: base64(tensor.bytes) };
  }
  const values = Float32Array.from(numbersOf(tensor));
  return { shape, dtype: "float32", base64: base64(new Uint8Array(values.buffer)) };
}

function base64(bytes) {
  const pieces = [];
  for (let place = 0; place < bytes.length; place += 0x8000) {
    pieces.push(String.fromCharCode(...bytes.subarray(place, place + 0x8000)));
  }
  return btoa(pieces.join(""));
}

function bfloat16(bits) {
  return new Float32Array(Uint32Array.of(bits << 16).buffer)[0];
}

function float16(bits) {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
