"use strict";

const $ = (id) => document.getElementById(id);
const PAGE = 60;
const MOST_KEPT = 20;

let info = null;
let query = null; // {kind: "file", file, url, name} or {kind: "row", row, name, facts, fingerprint}; with size: {width, height} when it is known
let box = null; // [x1, y1, x2, y2] in pixels of the query
let offset = 0;
let displayed = null; // {query, box, status} of the results on the page
let running = null; // AbortController of what is asked for, a search or a page of the gallery
const kept = []; // previous queries, newest first

// ---------------------------------------------------------------- talking to the server

async function ask(address, options = {}) {
  let response;
  try {
    response = await fetch(address, { ...options, headers: { Accept: "application/json" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.status === 401) {
    location.replace("/");
    throw new Error("The token is needed again.");
  }
  const answer = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) {
    const error = new Error(answer.error || `The server answered ${response.status}.`);
    error.status = response.status;
    throw error;
  }
  return answer;
}

function problem(error) {
  if (error && error.name === "AbortError") return;
  $("problem-text").textContent = error ? error.message : "";
  $("problem").hidden = !error;
  if (error) $("problem").scrollIntoView({ block: "nearest" });
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function picture({ row, fingerprint }, size) {
  return `/image/${row}?size=${size}&fingerprint=${fingerprint}`;
}

function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

// ---------------------------------------------------------------- a gallery that changes

// The gallery may grow or shrink while the page is open, and then a row may be another image: what names a row also names the
// state of the gallery, its fingerprint, and the server refuses a row of another state.
async function renew() {
  const before = info;
  info = await ask("/api/info");
  const [chosen, k, engine] = [filters(), $("k").value, $("engine").value];
  describe();
  restoreFilters(chosen);
  if (k) $("k").value = Math.min(k, $("k").max);
  if (info.engines.includes(engine)) $("engine").value = engine;
  $("news").textContent = `The gallery has changed: it has ${count(info.images, "image", "images")} now, before ${before.images.toLocaleString("en")}.`;
  $("news").hidden = false;
}

async function noticed(answer) {
  if (answer.fingerprint !== info.fingerprint) await renew();
}

// Whether a row of the earlier gallery is still the same image; then it counts as one of the gallery as it is now.
async function stillThere(asked) {
  await renew();
  const now = await ask(`/api/images/${asked.row}`).catch(() => null);
  const same = now !== null && ["name", "label", "camera", "time"].every((key) => now[key] === asked.facts[key]);
  if (same) asked.fingerprint = now.fingerprint;
  return same;
}

// ---------------------------------------------------------------- filters

function chosenCameras() {
  return [...document.querySelectorAll("#cameras input:checked")].map((input) => input.value);
}

function utc(id) {
  return $(id).value ? `${$(id).value}Z` : "";
}

function filters() {
  const found = chosenCameras().map((camera) => ["camera", camera]);
  for (const name of ["after", "before"]) if (utc(name)) found.push([name, utc(name)]);
  return found;
}

function restoreFilters(chosen) {
  const cameras = chosen.filter(([name]) => name === "camera").map(([, value]) => value);
  for (const input of document.querySelectorAll("#cameras input")) input.checked = cameras.includes(input.value);
}

function clearFilters() {
  for (const input of document.querySelectorAll("#cameras input")) input.checked = false;
  $("after").value = "";
  $("before").value = "";
}

// ---------------------------------------------------------------- pictures

function tile(image, fingerprint) {
  const item = element("li");
  const button = element("button");
  button.type = "button";
  button.dataset.row = image.row;
  const shown = element("img");
  shown.src = picture({ row: image.row, fingerprint }, 224);
  shown.alt = "";
  shown.loading = "lazy";
  shown.addEventListener("error", () => shown.replaceWith(element("div", "not readable", "missing")));
  button.append(shown);
  const words = [];
  if (image.rank !== undefined) {
    const line = element("span", undefined, "rank");
    line.append(element("b", `${image.rank}`), element("span", shortDistance(image.distance)));
    button.append(line);
    words.push(`rank ${image.rank}`, `distance ${shortDistance(image.distance)}`);
  }
  if (image.same) {
    item.className = image.same.replace(" ", "-");
    const mark = { same: "✓ same", "not same": "✗ not same" }[image.same] || `? ${image.same}`;
    button.append(element("span", mark, "mark"));
    words.push(image.same);
  }
  const known = [];
  if (image.label !== null && image.label >= 0) known.push(`label ${image.label}`);
  if (image.camera !== null) known.push(`camera ${image.camera}`);
  if (known.length) button.append(element("span", known.join(", ")));
  if (image.time) {
    known.push(shortTime(image.time));
    button.append(element("span", shortTime(image.time), "time"));
  }
  button.append(element("span", image.name.split("/").pop(), "file"));
  button.title = [image.name, ...known, "click to search with it"].join("\n");
  button.setAttribute("aria-label", [...words, ...known, image.name, "search with it"].join(", "));
  button.addEventListener("click", () => pick(image, fingerprint));
  item.append(button);
  return item;
}

function shortDistance(value) {
  return value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(1) : value.toPrecision(3);
}

function shortTime(text) {
  return text.replace("T", " ").replace(/(\.\d+)?\+00:00$/, "");
}

function show(images, fingerprint) {
  $("nothing").hidden = images.length > 0;
  const list = $("pictures");
  const had = list.contains(document.activeElement);
  list.replaceChildren(...images.map((image) => tile(image, fingerprint)));
  for (const button of list.querySelectorAll("button")) button.tabIndex = -1;
  const first = list.querySelector("button");
  if (first) first.tabIndex = 0;
  if (first && had) first.focus();
}

function neighbour(button, key) {
  const all = [...$("pictures").querySelectorAll("button")];
  const here = all.indexOf(button);
  if (key === "ArrowLeft") return all[here - 1];
  if (key === "ArrowRight") return all[here + 1];
  if (key === "Home") return all[0];
  if (key === "End") return all[all.length - 1];
  const columns = all.filter((other) => other.offsetTop === all[0].offsetTop).length;
  return all[here + (key === "ArrowDown" ? columns : -columns)];
}

// ---------------------------------------------------------------- the gallery

async function browse(first = 0) {
  if (running) running.abort();
  const mine = (running = new AbortController());
  offset = Math.max(0, first);
  const parameters = new URLSearchParams([["offset", offset], ["limit", PAGE], ...filters()]);
  try {
    const found = await ask(`/api/images?${parameters}`, { signal: mine.signal });
    problem(null);
    await noticed(found);
    if (running !== mine) return;
    show(found.images, found.fingerprint);
    displayed = null;
    $("heading").textContent = "Gallery";
    const last = offset + found.images.length;
    $("status").textContent = found.total
      ? `${(offset + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${count(found.total, "image", "images")}. Click one to search with it.`
      : "";
    $("pages").hidden = found.total <= PAGE;
    $("earlier").disabled = offset === 0;
    $("later").disabled = last >= found.total;
    state("gallery");
  } catch (error) {
    if (running === mine) problem(error);
  } finally {
    arrived(mine);
  }
}

function arrived(which) {
  if (running !== which) return;
  running = null;
  $("pictures").classList.remove("busy");
}

function state(name) {
  document.body.dataset.state = name;
}

// ---------------------------------------------------------------- the query

function setQuery(next) {
  query = next;
  setBox(null);
  for (const id of ["frame", "box-hint", "box-fields", "enlarge", "search"]) $(id).hidden = next === null;
  $("hint").hidden = next !== null;
  $("query-name").hidden = next === null;
  if (!next) return enlarge(false);
  $("preview").src = next.kind === "file" ? next.url : picture(next, 1024);
  $("preview").alt = `query: ${next.name}`;
  $("query-name").textContent = next.name;
}

function enlarge(on) {
  document.body.classList.toggle("large", on);
  $("enlarge").textContent = on ? "Smaller" : "Enlarge";
  $("enlarge").setAttribute("aria-pressed", String(on));
  drawBox();
}

function take(file) {
  if (!file) return;
  if (file.size > info.limits.upload_bytes) {
    problem(new Error(`${file.name} has ${(file.size / 2 ** 20).toFixed(0)} MB, the limit is ${(info.limits.upload_bytes / 2 ** 20).toFixed(0)} MB.`));
    return;
  }
  setQuery({ kind: "file", file, url: URL.createObjectURL(file), name: file.name || "pasted image" });
  search();
}

function pick(image, fingerprint) {
  setQuery({ kind: "row", row: image.row, name: image.name, facts: image, fingerprint });
  search();
}

async function pixelsOf(which) {
  // Of the file itself: the picture on the page may be a smaller one.
  if (which.size) return which.size;
  if (which.kind === "row") {
    const known = await ask(`/api/images/${which.row}?fingerprint=${which.fingerprint}`);
    which.size = { width: known.width, height: known.height };
  } else {
    if (!$("preview").complete) await $("preview").decode();
    which.size = { width: $("preview").naturalWidth, height: $("preview").naturalHeight };
  }
  return which.size;
}

function setBox(next) {
  box = next;
  ["x1", "y1", "x2", "y2"].forEach((id, place) => ($(id).value = box ? box[place] : ""));
  drawBox();
}

function drawBox() {
  const frame = $("box");
  $("no-box").hidden = !box;
  frame.hidden = !(box && query.size);
  if (frame.hidden) return;
  const scale = $("preview").clientWidth / query.size.width;
  frame.style.left = `${box[0] * scale}px`;
  frame.style.top = `${box[1] * scale}px`;
  frame.style.width = `${(box[2] - box[0]) * scale}px`;
  frame.style.height = `${(box[3] - box[1]) * scale}px`;
}

async function search(again = true) {
  if (!query) {
    $("status").textContent = "Choose an image first.";
    $("file").focus();
    return;
  }
  if (!$("query").reportValidity()) return;
  if (running) running.abort();
  const mine = (running = new AbortController());
  const form = new FormData();
  if (query.kind === "file") form.append("image", query.file, query.name);
  else for (const [name, value] of [["row", query.row], ["fingerprint", query.fingerprint]]) form.append(name, value);
  if (box) form.append("box", box.join(","));
  form.append("k", $("k").value);
  form.append("engine", $("engine").value);
  for (const [name, value] of filters()) form.append(name, value);
  $("pictures").classList.add("busy");
  $("status").textContent = "searching";
  const asked = query;
  const part = box;
  try {
    const found = await ask("/api/search", { method: "POST", body: form, signal: mine.signal });
    problem(null);
    await noticed(found);
    if (running !== mine) return;
    show(found.results, found.fingerprint);
    $("heading").textContent = "Nearest images";
    const time = `${(found.embed_ms + found.search_ms).toFixed(0)} ms`;
    const marks = info.same ? `, same below ${shortDistance(info.same.threshold)}` : "";
    $("status").textContent = found.results.length
      ? `${count(found.results.length, "image", "images")}, ${found.distance} distance${marks}, ${time}`
      : "";
    displayed = { query: asked, box: part, status: $("status").textContent };
    $("pages").hidden = true;
    remember(asked, part);
    if (isNarrow()) $("heading").scrollIntoView();
    state("results");
  } catch (error) {
    if (error.name === "AbortError" || running !== mine) return;
    if (error.status === 409 && asked.kind === "row" && again) return await changed(asked);
    failed(error);
  } finally {
    arrived(mine);
  }
}

async function changed(asked) {
  try {
    const same = await stillThere(asked);
    if (asked !== query) return;
    if (same) {
      $("preview").src = picture(asked, 1024);
      return await search(false);
    }
    $("news").textContent += ` ${asked.name} is not where it was: choose it again.`;
    setQuery(null);
    await browse(0);
  } catch (error) {
    failed(error);
  }
}

// The page goes back to the query whose results it shows, so that the two belong together. Where the same request may succeed
// later, the query stays, and Search tries again.
function failed(error) {
  const later = error.status === undefined || error.status === 429 || error.status >= 500;
  const failing = query;
  if (later) {
    show([]);
    $("nothing").hidden = true;
    $("heading").textContent = "Nearest images";
    $("status").textContent = "Not searched. Press Search to try again.";
    $("pages").hidden = true;
    displayed = null;
  } else if (displayed) {
    setQuery(displayed.query);
    setBox(displayed.box);
    $("status").textContent = displayed.status;
  } else {
    setQuery(null);
    $("status").textContent = "";
  }
  if (failing !== query && kept.every((entry) => entry.query !== failing)) release(failing);
  state("error");
  problem(error);
}

// ---------------------------------------------------------------- previous queries

function remember(asked, part) {
  const there = kept.findIndex((other) => other.query === asked || (asked.kind === "row" && other.query.row === asked.row));
  if (there >= 0) kept.splice(there, 1);
  kept.unshift({ query: asked, box: part });
  for (const old of kept.splice(MOST_KEPT)) release(old.query);
  drawHistory();
}

function release(old) {
  if (old.kind === "file" && old !== query) URL.revokeObjectURL(old.url);
}

function drawHistory() {
  const items = kept.map((entry) => {
    const item = element("li");
    const button = element("button");
    button.type = "button";
    const shown = element("img");
    shown.src = entry.query.kind === "file" ? entry.query.url : picture(entry.query, 96);
    shown.alt = `search again with ${entry.query.name}${entry.box ? ", a part of it" : ""}`;
    button.title = entry.query.name;
    button.append(shown);
    button.addEventListener("click", () => {
      const { query: old, box: part } = entry;
      setQuery(old);
      setBox(part);
      search();
    });
    item.append(button);
    return item;
  });
  $("history").querySelector("ol").replaceChildren(...items);
  $("history").hidden = kept.length === 0;
}

// ---------------------------------------------------------------- drawing a box

function watchBox() {
  const frame = $("frame");
  let from = null;
  const place = (event) => {
    const around = $("preview").getBoundingClientRect();
    const scale = query.size.width / around.width;
    const inside = (value, most) => Math.min(Math.max(value, 0), most);
    return [
      Math.round(inside((event.clientX - around.left) * scale, query.size.width)),
      Math.round(inside((event.clientY - around.top) * scale, query.size.height)),
    ];
  };
  const between = (event) => {
    const to = place(event);
    return [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
  };
  frame.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !query || !query.size) return;
    event.preventDefault();
    frame.setPointerCapture(event.pointerId);
    from = place(event);
  });
  frame.addEventListener("pointermove", (event) => {
    if (from) setBox(between(event));
  });
  frame.addEventListener("pointerup", (event) => {
    if (!from) return;
    const drawn = between(event);
    from = null;
    const large = drawn[2] - drawn[0] >= 4 && drawn[3] - drawn[1] >= 4;
    const had = box !== null;
    setBox(large ? drawn : null);
    if (large || had) search();
  });
  frame.addEventListener("pointercancel", () => {
    from = null;
    setBox(null);
  });
  frame.addEventListener("dragstart", (event) => event.preventDefault());
  $("preview").addEventListener("load", async () => {
    const mine = query;
    if (!mine) return;
    $("frame").style.setProperty("--ratio", $("preview").naturalWidth / $("preview").naturalHeight);
    try {
      await pixelsOf(mine);
      if (mine === query) drawBox();
    } catch (error) {
      if (error.status !== 409) problem(error); // of a gallery that has changed: the search looks for the picture again
    }
  });
  $("preview").addEventListener("error", () => {
    // A format that the browser does not show, such as TIFF: the server may read it all the same.
    for (const id of ["frame", "box-hint", "box-fields", "enlarge"]) $(id).hidden = true;
    enlarge(false);
  });
  new ResizeObserver(drawBox).observe($("preview"));
  for (const id of ["x1", "y1", "x2", "y2"]) {
    $(id).addEventListener("change", () => {
      const values = ["x1", "y1", "x2", "y2"].map((name) => $(name).value);
      if (values.some((value) => value === "")) return;
      box = values.map(Number);
      drawBox();
      search();
    });
  }
  $("no-box").addEventListener("click", removeBox);
  $("enlarge").addEventListener("click", () => enlarge(!document.body.classList.contains("large")));
}

function removeBox() {
  if (!box) return;
  setBox(null);
  search();
}

// ---------------------------------------------------------------- dropping, pasting, keys

function watchFiles() {
  $("file").addEventListener("change", () => {
    take($("file").files[0]);
    $("file").value = "";
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const image = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
    if (!image) return;
    event.preventDefault();
    take(image);
  });
}

function watchKeys() {
  const keys = {
    "/": () => $("file").click(),
    g: () => browse(0),
    b: () => {
      $("box-fields").open = true;
      $("x1").focus();
    },
    f: () => {
      $("filters").open = true;
      $("k").focus();
    },
    e: () => $("enlarge").hidden || $("enlarge").click(),
    d: switchTheme,
    "?": toggleHelp,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") return removeBox();
    if (event.target.matches("input, select, textarea") && !event.target.matches("[type=checkbox], [type=file]")) return;
    if (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End") {
      const here = event.target.closest("#pictures button");
      const first = $("pictures").querySelector("[tabindex='0']");
      // Elsewhere on the page the arrows scroll, but from its top they lead into the pictures.
      const next = here ? neighbour(here, event.key) : event.target === document.body ? first : null;
      if (!next) return;
      event.preventDefault();
      if (first) first.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
      return;
    }
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });
}

function toggleHelp() {
  $("help").hidden = !$("help").hidden;
  $("help-button").setAttribute("aria-expanded", String(!$("help").hidden));
}

function isNarrow() {
  return matchMedia("(max-width: 46rem)").matches;
}

function isDark() {
  return getComputedStyle(document.documentElement).colorScheme === "dark";
}

function switchTheme() {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("theme", next);
  } catch (error) {
    // Storage may be switched off: the choice holds until the page is left.
  }
  nameTheme();
}

function nameTheme() {
  $("theme").textContent = isDark() ? "Light" : "Dark";
}

// ---------------------------------------------------------------- beginning

function describe() {
  document.title = `${info.name}: bdbnet`;
  $("name").textContent = info.name;
  const network = info.network.replace(/ \(fingerprint .*/, "");
  $("facts").textContent = `${count(info.images, "image", "images")}, ${network}, ${info.distance} distance`;
  $("facts").title = info.network;
  $("k").value = Math.min(info.k, info.images);
  $("k").max = Math.min(info.limits.k, info.images);
  $("engine").replaceChildren(...info.engines.map((name) => element("option", name)));
  $("engine-label").hidden = info.engines.length < 2;
  const chips = info.cameras.map(({ camera, images }) => {
    const label = element("label");
    const input = element("input");
    input.type = "checkbox";
    input.value = camera;
    label.append(input, element("span", `${camera}`));
    label.title = `${images.toLocaleString("en")} images`;
    input.setAttribute("aria-label", `camera ${camera}, ${images} images`);
    return label;
  });
  $("cameras").querySelector(".chips").replaceChildren(...chips);
  $("cameras").hidden = chips.length < 2;
  $("times").hidden = !info.times;
  if (info.times) $("known-times").textContent = `Images from ${info.times.map(shortTime).join(" to ")}`;
}

function again() {
  if (document.body.dataset.state === "gallery" || !query) browse(0);
  else search();
}

async function begin() {
  if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", location.pathname);
  nameTheme();
  $("theme").addEventListener("click", switchTheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  $("help-button").addEventListener("click", toggleHelp);
  try {
    info = await ask("/api/info");
  } catch (error) {
    $("facts").textContent = "";
    problem(error);
    state("error");
    document.querySelector("main").hidden = true; // nothing of it would work
    $("retry").hidden = false;
    $("retry").addEventListener("click", () => location.reload());
    return;
  }
  describe();
  if (isNarrow()) $("filters").open = false;
  watchBox();
  watchFiles();
  watchKeys();
  $("browse").addEventListener("click", () => browse(0));
  $("earlier").addEventListener("click", () => browse(offset - PAGE));
  $("later").addEventListener("click", () => browse(offset + PAGE));
  for (const id of ["no-filters", "show-all"])
    $(id).addEventListener("click", () => {
      clearFilters();
      again();
    });
  $("forget").addEventListener("click", () => {
    for (const old of kept.splice(0)) release(old.query);
    drawHistory();
  });
  $("query").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  for (const id of ["k", "engine"]) $(id).addEventListener("change", () => query && document.body.dataset.state !== "gallery" && search());
  for (const id of ["cameras", "after", "before"]) $(id).addEventListener("change", again);
  browse(0);
}

begin();
