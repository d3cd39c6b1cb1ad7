"""Sources as sets of TensorFlow Datasets, for `tfds build`."""
