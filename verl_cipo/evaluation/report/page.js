"use strict";
// Pages through the example corrections. All text goes in through textContent: it is the policy's, and may be anything.
(() => {
  const PAGE = 5;
  const ARROWS = { w2c: "w\u2192c", c2w: "c\u2192w", c2c: "c\u2192c", w2w: "w\u2192w" };
  const examples = JSON.parse(document.getElementById("data").textContent);
  const theme = document.getElementById("theme");
  const root = document.documentElement;
  // A page that is served loads itself again while its reader is at it.
  const live = document.getElementById("note") !== null;
  const keep = (name, value) => live && sessionStorage.setItem(name, JSON.stringify(value));
  const kept = (name, otherwise) => (live && JSON.parse(sessionStorage.getItem(name))) || otherwise;
  root.dataset.theme = kept("theme", "");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    keep("theme", root.dataset.theme);
  });
  if (!examples.length) return;

  const byId = (id) => document.getElementById(id);
  const state = kept("examples", { transition: "", run: "", copied: "", text: "", page: 0 });

  const element = (tag, text, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  };
  const verdict = (right) => element("span", right ? "\u2713 right" : "\u2717 wrong", `verdict ${right ? "right" : "wrong"}`);

  // The lines of a correction, those that the attempt lacks marked.
  const compared = (attempt, correction) => {
    const known = new Set(attempt.split("\n").map((line) => line.trim()));
    const shown = element("pre");
    correction.split("\n").forEach((line, index) => {
      if (index) shown.append("\n");
      shown.append(known.has(line.trim()) ? line : element("span", line, "changed"));
    });
    return shown;
  };

  const cell = (name, ...children) => {
    const made = element("td");
    made.dataset.name = name;
    made.append(...children);
    return made;
  };

  const row = (example) => {
    const made = element("tr");
    made.dataset.transition = example.transition;
    const question = element("th");
    question.scope = "row";
    question.append(element("div", example.question, "question"));
    const where = [`truth: ${example.truth}`, example.source, example.run, `step ${example.step}`];
    question.append(element("div", where.filter(Boolean).join(" \u00b7 "), "where"));
    const [before, after] = [example.transition[0] === "c", example.transition[2] === "c"];
    const said = [verdict(after)];
    if (example.copied) said.push(element("span", "copied", "verdict copied"));
    made.append(
      question,
      cell("Attempt", verdict(before), element("pre", example.attempt)),
      cell("Correction", ...said, compared(example.attempt, example.correction)),
    );
    return made;
  };

  const matches = (example) =>
    (!state.transition || example.transition === state.transition) &&
    (!state.run || example.run === state.run) &&
    (!state.copied || String(example.copied) === state.copied) &&
    (!state.text ||
      [example.question, example.attempt, example.correction].some((text) => text.toLowerCase().includes(state.text)));

  const show = () => {
    const found = examples.filter(matches);
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    keep("examples", state);
    const start = state.page * PAGE;
    const shown = found.slice(start, start + PAGE);
    byId("rows").tBodies[0].replaceChildren(...shown.map(row));
    byId("count").textContent = found.length
      ? `${start + 1}\u2013${start + shown.length} of ${found.length}`
      : "No example fits these filters.";
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page >= pages - 1;
    for (const button of byId("kinds").children)
      button.setAttribute("aria-pressed", String(button.dataset.transition === state.transition));
    // Long texts scroll within their cell, and so must be reachable by keyboard.
    for (const box of document.querySelectorAll("#rows pre, #rows .question"))
      if (box.scrollHeight > box.clientHeight) box.tabIndex = 0;
  };
  const set = (change) => {
    Object.assign(state, { page: 0 }, change);
    show();
  };

  for (const [transition, name] of [["", "all"], ...Object.entries(ARROWS)]) {
    const count = examples.filter((example) => !transition || example.transition === transition).length;
    const button = element("button", `${name} (${count})`);
    button.type = "button";
    button.dataset.transition = transition;
    button.addEventListener("click", () => set({ transition }));
    byId("kinds").append(button);
  }
  for (const run of new Set(examples.map((example) => example.run))) {
    const option = element("option", run);
    option.value = run;
    byId("run").append(option);
  }
  byId("run").addEventListener("change", (event) => set({ run: event.target.value }));
  byId("copied").addEventListener("change", (event) => set({ copied: event.target.value }));
  byId("search").addEventListener("input", (event) => set({ text: event.target.value.toLowerCase() }));
  byId("previous").addEventListener("click", () => set({ page: state.page - 1 }));
  byId("next").addEventListener("click", () => set({ page: state.page + 1 }));
  for (const [control, name] of [["run", "run"], ["copied", "copied"], ["search", "text"]])
    byId(control).value = state[name];
  byId("browser").hidden = false;
  show();
})();
