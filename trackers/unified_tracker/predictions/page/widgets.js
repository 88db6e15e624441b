// Elements. Text goes in as text, never as markup: labels and file names may contain anything.

/**
 * An element. `properties`: `on` for listeners, `data` for data attributes, `aria-...` and `role` as attributes,
 * everything else as properties. Children: elements, and strings as text.
 */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, String(value));
    else made[name] = value;
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

/** A sample of the line in which a kind is drawn, in another colour if one is given. */
function swatch(letter, colour = "") {
  const made = element("canvas", { className: "swatch", width: 64, height: 32, "aria-hidden": "true" });
  const context = made.getContext("2d");
  const path = new Path2D();
  path.rect(7, 7, 50, 18);
  context.fillStyle = "#4a4f57";
  context.fillRect(0, 0, 64, 32);
  stroke(context, path, colour || STYLES[letter].colour, STYLES[letter], 2);
  return made;
}

function choice(label, options, value, onChange, className = "") {
  const select = element("select", { className, "aria-label": label, on: { change: () => onChange(select.value) } });
  fillChoice(select, options, value);
  return select;
}

/** @param {{value: string, text: string, group?: string}[]} options */
function fillChoice(select, options, value) {
  const groups = new Map();
  select.replaceChildren();
  for (const each of options) {
    const option = element("option", { value: each.value, textContent: each.text });
    if (!each.group) select.append(option);
    else {
      if (!groups.has(each.group))
        groups.set(each.group, select.appendChild(element("optgroup", { label: each.group })));
      groups.get(each.group).append(option);
    }
  }
  select.value = value;
}

/** A button that is on or off. */
function toggle(text, title, pressed, onToggle, key = "") {
  const made = element(
    "button",
    { type: "button", className: "toggle", title, "aria-pressed": pressed, data: { key } },
    text,
  );
  made.addEventListener("click", () => onToggle(made.getAttribute("aria-pressed") !== "true"));
  return made;
}

/** Buttons of which one is on. */
function segments(label, options, value, onChange) {
  const group = element("div", { className: "segments", role: "group", "aria-label": label });
  for (const each of options)
    group.append(
      element(
        "button",
        { type: "button", data: { value: each.value }, on: { click: () => onChange(each.value) }, title: each.title },
        each.text,
      ),
    );
  group.setValue = (now) => {
    for (const button of group.children)
      button.setAttribute("aria-pressed", String(button.dataset.value === String(now)));
  };
  group.setValue(value);
  return group;
}

/** The score threshold in one line. */
function scoreSlider(page) {
  const range = element("input", { type: "range", min: 0, max: 1, step: 0.01, "aria-label": "score threshold" });
  range.addEventListener("input", () => page.setThreshold(Number(range.value)));
  const exact = element("output");
  const made = element("label", { className: "score" }, "score ≥ ", range, exact);
  made.setValue = (value) => {
    range.value = String(value);
    exact.textContent = value.toFixed(2);
  };
  return made;
}

function number(value, digits = 2) {
  return Number.isFinite(value) ? value.toFixed(digits) : "–";
}

function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** Called once a frame at most. */
function framed(work) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
}
