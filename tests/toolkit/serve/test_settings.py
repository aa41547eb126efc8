# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from orinkit.cli.serve import serve
from orinkit.errors import ConfigError
from orinkit.serve.settings import Settings, read_api_keys, resolve

KEY = "a-key-of-enough-characters"


def resolved(folder: Path, text: str | None = None, **flags: Any) -> tuple[Settings, dict[str, str]]:
    file = None
    if text is not None:
        file = folder / "orin.yaml"
        file.write_text(text)
    return resolve({"bundle": "b", **flags}, file)


def test_a_flag_goes_before_the_file_and_the_file_before_the_default(tmp_path: Path) -> None:
    settings, origins = resolved(tmp_path, "port: 9\nqueue: 7\nallowed_hosts: [a.example]\n", port=8, drain=None)
    assert (settings.port, settings.queue, settings.drain, settings.allowed_hosts) == (8, 7, 30.0, ("a.example",))
    assert [origins[name] for name in ("port", "queue", "drain")] == ["flag", str(tmp_path / "orin.yaml"), "default"]


def test_every_setting_is_a_flag_and_every_flag_a_setting() -> None:
    assert {option.name for option in serve.params} - {"config"} == {field.name for field in fields(Settings)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("quee: 1", "did you mean 'queue'"),
        ("port: x", "whole number"),
        ("port: 70000", "port: expected -1 to 65535"),
        ("queue: 0", "queue: expected 1"),
        ("port: -1", "port or a folder"),
        ("host: localhost", "IP address"),
        ("- a", "expected names"),
        ("name: ../x", "name"),
        ("deadline: .inf", "finite"),
    ],
)
def test_a_setting_that_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolved(tmp_path, text)


def test_a2_another_address_needs_keys_and_a_word(tmp_path: Path) -> None:
    for flags in ({}, {"allow_remote": True}, {"api_keys": "keys"}):
        with pytest.raises(ConfigError, match="allow_remote"):
            resolved(tmp_path, host="0.0.0.0", **flags)
    settings, _ = resolved(tmp_path, host="0.0.0.0", api_keys="keys", allow_remote=True)
    assert settings.host == "0.0.0.0"
    assert resolved(tmp_path, host="::1")[0].host == "::1"


def written(folder: Path, text: str, mode: int = 0o400) -> str:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_keys_stand_one_a_line(tmp_path: Path) -> None:
    assert read_api_keys(written(tmp_path, f"{KEY}\n{KEY}2\n")) == (KEY, f"{KEY}2")


@pytest.mark.parametrize(
    ("text", "mode"), [(KEY, 0o440), (KEY, 0o404), ("", 0o400), ("short", 0o400), ("ü" * 20, 0o400)]
)
def test_keys_that_others_can_read_or_guess_are_refused(tmp_path: Path, text: str, mode: int) -> None:
    with pytest.raises(ConfigError, match="api_keys: expected"):
        read_api_keys(written(tmp_path, text, mode))


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="api_keys: expected"):
            read_api_keys(str(path))
