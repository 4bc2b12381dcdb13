// The pivot viewer: choose a solution, walk its tokens by mouse, touch or arrow keys.
// Everything a model said is set as text, never as markup.
(() => {
  "use strict";
  const element = (tag, text, name) => {
    const e = document.createElement(tag);
    if (text !== undefined) e.textContent = text;
    if (name) e.className = name;
    return e;
  };
  const share = (p) => (p === null ? "?" : Math.round(100 * p) + "\u202f%");
  const signed = (d) => (d < 0 ? "−" : "+") + Math.abs(100 * d).toFixed(0);
  const visible = (text) => text.replace(/\n/g, "↵").replace(/^ | $/g, "␣");

  function describe(token) {
    const box = document.createDocumentFragment();
    const head = element("p");
    head.append(element("code", visible(token.text)));
    if (token.change === null) {
      head.append(" too few rollouts left the solution here to say what this token changed");
    } else {
      const between = token.low === null ? "" : ` (95 % interval ${signed(token.low)} to ${signed(token.high)})`;
      head.append(` p(success) ${share(token.before)} → ${share(token.after)}: `);
      head.append(element("b", `${signed(token.change)} points`), between);
      head.append(token.pivot ? ", a confirmed pivot" : ", an estimate");
    }
    head.append(element("small", ` drawn with probability ${share(token.probability)}`));
    box.append(head);
    if (token.alternatives.length) {
      const list = element("ul");
      for (const a of token.alternatives) {
        const row = element("li");
        row.append(element("code", visible(a.text)), element("span", ` p(success) ${share(a.p)} from ${a.n} rollouts, drawn with probability ${share(a.probability)}`));
        if (a.accepted) row.append(element("span", "in the training pair", "kind"));
        list.append(row);
      }
      box.append(element("small", "alternatives at this place"), list);
    }
    return box;
  }

  function solution(article) {
    const tokens = [...article.querySelectorAll(".tokens .tok")];
    const data = JSON.parse(article.querySelector("script").textContent);
    const readout = article.querySelector(".readout");
    const cursor = article.querySelector(".cursor");
    const plot = article.querySelector(".plot");
    let current = -1;
    function select(n, focus) {
      if (n < 0 || n >= tokens.length) return;
      if (current >= 0) {
        tokens[current].setAttribute("aria-selected", "false");
        tokens[current].tabIndex = -1;
      }
      tokens[n].tabIndex = 0;
      if (focus) tokens[n].focus();
      if (n !== current) readout.replaceChildren(describe(data[n]));
      current = n;
      tokens[n].setAttribute("aria-selected", "true");
      const x = (1000 * (n + 0.5)) / tokens.length;
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.setAttribute("visibility", "visible");
    }
    tokens.forEach((token, n) => {
      token.addEventListener("pointerenter", () => select(n, false));
      token.addEventListener("click", () => select(n, true));
      token.addEventListener("focus", () => select(n, false));
    });
    article.querySelector(".tokens").addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
      const pivots = data.flatMap((t, i) => (t.pivot ? [i] : []));
      let to = step === undefined ? undefined : Math.min(Math.max(current + step, 0), tokens.length - 1);
      if (event.key === "Home") to = 0;
      if (event.key === "End") to = tokens.length - 1;
      if (event.key === "n") to = pivots.find((i) => i > current);
      if (event.key === "p") to = pivots.filter((i) => i < current).pop();
      if (to === undefined) return;
      event.preventDefault();
      select(to, true);
    });
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      select(Math.floor(((event.clientX - box.left) / box.width) * tokens.length), false);
    });
    const first = data.findIndex((t) => t.pivot);
    select(first < 0 ? 0 : first, false);
  }

  for (const viewer of document.querySelectorAll("[data-viewer]")) {
    const articles = [...viewer.querySelectorAll(".solution")];
    const choice = viewer.querySelector("select");
    articles.forEach(solution);
    const show = (n) => {
      choice.selectedIndex = (n + articles.length) % articles.length;
      articles.forEach((a, i) => (a.hidden = i !== choice.selectedIndex));
    };
    choice.addEventListener("change", () => show(choice.selectedIndex));
    for (const button of viewer.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => show(choice.selectedIndex + Number(button.dataset.step)));
    }
  }
})();
