# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

# Before NumPy is imported: threads that share a sum give it another order, and small matrices are faster without.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _plan_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Plans that tests build have a key of their own, handed over as systemd does it, and not that of this machine."""
    folder = tmp_path_factory.mktemp("credentials")
    (folder / "plan.key").write_bytes(bytes(range(32)))
    (folder / "plan.key").chmod(0o400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CREDENTIALS_DIRECTORY", str(folder))
        yield


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of recipes/demo.yaml, without calibration and demands, which take 20 times as long; not signed.

    Copy it before you change anything in it.
    """
    # Imported here, so that tests of the kernels run on a machine without the exporter's libraries.
    from orinkit import config, target
    from orinkit.recipe import Evaluation
    from orinkit_export import plan
    from orinkit_export.build import build
    from programs import DEMO, EVALUATION, TARGET

    read = plan.read(DEMO)
    quantise = replace(read.recipe.quantise, method="rtn")
    evaluation = config.parse(EVALUATION, Evaluation, "evaluation")
    recipe = replace(read.recipe, quantise=quantise, evaluation=evaluation)
    folder = tmp_path_factory.mktemp("demo") / "demo"
    build(replace(read, recipe=recipe), target.read(TARGET), folder)
    return folder
