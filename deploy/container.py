"""Runs an image as Docker would, with the same runtime: not root, no capabilities, and a read-only root."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# The only place that can be written.
TEMPORARY = {
    "destination": "/tmp",  # noqa: S108
    "type": "tmpfs",
    "source": "tmpfs",
    "options": ["nosuid", "nodev", "mode=1777"],
}


class Image(NamedTuple):
    """An image and where its files are.

    Attributes:
        files: Folder with them.
        config: As :meth:`deploy.image_build.Store.config` returns it.
    """

    files: Path
    config: Mapping[str, Any]

    @property
    def user(self) -> tuple[int, int]:
        """User and group."""
        user, group = self.config["User"].split(":")
        return int(user), int(group)


class Container:
    """One container. Its process is started at once.

    Args:
        image: What to run.
        folder: Empty, for what the runtime needs.
        words: In place of the image's own command.
        environment: Over the image's own.
        volumes: Folders of this machine by where they are mounted.
        network: Whether it shares this machine's network; else it has none.
    """

    def __init__(
        self,
        image: Image,
        folder: Path,
        words: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        volumes: Mapping[str, Path] | None = None,
        network: bool = False,
    ) -> None:
        folder.mkdir()
        self.log = folder / "log"
        self._runc = ("runc", "--root", str(folder / "state"))
        self._name = folder.name
        subprocess.run((*self._runc, "spec", "--bundle", str(folder)), check=True)  # noqa: S603
        file = folder / "config.json"
        specification = json.loads(file.read_text(encoding="utf-8"))
        _narrow(specification, image, words or image.config["Cmd"], environment or {}, volumes or {})
        if network:
            namespaces = specification["linux"]["namespaces"]
            specification["linux"]["namespaces"] = [space for space in namespaces if space["type"] != "network"]
        file.write_text(json.dumps(specification), encoding="utf-8")
        with self.log.open("w") as log:
            command = (*self._runc, "run", "--bundle", str(folder), self._name)
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603

    @property
    def running(self) -> bool:
        """Whether its process is."""
        return self._process.poll() is None

    def inside(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program in it, as the image's user."""
        command = (*self._runc, "exec", self._name, *words)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603

    def signal(self, name: str) -> None:
        """Send its first process a signal, for example ``TERM``."""
        subprocess.run((*self._runc, "kill", self._name, name), check=True)  # noqa: S603

    def wait(self, seconds: float) -> int:
        """Exit code of its first process.

        Raises:
            TimeoutExpired: It runs on.
        """
        return self._process.wait(seconds)

    def end(self) -> None:
        """Kill it, if it runs."""
        if self.running:
            self.signal("KILL")
            self.wait(10)


def _narrow(
    specification: dict[str, Any],
    image: Image,
    words: Sequence[str],
    environment: Mapping[str, str],
    volumes: Mapping[str, Path],
) -> None:
    """From the runtime's defaults to this image, without what it can do without."""
    own = dict(entry.split("=", 1) for entry in image.config["Env"])
    user, group = image.user
    specification["process"] |= {
        "terminal": False,
        "user": {"uid": user, "gid": group},
        "args": [*image.config["Entrypoint"], *words],
        "env": [f"{name}={value}" for name, value in {**own, **environment}.items()],
        "cwd": image.config["WorkingDir"] or "/",
        "capabilities": {},
        "noNewPrivileges": True,
    }
    specification["root"] = {"path": str(image.files), "readonly": True}
    mounts = [mount for mount in specification["mounts"] if mount["type"] != "cgroup"]
    mounts.append(TEMPORARY)
    mounts += [
        {"destination": inside, "type": "bind", "source": str(outside), "options": ["bind", "rw"]}
        for inside, outside in volumes.items()
    ]
    specification["mounts"] = mounts
