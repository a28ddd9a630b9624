"""Reading what verl dumps in validation: `evaluate --dumps`."""
