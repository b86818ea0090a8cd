"""The embedded model: scenes, questions, training, and the checkpoint that `fsr train` wrote to `data/`."""
