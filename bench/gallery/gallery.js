// While a picture is held down, the uncached one is in its place.
for (const picture of document.querySelectorAll("img.candidate")) {
  const own = picture.src;
  const uncached = document.getElementById(picture.dataset.uncached).src;
  picture.addEventListener("pointerdown", () => { picture.src = uncached; });
  for (const end of ["pointerup", "pointerleave"]) {
    picture.addEventListener(end, () => { picture.src = own; });
  }
}
