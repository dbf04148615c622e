"""From folders of scans to batches.

Layouts, checks, plan, cache, sampling, augmentation, and synthetic patients.
"""
