// The panel: what is looked at, and what of it is shown.

const MOST_CLASSES = 150; // in the list; the rest is searched for

class Panel {
  constructor(page) {
    this.page = page;
    const { shown, settings } = page;
    this.evaluation = choice("evaluation", [], "", (value) => page.set({ evaluation: Number(value) }));
    this.before = choice("compare with", [], "", (value) => page.compare(Number(value)));
    this.tasks = segments(
      "task",
      page.tasks.map((task) => ({ value: task, text: task })),
      settings.task,
      (task) => page.set({ task }),
    );
    this.ious = element("div");
    this.threshold = this.slider();
    this.kinds = element("div", { className: "kinds" });
    this.classes = element("div", { className: "classes", role: "group", "aria-label": "classes" });
    this.search = element("input", {
      type: "search",
      placeholder: `search ${plural(shown.classes.length, "class", "classes")}`,
      "aria-label": "search classes",
      on: { input: () => this.showClasses() },
    });
    this.clear = element(
      "button",
      { type: "button", className: "link", on: { click: () => page.set({ classes: new Set() }) } },
      "all",
    );
    this.text = element("input", {
      type: "search",
      placeholder: "name contains …",
      "aria-label": "image name contains",
      on: { input: () => page.set({ text: this.text.value }) },
    });
    this.node = element(
      "aside",
      { className: "panel", id: "panel", "aria-label": "what is shown" },
      ...(shown.truthOnly ? [] : [this.section("Evaluation", this.evaluation), this.compareSection()]),
      page.tasks.length > 1 ? this.section("Task", this.tasks) : null,
      ...(shown.truthOnly ? [] : this.judging()),
      this.section(["Classes", this.clear], shown.classes.length > 8 ? this.search : null, this.classes),
      this.section("Image", this.text),
    );
  }

  /** What only matters where something was predicted. */
  judging() {
    return [
      this.section("Score threshold", this.threshold),
      (this.iouSection = this.section("IoU threshold", this.ious)),
      this.section("Kinds", this.kinds),
    ];
  }

  section(title, ...content) {
    return element("section", {}, element("h2", {}, ...[title].flat()), ...content);
  }

  compareSection() {
    if (this.page.shown.evaluations.length < 2) return null;
    this.changes = element("div", { className: "changes" });
    return this.section("Compare with", this.before, this.changes);
  }

  slider() {
    const { page } = this;
    const changed = (input) => () => input.value !== "" && page.setThreshold(Number(input.value));
    this.range = element("input", { type: "range", min: 0, max: 1, step: 0.01, "aria-label": "score threshold" });
    this.range.addEventListener("input", changed(this.range));
    this.exact = element("input", {
      type: "number",
      min: 0,
      max: 1,
      step: 0.01,
      "aria-label": "score threshold, number",
    });
    this.exact.addEventListener("input", changed(this.exact));
    this.histogram = element("canvas", { className: "histogram", width: 480, height: 88, role: "img" });
    this.histogram.title = "right and wrong predictions by score; the line is F1 with the threshold there";
    this.best = element("button", { type: "button", className: "link" });
    this.best.addEventListener("click", () => page.setThreshold(this.bestScore));
    this.start = element("button", { type: "button", className: "link" });
    this.start.addEventListener("click", () => page.setThreshold(page.now.threshold));
    const under = element("div", { className: "under" }, this.start, this.best);
    return element(
      "div",
      { className: "threshold" },
      this.histogram,
      element("div", { className: "row" }, this.range, this.exact),
      under,
    );
  }

  update() {
    const { settings, page = this.page } = this.page;
    this.tasks.setValue(settings.task);
    if (!page.shown.truthOnly) this.updateJudging();
    this.clear.hidden = !settings.classes.size;
    this.showClasses();
    if (document.activeElement !== this.text) this.text.value = settings.text;
    this.node.classList.toggle("unjudged", !page.judged);
  }

  updateJudging() {
    const { settings, page = this.page } = this.page;
    fillChoice(this.evaluation, this.evaluationOptions(), String(settings.evaluation));
    this.showComparison();
    this.iouSection.hidden = page.now.ious.length < 2 || !page.judged;
    const ious = page.now.ious.map((iou, index) => ({ value: index, text: String(iou) }));
    this.ious.replaceChildren(segments("IoU threshold", ious, settings.iou, (iou) => page.set({ iou: Number(iou) })));
    if (document.activeElement !== this.exact) this.exact.value = settings.threshold.toFixed(2);
    this.range.value = String(settings.threshold);
    this.start.textContent = `start: ${page.now.threshold.toFixed(2)}`;
    this.showHistogram();
    this.showKinds();
  }

  evaluationOptions(skip = -1) {
    const { evaluations } = this.page.shown;
    const several = new Set(evaluations.map((each) => `${each.run}/${each.split}`)).size > 1;
    return evaluations
      .map((each, index) => ({
        value: String(index),
        text: each.label,
        group: several ? `${each.split} · ${each.run}` : undefined,
      }))
      .filter((each) => Number(each.value) !== skip)
      .reverse();
  }

  showComparison() {
    const { shown, settings, change } = this.page;
    if (!this.changes) return;
    const { previous, best, metric } = suggestions(shown, settings.evaluation);
    const options = [{ value: "-1", text: "nothing" }];
    const suggest = (index, text) => index >= 0 && options.push({ value: String(index), text, group: "suggested" });
    suggest(previous, `previous: ${shown.evaluations[previous]?.label}`);
    if (best !== previous) suggest(best, `best ${metric}: ${shown.evaluations[best]?.label}`);
    const there = new Set([String(previous), String(best)]);
    const others = this.evaluationOptions(settings.evaluation).filter((each) => !there.has(each.value));
    options.push(...others.map((each) => ({ ...each, group: each.group ?? "all" })));
    fillChoice(this.before, options, String(settings.before));
    this.changes.hidden = !change;
    if (!change) return;
    const button = (value, count, title) =>
      toggle(
        `${plural(count, "image")} ${value}`,
        title,
        settings.change === value,
        (on) => this.page.set({ change: on ? value : "" }),
        value,
      );
    this.changes.replaceChildren(
      ...[
        button("fixed", change.fixed, "fewer errors than before: show only these"),
        button("broken", change.broken, "more errors than before: show only these"),
        element("span", { className: "quiet" }, `objects: ${change.allFound} found, ${change.allLost} lost`),
        this.page.before.ious.includes(this.page.now.ious[settings.iou])
          ? null
          : element(
              "span",
              { className: "quiet" },
              `it has no matches at IoU ${this.page.now.ious[settings.iou]}; shown at ${this.page.before.ious[0]}`,
            ),
      ].filter(Boolean),
    );
  }

  showHistogram() {
    const bins = histogramOf(this.page.shown, this.page.now, this.page.settings);
    const { curve, best } = f1Curve(bins);
    const context = this.histogram.getContext("2d");
    const [width, height] = [this.histogram.width, this.histogram.height];
    const most = Math.max(1, ...bins.right.map((count, bin) => count + bins.wrong[bin] + bins.other[bin]));
    const style = getComputedStyle(this.histogram);
    const step = width / BINS;
    context.clearRect(0, 0, width, height);
    for (let bin = 0; bin < BINS; bin++) {
      context.globalAlpha = (bin + 1) / BINS > this.page.settings.threshold ? 1 : 0.3;
      let y = height;
      for (const [counts, colour] of [
        [bins.right, "--right"],
        [bins.wrong, "--wrong"],
        [bins.other, "--accent"],
      ]) {
        // Square roots: a bin of few stays visible beside one of many.
        const tall = (Math.sqrt(counts[bin] / most) * (height - 6)) | 0;
        context.fillStyle = style.getPropertyValue(colour);
        context.fillRect(bin * step + 0.5, y - tall, step - 1, tall);
        y -= tall;
      }
    }
    context.globalAlpha = 1;
    this.bestScore = best / BINS;
    this.best.textContent = `best F1 ${number(curve[best])} at ${this.bestScore.toFixed(2)}`;
    this.best.hidden = !bins.truths;
    if (!bins.truths) return;
    context.strokeStyle = style.getPropertyValue("--text");
    context.lineWidth = 2.5;
    context.beginPath();
    for (let bin = 0; bin < BINS; bin++) context.lineTo(bin * step, height - 2 - curve[bin] * (height - 6));
    context.stroke();
  }

  showKinds() {
    const { counts, settings, judged } = this.page;
    const rows = KINDS.filter(
      (kind, index) => (judged && kind.letter !== "u") || counts.total[index] || settings.kinds.has(kind.letter),
    );
    this.kinds.replaceChildren(
      ...rows.map((kind) => {
        const on = settings.kinds.has(kind.letter);
        const row = toggle(
          "",
          `${kind.about}; press to see only these`,
          on,
          () => this.page.flip("kinds", kind.letter),
          kind.letter,
        );
        row.classList.add("kind");
        row.append(
          swatch(kind.letter),
          element("span", {}, kind.name),
          element("b", {}, counts.total[KIND.get(kind.letter).index].toLocaleString("en")),
        );
        return row;
      }),
    );
  }

  showClasses() {
    const { shown, counts, settings } = this.page;
    const text = this.search.value.trim().toLowerCase();
    const errors = (label) =>
      shown.truthOnly ? counts.true[label] : counts.classes[label * PER_CLASS + 1] + counts.classes[label * PER_CLASS + 2];
    let labels = shown.classes
      .map((_, label) => label)
      .filter((label) => !text || shown.classes[label].toLowerCase().includes(text));
    if (labels.length > 12)
      labels.sort((a, b) => settings.classes.has(b) - settings.classes.has(a) || errors(b) - errors(a) || a - b);
    const more = labels.length - MOST_CLASSES;
    labels = labels.slice(0, MOST_CLASSES);
    const rows = labels.map((label) => {
      const box = element("input", {
        type: "checkbox",
        checked: settings.classes.has(label),
        on: { change: () => this.page.flip("classes", label) },
      });
      const [right, wrong, missed, all] = counts.classes.subarray(label * PER_CLASS, (label + 1) * PER_CLASS);
      const value = shown.truthOnly
        ? counts.true[label].toLocaleString("en")
        : !this.page.judged
          ? String(all)
        : right + wrong + missed
          ? number(rates(right, wrong, missed).f1)
          : "–";
      const name = className(shown, label);
      return element(
        "label",
        {
          className: "class",
          title: shown.truthOnly
            ? `${name}: ${plural(counts.true[label], "object")}`
            : `${name}: ${right} true positive, ${wrong} false positive, ${missed} missed`,
          data: { label },
        },
        box,
        element("span", { className: "name" }, name),
        element("span", { className: "number" }, value),
      );
    });
    const heading =
      this.page.judged && rows.length
        ? element("div", { className: "class quiet" }, element("span", { className: "name" }), "F1")
        : null;
    const rest = more > 0 ? element("p", { className: "quiet" }, `${more} more: search for them`) : null;
    const focused = document.activeElement?.closest?.(".class")?.dataset.label;
    this.classes.replaceChildren(...[heading, ...rows, rest].filter(Boolean));
    if (focused !== undefined) this.classes.querySelector(`[data-label="${Number(focused)}"] input`)?.focus();
  }
}
