# SPDX-License-Identifier: Apache-2.0
"""Measures a server that speaks OpenAI's completions: ours, or another one beside it."""
