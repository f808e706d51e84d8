"""Figures of the book: photographs, neighbours, regions, signed maps, sheets of decisions, matches and classes. Each function returns its figure."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.patches import Rectangle

from .cam import enlarge, strongest
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


def signed_maps(pictures, maps, titles=None, limit=None, columns=4, size=2.2, of="logit"):
    """Signed maps over their pictures, all on one scale: orange is for, violet against, as strongly as it is solid.

    Args:
        pictures: m pictures; maps: m maps (h, w), enlarged to their picture.
        limit: the value drawn in full colour; by default the largest of all maps, so that they compare.
        of: what they add up to.
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
    bar.set_label(f"adds to the {of}, per cell", fontsize=8)
    return figure


def score_sheet(sheet, picture, title=None, count=7):
    """A decision as a sum: the picture with the strongest regions of the largest terms, and bars of these, of all others and the constant.

    Args:
        sheet: a `cam.ScoreSheet`. count: how many parts have a bar of their own, whichever their sign; the last bar is the sum of all.
    """
    largest, values, left = _largest(sheet.contributions, count)
    total = "logit" if sheet.against is None else "lead"
    numbers = [str(p) for p in sheet.parts[largest].tolist()]
    names = [f"part {p}" for p in numbers] + left + ["constant", total]
    figure, (left_axis, axis) = plt.subplots(1, 2, figsize=(8, 3.6), width_ratios=(1, 1.15), layout="constrained")
    _where(left_axis, picture, numbers, values, sheet.boxes[largest].tolist(), sheet.cells)
    left_axis.set_title(title or "")
    _signed_bars(axis, names, [*values, float(sheet.constant), float(sheet.total)], 1)
    axis.set_xlabel(f"adds to the {total}")
    return figure


def match_sheet(sheet, pictures, titles=("", ""), count=7, total="similarity"):
    """A match as a sum: the two pictures with the regions of the largest terms, and bars of these, of all others, and the similarity.

    Args:
        sheet: a `cam.MatchSheet`. pictures: the two, in its order. count: how many terms have a bar of their own. total: what they add up to;
            for the difference of two sheets, say, "lead".
    """
    largest, values, left = _largest(sheet.shares, count)
    names = [sheet.names[i] for i in largest]
    figure, (*both, axis) = plt.subplots(1, 3, figsize=(9.5, 3.3), width_ratios=(1, 1, 1.1), layout="constrained")
    short = [name.removeprefix("part ").replace("landmark ", "L").replace("whole picture", "all") for name in names]
    for drawn, picture, boxes_of, cells_of, title in zip(both, pictures, sheet.boxes[:, largest].tolist(), sheet.cells, titles):
        _where(drawn, picture, short, values, boxes_of, cells_of)
        drawn.set_title(title)
    _signed_bars(axis, names + left + [total], [*values, float(sheet.total)], 2)
    axis.set_xlabel(f"adds to the {total}")
    return figure


def category_sheet(category, c, head, maps, photos, count=6, columns=6):
    """What sets a class apart: of the parts with the largest terms, the strongest regions in photographs of the class, and what each adds.

    Args:
        category: a `cam.CategoryParts`; its `minus_rest` is drawn. maps: (m, d, h, w) of photographs of the class, `photos`, in the same order.
    """
    parts = category.minus_rest[c].abs().argsort(descending=True)[:count].tolist()
    bags, found = head.bag(maps), strongest(head, maps)
    figure, axes = plt.subplots(count, columns + 1, figsize=(columns + 3.5, count), width_ratios=[1] * columns + [3], layout="constrained")
    for line, p in zip(axes, parts):
        best = bags[:, p].argsort(descending=True)[:columns].tolist()
        for axis, i in zip(line, best):
            picture = photos[i]
            corners = to_pixels(found[i, p], maps.shape[2:], picture.size).round().int().tolist()
            axis.imshow(np.asarray(picture.crop(corners).resize((64, 64))) if corners[2] > corners[0] else np.full((64, 64, 3), 255))
        for axis in line:
            axis.axis("off")
    grid = axes[0, 0].get_gridspec()
    axis = figure.add_subplot(grid[:, -1])
    _signed_bars(axis, [f"part {p}" for p in parts], category.minus_rest[c][parts].tolist(), 1, last=None)
    axis.set_xlabel("adds to the class, less what it adds elsewhere")
    return figure


def _largest(terms, count):
    """Which terms have bars of their own, in the order of the sheet; these and the sum of all others; a name for the others."""
    largest = terms.abs().argsort(descending=True)[:count].sort().values.tolist()
    values, left = terms[largest].tolist(), len(terms) - len(largest)
    return largest, values + [float(terms.sum()) - sum(values)] * (left > 0), [f"{left} others"] * (left > 0)


def _sign_colour(value):
    return plt.get_cmap(SIGNED)(0.85 if value > 0 else 0.12)


def _where(axis, picture, names, values, boxes, cells):
    """The picture with named boxes in the colour of their terms' sign; terms whose region is the same have one box."""
    axis.imshow(np.asarray(picture))
    axis.axis("off")
    shared = {}
    for name, value, box in zip(names, values, boxes):
        shared.setdefault(tuple(box), []).append((name, value))
    shared.pop((0, 0, 0, 0), None)
    for box, own in shared.items():
        x0, y0, x1, y1 = to_pixels(box, cells, picture.size).tolist()
        edge = _sign_colour(sum(value for _, value in own))
        axis.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, linewidth=2, edgecolor=edge))
        va = "bottom" if y0 > 0 else "top"  # at the upper edge, inside the picture
        text = ", ".join(name for name, _ in own)
        axis.text(x0, y0, text, fontsize=7, color="white", va=va, bbox={"facecolor": edge, "pad": 1, "linewidth": 0})


def _signed_bars(axis, names, values, digits, last="0.35"):
    """Bars from above, in the colour of their sign; the last one, the sum, in a colour of its own."""
    colours = [*map(_sign_colour, values)]
    axis.barh(names, values, color=colours if last is None else [*colours[:-1], last])
    for i, value in enumerate(values):
        side, align = (3, "left") if value >= 0 else (-3, "right")
        axis.annotate(f"{value:+.{digits}f}", (value, i), (side, 0), textcoords="offset points", va="center", ha=align, fontsize=8)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.margins(x=0.16)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)


def cells(picture, values, axis=None, cmap="viridis"):
    """A map (h, w) of a picture, cell by cell beside it or on `axis`: what the numbers are, before any smoothing."""
    if axis is None:
        _, axis = plt.subplots(figsize=(3, 3), layout="constrained")
    axis.imshow(np.asarray(picture.convert("L")), cmap="gray")
    width, height = picture.size
    axis.imshow(np.asarray(values), cmap=cmap, extent=(-0.5, width - 0.5, height - 0.5, -0.5), alpha=0.65, interpolation="nearest")
    axis.axis("off")
    return axis.figure
