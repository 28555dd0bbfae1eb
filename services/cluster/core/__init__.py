"""What `cluster` decides: values in, values out."""
