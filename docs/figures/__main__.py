"""Write every figure in both colour schemes to `docs/images/figures`."""

from . import FOLDER, figures


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in figures().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"wrote docs/images/figures/{name}")
