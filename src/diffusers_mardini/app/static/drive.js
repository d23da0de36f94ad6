// Drive: send the pressed keys, draw the frames that come back. See drive_socket.py for the messages.
"use strict";
const $ = (id) => document.getElementById(id);
const names = {
  ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down", a: "left", d: "right", w: "up", s: "down",
};
const pressed = new Set();
const screen_ = $("screen"), pen = screen_.getContext("2d");
let socket, fps = 8, waiting = [], asked = false, running = false, paused = false, wantsVideo = false;
let mostBytes = Infinity, shown = 0, key = 0, keyTimes = new Map(), answered = 0, times = [], making = 0.3, drawing = 0, nextDraw = 0;

function say(text, bad) {
  $("message").textContent = text;
  $("message").className = bad ? "bad" : "";
}

function enable(driving) {
  for (const id of ["restart", "pause", "record", "save"]) $(id).disabled = !driving;
}

function connect() {
  const url = new URL("drive/ws", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  socket.onmessage = (event) => (typeof event.data === "string" ? tell(JSON.parse(event.data)) : take(event.data));
  socket.onclose = () => {
    running = false;
    enable(false);
    $("start").disabled = true;
    if (!$("message").classList.contains("bad")) say("The connection ended. Reload the page to drive again.", true);
  };
}

function send(wish) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(wish));
}

function tell(answer) {
  if (answer.is === "open") {
    for (const [label, value] of answer.checkpoints) $("checkpoint").add(new Option(label, value, false, value === answer.first));
    mostBytes = answer.most_bytes;
    if (answer.own_start) $("from").add(new Option("the given start", ""));
    for (const name of answer.examples) $("from").add(new Option(name, name));
    $("from").add(new Option("own picture or clip", "file"));
    say("Choose where to start, and press Start.");
  } else if (answer.is === "ready") {
    fps = answer.fps;
    screen_.width = answer.width;
    screen_.height = answer.height;
    screen_.style.aspectRatio = `${answer.width} / ${answer.height}`;
    running = true;
    enable(true);
    setPaused(false);
    $("record").setAttribute("aria-pressed", false);
    say(`Driving. The model takes ${answer.takes}.`);
    screen_.focus({preventScroll: true});
  } else if (answer.is === "recording") {
    wantsVideo = true;
    say(`Recorded ${answer.frames} frames; the browser saves drive.mp4.`);
  } else {
    running = answer.is === "error" && running;
    asked = false;
    enable(running);
    say(answer.message, true);
  }
}

async function take(data) {
  if (wantsVideo) {
    wantsVideo = false;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([data], {type: "video/mp4"}));
    link.download = "drive.mp4";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    return;
  }
  const length = new DataView(data).getUint32(0, true);
  const facts = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const picture = createImageBitmap(new Blob([new Uint8Array(data, 4 + length)], {type: "image/jpeg"}));
  if (facts.index === 0) { waiting = []; shown = 0; }
  waiting.push({facts, picture});
  if (facts.seconds) making = 0.7 * making + 0.3 * facts.seconds;
  if (facts.last) asked = false;
  ask();
}

// Ask for more when what is left lasts no longer than making more does: keys are then as fresh as they can be.
function ask() {
  if (!running || paused || asked || document.hidden) return;
  if (waiting.length / fps > making + 0.02) return;
  asked = true;
  send({do: "next", keys: [...pressed], key, strength: Number($("strength").value)});
}

async function draw(now) {
  requestAnimationFrame(draw);
  if (now < nextDraw || !waiting.length || drawing) return;
  drawing = 1;
  const {facts, picture} = waiting.shift();
  // A refresh of the screen comes late by up to 33 ms, which the next frame makes up for; what stalls for longer is not.
  nextDraw = Math.max(nextDraw, now - 1000 / 30) + 1000 / fps;
  try {
    pen.drawImage(await picture, 0, 0, screen_.width, screen_.height);
  } finally {
    drawing = 0;
  }
  shown = facts.index;
  screen_.dataset.index = shown;
  $("index").textContent = shown;
  if (facts.key > answered && keyTimes.has(facts.key)) {
    answered = facts.key;
    $("latency").textContent = `${Math.round(performance.now() - keyTimes.get(facts.key))} ms`;
    for (const old of keyTimes.keys()) if (old <= answered) keyTimes.delete(old);
  }
  times.push(performance.now());
  times = times.slice(-20);
  if (times.length > 2 && facts.index) {
    const rate = (1000 * (times.length - 1)) / (times[times.length - 1] - times[0]);
    $("rate").textContent = `${rate.toFixed(1)} of ${fps} frames/s`;
  }
  ask();
}

function press(name, down) {
  if (down === pressed.has(name)) return;
  if (down) pressed.add(name); else pressed.delete(name);
  key += 1;
  keyTimes.set(key, performance.now());
  $("keys").textContent = [...pressed].join(", ") || "none";
  for (const pad of document.querySelectorAll("#pads button")) {
    pad.setAttribute("aria-pressed", pressed.has(pad.dataset.key));
  }
  ask();
}

function setPaused(value) {
  paused = value;
  $("pause").setAttribute("aria-pressed", paused);
  $("pause").textContent = paused ? "Go on" : "Pause";
  times = [];
  ask();
}

function restart() {
  if (!running) return;
  waiting = [];
  send({do: "restart"});
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  const name = names[event.key] || names[event.key.toLowerCase()];
  if (name) { event.preventDefault(); press(name, true); }
  if (event.key.toLowerCase() === "r") restart();
});
document.addEventListener("keyup", (event) => {
  const name = names[event.key] || names[event.key.toLowerCase()];
  if (name) press(name, false);
});
window.addEventListener("blur", () => [...pressed].forEach((name) => press(name, false)));
document.addEventListener("visibilitychange", ask);
for (const pad of document.querySelectorAll("#pads button")) {
  pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); press(pad.dataset.key, true); });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    pad.addEventListener(end, () => press(pad.dataset.key, false));
  }
  pad.addEventListener("contextmenu", (event) => event.preventDefault());
}
$("controls").addEventListener("submit", async (event) => {
  event.preventDefault();
  const from = $("from").value;
  if (from === "file") {
    const file = $("file").files[0];
    if (!file) { say("Choose a picture or a clip to start from.", true); return; }
    if (file.size > mostBytes) {
      say(`The file has ${(file.size / 2 ** 20).toFixed(0)} MiB; give one of at most ${(mostBytes / 2 ** 20).toFixed(0)}.`, true);
      return;
    }
    running = false;  // nothing is asked for between the name of the file and its bytes
    let bytes;
    try {
      bytes = await file.arrayBuffer();
    } catch (error) {
      say("The file could not be read; choose it again.", true);
      return;
    }
    send({do: "file", name: file.name});
    if (socket.readyState === WebSocket.OPEN) socket.send(bytes);
  }
  running = false;
  waiting = [];
  asked = false;
  say("Loading …");
  send({do: "start", checkpoint: $("checkpoint").value, from, steps: Number($("steps").value), seed: Number($("seed").value)});
});
$("file").addEventListener("change", () => { if ($("file").files.length) $("from").value = "file"; });
$("restart").addEventListener("click", restart);
$("pause").addEventListener("click", () => setPaused(!paused));
$("record").addEventListener("click", () => {
  send({do: "record"});
  $("record").setAttribute("aria-pressed", true);
  say("Recording …");
});
$("save").addEventListener("click", () => {
  $("record").setAttribute("aria-pressed", false);
  send({do: "save"});
});
requestAnimationFrame(draw);
connect();
