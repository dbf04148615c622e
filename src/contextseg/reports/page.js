for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;
  heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.ariaSort === "ascending" ? -1 : 1;
    const compare = (a, b) => (a === "") - (b === "") || sign * a.localeCompare(b, undefined, { numeric: true });
    const number = (a, b) => (a === "") - (b === "") || sign * (a - b);
    const order = head.classList.contains("text") ? compare : number;
    body.append(...[...body.rows].sort((a, b) => order(value(a, i), value(b, i))));
    for (const other of heads) other.ariaSort = other === head ? (sign > 0 ? "ascending" : "descending") : "none";
  }));
}
document.getElementById("marks")?.addEventListener("change", event => document.body.classList.toggle("bare", !event.target.checked));
