// What run_model.py does, for onnxruntime-node and onnxruntime-web under node; started in the folder that holds
// node_modules: node run_model.mjs ENGINE MODEL OUT BATCH...
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [engine, model, out, ...batches] = process.argv.slice(2);
const ort = createRequire(path.join(process.cwd(), "/"))(engine);
const TYPES = {
  F32: ["float32", Float32Array],
  I64: ["int64", BigInt64Array],
  BOOL: ["bool", Uint8Array],
};

// The format of safetensors: length of the header in 8 bytes, the header as JSON, the tensors' bytes.
function read(file) {
  const bytes = fs.readFileSync(file);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, start));
  delete header.__metadata__;
  const tensor = ({ dtype, shape, data_offsets: [begin, end] }) => {
    const [type, array] = TYPES[dtype];
    const copy = Uint8Array.from(bytes.subarray(start + begin, start + end));
    return new ort.Tensor(type, new array(copy.buffer), shape);
  };
  return Object.fromEntries(Object.entries(header).map(([name, entry]) => [name, tensor(entry)]));
}

function write(file, outputs) {
  const header = {};
  const parts = [];
  let end = 0;
  for (const [name, { type, dims, data }] of Object.entries(outputs)) {
    const dtype = Object.keys(TYPES).find((key) => TYPES[key][0] === type);
    parts.push(Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    header[name] = { dtype, shape: dims, data_offsets: [end, (end += data.byteLength)] };
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  fs.writeFileSync(file, Buffer.concat([length, text, ...parts]));
}

const say = (line) => console.log(JSON.stringify(line));

ort.env.logLevel = "fatal";
if (engine === "onnxruntime-web") ort.env.wasm.numThreads = 1;
const source = engine === "onnxruntime-web" ? fs.readFileSync(model) : model;
let session;
try {
  session = await ort.InferenceSession.create(source, { logSeverityLevel: 4, intraOpNumThreads: 1 });
} catch (error) {
  console.error(String(error.message ?? error)); // node would add its own version as the last line
  process.exit(1);
}
for (const file of batches) {
  const batch = path.basename(file);
  say({ batch });
  try {
    write(path.join(out, batch), await session.run(read(file)));
  } catch (error) {
    say({ batch, error: String(error.message ?? error) });
  }
}
process.exit(0); // the wasm build keeps node alive
