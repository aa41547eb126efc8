# SPDX-License-Identifier: Apache-2.0
"""What an export lost and what it costs, for people: `report.json` and `report.html` beside the bundle."""
