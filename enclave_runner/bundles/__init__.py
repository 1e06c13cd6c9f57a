"""Writing and reading bundles: export, manifest, signing."""
