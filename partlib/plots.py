"""Figures of the book: photographs, neighbours, regions, signed maps, score sheets, measures. Each function returns its figure."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.patches import Rectangle

from .cam import enlarge
from .regions import to_pixels

PALETTE = sns.color_palette("colorblind")  # told apart with every common kind of colour vision
SIGNED = "PuOr_r"  # orange for, violet against; safe for colour-blind readers, and white is zero
RIGHT, WRONG = PALETTE[2], PALETTE[3]  # a green and a vermilion; frames are dashed too where wrong


def style():
    """The book's look, for a notebook's first cell: fonts, palette, and photographs stored as JPEG."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    sns.set_theme(style="white", palette=PALETTE, rc={"figure.dpi": 90, "savefig.bbox": "tight", "axes.titlesize": 10})
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80, "optimize": True})


def photographs(pictures, titles=None, columns=6, size=1.6):
    """Pictures side by side, `columns` in a row, each `size` inches."""
    pictures = list(pictures)
    if not pictures:
        raise ValueError("no pictures to show")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * size * 1.12), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, picture) in enumerate(zip(axes.flat, pictures)):
        axis.imshow(np.asarray(picture))
        if titles is not None:
            axis.set_title(titles[i], fontsize=9)
    return figure


def neighbours(photos, queries, found, size=1.5):
    """A row for each query: the query, then what was found; a dashed frame where the label is another one.

    Args:
        photos: the set that `queries` and `found` number.
        queries: (m,) numbers; found: (m, k) numbers, best first.
    """
    queries, found = np.atleast_1d(queries), np.atleast_2d(found)
    rows, columns = len(found), found.shape[1] + 1
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * size * 1.12), squeeze=False, layout="constrained")
    for row, query, answers in zip(axes, queries, found):
        for axis, i in zip(row, [query, *answers]):
            axis.imshow(np.asarray(photos[int(i)]))
            axis.set(xticks=[], yticks=[])
            if photos.labels is not None:
                right = photos.labels[i] == photos.labels[query]
                axis.set_title(photos.classes[photos.labels[i]], fontsize=8)
                frame = ("black", "-") if axis is row[0] else (RIGHT, "-") if right else (WRONG, (0, (3, 2)))
                axis.spines[:].set(color=frame[0], linestyle=frame[1], linewidth=2.5, capstyle="butt")
    return figure


def boxes(picture, rectangles, axis=None, titles=None):
    """Rectangles (r, 4), in pixels, on a picture: each in a colour of its own."""
    if axis is None:
        _, axis = plt.subplots(figsize=(3, 3), layout="constrained")
    axis.imshow(np.asarray(picture))
    axis.axis("off")
    for i, (x0, y0, x1, y1) in enumerate(np.asarray(rectangles, dtype=float)):
        axis.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, linewidth=2, edgecolor=PALETTE[i % len(PALETTE)]))
        if titles is not None:
            axis.text(x0, y0, titles[i], fontsize=8, color="white", backgroundcolor=PALETTE[i % len(PALETTE)], va="top")
    return axis.figure


def parts(learnt, regions, photos, count=6, size=1.1):
    """The gallery of learnt parts, a row each: the regions that answer most strongly, of different photographs, cut out.

    Args:
        learnt: `mining.Parts`, as many as there shall be rows. regions: of `photos`, in the same order.
        count: regions a row.
    """
    which, where, _ = learnt.members(regions, count)
    figure, axes = plt.subplots(*which.shape, figsize=(which.shape[1] * size, len(which) * size), squeeze=False, layout="constrained")
    for row, photographs_of, own in zip(axes, which, where):
        for axis, i, r in zip(row, photographs_of, own):
            picture = photos[int(i)]
            x0, y0, x1, y1 = to_pixels(regions.boxes[r], regions.cells, picture.size).tolist()
            axis.imshow(np.asarray(picture.crop((round(x0), round(y0), round(x1), round(y1))).resize((96, 96))))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for part, row in enumerate(axes):
        row[0].set_ylabel(f"part {part}", fontsize=8)
    return figure


def signed_maps(pictures, maps, titles=None, limit=None, columns=4, size=2.2):
    """Signed maps over their pictures, all on one scale: orange is for, violet against, as strongly as it is solid.

    Args:
        pictures: m pictures; maps: m maps (h, w), enlarged to their picture.
        limit: the value drawn in full colour; by default the largest of all maps, so that they compare.
    """
    pictures, maps = list(pictures), list(maps)
    limit = limit or max(float(abs(values).max()) for values in maps) or 1.0
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size + 0.8, rows * size * 1.1), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, picture, values) in enumerate(zip(axes.flat, pictures, maps)):
        values = enlarge(values.detach(), picture.size).numpy()
        axis.imshow(np.asarray(picture.convert("L")), cmap="gray", vmin=-80, vmax=335)  # pale, so that colour stands out
        drawn = axis.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit, alpha=np.clip(np.abs(values) / limit, 0, 1) ** 0.6 * 0.85)
        if titles is not None:
            axis.set_title(titles[i], fontsize=9)
    bar = figure.colorbar(plt.cm.ScalarMappable(drawn.norm, SIGNED), ax=axes, shrink=0.7)
    bar.set_label("adds to the logit, per cell", fontsize=8)
    return figure


def score_sheet(sheet, picture, title=None, count=7):
    """A decision as a sum: the picture with the strongest regions of the largest terms, and bars of these, of all others and the constant.

    Args:
        sheet: a `cam.ScoreSheet`. count: how many parts have a bar of their own, whichever their sign; the last bar is the sum of all.
    """
    largest = sheet.contributions.abs().argsort(descending=True)[:count].sort().values.tolist()
    bars = sheet.contributions[largest].tolist()
    rest = float(sheet.contributions.sum()) - sum(bars)
    left = len(sheet.parts) - len(largest)
    total = "logit" if sheet.against is None else "lead"
    names = [f"part {p}" for p in sheet.parts[largest].tolist()] + [f"{left} others"] * (left > 0) + ["constant", total]
    values = bars + [rest] * (left > 0) + [float(sheet.constant), float(sheet.total)]
    against, for_it = (plt.get_cmap(SIGNED)(place) for place in (0.12, 0.85))
    colour = lambda value: for_it if value > 0 else against

    figure, (left_axis, axis) = plt.subplots(1, 2, figsize=(8, 3.6), width_ratios=(1, 1.15), layout="constrained")
    left_axis.imshow(np.asarray(picture))
    left_axis.set_title(title or "")
    left_axis.axis("off")
    shared = {}  # parts whose strongest region is the same have one box
    for name, value, box in zip(names, bars, sheet.boxes[largest].tolist()):
        shared.setdefault(tuple(box), []).append((name.removeprefix("part "), value))
    shared.pop((0, 0, 0, 0), None)
    for box, own in shared.items():
        x0, y0, x1, y1 = to_pixels(box, sheet.cells, picture.size).tolist()
        edge = colour(sum(value for _, value in own))
        left_axis.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, linewidth=2, edgecolor=edge))
        text = ", ".join(name for name, _ in own)
        va = "bottom" if y0 > 0 else "top"  # at the upper edge, inside the picture
        left_axis.text(x0, y0, text, fontsize=7, color="white", va=va, bbox={"facecolor": edge, "pad": 1, "linewidth": 0})
    axis.barh(names, values, color=[*map(colour, values[:-1]), "0.35"])
    for i, value in enumerate(values):
        side, align = (3, "left") if value >= 0 else (-3, "right")
        axis.annotate(f"{value:+.1f}", (value, i), (side, 0), textcoords="offset points", va="center", ha=align, fontsize=8)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.margins(x=0.16)
    axis.invert_yaxis()
    axis.set_xlabel(f"adds to the {total}")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def cells(picture, values, axis=None, cmap="viridis"):
    """A map (h, w) of a picture, cell by cell beside it or on `axis`: what the numbers are, before any smoothing."""
    if axis is None:
        _, axis = plt.subplots(figsize=(3, 3), layout="constrained")
    axis.imshow(np.asarray(picture.convert("L")), cmap="gray")
    width, height = picture.size
    axis.imshow(np.asarray(values), cmap=cmap, extent=(-0.5, width - 0.5, height - 0.5, -0.5), alpha=0.65, interpolation="nearest")
    axis.axis("off")
    return axis.figure
