// What a reader can do without figures: sort tables, copy code.
(() => {
  "use strict";

  // Gaps come last whichever way; what reads as a number is one, with its unit left aside, and with
  // the sign before it that says that it is less, or more, or about as much.
  const gaps = new Set(["", "-", "\u2013", "\u2014", "nan"]);
  const amount = (text) =>
    parseFloat(text.replace(/^[~≈<>≤≥]\s*|[,_\u2009\u202f]/g, "").replace("\u2212", "-"));
  const byWords = new Intl.Collator(undefined, { numeric: true }).compare;
  const byAmount = (one, other) => amount(one) - amount(other);

  const sort = (table, column, descending) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [row.cells[column]?.textContent.trim() ?? "", row]);
    const filled = rows.filter(([text]) => !gaps.has(text));
    const numeric = filled.every(([text]) => !Number.isNaN(amount(text)));
    const compare = numeric ? byAmount : byWords;
    filled.sort(([one], [other]) => (descending ? compare(other, one) : compare(one, other)));
    const empty = rows.filter(([text]) => gaps.has(text));
    body.append(...[...filled, ...empty].map(([, row]) => row));
  };

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.classList.contains("number") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const way = head.getAttribute("aria-sort") === first ? other : first;
        for (const one of heads) one.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", way);
        sort(table, column, way === "descending");
      });
    });
  }

  // Where the clipboard is out of reach, as it often is for a file, the text stands selected.
  const copy = async (code, button) => {
    const range = document.createRange();
    range.selectNodeContents(code);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  };

  for (const code of document.querySelectorAll(".code code")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-live", "polite");
    button.addEventListener("click", () => copy(code, button));
    code.closest(".code").append(button);
  }
})();
