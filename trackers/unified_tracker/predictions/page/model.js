// The document, and what follows from it at a score threshold: which objects are found, which predictions are wrong.

/**
 * Objects of one image and task, as columns. `g`, `e`: one entry an IoU threshold.
 * @typedef {{l: number[], b: number[], m: string[], k: number[][], c: number[], s: number[], g: number[][],
 *   e: string[], o: number[]}} Objects
 * @typedef {{id: number|string, name: string, width: number, height: number, src: string, why: string,
 *   truth: Object<string, Objects>|null}} Picture
 * @typedef {{id: string, label: string, run: string, split: string, step: number|null, epoch: number|null,
 *   threshold: number, ious: number[], metrics: Object<string, number>, images: (Object<string, Objects>|null)[],
 *   classes: Object<string, Array[]>, confusion: Object<string, number[][]>}} Evaluation
 * @typedef {{title: string, dataset: string, classes: string[], images: Picture[], evaluations: Evaluation[],
 *   keypoint_names: string[], skeleton: number[][], notes: string[], version: number, truthOnly: boolean,
 *   tables: {title: string, columns: string[], rows: (string|number|null)[][]}[]}} Shown
 */

// Kinds in the order in which they matter to somebody who looks for errors; letters as in the document, and two more.
const KINDS = [
  { letter: "m", name: "missed", error: true, about: "a true object that no prediction matches" },
  { letter: "c", name: "wrong class", error: true, about: "an object of another class is there" },
  { letter: "l", name: "badly placed", error: true, about: "the right class, but the overlap is too small" },
  { letter: "d", name: "duplicate", error: true, about: "the object has been found already, with a higher score" },
  { letter: "b", name: "background", error: true, about: "nothing is there" },
  { letter: "t", name: "true positive", error: false, about: "matches a true object of its class" },
  { letter: "i", name: "ignored", error: false, about: "in a crowd region: neither right nor wrong" },
  { letter: "u", name: "not judged", error: false, about: "nobody has said what is true" },
];
const KIND = new Map(KINDS.map((kind, index) => [kind.letter, { ...kind, index }]));
const MISSED = KIND.get("m").index;
const UNJUDGED = KIND.get("u").index;
const NONE = Object.freeze({ l: [], b: [], m: [], k: [], c: [], s: [], g: [], e: [], o: [] });

function bytesOf(base64) {
  const raw = atob(base64);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

/** @returns {Promise<Shown>} The document that the page was written with; what was left out is filled in. */
async function readDocument() {
  const packed = new Blob([bytesOf(document.getElementById("document").textContent)]);
  const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  const shown = await new Response(stream).json();
  if (shown.version > 1) throw new Error(`the document has version ${shown.version}; this page knows 1`);
  const filled = (tasks) => {
    for (const task of Object.keys(tasks ?? {})) tasks[task] = { ...NONE, ...tasks[task] };
    return tasks ?? null;
  };
  for (const image of shown.images) Object.assign(image, { src: "", why: "", ...image, truth: filled(image.truth) });
  for (const each of shown.evaluations) {
    Object.assign(each, { metrics: {}, classes: {}, confusion: {}, ...each });
    each.images = shown.images.map((_, index) => filled(each.images?.[index]));
  }
  // A data set: what is true, and nobody has predicted anything.
  const truthOnly = !shown.evaluations.length;
  if (truthOnly)
    shown.evaluations.push({
      id: "",
      label: "no evaluation",
      run: "",
      split: "",
      threshold: 0,
      ious: [0.5],
      metrics: {},
      classes: {},
      images: shown.images.map(() => null),
    });
  return { keypoint_names: [], skeleton: [], notes: [], tables: [], truthOnly, ...shown };
}

const PICTURE = /^data:image\/(webp|png|jpeg);base64,[A-Za-z0-9+/]+={0,2}$/;

/** Data URI of a picture; "" if there is none. Pictures stand beside the document, and are still arriving at first. */
function sourceOf(index) {
  const text = document.getElementById(`picture-${index}`)?.textContent ?? "";
  return PICTURE.test(text) ? text : "";
}

/** Tasks of a document, in the order in which people look at them. */
function tasksOf(shown) {
  const there = new Set();
  for (const image of shown.images) for (const task of Object.keys(image.truth ?? {})) there.add(task);
  for (const each of shown.evaluations)
    for (const image of each.images) for (const task of Object.keys(image ?? {})) there.add(task);
  return ["instances", "panoptic", "semantic"].filter((task) => there.has(task));
}

/** What a prediction is. */
function kindOf(predicted, index, iou) {
  return KIND.get(predicted.e[iou]?.[index])?.index ?? UNJUDGED;
}

function scoreOf(predicted, index) {
  return predicted.s.length ? predicted.s[index] : 1;
}

/**
 * For each true object the prediction that finds it, or -1; -2 for crowd regions, which cannot be missed.
 * @param {Objects} truth @param {Objects} predicted
 * @param {number[]} found Is filled.
 */
function fillFound(truth, predicted, iou, threshold, found) {
  found.length = truth.l.length;
  found.fill(-1);
  for (const index of truth.c) found[index] = -2;
  const matches = predicted.g[iou];
  const kinds = predicted.e[iou];
  if (!matches || !kinds) return found;
  for (let i = 0; i < predicted.l.length; i++)
    if (kinds[i] === "t" && matches[i] >= 0 && scoreOf(predicted, i) >= threshold) found[matches[i]] = i;
  return found;
}

/**
 * Counts of every image of one evaluation.
 * @typedef {{kinds: Int32Array, truths: Int32Array, judged: Uint8Array, f1: Float64Array, errors: Int32Array,
 *   worst: Float64Array, classes: Int32Array, total: Int32Array, there: Uint8Array, true: Int32Array}} Counts
 *   `kinds`: KINDS.length an image. `judged`: truth and predictions are known. `there`: it was evaluated.
 *   `worst`: highest score of a false positive. `classes`: true positives, false positives, missed, and all predictions
 *   of each class. `true`: true objects of each class, whichever classes are chosen.
 */

const PER_CLASS = 4;

/** @returns {Counts} */
function countAll(shown, evaluation, settings) {
  const images = shown.images.length;
  const counts = {
    kinds: new Int32Array(images * KINDS.length),
    truths: new Int32Array(images),
    judged: new Uint8Array(images),
    there: new Uint8Array(images),
    f1: new Float64Array(images).fill(NaN),
    errors: new Int32Array(images),
    worst: new Float64Array(images).fill(-1),
    classes: new Int32Array(shown.classes.length * PER_CLASS),
    total: new Int32Array(KINDS.length),
    true: new Int32Array(shown.classes.length),
  };
  const found = [];
  for (let index = 0; index < images; index++) countImage(shown, evaluation, settings, index, counts, found);
  return counts;
}

function countImage(shown, evaluation, settings, index, counts, found) {
  const predicted = evaluation.images[index]?.[settings.task];
  const truth = shown.images[index].truth?.[settings.task];
  const start = index * KINDS.length;
  const chosen = settings.classes.size ? settings.classes : null;
  counts.there[index] = predicted ? 1 : 0;
  counts.judged[index] = predicted && truth ? 1 : 0;
  for (const label of truth?.l ?? []) {
    counts.true[label]++;
    if (!chosen || chosen.has(label)) counts.truths[index]++;
  }
  if (!predicted) return;
  for (let i = 0; i < predicted.l.length; i++) {
    const label = predicted.l[i];
    const score = scoreOf(predicted, i);
    if (score < settings.threshold || (chosen && !chosen.has(label))) continue;
    const kind = truth ? kindOf(predicted, i, settings.iou) : UNJUDGED;
    counts.kinds[start + kind]++;
    counts.classes[label * PER_CLASS + 3]++;
    if (KINDS[kind].error) {
      counts.classes[label * PER_CLASS + 1]++;
      if (score > counts.worst[index]) counts.worst[index] = score;
    } else if (KINDS[kind].letter === "t") counts.classes[label * PER_CLASS]++;
  }
  if (truth) {
    fillFound(truth, predicted, settings.iou, settings.threshold, found);
    for (let i = 0; i < found.length; i++) {
      if (found[i] !== -1 || (chosen && !chosen.has(truth.l[i]))) continue;
      counts.kinds[start + MISSED]++;
      counts.classes[truth.l[i] * PER_CLASS + 2]++;
    }
    const right = counts.kinds[start + KIND.get("t").index];
    for (let kind = 0; kind < KINDS.length; kind++)
      if (KINDS[kind].error) counts.errors[index] += counts.kinds[start + kind];
    if (right + counts.errors[index]) counts.f1[index] = (2 * right) / (2 * right + counts.errors[index]);
  }
  for (let kind = 0; kind < KINDS.length; kind++) counts.total[kind] += counts.kinds[start + kind];
}

/** Precision, recall and F1 from counts; NaN where undefined. */
function rates(right, wrong, missed) {
  return {
    precision: right / (right + wrong),
    recall: right / (right + missed),
    f1: (2 * right) / (2 * right + wrong + missed),
  };
}

/** True positives, false positives and missed objects together. */
function summed(counts) {
  const right = counts.total[KIND.get("t").index];
  const missed = counts.total[MISSED];
  let wrong = -missed;
  KINDS.forEach((kind, index) => (wrong += kind.error ? counts.total[index] : 0));
  return { right, wrong, missed, ...rates(right, wrong, missed) };
}

/**
 * What changed between two evaluations, image by image.
 * `errors`: fewer (negative) or more. `found`, `lost`: true objects.
 */
function compareAll(shown, now, before, settings, countsNow, countsBefore) {
  const images = shown.images.length;
  const change = {
    errors: new Int32Array(images),
    found: new Int32Array(images),
    lost: new Int32Array(images),
    both: new Uint8Array(images),
    fixed: 0,
    broken: 0,
    allFound: 0,
    allLost: 0,
  };
  const chosen = settings.classes.size ? settings.classes : null;
  const [foundNow, foundBefore] = [[], []];
  for (let index = 0; index < images; index++) {
    if (!countsNow.judged[index] || !countsBefore.judged[index]) continue;
    change.both[index] = 1;
    change.errors[index] = countsNow.errors[index] - countsBefore.errors[index];
    if (change.errors[index] < 0) change.fixed++;
    if (change.errors[index] > 0) change.broken++;
    const truth = shown.images[index].truth[settings.task];
    fillFound(truth, now.images[index][settings.task], settings.iou, settings.threshold, foundNow);
    const iou = sameIou(now, before, settings.iou);
    fillFound(truth, before.images[index][settings.task], iou, settings.threshold, foundBefore);
    for (let i = 0; i < truth.l.length; i++) {
      if (chosen && !chosen.has(truth.l[i])) continue;
      if (foundNow[i] >= 0 && foundBefore[i] === -1) change.found[index]++;
      if (foundNow[i] === -1 && foundBefore[i] >= 0) change.lost[index]++;
    }
    change.allFound += change.found[index];
    change.allLost += change.lost[index];
  }
  return change;
}

/** Where another evaluation has the IoU threshold of this one; its first if nowhere. */
function sameIou(now, other, iou) {
  return Math.max(0, other.ious.indexOf(now.ious[iou]));
}

/**
 * The true object that a prediction of some kind was compared with, or -1: its match, else what it overlaps most among
 * those that its kind is about.
 * @param {Picture} picture @param {Objects} truth @param {Objects} predicted
 */
function counterpart(picture, truth, predicted, index, iou) {
  const said = predicted.g[iou]?.[index] ?? -1;
  const letter = predicted.e[iou]?.[index] ?? "";
  if (said >= 0 || !["c", "l", "d"].includes(letter)) return said;
  let [best, most] = [-1, 0];
  for (let i = 0; i < truth.l.length; i++) {
    if ((truth.l[i] === predicted.l[index]) === (letter === "c") || truth.c.includes(i)) continue;
    const overlap = overlapOf(picture, predicted, index, truth, i);
    if (overlap > most) [best, most] = [i, overlap];
  }
  return best;
}

/** Intersection over union of two objects: of their masks where both have one, else of their boxes. */
function overlapOf(picture, objects, i, others, j) {
  const boxes = objects.b.length && others.b.length;
  const byBoxes = boxes ? boxOverlap(objects.b, i, others.b, j) : 0;
  if (!objects.m.length || !others.m.length) return byBoxes;
  // Masks whose boxes are apart are apart; that saves most of the work.
  return boxes && !byBoxes ? 0 : maskOverlap(objects.m[i], others.m[j], picture.width * picture.height);
}

function boxOverlap(boxes, i, others, j) {
  const [a, b] = [4 * i, 4 * j];
  const width = Math.min(boxes[a + 2], others[b + 2]) - Math.max(boxes[a], others[b]);
  const height = Math.min(boxes[a + 3], others[b + 3]) - Math.max(boxes[a + 1], others[b + 1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (list, at) => (list[at + 2] - list[at]) * (list[at + 3] - list[at + 1]);
  return (width * height) / (area(boxes, a) + area(others, b) - width * height);
}

/**
 * Greedy matching as COCO does it: each of `chosen`, in their order, takes what overlaps most of what is left.
 * @returns {Map<number, number>} Index in `objects` to index in `others`.
 */
function matchGreedily(picture, objects, chosen, others, left, iou, allowed = () => true) {
  const taken = new Set();
  const pairs = new Map();
  for (const index of chosen) {
    let [best, most] = [-1, Math.min(iou, 1 - 1e-10)];
    for (const other of left) {
      if (taken.has(other) || !allowed(index, other)) continue;
      const overlap = overlapOf(picture, objects, index, others, other);
      if (overlap >= most) [best, most] = [other, overlap];
    }
    if (best < 0) continue;
    taken.add(best);
    pairs.set(index, best);
  }
  return pairs;
}

/** Indices of the predictions that count as wrong, best score first. */
function wrongOnes(predicted, settings, iou = settings.iou) {
  const wrong = [];
  for (let i = 0; i < predicted.l.length; i++)
    if (scoreOf(predicted, i) >= settings.threshold && KINDS[kindOf(predicted, i, iou)].error) wrong.push(i);
  return wrong;
}

function ofClasses(predicted, settings) {
  return (i) => !settings.classes.size || settings.classes.has(predicted.l[i]);
}

/**
 * Calls back for every cell of the confusion matrix that an image adds to; the number of classes stands for background.
 * What is found stays found. Of the rest each wrong prediction takes the object that it overlaps most, of whatever
 * class, if it overlaps enough; what is left is missed, or nothing but background.
 */
function eachConfusion(shown, evaluation, settings, index, callback) {
  const predicted = evaluation.images[index]?.[settings.task];
  const truth = shown.images[index].truth?.[settings.task];
  if (!predicted || !truth) return;
  const background = shown.classes.length;
  const found = fillFound(truth, predicted, settings.iou, settings.threshold, []);
  const left = [];
  for (let i = 0; i < found.length; i++) {
    if (found[i] >= 0) callback(truth.l[i], predicted.l[found[i]]);
    else if (found[i] === -1) left.push(i);
  }
  const wrong = wrongOnes(predicted, settings);
  const pairs = matchGreedily(shown.images[index], predicted, wrong, truth, left, evaluation.ious[settings.iou]);
  for (const i of wrong) callback(pairs.has(i) ? truth.l[pairs.get(i)] : background, predicted.l[i]);
  const taken = new Set(pairs.values());
  for (const i of left) if (!taken.has(i)) callback(truth.l[i], background);
}

/**
 * Which errors of one image are new, and how many of the earlier ones are gone. A false positive is the same in both
 * evaluations where class and place agree.
 * @returns {{fresh: Set<number>, gone: number}} `fresh`: indices of the later evaluation's predictions.
 */
function changedErrors(shown, now, before, settings, index) {
  const picture = shown.images[index];
  const [later, earlier] = [now, before].map((each) => each.images[index]?.[settings.task] ?? NONE);
  const wrong = wrongOnes(later, settings).filter(ofClasses(later, settings));
  const was = wrongOnes(earlier, settings, sameIou(now, before, settings.iou)).filter(ofClasses(earlier, settings));
  const same = (i, j) => later.l[i] === earlier.l[j];
  const kept = matchGreedily(picture, later, wrong, earlier, was, now.ious[settings.iou], same);
  return { fresh: new Set(wrong.filter((i) => !kept.has(i))), gone: was.length - kept.size };
}

/** Confusion matrix as a map from row * (classes + 1) + column to a count. */
function confusionOf(shown, evaluation, settings) {
  const cells = new Map();
  const size = shown.classes.length + 1;
  for (let index = 0; index < shown.images.length; index++)
    eachConfusion(shown, evaluation, settings, index, (row, column) => {
      const key = row * size + column;
      cells.set(key, (cells.get(key) ?? 0) + 1);
    });
  return cells;
}

const BINS = 50;

/** How many predictions are right and wrong in each of 50 steps of the score, and how many true objects there are. */
function histogramOf(shown, evaluation, settings) {
  const bins = { right: new Int32Array(BINS), wrong: new Int32Array(BINS), other: new Int32Array(BINS), truths: 0 };
  const chosen = settings.classes.size ? settings.classes : null;
  for (let index = 0; index < shown.images.length; index++) {
    const predicted = evaluation.images[index]?.[settings.task];
    const truth = shown.images[index].truth?.[settings.task];
    if (!predicted) continue;
    if (truth) {
      const crowd = new Set(truth.c);
      for (let i = 0; i < truth.l.length; i++) if (!crowd.has(i) && (!chosen || chosen.has(truth.l[i]))) bins.truths++;
    }
    for (let i = 0; i < predicted.l.length; i++) {
      if (chosen && !chosen.has(predicted.l[i])) continue;
      const bin = Math.min(BINS - 1, Math.max(0, Math.floor(scoreOf(predicted, i) * BINS)));
      const kind = truth ? kindOf(predicted, i, settings.iou) : UNJUDGED;
      if (KINDS[kind].error) bins.wrong[bin]++;
      else if (KINDS[kind].letter === "t") bins.right[bin]++;
      else if (KINDS[kind].letter === "u") bins.other[bin]++;
    }
  }
  return bins;
}

/** F1 of all images together if the threshold stood at the start of each step; and the step where it is highest. */
function f1Curve(bins) {
  const curve = new Float64Array(BINS);
  let [right, wrong, best] = [0, 0, 0];
  for (let bin = BINS - 1; bin >= 0; bin--) {
    right += bins.right[bin];
    wrong += bins.wrong[bin];
    curve[bin] = right ? rates(right, wrong, bins.truths - right).f1 : 0;
    if (curve[bin] > curve[best]) best = bin;
  }
  return { curve, best };
}

/** Names of the orders in which images can stand, with what they compare; worst first. */
const SORTS = {
  f1: "worst F1 first",
  errors: "most errors first",
  confident: "most confident error first",
  fixed: "most fixed first",
  broken: "most broken first",
  objects: "most objects first",
  name: "name",
  order: "order of the data set",
};

/** Indices of the images that are to be seen, in their order. */
function arrange(shown, evaluation, settings, counts, change) {
  const text = settings.text.trim().toLowerCase();
  const kinds = [...settings.kinds].map((letter) => KIND.get(letter).index);
  const size = shown.classes.length + 1;
  const seen = [];
  for (let index = 0; index < shown.images.length; index++) {
    if (text && !shown.images[index].name.toLowerCase().includes(text)) continue;
    const start = index * KINDS.length;
    if (kinds.length && !kinds.some((kind) => counts.kinds[start + kind])) continue;
    if (settings.classes.size && !counts.truths[index] && !KINDS.some((_, kind) => counts.kinds[start + kind]))
      continue;
    if (settings.change && change) {
      const by = change.errors[index];
      if (!change.both[index] || (settings.change === "fixed" ? by >= 0 : by <= 0)) continue;
    }
    if (settings.cell !== null) {
      let there = false;
      eachConfusion(shown, evaluation, settings, index, (row, column) => {
        if (row * size + column === settings.cell) there = true;
      });
      if (!there) continue;
    }
    seen.push(index);
  }
  return seen.sort(comparison(shown, settings.sort, counts, change));
}

function comparison(shown, sort, counts, change) {
  // What cannot be judged stands behind what can.
  const f1 = (index) => (Number.isNaN(counts.f1[index]) ? 2 + (counts.there[index] ? 0 : 1) : counts.f1[index]);
  const worst = (a, b) => f1(a) - f1(b) || counts.errors[b] - counts.errors[a] || a - b;
  const byName = new Intl.Collator(undefined, { numeric: true }).compare;
  const kinds = (index) =>
    counts.kinds.subarray(index * KINDS.length, (index + 1) * KINDS.length).reduce((x, y) => x + y, 0);
  return {
    f1: worst,
    errors: (a, b) => counts.errors[b] - counts.errors[a] || worst(a, b),
    confident: (a, b) => counts.worst[b] - counts.worst[a] || worst(a, b),
    fixed: (a, b) =>
      (change ? change.errors[a] - change.errors[b] || change.found[b] - change.found[a] : 0) || worst(a, b),
    broken: (a, b) =>
      (change ? change.errors[b] - change.errors[a] || change.lost[b] - change.lost[a] : 0) || worst(a, b),
    objects: (a, b) => counts.truths[b] - counts.truths[a] || kinds(b) - kinds(a) || a - b,
    name: (a, b) => byName(shown.images[a].name, shown.images[b].name) || a - b,
    order: (a, b) => a - b,
  }[sort];
}

/** The evaluation before this one of its run and split, and the best of its split; -1 for none, or this one. */
function suggestions(shown, index) {
  const now = shown.evaluations[index];
  const [first] = Object.keys(now.metrics);
  let [previous, best] = [-1, -1];
  shown.evaluations.forEach((each, i) => {
    if (each.split !== now.split) return;
    if (i < index && each.run === now.run) previous = i;
    const value = each.metrics[first];
    if (value !== undefined && (best < 0 || value > shown.evaluations[best].metrics[first])) best = i;
  });
  return { previous, best: best === index ? -1 : best, metric: first ?? "" };
}
