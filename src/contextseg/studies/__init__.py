"""Studies: what asks questions of methods, each with a verb of its own on the command line.

- `compare`: which method is better? A grid of runs, one table, paired tests.
- `curve`: how many labelled patients does a method need? A comparison over label budgets.
- `simulate`: how many slices does somebody have to label? A simulated annotator.
- `diagnose`: would context labels help a finished run? Its false positives and its logits.
- `reproduce`: the six data sets of the CoLab paper, from a download to its tables.

A study uses runs and predictors as anybody does; nothing below imports a study.
"""
