"use strict";
// Beyond the report's script.js, which comes before this and sorts: only rows of the methods looked for.
(() => {
  const box = document.querySelector("input[type=search]");
  box.addEventListener("input", () => {
    const wanted = box.value.trim().toLowerCase();
    for (const row of document.querySelectorAll("tbody tr")) {
      const own = [...row.querySelectorAll(".name, .options")].map((part) => part.textContent.toLowerCase());
      const found = own.some((text) => text.includes(wanted));
      row.hidden = wanted !== "" && !row.classList.contains("baseline") && !found;
    }
  });
})();
