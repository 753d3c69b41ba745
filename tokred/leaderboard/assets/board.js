"use strict";
// Beyond the report's script.js, which comes before this and sorts: only rows of the methods looked for.
(() => {
  const box = document.querySelector("input[type=search]");
  box.addEventListener("input", () => {
    const wanted = box.value.trim().toLowerCase();
    for (const row of document.querySelectorAll("tbody tr")) {
      const text = row.querySelector(".method").textContent.toLowerCase();
      row.hidden = wanted !== "" && !row.classList.contains("baseline") && !text.includes(wanted);
    }
  });
})();
