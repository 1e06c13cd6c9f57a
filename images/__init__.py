"""Which images: folders, telemetry as images, generated ones."""
