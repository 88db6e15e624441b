// Masks: COCO's compressed run-length encoding, and the outlines that are drawn from it.

/**
 * Run lengths of a mask, alternately outside and inside, column by column.
 * Six bits a character from "0" on: five of the number, lowest first, and whether more follow; the highest of the last
 * five is its sign. From the third number on it is the difference to the one before the last.
 */
function runsOf(text) {
  const runs = [];
  let at = 0;
  while (at < text.length) {
    let [value, shift, more] = [0, 0, true];
    while (more && at < text.length) {
      const bits = text.charCodeAt(at++) - 48;
      value |= (bits & 0x1f) << shift;
      more = (bits & 0x20) !== 0;
      shift += 5;
      if (!more && bits & 0x10 && shift < 32) value |= -1 << shift;
    }
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** Runs of the masks that were compared last: the same ones are compared again and again. */
const RUNS = new Map();

function keptRuns(text) {
  let runs = RUNS.get(text);
  if (!runs) {
    if (RUNS.size > 20000) RUNS.clear();
    runs = runsOf(text);
    RUNS.set(text, runs);
  }
  return runs;
}

/** Intersection over union of two masks of the same size. */
function maskOverlap(text, other, pixels) {
  const [a, b] = [keptRuns(text), keptRuns(other)];
  let [i, j, endA, endB, position, both, either] = [0, 0, a[0] ?? pixels, b[0] ?? pixels, 0, 0, 0];
  while (position < pixels && (i < a.length || j < b.length)) {
    const end = Math.min(endA, endB, pixels);
    const [inA, inB] = [i < a.length && i % 2 === 1, j < b.length && j % 2 === 1];
    if (inA && inB) both += end - position;
    if (inA || inB) either += end - position;
    position = end;
    while (i < a.length && endA <= position) endA = ++i < a.length ? endA + a[i] : pixels;
    while (j < b.length && endB <= position) endB = ++j < b.length ? endB + b[j] : pixels;
  }
  return either ? both / either : 0;
}

/**
 * A mask in fewer pixels: every pixel of the result is the one of the mask in its middle.
 * @returns {{bits: Uint8Array, width: number, height: number, left: number, top: number}|null} The part in which there is
 *   anything, with where it starts in the result; null for an empty mask.
 */
function maskOf(text, width, height, scale) {
  const [w, h] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  // For each row of the mask the first row of the result whose middle is not above it.
  const middle = (i, small, large) => Math.min(large - 1, Math.floor(((i + 0.5) * large) / small));
  const rowFrom = new Int32Array(height + 1);
  for (let y = 0, row = 0; y <= height; y++) {
    while (row < h && middle(row, h, height) < y) row++;
    rowFrom[y] = row;
  }
  const columnAt = new Int32Array(width).fill(-1);
  const columnEnd = new Int32Array(width);
  for (let column = 0; column < w; column++) {
    const x = middle(column, w, width);
    if (columnAt[x] < 0) columnAt[x] = column;
    columnEnd[x] = column + 1;
  }
  const spans = [];
  let [position, inside, left, right, top, bottom] = [0, false, w, 0, h, 0];
  for (const run of runsOf(text)) {
    const end = Math.min(position + run, width * height);
    while (inside && position < end) {
      const x = Math.floor(position / height);
      const y = position - x * height;
      const stop = Math.min(height, y + end - position);
      const [from, to] = [rowFrom[y], rowFrom[stop]];
      if (columnAt[x] >= 0 && to > from) {
        for (let column = columnAt[x]; column < columnEnd[x]; column++) {
          spans.push(column, from, to);
          left = Math.min(left, column);
          right = Math.max(right, column + 1);
        }
        top = Math.min(top, from);
        bottom = Math.max(bottom, to);
      }
      position += stop - y;
    }
    position = Math.max(position, end);
    inside = !inside;
  }
  if (!spans.length) return null;
  const mask = { bits: null, width: right - left, height: bottom - top, left, top };
  mask.bits = new Uint8Array(mask.width * mask.height);
  for (let i = 0; i < spans.length; i += 3)
    for (let y = spans[i + 1]; y < spans[i + 2]; y++) mask.bits[(y - top) * mask.width + spans[i] - left] = 1;
  return mask;
}

/**
 * The outline of a mask, along the edges of its pixels, holes included; in pixels of the original image.
 * @returns {{path: Path2D, box: number[], area: number}|null} With its bounding box, x1 y1 x2 y2; null for an empty mask.
 */
function outlineOf(text, width, height, longest) {
  const scale = Math.min(1, longest / Math.max(width, height));
  const mask = maskOf(text, width, height, scale);
  if (!mask) return null;
  const [w, h] = [mask.width, mask.height];
  const [sx, sy] = [width / Math.max(1, Math.round(width * scale)), height / Math.max(1, Math.round(height * scale))];
  const at = (x, y) => x >= 0 && y >= 0 && x < w && y < h && mask.bits[y * w + x] === 1;
  // The pixel ahead of a corner on the right; its neighbour on the left is the one of the direction before.
  const ahead = (x, y, direction) => at(x - (direction === 1 || direction === 2), y - (direction >= 2));
  const path = new Path2D();
  const walked = new Uint8Array(w * h); // upper edges of pixels
  const point = (x, y) => [(x + mask.left) * sx, (y + mask.top) * sy];
  let area = 0;
  for (let y0 = 0; y0 < h; y0++)
    for (let x0 = 0; x0 < w; x0++) {
      if (mask.bits[y0 * w + x0]) area++;
      if (!at(x0, y0) || at(x0, y0 - 1) || walked[y0 * w + x0]) continue;
      // Along the edge, with the mask on the right: 0 right, 1 down, 2 left, 3 up.
      let [x, y, direction] = [x0, y0, 0];
      path.moveTo(...point(x, y));
      do {
        if (direction === 0) walked[y * w + x] = 1;
        x += direction === 0 ? 1 : direction === 2 ? -1 : 0;
        y += direction === 1 ? 1 : direction === 3 ? -1 : 0;
        const turn = ahead(x, y, (direction + 3) % 4) ? 3 : ahead(x, y, direction) ? 0 : 1;
        if (turn) path.lineTo(...point(x, y));
        direction = (direction + turn) % 4;
      } while (x !== x0 || y !== y0 || direction !== 0);
      path.closePath();
    }
  const box = [...point(0, 0), ...point(w, h)];
  return { path, box, area: area * sx * sy };
}

/** Whether a point of the original image is in a mask. */
function maskHas(text, height, x, y) {
  const wanted = Math.floor(x) * height + Math.floor(y);
  let [position, inside] = [0, false];
  for (const run of runsOf(text)) {
    if (wanted < position + run) return inside;
    position += run;
    inside = !inside;
  }
  return false;
}
