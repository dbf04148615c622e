// The strip of slices: which are drawn, which are filled and how surely, which is suggested.

export class Strip {
  constructor(canvas, go) {
    this.canvas = canvas;
    this.go = go;
    new ResizeObserver(() => this.draw()).observe(canvas);
    const pick = (event) => {
      const { left, width } = canvas.getBoundingClientRect();
      const share = (event.clientX - left - 1) / (width - 2);
      go(Math.min(this.n - 1, Math.max(0, Math.floor(share * this.n))));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pick(event);
    });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons & 1) pick(event); });
  }

  show(n, current, facts, plane) {
    Object.assign(this, { n, current, facts, plane });
    const { canvas } = this;
    canvas.setAttribute("aria-valuemax", n);
    canvas.setAttribute("aria-valuenow", current + 1);
    canvas.setAttribute("aria-valuetext", `${plane} slice ${current + 1} of ${n}`);
    this.draw();
  }

  draw() {
    if (!this.n) return;
    const { canvas, facts, n } = this, ratio = window.devicePixelRatio || 1;
    const box = canvas.getBoundingClientRect();
    const width = canvas.width = Math.max(1, Math.round(box.width * ratio));
    const height = canvas.height = Math.max(1, Math.round(box.height * ratio));
    const context = canvas.getContext("2d"), style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const own = facts.plane === this.plane;
    const drawn = new Set(facts.drawn[this.plane]), filled = new Set(own ? facts.filled : []);
    const top = 11 * ratio, bottom = height - 2 * ratio, cell = width / n;
    const gap = cell > 5 * ratio ? ratio : cell > 2.5 * ratio ? 0.5 * ratio : 0;
    const bar = (i, share, fill) => {
      context.fillStyle = fill;
      const high = Math.max(2 * ratio, share * (bottom - top));
      context.fillRect(i * cell + gap / 2, bottom - high, Math.max(1, cell - gap), high);
    };
    for (let i = 0; i < n; i++) {
      bar(i, 1, colour("--strip-empty"));
      const c = own ? facts.confidence[i] : null;
      if (drawn.has(i)) bar(i, 1, colour(filled.has(i) || !own ? "--strip-drawn" : "--strip-nothing"));
      else if (filled.has(i) && c !== null) bar(i, 0.15 + 0.85 * c, colour(c < 0.7 ? "--strip-unsure" : "--strip-sure"));
      else if (filled.has(i)) bar(i, 0.62, colour("--strip-filled"));
    }
    const x = (this.current + 0.5) * cell;
    if (own && facts.suggested !== null) {
      const s = (facts.suggested + 0.5) * cell;
      context.fillStyle = colour("--strip-suggested");
      context.beginPath();
      context.moveTo(s, top - ratio);
      context.lineTo(s - 5 * ratio, ratio);
      context.lineTo(s + 5 * ratio, ratio);
      context.fill();
    }
    context.strokeStyle = colour("--ink");
    context.lineWidth = 2 * ratio;
    const half = Math.max(cell / 2, 2.5 * ratio);
    context.strokeRect(Math.max(ratio, x - half), top - ratio, Math.min(2 * half, width), bottom - top + 2 * ratio);
  }
}
