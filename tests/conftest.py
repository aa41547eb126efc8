# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of recipes/demo.yaml for this machine, not signed. Copy it before you change anything in it."""
    # Imported here, so that tests of the kernels run on a machine without the exporter's libraries.
    from orinkit import target
    from orinkit_export import plan
    from orinkit_export.build import build
    from programs import DEMO, TARGET

    folder = tmp_path_factory.mktemp("demo") / "demo"
    build(plan.read(DEMO), target.read(TARGET), folder)
    return folder
