# SPDX-License-Identifier: Apache-2.0
"""`orin-export plugins`: a target to checked libraries for it.

    liborin_kernels.so   launchers and device code, for the `cuda` engine and the runner
    liborin_plugins.so   the same behind TensorRT's plugin interface; nothing of it calls into another library of NVIDIA
    plugins.json         what they were built with and what was found in them

Everything that is needed comes from Debian packages and PyPI: the C++ compiler, and NVRTC of the target's CUDA release
for the device code (or the nvcc that the user names). TensorRT gives a dozen headers: see `sdk.py`.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orinkit import config
from orinkit.bundle.manifest import KERNELS, PLUGINS
from orinkit.errors import ArtefactError, ConfigError, LockedError, ResourceError
from orinkit.target import Target
from orinkit_export import proof, sdk
from orinkit_export.disk import writing
from orinkit_export.progress import say
from orinkit_export.proof import LIBRARIES, Proof

ROOT = Path(__file__).parents[2]
RECORD = "plugins.json"
CROSS_COMPILER, CROSS_PACKAGE = "aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"
"""Compiler for boards on another machine, and the Debian package with it."""


@dataclass(frozen=True)
class Tools:
    """What the user names instead of what is found."""

    tensorrt: Path | None = None
    """An SDK of TensorRT, or the folder of its headers."""
    nvcc: Path | None = None
    """The compiler of a CUDA toolkit."""


@dataclass(frozen=True)
class Record:
    """plugins.json."""

    stack: str
    """Id of the stack that it was built for; a bundle for another one refuses it."""
    machine: str
    cuda: str
    """Compiler of the device code: a release of NVRTC, or the path of nvcc."""
    tensorrt: str | None
    """Release of the headers; without them no plugin library was built."""
    libraries: tuple[Proof, ...]


def build(target: Target, output: Path, tools: Tools, with_tensorrt: bool = True) -> Record:
    """Build and check the libraries of `target` into the folder `output`, next to which the build folder stays.

    Raises ResourceError (something is missing here), ArtefactError (it does not build, or is not what it must be).
    """
    machine = proof.machine(target)
    options = [*_compiler(machine), *_device_code(target, tools)]
    headers = sdk.find(_release(target), machine, tools.tensorrt) if with_tensorrt else None
    options.append(f"-DORIN_TENSORRT_INCLUDE={headers or ''}")
    work = Path(os.path.realpath(output)).with_name(f"{output.name}.work")
    with _locked(work):
        _cmake(work, options, list(LIBRARIES) if headers else ["orin_kernels"])
    built = [work / name for name in LIBRARIES.values() if headers or "plugins" not in name]
    record = Record(
        stack=target.stack.id,
        machine=machine,
        cuda=str(tools.nvcc) if tools.nvcc else nvrtc(target),
        tensorrt=".".join(map(str, sdk.version(headers))) if headers else None,
        libraries=tuple(proof.prove(path, target) for path in built),
    )
    _install(built, record, output)
    return record


def default_folder(target: Target) -> Path:
    """Where the libraries of a target's stack go unless the user says so."""
    return Path("build/plugins") / target.stack.id


def packed(target: Target, folder: Path | None = None) -> dict[str, Path]:
    """The libraries that travel in a bundle for `target`, by their paths in it: those in `folder`, or built now.

    None of them for a stack without TensorRT if no folder is named. Raises ArtefactError, ResourceError.
    """
    if folder is None:
        if target.stack.tensorrt is None:
            return {}
        folder = default_folder(target)
        say(f"build the plugins for {target.stack.id}")
        build(target, folder, Tools())
    names = {PurePosixPath(path).name: path for path in (KERNELS, PLUGINS)}
    return {names[library.name]: folder / library.name for library in read(folder, target).libraries}


def read(folder: Path, target: Target) -> Record:
    """The record of libraries that `build` made for this target. Raises ArtefactError."""
    path = folder / RECORD
    if not path.is_file():
        raise ArtefactError(f"{folder}: expected libraries made by orin-export plugins, found no {RECORD} in it")
    try:
        record = config.parse(json.loads(path.read_text(encoding="utf-8")), Record, str(path))
    except (ValueError, ConfigError) as error:
        raise ArtefactError(
            f"{path}: expected a record of orin-export plugins, found: {error}; build it again"
        ) from None
    if record.stack != target.stack.id:
        raise ArtefactError(
            f"{folder}: expected libraries for {target.stack.id}, found some for {record.stack}; run: orin-export "
            "plugins with this target"
        )
    for library in record.libraries:
        path = folder / library.name
        if proof.digest(path) != library.sha256:
            raise ArtefactError(f"{path}: expected SHA-256 {library.sha256}, found another; build it again")
    return record


def _release(target: Target) -> str:
    return target.stack.tensorrt.headers if target.stack.tensorrt else min(sdk.PINS)


def nvrtc(target: Target) -> str:
    """The NVRTC release for a target: that of its CUDA, or the nearest of the same major version, later ones first.

    Code of any of them runs there. Without CUDA in the stack: the newest. Raises ResourceError: none is known.
    """

    def number(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    known = sorted((path.stem for path in (ROOT / "cmake/nvrtc").glob("*.txt")), key=number)
    if not known:
        raise ResourceError(f"{ROOT}: expected a checkout of orinkit with cmake/ and plugins/, found none; clone it")
    if target.stack.cuda is None:
        return known[-1]
    wanted = number(target.stack.cuda.version)
    fitting = [release for release in known if number(release)[0] == wanted[0]]
    if not fitting:
        raise ResourceError(
            f"expected NVRTC for CUDA {target.stack.cuda.version}, found only {', '.join(known)} in cmake/nvrtc; "
            "name an nvcc with --nvcc"
        )
    return next((release for release in fitting if number(release) >= wanted), fitting[-1])


def _compiler(machine: str) -> list[str]:
    """CMake's options for the C++ compiler. Raises ResourceError: it is not installed."""
    is_native = machine == platform.machine()
    program, package = ("g++", "g++") if is_native else (CROSS_COMPILER, CROSS_PACKAGE)
    if shutil.which(program) is None:
        raise ResourceError(f"expected the compiler {program}, found none; run: apt-get install {package}")
    return [] if is_native else [f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake/toolchains/aarch64-linux-gnu.cmake'}"]


def _device_code(target: Target, tools: Tools) -> list[str]:
    compiler = tools.nvcc or _wheels(nvrtc(target))
    if not compiler.exists():
        raise ResourceError(f"{compiler}: expected nvcc, found nothing; name that of a CUDA toolkit")
    return [f"-DORIN_CUDA_COMPILER={compiler.resolve()}", f"-DORIN_ARCHS={';'.join(map(str, proof.archs(target)))}"]


def _wheels(release: str) -> Path:
    """NVRTC's wheels of a release, unpacked; fetched with pip if they are not there. Raises ResourceError."""
    folder = ROOT / "build/nvrtc" / release
    if folder.is_dir():
        return folder
    say(f"fetch NVRTC {release}")
    part = folder.with_name(f"{release}.part")
    shutil.rmtree(part, ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    wanted = ROOT / "cmake/nvrtc" / f"{release}.txt"
    done = _run(*pip, "--target", str(part), "--requirement", str(wanted))
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise ResourceError(f"expected NVRTC {release} from PyPI, but pip says: {said[0]}; is there a network?")
    with writing(folder):
        part.rename(folder)
    return folder


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Hold a build folder. Raises LockedError: another run builds in it."""
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
        file = (work / "lock").open("wb")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{work}: another run builds here; wait for it or choose another output") from None
        yield


def _cmake(work: Path, options: list[str], targets: list[str]) -> None:
    for program in ("cmake", "ninja"):
        if _found(program) is None:
            raise ResourceError(f"expected {program}, found none; run: pip install {program}")
    cmake, ninja = str(_found("cmake")), str(_found("ninja"))
    configure = (cmake, "-S", str(ROOT / "plugins"), "-B", str(work), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}")
    _forget_another_checkout(work)
    steps = {"configure": (*configure, *options), "build": (cmake, "--build", str(work), "--target", *targets)}
    for step, command in steps.items():
        done = _run(*command)
        if done.returncode:
            log = work / "failed.log"
            log.write_text(done.stdout + done.stderr, encoding="utf-8")
            raise ArtefactError(
                f"expected the libraries to build, but CMake could not {step} them; {log} has what it said"
            )


def _forget_another_checkout(work: Path) -> None:
    """CMake refuses a build folder whose sources lay elsewhere, as they do once a checkout was moved or copied."""
    cache = work / "CMakeCache.txt"
    if not cache.is_file():
        return
    home = re.search(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$", cache.read_text(encoding="utf-8"), re.MULTILINE)
    if home is None or os.path.realpath(home[1]) != os.path.realpath(ROOT / "plugins"):
        cache.unlink()
        shutil.rmtree(work / "CMakeFiles", ignore_errors=True)


def _found(program: str) -> str | None:
    """A program beside this Python, as pip installs it, or in the path."""
    return shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603


def _install(built: list[Path], record: Record, output: Path) -> None:
    """The libraries and their record in `output`, each written beside and renamed; the record last."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        for name in {RECORD, *LIBRARIES.values()} - {path.name for path in built}:
            (output / name).unlink(missing_ok=True)
        for path in built:
            shutil.copyfile(path, output / f".{path.name}")
            (output / f".{path.name}").replace(output / path.name)
        text = json.dumps(config.dump(record), indent=1, sort_keys=True) + "\n"
        (output / f".{RECORD}").write_text(text, encoding="utf-8")
        (output / f".{RECORD}").replace(output / RECORD)
