"""The report: one HTML file with the counts and the worst objects, which opens without a server or another host."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from yolo_assigner.audit.pictures import PICTURE_ERRORS
from yolo_assigner.audit.sources import find_picture
from yolo_assigner.audit.summary import REASONS, Summary
from yolo_loss.explain.reasons import describe_flags

THUMBNAIL = 192  # pixels
AROUND = 3.0  # a thumbnail's side, in sides of the object
LEAST_CROP = 48  # pixels of the picture
MOST_BAD = 200  # files that the page lists
OUTLINE = (255, 64, 64)

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d5d8dc, #3b4048); --soft: light-dark(#f3f4f6, #22262c); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem .25rem 0; text-align: right; }
th:first-child, td:first-child, .words :is(th, td) { text-align: left; }
.wide { overflow-x: auto; }
ol { list-style: none; padding: 0; display: grid; gap: 1rem; }
ol { grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
ol li { background: var(--soft); border-radius: .5rem; display: flex; gap: .75rem; padding: .75rem; }
ol li img { flex: none; height: 8rem; width: 8rem; object-fit: contain; }
ol li div { min-width: 0; overflow-wrap: anywhere; } li p { margin: .25rem 0; }
.remedy { opacity: .8; }
"""


def render(summary: Summary, worst: Sequence[Mapping[str, Any]], root: Path | None) -> str:
    """Write the report.

    Args:
        summary: The counts.
        worst: Rows to show, the worst first.
        root: Folder of the pictures; None: no thumbnails.

    Returns:
        The page.
    """
    parts = [
        _head(summary),
        _help(summary),
        _reasons("Reasons by size", "side, pixels", summary.by_size),
        _reasons("Reasons by level", "stride", summary.by_level),
        _reasons("Reasons by class", "class", summary.by_class),
        _candidates(summary),
        _worst(worst, root),
        _bad(summary),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Audit of a data set</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


def thumbnail(path: Path, row: Mapping[str, Any]) -> str | None:
    """Draw a row's object with what surrounds it.

    Args:
        path: The picture.
        row: Of the table.

    Returns:
        A JPEG as a data URL; None where the picture cannot be read, or the box has no place in it.
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except PICTURE_ERRORS:
        return None
    x, y, w, h = (float(row[name]) for name in ("label_x", "label_y", "label_w", "label_h"))
    if not all(math.isfinite(number) for number in (x, y, w, h)):
        return None
    x, w, y, h = x * picture.width, w * picture.width, y * picture.height, h * picture.height
    side = max(AROUND * max(w, h), LEAST_CROP)
    left, top, scale = x - side / 2, y - side / 2, THUMBNAIL / side
    crop = picture.transform(
        (THUMBNAIL, THUMBNAIL),
        Image.Transform.AFFINE,
        (1 / scale, 0, left, 0, 1 / scale, top),
        Image.Resampling.BILINEAR,
    )
    corners = [(corner - low) * scale for corner, low in zip(_corners(x, y, w, h), (left, top, left, top), strict=True)]
    ImageDraw.Draw(crop).rectangle(corners, outline=OUTLINE, width=2)
    written = io.BytesIO()
    crop.save(written, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"


def _corners(x: float, y: float, w: float, h: float) -> list[float]:
    return [x - abs(w) / 2, y - abs(h) / 2, x + abs(w) / 2, y + abs(h) / 2]


def _head(summary: Summary) -> str:
    learned = summary.reasons.get("assigned", 0)
    share = f" ({100 * learned / summary.ground_truths:.1f} %)" if summary.ground_truths else ""
    rows = [
        ("pictures", f"{summary.images:,}"),
        ("pictures without labels", f"{summary.unlabelled:,}"),
        ("files that cannot be used", f"{len(summary.bad):,}"),
        ("objects", f"{summary.ground_truths:,}"),
        ("objects that anchors learn", f"{learned:,}{share}"),
        *((f"not learned: {word}", f"{count:,}") for word, count in summary.reasons.items() if word != "assigned"),
        *((f"flagged: {word}", f"{count:,}") for word, count in summary.flags.items()),
        (
            "learned objects beyond reg_max",
            f"{100 * summary.clipped_boxes:.1f} % ({100 * summary.clipped_sides:.1f} % of their sides)",
        ),
    ]
    parameters = {name: value for name, value in summary.parameters.items() if name != "gains" and value is not None}
    used = ", ".join(f"{name} {_shown(value)}" for name, value in parameters.items())
    return f"<h1>Audit of a data set</h1>{_table((), rows)}<p>With {escape(used or 'no picture at all')}.</p>"


def _help(summary: Summary) -> str:
    help_, tried = summary.help, summary.tried
    if not tried:
        return ""
    without = f"{help_.without_candidate:,}"
    rows = [
        (
            f"min_box_side {tried['min_box_side']:g}",
            f"{help_.side_gained:,} of {help_.unassigned:,} objects that are not learned get anchors, "
            f"{help_.side_lost:,} lose theirs (same predictions, assigned again)",
        ),
        (f"input of {tried['imgsz']:g} pixels", f"{help_.larger:,} of {without} objects without a candidate get some"),
        (
            f"a further level of stride {tried['stride']:g}",
            f"{help_.finer:,} of {without} objects without a candidate get some",
        ),
        *(
            (f"min_box_side {side}", f"{count:,} of {without} objects without a candidate get some")
            for side, count in help_.by_side.items()
            if help_.without_candidate
        ),
    ]
    return f"<h2>What would help</h2>{_table(('change', 'effect'), rows, words=True)}"


def _reasons(title: str, first: str, groups: Mapping[str, Mapping[str, int]]) -> str:
    used = [reason for reason in REASONS if any(counts.get(reason) for counts in groups.values())]
    rows = [(name, *(f"{counts.get(reason, 0):,}" for reason in used)) for name, counts in groups.items()]
    return f"<h2>{title}</h2>{_table((first, *used), rows)}"


def _candidates(summary: Summary) -> str:
    strides = [f"stride {stride:g}" for stride in summary.parameters.get("strides", ())]
    rows = [
        (size, f"{found.boxes:,}", f"{found.without:,}", f"{found.mean:.1f}", *(f"{n:.1f}" for n in found.per_level))
        for size, found in summary.candidates.items()
    ]
    head = ("side, pixels", "objects", "without", "candidates of one", *strides)
    return f"<h2>Candidates by size</h2>{_table(head, rows)}"


def _worst(worst: Sequence[Mapping[str, Any]], root: Path | None) -> str:
    items = "\n".join(_item(row, root) for row in worst)
    return f"<h2>The worst first</h2><ol>{items}</ol>" if worst else ""


def _item(row: Mapping[str, Any], root: Path | None) -> str:
    path = find_picture(root, row["image"])
    data = thumbnail(path, row) if path else None
    place = f"object {row['slot']} of {row['image']}"
    drawn = f'<img src="{data}" alt="{escape(place, quote=True)}">' if data else ""
    size = f"{row['x2'] - row['x1']:.1f} x {row['y2'] - row['y1']:.1f} pixels"
    duplicate = -1 if row["duplicate_of"] is None else row["duplicate_of"]
    flags = describe_flags(clipped_share=row["clipped_share"], duplicate_of=duplicate, weak=row["weak"])
    texts = [(row["sentence"], row["remedy"]), *flags]
    words = "".join(
        f"<p>{escape(sentence)}</p>" + (f'<p class="remedy">{escape(remedy)}</p>' if remedy else "")
        for sentence, remedy in texts
    )
    title = f"<strong>{escape(row['reason'])}</strong>, class {row['label']}, {size}, {escape(place)}"
    return f"<li>{drawn}<div>{title}{words}</div></li>"


def _bad(summary: Summary) -> str:
    if not summary.bad:
        return ""
    rows = [(bad.name, bad.fault) for bad in summary.bad[:MOST_BAD]]
    more = len(summary.bad) - len(rows)
    rest = f"<p>And {more:,} more, in summary.json.</p>" if more else ""
    return f"<h2>Files that cannot be used</h2>{_table(('file', 'fault'), rows, words=True)}{rest}"


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> str:
    """A table, its columns but the first to the right, or all to the left where they are words."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    first = f"<tr>{cells}</tr>" if cells else ""
    return f'<div class="wide{" words" if words else ""}"><table>{first}{body}</table></div>'


def _shown(value: Any) -> str:
    return " ".join(f"{one:g}" for one in value) if isinstance(value, list) else str(value)
