// The values of all maps under the pointer. gr.HTML provides `element`, `props` and `watch`; props.value is pixel_table(), and
// pixel_text.js comes before.
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
  return tasks.map((task) => {
    const level = () => levels[(plane++ * height + row) * width + column];
    return [task.title, describeValues(task, task.channels.map(([low, step]) => low + step * level()))];
  });
};

const read = (event) => {
  const image = event.target.closest?.(".map-slider")?.querySelector("img");
  const isLoaded = levels && image?.naturalWidth;
  const position = isLoaded ? locate(event, image, image.naturalWidth, image.naturalHeight) : null;
  if (!position) return;
  const parts = describe(Math.floor(position.y * props.value.height), Math.floor(position.x * props.value.width));
  showValues(element.querySelector(".values"), parts);
};

document.addEventListener("pointermove", read);
document.addEventListener("pointerdown", read);
watch("value", load);
load();
