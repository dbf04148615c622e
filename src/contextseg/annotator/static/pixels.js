// Arithmetic on the pixels of one slice: no page, no server. A label is a Uint8Array of rows x
// columns; 255 is "nobody said". A point is [x, y] in pixels, the centre of the first at [0.5, 0.5].

export const NOBODY = 255;

/** What is seen in a slice: what is drawn, and else what is filled. */
export function visible(drawn, filled) {
  const out = new Uint8Array(drawn.length);
  for (let i = 0; i < out.length; i++) out[i] = drawn[i] === NOBODY ? filled[i] : drawn[i];
  return out;
}

export function isWhole(drawn) {
  return drawn.indexOf(NOBODY) < 0;
}

/** Visit the pixels within `radius` mm of the segment from a to b; always those under its ends. */
export function sweep(shape, mm, a, b, radius, visit) {
  const [rows, columns] = shape;
  const [my, mx] = mm;
  const ax = a[0] * mx, ay = a[1] * my, bx = b[0] * mx, by = b[1] * my;
  const dx = bx - ax, dy = by - ay, length2 = dx * dx + dy * dy;
  const x0 = Math.max(0, Math.floor((Math.min(ax, bx) - radius) / mx));
  const x1 = Math.min(columns - 1, Math.floor((Math.max(ax, bx) + radius) / mx));
  const y0 = Math.max(0, Math.floor((Math.min(ay, by) - radius) / my));
  const y1 = Math.min(rows - 1, Math.floor((Math.max(ay, by) + radius) / my));
  const r2 = radius * radius;
  for (let y = y0; y <= y1; y++) {
    for (let x = x0; x <= x1; x++) {
      const px = (x + 0.5) * mx - ax, py = (y + 0.5) * my - ay;
      const t = length2 ? Math.min(1, Math.max(0, (px * dx + py * dy) / length2)) : 0;
      const ex = px - t * dx, ey = py - t * dy;
      if (ex * ex + ey * ey <= r2) visit(y * columns + x);
    }
  }
  for (const [x, y] of [a, b]) {
    const column = Math.floor(x), row = Math.floor(y);
    if (column >= 0 && row >= 0 && column < columns && row < rows) visit(row * columns + column);
  }
}

/** Visit the pixels whose centre lies in a polygon, by the even-odd rule. */
export function inside(shape, points, visit) {
  const [rows, columns] = shape;
  if (points.length < 3) return;
  const ys = points.map((p) => p[1]);
  const first = Math.max(0, Math.floor(Math.min(...ys) - 0.5));
  const last = Math.min(rows - 1, Math.ceil(Math.max(...ys)));
  for (let y = first; y <= last; y++) {
    const centre = y + 0.5, crossings = [];
    for (let i = 0, j = points.length - 1; i < points.length; j = i++) {
      const [xi, yi] = points[i], [xj, yj] = points[j];
      if (yi > centre !== yj > centre) {
        crossings.push(xi + ((centre - yi) / (yj - yi)) * (xj - xi));
      }
    }
    crossings.sort((p, q) => p - q);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const from = Math.max(0, Math.ceil(crossings[i] - 0.5));
      const to = Math.min(columns - 1, Math.ceil(crossings[i + 1] - 0.5) - 1);
      for (let x = from; x <= to; x++) visit(y * columns + x);
    }
  }
}

/** Visit the pixels that are connected with a pixel by their sides, as far as `same` holds. */
export function flood(shape, start, same, visit) {
  const [rows, columns] = shape;
  const [x, y] = start.map(Math.floor);
  if (x < 0 || y < 0 || x >= columns || y >= rows || !same(y * columns + x)) return;
  const seen = new Uint8Array(rows * columns);
  const stack = [y * columns + x];
  seen[stack[0]] = 1;
  while (stack.length) {
    const i = stack.pop(), column = i % columns;
    visit(i);
    const around = [column > 0 ? i - 1 : -1, column < columns - 1 ? i + 1 : -1,
      i - columns, i + columns];
    for (const j of around) {
      if (j >= 0 && j < seen.length && !seen[j] && same(j)) {
        seen[j] = 1;
        stack.push(j);
      }
    }
  }
}

/** A label as runs, for the memory of undo. */
export function pack(label) {
  const runs = [];
  for (let i = 0; i < label.length; ) {
    let j = i + 1;
    while (j < label.length && label[j] === label[i]) j++;
    runs.push(label[i], j - i);
    i = j;
  }
  return Uint32Array.from(runs);
}

export function unpack(runs, length) {
  const label = new Uint8Array(length);
  for (let i = 0, at = 0; i < runs.length; i += 2) {
    label.fill(runs[i], at, at + runs[i + 1]);
    at += runs[i + 1];
  }
  return label;
}

/** The outlines of all classes along the edges of pixels: Map of class to Path2D, in pixels. */
export function outlines(label, shape) {
  const [rows, columns] = shape;
  const paths = new Map();
  const edge = (k, x0, y0, x1, y1) => {
    if (!k) return;
    if (!paths.has(k)) paths.set(k, new Path2D());
    paths.get(k).moveTo(x0, y0);
    paths.get(k).lineTo(x1, y1);
  };
  const scan = (lines, steps, at, add) => {
    for (let line = 0; line <= lines; line++) {
      let from = 0, a = 0, b = 0;
      for (let step = 0; step <= steps; step++) {
        const end = step === steps;
        const p = end || !line ? 0 : label[at(line - 1, step)];
        const q = end || line === lines ? 0 : label[at(line, step)];
        if (p !== a || q !== b || end) {
          if (a !== b) {
            add(a, line, from, step);
            add(b, line, from, step);
          }
          from = step;
          a = p;
          b = q;
        }
      }
    }
  };
  scan(rows, columns, (y, x) => y * columns + x, (k, y, x0, x1) => edge(k, x0, y, x1, y));
  scan(columns, rows, (x, y) => y * columns + x, (k, x, y0, y1) => edge(k, x, y0, x, y1));
  return paths;
}

/** The number of pixels of each class. */
export function counts(label) {
  const n = new Uint32Array(256);
  for (let i = 0; i < label.length; i++) n[label[i]]++;
  return n;
}
