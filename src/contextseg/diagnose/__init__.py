"""Does a run show the symptom that context labels are for, and which context would help? On its validation cases.

measure    logits and calls of one case, for three tissues: the ROI, the background near it, the background far from it
advice     whether context classes are worth their while, and how many
contexts   what a method with context classes was taught: M, and the contexts of each background voxel
diagnosis  all of it for a finished run, as JSON, arrays and a page
verb       `contextseg diagnose`

Test cases are never looked at: what is chosen by them can no longer be tested on them.
"""
