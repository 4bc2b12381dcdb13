// The page of a search: choose a solution from the list, walk its tokens. Everything that a model
// said is set as text, never as markup.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const element = (tag, text, name) => {
    const e = document.createElement(tag);
    if (text !== undefined) e.textContent = text;
    if (name) e.className = name;
    return e;
  };
  const svg = (tag, attributes) => {
    const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
    return e;
  };
  const share = (p) => (p === null || p === undefined ? "?" : Math.round(100 * Math.min(1, Math.max(0, p))) + "\u202f%");
  const chance = (p) => (p > 0.995 && p < 1 ? "over\u202f99\u202f%" : p < 0.005 ? "under\u202f1\u202f%" : share(p)); // a drawn token's is neither 0 nor 1
  const signed = (d) => (d < 0 ? "−" : "+") + Math.abs(100 * d).toFixed(0);
  // what would not be seen, or would turn the text around it, is named; a joiner only joins
  const named = (c) => (c === "\u200d" ? c : `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
  const drawn = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, named);
  const visible = (text) => drawn(text).replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  const isPivot = (t) => t.alt !== undefined;
  const shade = (t) => (t.d === undefined ? 0 : Math.min(5, Math.round(Math.abs(t.d) * 10)));
  const look = (t) => {
    const s = shade(t);
    return "tok" + (s ? ` s${s} ${t.d > 0 ? "up" : "down"}` : "") + (isPivot(t) ? " pivot" : "") + (/^<\|.*\|>$/.test(t.t) ? " control" : "");
  };
  let shown = [];
  let chosen = -1;
  let current = 0;

  // --- the list --------------------------------------------------------------------------------
  const wanted = (t) => {
    const least = Number($("size").value);
    const way = $("direction").value;
    return isPivot(t) && Math.abs(t.d) >= least && (!way || (t.d > 0) === (way === "up"));
  };
  function filter() {
    const kind = $("kind").value;
    const words = $("find").value.toLowerCase();
    const every = Number($("size").value) === 0 && !$("direction").value;
    shown = data.flatMap((s, i) => {
      const hits = s.tokens.filter(wanted);
      if (kind && s.kind !== kind) return [];
      if (!hits.length && !every) return [];
      if (words && !s.question.toLowerCase().includes(words) && !hits.some((t) => t.t.toLowerCase().includes(words))) return [];
      return [i];
    });
    $("count").textContent = `${shown.length} of ${data.length} solutions`;
    $("list").replaceChildren(...shown.map((i, row) => {
      const s = data[i];
      const item = element("li");
      item.setAttribute("role", "option");
      item.id = `row-${row}`;
      item.append(element("span", s.question, "head"));
      const marks = element("span", undefined, "marks");
      marks.append(`${s.passed ? "✓" : "✗"} ${s.kind} · `);
      const pivots = s.tokens.filter(isPivot);
      marks.append(pivots.length ? pivots.slice(0, 4).map((t) => signed(t.d)).join(" ") + (pivots.length > 4 ? " …" : "") : "no pivot");
      item.append(marks);
      item.addEventListener("click", () => choose(row, true));
      return item;
    }));
    choose(0, false);
  }
  function choose(row, look) {
    if (!shown.length) {
      chosen = -1;
      $("solution").hidden = true;
      return;
    }
    $("solution").hidden = false;
    chosen = Math.min(Math.max(row, 0), shown.length - 1);
    [...$("list").children].forEach((e, i) => e.setAttribute("aria-selected", String(i === chosen)));
    const item = $("list").children[chosen];
    $("list").setAttribute("aria-activedescendant", item.id);
    const box = $("list");
    if (item.offsetTop < box.scrollTop || item.offsetTop + item.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = item.offsetTop - 40;
    draw(data[shown[chosen]]);
    if (look && window.matchMedia("(max-width: 860px)").matches) $("solution").scrollIntoView();
  }

  // --- one solution ----------------------------------------------------------------------------
  function draw(s) {
    $("question").textContent = s.question;
    $("facts").textContent = `${s.kind}; right answer: ${s.gold || "(judged by its verifier)"}; this solution is ${s.passed ? "right" : "wrong"}; ${s.rollouts} rollouts`;
    curve(s);
    $("tokens").replaceChildren(...s.tokens.flatMap((t, n) => {
      const e = element("span", drawn(t.t), look(t));
      e.setAttribute("role", "option");
      e.setAttribute("aria-selected", "false");
      e.tabIndex = -1;
      e.addEventListener("pointerenter", () => select(n, false));
      e.addEventListener("click", () => select(n, true));
      e.addEventListener("focus", () => select(n, false));
      return t.t.includes("\n") ? [e, element("br")] : [e];
    }));
    samples(s);
    tree(s);
    const first = s.tokens.findIndex(wanted);
    current = -1;
    select(first >= 0 ? first : Math.max(0, s.tokens.findIndex(isPivot)), false);
  }
  function curve(s) {
    const n = Math.max(1, s.tokens.length);
    const x = (i) => (1000 * i) / n;
    const y = (p) => 1000 * (1 - p);
    const plot = $("plot");
    const grid = [0, 0.25, 0.5, 0.75, 1].map((v) => {
      const line = element("i", undefined, "grid");
      line.style.bottom = `${100 * v}%`;
      return line;
    });
    const picture = svg("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", role: "img", "aria-label": "The probability of success after each token" });
    const upper = s.points.map((p) => `${x(p[0])},${y(p[3])}`);
    const lower = s.points.map((p) => `${x(p[0])},${y(p[2])}`).reverse();
    picture.append(svg("path", { class: "band", d: `M${[...upper, ...lower].join("L")}Z` }));
    s.tokens.forEach((t, i) => {
      if (isPivot(t)) picture.append(svg("rect", { class: `col ${t.d > 0 ? "up" : "down"}`, x: x(i), y: 0, width: 1000 / n, height: 1000 }));
    });
    picture.append(svg("path", { class: "line", d: `M${s.points.map((p) => `${x(p[0])},${y(p[1])}`).join("L")}` }));
    picture.append(svg("line", { class: "cursor", x1: 0, x2: 0, y1: 0, y2: 1000, visibility: "hidden" }));
    plot.replaceChildren(...grid, picture);
    const chart = plot.parentElement;
    chart.querySelector(".ylabels").replaceChildren(...[0, 0.25, 0.5, 0.75, 1].map((v) => {
      const label = element("span", `${100 * v} %`);
      label.style.bottom = `${100 * v}%`;
      return label;
    }));
    const step = [5, 10, 20, 25, 50, 100, 200, 500, 1000, 5000].find((k) => n / k <= 6) || n;
    const marks = [];
    for (let i = 0; i <= n; i += step) marks.push(i);
    chart.querySelector(".xlabels").replaceChildren(...marks.map((i) => {
      const label = element("span", String(i));
      label.style.left = `${(100 * i) / n}%`;
      return label;
    }));
  }
  function samples(s) {
    const known = new Map(s.points.map((p) => [p[0], p[4]]));
    const most = Math.max(1, ...s.points.map((p) => p[4]));
    $("samples").replaceChildren(...s.tokens.map((_, i) => {
      const bar = element("i");
      const n = known.get(i) || 0;
      bar.style.height = `${(100 * n) / most}%`;
      bar.title = `${n} rollouts through the first ${i} tokens`;
      return bar;
    }));
  }
  function tree(s) {
    const n = Math.max(1, s.tokens.length);
    const depth = Math.max(...s.tree.map((r) => r[0])) + 1;
    const box = $("tree");
    box.style.height = `${depth * 12}px`;
    box.replaceChildren(...s.tree.map(([level, low, high, outcome]) => {
      const bar = element("i", undefined, outcome);
      bar.style.top = `${12 * level}px`;
      bar.style.left = `${(100 * low) / n}%`;
      bar.style.width = `max(2px, ${(100 * (high - low)) / n}%)`;
      bar.title = `tokens ${low} to ${high - 1}: ${outcome}`;
      return bar;
    }));
  }
  function describe(t) {
    const box = document.createDocumentFragment();
    const head = element("p");
    head.append(element("code", visible(t.t)));
    if (t.d === undefined) {
      head.append(" too few rollouts left the solution here to say what this token changed");
    } else {
      head.append(` p(success) ${share(t.b)} → ${share(t.a)}: `, element("b", `${signed(t.d)} points`));
      head.append(isPivot(t) ? ` (interval ${signed(t.lo)} to ${signed(t.hi)}), a confirmed pivot` : ", an estimate");
    }
    head.append(element("small", ` drawn with probability ${chance(t.q)}`));
    box.append(head);
    if (isPivot(t) && t.alt.length) {
      const list = element("ul");
      for (const a of t.alt) {
        const row = element("li");
        row.append(element("code", visible(a.t)), element("span", ` p(success) ${share(a.p)} from ${a.n} rollouts, drawn with probability ${chance(a.q)}`));
        if (a.ok) row.append(element("span", "in the training pair", "kind"));
        list.append(row);
      }
      box.append(element("small", "alternatives at this place"), list);
    }
    return box;
  }
  function select(n, focus) {
    const s = data[shown[chosen]];
    const tokens = [...$("tokens").querySelectorAll(".tok")];
    if (n < 0 || n >= tokens.length) return;
    if (current >= 0 && tokens[current]) {
      tokens[current].setAttribute("aria-selected", "false");
      tokens[current].tabIndex = -1;
    }
    tokens[n].tabIndex = 0;
    tokens[n].setAttribute("aria-selected", "true");
    if (n !== current) $("readout").replaceChildren(describe(s.tokens[n]));
    current = n;
    if (focus) tokens[n].focus();
    const cursor = document.querySelector("#plot .cursor");
    const x = (1000 * (n + 0.5)) / tokens.length;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
  }

  // --- keys and filters --------------------------------------------------------------------------
  document.addEventListener("keydown", (event) => {
    if (chosen < 0 || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
    const s = data[shown[chosen]];
    const inList = event.target === $("list");
    const pivots = s.tokens.flatMap((t, i) => (isPivot(t) ? [i] : []));
    const last = s.tokens.length - 1;
    let to;
    if (event.key === "[" || (inList && event.key === "ArrowUp")) choose(chosen - 1, false);
    else if (event.key === "]" || (inList && event.key === "ArrowDown")) choose(chosen + 1, false);
    else if (inList && event.key === "Enter") to = current;
    else if (event.key === "n") to = pivots.find((i) => i > current);
    else if (event.key === "p") to = pivots.filter((i) => i < current).pop();
    else if ($("tokens").contains(event.target)) {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
      if (step !== undefined) to = Math.min(Math.max(current + step, 0), last);
      else if (event.key === "Home") to = 0;
      else if (event.key === "End") to = last;
      else return;
    } else return;
    event.preventDefault();
    if (to !== undefined) select(to, true);
  });
  $("plot").addEventListener("pointermove", (event) => {
    if (chosen < 0) return;
    const box = $("plot").getBoundingClientRect();
    select(Math.floor(((event.clientX - box.left) / box.width) * data[shown[chosen]].tokens.length), false);
  });
  for (const id of ["kind", "direction", "size"]) $(id).addEventListener("change", filter);
  $("find").addEventListener("input", filter);
  filter();
})();
