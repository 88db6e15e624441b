// Tables: classes, confusion, metrics.

const MOST_ROWS = 300;
const MOST_CONFUSED = 24;
const LARGEST = 12;

const COLUMNS = [
  ["class", "", (row) => row.name],
  ["AP", "COCO's, IoU 0.5 to 0.95; at all scores", (row) => row.ap],
  ["AP50", "COCO's, IoU 0.5; at all scores", (row) => row.ap50],
  ["precision", "at the score threshold", (row) => row.precision],
  ["recall", "at the score threshold", (row) => row.recall],
  ["F1", "at the score threshold", (row) => row.f1],
  ["true positive", "at the score threshold", (row) => row.right],
  ["false positive", "at the score threshold", (row) => row.wrong],
  ["missed", "at the score threshold", (row) => row.missed],
  ["recall at precision 0.9", "highest recall at which the precision is at least 0.9, at IoU 0.5", (row) => row.reach],
];
const ALWAYS = new Set(["class", "precision", "recall", "F1", "true positive", "false positive", "missed"]);
// What a task is judged by beside AP.
const QUALITY = {
  instances: ["keypoint AP", "COCO's, by the similarity of keypoints"],
  panoptic: ["PQ", "panoptic quality"],
  semantic: ["IoU", "over all pixels of all images"],
};
const BEFORE = ["F1 before", "of the evaluation that is compared with", (row) => row.f1Before];

class Tables {
  constructor(page) {
    this.page = page;
    this.sort = { column: "F1", down: false };
    this.classes = element("div", { className: "scroll tables", role: "tabpanel" });
    this.confusion = element("div", { className: "scroll tables", role: "tabpanel" });
    this.metrics = element("div", { className: "scroll tables", role: "tabpanel" });
  }

  update(view) {
    if (view === "classes") this.showClasses();
    if (view === "confusion") this.showConfusion();
    if (view === "metrics") this.showMetrics();
  }

  rows() {
    const { shown, now, settings, counts, countsBefore } = this.page;
    const known = new Map((now.classes[settings.task] ?? []).map((row) => [row[0], row]));
    const row = (label, name, [right, wrong, missed], before) => ({
      label,
      name,
      ap: known.get(label)?.[1] ?? NaN,
      ap50: known.get(label)?.[2] ?? NaN,
      ...{ right, wrong, missed, ...rates(right, wrong, missed) },
      reach: known.get(label)?.[8] ?? NaN,
      quality: known.get(label)?.[9] ?? NaN,
      f1Before: before ? rates(...before).f1 : NaN,
    });
    const part = (from, label) => from && [...from.classes.subarray(PER_CLASS * label, PER_CLASS * label + 3)];
    const rows = shown.classes.map((name, label) => row(label, name, part(counts, label), part(countsBefore, label)));
    const all = (from) => from && [summed(from).right, summed(from).wrong, summed(from).missed];
    return [row(-1, "all classes", all(counts), all(countsBefore)), ...rows];
  }

  showClasses() {
    const { settings, page = this.page } = this.page;
    const [all, ...rows] = this.rows();
    const columns = [...COLUMNS, [...QUALITY[settings.task], (row) => row.quality], ...(page.before ? [BEFORE] : [])]
      // What a task does not have stays away.
      .filter(([name, , value]) => ALWAYS.has(name) || [all, ...rows].some((row) => Number.isFinite(value(row))));
    const value = columns.find(([name]) => name === this.sort.column)?.[2] ?? ((row) => row.f1);
    const byName = new Intl.Collator(undefined, { numeric: true }).compare;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (typeof x === "string") return byName(x, y) * (this.sort.down ? -1 : 1);
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return (x - y) * (this.sort.down ? -1 : 1);
    };
    rows.sort((a, b) => order(a, b) || a.label - b.label);
    const heads = columns.map(([name, title]) => this.head(name, title));
    const body = [all, ...rows.slice(0, MOST_ROWS)].map((row) =>
      this.classRow(row, columns, settings.classes.has(row.label)),
    );
    const table = element(
      "table",
      { className: "numbers" },
      element("thead", {}, element("tr", {}, heads)),
      element("tbody", {}, body),
    );
    const rest =
      rows.length > MOST_ROWS
        ? `${rows.length - MOST_ROWS} more classes: sort by another column, or search on the left.`
        : "";
    const about =
      "Press a class to see only its images. AP counts all scores; the other columns follow the score threshold.";
    this.classes.replaceChildren(
      element("p", { className: "quiet" }, about),
      table,
      element("p", { className: "quiet" }, rest),
    );
  }

  head(name, title) {
    const sorted = this.sort.column === name;
    const press = () => {
      this.sort = {
        column: name,
        down: sorted ? !this.sort.down : name !== "class" && !["F1", "AP", "AP50"].includes(name),
      };
      this.showClasses();
      [...this.classes.querySelectorAll("th button")].find((button) => button.dataset.column === name)?.focus();
    };
    const arrow = sorted ? (this.sort.down ? " ▾" : " ▴") : "";
    const button = element(
      "button",
      { type: "button", title, data: { column: name }, on: { click: press } },
      name + arrow,
    );
    return element(
      "th",
      { scope: "col", "aria-sort": sorted ? (this.sort.down ? "descending" : "ascending") : "none" },
      button,
    );
  }

  classRow(row, columns, chosen) {
    const cells = columns.slice(1).map(([name, , value]) => {
      const shown = value(row);
      const whole = ["true positive", "false positive", "missed"].includes(name);
      const cell = element("td", {}, whole ? String(shown) : number(shown, 3));
      if (!whole && Number.isFinite(shown)) {
        cell.classList.add("bar");
        cell.style.setProperty("--share", `${100 * shown}%`);
      }
      return cell;
    });
    const press = () => this.page.set({ classes: row.label < 0 ? new Set() : new Set([row.label]), view: "images" });
    const name = element("button", { type: "button", className: "link", on: { click: press } }, row.name);
    return element(
      "tr",
      { className: row.label < 0 ? "all" : chosen ? "chosen" : "", data: { label: row.label } },
      element("th", { scope: "row" }, name),
      cells,
    );
  }

  showConfusion() {
    const { shown, now, settings } = this.page;
    const size = shown.classes.length + 1;
    const cells = confusionOf(shown, now, settings);
    const weight = new Float64Array(size);
    let most = 1;
    for (const [key, count] of cells) {
      const [row, column] = [Math.floor(key / size), key % size];
      if (row === column) weight[row] += count * 1e-6;
      else {
        weight[row] += count;
        weight[column] += count;
        most = Math.max(most, count);
      }
    }
    let labels = shown.classes.map((_, label) => label);
    if (settings.classes.size) labels = labels.filter((label) => settings.classes.has(label));
    const left = Math.max(0, labels.length - MOST_CONFUSED);
    if (left)
      labels = labels
        .sort((a, b) => weight[b] - weight[a])
        .slice(0, MOST_CONFUSED)
        .sort((a, b) => a - b);
    labels.push(size - 1);
    const name = (label, other) => (label === size - 1 ? other : className(shown, label));
    const corner = element("th", {}, "true ↓ predicted →");
    const heads = labels.map((label) =>
      element(
        "th",
        { scope: "col", title: name(label, "missed") },
        element("span", {}, shortened(name(label, "missed"), 22)),
      ),
    );
    const rows = labels.map((row) =>
      element(
        "tr",
        {},
        element("th", { scope: "row", title: name(row, "background") }, shortened(name(row, "background"), 26)),
        labels.map((column) => this.cell(row, column, size, cells.get(row * size + column) ?? 0, most, name)),
      ),
    );
    const about = `Press a cell to see its images. IoU ${now.ious[settings.iou]}, score ≥ ${settings.threshold.toFixed(2)}.`;
    const rest = left
      ? ` The ${MOST_CONFUSED} of ${labels.length - 1 + left} classes with the most confusions; choose classes on the left to see others.`
      : "";
    const table = element(
      "table",
      { className: "confusion" },
      element("thead", {}, element("tr", {}, corner, heads)),
      element("tbody", {}, rows),
    );
    const largest = shown.classes.length > 8 ? this.largest(cells, size, most, name) : null;
    this.confusion.replaceChildren(
      ...[element("p", { className: "quiet" }, about + rest), largest, table].filter(Boolean),
    );
  }

  /** The pairs of classes that are confused most often: what is looked for in a large matrix. */
  largest(cells, size, most, name) {
    const pairs = [...cells]
      .map(([key, count]) => ({ row: Math.floor(key / size), column: key % size, count }))
      .filter(({ row, column }) => row !== column && row < size - 1 && column < size - 1)
      .sort((a, b) => b.count - a.count)
      .slice(0, LARGEST);
    if (!pairs.length) return null;
    const rows = pairs.map(({ row, column, count }) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, `${name(row)} → ${name(column)}`),
        this.cell(row, column, size, count, most, name),
      ),
    );
    return element("table", { className: "confusion largest" }, element("tbody", {}, rows));
  }

  cell(row, column, size, count, most, name) {
    if (!count) return element("td", { className: "zero" }, row === size - 1 && column === size - 1 ? "" : "·");
    const key = row * size + column;
    const said = `${name(row, "background")} → ${name(column, "missed")}`;
    const press = () => this.page.set({ cell: this.page.settings.cell === key ? null : key, view: "images" });
    const button = element(
      "button",
      {
        type: "button",
        title: `${said}: ${count}`,
        "aria-label": `${said}: ${count}`,
        on: { click: press },
        data: { row, column },
      },
      String(count),
    );
    const made = element("td", { className: row === column ? "right" : "wrong" }, button);
    made.style.setProperty("--share", `${row === column ? 25 : 10 + 70 * Math.sqrt(count / most)}%`);
    return made;
  }

  /** What a data set says about itself. */
  showStatistics() {
    const made = this.page.shown.tables.map(({ title, columns, rows }) => {
      const most = columns.map((_, place) => Math.max(0, ...rows.map((row) => Number(row[place]) || 0)));
      const cell = (value, place) => {
        const text = typeof value === "number" ? value.toLocaleString("en") : String(value ?? "–");
        const td = element("td", {}, text);
        if (typeof value === "number" && most[place]) {
          td.classList.add("bar");
          td.style.setProperty("--share", `${(100 * value) / most[place]}%`);
        }
        return td;
      };
      const body = rows
        .slice(0, MOST_ROWS)
        .map(([name, ...values]) =>
          element(
            "tr",
            {},
            element("th", { scope: "row" }, String(name ?? "")),
            values.map((value, place) => cell(value, place + 1)),
          ),
        );
      const heads = columns.map((name) => element("th", { scope: "col" }, name));
      const rest = rows.length - MOST_ROWS;
      return [
        element("h2", {}, title),
        element(
          "table",
          { className: "numbers" },
          element("thead", {}, element("tr", {}, heads)),
          element("tbody", {}, body),
        ),
        rest > 0 ? element("p", { className: "quiet" }, `${rest.toLocaleString("en")} more rows.`) : null,
      ];
    });
    this.metrics.replaceChildren(...made.flat().filter(Boolean));
  }

  showMetrics() {
    if (this.page.shown.truthOnly) {
      this.showStatistics();
      return;
    }
    const { shown, now } = this.page;
    const names = [...new Set(shown.evaluations.flatMap((each) => Object.keys(each.metrics)))];
    const columns = [...shown.evaluations].reverse();
    const head = columns.map((each) =>
      element("th", { scope: "col", className: each === now ? "chosen" : "" }, `${each.label} · ${each.split}`),
    );
    const rows = names.map((name) => {
      const values = columns.map((each) => each.metrics[name]);
      const best = Math.max(...values.filter((value) => value !== undefined));
      const cells = values.map((value) =>
        element(
          "td",
          { className: columns.length > 1 && value === best && !/loss|time|error/i.test(name) ? "best" : "" },
          value === undefined ? "" : Math.abs(value) <= 1 ? value.toFixed(4) : String(Number(value.toPrecision(5))),
        ),
      );
      return element("tr", {}, element("th", { scope: "row" }, name), cells);
    });
    const table = element(
      "table",
      { className: "numbers" },
      element("thead", {}, element("tr", {}, element("th", {}, "metric"), head)),
      element("tbody", {}, rows),
    );
    const none = element("p", { className: "quiet" }, "No metrics were recorded with these evaluations.");
    this.metrics.replaceChildren(names.length ? table : none);
  }
}
