"""Which process started this one, asked before torch is imported: that takes seconds in which the launcher may die."""

import os

LAUNCHER = os.getppid()
