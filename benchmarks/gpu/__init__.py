"""What `python -m benchmarks.gpu_report` is made of: one file a stage."""
