"""What the library costs, measured: run as modules from the repository's root."""
