"use strict";
// Loads the page again when the command that serves it has made another one; what was opened stays open.
(() => {
  const { version, seconds } = document.currentScript.dataset;
  const details = [...document.querySelectorAll("details")];
  const open = JSON.parse(sessionStorage.getItem("open") ?? "[]");
  if (open.length === details.length) details.forEach((item, index) => (item.open = open[index]));

  const look = async () => {
    const note = document.getElementById("note");
    try {
      const state = await (await fetch("state")).json();
      note.textContent = state.note;
      // Whoever types in the search box is not disturbed.
      if (state.version === version || document.activeElement?.id === "search") return;
      sessionStorage.setItem("open", JSON.stringify(details.map((item) => item.open)));
      location.reload();
    } catch {
      note.textContent = "The command that serves this page has ended; this is what it showed last.";
    }
  };
  look();
  setInterval(look, 1000 * seconds);
})();
