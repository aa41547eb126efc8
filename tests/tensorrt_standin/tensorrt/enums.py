# SPDX-License-Identifier: Apache-2.0
"""Enums with the numbers that they have in the release that is played: some move with 11.0."""

from __future__ import annotations

import enum

from .settings import VERSION, number

_IS_11 = number(VERSION) >= (11, 0)


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0
    TACTIC_DRAM = 4


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0 if _IS_11 else 1


class BuilderFlag(enum.Enum):
    EDITABLE_TIMING_CACHE = 26 if _IS_11 else 27


class SeekPosition(enum.Enum):
    SET = 0
    CUR = 1
    END = 2


class ErrorCodeTRT(enum.Enum):
    SUCCESS = 0
    UNSPECIFIED_ERROR = 1
    INTERNAL_ERROR = 2
    INVALID_ARGUMENT = 3
    INVALID_CONFIG = 4
    FAILED_ALLOCATION = 5
    FAILED_INITIALIZATION = 6
    FAILED_EXECUTION = 7
    FAILED_COMPUTATION = 8
    INVALID_STATE = 9
    UNSUPPORTED_STATE = 10
