readDocument().then((shown) => {
  const app = document.getElementById("app");
  app.replaceChildren(...shown.images.map((image) => {
    const line = document.createElement("p");
    line.textContent = image.name;
    return line;
  }));
});
