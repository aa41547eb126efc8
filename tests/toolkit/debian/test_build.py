# SPDX-License-Identifier: Apache-2.0
"""The Debian package: built, looked into, and installed below a folder."""

from __future__ import annotations

import configparser
import gzip
import hashlib
import io
import os
import shutil
import site
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from debian import build
from orinkit import config
from orinkit.serve.settings import resolve

HERE = Path(build.__file__).parent


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deb")
    subprocess.run([sys.executable, str(HERE / "build.py"), "-o", str(folder)], check=True, capture_output=True)
    return next(folder.glob("*.deb"))


def parts(data: bytes) -> dict[str, bytes]:
    """The members of an ar archive."""
    assert data.startswith(b"!<arch>\n")
    found, place = {}, 8
    while place < len(data):
        header = data[place : place + 60]
        assert header.endswith(b"`\n")
        size = int(header[48:58])
        found[header[:16].decode().strip()] = data[place + 60 : place + 60 + size]
        place += 60 + size + size % 2
    return found


def entries(data: bytes) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {
            entry.name: (entry, b"" if entry.isdir() else archive.extractfile(entry).read())  # type: ignore[union-attr]
            for entry in archive
        }


def test_members_owners_and_modes(deb: Path) -> None:
    found = parts(deb.read_bytes())
    assert list(found) == ["debian-binary", "control.tar.xz", "data.tar.xz"]
    assert found["debian-binary"] == b"2.0\n"
    files = entries(found["data.tar.xz"])
    for name, (entry, _) in files.items():
        assert (entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, "root", "root")
        assert name.startswith("./") or name == "."
        assert entry.isdir() or entry.isreg()
        expected = 0o755 if entry.isdir() or name == "./usr/bin/orin-run" else 0o644
        assert entry.mode == expected, name
        assert str(Path(name).parent) in {str(Path(other)) for other in files}
    scripts = entries(found["control.tar.xz"])
    assert {name for name, (entry, _) in scripts.items() if entry.isreg() and entry.mode == 0o755} == {
        "./postinst",
        "./postrm",
        "./prerm",
    }


def test_sums_settings_and_size_are_right(deb: Path) -> None:
    found = parts(deb.read_bytes())
    files = {name[2:]: data for name, (entry, data) in entries(found["data.tar.xz"]).items() if entry.isreg()}
    control = {name: data.decode() for name, (_, data) in entries(found["control.tar.xz"]).items()}
    sums = {line[34:]: line[:32] for line in control["./md5sums"].splitlines()}
    assert sums == {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    assert control["./conffiles"].split() == [f"/{name}" for name in files if name.startswith("etc/")]
    fields = dict(line.split(": ", 1) for line in control["./control"].splitlines() if not line.startswith(" "))
    assert fields["Package"] == "orin-run"
    assert fields["Architecture"] == "all"
    assert abs(int(fields["Installed-Size"]) * 1024 - sum(map(len, files.values()))) <= 1024
    assert gzip.decompress(files["usr/share/doc/orin-run/changelog.gz"]).startswith(b"orin-run (")


def test_the_wheel_holds_the_page_and_no_tests(deb: Path, tmp_path: Path) -> None:
    files = entries(parts(deb.read_bytes())["data.tar.xz"])
    name = next(name for name in files if name.endswith(".whl"))
    (tmp_path / "wheel").write_bytes(files[name][1])
    shutil.unpack_archive(tmp_path / "wheel", tmp_path / "unpacked", "zip")
    page = tmp_path / "unpacked/orinkit/serve/page"
    assert {path.suffix for path in page.iterdir()} == {".py", ".html", ".css", ".js", ".svg"}
    assert not list((tmp_path / "unpacked").rglob("test_*.py"))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    wheel = tmp_path / "orinkit-0-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    assert build.package([wheel], 7) == build.package([wheel], 7)
    assert build.package([wheel], 7) != build.package([wheel], 8)


def test_wheels_of_compiled_code_make_a_package_for_the_board(tmp_path: Path) -> None:
    wheels = [tmp_path / "orinkit-0-py3-none-any.whl", tmp_path / "numpy-2-cp310-cp310-manylinux_2_27_aarch64.whl"]
    for wheel in wheels:
        wheel.write_bytes(b"a wheel")
    control = entries(parts(build.package(wheels, 0))["control.tar.xz"])["./control"][1]
    assert b"\nArchitecture: arm64\n" in control


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_debians_own_tool_reads_it(deb: Path) -> None:
    told = subprocess.run(["dpkg-deb", "--info", deb], check=True, capture_output=True, text=True).stdout
    assert " Package: orin-run\n" in told
    assert "warning" not in told
    listed = subprocess.run(["dpkg-deb", "--contents", deb], check=True, capture_output=True, text=True).stdout
    assert "root/root" in listed
    assert "./usr/lib/systemd/system/orin-run.service" in listed


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="needs dpkg")
def test_installed_below_a_folder_it_runs_and_is_removed_again(deb: Path, tmp_path: Path) -> None:
    """The scripts really run; the packages that ours needs are those of this environment, not of an index."""
    root = tmp_path / "root"
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    environment = {**os.environ, "PATH": path, "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}
    forced = ("--force-not-root", "--force-depends", "--force-script-chrootless")
    dpkg = ["dpkg", f"--root={root}", f"--log={tmp_path}/log", *forced]
    done = subprocess.run([*dpkg, "--install", deb], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packages = next((root / "usr/lib/orin-run/venv/lib").glob("python3*/site-packages"))
    (packages / "needed.pth").write_text("\n".join(site.getsitepackages()))
    program = ["sh", str(root / "usr/bin/orin-run")]
    started = {**environment, "DPKG_ROOT": str(root)}
    told = subprocess.run([*program, "--help"], env=started, capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("Usage: orin-run ")
    assert (packages / "orinkit/serve/page/index.html").is_file()
    done = subprocess.run([*dpkg, "--purge", "orin-run"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left = [found for found in root.rglob("*") if found.is_file() and "var/lib/dpkg" not in str(found)]
    assert left == []


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((HERE / name).read_text())
    return parser


def test_the_sockets_have_the_names_and_modes_that_the_daemon_knows() -> None:
    found = {}
    for name in build.UNITS[1:]:
        made = unit(name)["Socket"]
        found[made["FileDescriptorName"]] = (made["ListenStream"], made["SocketMode"], made["Service"])
    service = "orin-run.service"
    assert found == {
        "api": ("/run/orin/api.sock", "0660", service),
        "live": ("/run/orin/live.sock", "0660", service),
        "admin": ("/run/orin/admin.sock", "0600", service),
    }


def test_the_service_keeps_what_the_fault_model_asks_for() -> None:
    service = unit("orin-run.service")["Service"]
    assert service["Type"] == "notify"
    assert service["RestartPreventExitStatus"].split() == ["69", "78"]
    assert service["OOMPolicy"] == "continue"
    assert service["CapabilityBoundingSet"] == ""
    assert service["LoadCredential"] == "plan.key:/etc/orin/plan.key"
    assert "PrivateDevices" not in service
    assert set(unit("orin-run.service")["Unit"]["Requires"].split()) == set(build.UNITS[1:])


def test_the_settings_of_the_package_are_settings() -> None:
    settings, _ = resolve({}, HERE / "orin-run.yaml")
    assert (settings.bundle, settings.sockets) == ("/var/lib/orin/bundle", "/run/orin")
    assert isinstance(config.load_yaml(HERE / "orin-run.yaml"), dict)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """The units are checked as they are, but for the program, which is not installed here."""
    for name in build.UNITS:
        text = (HERE / name).read_text().replace("/usr/bin/orin-run", "/bin/true")
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in build.UNITS)]
    told = subprocess.run(command, capture_output=True, text=True)
    ours = [line for line in told.stderr.splitlines() if "orin-run" in line]
    assert told.returncode == 0, told.stderr
    assert ours == []
