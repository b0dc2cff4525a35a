"""The soak test: tiny runs trained under random faults, each compared bit for bit with an undisturbed one."""
