// Sends pictures to the server of this page, each in a request of its own, and shows the answers.

const AT_ONCE = 4;
const REPEATS = 3;
const UNSURE_BELOW = 0.5;
const FILTER_ABOVE = 20;
const SHRUNK_PX = 1600;
const TOKEN_KEY = "vizsla-token";
const ENGINES = { onnxruntime: "ONNX Runtime", openvino: "OpenVINO" };
const SILENT = "The server does not answer.";
const ADVICE = {
  silent: "See that it still runs and that this device can reach it, then try again.",
  unsupported_media_type: "Save the picture as JPEG or PNG, and choose that file.",
  not_a_picture: "Save the picture as JPEG or PNG, and choose that file.",
  broken_picture: "Choose another copy of it.",
};

const $ = (selector, root = document) => root.querySelector(selector);
const spaced = (className) => className.replaceAll("_", " ");

// In the server's units: 1 MB is 1,048,576 bytes.
const sizeOf = (bytes) =>
  bytes < 2 ** 20 ? `${Math.ceil(bytes / 2 ** 10)} KB` : `${(bytes / 2 ** 20).toFixed(1)} MB`;
const addressOf = (url) => new URL(url, document.baseURI).href;

const percent = (share) => {
  if (share > 0 && share < 0.001) return "<0.1%";
  if (share < 1 && share > 0.999) return ">99.9%";
  return `${(100 * share).toFixed(1)}%`;
};

const element = (tag, text, attributes = {}) => {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

// Long names may go on in the next line after these characters, rather than anywhere.
const setName = (place, name) =>
  place.replaceChildren(...name.split(/(?<=[_.-])/).flatMap((part) => [part, element("wbr", "")]));

const fromTemplate = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

// The token: in this tab alone, and only in memory where a browser keeps no storage.

const token = {
  value: "",
  read() {
    try {
      this.value = sessionStorage.getItem(TOKEN_KEY) ?? "";
    } catch {}
  },
  keep(value) {
    this.value = value;
    try {
      sessionStorage.setItem(TOKEN_KEY, value);
    } catch {}
  },
};

// The server

class Refused extends Error {
  constructor(message, { status = 0, code = "", waitS = null } = {}) {
    super(message);
    Object.assign(this, { status, code, waitS });
  }

  get mayPass() {
    return [0, 408].includes(this.status) || this.status >= 500;
  }
}

const refusalOf = (response, content) => {
  const { code, message } = content?.error ?? {};
  const after = response.headers.get("Retry-After");
  const waits = response.status === 503 && after !== null;
  return new Refused(message ?? `The server answered ${response.status} and did not say why.`, {
    status: response.status,
    code,
    waitS: waits ? Math.min(Math.max(Number(after) || 1, 1), 60) : null,
  });
};

const ask = async (path, { headers = {}, ...options } = {}) => {
  const sent = { Accept: "application/json", ...headers };
  if (token.value) sent.Authorization = `Bearer ${token.value}`;
  let response, text;
  try {
    response = await fetch(addressOf(path), { ...options, headers: sent, cache: "no-store" });
    text = await response.text();
  } catch {
    throw new Refused(SILENT, { code: "silent" });
  }
  let content = null;
  try {
    content = JSON.parse(text);
  } catch {}
  if (response.ok && content) return content;
  throw refusalOf(response, content);
};

// The head, the classes, and the lines for programs

let model = null;

const accuracyOf = (metrics = {}) => {
  for (const [split, title] of [["test", "Test accuracy"], ["valid", "Validation accuracy"]]) {
    const { accuracy, pictures } = metrics?.[split] ?? {};
    if (Number.isFinite(accuracy)) {
      return [title, percent(accuracy), pictures ? `on ${pictures} pictures` : ""];
    }
  }
  return null;
};

const showFacts = () => {
  const { name, architecture, classes, metrics, engine, input } = model;
  document.title = name;
  setName($("#name"), name);
  const tiles = [
    ["Architecture", architecture, input?.size_px ? `sees ${input.size_px} × ${input.size_px} pixels` : ""],
    ["Classes", classes.length, ""],
    accuracyOf(metrics),
    engine?.name && ["Engine", ENGINES[engine.name] ?? engine.name, engine.precision],
  ].filter(Boolean);
  $("#facts").replaceChildren(
    ...tiles.map(([title, value, words]) => {
      const tile = document.createElement("div");
      const figure = document.createElement("dd");
      setName(figure, `${value}`);
      if (words) figure.append(element("small", words));
      tile.append(element("dt", title), figure);
      return tile;
    }),
  );
  $("#facts").hidden = false;
};

const showClasses = () => {
  const { classes } = model;
  $("#classes summary").textContent = `The ${classes.length} classes`;
  $("#class-list").replaceChildren(
    ...classes.map(({ label, class_name }) => {
      const item = element("li", spaced(class_name), { title: class_name });
      if (label !== class_name) item.prepend(element("small", label));
      return item;
    }),
  );
  $("#classes").hidden = false;
  $("#filter-row").hidden = classes.length <= FILTER_ABOVE;
  filterClasses();
};

const filterClasses = () => {
  const wanted = spaced($("#filter").value.trim()).toLowerCase();
  const items = [...$("#class-list").children];
  for (const item of items) {
    item.hidden = !spaced(item.textContent).toLowerCase().includes(wanted);
  }
  const shown = items.filter((item) => !item.hidden).length;
  $("#filtered").textContent = wanted ? `${shown} of ${items.length}` : "";
};

const showPrograms = () => {
  const root = addressOf(".").replace(/\/$/, "");
  const secret = token.value ? " -H \"Authorization: Bearer $TOKEN\"" : "";
  const argument = token.value ? ", token=\"…\"" : "";
  $("#openapi").hidden = Boolean(token.value); // a link cannot bring it
  $("#curl").textContent =
    `curl -X POST -H 'Content-Type: image/jpeg'${secret} --data-binary @picture.jpg ${root}/v1/predict`;
  $("#python").textContent =
    "from vizsla.serving import Client\n\n" +
    `client = Client("${root}"${argument})\n` +
    "print(client.predict(\"picture.jpg\").class_name)";
};

const showTrouble = (error) => {
  const advice = error && (ADVICE[error.code] ?? "");
  $("#trouble").hidden = !error;
  $("#trouble p").textContent = error ? `${error.message} ${advice}` : "";
};

const fetchModel = async () => {
  try {
    model = await ask("v1/model");
  } catch (error) {
    if (error.status === 401) askForToken();
    else showTrouble(error);
    return;
  }
  showTrouble(null);
  showFacts();
  showClasses();
  showPrograms();
};

let loading = null;
const loadModel = () => (loading ??= fetchModel().finally(() => (loading = null)));

// Pictures: a job each, at most AT_ONCE of them under way, in the order of choice

let jobs = [];
let isHeld = true; // until the model is known, and while a token is wanted

const add = (files) => {
  if (!files.length) return;
  const added = [...files].map((file) => {
    const job = { file, state: "waiting", stop: new AbortController(), card: fromTemplate("card") };
    dressCard(job);
    return job;
  });
  jobs.push(...added);
  $("#results").hidden = false;
  $("#cards").append(...added.map((job) => job.card));
  showProgress();
  added[0].card.scrollIntoView({ block: "nearest" });
  pump();
};

const pump = () => {
  while (!isHeld && jobs.filter((job) => job.state === "running").length < AT_ONCE) {
    const next = jobs.find((job) => job.state === "waiting");
    if (!next) return;
    work(next);
  }
};

const work = async (job) => {
  job.state = "running";
  say(job, "Sending");
  try {
    showAnswer(job, await answerFor(job));
  } catch (error) {
    if (job.stop.signal.aborted) return;
    job.state = error.status === 401 ? "waiting" : "failed";
    if (error.status === 401) askForToken();
    showFailure(job, error);
  }
  showProgress();
  pump();
};

const answerFor = async (job) => {
  const { body, type, words } = await prepared(job.file);
  $(".shrunk", job.card).textContent = words;
  for (let repeats = 0; ; repeats += 1) {
    const began = performance.now();
    try {
      const headers = { "Content-Type": type };
      const { signal } = job.stop;
      const answer = await ask("v1/predict?top_k=5", { method: "POST", body, headers, signal });
      if (!answer.top_k?.length) throw new Refused("This page cannot read the server's answer.");
      return { ...answer, wholeMs: performance.now() - began };
    } catch (error) {
      if (!error.waitS || repeats === REPEATS || job.stop.signal.aborted) throw error;
      say(job, `The server is busy. Trying again in ${error.waitS}\u00a0s.`);
      await new Promise((done) => setTimeout(done, 1000 * error.waitS));
    }
  }
};

const prepared = async (file) => {
  const most = model?.limits?.body_bytes ?? Infinity;
  if (file.size > most) return shrunk(file, most);
  try {
    // A file of JSON, say, is no request to the server: it is a file that is no picture.
    const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
    return { body: await file.arrayBuffer(), type, words: "" };
  } catch {
    throw new Refused(
      "The browser cannot read this. If it is a folder, choose the pictures in it; if not, the " +
        "file was moved or changed.",
      { status: 400 },
    );
  }
};

const shrunk = async (file, most) => {
  const why = `The file has ${sizeOf(file.size)}, and the server takes at most ${sizeOf(most)}`;
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    throw new Refused(
      `${why}. This browser cannot open it to scale it down; save it as a smaller JPEG.`,
      { status: 413 },
    );
  }
  const { width, height } = picture;
  const scale = Math.min(1, SHRUNK_PX / Math.max(width, height));
  const canvas = element("canvas", "", {
    width: Math.max(1, Math.round(scale * width)),
    height: Math.max(1, Math.round(scale * height)),
  });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff"; // the server puts what is transparent on white, too
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  const body = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9));
  const to = `${canvas.width} × ${canvas.height} pixels`;
  const done = scale < 1 ? `scaled down from ${width} × ${height} to ${to}` : "written anew as JPEG";
  return { body, type: "image/jpeg", words: `${why}: ${done} before it was sent.` };
};

// Cards

const dressCard = (job) => {
  const { card, file } = job;
  setName($("h3", card), file.name);
  const image = $("img", card);
  image.onload = () => URL.revokeObjectURL(image.src);
  image.onerror = () => {
    URL.revokeObjectURL(image.src);
    image.replaceWith(element("span", file.name.match(/\.(\w{1,5})$/)?.[1].toUpperCase() ?? "?"));
  };
  image.src = URL.createObjectURL(file);
  $(".retry", card).onclick = () => {
    $("h3", card).focus();
    job.state = "waiting";
    say(job, "Waiting");
    showProgress();
    pump();
  };
  say(job, "Waiting");
};

const say = ({ card, state }, words) => {
  $(".state", card).textContent = words;
  $(".retry", card).hidden = true;
  card.classList.toggle("failed", state === "failed");
  card.setAttribute("aria-busy", state === "running");
};

const showAnswer = (job, { top_k, confidence, class_name, ms, wholeMs, model: name }) => {
  if (job.stop.signal.aborted) return;
  job.state = "done";
  say(job, "");
  const isUnsure = confidence < UNSURE_BELOW;
  $(".bars", job.card).replaceChildren(...top_k.map(barOf));
  if (isUnsure) $(".bars .class", job.card).append(element("span", "unsure", { class: "unsure" }));
  $(".times", job.card).textContent =
    `${Math.round(ms)} ms in the server, ${Math.round(wholeMs)} ms in all`;
  const figure = `${Math.round(100 * confidence)} percent${isUnsure ? ", unsure" : ""}`;
  announce(`${job.file.name}: ${spaced(class_name)}, ${figure}`);
  if (model?.name !== name) loadModel(); // another one is served now, or the server is back
};

const barOf = ({ class_name, confidence }) => {
  const bar = fromTemplate("bar");
  const name = $(".class", bar);
  name.textContent = spaced(class_name);
  name.title = class_name;
  $(".percent", bar).textContent = percent(confidence);
  $(".track span", bar).style.width = `${100 * confidence}%`;
  return bar;
};

const showFailure = (job, error) => {
  if (job.state === "waiting") {
    say(job, "Waiting for the token");
    return;
  }
  const words = [error.message, ADVICE[error.code]].filter(Boolean).join(" ");
  say(job, words);
  $(".retry", job.card).hidden = !error.mayPass;
  announce(`${job.file.name}: ${words}`);
};

const announce = (words) => {
  const news = $("#news");
  news.append(element("p", words));
  while (news.childElementCount > 20) news.firstElementChild.remove();
};

const showProgress = () => {
  const failed = jobs.filter((job) => job.state === "failed").length;
  const over = jobs.filter((job) => job.state === "done").length + failed;
  const failures = failed ? `, ${failed} failed` : "";
  $("#progress").textContent = `${over} of ${jobs.length}${failures}`;
};

const clear = () => {
  for (const { stop, card } of jobs) {
    stop.abort();
    URL.revokeObjectURL($("img", card)?.src);
  }
  jobs = [];
  $("#cards").replaceChildren();
  $("#news").replaceChildren();
  $("#results").hidden = true;
  $("#choose").focus();
};

// The form for the token

const askForToken = () => {
  isHeld = true;
  showTrouble(null);
  if (!$("#token").hidden) return;
  $("#token").hidden = false;
  $("#token-help").textContent = "It is kept until this tab is closed.";
  $("#token-field").setAttribute("aria-invalid", "false");
  $("#token-field").focus();
};

const tryToken = async (event) => {
  event.preventDefault();
  const field = $("#token-field");
  token.value = field.value.trim();
  try {
    // Anything else cannot be put in a header, and is no token.
    if (!/^[\x21-\x7e]+$/.test(token.value)) throw new Refused("", { status: 401 });
    await ask("v1/model");
  } catch (error) {
    token.value = "";
    const isWrong = error.status === 401;
    $("#token-help").textContent = isWrong ? "The server does not know this token." : error.message;
    field.setAttribute("aria-invalid", "true");
    field.select();
    field.focus();
    return;
  }
  token.keep(token.value);
  field.value = "";
  $("#token").hidden = true;
  $("#choose").focus();
  await loadModel();
  isHeld = false;
  pump();
};

// Ways in: choosing, the camera, dropping, pasting

const takeFrom = (button, input) => {
  $(button).onclick = () => $(input).click();
  $(input).onchange = ({ target }) => {
    add([...target.files]);
    target.value = ""; // so that the same file can be chosen again
  };
};

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

const listenForDrops = () => {
  const mark = (isOver) => document.documentElement.classList.toggle("dragging", isOver);
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    mark(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) mark(false);
  });
  document.addEventListener("drop", (event) => {
    mark(false);
    if (!hasFiles(event)) return;
    event.preventDefault();
    add([...event.dataTransfer.files]);
  });
};

const listenForPastes = () =>
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    add(files);
  });

const copy = async (button) => {
  const source = document.getElementById(button.dataset.copies);
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    // Only https and localhost have the clipboard; elsewhere a selection can be copied.
    getSelection().selectAllChildren(source);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  announce("Copied");
  setTimeout(() => (button.textContent = "Copy"), 2000);
};

const start = async () => {
  token.read();
  takeFrom("#choose", "#files");
  takeFrom("#photograph", "#camera");
  listenForDrops();
  listenForPastes();
  showPrograms();
  $("#clear").onclick = clear;
  $("#filter").oninput = filterClasses;
  $("#token").onsubmit = tryToken;
  $("#trouble button").onclick = loadModel;
  for (const button of document.querySelectorAll("[data-copies]")) button.onclick = () => copy(button);
  await loadModel();
  isHeld = !$("#token").hidden;
  pump();
};

start();
