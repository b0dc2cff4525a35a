"""Turn run folders into numbers (runs, comparability, ladder, speedup), pictures (plots) and pages (text, report)."""
