# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orinkit.errors import ArtefactError, ConfigError, ResourceError
from orinkit_export import sdk

OLD = "#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 3 //!< minor\n"
NEW = (
    "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n"
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def headers(folder: Path, text: str = OLD) -> Path:
    folder.mkdir(parents=True)
    (folder / sdk.HEADER).write_text("// runtime\n")
    (folder / sdk.VERSION_HEADER).write_text(text)
    return folder


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    done = subprocess.run(("git", *identity, *words), cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> tuple[str, sdk.Pin]:
    """A repository like the public one, and the pin of its release."""
    folder = headers(tmp_path / "repository/include").parent
    (folder / "samples").mkdir()
    (folder / "samples/big.txt").write_text("not wanted")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "release")
    git(folder, "tag", "v10.3.0")
    return folder.as_uri(), sdk.Pin("v10.3.0", git(folder, "rev-parse", "HEAD"), sdk.digest(folder / "include"))


def test_what_is_fetched_is_found(repository: tuple[str, sdk.Pin]) -> None:
    url, pin = repository
    folder = sdk.fetch("10.3", url, pin)
    assert folder == sdk.cache("10.3") == sdk.find("10.3", "aarch64")
    assert sdk.digest(folder) == pin.digest
    assert sorted(path.name for path in folder.parent.iterdir()) == ["include"]


def test_a_second_fetch_asks_nobody(repository: tuple[str, sdk.Pin]) -> None:
    url, pin = repository
    sdk.fetch("10.3", url, pin)
    assert sdk.fetch("10.3", "file:///nowhere", pin) == sdk.cache("10.3")


def test_a_damaged_cache_is_fetched_again(repository: tuple[str, sdk.Pin]) -> None:
    url, pin = repository
    (sdk.fetch("10.3", url, pin) / sdk.HEADER).write_text("// damaged\n")
    assert sdk.digest(sdk.fetch("10.3", url, pin)) == pin.digest


def test_another_commit_under_the_tag_is_refused(repository: tuple[str, sdk.Pin]) -> None:
    url, pin = repository
    with pytest.raises(ArtefactError, match=f"expected commit {'0' * 40} at v10.3.0, found {pin.commit}"):
        sdk.fetch("10.3", url, sdk.Pin(pin.tag, "0" * 40, pin.digest))
    assert not sdk.cache("10.3").exists()


def test_other_headers_are_refused(repository: tuple[str, sdk.Pin]) -> None:
    url, pin = repository
    with pytest.raises(ArtefactError, match=f"expected headers with SHA-256 {'0' * 64}, found {pin.digest}"):
        sdk.fetch("10.3", url, sdk.Pin(pin.tag, pin.commit, "0" * 64))
    assert list(sdk.cache("10.3").parent.iterdir()) == []


def test_no_network_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"clone .* failed, git says: .*; is there a network"):
        sdk.fetch("10.3", (tmp_path / "nowhere").as_uri())


def test_a_release_that_is_not_pinned_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected one of the releases 10\.3, 11\.1, found '9\.9'"):
        sdk.fetch("9.9")


@pytest.mark.parametrize("inside", [".", "include", "include/aarch64-linux-gnu", "aarch64-linux-gnu"])
def test_headers_are_found_in_what_the_user_names(inside: str, tmp_path: Path) -> None:
    folder = headers(tmp_path / "sdk" / inside)
    assert sdk.find("10.3", "aarch64", tmp_path / "sdk") == folder


def test_what_the_user_names_must_hold_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a TensorRT SDK or its headers, found no NvInferRuntime\.h in it"):
        sdk.find("10.3", "aarch64", tmp_path)


def test_an_old_release_is_refused(tmp_path: Path) -> None:
    folder = headers(tmp_path / "sdk", OLD.replace("MINOR 3", "MINOR 0"))
    with pytest.raises(ConfigError, match=r"expected TensorRT 10\.3 or later, found 10\.0"):
        sdk.find("10.3", "aarch64", folder)


def test_headers_of_the_system_are_found(tmp_path: Path) -> None:
    folder = headers(tmp_path / "usr/include/aarch64-linux-gnu")
    assert sdk.find("10.3", "aarch64", system=tmp_path / "usr") == folder


def test_without_any_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"found none here; run: orin-export sdk --release 10\.3"):
        sdk.find("10.3", "aarch64", system=tmp_path)


@pytest.mark.parametrize(("text", "expected"), [(OLD, (10, 3)), (NEW, (11, 1))])
def test_the_version_is_read_in_either_spelling(text: str, expected: tuple[int, int], tmp_path: Path) -> None:
    assert sdk.version(headers(tmp_path / "sdk", text)) == expected


def test_headers_without_a_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected TensorRT's version, found none"):
        sdk.version(headers(tmp_path / "sdk", "// nothing\n"))
