# SPDX-License-Identifier: Apache-2.0
"""The error tree. Callers catch `OrinError`; the command line turns it into one message and `exit_code`.

    OrinError                 1   anything orinkit refuses or cannot do
    ├── ConfigError          78   a recipe, target or other settings file is wrong
    ├── ArtefactError        78   a file that a later step would read is wrong
    │   ├── CheckpointError       the author's folder: names, shapes, dtypes, values
    │   ├── GraphError            the ONNX model
    │   ├── BundleError           what travels to the board
    │   │   └── SignatureError    its detached signature is missing, unknown or wrong
    │   └── PlanError             what TensorRT built on the board: missing, of another machine, damaged
    ├── ResourceError        75   the machine lacks something now: disk, memory
    │   └── LockedError           another run holds the same output
    ├── EngineError           1   an engine is missing here or failed to execute
    │   ├── DeviceError           the CUDA runtime reported an error; carries its number
    │   └── NumericError          a step's logits are no numbers to choose a token from
    ├── RequestError          1   one request cannot be served as asked
    ├── ServiceError          1   the server cannot take or finish a request now; carries what the client is told
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


class PlanError(ArtefactError):
    """The plan is missing, damaged, or was built from or for something else."""


class ResourceError(OrinError):
    """The machine lacks something at the moment: disk space, memory."""

    exit_code = 75


class LockedError(ResourceError):
    """Another run holds the lock of the same output."""


class EngineError(OrinError):
    """An engine is not available on this machine or failed to execute."""


class DeviceError(EngineError):
    """The CUDA runtime reported an error; which one decides whether the process can go on."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
        """Number of the cudaError_t."""


class NumericError(EngineError):
    """Logits from which no token can be chosen; the request fails, the process may go on."""


class RequestError(OrinError):
    """One request cannot be served as it was asked."""


class ServiceError(OrinError):
    """The server cannot take or finish a request; the message is for the client and tells nothing of the machine."""

    def __init__(
        self, message: str, status: int, code: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        """Of the HTTP answer."""
        self.code = code
        """A word for programs, such as queue_full."""
        self.param = param
        """The field of the request that is at fault."""
        self.retry_after = retry_after
        """Seconds after which trying again makes sense."""


class VerificationError(OrinError):
    """Numbers or tokens differ from what they must be."""
