"""Find the pictures and labels of a data set, or files of stored predictions, and divide them into shards."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yolo_assigner.audit.structures import Item, Settings, Shard, Source, digest_of

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
PREDICTIONS = (".npz", ".safetensors")


def find_source(data: Path, images: Path | None = None) -> Source:
    """Find the pictures of a data set.

    Args:
        data: A folder with ``images/`` and ``labels/``, or with label files beside the pictures; or a COCO json.
        images: Folder of the pictures of a COCO json; None: the folder ``images`` beside it, or its own.

    Raises:
        ValueError: There is no such file or folder, it has no pictures, or the json is not COCO's.
    """
    if data.is_dir():
        if images is not None:
            raise ValueError(f"--images is {images}, but pictures are looked for in {data}; leave --images out")
        return _yolo_source(data.absolute())
    if not data.is_file():
        raise ValueError(f"--data is {data}, which does not exist; give a folder with images/ and labels/, or a json")
    return _coco_source(data.absolute(), images)


def find_predictions(folder: Path, images: Path | None = None) -> Source:
    """Find files of stored predictions.

    Args:
        folder: Holds ``.npz`` and ``.safetensors`` files, also in folders below.
        images: Folder of the pictures, for the report; None: it is without.

    Raises:
        ValueError: There are none.
    """
    paths = _files(folder, PREDICTIONS)
    if not paths:
        raise ValueError(f"{folder} has no files {' or '.join(PREDICTIONS)}; give a folder with stored predictions")
    items = tuple(Item(_name(path, folder), str(path.absolute())) for path in paths)
    return Source(items, images, stored=True)


def plan_shards(source: Source, settings: Settings, folder: Path, size: int) -> Iterator[Shard]:
    """Divide a data set into shards, one at a time.

    Args:
        source: The data set.
        settings: How shards are computed.
        folder: Where their files are written.
        size: Pictures of a shard; a file of stored predictions is a shard of its own.
    """
    size = 1 if source.stored else size
    count = shard_count(source, size)
    for number in range(count):
        items = source.items[number * size : (number + 1) * size]
        target = str(folder / f"{number:05d}-of-{count:05d}.parquet")
        shard = Shard(target, items, source.stored, source.categories, settings, "")
        yield shard._replace(digest=digest_of(shard))


def plan_target_files(source: Source, settings: Settings, folder: Path) -> Iterator[Shard]:
    """Make a shard of each file of stored predictions, whose targets get its name and ``.parquet``.

    Args:
        source: Stored predictions.
        settings: How shards are computed.
        folder: Where their files are written, in folders below as those of the predictions.
    """
    for item in source.items:
        shard = Shard(str(folder / f"{item.name}.parquet"), (item,), source.stored, (), settings, "")
        yield shard._replace(digest=digest_of(shard))


def shard_count(source: Source, size: int) -> int:
    """Return the number of shards that :func:`plan_shards` gives."""
    return -(-len(source.items) // (1 if source.stored else size))


def find_picture(root: Path | None, name: str) -> Path | None:
    """Find a picture by its name in the table, with or without a suffix; None: it is not there."""
    if root is None:
        return None
    paths = [root / name, *(root / f"{name}{suffix}" for suffix in PICTURES)]
    return next((path for path in paths if path.suffix.lower() in PICTURES and path.is_file()), None)


def file_digest(path: Path) -> str:
    """Return the digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _yolo_source(data: Path) -> Source:
    root = data / "images" if (data / "images").is_dir() else data
    labels = data / "labels" if root != data else data
    paths = _files(root, PICTURES)
    if not paths:
        raise ValueError(f"{root} has no pictures ({', '.join(PICTURES)}); give a folder with images/ and labels/")
    items = (
        Item(_name(path, root), str(path), str((labels / path.relative_to(root)).with_suffix(".txt"))) for path in paths
    )
    return Source(tuple(items), root)


def _coco_source(path: Path, images: Path | None) -> Source:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pictures, categories = content["images"], sorted(content["categories"], key=lambda one: int(one["id"]))
        per_image: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            per_image[annotation["image_id"]].append(_needed(annotation))
        beside = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
        root = images.absolute() if images is not None else beside
        items = tuple(
            Item(one["file_name"], str(root / one["file_name"]), annotations=tuple(per_image[one["id"]]))
            for one in pictures
        )
        names = tuple(str(one.get("name", one["id"])) for one in categories)
        source = Source(items, root, categories=tuple(int(one["id"]) for one in categories), class_names=names)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a COCO json of images, annotations and categories ({type(error).__name__}: {error}); "
            "give one, or a folder with images/ and labels/"
        ) from error
    if not items:
        raise ValueError(f"{path} has no images; give a COCO json with some")
    return source


def _needed(annotation: dict[str, Any]) -> dict[str, Any]:
    """Leave out outlines, which take most of the memory."""
    return {key: annotation[key] for key in ("bbox", "category_id", "iscrowd") if key in annotation}


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one that exists")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
