# SPDX-License-Identifier: Apache-2.0
"""From requests to tokens, over any engine: batch and slots, steps, scheduler, sampling, text, sessions."""
