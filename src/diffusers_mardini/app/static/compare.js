// Two clips in one picture, with a line between them: sampled on the left, the simple method on the right.
let clips = null, at = 0, last = 0, held = false, wipe = 50;
const find = (name) => element.querySelector(name);
const load = (sources) => Promise.all(sources.map((src) => new Promise((done) => {
  const image = new Image();
  image.onload = () => done(image);
  image.src = src;
})));
const show = async () => {
  const value = props.value;
  find(".compare").hidden = !value || !value.ours;
  if (!value || !value.ours) { clips = null; return; }
  const [ours, simple] = await Promise.all([load(value.ours), load(value.simple)]);
  clips = { ours, simple, fps: value.fps, name: value.name };
  at = 0;
  const canvas = find("canvas");
  canvas.width = 4 * ours[0].width;
  canvas.height = 4 * ours[0].height;
  canvas.setAttribute("aria-label", `Sampled frames on the left, ${value.name} on the right`);
  find("figcaption").textContent = `left: sampled · right: ${value.name}`;
  find(".at").max = ours.length;
};
const draw = (now) => {
  if (!element.isConnected) return;
  requestAnimationFrame(draw);
  if (!clips || !find("canvas")) return;
  if (!held && now - last > 1000 / clips.fps) {
    last = now;
    at = (at + 1) % clips.ours.length;
    find(".at").value = at + 1;
  }
  const canvas = find("canvas"), pen = canvas.getContext("2d"), line = (canvas.width * wipe) / 100;
  pen.drawImage(clips.simple[at], 0, 0, canvas.width, canvas.height);
  pen.save();
  pen.beginPath();
  pen.rect(0, 0, line, canvas.height);
  pen.clip();
  pen.drawImage(clips.ours[at], 0, 0, canvas.width, canvas.height);
  pen.restore();
  pen.fillStyle = "white";
  pen.fillRect(line - 1, 0, 2, canvas.height);
  canvas.dataset.at = at;
};
element.addEventListener("input", (event) => {
  if (event.target.matches(".wipe")) wipe = Number(event.target.value);
  if (event.target.matches(".at")) { held = true; at = Number(event.target.value) - 1; mark(); }
});
const mark = () => {
  find(".hold").setAttribute("aria-pressed", held);
  find(".hold").textContent = held ? "Play" : "Hold";
};
element.addEventListener("click", (event) => {
  if (event.target.matches(".hold")) { held = !held; mark(); }
});
watch("value", show);
show();
requestAnimationFrame(draw);
