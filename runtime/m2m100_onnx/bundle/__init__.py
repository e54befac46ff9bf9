"""What lies on disk: the contract between exporter and runtime."""
