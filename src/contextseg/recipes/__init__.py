"""The six data sets of the CoLab paper: from a download to Tables I and II with one command each.

table     what each data set is, how its download lies, and what the paper did and reported
find      which file of a download is which case, and what is missing
arrange   a download becomes an nnU-Net v2 data set, of links wherever a link will do
command   the comparison to run, and its results beside the published ones
verb      `contextseg recipe`
"""
