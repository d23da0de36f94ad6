// The strip of numbered places: drop a picture onto one, choose one with the keyboard, or take one off.
const give = async (place, file) => {
  try {
    const { path } = await upload(file);
    trigger("upload", { place, path });
  } catch (error) {
    trigger("upload", { place, path: "", problem: String(error.message || error) });
  }
};
const placeOf = (target) => {
  const place = target.closest && target.closest("[data-place]");
  return place && element.contains(place) ? place : null;
};
element.addEventListener("dragover", (event) => {
  const place = placeOf(event.target);
  if (place) { event.preventDefault(); place.classList.add("over"); }
});
element.addEventListener("dragleave", (event) => {
  const place = placeOf(event.target);
  if (place && !place.contains(event.relatedTarget)) place.classList.remove("over");
});
element.addEventListener("drop", (event) => {
  const place = placeOf(event.target);
  if (!place) return;
  event.preventDefault();
  place.classList.remove("over");
  if (event.dataTransfer.files.length) give(Number(place.dataset.place), event.dataTransfer.files[0]);
});
element.addEventListener("change", (event) => {
  const place = placeOf(event.target);
  if (!place || !event.target.files || !event.target.files.length) return;
  const file = event.target.files[0];
  event.target.value = "";  // so that the same file can be chosen again
  give(Number(place.dataset.place), file);
});
element.addEventListener("click", (event) => {
  const button = event.target.closest && event.target.closest("button.off");
  if (button) trigger("clear", { place: Number(placeOf(button).dataset.place) });
});
