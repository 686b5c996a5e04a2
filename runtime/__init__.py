"""What runs a detector: bundles, the sampling loop, engines, scans. Never imports torch."""
