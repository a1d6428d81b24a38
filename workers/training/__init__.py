"""From a data set version to learnable arrays, and the loop of torch families."""
