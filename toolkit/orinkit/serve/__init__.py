# SPDX-License-Identifier: Apache-2.0
"""The daemon: a supervisor that owns sockets, queue and health, and a worker process that owns the engine."""
