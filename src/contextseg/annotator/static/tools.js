// The tools and the keys of the editor, as the page shows them.

export const TOOLS = {
  brush: { key: "b", name: "Brush", title: "Paint with a round brush", icon: '<path d="M12 3.5 16.5 8l-6.7 6.7-4.5-4.5zM5.3 10.2 9.8 14.7C9 17 6 17 3 17c1.400-1.500.5-5 2.300-6.800z"/>' },
  eraser: { key: "e", name: "Eraser", title: "Erase with a round eraser", icon: '<path d="m8.500 16-5-5 8-8 5.500 5.500L9.500 16zM7 7.500l5.500 5.500M8.500 16.500h8"/>' },
  lasso: { key: "l", name: "Lasso", title: "Draw an outline by hand", icon: '<path d="M10 4c4.500 0 7 2 7 4.500S14.500 13 10 13 3 11 3 8.500 5.500 4 10 4zM6 12c-1.500 1-1.500 2.500 0 3s2 1.500.5 2.500"/>' },
  polygon: { key: "p", name: "Polygon", title: "Click the corners of an outline; double click or Enter closes it", icon: '<path d="m10 3 7 5-2.500 8h-9L3 8z"/>' },
  flood: { key: "g", name: "Flood", title: "Fill what is connected with a pixel", icon: '<path d="m9 4 6.500 6.500-5.500 5.500a1.500 1.500 0 0 1-2 0L3.500 11.500a1.500 1.500 0 0 1 0-2zM7 2l3 3M17 13.500c1 1.500 1 3.500 0 3.500s-1-2 0-3.500z"/>' },
};

export const KEYS = [
  ["1 – 9", "class"], ["B E L P G", "brush, eraser, lasso, polygon, flood"], ["[ ]", "size of the brush"],
  ["Ctrl", "held: erase with any tool"], ["↑ ↓", "slice; also the wheel; Page keys: ten"], ["N", "the slice worth drawing next"],
  ["F R", "fill by shapes, by the network"], ["A X C", "accept, nothing here, copy"], ["Ctrl Z", "undo; Ctrl Y redo"],
  ["Space", "held: hide the labels"], ["T", "paint only grey values like those here"], ["V", "another plane"],
  ["M", "another channel"], ["0 + −", "fit, zoom; also Ctrl and wheel"], ["Shift", "held and dragged: move the picture"],
  ["Right", "button dragged: window and level"], ["Shift ↑ → ↓ ←", "move the cross"], [".", "paint at the cross"],
  ["Enter", "finish; with Shift accept all as well"], ["?", "this page"],
];
