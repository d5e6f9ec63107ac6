"""What evaluations of runs show: a page on runs, likely label errors, chosen thresholds.

- `run_page`: an HTML page on one run, or on several side by side
- `audit`: likely label errors of a split
- `thresholds`: score thresholds that are chosen on the validation split, and stored in the run
- `examples`: images of a split with their worst or best predictions
"""
