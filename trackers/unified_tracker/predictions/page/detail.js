// One image, large: ground truth beside prediction, with the same zoom, and the list of its objects.

const TRACED = 1200; // longest side in pixels in which masks are traced here
const MOST_ZOOM = 40;

class Detail {
  constructor(page) {
    this.page = page;
    this.position = 0;
    this.view = { zoom: 1, x: 0.5, y: 0.5 }; // the point of the picture in the middle of a pane, 0 to 1
    this.lit = null;
    this.pointers = new Map();
    this.title = element("h2", { className: "name" });
    this.where = element("span", { className: "quiet" });
    this.counts = element("p", { className: "counts" });
    this.panes = element("div", { className: "panes", tabIndex: -1 });
    this.objects = element("div", { className: "objects", role: "list", "aria-label": "objects" });
    this.modes = segments(
      "panes",
      [
        { value: "beside", text: "side by side", title: "s" },
        { value: "over", text: "overlaid", title: "s" },
      ],
      "beside",
      (panes) => page.set({ panes }),
    );
    this.toggles = element("span", { className: "toggles" });
    const button = (text, title, press) =>
      element("button", { type: "button", title, "aria-label": title, on: { click: press } }, text);
    this.score = scoreSlider(page);
    this.dialog = element(
      "dialog",
      { className: "detail", "aria-label": "image" },
      element(
        "header",
        {},
        element("div", { className: "naming" }, this.title, this.where),
        element("div", { className: "tools" }, page.shown.truthOnly ? null : this.score, this.modes, this.toggles),
        element(
          "div",
          { className: "steps" },
          button("‹", "previous image (left arrow)", () => this.step(-1)),
          button("›", "next image (right arrow)", () => this.step(1)),
          button("✕", "close (Escape)", () => this.close()),
        ),
      ),
      element(
        "div",
        { className: "body" },
        this.panes,
        element("aside", { className: "list" }, this.counts, this.objects),
      ),
    );
    this.dialog.addEventListener("close", () => this.page.closed());
    this.draw = framed(() => this.drawNow());
    new ResizeObserver(() => this.draw()).observe(this.panes);
  }

  get open() {
    return this.dialog.open;
  }

  show(position) {
    this.position = position;
    this.view = { zoom: 1, x: 0.5, y: 0.5 };
    this.lit = null;
    if (!this.dialog.open) {
      this.dialog.showModal();
      this.panes.focus(); // not the first control: arrows would move that
    }
    this.update();
  }

  close() {
    this.dialog.close();
  }

  step(by) {
    const { order } = this.page;
    const next = this.position + by;
    if (next < 0 || next >= order.length) return;
    this.show(next);
    this.page.remember();
  }

  /** After a change of what is shown; the image stays, wherever it now stands in the order. */
  update() {
    const { page } = this;
    this.index = page.order[this.position] ?? this.index;
    const picture = page.shown.images[this.index];
    const things = thingsOf(page.shown, page.now, page.settings, this.index, page.before, true);
    addOutlineBoxes(picture, [...things.truths, ...things.predictions], TRACED);
    const was = this.lit;
    const same = (each) => was && each.predicted === was.predicted && each.index === was.index;
    this.things = things;
    this.lit = [...things.truths, ...things.predictions].find(same) ?? null;
    this.title.textContent = picture.name;
    this.title.title = picture.name;
    this.where.textContent = `${this.position + 1} of ${page.order.length} · ${picture.width} × ${picture.height} · id ${picture.id}`;
    this.score.setValue(page.settings.threshold);
    this.modes.setValue(page.settings.panes);
    this.modes.hidden = page.shown.truthOnly || (!page.shown.images[this.index].truth && !page.before);
    this.toggles.replaceChildren(...page.displayToggles());
    this.load(picture);
    this.showPanes();
    this.showCounts();
    this.showObjects();
    this.draw();
  }

  load() {
    const source = sourceOf(this.index);
    if (this.loaded === this.index) return;
    this.loaded = this.index;
    this.image = null;
    if (!source) return;
    const image = new Image();
    const index = this.index;
    image.addEventListener("load", () => {
      if (index !== this.index) return;
      this.image = image;
      this.draw();
    });
    image.src = source;
  }

  showPanes() {
    const { settings, before, now, shown } = this.page;
    const judged = shown.images[this.index].truth !== null;
    const wanted = [];
    if (shown.truthOnly) wanted.push({ name: "ground truth", truth: true, predictions: false });
    else if (settings.panes === "beside") {
      if (judged) wanted.push({ name: "ground truth", truth: true, predictions: false });
      wanted.push({ name: `prediction · ${now.label}`, truth: false, predictions: true });
    } else
      wanted.push({
        name: `${judged ? "ground truth and " : ""}prediction · ${now.label}`,
        truth: true,
        predictions: true,
      });
    if (before)
      wanted.push({
        name: `before · ${before.label}`,
        truth: settings.panes === "over",
        predictions: true,
        before: true,
      });
    if (this.wanted === JSON.stringify(wanted)) return;
    this.wanted = JSON.stringify(wanted);
    this.canvases = wanted.map((each) => {
      const canvas = element("canvas", { className: "pane", role: "img", "aria-label": each.name });
      canvas.what = each;
      this.listen(canvas);
      return canvas;
    });
    this.panes.replaceChildren(
      ...this.canvases.map((canvas) =>
        element(
          "figure",
          {},
          element("figcaption", {}, canvas.what.name),
          element("div", { className: "hold" }, canvas),
        ),
      ),
    );
  }

  /** Pixels of the canvas an original pixel, and where its corner is. */
  placement(canvas) {
    const picture = this.page.shown.images[this.index];
    const fit = Math.min(canvas.width / picture.width, canvas.height / picture.height);
    const scale = fit * this.view.zoom;
    return {
      scale,
      x: canvas.width / 2 - this.view.x * picture.width * scale,
      y: canvas.height / 2 - this.view.y * picture.height * scale,
    };
  }

  drawNow() {
    if (!this.dialog.open) return;
    const { page } = this;
    const picture = page.shown.images[this.index];
    const unit = devicePixelRatio || 1;
    this.arrange(picture);
    for (const canvas of this.canvases) {
      const { clientWidth, clientHeight } = canvas.parentElement;
      if (!clientWidth || !clientHeight) continue;
      canvas.width = Math.round(clientWidth * unit);
      canvas.height = Math.round(clientHeight * unit);
      const context = canvas.getContext("2d");
      const { scale, x, y } = this.placement(canvas);
      context.setTransform(scale, 0, 0, scale, x, y);
      context.fillStyle = "#2a2e35";
      context.fillRect(0, 0, picture.width, picture.height);
      if (this.image) {
        context.imageSmoothingEnabled = (scale * picture.width) / this.image.naturalWidth < 4;
        context.imageSmoothingQuality = "high";
        context.drawImage(this.image, 0, 0, picture.width, picture.height);
      } else this.drawWhy(context, picture, unit / scale);
      drawThings(context, page.shown, picture, this.thingsIn(canvas), {
        ...page.look(),
        ...{
          scale,
          unit,
          longest: TRACED,
          lit: canvas.what.before ? null : this.related(),
          together: canvas.what.truth && canvas.what.predictions,
        },
        ...{ left: -x / scale, right: (canvas.width - x) / scale, top: -y / scale },
        dimmed: page.settings.kinds.size ? (each) => !page.settings.kinds.has(each.letter) : undefined,
      });
    }
  }

  /** In as many columns as show the picture largest. */
  arrange(picture) {
    const { clientWidth, clientHeight } = this.panes;
    const count = this.canvases.length;
    const size = (columns) => {
      const height = clientHeight / Math.ceil(count / columns) - 24; // of the caption
      return Math.min(clientWidth / columns / picture.width, height / picture.height);
    };
    let best = count;
    for (let columns = count - 1; columns > 0; columns--) if (size(columns) > size(best)) best = columns;
    this.panes.style.gridTemplateColumns = `repeat(${best}, minmax(0, 1fr))`;
  }

  drawWhy(context, picture, unit) {
    if (sourceOf(this.index)) return;
    context.fillStyle = "#b9bec7";
    context.font = `${13 * unit}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.fillText(shortened(picture.why || "no picture", 70), picture.width / 2, picture.height / 2);
    context.textAlign = "start";
  }

  thingsIn(canvas) {
    const { settings, page = this.page } = this.page;
    let { truths, predictions } = this.things;
    if (canvas.what.before) {
      const earlier = { ...settings, iou: sameIou(page.now, page.before, settings.iou) };
      ({ truths, predictions } = thingsOf(page.shown, page.before, earlier, this.index));
      addOutlineBoxes(page.shown.images[this.index], [...truths, ...predictions], TRACED);
    }
    const things = [];
    if (canvas.what.truth && settings.truth) things.push(...truths);
    if (canvas.what.predictions && settings.predictions) things.push(...predictions);
    return things;
  }

  listen(canvas) {
    const at = (event) => {
      const frame = canvas.getBoundingClientRect();
      const unit = canvas.width / frame.width;
      return [(event.clientX - frame.left) * unit, (event.clientY - frame.top) * unit];
    };
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoomAt(canvas, at(event), Math.exp(-Math.max(-100, Math.min(100, event.deltaY)) / 300));
      },
      { passive: false },
    );
    canvas.addEventListener("dblclick", () => this.reset());
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, at(event));
    });
    const leave = (event) => this.pointers.delete(event.pointerId);
    canvas.addEventListener("pointerup", leave);
    canvas.addEventListener("pointercancel", leave);
    canvas.addEventListener("pointerleave", () => !this.pointers.size && this.light(null));
    canvas.addEventListener("pointermove", (event) => {
      const now = at(event);
      const was = this.pointers.get(event.pointerId);
      if (!was) this.light(this.thingAt(canvas, now), true);
      else {
        this.drag(canvas, event.pointerId, was, now);
        this.pointers.set(event.pointerId, now);
      }
    });
  }

  drag(canvas, pointer, was, now) {
    const other = [...this.pointers].find(([id]) => id !== pointer)?.[1];
    if (other) {
      const far = (a, b) => Math.max(1, Math.hypot(a[0] - b[0], a[1] - b[1]));
      this.zoomAt(canvas, other, far(now, other) / far(was, other));
      return;
    }
    const picture = this.page.shown.images[this.index];
    const { scale } = this.placement(canvas);
    this.view.x = Math.max(0, Math.min(1, this.view.x - (now[0] - was[0]) / scale / picture.width));
    this.view.y = Math.max(0, Math.min(1, this.view.y - (now[1] - was[1]) / scale / picture.height));
    this.draw();
  }

  /** Zoom so that the point below the pointer stays where it is. */
  zoomAt(canvas, point, factor) {
    const picture = this.page.shown.images[this.index];
    const before = this.placement(canvas);
    const [px, py] = [(point[0] - before.x) / before.scale, (point[1] - before.y) / before.scale];
    this.view.zoom = Math.max(1, Math.min(MOST_ZOOM, this.view.zoom * factor));
    const { scale } = this.placement(canvas);
    this.view.x = Math.max(0, Math.min(1, (px - (point[0] - canvas.width / 2) / scale) / picture.width));
    this.view.y = Math.max(0, Math.min(1, (py - (point[1] - canvas.height / 2) / scale) / picture.height));
    if (this.view.zoom === 1) this.view = { zoom: 1, x: 0.5, y: 0.5 };
    this.draw();
  }

  /** Zoom in or out around the middle. */
  zoomBy(factor) {
    const [canvas] = this.canvases;
    this.zoomAt(canvas, [canvas.width / 2, canvas.height / 2], factor);
  }

  reset() {
    this.view = { zoom: 1, x: 0.5, y: 0.5 };
    this.draw();
  }

  /** The smallest object below a point. */
  thingAt(canvas, [x, y]) {
    const { scale, x: left, y: top } = this.placement(canvas);
    const [px, py] = [(x - left) / scale, (y - top) / scale];
    let [best, least] = [null, Infinity];
    if (canvas.what.before) return null;
    for (const each of this.thingsIn(canvas)) {
      const box = each.box ?? each.outlineBox;
      if (!box || px < box[0] || py < box[1] || px > box[2] || py > box[3]) continue;
      const area = (box[2] - box[0]) * (box[3] - box[1]);
      const inMask =
        !each.mask ||
        !this.page.settings.masks ||
        maskHas(each.mask, this.page.shown.images[this.index].height, px, py);
      if (inMask && area <= least) [best, least] = [each, area];
    }
    return best;
  }

  /** Says which objects are lit: one, and what it was compared with on the other side. */
  related() {
    const { lit } = this;
    if (!lit) return null;
    const points = (from, to) => from.predicted && from.other === to.index;
    return (each) => each === lit || (each.predicted !== lit.predicted && (points(each, lit) || points(lit, each)));
  }

  light(each, scroll = false) {
    if (this.lit === each) return;
    this.lit = each;
    for (const row of this.objects.children) {
      const on = row.thing === each && each !== null;
      row.classList.toggle("lit", on);
      if (on && scroll) row.scrollIntoView({ block: "nearest" });
    }
    this.draw();
  }

  /** Bring an object into the middle, large enough to be looked at. */
  zoomTo(each) {
    const box = each.box ?? each.outlineBox;
    if (!box) return;
    const picture = this.page.shown.images[this.index];
    const share = Math.max((box[2] - box[0]) / picture.width, (box[3] - box[1]) / picture.height, 0.02);
    this.view = {
      zoom: Math.max(1, Math.min(MOST_ZOOM, 0.45 / share)),
      x: (box[0] + box[2]) / 2 / picture.width,
      y: (box[1] + box[3]) / 2 / picture.height,
    };
    if (this.view.zoom === 1) this.view = { zoom: 1, x: 0.5, y: 0.5 };
    this.draw();
  }

  showCounts() {
    const { counts, change, settings, shown } = this.page;
    if (shown.truthOnly) {
      this.counts.textContent = plural(counts.truths[this.index], "object");
      return;
    }
    const of = (letter) => counts.kinds[this.index * KINDS.length + KIND.get(letter).index];
    const wrong = counts.errors[this.index] - of("m");
    if (!counts.there[this.index]) this.counts.textContent = "This evaluation did not see this image.";
    else if (!counts.judged[this.index])
      this.counts.textContent = `${plural(of("u"), "prediction")} at score ≥ ${settings.threshold.toFixed(2)}; no ground truth`;
    else
      this.counts.textContent = `F1 ${number(counts.f1[this.index])} · ${plural(of("t"), "true positive")} · ${plural(wrong, "false positive")} · ${of("m")} missed`;
    if (!change?.both[this.index]) return;
    const by = change.errors[this.index];
    const { fresh, gone } = changedErrors(this.page.shown, this.page.now, this.page.before, settings, this.index);
    const text = by ? `${Math.abs(by)} ${by < 0 ? "fewer" : "more"} errors` : "as many errors";
    this.counts.append(
      element(
        "span",
        { className: `change ${by < 0 ? "fixed" : by > 0 ? "broken" : ""}` },
        `${text} than ${this.page.before.label}: ${change.found[this.index]} found, ${change.lost[this.index]} lost, ` +
          `${plural(gone, "error")} gone, ${fresh.size} new`,
      ),
    );
  }

  showObjects() {
    const { shown } = this.page;
    const missed = this.things.truths.filter((each) => !each.found);
    const predictions = [...this.things.predictions].reverse();
    // A data set is read class by class, errors kind by kind.
    const group = (each) => (shown.truthOnly ? each.label : KIND.get(each.letter).index);
    const things = [...missed, ...predictions].sort((a, b) => group(a) - group(b));
    let last = -1;
    const rows = things.flatMap((each) => {
      const row = this.objectRow(each);
      if (group(each) === last) return [row];
      last = group(each);
      const count = things.filter((other) => group(other) === last).length;
      const unknown = each.letter === "u" && !each.predicted ? "ground truth" : KIND.get(each.letter).name;
      const name = shown.truthOnly ? className(shown, each.label) : unknown;
      const colour = shown.truthOnly && this.page.settings.byClass ? classColour(each.label) : "";
      const head = [swatch(each.letter, colour), element("span", {}, name), element("b", {}, String(count))];
      return [element("h3", {}, head), row];
    });
    this.objects.replaceChildren(
      ...(rows.length ? rows : [element("p", { className: "quiet" }, shown.truthOnly ? "No objects." : "Nothing at this threshold.")]),
    );
  }

  objectRow(each) {
    const { shown } = this.page;
    const name = className(shown, each.label);
    const notes = [];
    const truth = shown.images[this.index].truth?.[this.page.settings.task];
    if (each.letter === "c" && each.other >= 0) notes.push(`is ${className(shown, truth.l[each.other])}`);
    if (!each.predicted && each.later !== null) notes.push(`found at score ${each.later.toFixed(2)}`);
    const change =
      each.predicted && each.letter === "t"
        ? this.things.truths.find((other) => other.index === each.other)?.change
        : each.change;
    if (change) notes.push(change === "found" ? "newly found" : change);
    if (each.crowd && !each.predicted) notes.push("crowd region");
    if (shown.truthOnly && each.box) {
      const [width, height] = [each.box[2] - each.box[0], each.box[3] - each.box[1]];
      notes.push(`${Math.round(width)} × ${Math.round(height)}`);
    }
    const row = element(
      "button",
      {
        type: "button",
        className: `object${this.lit === each ? " lit" : ""}`,
        data: { kind: each.letter, index: each.index, side: each.predicted ? "prediction" : "truth" },
        on: {
          pointerenter: () => this.light(each),
          focus: () => this.light(each),
          pointerleave: () => this.light(null),
          click: () => this.zoomTo(each),
        },
      },
      element("span", { className: "name", title: name }, name),
      element("span", { className: "note" }, notes.join(", ")),
      element("span", { className: "number", title: "score" }, each.score === null ? "" : each.score.toFixed(2)),
      element(
        "span",
        { className: "number quiet", title: "IoU" },
        each.overlap === null ? "" : `IoU ${each.overlap.toFixed(2)}`,
      ),
    );
    row.thing = each;
    return row;
  }
}
