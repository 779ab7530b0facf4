"""One YAML an experiment, with the tables that they are written from; `--config configs/NAME.yaml` finds them."""
