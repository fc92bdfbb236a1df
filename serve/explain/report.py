"""The inspector with its data inside: one HTML file that opens without a server.

The modules of the page become one script: in the order in which they import each other, without ``import`` and
``export``. Their top-level names are distinct.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

STATIC = Path(__file__).parents[1] / "http" / "static" / "inspector"
# Each after those that it imports.
MODULES = ("model.js", "picture.js", "request.js", "table.js", "page.js")
IMPORT = re.compile(r"^import \{[^}]*\} from \"\./[\w.]+\";\n", re.MULTILINE)
EXPORT = re.compile(r"^export (?=async function |function |class |const )", re.MULTILINE)
LINK, SCRIPT, BODY_END = (
    '<link rel="stylesheet" href="inspector/style.css">',
    '<script type="module" src="inspector/page.js"></script>',
    "</body>",
)
# The page loads nothing at all.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif"}


class Photo(NamedTuple):
    """A picture file.

    Attributes:
        name: Its name.
        content: Its bytes.
    """

    name: str
    content: bytes


def read_photos(paths: Sequence[Path]) -> list[Photo]:
    """Read picture files as they are.

    Raises:
        OSError: One cannot be read.
        ValueError: One is of a type that not every browser shows.
    """
    for path in paths:
        if path.suffix.lower() not in TYPES:
            raise ValueError(f"{path} is no picture that browsers show; give one of {', '.join(TYPES)}")
    return [Photo(path.name, path.read_bytes()) for path in paths]


def match_photos(photos: Sequence[Photo], names: Sequence[str], images: int) -> list[Photo | None]:
    """The picture of each image: by the image's name where one fits, else in the order given.

    Args:
        photos: The pictures.
        names: Names of the images, with or without an ending; may be empty.
        images: B.

    Raises:
        ValueError: There are more pictures than images.
    """
    if len(photos) > images:
        raise ValueError(f"{len(photos)} pictures are given, but the request has {images} images; leave some out")
    stems = {Path(photo.name).stem: photo for photo in photos}
    named = [stems.get(Path(name).stem) for name in names]
    if any(named):
        return named
    return [*photos, *[None] * (images - len(photos))]


def write_report(document: Mapping[str, Any], title: str, names: Sequence[str], photos: Sequence[Photo | None]) -> str:
    """Write the page.

    Args:
        document: The explanation, as plain types.
        title: What is explained.
        names: Names of the images; may be empty.
        photos: The picture of each image; None: there is none.

    Returns:
        The HTML.
    """
    data = {"document": document, "title": title, "names": names, "pictures": [_picture(photo) for photo in photos]}
    # In a script nothing may look like its end.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    embedded = f'<script type="application/json" id="explanation">{text}</script>'
    style = f"<style>\n{_read('style.css')}</style>"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    page = _read("index.html")
    for place, content in (
        (LINK, f"{policy}\n{style}"),
        (SCRIPT, ""),
        (BODY_END, f'{embedded}\n<script type="module">\n{join_modules()}</script>\n{BODY_END}'),
    ):
        page = page.replace(place, content)
    return page


def join_modules() -> str:
    """The page's modules as one script."""
    return "\n".join(EXPORT.sub("", IMPORT.sub("", _read(name))) for name in MODULES)


def _picture(photo: Photo | None) -> dict[str, str] | None:
    if photo is None:
        return None
    kind = TYPES[Path(photo.name).suffix.lower()]
    return {"type": kind, "base64": base64.b64encode(photo.content).decode()}


def _read(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")
