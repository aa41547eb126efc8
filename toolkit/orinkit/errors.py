# SPDX-License-Identifier: Apache-2.0
"""The error tree. Callers catch `OrinError`; the command line turns it into one message and `exit_code`.

    OrinError                 1   anything orinkit refuses or cannot do
    ├── ConfigError          78   a recipe, target or other settings file is wrong
    ├── ArtefactError        78   a file that a later step would read is wrong
    │   ├── CheckpointError       the author's folder: names, shapes, dtypes, values
    │   ├── GraphError            the ONNX model
    │   └── BundleError           what travels to the board
    │       └── SignatureError    its detached signature is missing, unknown or wrong
    ├── ResourceError        75   the machine lacks something now: disk, memory
    │   └── LockedError           another run holds the same output
    ├── EngineError           1   an engine is missing here or failed to execute
    ├── RequestError          1   one request cannot be served as asked
    └── VerificationError     1   numbers or tokens differ from what they must be

Every message says what was expected, what was found, and what to do next.
"""

from __future__ import annotations


class OrinError(Exception):
    """Base of every error that orinkit raises on purpose."""

    exit_code = 1


class ConfigError(OrinError):
    """A recipe, target or other settings file is wrong."""

    exit_code = 78


class ArtefactError(OrinError):
    """A file that a later step would read is wrong."""

    exit_code = 78


class CheckpointError(ArtefactError):
    """The checkpoint folder holds something wrong or unsafe."""


class GraphError(ArtefactError):
    """The ONNX model is not one that orinkit writes."""


class BundleError(ArtefactError):
    """The bundle is incomplete, altered or meant for something else."""


class SignatureError(BundleError):
    """The bundle's detached signature is missing, of an unknown key, or wrong."""


class ResourceError(OrinError):
    """The machine lacks something at the moment: disk space, memory."""

    exit_code = 75


class LockedError(ResourceError):
    """Another run holds the lock of the same output."""


class EngineError(OrinError):
    """An engine is not available on this machine or failed to execute."""


class RequestError(OrinError):
    """One request cannot be served as it was asked."""


class VerificationError(OrinError):
    """Numbers or tokens differ from what they must be."""
