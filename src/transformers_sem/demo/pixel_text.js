// How the pages read a map under the pointer: the demo page, and the static page of `transformers-sem export --web`.

// The values of one pixel as text; `names` is {id: class name}, or null for measurements
const describeValues = ({ unit, names }, values) => {
  if (names) return names[values[0]] ?? `class ${values[0]}`;
  const numbers = values.map((value) => value.toFixed(2).replace("-", "\u2212")).join(", ");
  return values.length > 1 ? `(${numbers})` : `${numbers} ${unit}`.trim();
};

// The position in the image of `width` x `height` pixels, in [0, 1); null in the margins that fitting it into its box may leave
const locate = (event, element, width, height) => {
  const box = element.getBoundingClientRect();
  const scale = Math.min(box.width / width, box.height / height);
  const x = (event.clientX - box.left - (box.width - width * scale) / 2) / (width * scale);
  const y = (event.clientY - box.top - (box.height - height * scale) / 2) / (height * scale);
  return x >= 0 && x < 1 && y >= 0 && y < 1 ? { x, y } : null;
};

// Shows [[title, value], ...] in an element
const showValues = (element, parts) =>
  element.replaceChildren(
    ...parts.map(([title, value]) => {
      const [entry, strong] = [document.createElement("span"), document.createElement("b")];
      strong.textContent = value;
      entry.append(`${title} `, strong);
      return entry;
    }),
  );
