"""Many trainings of one study: their folder, and the executors that fill it."""
