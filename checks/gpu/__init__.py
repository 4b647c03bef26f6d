"""What `make gpu-check` does on a machine with an NVIDIA GPU, and `--dry-run` on any other."""
