"""From a model to its layer graph: traced, compared with the model, cut and parted."""
