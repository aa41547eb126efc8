# SPDX-License-Identifier: Apache-2.0
"""orinkit, the half that runs on the board: bundle in, tokens out."""
