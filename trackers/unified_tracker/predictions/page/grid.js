// The images, as many cards as are in sight.

const CARD_WIDTHS = { small: 180, medium: 250, large: 400 };
const CAPTION_HEIGHT = 52;
const GAP = 10;

class Grid {
  constructor(page) {
    this.page = page;
    this.focus = 0; // position in the order
    this.cards = new Map(); // index of an image to its card
    this.list = element("div", { className: "grid", role: "list", "aria-label": "images" });
    this.nothing = element("p", { className: "nothing", hidden: true });
    this.box = element("div", { className: "scroll images" }, this.nothing, this.list);
    this.render = framed(() => this.renderNow());
    this.box.addEventListener("scroll", this.render, { passive: true });
    new ResizeObserver(() => this.render()).observe(this.box);
  }

  /** Show the page's order from its start, or from where it is. */
  update(fromStart) {
    const { order, shown } = this.page;
    if (fromStart) {
      this.focus = 0;
      this.box.scrollTop = 0;
    }
    this.focus = Math.max(0, Math.min(this.focus, order.length - 1));
    this.nothing.hidden = order.length > 0;
    this.nothing.textContent = shown.images.length
      ? "No image fits these filters."
      : `There are no images in this ${shown.truthOnly ? "data set" : "sample"}.`;
    this.renderNow();
  }

  measure() {
    const width = this.box.clientWidth - 2 * GAP;
    const wanted = CARD_WIDTHS[this.page.settings.size];
    // A sample of a few images fills the width.
    const most = Math.max(1, Math.min(Math.floor((width + GAP) / (wanted + GAP)), this.page.shown.images.length));
    this.columns = most;
    this.width = Math.min(Math.floor((width - GAP * (most - 1)) / most), 2 * wanted, Math.max(wanted, width));
    this.pictureHeight = Math.round(this.width * 0.75);
    this.height = this.pictureHeight + CAPTION_HEIGHT;
  }

  renderNow() {
    const { order } = this.page;
    if (!this.box.clientWidth || this.box.hidden) return;
    this.measure();
    const row = this.height + GAP;
    this.list.style.height = `${Math.ceil(order.length / this.columns) * row + GAP}px`;
    const first = Math.max(0, Math.floor((this.box.scrollTop - 0.5 * row) / row)) * this.columns;
    const last = Math.min(
      order.length,
      (Math.ceil((this.box.scrollTop + this.box.clientHeight) / row) + 1) * this.columns,
    );
    const wanted = new Set(order.slice(first, last));
    for (const [index, card] of this.cards)
      if (!wanted.has(index)) {
        card.item.remove();
        this.cards.delete(index);
      }
    for (let position = first; position < last; position++) this.place(order[position], position, row);
  }

  place(index, position, row) {
    let card = this.cards.get(index);
    if (!card) {
      card = this.make(index);
      this.cards.set(index, card);
      this.list.append(card.item);
    }
    const [x, y] = [
      GAP + (position % this.columns) * (this.width + GAP),
      GAP + Math.floor(position / this.columns) * row,
    ];
    card.item.style.transform = `translate(${x}px, ${y}px)`;
    card.item.style.width = `${this.width}px`;
    card.frame.style.height = `${this.pictureHeight}px`;
    card.button.tabIndex = position === this.focus ? 0 : -1;
    card.item.setAttribute("aria-posinset", String(position + 1));
    card.item.setAttribute("aria-setsize", String(this.page.order.length));
    card.position = position;
    const drawn = `${this.page.version}/${this.width}/${devicePixelRatio}`;
    if (card.drawn !== drawn) {
      card.drawn = drawn;
      this.draw(card, index);
      this.describe(card, index);
    }
    if (!card.picture.getAttribute("src")) this.load(card, index);
  }

  make(index) {
    const { shown } = this.page;
    const card = {};
    card.picture = element("img", { alt: "", decoding: "async", draggable: false });
    card.canvas = element("canvas", { "aria-hidden": "true" });
    card.why = element("span", { className: "why" });
    card.frame = element("div", { className: "frame" }, card.picture, card.why, card.canvas);
    card.name = element("span", { className: "name", title: shown.images[index].name }, shown.images[index].name);
    card.counts = element("span", { className: "counts" });
    card.button = element(
      "button",
      {
        type: "button",
        className: "card",
        on: { click: () => this.page.open(card.position), focus: () => this.focusOn(card) },
      },
      card.frame,
      card.name,
      card.counts,
    );
    card.item = element("div", { className: "item", role: "listitem", data: { index } }, card.button);
    return card;
  }

  load(card, index) {
    const source = sourceOf(index);
    card.picture.hidden = !source;
    const arriving = document.readyState === "loading";
    card.why.textContent = source || arriving ? "" : this.page.shown.images[index].why || "no picture";
    if (!source) return;
    if (!this.loaded)
      card.picture.addEventListener("load", () => {
        if (!this.loaded) performance.mark("first-picture");
        this.loaded = true;
      });
    card.picture.src = source;
  }

  draw(card, index) {
    const { shown, settings, page = this.page } = this.page;
    const unit = Math.min(devicePixelRatio || 1, 2);
    const picture = shown.images[index];
    card.canvas.width = this.width * unit;
    card.canvas.height = this.pictureHeight * unit;
    const context = card.canvas.getContext("2d");
    const scale = Math.min(card.canvas.width / picture.width, card.canvas.height / picture.height);
    const [x, y] = [(card.canvas.width - scale * picture.width) / 2, (card.canvas.height - scale * picture.height) / 2];
    context.setTransform(scale, 0, 0, scale, x, y);
    const { truths, predictions } = thingsOf(shown, page.now, settings, index, page.before);
    const wanted = (each) => !settings.kinds.size || settings.kinds.has(each.letter);
    const things = [...(settings.truth ? truths : []), ...(settings.predictions ? predictions : [])].filter(wanted);
    const longest = 64 * Math.ceil((Math.max(this.width, this.pictureHeight) * unit) / 64);
    if (settings.masks) addOutlineBoxes(picture, things, longest);
    drawThings(context, shown, picture, things, {
      ...page.look(),
      scale,
      unit,
      longest,
      together: true,
      crowded: things.length > 60,
      lit: null,
      left: -x / scale,
      right: picture.width + x / scale,
      top: -y / scale,
    });
  }

  describe(card, index) {
    const { counts, change } = this.page;
    const start = index * KINDS.length;
    const of = (letter) => counts.kinds[start + KIND.get(letter).index];
    const parts = [];
    let said = "";
    if (this.page.shown.truthOnly)
      parts.push(element("span", { className: "quiet" }, (said = plural(counts.truths[index], "object"))));
    else if (!counts.there[index]) parts.push(element("span", { className: "quiet" }, (said = "not evaluated")));
    else if (!counts.judged[index])
      parts.push(element("span", { className: "quiet" }, (said = `${plural(of("u"), "prediction")}, no ground truth`)));
    else {
      const wrong = counts.errors[index] - of("m");
      said = `F1 ${number(counts.f1[index])}, ${plural(of("t"), "true positive")}, ${plural(wrong, "false positive")}, ${of("m")} missed`;
      parts.push(
        element("b", { className: "f1" }, `F1 ${number(counts.f1[index])}`),
        element("span", { className: "right" }, `${of("t")} TP`),
        element("span", { className: wrong ? "wrong" : "quiet" }, `${wrong} FP`),
        element("span", { className: of("m") ? "missed" : "quiet" }, `${of("m")} missed`),
      );
    }
    if (change?.both[index] && (change.errors[index] || change.found[index] || change.lost[index])) {
      const by = change.errors[index];
      const text = by < 0 ? `▼ ${-by}` : by > 0 ? `▲ ${by}` : "±0";
      const more = `${by > 0 ? `${by} more` : `${-by} fewer`} errors, ${change.found[index]} found, ${change.lost[index]} lost`;
      parts.push(
        element("span", { className: `badge ${by < 0 ? "fixed" : by > 0 ? "broken" : ""}`, title: more }, text),
      );
      said += `; ${more}`;
    }
    card.counts.replaceChildren(...parts);
    card.button.setAttribute("aria-label", `${this.page.shown.images[index].name}: ${said}`);
  }

  focusOn(card) {
    if (card.position === this.focus) return;
    this.focus = card.position;
    for (const each of this.cards.values()) each.button.tabIndex = each === card ? 0 : -1;
  }

  /** Move the focus to a position, and it into sight. */
  go(position) {
    const { order } = this.page;
    if (!order.length) return;
    this.focus = Math.max(0, Math.min(position, order.length - 1));
    const row = this.height + GAP;
    const top = Math.floor(this.focus / this.columns) * row;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + row + GAP > this.box.scrollTop + this.box.clientHeight)
      this.box.scrollTop = top + row + GAP - this.box.clientHeight;
    this.renderNow();
    const card = this.cards.get(order[this.focus]);
    for (const each of this.cards.values()) each.button.tabIndex = each === card ? 0 : -1;
    card?.button.focus({ preventScroll: true });
  }
}
