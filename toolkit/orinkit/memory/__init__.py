# SPDX-License-Identifier: Apache-2.0
"""What a recipe needs on a target, before anything is built: memory and time."""
