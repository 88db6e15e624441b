// The page: settings, what follows from them, and who shows it.

const VIEWS = { images: "Images", classes: "Classes", confusion: "Confusion", metrics: "Metrics" };
const DISPLAY = [
  { name: "truth", text: "truth", key: "t" },
  { name: "predictions", text: "predictions", key: "p" },
  { name: "masks", text: "masks", key: "m" },
  { name: "keypoints", text: "keypoints", key: "" },
  { name: "labels", text: "labels", key: "l" },
];
const HELP = [
  ["arrows", "move; in the large view: previous, next image"],
  ["j k", "next, previous image"],
  ["Enter", "open the image large"],
  ["Escape", "close; leave a field"],
  ["t p m l", "truth, predictions, masks, labels on and off"],
  ["s", "large view: side by side or overlaid"],
  ["c", "colours by kind or by class"],
  ["+ −", "score threshold up and down"],
  ["z x 0", "large view: zoom in, out, whole image"],
  ["wheel drag", "large view: zoom and move; a click on an object in the list goes there"],
  ["?", "this help"],
];

// What is another key, or none, where there are no predictions.
const TRUTH_HELP = {
  "t p m l": ["t m l", "truth, masks, labels on and off"],
  c: ["c", "a colour for each class, or one for all"],
  s: null,
  "+ −": null,
};

class Page {
  constructor(shown) {
    this.shown = shown;
    this.tasks = tasksOf(shown);
    if (!this.tasks.length) this.tasks = ["instances"];
    this.version = 0;
    const last = shown.evaluations.length - 1;
    this.settings = {
      evaluation: last,
      before: -1,
      task: this.tasks[0],
      threshold: shown.evaluations[last].threshold,
      iou: 0,
      classes: new Set(),
      kinds: new Set(),
      cell: null,
      text: "",
      sort: shown.truthOnly ? "order" : "f1",
      change: "",
      ...{ truth: true, predictions: true, masks: true, keypoints: true, labels: true },
      byClass: shown.truthOnly || this.tasks[0] !== "instances",
      size: "medium",
      view: "images",
      panes: "beside",
    };
    if (shown.comparing && last > 0) Object.assign(this.settings, { before: last - 1, sort: "broken" });
    const opened = this.recall();
    this.grid = new Grid(this);
    this.tables = new Tables(this);
    this.detail = new Detail(this);
    this.panel = new Panel(this);
    this.build();
    this.later = framed(() => this.compute(false));
    this.compute(true);
    if (opened >= 0 && this.order.includes(opened)) this.open(this.order.indexOf(opened));
    document.addEventListener("keydown", (event) => this.key(event));
  }

  get now() {
    return this.shown.evaluations[this.settings.evaluation];
  }

  get before() {
    return this.shown.evaluations[this.settings.before] ?? null;
  }

  // ---- settings ----------------------------------------------------------------------------------------------------

  /** Change settings; everything that follows is done anew. */
  set(changes) {
    const { settings } = this;
    const other = "evaluation" in changes && changes.evaluation !== settings.evaluation;
    Object.assign(settings, changes);
    if (other) {
      const iou = this.now.ious[settings.iou] === undefined ? 0 : settings.iou;
      Object.assign(settings, { iou, before: settings.before === settings.evaluation ? -1 : settings.before });
    }
    if (settings.before < 0) settings.change = "";
    // Regions are told apart by their class first.
    if (changes.task) settings.byClass = this.shown.truthOnly || changes.task !== "instances";
    const fresh = ["text", "sort", "change", "cell", "classes", "kinds", "task"].some((name) => name in changes);
    this.compute(fresh);
  }

  /** Choose the evaluation that is compared with; what got fixed and what broke comes first. */
  compare(before) {
    const sort = before >= 0 && this.settings.before < 0 && this.settings.sort === "f1" ? "broken" : this.settings.sort;
    this.set({ before, sort });
  }

  flip(name, value) {
    const values = new Set(this.settings[name]);
    if (!values.delete(value)) values.add(value);
    this.set({ [name]: values });
  }

  setThreshold(threshold) {
    this.settings.threshold = Math.round(Math.max(0, Math.min(1, threshold)) * 1000) / 1000;
    this.later();
  }

  compute(fresh) {
    performance.mark("change");
    const { shown, settings } = this;
    this.version++;
    this.counts = countAll(shown, this.now, settings);
    this.judged = !shown.truthOnly && (this.counts.judged.some(Boolean) || !this.counts.there.some(Boolean));
    this.countsBefore = null;
    this.change = null;
    if (this.before) {
      const earlier = { ...settings, iou: sameIou(this.now, this.before, settings.iou) };
      this.countsBefore = countAll(shown, this.before, earlier);
      this.change = compareAll(shown, this.now, this.before, settings, this.counts, this.countsBefore);
    }
    if (!this.sorts().includes(settings.sort)) settings.sort = this.sorts()[0];
    if (!this.offers(settings.view)) settings.view = "images";
    const open = this.detail.open ? this.detail.index : -1;
    this.order = arrange(shown, this.now, settings, this.counts, this.change);
    this.showSummary();
    this.panel.update();
    this.showToolbar();
    for (const [name, tab] of this.tabs) {
      tab.hidden = !this.offers(name);
      tab.setAttribute("aria-selected", String(name === settings.view));
      tab.tabIndex = name === settings.view ? 0 : -1;
    }
    for (const [name, box] of this.views) box.hidden = name !== settings.view;
    if (settings.view === "images") this.grid.update(fresh && open < 0);
    else this.tables.update(settings.view);
    if (open >= 0) {
      const position = this.order.indexOf(open);
      if (position >= 0) this.detail.position = position;
      else this.order = [...this.order.slice(0, this.detail.position), open, ...this.order.slice(this.detail.position)];
      this.detail.update();
    }
    this.remember();
    performance.measure("change", "change");
  }

  /** Whether a view has something to show. */
  offers(view) {
    if (this.shown.truthOnly) return view === "images" || (view === "metrics" && this.shown.tables.length > 0);
    return this.judged || !["classes", "confusion"].includes(view);
  }

  /** How objects are drawn. */
  look() {
    const { masks, labels, keypoints, byClass } = this.settings;
    return { masks, labels, keypoints, byClass };
  }

  // ---- what stands around the images -------------------------------------------------------------------------------

  build() {
    const { shown } = this;
    this.summary = element("p", { className: "summary", "aria-live": "polite" });
    this.filters = element("div", { className: "filters" });
    this.toolbar = element("div", { className: "toolbar" });
    this.views = new Map([
      ["images", this.grid.box],
      ["classes", this.tables.classes],
      ["confusion", this.tables.confusion],
      ["metrics", this.tables.metrics],
    ]);
    this.tabs = new Map(
      Object.entries(VIEWS).map(([name, text]) => [
        name,
        element(
          "button",
          { type: "button", role: "tab", data: { view: name }, on: { click: () => this.set({ view: name }) } },
          shown.truthOnly && name === "metrics" ? "Statistics" : text,
        ),
      ]),
    );
    const tablist = element("div", { className: "tabs", role: "tablist" }, ...this.tabs.values());
    tablist.addEventListener("keydown", (event) => this.moveTab(event));
    this.menu = element(
      "button",
      {
        type: "button",
        className: "menu",
        "aria-expanded": "false",
        "aria-controls": "panel",
        on: { click: () => this.togglePanel() },
      },
      "Filters",
    );
    const theme = element(
      "button",
      { type: "button", title: "light or dark", "aria-label": "light or dark", on: { click: () => this.nextTheme() } },
      "◐",
    );
    this.help = this.helpDialog();
    const help = element(
      "button",
      { type: "button", title: "help (?)", "aria-label": "help", on: { click: () => this.help.showModal() } },
      "?",
    );
    const notes = shown.notes.length && !shown.truthOnly
      ? element(
          "details",
          { className: "notes" },
          element("summary", {}, plural(shown.notes.length, "note")),
          ...shown.notes.map((note) => element("p", {}, note)),
        )
      : null;
    const head = element(
      "header",
      { className: "head" },
      element(
        "div",
        { className: "titles" },
        element("h1", { title: shown.title }, shown.title),
        element("span", { className: "quiet" }, shown.dataset),
        notes,
      ),
      element("div", { className: "buttons" }, this.menu, theme, help),
    );
    this.score = scoreSlider(this);
    const main = element(
      "main",
      {},
      this.summary,
      element("div", { className: "views" }, tablist, shown.truthOnly ? null : this.score, this.toolbar),
      this.filters,
      ...this.views.values(),
    );
    const app = document.getElementById("app");
    app.replaceChildren(
      head,
      element("div", { className: "columns" }, this.panel.node, main),
      this.detail.dialog,
      this.help,
    );
    app.setAttribute("aria-busy", "false");
    this.buildToolbar();
  }

  buildToolbar() {
    this.sort = choice("order of the images", [], "", (sort) => this.set({ sort }));
    this.toggles = element("span", { className: "toggles" });
    const sizes = Object.keys(CARD_WIDTHS).map((size) => ({
      value: size,
      text: size[0].toUpperCase(),
      title: `${size} pictures`,
    }));
    this.sizes = segments("size of the pictures", sizes, this.settings.size, (size) => this.set({ size }));
    this.toolbar.append(this.sort, this.sizes, this.toggles);
  }

  displayToggles() {
    const { shown, settings } = this;
    const masked = (tasks) => Object.values(tasks ?? {}).some((objects) => objects.m.length);
    const masks = (this.hasMasks ??= shown.truthOnly
      ? shown.images.some((image) => masked(image.truth))
      : shown.evaluations.some((each) => each.images.some(masked)));
    const truth = (this.hasTruth ??= shown.images.some((image) => image.truth));
    const predictions = !shown.truthOnly;
    const there = { truth, predictions, masks, keypoints: shown.keypoint_names.length > 0 || shown.skeleton.length > 0 };
    const made = DISPLAY.filter(({ name }) => there[name] ?? true).map(({ name, text, key }) =>
      toggle(text, key ? `${text} (${key})` : text, settings[name], (on) => this.set({ [name]: on }), name),
    );
    made.push(
      toggle(
        "class colours",
        shown.truthOnly ? "a colour for each class (c)" : "colours by class instead of by kind (c)",
        settings.byClass,
        (byClass) => this.set({ byClass }),
        "byClass",
      ),
    );
    return made;
  }

  /** Orders that mean something now. */
  sorts() {
    const judged = this.judged ? ["f1", "errors", "confident"] : [];
    return [...judged, ...(this.before && this.judged ? ["fixed", "broken"] : []), "objects", "name", "order"];
  }

  showToolbar() {
    const { settings } = this;
    const sorts = Object.entries(SORTS).filter(([name]) => this.sorts().includes(name));
    fillChoice(
      this.sort,
      sorts.map(([value, text]) => ({ value, text })),
      settings.sort,
    );
    const focused = document.activeElement?.dataset?.key;
    const had = focused && this.toggles.contains(document.activeElement);
    this.toggles.replaceChildren(...this.displayToggles());
    if (had) [...this.toggles.children].find((each) => each.dataset.key === focused)?.focus();
    this.sizes.setValue(settings.size);
    this.score.setValue(settings.threshold);
    this.toolbar.hidden = settings.view !== "images";
    this.showFilters();
  }

  /** What narrows the images down, each with a way to take it off. */
  showFilters() {
    const { shown, settings } = this;
    const chips = [];
    const chip = (text, changes) =>
      chips.push(
        element(
          "button",
          { type: "button", className: "chip", title: "take this filter off", on: { click: () => this.set(changes) } },
          text,
          element("span", { "aria-hidden": "true" }, " ✕"),
        ),
      );
    if (settings.classes.size)
      chip(
        [...settings.classes]
          .slice(0, 4)
          .map((label) => shortened(className(shown, label), 24))
          .join(", ") + (settings.classes.size > 4 ? ` and ${settings.classes.size - 4} more` : ""),
        { classes: new Set() },
      );
    for (const letter of settings.kinds)
      chip(KIND.get(letter).name, { kinds: new Set([...settings.kinds].filter((each) => each !== letter)) });
    if (settings.cell !== null) {
      const size = shown.classes.length + 1;
      const name = (label, other) => (label === size - 1 ? other : shortened(className(shown, label), 24));
      chip(`${name(Math.floor(settings.cell / size), "background")} → ${name(settings.cell % size, "missed")}`, {
        cell: null,
      });
    }
    if (settings.change) chip(settings.change, { change: "" });
    if (settings.text) chip(`“${shortened(settings.text, 24)}”`, { text: "" });
    this.filters.replaceChildren(...chips);
    this.filters.hidden = !chips.length;
  }

  showSummary() {
    if (this.shown.truthOnly) {
      const notes = this.shown.notes.map((note) => element("span", { className: "quiet" }, note));
      this.summary.replaceChildren(this.seen(), this.trueObjects(), ...notes);
      return;
    }
    const { counts, settings, now } = this;
    const total = summed(counts);
    const parts = [this.seen()];
    const fact = (name, value, earlier) => {
      const by = value - earlier;
      const moved =
        Number.isFinite(by) && Math.abs(by) >= 0.0005
          ? element(
              "span",
              { className: by > 0 ? "fixed" : "broken" },
              ` ${by > 0 ? "+" : "−"}${Math.abs(by).toFixed(3)}`,
            )
          : null;
      parts.push(
        element(
          "span",
          { className: "fact", data: { fact: name } },
          `${name} `,
          element("b", {}, number(value, 3)),
          moved,
        ),
      );
    };
    if (this.judged) {
      const was = this.countsBefore ? summed(this.countsBefore) : {};
      for (const name of ["precision", "recall", "f1"]) fact(name === "f1" ? "F1" : name, total[name], was[name]);
      parts.push(
        element(
          "span",
          { className: "quiet tally" },
          `${total.right.toLocaleString("en")} TP · ${total.wrong.toLocaleString("en")} FP · ${total.missed.toLocaleString("en")} missed`,
        ),
      );
    } else
      parts.push(
        element(
          "span",
          { className: "quiet tally" },
          `${plural(counts.total[UNJUDGED], "prediction")}; no ground truth`,
        ),
      );
    parts.push(
      element(
        "span",
        { className: "quiet" },
        `${now.label} · ${now.split} · score ≥ ${settings.threshold.toFixed(2)} · IoU ${now.ious[settings.iou] ?? "–"}`,
      ),
    );
    this.summary.replaceChildren(...parts);
  }

  /** How many images are to be seen. */
  seen() {
    const { order, shown } = this;
    const all = plural(shown.images.length, "image");
    const text = order.length === shown.images.length ? all : `${order.length.toLocaleString("en")} of ${all}`;
    return element("b", { className: "seen" }, text);
  }

  /** How many objects they have, of the classes that are chosen. */
  trueObjects() {
    let [objects, empty] = [0, 0];
    for (const index of this.order) {
      objects += this.counts.truths[index];
      if (!this.counts.truths[index]) empty++;
    }
    const without = empty ? `; ${plural(empty, "image")} without` : "";
    return element("span", { className: "quiet tally" }, `${plural(objects, "object")}${without}`);
  }

  helpDialog() {
    const { truthOnly } = this.shown;
    const help = truthOnly ? HELP.map((row) => (row[0] in TRUTH_HELP ? TRUTH_HELP[row[0]] : row)).filter(Boolean) : HELP;
    const rows = help.map(([keys, what]) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, ...keys.split(" ").map((key) => element("kbd", {}, key))),
        element("td", {}, what),
      ),
    );
    const kinds = KINDS.filter((kind) => kind.letter !== "u").map((kind) =>
      element("tr", {}, element("th", { scope: "row" }, swatch(kind.letter), kind.name), element("td", {}, kind.about)),
    );
    const close = element("button", { type: "button", on: { click: () => this.help.close() } }, "close");
    return element(
      "dialog",
      { className: "help", "aria-label": "help" },
      element("h2", {}, "Keys"),
      element("table", {}, rows),
      ...(truthOnly ? [] : [element("h2", {}, "Kinds"), element("table", {}, kinds)]),
      close,
    );
  }

  togglePanel(open = !this.panel.node.classList.contains("open")) {
    this.panel.node.classList.toggle("open", open);
    this.menu.setAttribute("aria-expanded", String(open));
  }

  nextTheme() {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    this.compute(false);
  }

  moveTab(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.stopPropagation();
    const names = [...this.tabs.keys()].filter((name) => !this.tabs.get(name).hidden);
    const next = names[(names.indexOf(this.settings.view) + by + names.length) % names.length];
    this.set({ view: next });
    this.tabs.get(next).focus();
  }

  // ---- the large view, and where we are ----------------------------------------------------------------------------

  open(position) {
    if (!this.order.length) return;
    this.detail.show(position);
    this.remember();
  }

  closed() {
    this.compute(false);
    const position = this.order.indexOf(this.detail.index);
    if (this.settings.view === "images") this.grid.go(Math.max(0, position));
  }

  /** The settings stand in the address where that is allowed; a sandboxed frame may refuse, and nothing needs it. */
  remember() {
    const { settings, shown } = this;
    const said = new URLSearchParams();
    said.set("evaluation", shown.evaluations[settings.evaluation].id);
    if (this.before) said.set("before", this.before.id);
    for (const name of ["task", "sort", "view", "text", "change", "size", "panes"])
      if (settings[name]) said.set(name, settings[name]);
    for (const name of ["threshold", "iou"]) said.set(name, String(settings[name]));
    if (settings.cell !== null) said.set("cell", String(settings.cell));
    if (settings.classes.size) said.set("classes", [...settings.classes].join("."));
    if (settings.kinds.size) said.set("kinds", [...settings.kinds].join("."));
    said.set(
      "off",
      DISPLAY.filter(({ name }) => !settings[name])
        .map(({ name }) => name)
        .join("."),
    );
    if (settings.byClass) said.set("by", "class");
    if (this.detail.open) said.set("image", String(this.detail.index));
    clearTimeout(this.writing); // browsers refuse more than a few a second
    this.writing = setTimeout(() => {
      try {
        history.replaceState(null, "", `#${said}`);
      } catch {
        // A sandboxed frame.
      }
    }, 300);
  }

  /** Settings from the address; what makes no sense is left. Returns the index of the image that was open, or -1. */
  recall() {
    let said;
    try {
      said = new URLSearchParams(location.hash.slice(1));
    } catch {
      return -1;
    }
    const { settings, shown } = this;
    const find = (name) => (said.has(name) ? shown.evaluations.findIndex((each) => each.id === said.get(name)) : -1);
    if (find("evaluation") >= 0) settings.evaluation = find("evaluation");
    if (said.has("evaluation")) settings.before = find("before") === settings.evaluation ? -1 : find("before");
    const allowed = {
      task: this.tasks,
      sort: Object.keys(SORTS),
      view: Object.keys(VIEWS),
      change: ["fixed", "broken"],
      size: Object.keys(CARD_WIDTHS),
      panes: ["beside", "over"],
    };
    for (const [name, values] of Object.entries(allowed))
      if (values.includes(said.get(name))) settings[name] = said.get(name);
    if (said.has("text")) settings.text = said.get("text").slice(0, 500);
    const within = (name, low, high) =>
      said.has(name) && said.get(name) !== "" && Number(said.get(name)) >= low && Number(said.get(name)) <= high;
    settings.threshold = within("threshold", 0, 1) ? Number(said.get("threshold")) : this.now.threshold;
    if (within("iou", 0, this.now.ious.length - 1)) settings.iou = Math.floor(Number(said.get("iou")));
    if (within("cell", 0, (shown.classes.length + 1) ** 2 - 1)) settings.cell = Math.floor(Number(said.get("cell")));
    const parts = (name) => (said.get(name) ?? "").split(".").filter(Boolean);
    settings.classes = new Set(
      parts("classes")
        .map(Number)
        .filter((label) => label in shown.classes),
    );
    settings.kinds = new Set(parts("kinds").filter((letter) => KIND.has(letter)));
    for (const { name } of DISPLAY) settings[name] = !parts("off").includes(name);
    if (said.has("evaluation")) settings.byClass = said.get("by") === "class";
    if (settings.before < 0) settings.change = "";
    return within("image", 0, shown.images.length - 1) ? Math.floor(Number(said.get("image"))) : -1;
  }

  // ---- keys --------------------------------------------------------------------------------------------------------

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.help.open) return;
    const { target } = event;
    const typing = target.matches?.("select, input:not([type=range], [type=checkbox])");
    if (event.key === "Escape" && !this.detail.open) {
      if (typing) target.blur();
      this.togglePanel(false);
      return;
    }
    if (typing) return;
    if (target.matches?.("input[type=range]") && /^(Arrow|Home|End|Page)/.test(event.key)) return;
    const done =
      this.commonKey(event.key) || (this.detail.open ? this.detailKey(event.key) : this.gridKey(event.key, target));
    if (done) event.preventDefault();
  }

  commonKey(key) {
    const { settings } = this;
    const display = DISPLAY.find((each) => each.key === key);
    if (display) this.set({ [display.name]: !settings[display.name] });
    else if (key === "c") this.set({ byClass: !settings.byClass });
    else if (key === "+" || key === "=") this.setThreshold(settings.threshold + 0.05);
    else if (key === "-" || key === "_" || key === "−") this.setThreshold(settings.threshold - 0.05);
    else if (key === "?") this.help.showModal();
    else return false;
    return true;
  }

  detailKey(key) {
    const { detail } = this;
    if (key === "ArrowRight" || key === "j") detail.step(1);
    else if (key === "ArrowLeft" || key === "k") detail.step(-1);
    else if (key === "0") detail.reset();
    else if (key === "z") detail.zoomBy(1.5);
    else if (key === "x") detail.zoomBy(1 / 1.5);
    else if (key === "s") this.set({ panes: this.settings.panes === "over" ? "beside" : "over" });
    else return false;
    return true;
  }

  gridKey(key, target) {
    if (this.settings.view !== "images") return false;
    const { grid } = this;
    const inside = grid.list.contains(target);
    const anywhere = inside || target === document.body;
    const by = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1, ArrowDown: grid.columns, ArrowUp: -grid.columns }[key];
    // The first press brings the focus to the images; further ones move it.
    if (by !== undefined) grid.go(inside ? grid.focus + by : grid.focus);
    else if (key === "Home" && anywhere) grid.go(0);
    else if (key === "End" && anywhere) grid.go(this.order.length - 1);
    else if (key === "Enter" && !target.matches?.("button, summary")) this.open(grid.focus);
    else return false;
    return true;
  }
}

readDocument().then(
  (shown) => {
    const page = new Page(shown);
    document.addEventListener("DOMContentLoaded", () => page.compute(false));
    performance.mark("ready");
    // For tests: what a page computes, without a way to change it.
    globalThis.predictions = Object.freeze({ runsOf, maskOf, outlineOf });
  },
  (error) => {
    document
      .getElementById("app")
      .replaceChildren(element("p", { className: "opening" }, `This page cannot be opened: ${error.message}`));
  },
);
