"""How fast tapelab is, beside what users would pick otherwise; figures of one run, as ratios."""
