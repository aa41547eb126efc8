# SPDX-License-Identifier: Apache-2.0
"""TensorRT's headers: the only part of an NVIDIA SDK that a build of the plugins needs.

They are looked for in the folder that the user names, in the per-user cache, and in the system. `fetch` fills the cache
from the public repository with git: a pinned commit, and of it only the folder `include`, whose digest is checked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orinkit.errors import ArtefactError, ConfigError, ResourceError
from orinkit_export.disk import writing

REPOSITORY = "https://github.com/NVIDIA/TensorRT.git"
HEADER, VERSION_HEADER = "NvInferRuntime.h", "NvInferVersion.h"
OLDEST = (10, 3)
"""First release with the plugin interface that the adapters implement."""


@dataclass(frozen=True)
class Pin:
    """One release of the repository."""

    tag: str
    commit: str
    digest: str
    """SHA-256 of the lines `<SHA-256 of a file>  <its path>`, by path, of everything below `include`."""


PINS = {
    "10.3": Pin(
        "v10.3.0",
        "c5b9de37f7ef9034e2efc621c664145c7c12436e",
        "91046bd8056abba6d737d3ba953d52d5e17b6e8692062eec9bb428f9c300b55b",
    ),
    "11.1": Pin(
        "v11.1",
        "82d1dca801c8318a5605399d5240780d0679e4e1",
        "f1216610815fa9b98edbec44133a7326578cc873bf6def38fb163046c75345bb",
    ),
}
"""By the release that a target names. Plugins are compiled against 10.3; 11.1 is what tests speak to 11.x with."""


def cache(release: str) -> Path:
    """Where the headers of a release are kept for this user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "orinkit" / f"tensorrt-{release}" / "include"


def find(release: str, machine: str, named: Path | None = None, system: Path = Path("/usr")) -> Path:
    """The folder of NvInferRuntime.h: in `named`, in the cache, or in the folders for `machine` of the `system`.

    Raises ConfigError (`named` holds none, or an old one) and ResourceError (there is none here).
    """
    if named is not None:
        for folder in (named, *_below(named, machine)):
            if (folder / HEADER).is_file():
                return _checked(folder)
        raise ConfigError(f"{named}: expected a TensorRT SDK or its headers, found no {HEADER} in it")
    for folder in (cache(release), *_below(system, machine)):
        if (folder / HEADER).is_file():
            return _checked(folder)
    raise ResourceError(f"expected TensorRT's headers, found none here; run: orin-export sdk --release {release}")


def version(folder: Path) -> tuple[int, ...]:
    """Major and minor number of the headers in a folder. Raises ConfigError."""
    text = (folder / VERSION_HEADER).read_text(encoding="utf-8") if (folder / VERSION_HEADER).is_file() else ""
    found = []
    for part in ("MAJOR", "MINOR"):
        match = re.search(rf"^#define (?:NV_TENSORRT_{part}|TRT_{part}_ENTERPRISE) (\d+)", text, re.MULTILINE)
        if match is None:
            raise ConfigError(f"{folder / VERSION_HEADER}: expected TensorRT's version, found none; name another SDK")
        found.append(int(match[1]))
    return tuple(found)


def fetch(release: str, repository: str = REPOSITORY, pin: Pin | None = None) -> Path:
    """The headers of a pinned release in the cache, fetched if they are not there.

    repository: what git clones; a mirror serves as well, because commit and digest are checked.
    Raises ConfigError (no such release), ResourceError (git or the network) and ArtefactError (other contents).
    """
    pin = pin or PINS.get(release)
    if pin is None:
        raise ConfigError(f"expected one of the releases {', '.join(PINS)}, found {release!r}")
    folder = cache(release)
    if folder.is_dir() and digest(folder) == pin.digest:
        return folder
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as work:
            _clone(repository, pin, Path(work))
            found = digest(Path(work) / "include")
            if found != pin.digest:
                raise ArtefactError(f"{repository}: expected headers with SHA-256 {pin.digest}, found {found}")
            shutil.rmtree(folder, ignore_errors=True)
            (Path(work) / "include").rename(folder)
    return folder


def digest(folder: Path) -> str:
    """The digest of a folder as a pin states it."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder).as_posix()
        total.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {inside}\n".encode())
    return total.hexdigest()


def _below(folder: Path, machine: str) -> Iterator[Path]:
    yield from (folder / "include" / f"{machine}-linux-gnu", folder / "include", folder / f"{machine}-linux-gnu")


def _checked(folder: Path) -> Path:
    found = version(folder)
    if found < OLDEST:
        raise ConfigError(
            f"{folder}: expected TensorRT 10.3 or later, found {'.'.join(map(str, found))}; name another SDK or run: "
            "orin-export sdk"
        )
    return folder


def _clone(repository: str, pin: Pin, work: Path) -> None:
    """`include` of the pinned commit, and as little else as the server allows, below `work`."""
    git = shutil.which("git")
    if git is None:
        raise ResourceError("expected git, found none; run: apt-get install git")
    shallow = ("--quiet", "--depth", "1", "--filter", "blob:none", "--no-checkout", "--branch", pin.tag)
    _run(git, "-c", "advice.detachedHead=false", "clone", *shallow, "--", repository, str(work / "clone"))
    here = (git, "-C", str(work / "clone"))
    commit = _run(*here, "rev-parse", "HEAD").strip()
    if commit != pin.commit:
        raise ArtefactError(f"{repository}: expected commit {pin.commit} at {pin.tag}, found {commit}")
    _run(*here, "-c", "core.autocrlf=false", "checkout", "--quiet", pin.commit, "--", "include")
    (work / "clone" / "include").rename(work / "include")


def _run(*command: str) -> str:
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise ResourceError(f"{' '.join(command[:4])} ... failed, git says: {said[0]}; is there a network?")
    return done.stdout
