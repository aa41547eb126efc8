# SPDX-License-Identifier: Apache-2.0
"""What is done on a board beside serving: build the plan, look the machine over, report it."""
