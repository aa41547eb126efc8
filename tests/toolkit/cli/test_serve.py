# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from orinkit.cli import main


def test_status_shows_each_value_and_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "orin.yaml"
    file.write_text(f"bundle: b\nqueue: 9\nsockets: {tmp_path}\nallowed_hosts: [a.example, b.example]\n")
    done = CliRunner().invoke(main, ["status", "--config", str(file), "--drain", "5"])
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert "drain: 5.0  (flag)" in lines
    assert f"queue: 9  ({file})" in lines
    assert f"allowed_hosts: a.example, b.example  ({file})" in lines
    assert "port: 8000  (default)" in lines
    assert lines[-1] == "server: no answer"


def test_a_daemon_without_a_bundle_is_refused() -> None:
    done = CliRunner().invoke(main, ["serve"])
    assert done.exit_code == 78
    assert "the key 'bundle' is missing" in done.output


def test_a_setting_that_is_wrong_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["serve", str(tmp_path), "--host", "0.0.0.0"])
    assert done.exit_code == 78
    assert len(done.output.splitlines()) == 1
