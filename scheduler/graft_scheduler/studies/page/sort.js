// A click on a head of a table sorts its rows by that column; what is empty stays at the end.
for (const head of document.querySelectorAll("table.sorted th")) {
  head.firstElementChild.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const up = head.ariaSort !== "ascending";
    const key = row => row.cells[head.cellIndex].dataset.key ?? row.cells[head.cellIndex].textContent;
    const compare = (one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return up ? order : -order;
    };
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.ariaSort = up ? "ascending" : "descending";
    body.append(...[...body.rows].sort(compare));
  });
}
