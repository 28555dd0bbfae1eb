"""What the dataplane decides: values in, values out."""
