"""The page of a run, of a run under way, and of several runs beside each other: one page, one script."""
