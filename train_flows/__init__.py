"""Programs that train, evaluate and sample: ``train-flows COMMAND``."""
