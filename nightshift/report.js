"use strict";
(() => {
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);
  const read = (id) => JSON.parse($(id).textContent);
  const words = read("interface");
  const kept = {
    // A page opened from a file, or inside a frame, may have no storage.
    get(key) { try { return localStorage.getItem(key); } catch { return null; } },
    set(key, value) { try { localStorage.setItem(key, value); } catch { /* not kept */ } },
  };
  const say = (key) => words[key][root.dataset.lang === "zh" ? 1 : 0];
  let atlas = null;

  // --- theme and language ---------------------------------------------------------------

  const themes = ["auto", "light", "dark"];
  let theme = themes.includes(kept.get("nightshift-theme")) ? kept.get("nightshift-theme") : "auto";

  function showTheme() {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    $("theme").textContent = say(`theme_${theme}`);
    if (atlas) atlas.draw();
  }

  function nextTheme() {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    kept.set("nightshift-theme", theme);
    showTheme();
  }

  function showLanguage(language) {
    root.dataset.lang = language;
    root.lang = language === "zh" ? "zh-Hans" : "en";
    for (const one of document.querySelectorAll("[data-en]")) {
      const text = one.dataset[language];
      if (one.tagName === "INPUT") { one.placeholder = text; one.setAttribute("aria-label", text); }
      else if (one.tagName === "CANVAS") one.setAttribute("aria-label", text);
      else if ("aria" in one.dataset) { one.title = text; one.setAttribute("aria-label", text); }
      else one.textContent = text;
    }
    for (const one of document.querySelectorAll("[data-title-zh]")) {
      one.dataset.titleEn ??= one.title;
      one.title = language === "zh" ? one.dataset.titleZh : one.dataset.titleEn;
    }
    showTheme();
    if (atlas) atlas.relabel();
  }

  function otherLanguage() {
    const language = root.dataset.lang === "zh" ? "en" : "zh";
    kept.set("nightshift-language", language);
    showLanguage(language);
  }

  // --- the map --------------------------------------------------------------------------

  function makeAtlas() {
    const given = read("map-data");
    const bytes = (text) => {
      const raw = atob(text), found = new Uint8Array(raw.length);
      for (let n = 0; n < raw.length; n++) found[n] = raw.charCodeAt(n);
      return new Uint16Array(found.buffer);
    };
    const lines = (id) => $(id).textContent.split("\n");
    const count = given.n, xy = bytes(given.xy);
    const groups = { cluster: bytes(given.cluster), label: bytes(given.label), night: bytes(given.night) };
    const names = { cluster: lines("map-clusters"), label: lines("map-labels"), night: lines("map-nights") };
    const field = $("map-field"), ground = $("map-ground"), top = $("map-top"), tip = $("map-tip");
    const by = $("map-by"), only = $("map-only"), search = $("map-search");
    const margin = 14;
    let texts = null, lower = null, matches = null, found = 0, shown = new Uint8Array(count).fill(1);
    let wide = 0, high = 0, ratio = 1, zoom = 1, left = 0, up = 0, at = -1, waiting = false;

    const text = (one) => { texts ??= lines("map-texts"); return texts[one] ?? ""; };
    const x = (one) => margin + (xy[2 * one] / 65535) * (wide - 2 * margin) * zoom - left;
    const y = (one) => margin + (1 - xy[2 * one + 1] / 65535) * (high - 2 * margin) * zoom - up;

    // Cells of a grid, so that whoever points at a dot waits for its neighbours only.
    const SIDE = 128, starts = new Int32Array(SIDE * SIDE + 1), inside = new Int32Array(count);
    const cell = (one) => Math.min(SIDE - 1, (xy[2 * one] * SIDE) >> 16) + SIDE * Math.min(SIDE - 1, (xy[2 * one + 1] * SIDE) >> 16);
    for (let n = 0; n < count; n++) starts[cell(n) + 1]++;
    for (let n = 0; n < SIDE * SIDE; n++) starts[n + 1] += starts[n];
    const next = starts.slice();
    for (let n = 0; n < count; n++) inside[next[cell(n)]++] = n;

    function colour(place) {
      const mode = by.value;
      if (mode === "cluster" && place === given.loose) return given.grey;
      if (mode === "label" && names.label[place] === "") return given.grey;
      const from = mode === "night" ? names.night.length - 1 - place : place;
      return given.palette[from] ?? given.grey;
    }

    function name(mode, place) {
      if (mode === "cluster" && place === given.loose) return say("unassigned");
      return names[mode][place] || "–";
    }

    function later() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; paint(); });
    }

    function measure() {
      const box = field.getBoundingClientRect();
      if (!box.width) return;
      wide = box.width; high = box.height; ratio = Math.min(2, window.devicePixelRatio || 1);
      for (const one of [ground, top]) { one.width = Math.round(wide * ratio); one.height = Math.round(high * ratio); }
      later();
    }

    // Who is shown, by colour; grey first, so that what has a colour lies on top of it.
    let buckets = null;
    function sorted(of) {
      const inks = names[by.value].map((_, place) => colour(place)), found = new Map([[given.grey, []]]);
      for (const ink of inks) if (!found.has(ink)) found.set(ink, []);
      const lists = inks.map((ink) => found.get(ink));
      for (let n = 0; n < count; n++) if (shown[n]) lists[of[n]].push(n);
      return found;
    }

    function paint() {
      const pen = ground.getContext("2d"), of = groups[by.value];
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, wide, high);
      const size = Math.min(7, (count > 20000 ? 1.8 : count > 4000 ? 2.6 : 4.6) * Math.sqrt(zoom));
      buckets ??= sorted(of);
      const inks = [...buckets.keys()];
      const across = ((wide - 2 * margin) * zoom) / 65535, down = ((high - 2 * margin) * zoom) / 65535;
      const ox = margin - left, oy = margin + 65535 * down - up;
      for (const pass of matches ? [0, 1] : [1]) {
        for (const ink of inks) {
          pen.fillStyle = ink;
          pen.globalAlpha = pass ? (ink === given.grey && !matches ? 0.45 : 0.8) : 0.12;
          const r = pass && matches ? Math.max(3.5, size) : size;
          for (const n of buckets.get(ink)) {
            if (matches && matches[n] !== pass) continue;
            const px = ox + xy[2 * n] * across, py = oy - xy[2 * n + 1] * down;
            if (px < -r || py < -r || px > wide + r || py > high + r) continue;
            if (count > 4000) pen.fillRect(px - r / 2, py - r / 2, r, r);
            else { pen.beginPath(); pen.arc(px, py, r * 0.6, 0, 2 * Math.PI); pen.fill(); }
          }
        }
      }
      pen.globalAlpha = 1;
      over();
    }

    function over() {
      const pen = top.getContext("2d"), style = getComputedStyle(root);
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, wide, high);
      const paper = style.getPropertyValue("--card"), ink = style.getPropertyValue("--ink");
      if (by.value === "cluster") titles(pen, paper, ink);
      if (at < 0) return;
      pen.strokeStyle = ink; pen.lineWidth = 2;
      pen.beginPath(); pen.arc(x(at), y(at), 7, 0, 2 * Math.PI); pen.stroke();
    }

    let middles = null;
    function titles(pen, paper, ink) {
      if (!middles) {
        middles = names.cluster.map(() => [0, 0, 0]);
        for (let n = 0; n < count; n++) {
          const own = middles[groups.cluster[n]];
          own[0] += xy[2 * n]; own[1] += xy[2 * n + 1]; own[2]++;
        }
      }
      pen.font = `600 13px ${getComputedStyle(document.body).fontFamily}`;
      pen.textAlign = "center"; pen.lineJoin = "round";
      const taken = [];
      middles.slice(0, 24).forEach((own, place) => {
        if (!own[2] || place === given.loose) return;
        const label = names.cluster[place].slice(0, 28), half = pen.measureText(label).width / 2 + 4;
        let px = margin + (own[0] / own[2] / 65535) * (wide - 2 * margin) * zoom - left;
        // One at the edge is moved in; one that is out of sight stays there.
        if (px > 0 && px < wide) px = Math.max(half, Math.min(px, wide - half));
        const py = margin + (1 - own[1] / own[2] / 65535) * (high - 2 * margin) * zoom - up;
        const box = [px - half, py - 14, px + half, py + 6];
        if (taken.some((b) => b[0] < box[2] && box[0] < b[2] && b[1] < box[3] && box[1] < b[3])) return;
        taken.push(box);
        pen.strokeStyle = paper; pen.lineWidth = 4; pen.strokeText(label, px, py);
        pen.fillStyle = ink; pen.fillText(label, px, py);
      });
    }

    function nearest(px, py, reach) {
      let best = -1, least = reach * reach;
      const column = (v) => Math.floor((((v + left - margin) / ((wide - 2 * margin) * zoom)) * 65536 * SIDE) / 65536);
      const row = (v) => Math.floor(((1 - (v + up - margin) / ((high - 2 * margin) * zoom)) * 65536 * SIDE) / 65536);
      const clip = (v) => Math.max(0, Math.min(SIDE - 1, v));
      for (let r = clip(row(py + reach)); r <= clip(row(py - reach)); r++) {
        for (let c = clip(column(px - reach)); c <= clip(column(px + reach)); c++) {
          for (let k = starts[r * SIDE + c]; k < starts[r * SIDE + c + 1]; k++) {
            const n = inside[k];
            if (!shown[n] || (matches && !matches[n])) continue;
            const far = (x(n) - px) ** 2 + (y(n) - py) ** 2;
            if (far < least) { least = far; best = n; }
          }
        }
      }
      return best;
    }

    function point(one) {
      at = one;
      over();
      tip.hidden = one < 0;
      if (one < 0) return;
      const parts = [name("cluster", groups.cluster[one]), names.label[groups.label[one]], names.night[groups.night[one]]];
      tip.firstElementChild.textContent = parts.filter(Boolean).join(" · ");
      const body = tip.lastElementChild;
      body.textContent = text(one);
      body.lang = /[\u3400-\u9fff]/.test(body.textContent) ? "zh-Hans" : "";
      const px = x(one), py = y(one);
      tip.style.left = `${Math.max(4, Math.min(px + 14, wide - tip.offsetWidth - 6))}px`;
      tip.style.top = `${py + tip.offsetHeight + 20 > high ? Math.max(4, py - tip.offsetHeight - 14) : py + 14}px`;
    }

    // From one document to the nearest in a direction: the map can be read without a mouse.
    function step(dx, dy) {
      if (at < 0) { point(nearest(wide / 2, high / 2, wide + high)); return; }
      const px = x(at), py = y(at);
      let best = -1, least = Infinity;
      for (let n = 0; n < count; n++) {
        if (n === at || !shown[n] || (matches && !matches[n])) continue;
        const ahead = (x(n) - px) * dx + (y(n) - py) * dy;
        const aside = Math.abs((x(n) - px) * dy) + Math.abs((y(n) - py) * dx);
        if (ahead <= 0 || aside > ahead) continue;
        const far = ahead + 2 * aside;
        if (far < least) { least = far; best = n; }
      }
      if (best < 0) return;
      at = best;
      const bx = x(best), by_ = y(best);
      if (bx < 20 || bx > wide - 20) left += bx - wide / 2;
      if (by_ < 20 || by_ > high - 20) up += by_ - high / 2;
      paint();
      point(best);
    }

    function zoomTo(factor, px = wide / 2, py = high / 2) {
      const after = Math.max(1, Math.min(60, zoom * factor)), by_ = after / zoom;
      left = (left + px - margin) * by_ - px + margin;
      up = (up + py - margin) * by_ - py + margin;
      zoom = after;
      if (zoom === 1) { left = 0; up = 0; }
      point(-1);
      later();
    }

    function choose() {
      const value = only.value, of = groups[by.value];
      found = 0;
      buckets = null;
      for (let n = 0; n < count; n++) {
        shown[n] = value === "" || (value === "tonight" ? groups.night[n] === given.tonight : of[n] === Number(value)) ? 1 : 0;
        found += shown[n] && (!matches || matches[n]) ? 1 : 0;
      }
      $("map-count").textContent = `${found.toLocaleString("en")} / ${count.toLocaleString("en")}`;
      for (const one of $("map-legend").children) one.setAttribute("aria-pressed", String(one.dataset.value === value));
      point(-1);
      later();
    }

    function look() {
      const wanted = search.value.trim().toLowerCase();
      if (!wanted) matches = null;
      else {
        lower ??= (text(0), texts.map((one) => one.toLowerCase()));
        matches = new Uint8Array(count);
        for (let n = 0; n < count; n++) matches[n] = (lower[n] ?? "").includes(wanted) ? 1 : 0;
      }
      choose();
    }

    function relabel() {
      const mode = by.value, of = groups[mode], before = only.value, sizes = new Int32Array(names[mode].length);
      for (let n = 0; n < count; n++) sizes[of[n]]++;
      const order = [...sizes.keys()].filter((one) => sizes[one]).sort((a, b) => mode === "night" ? b - a : sizes[b] - sizes[a]).slice(0, 40);
      const option = (value, label) => { const one = document.createElement("option"); one.value = value; one.textContent = label; return one; };
      const tonight = given.tonight >= 0 ? [option("tonight", say("only_tonight"))] : [];
      only.replaceChildren(option("", say("everything")), ...tonight, ...order.map((one) => option(String(one), `${name(mode, one)} (${sizes[one].toLocaleString("en")})`)));
      if ([...only.options].some((one) => one.value === before)) only.value = before;
      $("map-legend").replaceChildren(...order.slice(0, 14).map((one) => {
        const button = document.createElement("button"), dot = document.createElement("span"), label = document.createElement("span");
        button.type = "button"; button.dataset.value = String(one); button.title = name(mode, one);
        dot.className = "dot"; dot.style.background = colour(one);
        label.textContent = `${name(mode, one)} ${sizes[one].toLocaleString("en")}`; label.dir = "auto";
        button.append(dot, label);
        button.addEventListener("click", () => { only.value = only.value === String(one) ? "" : String(one); choose(); });
        return button;
      }));
      choose();
    }

    // One finger is the page's, up and down; two are the map's, which follows both.
    const fingers = new Map();
    let apart = 0, middle = null;
    function pinch() {
      const box = top.getBoundingClientRect(), [[ax, ay], [bx, by_]] = [...fingers.values()];
      const reach = Math.max(1, Math.hypot(ax - bx, ay - by_)), now = [(ax + bx) / 2 - box.left, (ay + by_) / 2 - box.top];
      if (apart) {
        left += middle[0] - now[0]; up += middle[1] - now[1];
        zoomTo(reach / apart, ...now);
      }
      apart = reach; middle = now;
    }
    function lift(event) { drag = null; fingers.delete(event.pointerId); apart = 0; }

    let typed = 0, drag = null;
    by.addEventListener("change", () => { only.value = ""; relabel(); });
    only.addEventListener("change", choose);
    search.addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(look, 120); });
    $("map-all").addEventListener("click", () => { search.value = ""; only.value = ""; matches = null; zoomTo(0); choose(); });
    $("map-in").addEventListener("click", () => zoomTo(1.5));
    $("map-out").addEventListener("click", () => zoomTo(1 / 1.5));
    top.addEventListener("pointerdown", (event) => {
      drag = [event.clientX, event.clientY, left, up];
      top.setPointerCapture(event.pointerId);
      if (event.pointerType !== "touch") return;
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (fingers.size === 2) pinch();
    });
    top.addEventListener("pointerup", (event) => {
      const tapped = event.pointerType === "touch" && fingers.size === 1 && drag && Math.hypot(event.clientX - drag[0], event.clientY - drag[1]) < 8;
      lift(event);
      if (!tapped) return;
      const box = top.getBoundingClientRect();
      point(nearest(event.clientX - box.left, event.clientY - box.top, 28));
    });
    top.addEventListener("pointercancel", lift);
    top.addEventListener("touchmove", (event) => { if (event.touches.length > 1 && event.cancelable) event.preventDefault(); }, { passive: false });
    top.addEventListener("pointermove", (event) => {
      if (fingers.has(event.pointerId)) {
        fingers.set(event.pointerId, [event.clientX, event.clientY]);
        if (fingers.size === 2) { pinch(); return; }
        if (fingers.size > 2 || !drag) return;
      }
      if (drag && event.buttons && zoom > 1) {
        left = drag[2] - event.clientX + drag[0]; up = drag[3] - event.clientY + drag[1];
        point(-1); later(); return;
      }
      const box = top.getBoundingClientRect();
      const one = nearest(event.clientX - box.left, event.clientY - box.top, 14);
      if (one !== at) point(one);
    });
    // A finger that leaves has read nothing yet.
    top.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") point(-1); });
    top.addEventListener("wheel", (event) => {
      // Without a key the wheel is the page's: a reader who scrolls by must not be caught here.
      if (!event.ctrlKey && document.activeElement !== top) return;
      event.preventDefault();
      const box = top.getBoundingClientRect();
      zoomTo(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    top.addEventListener("dblclick", (event) => {
      const box = top.getBoundingClientRect();
      zoomTo(2, event.clientX - box.left, event.clientY - box.top);
    });
    top.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (moves[event.key]) { step(...moves[event.key]); event.preventDefault(); }
      else if (event.key === "+" || event.key === "=") zoomTo(1.5);
      else if (event.key === "-") zoomTo(1 / 1.5);
      else if (event.key === "0") zoomTo(0);
      else if (event.key === "Escape") point(-1);
    });
    new ResizeObserver(measure).observe(field);
    // One frame's worth of work, for whoever measures it.
    return { draw: later, paint, relabel, measure, place: (one) => [x(one), y(one)], text };
  }

  // --- the page -------------------------------------------------------------------------

  const language = kept.get("nightshift-language");
  $("switches").hidden = false;
  $("theme").addEventListener("click", nextTheme);
  $("language").addEventListener("click", otherLanguage);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "t" || event.key === "T") nextTheme();
    else if (event.key === "l" || event.key === "L") otherLanguage();
    else if (event.key === "/" && $("map-search")) { $("map-search").focus(); event.preventDefault(); }
  });
  // Paper is white, and nothing on it can be opened.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
    if (atlas) { atlas.measure(); atlas.paint(); }
  });
  window.addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
    showTheme();
  });
  showLanguage(language === "en" || language === "zh" ? language : root.dataset.lang);
  if ($("atlas")) {
    $("atlas").hidden = false;
    atlas = makeAtlas();
    window.nightshiftAtlas = atlas;
    atlas.relabel();
    atlas.measure();
  }
})();
