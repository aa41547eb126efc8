# SPDX-License-Identifier: Apache-2.0
"""orinkit_export, the half that runs on the host: checkpoint in, bundle out."""
