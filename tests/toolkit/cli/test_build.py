# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from click.testing import CliRunner, Result

import programs
import standin
from orinkit.cli import main


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["build", *map(str, arguments)])


def test_a_plan_is_built_and_then_up_to_date(demo_bundle: Path, tmp_path: Path) -> None:
    standin.board_bundle(demo_bundle, tmp_path / "demo")
    with standin.installed():
        first, second = run(tmp_path / "demo"), run(tmp_path / "demo")
    assert "build:   0 %, Building Engine\n" in first.stderr
    assert "build: 100 %, Building Engine\n" in first.stderr
    assert f"MB, TensorRT {standin.VERSION}, CUDA 12.6, compute capability 8.7\n" in first.stdout
    assert ": built in " in first.stdout
    assert ": up to date, " in second.stdout
    assert (first.exit_code, second.exit_code, second.stderr) == (0, 0, "")


def test_a_refusal_is_one_line_and_an_exit_code(demo_bundle: Path, tmp_path: Path) -> None:
    done = run(demo_bundle)
    assert (done.exit_code, done.stdout) == (78, "")
    assert done.stderr.startswith("error: expected a bundle for a board with TensorRT, found one for host;")
    standin.board_bundle(demo_bundle, tmp_path / "demo")
    with standin.installed(build="killed"):
        done = run(tmp_path / "demo")
    assert done.exit_code == 75
    assert done.stderr.splitlines()[-1].startswith("error: the build was killed by SIGKILL")


def test_as_a_user_runs_it(demo_bundle: Path, tmp_path: Path) -> None:
    """Real processes, one after another."""
    bundle = standin.board_bundle(demo_bundle, tmp_path / "demo").folder

    def orin(*arguments: str | Path) -> str:
        command = programs.command("orin-run", *arguments)
        done = subprocess.run(command, env=standin.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "built in" in orin("build", bundle)
    assert orin("selftest", bundle, "--engine", "tensorrt").endswith("engine tensorrt\n")


def test_ctrl_c_leaves_no_orphan_and_no_half_plan(demo_bundle: Path, tmp_path: Path) -> None:
    """Case B19."""
    standin.board_bundle(demo_bundle, tmp_path / "demo")
    command = programs.command("orin-run", "build", tmp_path / "demo")
    environment = standin.environment(build="hangs")
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "Building Engine" in process.stderr.readline()
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert not Path(f"/proc/{child}").exists()
    assert [path.name for path in (tmp_path / "demo.plans").iterdir()] == ["build.log"]


def test_options_out_of_range(demo_bundle: Path) -> None:
    done = run(demo_bundle, "--optimization-level", "9")
    assert (done.exit_code, done.stderr) == (78, "error: optimization_level: expected 0 to 5, found 9\n")
