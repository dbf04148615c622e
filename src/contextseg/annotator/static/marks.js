// What the editor shows over the main view.

/** Draw what is over the picture: the outline that is being drawn, the brush, the cross. */
export function drawMarks(editor) {
  const { app, points, pointer } = editor;
  if (!app.facts) return;
  const colour = editor.tool === "eraser" ? "#ffffff" : app.classes[app.cls - 1]?.colour || "#ffffff";
  app.view.drawTop((context, toScreen, ratio, [sx, sy]) => {
    context.lineWidth = 1.5 * ratio;
    context.strokeStyle = colour;
    if (points?.length) {
      context.beginPath();
      points.forEach((p) => context.lineTo(...toScreen(p)));
      if (editor.tool === "polygon" && pointer) context.lineTo(...toScreen(pointer));
      if (editor.tool === "lasso") context.setLineDash([4 * ratio, 3 * ratio]);
      context.stroke();
      context.setLineDash([]);
      if (editor.tool === "polygon") points.forEach((p) => dot(context, toScreen(p), ratio));
    }
    if (pointer && (editor.tool === "brush" || editor.tool === "eraser")) {
      const [x, y] = toScreen(pointer), [my, mx] = app.view.facts.mm;
      for (const [width, style] of [[3, "rgba(0, 0, 0, 0.6)"], [1.5, colour]]) {
        context.lineWidth = width * ratio;
        context.strokeStyle = style;
        context.beginPath();
        context.ellipse(x, y, Math.max((editor.radius / mx) * sx, 1), Math.max((editor.radius / my) * sy, 1), 0, 0, 7);
        context.stroke();
      }
    }
    if (editor.keyed) drawCross(context, toScreen(app.crossOf(app.plane)), ratio);
  });
}

function dot(context, [x, y], ratio) {
  context.fillStyle = "#fff";
  context.beginPath();
  context.arc(x, y, 3 * ratio, 0, 7);
  context.fill();
  context.stroke();
}

function drawCross(context, [x, y], ratio) {
  context.strokeStyle = "#5db1ff";
  context.lineWidth = 1.5 * ratio;
  context.beginPath();
  for (const [a, b] of [[-12, -4], [4, 12]]) {
    context.moveTo(x + a * ratio, y); context.lineTo(x + b * ratio, y);
    context.moveTo(x, y + a * ratio); context.lineTo(x, y + b * ratio);
  }
  context.stroke();
}
