"""Figures: the confusion matrix and the precision-recall curves of an evaluation, as PNG.

Matplotlib's object interface with its Agg canvas: pyplot keeps figures and a backend for the whole process.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from unified_tracker.predictions._curves import RECALLS, Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_WITH_NUMBERS: Final = 25  # classes up to which a cell has room for its count
MOST_IN_MATRIX: Final = 100
MOST_CONFUSED: Final = 40
MOST_CURVES: Final = 10
LONGEST_NAME: Final = 24
DPI: Final = 100
FAMILIES: Final[tuple[str, ...]] = (
    "DejaVu Sans",  # comes with Matplotlib: Latin, Greek, Cyrillic, Arabic and more
    *(
        "Noto Sans CJK JP",
        "Noto Sans CJK SC",
        "WenQuanYi Zen Hei",
        "Hiragino Sans",
        "Microsoft YaHei",
        "Arial Unicode MS",
    ),
)
_DRAWING = threading.Lock()  # Matplotlib's fonts are shared by all figures; lanes draw in threads


def confusion_figure(
    confusion: npt.NDArray[np.int64], classes: Sequence[str], *, iou: float, threshold: float
) -> bytes:
    """Draw a confusion matrix; the colour is the share of a row.

    With more than 100 classes the 40 that are confused most stand for themselves, the others together.

    Args:
        confusion: (k + 1, k + 1) counts, rows true, columns predicted, the last of each the background.
        classes: k names; anything may be in them.
        iou, threshold: At which it was counted, for the title.

    Returns:
        A PNG, 400 to 1,700 pixels wide.
    """
    from matplotlib.colors import PowerNorm

    title = f"Confusion at IoU {iou:g} and score {threshold:g}"
    names = [_name(name, label) for label, name in enumerate(classes)]
    if len(names) > MOST_IN_MATRIX:
        title += f": the {MOST_CONFUSED} of {len(names):,} classes that are confused most"
        confusion, names = _most_confused(confusion, names)
    count = len(confusion)
    # Sizes are fixed here and the rest is cut off at last: no layout leaves cells of one size to names of any length.
    side = count * float(np.clip(8 / count, 0.17, 0.75))  # inches
    figure = _figure(side + 1, side)
    axes = figure.add_axes((0, 0, side / (side + 1), 1))
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    # Square roots: the few that are taken for something else are what one looks for.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    height = min(1, 4 / side)
    place = figure.add_axes(((side + 0.2) / (side + 1), (1 - height) / 2, 0.2 / (side + 1), height))
    bar = figure.colorbar(image, cax=place, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "5 %", "20 %", "50 %", "100 %"])
    bar.set_label("share of the row")
    size = 10 if count <= MOST_WITH_NUMBERS + 1 else max(6.5, 10 - count / 16)
    _name_axes(axes, names, size)
    axes.set_title(title)
    if count <= MOST_WITH_NUMBERS + 1:
        for row, column in np.argwhere(confusion > 0).tolist():
            number = int(confusion[row, column])
            color = "white" if shares[row, column] > 0.35 else "black"
            text = f"{number:,}" if number < 10_000 else f"{number / 1000:,.0f}k"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8 if count > 8 else 10)
    return _png(figure)


def curves_figure(curves: Curves, classes: Sequence[str]) -> bytes:
    """Draw precision over recall: each class at IoU 0.5, and the means at IoU 0.5 and over COCO's ten thresholds.

    With more than 10 classes the 10 with the lowest AP50 have a colour and a name, the others are grey.

    Args:
        curves: At COCO's thresholds.
        classes: Names of all classes; anything may be in them.

    Returns:
        A PNG, about 1,000 pixels wide.
    """
    figure = _figure(7.4, 5.6)
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(color="0.9")
    axes.set_title("Precision and recall at IoU 0.5")
    known = ~np.isnan(curves.precision[0, 0])
    if not known.any():
        axes.text(0.5, 0.5, "no objects", ha="center", va="center", color="0.4", fontsize=14)
        return _png(figure)
    precision, labels = curves.precision[:, :, known], np.asarray(curves.labels)[known]
    at_50, mean = precision[curves.ious.index(0.5)], precision.mean(0)
    chosen = np.argsort(at_50.mean(0), kind="stable")
    chosen = chosen[:MOST_CURVES] if len(labels) > MOST_CURVES else np.arange(len(labels))
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    axes.plot(RECALLS, at_50[:, rest], color="0.75", linewidth=0.6, alpha=max(0.15, min(1, 30 / (len(rest) + 1))))
    lines, words = [], []
    if len(labels) > 1:
        lines += axes.plot(RECALLS, at_50.mean(1), color="black", linewidth=2.2, zorder=3)
        words.append(f"{at_50.mean():.3f}  all classes")
    lines += axes.plot(RECALLS, mean.mean(1), color="black", linewidth=1.6, linestyle="--", zorder=3)
    words.append(f"{mean.mean():.3f}  the same, IoU 0.5 to 0.95")
    for place, index in enumerate(chosen.tolist()):
        lines += axes.plot(RECALLS, at_50[:, index], color=f"C{place}", linewidth=1.3)
        name = _name(classes[labels[index]], int(labels[index]))
        words.append(f"{at_50[:, index].mean():.3f}  {name}")
    title = "AP" + (f", the lowest {MOST_CURVES} of {len(labels):,} classes" if len(rest) else "")
    _legend(axes, lines, words, title)
    return _png(figure)


def _name_axes(axes: Axes, names: Sequence[str], size: float) -> None:
    """Classes and background at the cells of a matrix, and lines between them."""
    places = np.arange(len(names) + 1)
    narrow = max(map(len, [*names, "missed"])) > 5 or len(names) > 5
    axes.set_xticks(places, [*names, "missed"], rotation=90 if narrow else 0, fontsize=size, **_text())
    axes.set_yticks(places, [*names, "background"], fontsize=size, **_text())
    axes.set_xticks(places[:-1] + 0.5, minor=True)
    axes.set_yticks(places[:-1] + 0.5, minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


def _legend(axes: Axes, lines: list[Any], words: list[str], title: str) -> None:
    """Beside the axes. Names come in afterwards: a legend leaves out what begins with an underscore."""
    placeholders = ["x"] * len(lines)
    legend = axes.legend(
        lines, placeholders, title=title, alignment="left", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False
    )
    for text, word in zip(legend.get_texts(), words, strict=True):
        text.set(text=word, **_text())


def _most_confused(confusion: npt.NDArray[np.int64], names: list[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The classes that are taken for others, or others for them, most often; the rest summed up as one."""
    classes = len(names)
    among = confusion[:classes, :classes]
    mistakes = among.sum(0) + among.sum(1) - 2 * among.diagonal()
    wrong = mistakes + confusion[classes, :classes] + confusion[:classes, classes]
    chosen = np.sort(np.lexsort((np.arange(classes), -wrong, -mistakes))[:MOST_CONFUSED])
    group = np.full(classes + 1, MOST_CONFUSED)
    group[chosen] = np.arange(MOST_CONFUSED)
    group[classes] = MOST_CONFUSED + 1
    summed = np.zeros((MOST_CONFUSED + 2, MOST_CONFUSED + 2), np.int64)
    rows, columns = np.nonzero(confusion)
    np.add.at(summed, (group[rows], group[columns]), confusion[rows, columns])
    return summed, [*(names[label] for label in chosen), f"{classes - MOST_CONFUSED:,} others"]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # becomes the canvas of the figure
    content = io.BytesIO()
    with _DRAWING:
        figure.savefig(content, format="png", bbox_inches="tight", pad_inches=0.1)
    return content.getvalue()


def _name(name: str, label: int) -> str:
    """One line that fits; with its label where the font lacks a character, so that it can be told from others."""
    _, characters = _fonts()
    line = " ".join(name.split())
    drawn = "".join(each if ord(each) in characters else "□" for each in line)
    short = drawn if len(drawn) <= LONGEST_NAME else drawn[: LONGEST_NAME - 1] + "…"
    return short if drawn == line else f"{short} #{label}"


def _text() -> dict[str, Any]:
    """How a name is drawn: "$" is a dollar, and what the first font lacks another one may have."""
    families, _ = _fonts()
    return {"parse_math": False, "usetex": False, "fontfamily": families}


@functools.cache
def _fonts() -> tuple[list[str], frozenset[int]]:
    """Families that are installed, and the characters that they have."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    installed = {font.name: font.fname for font in font_manager.fontManager.ttflist if font.name in FAMILIES}
    families = [name for name in FAMILIES if name in installed]
    return families, frozenset(code for name in families for code in FT2Font(installed[name]).get_charmap())
