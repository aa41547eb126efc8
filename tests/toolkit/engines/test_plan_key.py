# SPDX-License-Identifier: Apache-2.0
"""Where a board keeps the key of its plans, and which keys are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orinkit.engines import plan_key
from orinkit.errors import PlanError

KEY = bytes(range(32))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a user who is not root and whom systemd has handed nothing."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    monkeypatch.setenv("HOME", str(tmp_path))
    uid = os.geteuid() or 1000
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr("orinkit.bundle.files.check_owner", lambda *_: None)
    return tmp_path / ".local/state/orinkit/plan.key"


def test_it_is_made_once_and_only_its_owner_can_read_it(home: Path) -> None:
    with pytest.raises(PlanError, match="expected the key of this board's plans, found none; build the plan with"):
        plan_key.read()
    key = plan_key.read_or_make()
    assert (len(key), key) == (32, plan_key.read())
    assert key == plan_key.read_or_make() == home.read_bytes()
    assert home.stat().st_mode & 0o777 == 0o600
    assert list(home.parent.iterdir()) == [home]


def test_every_board_makes_another(home: Path) -> None:
    first = plan_key.read_or_make()
    home.unlink()
    assert plan_key.read_or_make() != first


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_length_is_none(size: int, home: Path) -> None:
    plan_key.read_or_make()
    home.write_bytes(bytes(size))
    with pytest.raises(PlanError, match=r"expected (32 bytes|at most 32 bytes), found .*remove it and build the plan"):
        plan_key.read_or_make()


def test_a_key_that_others_can_read_is_none(home: Path) -> None:
    plan_key.read_or_make()
    home.chmod(0o640)
    with pytest.raises(PlanError, match="expected that only its owner can read it"):
        plan_key.read()


def test_a_link_is_no_key(home: Path, tmp_path: Path) -> None:
    plan_key.read_or_make()
    home.rename(tmp_path / "elsewhere")
    home.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlanError, match="remove it and build the plan"):
        plan_key.read()


def test_what_systemd_hands_over_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "plan.key").write_bytes(KEY)
    (tmp_path / "plan.key").chmod(0o440)  # as an access list for the service's user shows
    assert plan_key.read_or_make() == KEY
    (tmp_path / "plan.key").chmod(0o646)
    with pytest.raises(PlanError, match="only its owner can write"):
        plan_key.read()


def test_a_code_is_one_of_key_and_content() -> None:
    """Test case 1 of RFC 4231."""
    expected = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
    assert plan_key.code(b"\x0b" * 20, b"Hi There").hex() == expected
