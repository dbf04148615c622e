"""From folders of scans to batches: layouts, plan, cache, sampling, augmentation, and synthetic patients."""
