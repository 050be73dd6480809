// The values of all maps under the pointer. gr.HTML provides `element`, `props` and `watch`; props.value is pixel_table().
let levels = null;

const load = () => {
  const table = props.value;
  if (!table || !table.data) { levels = null; return; }
  const bytes = Uint8Array.from(atob(table.data), (character) => character.charCodeAt(0));
  levels = new Uint16Array(bytes.buffer);
  element.querySelector(".values").textContent = "Point at a map or tap it to read its values.";
};

const describe = (row, column) => {
  const { height, width, tasks } = props.value;
  let plane = 0;
  return tasks.map(({ title, unit, names, channels }) => {
    const values = channels.map(([low, step]) => low + step * levels[(plane++ * height + row) * width + column]);
    if (names) return [title, names[values[0]]];
    const numbers = values.map((value) => value.toFixed(2).replace("-", "\u2212")).join(", ");
    return [title, values.length > 1 ? `(${numbers})` : `${numbers} ${unit}`.trim()];
  });
};

// The position in the image, in [0, 1); null in the margins that fitting it into its box may leave
const locate = (event, image) => {
  const box = image.getBoundingClientRect();
  const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
  const x = (event.clientX - box.left - (box.width - width) / 2) / width;
  const y = (event.clientY - box.top - (box.height - height) / 2) / height;
  return x >= 0 && x < 1 && y >= 0 && y < 1 ? { x, y } : null;
};

const read = (event) => {
  const slider = event.target.closest?.(".map-slider");
  const image = slider?.querySelector("img");
  const position = levels && image?.naturalWidth ? locate(event, image) : null;
  if (!position) return;
  const parts = describe(Math.floor(position.y * props.value.height), Math.floor(position.x * props.value.width));
  element.querySelector(".values").replaceChildren(
    ...parts.map(([title, value]) => {
      const entry = document.createElement("span");
      const strong = document.createElement("b");
      strong.textContent = value;
      entry.append(`${title} `, strong);
      return entry;
    }),
  );
};

document.addEventListener("pointermove", read);
document.addEventListener("pointerdown", read);
watch("value", load);
load();
