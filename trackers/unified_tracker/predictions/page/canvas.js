// Drawing objects over a picture.

// Told apart by colour-blind people (after Okabe and Ito), and by the style of their lines without any colour.
const STYLES = {
  m: { colour: "#f0e442", dash: [], width: 2.5 },
  c: { colour: "#cc79a7", dash: [9, 3, 2, 3], width: 2 },
  l: { colour: "#e69f00", dash: [2, 3], width: 2 },
  d: { colour: "#56b4e9", dash: [12, 4], width: 2 },
  b: { colour: "#ff6a1f", dash: [5, 4], width: 2 },
  t: { colour: "#1fc99a", dash: [], width: 2 },
  i: { colour: "#b0b0b0", dash: [1, 3], width: 1.5 },
  u: { colour: "#7fb4ff", dash: [], width: 2 },
  found: { colour: "#ffffff", dash: [], width: 1 },
};
const CASING = "rgba(0, 0, 0, 0.6)";

/** A colour of its own for each class; neighbours in the list are far apart. */
function classColour(label) {
  return `hsl(${(label * 137.508) % 360} ${65 + ((label * 31) % 3) * 12}% ${58 + ((label * 17) % 3) * 8}%)`;
}

/**
 * One object as it is drawn and listed.
 * @typedef {{index: number, predicted: boolean, letter: string, found: boolean, label: number, score: number|null,
 *   overlap: number|null, box: number[]|null, mask: string, keypoints: number[]|null, other: number, crowd: boolean,
 *   change: string, later: number|null}} Thing
 *   `other`: index of the object of the other side that it was compared with, or -1. `change`: "found", "lost"
 *   or "new" (an error) since the evaluation that is compared with. `later`: score below the threshold at which a missed object would be found.
 */

/**
 * Objects of an image at the present settings: true ones, then predictions, least sure first, so that the surest is on top.
 * @param {Evaluation|null} before The evaluation that is compared with.
 * @param {boolean} compared Also find what each wrong prediction was compared with, and which errors are new; costly.
 * @returns {{truths: Thing[], predictions: Thing[]}}
 */
function thingsOf(shown, evaluation, settings, index, before = null, compared = false) {
  const picture = shown.images[index];
  const truth = picture.truth?.[settings.task] ?? null;
  const predicted = evaluation.images[index]?.[settings.task] ?? null;
  const chosen = settings.classes.size ? settings.classes : null;
  const found = truth && predicted ? fillFound(truth, predicted, settings.iou, settings.threshold, []) : null;
  const once = truth && before ? foundThen(truth, before, evaluation, settings, index) : null;
  // Regions have no scores of their own.
  const scored = settings.task === "instances" || predicted?.s.some((score) => score !== 1);
  const truths = [];
  const crowd = new Set(truth?.c ?? []);
  for (let i = 0; i < (truth?.l.length ?? 0); i++) {
    if (chosen && !chosen.has(truth.l[i])) continue;
    const missed = found !== null && found[i] === -1;
    let change = "";
    if (once && found && !crowd.has(i) && found[i] >= 0 !== once[i] >= 0) change = missed ? "lost" : "found";
    const letter = crowd.has(i) ? "i" : missed ? "m" : found ? "t" : "u";
    const later = missed ? laterScore(predicted, i, settings) : null;
    const other = found?.[i] ?? -1;
    truths.push({
      ...thing(truth, i, false),
      letter,
      found: found?.[i] >= 0,
      other,
      crowd: crowd.has(i),
      change,
      later,
    });
  }
  const predictions = [];
  const judgedOnce = compared && before?.images[index]?.[settings.task] && truth && predicted;
  const fresh = judgedOnce ? changedErrors(shown, evaluation, before, settings, index).fresh : null;
  for (let i = (predicted?.l.length ?? 0) - 1; i >= 0; i--) {
    if (scoreOf(predicted, i) < settings.threshold || (chosen && !chosen.has(predicted.l[i]))) continue;
    const kind = KINDS[truth ? kindOf(predicted, i, settings.iou) : UNJUDGED];
    const other = truth && compared ? counterpart(picture, truth, predicted, i, settings.iou) : -1;
    const change = fresh?.has(i) ? "new" : "";
    predictions.push({ ...thing(predicted, i, scored), predicted: true, letter: kind.letter, other, change });
  }
  return { truths, predictions };
}

/** @returns {Thing} */
function thing(objects, i, scored) {
  return {
    index: i,
    predicted: false,
    letter: "u",
    found: false,
    label: objects.l[i],
    score: scored && objects.s.length ? objects.s[i] : null,
    overlap: objects.o.length ? objects.o[i] : null,
    box: objects.b.length ? objects.b.slice(4 * i, 4 * i + 4) : null,
    mask: objects.m[i] ?? "",
    keypoints: objects.k[i] ?? null,
    other: -1,
    crowd: false,
    change: "",
    later: null,
  };
}

function foundThen(truth, before, now, settings, index) {
  const predicted = before.images[index]?.[settings.task];
  return predicted ? fillFound(truth, predicted, sameIou(now, before, settings.iou), settings.threshold, []) : null;
}

/** Score below the threshold with which a missed object is predicted after all; null if it is not. */
function laterScore(predicted, index, settings) {
  const [matches, kinds] = [predicted.g[settings.iou] ?? [], predicted.e[settings.iou] ?? ""];
  for (let i = 0; i < matches.length; i++) if (matches[i] === index && kinds[i] === "t") return scoreOf(predicted, i);
  return null;
}

/** Outlines are costly to trace: kept for the images that were looked at last. */
class Outlines {
  constructor(most) {
    this.most = most;
    this.kept = new Map();
  }

  /** Outline of a mask; `longest` is the size in pixels in which it is traced. */
  of(text, width, height, longest) {
    const key = `${longest}/${width}/${height}/${text}`;
    let outline = this.kept.get(key);
    if (outline === undefined) outline = outlineOf(text, width, height, longest);
    else this.kept.delete(key);
    this.kept.set(key, outline);
    if (this.kept.size > this.most) this.kept.delete(this.kept.keys().next().value);
    return outline;
  }
}
const OUTLINES = new Outlines(6000);

/**
 * Draw objects in the pixels of the original image; the canvas is already moved and scaled.
 * @param {CanvasRenderingContext2D} context
 * @param {{scale: number, unit: number, longest: number, masks: boolean, labels: boolean, keypoints: boolean,
 *   byClass: boolean, together: boolean, lit: ((each: Thing) => boolean)|null, left: number, right: number, top: number,
 *   dimmed: ((each: Thing) => boolean)|undefined}} look
 *   `scale`, `unit`: pixels of the canvas an original pixel, a CSS pixel. `longest`: in which masks are traced.
 *   `together`: truth and predictions are in one picture. `left`, `right`, `top`: of what is in sight.
 */
function drawThings(context, shown, picture, things, look) {
  const unit = look.unit / look.scale; // a CSS pixel, in original pixels
  context.save();
  context.lineJoin = "round";
  for (const each of things) {
    const style = styleOf(each, look);
    const colour = look.byClass ? classColour(each.label) : style.colour;
    context.globalAlpha = look.dimmed?.(each) ? 0.12 : look.lit && !look.lit(each) ? 0.25 : 1;
    const lit = look.lit?.(each) ?? false;
    if (look.masks && each.mask) drawMask(context, picture, each, colour, style, unit, look, lit);
    if (each.box && !(look.masks && each.mask && !lit))
      stroke(context, boxPath(each.box), colour, style, unit * (lit ? 1.6 : 1));
    if (each.keypoints && look.keypoints) drawKeypoints(context, shown.skeleton, each.keypoints, colour, unit);
    if (each.change && !each.predicted && each.box) drawChange(context, each, unit);
  }
  if (look.labels) drawLabels(context, shown, things, look, unit);
  context.restore();
}

/** What is true and found stands back behind what finds it, where both are in one picture. */
function styleOf(each, look) {
  return look.together && !each.predicted && each.found ? STYLES.found : STYLES[each.letter];
}

function boxPath([x1, y1, x2, y2]) {
  const path = new Path2D();
  path.rect(x1, y1, x2 - x1, y2 - y1);
  return path;
}

/** A line that is seen on any picture: dark below, and coloured. */
function stroke(context, path, colour, style, unit) {
  context.setLineDash([]);
  context.lineWidth = (style.width + 1.5) * unit;
  context.strokeStyle = CASING;
  context.stroke(path);
  context.setLineDash(style.dash.map((length) => length * unit));
  context.lineWidth = style.width * unit;
  context.strokeStyle = colour;
  context.stroke(path);
  context.setLineDash([]);
}

function drawMask(context, picture, each, colour, style, unit, look, lit) {
  const outline = OUTLINES.of(each.mask, picture.width, picture.height, look.longest);
  if (!outline) return;
  const alpha = context.globalAlpha;
  context.globalAlpha = alpha * (lit ? 0.5 : style === STYLES.found ? 0.12 : 0.32);
  context.fillStyle = colour;
  context.fill(outline.path);
  context.globalAlpha = alpha;
  stroke(context, outline.path, colour, { ...style, width: style.width * 0.75 }, unit);
}

function drawKeypoints(context, skeleton, points, colour, unit) {
  const seen = (i) => points[3 * i + 2] > 0;
  const bones = new Path2D();
  for (const [from, to] of skeleton) {
    if (!seen(from) || !seen(to)) continue;
    bones.moveTo(points[3 * from], points[3 * from + 1]);
    bones.lineTo(points[3 * to], points[3 * to + 1]);
  }
  stroke(context, bones, colour, { dash: [], width: 1.5 }, unit);
  const dots = new Path2D();
  for (let i = 0; 3 * i < points.length; i++) {
    if (!seen(i)) continue;
    const [x, y] = [points[3 * i], points[3 * i + 1]];
    dots.moveTo(x + 2.5 * unit, y);
    dots.arc(x, y, 2.5 * unit, 0, 2 * Math.PI);
  }
  context.fillStyle = colour;
  context.strokeStyle = CASING;
  context.lineWidth = 2 * unit;
  context.stroke(dots);
  context.fill(dots);
}

/** A corner mark on a true object that is found or lost since the evaluation that is compared with. */
function drawChange(context, each, unit) {
  const [x, y] = [each.box[2], each.box[1]];
  const radius = 7 * unit;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = each.change === "found" ? "#0b7a5c" : "#b3261e";
  context.fill();
  context.strokeStyle = "#fff";
  context.lineWidth = 1.6 * unit;
  context.beginPath();
  context.moveTo(x - 3.5 * unit, y);
  context.lineTo(x + 3.5 * unit, y);
  if (each.change === "found") {
    context.moveTo(x, y - 3.5 * unit);
    context.lineTo(x, y + 3.5 * unit);
  }
  context.stroke();
}

/** Labels where there is room: the surest first, none over another. */
function drawLabels(context, shown, things, look, unit) {
  const height = 14 * unit;
  const taken = [];
  context.font = `${11 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const each of [...things].reverse().slice(0, 150)) {
    const place = placeOf(each);
    // What is found is named by what finds it.
    const named = look.together && !each.predicted && each.found && !look.lit?.(each);
    if (!place || named || (look.lit && !look.lit(each)) || look.dimmed?.(each)) continue;
    const text = labelOf(shown, each);
    const width = context.measureText(text).width + 6 * unit;
    const y = place[1] - height >= look.top ? place[1] - height : place[1];
    const x = Math.max(look.left, Math.min(place[0], look.right - width));
    if (taken.some(([a, b, c]) => x < b && x + width > a && Math.abs(c - y) < height)) continue;
    taken.push([x, x + width, y]);
    context.globalAlpha = 0.85;
    context.fillStyle = "#111";
    context.fillRect(x, y, width, height);
    context.globalAlpha = 1;
    context.fillStyle = look.byClass ? classColour(each.label) : styleOf(each, look).colour;
    context.fillText(text, x + 3 * unit, y + height / 2 + 0.5 * unit);
  }
}

function placeOf(each) {
  if (each.box) return [Math.min(each.box[0], each.box[2]), Math.min(each.box[1], each.box[3])];
  if (each.outlineBox) return each.outlineBox;
  if (!each.keypoints) return null;
  for (let i = 0; i < each.keypoints.length; i += 3)
    if (each.keypoints[i + 2] > 0) return [each.keypoints[i], each.keypoints[i + 1]];
  return null;
}

/** Boxes of what has only a mask, so that it can be labelled and pointed at. */
function addOutlineBoxes(picture, things, longest) {
  for (const each of things)
    if (!each.box && each.mask) each.outlineBox = OUTLINES.of(each.mask, picture.width, picture.height, longest)?.box;
}

function className(shown, label) {
  return shown.classes[label] ?? `class ${label}`;
}

function labelOf(shown, each) {
  const name = shortened(className(shown, each.label), 28);
  return each.score === null ? name : `${name} ${each.score.toFixed(2)}`;
}

function shortened(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
