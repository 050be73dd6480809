// The static page: predicts an image or the frames of a camera with transformers.js. pixel_text.js comes before. The page holds
// `facts`: the tasks with the kinds of their maps, the colors, and where the files of the runtime are.
import { AutoModel, Tensor, env } from "@huggingface/transformers";

const facts = JSON.parse(document.querySelector("#facts").textContent);
const [status, maps, precision, camera] = ["#status", "#maps", "#precision", "#camera"].map((id) => document.querySelector(id));
const query = new URLSearchParams(location.search); // ?device=wasm&dtype=int8
const source = document.createElement("canvas"); // the image at the size that the model takes
const figures = {};
let model, settings, shown = null, stream = null, pointed = null, turn = Promise.resolve();

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.useBrowserCache = false; // a new export at the same address is another model
if (facts.wasm) {
  const resolve = (path) => new URL(path, document.baseURI).href;
  env.backends.onnx.wasm.wasmPaths = { mjs: resolve(facts.wasm.mjs), wasm: resolve(facts.wasm.wasm) };
}

// ---------------------------------------------------------------------------------------------------------------------
// Images to pixel values, as run_onnx.py does

const contentSize = (size) => {
  const target = [settings.size.height, settings.size.width];
  if (!settings.do_pad) return settings.do_resize ? target : size;
  const padded = settings.pad_size ? [settings.pad_size.height, settings.pad_size.width] : size;
  const scale = Math.min(1, padded[0] / size[0], padded[1] / size[1]);
  const shrunk = size.map((edge, axis) => Math.max(1, Math.min(Math.round(edge * scale), padded[axis])));
  if (!settings.do_resize) return shrunk;
  return shrunk.map((edge, axis) => Math.max(1, Math.round((edge * target[axis]) / padded[axis])));
};

// Of the image in the middle of what a graph of one size takes
const startsIn = (size, padded) => size.map((edge, axis) => Math.floor((padded[axis] - edge) / 2));

const readPixels = (image, size) => {
  const [height, width] = contentSize(size);
  const padded = facts.size ?? [height, width];
  const [top, left] = startsIn([height, width], padded);
  Object.assign(source, { height, width });
  const context = source.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white"; // behind transparent pixels
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const pixels = new Float32Array(3 * padded[0] * padded[1]); // padding is 0
  for (let channel = 0, index = 0; channel < 3; channel++, index = 0) {
    const factor = settings.do_rescale ? settings.rescale_factor : 1;
    const [mean, std] = settings.do_normalize ? [settings.image_mean[channel], settings.image_std[channel]] : [0, 1];
    for (let row = top; row < top + height; row++) {
      const place = (channel * padded[0] + row) * padded[1] + left;
      for (let column = 0; column < width; column++, index++)
        pixels[place + column] = (data[4 * index + channel] * factor - mean) / std;
    }
  }
  return new Tensor("float32", pixels, [1, 3, ...padded]);
};

// ---------------------------------------------------------------------------------------------------------------------
// Logits to maps in physical units

// For `size` positions of `full`, from `start` on, the two neighbors and the weight of the second, as in torch with
// align_corners=False
const neighbors = (size, start, full, from) =>
  Array.from({ length: size }, (_, index) => {
    const place = Math.max(0, ((start + index + 0.5) * from) / full - 0.5);
    const first = Math.min(Math.floor(place), from - 1);
    return [first, Math.min(first + 1, from - 1), place - first];
  });

// Without the padding
const resize = ({ data, dims }, height, width) => {
  const [, channels, fromHeight, fromWidth] = dims;
  const padded = facts.size ?? [height, width];
  const [top, left] = startsIn([height, width], padded);
  const rows = neighbors(height, top, padded[0], fromHeight);
  const columns = neighbors(width, left, padded[1], fromWidth);
  const resized = new Float32Array(channels * height * width);
  const line = new Float32Array(fromWidth);
  for (let channel = 0, index = 0; channel < channels; channel++)
    for (const [top, bottom, down] of rows) {
      const [above, below] = [top, bottom].map((row) => (channel * fromHeight + row) * fromWidth);
      for (let column = 0; column < fromWidth; column++)
        line[column] = data[above + column] * (1 - down) + data[below + column] * down;
      for (const [left, right, across] of columns) resized[index++] = line[left] * (1 - across) + line[right] * across;
    }
  return resized;
};

const softmaxOfSecond = (logits, channels, area, index) => {
  let sum = 0;
  for (let channel = 0; channel < channels; channel++) sum += Math.exp(logits[channel * area + index] - logits[area + index]);
  return 1 / sum;
};

// {kind: (logits, channels, area) -> values}, channels first
const predictions = {
  class_ids: (logits, channels, area) => {
    const [ids, best] = [new Float32Array(area), logits.slice(0, area)];
    for (let channel = 1, place = area; channel < channels; channel++)
      for (let index = 0; index < area; index++, place++)
        if (logits[place] > best[index]) [best[index], ids[index]] = [logits[place], channel];
    return ids;
  },
  probability: (logits, channels, area) => {
    const values = new Float32Array(area);
    for (let index = 0; index < area; index++)
      values[index] = channels === 1 ? 1 / (1 + Math.exp(-logits[index])) : softmaxOfSecond(logits, channels, area, index);
    return values;
  },
  metres: (logits) => logits.map((value) => Math.max(0, value)),
  unit_vectors: (logits, _, area) => {
    const vectors = new Float32Array(3 * area);
    for (let index = 0; index < area; index++) {
      const [x, y, z] = [logits[index], logits[area + index], logits[2 * area + index]];
      const scale = 1 / Math.sqrt(Math.max(1e-24, x * x + y * y + z * z));
      [vectors[index], vectors[area + index], vectors[2 * area + index]] = [x * scale, y * scale, z * scale];
    }
    return vectors;
  },
};

// ---------------------------------------------------------------------------------------------------------------------
// Maps to colors and legends

const percentiles = (values, shares) => {
  const sorted = values.slice().sort();
  return shares.map((share) => sorted[Math.round(share * (sorted.length - 1))]);
};

const magma = (place) => {
  const scaled = Math.max(0, Math.min(1, place)) * (facts.magma.length - 1);
  const first = Math.min(Math.floor(scaled), facts.magma.length - 2);
  return facts.magma[first].map((low, channel) => low + (facts.magma[first + 1][channel] - low) * (scaled - first));
};

const element = (tag, text, style = "") => Object.assign(document.createElement(tag), { textContent: text, style });

const classLegend = (task, values) => {
  const counts = new Map();
  for (const id of values) counts.set(id, (counts.get(id) ?? 0) + 1);
  const entries = [...counts].sort((first, second) => second[1] - first[1]);
  const parts = entries.slice(0, facts.maxLegendClasses).map(([id, count]) => {
    const share = Math.round((100 * count) / values.length);
    const entry = element("span", `${describeValues(task, [id])} ${share ? `${share}%` : "<1%"}`);
    entry.prepend(element("i", "", `background: rgb(${facts.palette[id]})`));
    return entry;
  });
  if (entries.length > parts.length) parts.push(element("span", `and ${entries.length - parts.length} more`));
  return parts;
};

const scaleLegend = (task, [low, high]) => {
  const stops = Array.from({ length: 24 }, (_, step) => `rgb(${magma(1 - step / 23)})`);
  const ends = [low, high].map((value) => element("span", describeValues(task, [value])));
  const scale = element("div", "");
  scale.className = "legend scale";
  scale.append(ends[0], element("b", "", `background: linear-gradient(90deg, ${stops})`), ends[1]);
  return scale;
};

// {kind: (task, values, area) -> [color of a pixel, parts of the legend]}
const paintings = {
  class_ids: (task, values) => [(index) => facts.palette[values[index]], classLegend(task, values)],
  probability: (task, values) => [(index) => Array(3).fill(255 * values[index]), [task.key]],
  metres: (task, values) => {
    const [low, high] = percentiles(values, [0.02, 0.98]);
    const color = (index) => magma((high - values[index]) / Math.max(high - low, 1e-6));
    return [color, [scaleLegend(task, [low, high]), task.key]];
  },
  unit_vectors: (task, values, area) => [
    (index) => [0, 1, 2].map((channel) => ((values[channel * area + index] + 1) / 2) * 255),
    [task.key],
  ],
};

const paint = (task, values, height, width) => {
  const { canvas, legend } = figures[task.name];
  const [color, parts] = paintings[task.kind](task, values, height * width);
  Object.assign(canvas, { height, width });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let index = 0; index < height * width; index++) {
    const [red, green, blue] = color(index);
    [image.data[4 * index], image.data[4 * index + 1], image.data[4 * index + 2]] = [red, green, blue];
    image.data[4 * index + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  legend.replaceChildren(...parts);
};

const addFigure = (title) => {
  const [figure, canvas, legend] = ["figure", "canvas", "div"].map((tag) => element(tag, ""));
  const caption = element("div", title);
  [caption.className, legend.className] = ["map-title", "legend"];
  canvas.ariaLabel = title;
  figure.append(caption, canvas, legend);
  maps.append(figure);
  return { canvas, legend };
};

// ---------------------------------------------------------------------------------------------------------------------
// The page

const say = (text, isError = false) => {
  status.textContent = text;
  status.classList.toggle("error", isError);
};

const predictNow = async (image, size) => {
  const pixelValues = readPixels(image, size);
  const start = performance.now();
  const logits = await model.used({ pixel_values: pixelValues });
  const milliseconds = performance.now() - start;
  const { height, width } = source;
  shown = { height, width, milliseconds, logits: {}, maps: {}, pixelValues: pixelValues.data };
  figures.image.canvas.getContext("2d", Object.assign(figures.image.canvas, { height, width })).drawImage(source, 0, 0);
  for (const task of facts.tasks) {
    const values = resize(logits[task.name], height, width);
    shown.logits[task.name] = logits[task.name];
    shown.maps[task.name] = predictions[task.kind](values, logits[task.name].dims[1], height * width);
    paint(task, shown.maps[task.name], height, width);
  }
  maps.hidden = false;
  showPixel();
  document.dispatchEvent(new CustomEvent("predicted", { detail: shown }));
};

// One after the other: a file may be chosen while a frame of the camera is predicted
const predict = (image, size) => {
  const next = turn.then(() => predictNow(image, size));
  turn = next.catch(() => {});
  return next;
};

const where = () => `${model.device === "webgpu" ? "WebGPU" : "WebAssembly"}, ${model.dtype}`;

const showFile = async (file) => {
  stopCamera();
  await ready;
  if (!model) return;
  try {
    const image = await createImageBitmap(file);
    await predict(image, [image.height, image.width]);
    const size = `${image.width} x ${image.height} pixels`;
    say(`Image of ${size}, predicted at ${shown.width} x ${shown.height} in ${Math.round(shown.milliseconds)} ms (${where()}).`);
  } catch (error) {
    const isNoImage = error.name === "InvalidStateError";
    say(isNoImage ? `${file.name} is not an image that this browser reads.` : String(error), true);
  }
};

const stopCamera = () => {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  camera.textContent = "Use the camera";
};

const runCamera = async () => {
  await ready;
  if (!model) return;
  if (!navigator.mediaDevices) throw new Error("Browsers give the camera to pages from localhost and over https only.");
  camera.disabled = true; // until the visitor has answered
  stream = await navigator.mediaDevices
    .getUserMedia({ video: { facingMode: "environment" } })
    .finally(() => { camera.disabled = false; });
  camera.textContent = "Stop the camera";
  const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
  await video.play();
  for (let last = performance.now(), rate = 0, own = stream; stream === own; ) {
    await predict(video, [video.videoHeight, video.videoWidth]);
    if (stream !== own) break;
    const now = performance.now();
    rate = rate ? 0.8 * rate + 200 / (now - last) : 1000 / (now - last);
    last = now;
    say(`${rate.toFixed(1)} frames per second, ${Math.round(shown.milliseconds)} ms in the model (${where()}).`);
    await new Promise(requestAnimationFrame);
  }
};

const load = async (device, dtype) => {
  say(`Loading the model (${dtype}) ...`);
  const used = await AutoModel.from_pretrained(".", { device, dtype });
  turn = turn.then(() => {
    model?.used.dispose();
    model = { used, device, dtype };
  });
  await turn;
};

const start = async () => {
  figures.image = addFigure("image");
  for (const task of facts.tasks) figures[task.name] = addFigure(task.title);
  maps.hidden = true;
  settings = await (await fetch("preprocessor_config.json")).json();
  const adapter = query.get("device") === "wasm" ? null : await navigator.gpu?.requestAdapter();
  const isHalf = adapter?.features.has("shader-f16") && facts.dtypes.includes("fp16");
  const dtype = query.get("dtype") ?? (isHalf ? "fp16" : "fp32");
  precision.append(...facts.dtypes.map((name) => new Option(name)));
  await load(adapter ? "webgpu" : "wasm", dtype).catch((error) => {
    if (!adapter) throw error;
    return load("wasm", dtype === "fp16" ? "fp32" : dtype); // the GPU lacks an operator or the memory
  });
  precision.value = model.dtype;
  say(`The model is ready (${where()}). Choose an image, drop or paste one, or use the camera.`);
};

const attempt = (action) =>
  action().catch((error) => {
    stopCamera();
    precision.value = model?.dtype;
    say(String(error), true);
  });

document.querySelector("#file").addEventListener("change", ({ target }) => {
  if (target.files[0]) showFile(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files[0]) showFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => event.clipboardData.files[0] && showFile(event.clipboardData.files[0]));
camera.addEventListener("click", () => (stream ? stopCamera() : attempt(runCamera)));
precision.addEventListener("change", () =>
  attempt(async () => {
    await load(model.device, precision.value);
    say(`The model is ready (${where()}).`);
  }),
);

// The values under the pointer, also of the next frames of the camera
const showPixel = () => {
  if (!shown || !pointed) return;
  const { height, width } = shown;
  const index = Math.floor(pointed.y * height) * width + Math.floor(pointed.x * width);
  const parts = facts.tasks.map((task) => {
    const channels = shown.maps[task.name].length / (height * width);
    const values = Array.from({ length: channels }, (_, channel) => shown.maps[task.name][channel * height * width + index]);
    return [task.title, describeValues(task, values)];
  });
  showValues(document.querySelector("#values .values"), parts);
};

const read = (event) => {
  const canvas = event.target.closest?.("#maps canvas");
  pointed = (canvas && locate(event, canvas, canvas.width, canvas.height)) || pointed;
  showPixel();
};
document.addEventListener("pointermove", read);
document.addEventListener("pointerdown", read);
const ready = attempt(start);
