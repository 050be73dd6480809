// The point cloud on a canvas, without WebGL. gr.HTML provides `element`, `props` and `watch`; props.value is point_cloud().
const canvas = element.querySelector("canvas");
const BACKGROUND = 0xff2c2420; // little-endian alpha, blue, green, red
const FIELD_OF_VIEW = 60; // degrees of this view along its shorter side, not of the image
const START = { yaw: 0.35, pitch: -0.2, distance: 1.2 };
let points = null, colors = null, center = 1, view = { ...START };

const decode = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

const draw = () => {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!points || !width || !height) return;
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const imageData = context.createImageData(width, height);
  const pixels = new Uint32Array(imageData.data.buffer).fill(BACKGROUND);
  const nearest = new Float32Array(width * height).fill(Infinity);
  const focal = Math.min(width, height) / 2 / Math.tan((FIELD_OF_VIEW / 360) * Math.PI);
  const [sy, cy, sp, cp] = [Math.sin(view.yaw), Math.cos(view.yaw), Math.sin(view.pitch), Math.cos(view.pitch)];
  for (let i = 0; i < points.length; i += 3) {
    // rotated about the point (0, 0, center), first around y, then around x
    const depth = points[i + 2] - center;
    const x = cy * points[i] - sy * depth;
    const away = sy * points[i] + cy * depth;
    const y = cp * points[i + 1] - sp * away;
    const z = sp * points[i + 1] + cp * away + center * view.distance;
    if (z < 0.05) continue;
    const size = Math.min(12, Math.ceil((1.15 * focal * props.value.spacing * points[i + 2]) / z));
    const [left, top] = [(focal * x) / z + (width - size) / 2, (focal * y) / z + (height - size) / 2].map(Math.round);
    const color = 0xff000000 | (colors[i + 2] << 16) | (colors[i + 1] << 8) | colors[i];
    for (let row = Math.max(0, top); row < Math.min(height, top + size); row++)
      for (let column = Math.max(0, left); column < Math.min(width, left + size); column++) {
        const index = row * width + column;
        if (z < nearest[index]) [nearest[index], pixels[index]] = [z, color];
      }
  }
  context.putImageData(imageData, 0, 0);
};

let waiting = false;
const redraw = () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
};

const choose = (title) => { colors = decode(props.value.colors[title]); redraw(); };

const load = () => {
  if (!props.value?.points) { points = null; return; }
  points = new Float32Array(decode(props.value.points).buffer);
  center = points.filter((_, index) => index % 3 === 2).sort()[Math.floor(points.length / 6)];
  view = { ...START };
  const titles = Object.keys(props.value.colors);
  element.querySelector(".choices").replaceChildren(
    ...titles.map((title, index) => {
      const [label, input] = [document.createElement("label"), document.createElement("input")];
      Object.assign(input, { type: "radio", name: "colors", checked: index === 0 });
      input.addEventListener("change", () => choose(title));
      label.append(input, title);
      return label;
    }),
  );
  choose(titles[0]);
};

const turn = (yaw, pitch) => {
  view.yaw += yaw;
  view.pitch = Math.max(-1.5, Math.min(1.5, view.pitch + pitch));
  redraw();
};
canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); canvas.focus(); });
canvas.addEventListener("pointermove", (event) => {
  if (canvas.hasPointerCapture(event.pointerId)) turn(-event.movementX / 200, event.movementY / 200);
});
// Without focus, the wheel scrolls the page
canvas.addEventListener("wheel", (event) => {
  if (document.activeElement !== canvas) return;
  event.preventDefault();
  view.distance = Math.max(0.2, Math.min(4, view.distance * Math.exp(event.deltaY / 1000)));
  redraw();
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
  if (!steps) return;
  event.preventDefault();
  turn(...steps);
});
canvas.addEventListener("dblclick", () => { view = { ...START }; redraw(); });
new ResizeObserver(redraw).observe(canvas);
watch("value", load);
load();
