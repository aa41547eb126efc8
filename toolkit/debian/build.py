# SPDX-License-Identifier: Apache-2.0
"""Builds the Debian package of orin-run. Needs neither root nor Debian's tools.

    python toolkit/debian/build.py [--wheels FOLDER] [-o build]

A package is an ar archive of three members (deb(5)): debian-binary, control.tar.xz, data.tar.xz. Everything in it
belongs to root, times are those of SOURCE_DATE_EPOCH, and the same input gives the same bytes.

    /usr/bin/orin-run                       starts the program in its environment
    /usr/lib/orin-run/wheels/               our wheel, and those of --wheels: then no index is needed on the board
    /usr/lib/systemd/system, tmpfiles.d, sysusers.d
    /etc/orin/orin-run.yaml                 the settings of the service
    /usr/share/doc/orin-run/
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SETTINGS = "/etc/orin/orin-run.yaml"
UNITS = ("orin-run.service", "orin-run.socket", "orin-run-live.socket", "orin-run-admin.socket")
CONTROL = """\
Package: orin-run
Version: {version}
Architecture: {architecture}
Maintainer: The orinkit authors <orinkit@localhost>
Installed-Size: {size}
Depends: python3 (>= 3.10), python3-venv, systemd
Section: science
Priority: optional
Description: Language model server for Jetson Orin and DRIVE Orin
 Serves bundles that orin-export has written through an API that OpenAI's
 clients understand. Its Python packages are installed into an environment of
 their own when the package is configured.
"""


@dataclass(frozen=True)
class Member:
    """A file of the package, by its path on the board."""

    path: str
    data: bytes
    mode: int = 0o644


def members(wheels: list[Path]) -> list[Member]:
    """Everything that is installed."""
    doc = "/usr/share/doc/orin-run"
    change = f"orin-run ({version('orinkit')}) stable; urgency=medium\n\n  * See the project's history.\n"
    return [
        Member("/usr/bin/orin-run", (HERE / "orin-run").read_bytes(), 0o755),
        *(Member(f"/usr/lib/orin-run/wheels/{wheel.name}", wheel.read_bytes()) for wheel in wheels),
        *(Member(f"/usr/lib/systemd/system/{name}", (HERE / name).read_bytes()) for name in UNITS),
        Member("/usr/lib/tmpfiles.d/orin-run.conf", (HERE / "orin-run.tmpfiles").read_bytes()),
        Member("/usr/lib/sysusers.d/orin-run.conf", (HERE / "orin-run.sysusers").read_bytes()),
        Member(SETTINGS, (HERE / "orin-run.yaml").read_bytes()),
        Member(f"{doc}/serving.md", (ROOT / "docs/serving.md").read_bytes()),
        Member(f"{doc}/copyright", b"Licence: Apache-2.0; see /usr/share/common-licenses/Apache-2.0\n"),
        Member(f"{doc}/changelog.gz", gzip.compress(change.encode(), mtime=0)),
    ]


def package(wheels: list[Path], epoch: int) -> bytes:
    """The bytes of the package."""
    files = members(wheels)
    sums = "".join(
        f"{hashlib.md5(one.data, usedforsecurity=False).hexdigest()}  {one.path[1:]}\n"
        for one in sorted(files, key=_path)
    )
    # Wheels of compiled code are for one architecture; ours is not.
    architecture = "all" if all("none-any" in wheel.name for wheel in wheels) else "arm64"
    size = sum(len(one.data) for one in files) // 1024 + 1
    control = CONTROL.format(version=version("orinkit"), architecture=architecture, size=size)
    meta = [
        Member("/control", control.encode()),
        Member("/md5sums", sums.encode()),
        Member("/conffiles", f"{SETTINGS}\n".encode()),
        *(Member(f"/{name}", (HERE / name).read_bytes(), 0o755) for name in ("postinst", "postrm", "prerm")),
    ]
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": _tar(meta, epoch), "data.tar.xz": _tar(files, epoch)}
    return b"!<arch>\n" + b"".join(_ar_member(name, data, epoch) for name, data in parts.items())


def _path(member: Member) -> str:
    return member.path


def _tar(files: list[Member], epoch: int) -> bytes:
    """A tar archive of these files and the folders above them, in order of their paths."""
    folders = {f".{parent}".rstrip("/") for one in files for parent in map(str, Path(one.path).parents)}
    entries: dict[str, Member | None] = dict.fromkeys(folders)
    entries |= {f".{one.path}": one for one in files}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:xz", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(entries):
            member = entries[name]
            entry = tarfile.TarInfo(name)
            entry.mtime, entry.uname, entry.gname = epoch, "root", "root"
            if member is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            else:
                entry.size, entry.mode = len(member.data), member.mode
                archive.addfile(entry, io.BytesIO(member.data))
    return made.getvalue()


def _ar_member(name: str, data: bytes, epoch: int) -> bytes:
    """Sixty bytes of header, the data, and a byte of filling where its length is odd."""
    header = f"{name:<16}{epoch:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
    return header + data + b"\n" * (len(data) % 2)


def our_wheel(folder: Path) -> Path:
    """Build the wheel of this project into `folder`."""
    command = ["-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, *command, "--wheel-dir", str(folder), str(ROOT)], check=True)  # noqa: S603
    return next(folder.glob("orinkit-*.whl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--wheels", type=Path, help="folder of wheels that the board needs, to install without an index"
    )
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build")
    given = parser.parse_args()
    others = sorted(given.wheels.glob("*.whl")) if given.wheels else []
    with tempfile.TemporaryDirectory() as folder:
        made = package([our_wheel(Path(folder)), *others], int(os.environ.get("SOURCE_DATE_EPOCH", "0")))
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / f"orin-run_{version('orinkit')}.deb"
    path.write_bytes(made)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
