"""Figures of runs, detections, verification and profiles; written to files, without a display."""
